"""How long a render will take on this machine: measured on earlier renders, before that scaled from a reference."""

from __future__ import annotations

import contextlib
import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from avatar_app.stages import cores

if TYPE_CHECKING:
    from avatar_app.anchors import Anchor

REFERENCE_CORES = 2
REFERENCE_SECONDS = {"preview": 0.025, "draft": 0.03, "standard": 0.06, "best": 0.17}  # a frame, 512x512, 2 cores
PLAIN_SECONDS = {"preview": 0.025, "draft": 0.16, "standard": 0.22, "best": 0.36}  # the same without OpenVINO
FIXED_SECONDS = 6.0  # start, speech, motion and loading
REFERENCE_MEMORY = {"preview": 0.6e9, "draft": 1.4e9, "standard": 1.6e9, "best": 2.1e9}  # bytes, native anchors
REFERENCE_BITS = 0.1  # a pixel of a frame at crf 18
AUDIO_BYTES = 24_000  # a second
LOADED = 1.5e9  # bytes: the program without an anchor's networks
START_STAGES = ("anchor", "loading")  # what the length does not change
ENOUGH_FRAMES = 150  # of a render that tells a pace
MOTION_SECONDS = 2.0, 0.04  # to begin with, and for each second of speech


def cache_folder() -> Path:
    """Where this machine's own measurements and compiled networks are kept; it may be deleted at any time."""
    return Path(os.environ.get("AVATAR_APP_CACHE", Path(__file__).parents[1] / "work"))


def _store() -> Path:
    return cache_folder() / "speed.json"


def _measured() -> dict[str, list[float]]:
    try:
        return json.loads(_store().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _key(anchor: str, mode: str, device: str) -> str:
    """One for all GPUs of a kind: "cuda:1" is as fast as "cuda"."""
    return f"{anchor}/{mode}/{device.partition(':')[0]}"


def expected_seconds(anchor: str, mode: str, frames: int, device: str = "cpu") -> float:
    """Seconds for ``frames`` frames. mode: a preset or "preview"."""
    fixed, per_frame = _speed(anchor, mode, device)
    return fixed + per_frame * frames


def expected_motion_seconds(duration: float) -> float:
    """Seconds for the motion alone of so many seconds of speech."""
    fixed, pace = MOTION_SECONDS
    return fixed + pace * duration


def _speed(anchor: str, mode: str, device: str) -> tuple[float, float]:
    """Seconds before the first frame and of each frame: measured, or the reference scaled as another mode's was."""
    reference = REFERENCE_SECONDS if find_spec("openvino") else PLAIN_SECONDS
    measured = {other: _measured().get(_key(anchor, other, device)) for other in reference}
    if known := measured[mode]:
        return known[0], known[1]
    pace = REFERENCE_CORES / cores()
    for other in ("standard", "draft", "best"):
        if measured[other] and mode != "preview":
            pace = measured[other][1] / reference[other]
            break
    return FIXED_SECONDS, pace * reference[mode]


def expected_memory(anchor: Anchor, mode: str, device: str = "cpu") -> float:
    """Bytes of main memory that a render needs at most, whatever its length. mode: a preset or "preview"."""
    measured = _measured().get(_key(anchor.id, mode, device), [])
    if len(measured) > 2 and measured[2]:
        return 1e6 * measured[2]
    if anchor.manifest.kind == "native" or mode == "preview":
        return REFERENCE_MEMORY[mode]
    weights = sum(file.size for name, file in anchor.manifest.files.items() if name.endswith(".safetensors"))
    return LOADED + 1.4 * weights  # the networks and the values alive in one window


def expected_bytes(frames: int, width: int, height: int, duration: float, crf: int) -> float:
    """Size of a video: pictures of a presenter before a still background, and the sound of `duration` seconds."""
    return frames * width * height * REFERENCE_BITS / 8 * 2 ** ((18 - crf) / 6) + duration * AUDIO_BYTES


def remember(
    anchor: str,
    mode: str,
    frames: int,
    timings: dict[str, float],
    device: str = "cpu",
    peak_mb: int | None = None,
) -> None:
    """Keeps what a finished render took, if it was long enough; a place that cannot be written is no reason to fail.

    peak_mb: largest size of the process; one that has made several videos tells too much, so the smallest is kept.
    """
    if frames < ENOUGH_FRAMES:
        return
    key, measured = _key(anchor, mode, device), _measured()
    fixed = sum(timings.get(stage, 0.0) for stage in START_STAGES)
    peaks = [peak for peak in (peak_mb, *measured.get(key, [])[2:]) if peak]
    speed = [round(fixed, 2), (timings["total"] - fixed) / frames, min(peaks, default=None)]
    speeds = measured | {key: speed}
    with contextlib.suppress(OSError):
        _store().parent.mkdir(parents=True, exist_ok=True)
        temporary = _store().with_suffix(f".{os.getpid()}.part")
        temporary.write_text(json.dumps(speeds, indent=1), encoding="utf-8")
        os.replace(temporary, _store())


def in_words(seconds: float) -> str:
    """A duration as people say it: "40 s", "3 min"."""
    if seconds < 10:
        return f"{max(1, round(seconds))} s"
    return f"{5 * round(seconds / 5)} s" if seconds < 90 else f"{round(seconds / 60)} min"
