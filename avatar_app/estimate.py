"""How long a render will take on this machine: measured on earlier renders, before that scaled from a reference."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

REFERENCE_CORES = 2
REFERENCE_SECONDS = {"preview": 0.025, "draft": 0.16, "standard": 0.22, "best": 0.36}  # a frame, 512x512, 2 cores
FIXED_SECONDS = 8.0  # start, speech, motion and loading
START_STAGES = ("speech", "anchor", "motion", "loading")


def _store() -> Path:
    return Path(os.environ.get("AVATAR_APP_CACHE", Path(__file__).parents[1] / "work")) / "speed.json"


def _measured() -> dict[str, list[float]]:
    try:
        return json.loads(_store().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def expected_seconds(anchor: str, mode: str, frames: int, device: str = "cpu") -> float:
    """Seconds for ``frames`` frames. mode: a preset or "preview"."""
    fixed, per_frame = _measured().get(f"{anchor}/{mode}/{device}") or (
        FIXED_SECONDS,
        REFERENCE_SECONDS[mode] * REFERENCE_CORES / max(os.cpu_count() or 1, 1),
    )
    return fixed + per_frame * frames


def remember(anchor: str, mode: str, frames: int, timings: dict[str, float], device: str = "cpu") -> None:
    """Keeps what a finished render took; a place that cannot be written is no reason to fail."""
    fixed = sum(timings.get(stage, 0.0) for stage in START_STAGES)
    speeds = _measured() | {f"{anchor}/{mode}/{device}": [round(fixed, 2), (timings["total"] - fixed) / frames]}
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
