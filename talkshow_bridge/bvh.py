"""Motion as a BVH file: the 55-joint skeleton in centimetres, y up, for Blender, Maya, MotionBuilder or Unreal.

Each joint's channels are Zrotation Xrotation Yrotation in degrees, applied as R = Rz Rx Ry; the root has its position
too. The face is not part of a BVH file, except for jaw and eyes, which are joints.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np

from talkshow_bridge import rotations
from talkshow_bridge.motion import Motion
from talkshow_bridge.rig import JOINTS, PARENTS, RELAXED_HANDS, REST_JOINTS, full_pose

CENTIMETRES = 100.0  # per metre
TIP = 2.5  # cm, length of a bone that ends in no joint
_BLOCK = 1000  # frames formatted at a time


def write_bvh(
    motion: Motion,
    path: str | os.PathLike[str],
    joints: np.ndarray = REST_JOINTS,
    hand_mean: np.ndarray = RELAXED_HANDS,
) -> None:
    """Write a motion for the skeleton with rest joints (55, 3) m and relaxed hands (2, 15, 3) of some body."""
    offsets = CENTIMETRES * np.asarray(joints, np.float64)
    order = list(_depth_first(0))
    with open(path, "w", encoding="ascii", newline="\n") as stream:
        stream.write("HIERARCHY\n" + "\n".join(_joint(0, offsets, "")) + "\n")
        stream.write(f"MOTION\nFrames: {len(motion)}\nFrame Time: {1 / motion.fps:.9f}\n")
        previous = np.zeros((1, len(JOINTS), 3))
        for start in range(0, len(motion), _BLOCK):
            part = motion[start : start + _BLOCK]
            angles = euler_zxy(rotations.matrix(full_pose(part, hand_mean).astype(np.float64)))
            angles = np.unwrap(np.concatenate([previous, angles]), axis=0)[1:]
            previous = angles[-1:]
            root = offsets[0] + CENTIMETRES * part.transl
            rows = np.concatenate([root, np.rad2deg(angles[:, order]).reshape(len(part), -1)], axis=1)
            stream.writelines(" ".join(f"{value:.6f}" for value in row) + "\n" for row in rows)


def euler_zxy(rotation: np.ndarray) -> np.ndarray:
    """(..., 3, 3) rotation matrices -> (..., 3) angles z, x, y (rad) with R = Rz Rx Ry; x within a quarter turn."""
    m = rotation
    x = np.arcsin(np.clip(m[..., 2, 1], -1, 1))
    locked = np.abs(m[..., 2, 1]) > 1 - 1e-9
    z = np.where(locked, np.arctan2(m[..., 1, 0], m[..., 0, 0]), np.arctan2(-m[..., 0, 1], m[..., 1, 1]))
    y = np.where(locked, 0.0, np.arctan2(-m[..., 2, 0], m[..., 2, 2]))
    return np.stack([z, x, y], axis=-1)


def _children(joint: int) -> list[int]:
    return [child for child, parent in enumerate(PARENTS) if parent == joint]


def _depth_first(joint: int) -> Iterator[int]:
    yield joint
    for child in _children(joint):
        yield from _depth_first(child)


def _joint(joint: int, offsets: np.ndarray, indent: str) -> Iterator[str]:
    """The lines of a joint and everything below it."""
    root = joint == 0
    offset = offsets[joint] if root else offsets[joint] - offsets[PARENTS[joint]]
    yield f"{indent}{'ROOT' if root else 'JOINT'} {JOINTS[joint]}"
    yield f"{indent}{{"
    yield f"{indent}  OFFSET {_numbers(offset)}"
    positions = "Xposition Yposition Zposition " if root else ""
    yield f"{indent}  CHANNELS {6 if root else 3} {positions}Zrotation Xrotation Yrotation"
    for child in _children(joint):
        yield from _joint(child, offsets, indent + "  ")
    if not _children(joint):
        yield f"{indent}  End Site"
        yield f"{indent}  {{"
        yield f"{indent}    OFFSET {_numbers(TIP * offset / np.linalg.norm(offset))}"
        yield f"{indent}  }}"
    yield f"{indent}}}"


def _numbers(values: np.ndarray) -> str:
    return " ".join(f"{value:.6f}" for value in values)
