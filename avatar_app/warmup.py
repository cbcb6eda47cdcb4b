"""Last step of set-up: Python and numba compile what page and renders need, by two frames of the whole chain."""

from __future__ import annotations

import tempfile
from importlib import import_module
from pathlib import Path

import numpy as np

from avatar_app.pipeline import make_motion, render
from avatar_app.settings import RenderSettings
from talkshow_bridge.audio import Speech


def main() -> None:
    import_module("avatar_app.web.app")
    settings = RenderSettings(preset="standard", steps=1)
    motion = make_motion(Speech.from_samples(np.zeros(16_000, np.float32)), settings, 30.0)[:2]
    with tempfile.TemporaryDirectory() as folder:
        for name in ("mesh", "video"):
            render(None, out=Path(folder) / f"{name}.mp4", settings=settings, motion=motion, preview=name == "mesh")


if __name__ == "__main__":
    main()
