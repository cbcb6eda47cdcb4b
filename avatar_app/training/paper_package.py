"""An anchor package from networks that `avatar_app.training.paper` trained."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import torch
from PIL import Image

from avatar_app.anchors import Anchor, load_anchor, seal_anchor
from avatar_app.stable_diffusion import PartSource, write_parts
from avatar_app.training.dataset import Footage
from avatar_app.training.package import most_upright
from avatar_app.training.paper import GUIDANCE, Base
from avatar_app.training.paper_data import Look, Part, View, reference_photo
from avatar_app.trust.consent import Consent, require_consent
from talkshow_bridge.errors import InputError

_STANDARD = {"steps": 12, "scheduler": "dpm++", "guidance": GUIDANCE}
_DRAFT = {"steps": 8, "scheduler": "dpm++", "windows": "shifted", "face": False}
PRESETS = {"draft": _DRAFT, "standard": _STANDARD, "best": {"steps": 20, "guidance": GUIDANCE}}


def package_paper(
    footage_folder: Path, trained: dict[Part, Path], base: Base, out: Path, facts: dict, half: bool = True
) -> Anchor:
    """Networks as `train_paper` returns them -> the sealed package `out`, whose name is the anchor's id.

    facts: name, licence, consent (`Consent` as a dict), description. half: keep weights in 16 bits. The prompt is the
    tokens of the picture whose head is most upright and in the middle, which is the thumbnail too. An existing package
    is replaced when the new one is complete. Raises InputError."""
    require_consent(Consent.model_validate(facts["consent"]), "train")
    if "body" not in trained:
        raise InputError("An anchor needs networks of the body; those of the head alone make none.")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".package-", dir=out.parent) as temporary:
        folder = Path(temporary) / out.name
        folder.mkdir()
        manifest = _assemble(Footage(footage_folder, "train"), footage_folder, trained, base, folder, half)
        seal_anchor(folder, {"id": out.name, **manifest, **facts})
        shutil.rmtree(out, ignore_errors=True)
        shutil.move(folder, out)
    return load_anchor(out, verify=False)


def _assemble(footage: Footage, source: Path, trained: dict[Part, Path], base: Base, folder: Path, half: bool) -> dict:
    """Write all files but the manifest, which is returned without id and facts."""
    histories = {part: json.loads((path.parent / "training.json").read_text()) for part, path in trained.items()}
    looks = {part: Look(**history["look"]) for part, history in histories.items()}
    size, shown = looks["body"].size, most_upright(footage)
    parts = {}
    for part, path in trained.items():
        photo = reference_photo(View(footage, looks[part])(shown)[0], looks[part])
        side = looks[part].size
        parts["face" if part == "head" else "body"] = PartSource(path, base.of(part), photo, (side, side))
    write_parts(parts, base.encoder, folder, torch.float16 if half else torch.float32)
    Image.fromarray(View(footage, looks["body"])(shown)[0]).save(folder / "thumbnail.jpg", quality=88)
    manifest = {
        "kind": "stable-diffusion",
        "fps": footage.fps,
        "width": size,
        "height": size,
        "expression_space": footage.body.expression_space,
        "camera": footage.whole.crop(0, 0, footage.size, size).to_dict(),
        "condition": looks["body"].condition,
        "cross_frame_attention": True,
        "face": {"resolution": looks["head"].size, "guidance": GUIDANCE} if "head" in trained else None,
        "presets": PRESETS,
        "extra": {part: {k: v for k, v in history.items() if k != "history"} for part, history in histories.items()},
    }
    if (source / "body.json").exists():
        return manifest | {"body": json.loads((source / "body.json").read_text(encoding="utf-8"))}
    shutil.copy(source / "body.safetensors", folder / "body.safetensors")
    return manifest
