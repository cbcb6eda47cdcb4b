"""A held-out clip: what an anchor should have painted for a motion that its training never saw.

Packages carry a short one, held-out.mp4 with held-out.safetensors, so that everybody can measure them.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path

import numpy as np

from avatar_app.anchors import Anchor
from avatar_app.training.dataset import Footage
from avatar_app.training.delivery import read_video
from talkshow_bridge.audio import ffmpeg_path
from talkshow_bridge.errors import InputError
from talkshow_bridge.motion import ROTATION_SHAPES, Motion

PICTURES, NUMBERS = "held-out.mp4", "held-out.safetensors"
LARGEST = 600_000  # bytes of the pictures in a package
LONGEST = 24  # of them
QUALITIES = (8, 13, 18, 23, 28)  # H.264 CRF, the first that fits


@dataclass(frozen=True)
class Truth:
    """pictures (N, height, width, 3) uint8 RGB; motion of N frames; consecutive: neighbours are 1/fps apart."""

    pictures: np.ndarray
    motion: Motion
    consecutive: bool

    @classmethod
    def of(cls, footage: Footage) -> Truth:
        consecutive = bool((np.diff(footage.frames) == 1).all()) and len(footage) > 1
        return cls(footage.pictures, footage.motion, consecutive)


def held_out_sets(footage: Path) -> list[str]:
    """Names of the held-out sets of a footage folder: "test" (spread out pictures), "clip" (consecutive ones)."""
    return [name for name in ("test", "clip") if (footage / name / "index.json").exists()]


def held_out_truths(anchor: Anchor, footage: Path | None = None) -> dict[str, Truth]:
    """Every held-out set of a footage folder, or the one in the package. Raises InputError."""
    if footage is not None:
        truths = {name: Truth.of(Footage(footage, name)) for name in held_out_sets(footage)}
        if not truths:
            raise InputError(f"'{footage}' holds no held-out pictures, that is no set 'test' or 'clip'.")
    elif (anchor.folder / NUMBERS).exists():
        truths = {"held-out": read_truth(anchor.folder)}
    else:
        raise InputError(f"Anchor '{anchor.id}' brings no held-out clip; please name a footage folder.")
    size = (anchor.manifest.height, anchor.manifest.width)
    if any(truth.pictures.shape[1:3] != size for truth in truths.values()):
        raise InputError(f"The held-out pictures have another size than those of anchor '{anchor.id}'.")
    return truths


def write_truth(truth: Truth, folder: Path) -> None:
    """At most 600 kB of it; the colours are kept at full size, so compression costs next to nothing."""
    from safetensors.numpy import save_file

    count = min(len(truth.pictures), LONGEST)
    motion = truth.motion[:count]
    arrays = {f.name: np.ascontiguousarray(getattr(motion, f.name)) for f in fields(Motion) if f.name in _ARRAYS}
    facts = {"fps": str(motion.fps), "space": motion.expression_space, "consecutive": str(int(truth.consecutive))}
    save_file(arrays, folder / NUMBERS, metadata=facts)
    for quality in QUALITIES:
        encode(truth.pictures[:count], motion.fps, quality, folder / PICTURES)
        if (folder / PICTURES).stat().st_size <= LARGEST:
            return


def read_truth(folder: Path) -> Truth:
    """What `write_truth` wrote. Raises InputError."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / NUMBERS, framework="numpy") as file:
            facts = file.metadata()
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        motion = Motion(float(facts["fps"]), expression_space=facts["space"], **arrays)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        raise InputError(f"'{folder.name}/{NUMBERS}' is not a readable held-out motion.") from None
    pictures = np.stack(list(read_video(folder / PICTURES)))
    if len(pictures) != len(motion):
        raise InputError(f"'{folder.name}': the held-out clip has {len(pictures)} pictures and {len(motion)} frames.")
    return Truth(pictures, motion, facts["consecutive"] == "1")


_ARRAYS = {*ROTATION_SHAPES, "expression", "transl", "betas"}


def encode(pictures: np.ndarray, fps: float, quality: int, path: Path) -> None:
    """uint8 RGB (N, h, w, 3) -> H.264 in RGB; quality: CRF."""
    height, width = pictures.shape[1:3]
    command = [ffmpeg_path(), "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    command += ["-s", f"{width}x{height}", "-framerate", str(Fraction(fps).limit_denominator(1001)), "-i", "pipe:0"]
    command += ["-vcodec", "libx264rgb", "-preset", "medium", "-crf", str(quality), "-map_metadata", "-1", str(path)]
    subprocess.run(command, input=pictures.tobytes(), check=True, capture_output=True)
