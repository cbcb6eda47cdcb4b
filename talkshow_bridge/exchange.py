"""Motion files of other projects: TalkSHOW, AMASS / SMPL-X, BEAT2 / EMAGE in; TalkSHOW and AMASS out.

| file | known by | hands | up | face |
|---|---|---|---|---|
| our own .npz | `header` | relative to the relaxed hand | y | arkit52 or flame100 |
| TalkSHOW .npy | (N, 265) | relative | y down, turned | flame100 (arkit52 where only the open body's slots are used) |
| AMASS, SMPL-X .npz | `poses` (N, 156 or 165) | absolute: flat hand = 0 | z, turned | none, or `expression` |
| BEAT2, EMAGE .npz | `poses` and `expressions` | relative (smplx' default, flat_hand_mean=False) | y | flame100 |

AMASS stores the relaxed hand itself where no fingers were captured, which is why its hands must be absolute. smplx adds
the mean hand to the axis-angle numbers, so the two conventions differ by a subtraction.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from talkshow_bridge import rotations
from talkshow_bridge.arrays import is_npy, is_npz, read_npy, read_npz
from talkshow_bridge.errors import InputError, shown
from talkshow_bridge.motion import ARKIT_52, ARKIT_OFFSET, EXPRESSION_SIZES, MAX_BETAS, Motion, file_fps
from talkshow_bridge.rig import RELAXED_HANDS, REST_JOINTS, full_pose

HANDS, UPS = ("relative", "absolute"), ("y", "z")
WRITTEN_ONLY = (".bvh", ".glb", ".gltf")
BEAT2_FPS = 30.0
IN_A_ROOM = "in a room"  # meta["placed"] of motions whose position and heading are a studio's, not a presenter's
_FRAME_RATES = ("mocap_frame_rate", "mocap_framerate")
_POSE_FILE = ("poses", "trans", "expressions", "expression", "betas", *_FRAME_RATES)
_Z_UP = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # y-up -> z-up
_PELVIS = REST_JOINTS[0]


def load_motion(
    path: str | os.PathLike[str], sample: tuple[int, int] | None = None, hands: str | None = None, up: str | None = None
) -> Motion:
    """Read a motion file of any kind in the table above; the content decides, not the name.

    sample: (k, n), of n takes joined end to end in a TalkSHOW file the k-th, from 1. hands ("relative", "absolute") and
    up ("y", "z") override the table for SMPL-X files. Raises InputError in one sentence: nothing is unpickled, sizes
    are checked before memory is taken (see arrays.py), numbers must be finite.
    """
    name = shown(Path(path))
    for value, known in ((hands, HANDS), (up, UPS)):
        if value not in (None, *known):
            raise InputError(f"{value!r} is neither {known[0]} nor {known[1]}.")
    if Path(path).suffix.lower() in WRITTEN_ONLY:
        raise InputError(f"'{name}' cannot be read: BVH and GLB files are only written here.")
    if sample is not None and not is_npy(path):
        raise InputError(f"'{name}' holds a single motion; only TalkSHOW's .npy files hold several samples.")
    arrays = read_npz(path, _POSE_FILE) if is_npz(path) else {}
    try:
        if is_npy(path):
            motion = _from_talkshow(read_npy(path), sample, name)
        elif "poses" in arrays:
            motion = _from_poses(arrays, hands, up, name)
        else:
            motion = Motion.load(path)  # which also says what is wrong with any other file
    except InputError as error:
        raise InputError(str(error) if name in str(error) else f"'{name}' cannot be used: {error}") from None
    if not len(motion):
        raise InputError(f"The motion '{name}' has no frames.")
    return motion


def save_talkshow(motion: Motion, path: str | os.PathLike[str]) -> None:
    """Write TalkSHOW's (N, 265) .npy at its 30 frames a second."""
    with open(path, "wb") as stream:
        np.save(stream, motion.resample(30.0).to_talkshow(), allow_pickle=False)


def save_amass(motion: Motion, path: str | os.PathLike[str], hand_mean: np.ndarray = RELAXED_HANDS) -> None:
    """Write an AMASS-style npz: poses (N, 165) in smplx order, z up, absolute hands; trans, betas, expression."""
    root, transl = _turn(motion, _Z_UP)
    poses = full_pose(replace(motion, global_orient=root), hand_mean).reshape(len(motion), -1)
    with open(path, "wb") as stream:
        np.savez_compressed(
            stream, poses=poses.astype(np.float32), trans=transl.astype(np.float32), betas=motion.betas,
            expression=motion.expression, mocap_frame_rate=np.float64(motion.fps), gender=np.array("neutral"),
            surface_model_type=np.array("smplx"),
        )  # fmt: skip


def face_front(motion: Motion) -> Motion:
    """The same motion on the spot: on average it faces +z and its pelvis is where it is in the rest pose.

    For motions recorded in a room, before they are shown to a presenter's camera."""
    facing = rotations.matrix(motion.global_orient.astype(np.float64))[..., 2].mean(axis=0)
    heading = np.arctan2(facing[0], facing[2])
    turn = rotations.matrix(np.array([0.0, -heading, 0.0]))
    root = rotations.axis_angle(turn @ rotations.matrix(motion.global_orient.astype(np.float64)))
    transl = (motion.transl.astype(np.float64) - motion.transl.mean(axis=0)) @ turn.T
    meta = {key: value for key, value in motion.meta.items() if key != "placed"}
    return replace(motion, global_orient=root, transl=transl, meta=meta)


