"""An anchor package from a person checkpoint of the original Make-Your-Anchor.

A checkpoint holds a UNet and a ControlNet for the body and, as a rule, for the head. All else comes from the user: the
Stable Diffusion 1.5 folder that they were trained from, CLIP's picture encoder, a reference photo for each part, and
the camera and shape that SHOW fitted to the training video.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from avatar_app.anchors import Anchor, anchor_folders, load_anchor, seal_anchor
from avatar_app.diffusion.alignment import resize
from avatar_app.mesh.camera import Camera
from avatar_app.stable_diffusion import PartSource, find_stages, write_parts
from avatar_app.trust.consent import Consent, require_consent
from talkshow_bridge.arrays import read_npz
from talkshow_bridge.errors import InputError, shown

STANDARD = {"steps": 20, "guidance": 7.5, "window": 16, "overlap": 4, "condition_scale": 2.0, "face": True}
PRESETS = {"draft": STANDARD | {"steps": 10, "face": False}, "standard": STANDARD, "best": STANDARD}
FACE = {"guidance": 3.5, "condition_scale": 1.0}
FPS = 30
LICENCE = "as the checkpoint and its base; not for redistribution unless these allow it"
# numbers of the camera file: how many each may have
FIGURES = {
    "translation": (3,), "focal": (1,), "center": (2,), "width": (1,), "height": (1,),
    "global_orient": (3,), "transl": (3,), "betas": range(1, 301),
}  # fmt: skip


@dataclass(frozen=True)
class Original:
    """Everything that an anchor of the original's kind is made of.

    checkpoint: folder with body/ and perhaps head/, each with unet/ and controlnet/ (or checkpoint-N/ with these); or
    one of a body alone. base: Stable Diffusion 1.5 in diffusers folders; inpainting_base: the same of the inpainting
    model, where its autoencoder and text encoder are others. clip: clip-vit-base-patch32; default: that name beside
    `base`. reference, head_reference: photos; the latter an aligned crop of the head. camera: JSON or npz of `FIGURES`.
    body: "smplx" for the user's licensed model, "open" for the bundled body. half: keep weights in 16 bits.
    """

    checkpoint: Path
    base: Path
    reference: Path
    camera: Path
    consent: Consent
    head_reference: Path | None = None
    inpainting_base: Path | None = None
    clip: Path | None = None
    name: str | None = None
    id: str | None = None
    licence: str = LICENCE
    body: str = "smplx"
    face_size: int = 256
    half: bool = False


def import_original(source: Original, replace: bool = False) -> Anchor:
    """Check everything and write the package into the user's anchor folder.

    Raises InputError in one sentence that names the file; then nothing is left behind."""
    require_consent(source.consent, "import")
    name = source.id or re.sub(r"[^a-z0-9_-]+", "-", source.checkpoint.resolve().name.lower()).strip("-_")
    destination = anchor_folders()[0]
    target = destination / name
    if target.exists() and not replace:
        raise InputError(f"An anchor '{name}' exists already; remove it first or ask to replace it.")
    destination.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".import-", dir=destination) as temporary:
        folder = Path(temporary) / "anchor"
        folder.mkdir()
        manifest = _assemble(source, folder) | {"id": name, "name": source.name or name}
        seal_anchor(folder, manifest)
        if target.exists():
            shutil.rmtree(target)
        shutil.move(folder, target)
    return load_anchor(target, verify=False)


def read_figures(path: Path) -> dict[str, np.ndarray]:
    """The numbers of `FIGURES` that a JSON or npz file gives. Raises InputError."""
    found = read_npz(path, FIGURES) if path.suffix == ".npz" else _read_json(path)
    figures = {}
    for name, values in found.items():
        if name not in FIGURES:
            raise InputError(f"'{shown(path)}' has an unknown entry '{shown(name)}'; known are {', '.join(FIGURES)}.")
        try:
            numbers = np.asarray(values, np.float64).reshape(-1)
        except (TypeError, ValueError):
            numbers = np.array([math.nan])
        if len(numbers) not in FIGURES[name] or not np.isfinite(numbers).all():
            wanted = f"up to {FIGURES[name][-1]}" if name == "betas" else FIGURES[name][0]
            raise InputError(f"'{name}' in '{shown(path)}' must be {wanted} finite numbers.")
        if name in ("focal", "width", "height") and numbers[0] <= 0:
            raise InputError(f"'{name}' in '{shown(path)}' must be more than 0.")
        figures[name] = numbers
    if "translation" not in figures:
        raise InputError(f"'{shown(path)}' has no 'translation'; expected the camera's of SHOW's fit, three numbers.")
    return figures


def show_camera(figures: dict[str, np.ndarray]) -> Camera:
    """SHOW's camera: level, 5000 pixels of focal length, in a world whose y points up and z to the viewer."""
    width, height = (int(figures.get(name, [512])[0]) for name in ("width", "height"))
    x, y, z = figures["translation"]
    center = tuple(figures.get("center", (width / 2, height / 2)))
    return Camera(float(figures.get("focal", [5000])[0]), center, width, height, (x, -y, z), np.diag((1, -1, -1)))


