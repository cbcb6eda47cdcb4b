"""Speech in, talking-presenter video out. Public names are imported on first use: this import is instant."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from avatar_app.anchors import Anchor, list_anchors, load_anchor
    from avatar_app.pipeline import Cancelled, RenderResult, render
    from avatar_app.settings import RenderSettings
    from talkshow_bridge.errors import InputError

sys.modules.setdefault("openvino_telemetry", None)  # it would tell an analytics service of every network it reads

__version__ = "0.1.0"
__all__ = [
    "Anchor",
    "Cancelled",
    "InputError",
    "RenderResult",
    "RenderSettings",
    "list_anchors",
    "load_anchor",
    "render",
]

_HOMES = {
    "Anchor": "avatar_app.anchors",
    "list_anchors": "avatar_app.anchors",
    "load_anchor": "avatar_app.anchors",
    "Cancelled": "avatar_app.pipeline",
    "RenderResult": "avatar_app.pipeline",
    "render": "avatar_app.pipeline",
    "RenderSettings": "avatar_app.settings",
    "InputError": "talkshow_bridge.errors",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