def with_face(motion: Motion, expression_space: str, other: Motion | None = None) -> Motion:
    """The same body with the jaw, eyes and expression of `other`, which lasts as long; without one a neutral face."""
    if other is None:
        neutral = np.zeros((len(motion), EXPRESSION_SIZES[expression_space]), np.float32)
        return replace(motion, expression=neutral, expression_space=expression_space)
    face = other.resample(motion.fps)
    last = np.minimum(np.arange(len(motion)), len(face) - 1)
    arrays = {name: getattr(face, name)[last] for name in ("jaw", "leye", "reye", "expression")}
    return replace(motion, expression_space=expression_space, **arrays)


def _from_talkshow(columns: np.ndarray, sample: tuple[int, int] | None, name: str) -> Motion:
    if columns.ndim != 2 or columns.shape[1] != 265 or columns.dtype.kind != "f":
        found = f"{columns.dtype} of shape {columns.shape}"
        raise InputError(f"'{name}' holds {found}; TalkSHOW motion has 265 columns of floating-point numbers.")
    if sample is not None:
        number, count = sample
        if not 1 <= number <= count or len(columns) % count:
            raise InputError(f"'{name}' has {len(columns)} frames: that is no sample {number} of {count} equal ones.")
        length = len(columns) // count
        columns = columns[(number - 1) * length : number * length]
    units = columns[:, 165 + ARKIT_OFFSET : 165 + ARKIT_OFFSET + len(ARKIT_52)]
    others = np.delete(columns[:, 165:], np.s_[ARKIT_OFFSET : ARKIT_OFFSET + len(ARKIT_52)], axis=1)
    arkit = not others.any() and units.min(initial=0) >= 0 and units.max(initial=0) <= 1
    return Motion.from_talkshow(columns, 30.0, "arkit52" if arkit else "flame100")


def _from_poses(arrays: dict[str, np.ndarray], hands: str | None, up: str | None, name: str) -> Motion:
    """AMASS, SMPL-X and BEAT2 arrays -> Motion."""
    beat2 = "expressions" in arrays
    poses = arrays["poses"]
    if poses.dtype.kind != "f" or poses.ndim != 2 or poses.shape[1] not in (156, 165):
        raise InputError(
            f"'poses' in '{name}' has shape {poses.shape}; SMPL-X has 165 columns, SMPL+H 156 (SMPL's 72 lack hands)."
        )
    count = len(poses)
    if not count:
        raise InputError(f"The motion '{name}' has no frames.")
    joints = poses.reshape(count, -1, 3).astype(np.float64)
    face, fingers = joints[:, 22:-30], joints[:, -30:].reshape(count, 2, 15, 3)
    if not face.size:
        face = np.zeros((count, 3, 3))
    if (hands or ("relative" if beat2 else "absolute")) == "absolute":
        fingers = fingers - RELAXED_HANDS
    expression, space, notes = _expression(arrays, count)
    trans = arrays.get("trans", np.zeros((count, 3), np.float32))
    betas = arrays.get("betas", np.zeros(10, np.float32))
    betas = np.atleast_1d(betas[0] if betas.ndim == 2 and len(betas) else betas)
    meta = {"generator": "BEAT2 / EMAGE file" if beat2 else "AMASS / SMPL-X file", "placed": IN_A_ROOM}
    meta |= {"notes": notes} if notes else {}
    motion = Motion(
        _frame_rate(arrays, BEAT2_FPS if beat2 else None, name),
        *np.moveaxis(face, 1, 0), joints[:, 0], joints[:, 1:22], fingers[:, 0], fingers[:, 1],
        expression, trans, space, betas.reshape(-1)[:MAX_BETAS], meta,
    )  # fmt: skip
    if (up or ("y" if beat2 else "z")) == "y":
        return motion
    root, transl = _turn(motion, _Z_UP.T)
    return replace(motion, global_orient=root, transl=transl)


def _expression(arrays: dict[str, np.ndarray], count: int) -> tuple[np.ndarray, str, list[str]]:
    """The face numbers of a SMPL-X file -> array, expression space, remarks. Neutral where there are none."""
    stored = arrays.get("expressions", arrays.get("expression"))
    if stored is None:
        return np.zeros((count, 52), np.float32), "arkit52", []
    spaces = {size: space for space, size in EXPRESSION_SIZES.items()}
    if stored.shape[1:] and stored.shape[1] in spaces:
        return stored, spaces[stored.shape[1]], []
    note = f"the face numbers of shape {stored.shape} are of an unknown kind and were left out"
    return np.zeros((count, 52), np.float32), "arkit52", [note]


def _frame_rate(arrays: dict[str, np.ndarray], default: float | None, name: str) -> float:
    stored = next((arrays[key] for key in _FRAME_RATES if key in arrays), None)
    if stored is None and default is None:
        raise InputError(f"'{name}' does not say its frame rate ('mocap_frame_rate').")
    try:
        return file_fps(default if stored is None else stored.reshape(-1)[0], name)
    except (ValueError, IndexError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"The frame rate in '{name}' is not a number.") from None


def _turn(motion: Motion, turn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The whole scene turned about the origin -> (global_orient, transl). SMPL-X turns about the pelvis, not there."""
    root = rotations.axis_angle(turn @ rotations.matrix(motion.global_orient.astype(np.float64)))
    return root, (motion.transl.astype(np.float64) + _PELVIS) @ turn.T - _PELVIS