def _assemble(source: Original, folder: Path) -> dict:
    """Write all files of the package but its manifest, which is returned without id and name."""
    stages, figures = find_stages(source.checkpoint), read_figures(source.camera)
    camera = show_camera(figures)
    references = {"body": source.reference, "face": source.head_reference}
    bases = {"body": source.base, "face": source.inpainting_base or source.base}
    sizes = {"body": (camera.width, camera.height), "face": (source.face_size, source.face_size)}
    photos = {part: _read_photo(references[part], part) for part in stages}
    parts = {part: PartSource(stage, bases[part], photos[part], sizes[part]) for part, stage in stages.items()}
    clip = source.clip or source.base.resolve().parent / "clip-vit-base-patch32"
    write_parts(parts, clip, folder, torch.float16 if source.half else torch.float32)
    thumbnail = ImageOps.contain(photos["body"], (512, 512))
    thumbnail.save(folder / "thumbnail.jpg", quality=88)
    open_body = source.body == "open"
    return {
        "description": "Imported from a Make-Your-Anchor checkpoint.",
        "licence": source.licence,
        "consent": source.consent.model_dump(mode="json"),
        "kind": "stable-diffusion",
        "fps": FPS,
        "width": camera.width,
        "height": camera.height,
        "expression_space": "arkit52" if open_body else "flame100",
        "camera": camera.to_dict(),
        "condition": "mesh-picture",
        "cross_frame_attention": True,
        "compat": "make-your-anchor",
        "body": {"model": source.body, "betas": [] if open_body else figures.get("betas", np.zeros(0)).tolist()},
        "placement": {name: figures[name].tolist() for name in ("global_orient", "transl") if name in figures},
        "face": FACE | {"resolution": source.face_size} if "face" in stages else None,
        "presets": PRESETS,
    }


def _read_photo(path: Path | None, part: str) -> Image.Image:
    """RGB. The original's loader makes the head's photo a square of 256 pixels."""
    if path is None:
        raise InputError(
            "The checkpoint has head networks: please give the aligned photo of the head (--head-reference)."
        )
    try:
        with Image.open(path) as file:
            photo = file.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise InputError(f"'{shown(path)}' is not a readable picture; expected a photo of the presenter.") from None
    return photo if part == "body" else Image.fromarray(resize(np.asarray(photo), 256))


def _read_json(path: Path) -> dict:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise InputError(f"The camera file '{shown(path)}' cannot be read.") from None
    except (ValueError, RecursionError):
        raise InputError(f"The camera file '{shown(path)}' is not JSON.") from None
    if not isinstance(found, dict):
        raise InputError(f"The camera file '{shown(path)}' is not a JSON object.")
    return found
