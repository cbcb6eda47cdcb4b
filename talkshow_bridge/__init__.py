"""Speech to SMPL-X motion: `load_speech`, `MotionGenerator` and the `Motion` container. Stands on its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from talkshow_bridge.errors import InputError

if TYPE_CHECKING:
    from talkshow_bridge.audio import Speech, load_speech
    from talkshow_bridge.generator import MotionGenerator
    from talkshow_bridge.motion import Motion

__all__ = ["InputError", "Motion", "MotionGenerator", "Speech", "load_speech"]

_HOMES = {"Speech": "audio", "load_speech": "audio", "MotionGenerator": "generator", "Motion": "motion"}


def __getattr__(name: str) -> object:
    """Import the public names on first use, so that `import talkshow_bridge` stays instant."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"talkshow_bridge.{_HOMES[name]}"), name)
