"""The Motion container: SMPL-X pose, face and metadata per frame, on one clock, saved without pickle."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np

from talkshow_bridge import rotations
from talkshow_bridge.arrays import read_npz
from talkshow_bridge.errors import InputError, shown

# fmt: off
ARKIT_52: tuple[str, ...] = (
    "browDownLeft", "browDownRight", "browInnerUp", "browOuterUpLeft", "browOuterUpRight",
    "cheekPuff", "cheekSquintLeft", "cheekSquintRight",
    "eyeBlinkLeft", "eyeBlinkRight", "eyeLookDownLeft", "eyeLookDownRight", "eyeLookInLeft", "eyeLookInRight",
    "eyeLookOutLeft", "eyeLookOutRight", "eyeLookUpLeft", "eyeLookUpRight", "eyeSquintLeft", "eyeSquintRight",
    "eyeWideLeft", "eyeWideRight",
    "jawForward", "jawLeft", "jawOpen", "jawRight",
    "mouthClose", "mouthDimpleLeft", "mouthDimpleRight", "mouthFrownLeft", "mouthFrownRight", "mouthFunnel",
    "mouthLeft", "mouthLowerDownLeft", "mouthLowerDownRight", "mouthPressLeft", "mouthPressRight", "mouthPucker",
    "mouthRight", "mouthRollLower", "mouthRollUpper", "mouthShrugLower", "mouthShrugUpper",
    "mouthSmileLeft", "mouthSmileRight", "mouthStretchLeft", "mouthStretchRight",
    "mouthUpperUpLeft", "mouthUpperUpRight", "noseSneerLeft", "noseSneerRight", "tongueOut",
)
# fmt: on
EXPRESSION_SIZES = {"arkit52": 52, "flame100": 100}
ARKIT_OFFSET = 10  # the open body keeps its ARKit units in slots 10..61 of the 100 expression columns
ROTATION_SHAPES = {
    "jaw": (3,),
    "leye": (3,),
    "reye": (3,),
    "global_orient": (3,),
    "body": (21, 3),
    "left_hand": (15, 3),
    "right_hand": (15, 3),
}
FORMAT_VERSION = 1
MAX_BETAS = 400
FPS_RANGE = (1.0, 1000.0)  # of motions read from files
_HALF_TURN = np.diag([1.0, -1.0, -1.0])  # TalkSHOW's camera frame: y down, z away


@dataclass(frozen=True)
class Motion:
    """N frames of SMPL-X motion; frame k shows time k / fps.

    jaw, leye, reye, global_orient: (N, 3); body: (N, 21, 3) joints 1..21; left_hand, right_hand: (N, 15, 3) in the
    order index, middle, pinky, ring, thumb, relative to the relaxed mean hand. All float32 axis-angle radians,
    y up, facing +z, left = +x, T-pose = 0.
    expression: (N, 52) ARKit weights 0..1 ("arkit52", order of ARKIT_52) or (N, 100) FLAME numbers ("flame100").
    transl: (N, 3) metres. betas: (B,) shape numbers. meta: JSON-able facts (generator, seed, style, audio hash).
    """

    fps: float
    jaw: np.ndarray
    leye: np.ndarray
    reye: np.ndarray
    global_orient: np.ndarray
    body: np.ndarray
    left_hand: np.ndarray
    right_hand: np.ndarray
    expression: np.ndarray
    transl: np.ndarray
    expression_space: str = "arkit52"
    betas: np.ndarray = field(default_factory=lambda: np.zeros(10, np.float32))
    meta: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.expression_space not in EXPRESSION_SIZES:
            raise InputError(f"Unknown expression space '{self.expression_space}'.")
        if not (math.isfinite(self.fps) and self.fps > 0):
            raise InputError(f"A motion needs a positive frame rate, not {self.fps}.")
        object.__setattr__(self, "fps", float(self.fps))
        count = len(self.jaw)
        shapes = {**ROTATION_SHAPES, "transl": (3,), "expression": (EXPRESSION_SIZES[self.expression_space],)}
        for name, shape in shapes.items():
            value = _numbers(getattr(self, name), name)
            if value.shape != (count, *shape):
                raise InputError(f"Motion array '{name}' has shape {value.shape}, expected {(count, *shape)}.")
            if not np.isfinite(value).all():
                raise InputError(f"Motion array '{name}' holds numbers that are not finite.")
            object.__setattr__(self, name, value)
        betas = _numbers(self.betas, "betas").reshape(-1)
        if len(betas) > MAX_BETAS or not np.isfinite(betas).all():
            raise InputError(f"Shape numbers (betas) are at most {MAX_BETAS} finite numbers.")
        object.__setattr__(self, "betas", betas)

    @classmethod
    def rest(cls, count: int, fps: float = 30.0, expression_space: str = "arkit52") -> Motion:
        """A T-pose with a neutral face, `count` frames long."""
        arrays = {name: np.zeros((count, *shape), np.float32) for name, shape in ROTATION_SHAPES.items()}
        expression = np.zeros((count, EXPRESSION_SIZES[expression_space]), np.float32)
        transl = np.zeros((count, 3), np.float32)
        return cls(fps, expression=expression, transl=transl, expression_space=expression_space, **arrays)

    def __len__(self) -> int:
        return len(self.jaw)

    @property
    def duration(self) -> float:
        """Seconds that the frames cover."""
        return len(self) / self.fps

    def __getitem__(self, frames: slice) -> Motion:
        """A contiguous (or strided) part as a new Motion; strides keep the frame rate number as it is."""
        if not isinstance(frames, slice):
            raise TypeError("a Motion is sliced, as in motion[10:20]")
        return replace(self, **{name: getattr(self, name)[frames] for name in _frame_arrays()})

    def unit(self, name: str) -> np.ndarray:
        """(N,) weights of one ARKit unit, by its camelCase name."""
        if self.expression_space != "arkit52":
            raise InputError("Face units have names only in the 'arkit52' expression space.")
        return self.expression[:, ARKIT_52.index(name)]

    @staticmethod
    def concatenate(parts: Sequence[Motion]) -> Motion:
        """Join motions of one frame rate and expression space end to end; betas and meta are the first one's."""
        if not parts:
            raise InputError("There is no motion to join.")
        first = parts[0]
        if any(p.fps != first.fps or p.expression_space != first.expression_space for p in parts):
            raise InputError("Motions can only be joined when frame rate and expression space are the same.")
        joined = {name: np.concatenate([getattr(p, name) for p in parts]) for name in _frame_arrays()}
        return replace(first, **joined)

    def resample(self, fps: float) -> Motion:
        """The same movement at another frame rate: slerp for rotations, linear for the rest, same start time."""
        if fps == self.fps or len(self) == 0:
            return replace(self, fps=fps)
        count = max(1, math.ceil(self.duration * fps - 1e-6))
        at = np.minimum(np.arange(count) * (self.fps / fps), len(self) - 1)
        low = np.minimum(at.astype(int), len(self) - 1)
        high = np.minimum(low + 1, len(self) - 1)
        resampled = {}
        for name in _frame_arrays():
            value = getattr(self, name).astype(np.float64)
            weight = (at - low).reshape(-1, *[1] * (value.ndim - 1))
            blend = rotations.slerp if name in ROTATION_SHAPES else _lerp
            resampled[name] = blend(value[low], value[high], weight)
        return replace(self, fps=fps, **resampled)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a compressed npz of plain arrays (metadata as a JSON string)."""
        header = {
            "version": FORMAT_VERSION,
            "fps": self.fps,
            "expression_space": self.expression_space,
            "meta": self.meta,
        }
        arrays = {name: getattr(self, name) for name in (*_frame_arrays(), "betas")}
        arrays["header"] = np.array(json.dumps(header))  # before the file is opened: it may fail
        with open(path, "wb") as stream:
            np.savez_compressed(stream, **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Motion:
        """Read what `save` wrote; nothing is ever unpickled. Raises InputError for anything else."""
        name = shown(Path(path))
        arrays = read_npz(path, ("header", *_frame_arrays(), "betas"))
        try:
            header = json.loads(str(arrays.pop("header")))
            if header["version"] != FORMAT_VERSION:
                raise InputError(f"'{name}' is a motion file of an unknown version.")
            fps, meta = file_fps(header["fps"], name), dict(header["meta"])
            motion = cls(fps, expression_space=header["expression_space"], meta=meta, **arrays)
        except InputError:
            raise
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError):
            raise InputError(f"'{name}' is not a motion file of this project (.npz).") from None
        if not len(motion):
            raise InputError(f"The motion '{name}' has no frames.")
        return motion

    def to_talkshow(self) -> np.ndarray:
        """(N, 265) float32 in TalkSHOW's order: jaw, eyes, root, body, hands, expression; its y-down root frame.

        ARKit weights go to expression slots 10..61, where the open body keeps them; translation is dropped.
        """
        root = rotations.axis_angle(_HALF_TURN @ rotations.matrix(self.global_orient.astype(np.float64)))
        expression = np.zeros((len(self), 100), np.float32)
        start = ARKIT_OFFSET if self.expression_space == "arkit52" else 0
        expression[:, start : start + self.expression.shape[1]] = self.expression
        flat = [self.body, self.left_hand, self.right_hand]
        columns = [self.jaw, self.leye, self.reye, root, *(a.reshape(len(self), -1) for a in flat), expression]
        return np.concatenate(columns, axis=1).astype(np.float32)

    @classmethod
    def from_talkshow(cls, columns: np.ndarray, fps: float = 30.0, expression_space: str = "flame100") -> Motion:
        """TalkSHOW's (N, 265) array -> Motion, turned y up."""
        columns = np.asarray(columns)
        if columns.ndim != 2 or columns.shape[1] != 265 or columns.dtype.kind != "f":
            raise InputError(f"TalkSHOW motion has 265 columns of floats, not an array of shape {columns.shape}.")
        jaw, leye, reye, root, body, left, right, expression = np.split(columns, [3, 6, 9, 12, 75, 120, 165], axis=1)
        upright = rotations.axis_angle(_HALF_TURN @ rotations.matrix(root.astype(np.float64)))
        if expression_space == "arkit52":
            expression = expression[:, ARKIT_OFFSET : ARKIT_OFFSET + len(ARKIT_52)]
        count = len(columns)
        hands = {"left_hand": left.reshape(count, 15, 3), "right_hand": right.reshape(count, 15, 3)}
        return cls(
            fps, jaw, leye, reye, upright, body.reshape(count, 21, 3), **hands, expression=expression,
            transl=np.zeros((count, 3), np.float32), expression_space=expression_space, meta={"generator": "talkshow"},
        )  # fmt: skip


def file_fps(value: object, name: str) -> float:
    """A frame rate read from the file `name`, checked."""
    fps = float(value)
    low, high = FPS_RANGE
    if not low <= fps <= high:
        raise InputError(f"'{name}' says {fps:g} frames per second; {low:g} to {high:g} make sense.")
    return fps


def _frame_arrays() -> list[str]:
    """Names of the fields that hold one row per frame."""
    return [f.name for f in fields(Motion) if f.name in ROTATION_SHAPES or f.name in ("expression", "transl")]


def _numbers(value: object, name: str) -> np.ndarray:
    """Contiguous float32 of an array of numbers; what is too large becomes infinite and is refused as such."""
    value = np.asarray(value)
    if value.dtype.kind not in "fiub":
        raise InputError(f"Motion array '{name}' holds {value.dtype}, not numbers.")
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(value, dtype=np.float32)


def _lerp(a: np.ndarray, b: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return a * (1 - weight) + b * weight
