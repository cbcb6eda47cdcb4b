"""Under which licence each part is, and the switch that refuses parts which commercial work may not use.

LICENSES.md tells the same in words. Standard library only: the doctor runs before anything is installed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from talkshow_bridge.errors import InputError, shown

if TYPE_CHECKING:
    from avatar_app.anchors import Anchor
    from avatar_app.settings import RenderSettings
    from talkshow_bridge.motion import Motion

ROOT = Path(__file__).parents[1]
SWITCH = "AVATAR_APP_COMMERCIAL_SAFE"
RESEARCH_ONLY = "non-commercial scientific research only (Max-Planck-Gesellschaft)"
PACKAGES = {
    "torch": "BSD-3-Clause and others",
    "numpy": "BSD-3-Clause and others",
    "scipy": "BSD-3-Clause",
    "numba": "BSD-2-Clause",
    "openvino": "Apache-2.0",
    "pillow": "MIT-CMU",
    "safetensors": "Apache-2.0",
    "diffusers": "Apache-2.0",
    "transformers": "Apache-2.0",
    "accelerate": "Apache-2.0",
    "librosa": "ISC",
    "soundfile": "BSD-3-Clause; with libsndfile, LGPL-2.1-or-later",
    "ffmpeg-python": "Apache-2.0",
    "imageio-ffmpeg": "BSD-2-Clause; with ffmpeg, GPL-3.0, run as a program of its own",
    "pyrender": "MIT",
    "gradio": "Apache-2.0",
    "mcp": "MIT",
    "c2pa-python": "MIT OR Apache-2.0",
    "cryptography": "Apache-2.0 OR BSD-3-Clause",
    "smplx": RESEARCH_ONLY,
}
PARTS = {
    "code": ("LICENSE", "Apache-2.0"),
    "open body": ("checkpoints/body/SMPLX_OPEN.npz", "CC0-1.0"),
    "motion weights": ("checkpoints/motion", "CC0-1.0"),
    "sample speech": ("samples", "CC0-1.0"),
    "SMPL-X model": ("checkpoints/body/SMPLX_NEUTRAL_2020.npz", RESEARCH_ONLY),
}
COMMERCIAL = {
    "0bsd", "apache-2.0", "bsd-2-clause", "bsd-3-clause", "bsl-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc0-1.0", "isc",
    "mit", "own", "unlicense",
}  # fmt: skip
OWN_MOTION = ("avatar_app ",)  # how the generators of motion begin whose weights are bundled


@dataclass(frozen=True)
class Component:
    """Something that is shipped, installed or added. commercial: whether its licence is known to allow such work."""

    name: str
    licence: str
    commercial: bool


def allows_commerce(licence: str) -> bool:
    """Whether a licence is one of those known to allow commercial use. "own" says that the user made it."""
    return licence.strip().lower() in COMMERCIAL


def components(anchors: list[Path]) -> Iterator[Component]:
    """What is here: our parts, the packages we install and the anchors in the given folders."""
    for name, (place, licence) in PARTS.items():
        if (ROOT / place).exists():
            yield Component(name, licence, licence != RESEARCH_ONLY)
    for folder in anchors:
        for manifest in sorted(folder.glob("*/anchor.json")):
            licence = _licence_of(manifest)
            yield Component(f"anchor {manifest.parent.name}", licence, allows_commerce(licence))
    for name, licence in PACKAGES.items():
        yield Component(name, licence, licence != RESEARCH_ONLY)


def commercial_safe(settings: RenderSettings) -> bool:
    """Whether the settings or the environment ask for it; nobody can switch off what the environment asks for."""
    return settings.commercial_safe or os.environ.get(SWITCH, "").lower() in ("1", "true", "yes", "on")


def require_commercial(settings: RenderSettings, anchor: Anchor, motion: Motion | None = None) -> None:
    """Where that is asked for, refuse every part whose licence does not allow commercial use, naming part and reason.

    motion: a file of the user's. Raises InputError."""
    if not commercial_safe(settings):
        return
    problem = _anchor_problem(anchor) or _model_problem(settings.motion_model) or _motion_problem(motion)
    if problem:
        raise InputError(f"Refused because commercial-safe is on: {problem}.")


def _anchor_problem(anchor: Anchor) -> str | None:
    facts = anchor.manifest
    if facts.body is not None and facts.body.model == "smplx":
        return f"anchor '{anchor.id}' needs the SMPL-X model and the smplx package, which are for research only"
    if not allows_commerce(facts.licence):
        return (
            f"the licence of anchor '{anchor.id}', '{shown(facts.licence)}', is not known to allow commercial use "
            "(one of your own making says `own`)"
        )
    return None


def _model_problem(folder: str | None) -> str | None:
    if folder is None:
        return None
    from avatar_app.anchors import motion_model_folder
    from talkshow_bridge.checkpoints import holds_talkshow

    path = motion_model_folder(folder)
    if holds_talkshow(path):
        return "TalkSHOW's weights are for research only; leave out the motion model to use the bundled one"
    licence = _licence_of(path / "config.json")
    return None if allows_commerce(licence) else f"the motion model '{shown(path)}' states no licence that allows it"


def _motion_problem(motion: Motion | None) -> str | None:
    if motion is None:
        return None
    maker = str(motion.meta.get("generator", "unknown"))
    if maker.startswith(OWN_MOTION):
        return None
    return f"the motion file was not made by the bundled model but by '{shown(maker)}', whose terms are not known"


def _licence_of(path: Path) -> str:
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["licence"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "unknown"
