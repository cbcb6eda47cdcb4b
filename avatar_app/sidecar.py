"""The JSON beside a video: how it was made, and enough to make it again."""

from __future__ import annotations

import hashlib
import platform
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from avatar_app import __version__
from avatar_app.anchors import MANIFEST, Anchor
from avatar_app.files import write_json
from avatar_app.settings import RenderSettings
from talkshow_bridge.audio import Speech


def ingredients(settings: RenderSettings, anchor: Anchor, recording: Speech | None, preview: bool) -> dict:
    """What decides how the frames come out, as JSON; a motion of the user's aside."""
    manifest = (anchor.folder / MANIFEST).read_bytes()
    return {
        "settings": replace(settings, anchor=settings.anchor or anchor.id).to_dict(),
        "preview": preview,
        "speech": recording and {"sha256": recording.sha256, "duration": recording.duration},
        "anchor": {"id": anchor.id, "sha256": hashlib.sha256(manifest).hexdigest()},
        "versions": {
            "avatar_app": __version__,
            "python": platform.python_version(),
            **{package: version(package) for package in ("torch", "diffusers", "numpy")},
        },
    }


def write_sidecar(video: Path, facts: dict) -> Path:
    return write_json(video.with_suffix(".json"), facts, indent=2)


def peak_memory() -> int | None:
    """Largest resident size of this process so far in MB; None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024 if platform.system() == "Linux" else 1024**2))
