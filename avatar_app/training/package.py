"""Put trained networks and footage together into an anchor package.

    python -m avatar_app.training.package FOOTAGE BODY FACE checkpoints/anchors/NAME --name "Display name"
        --licence CC0-1.0 --consent synthetic --agree [--description TEXT]

FACE may be "-" for an anchor without face networks.  Writes everything but card.md, which a human writes.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from avatar_app.anchors import Anchor, seal_anchor
from avatar_app.cli_trust import add_consent_options, consent_from
from avatar_app.diffusion.networks import NativeNetworks
from avatar_app.training.dataset import Footage
from avatar_app.trust.consent import Consent, require_consent

DRAFT = {"steps": 1, "guidance": 1.0, "window": 16, "overlap": 4, "face": False}
PRESETS = {"draft": DRAFT, "standard": DRAFT | {"face": True}, "best": DRAFT | {"steps": 4, "face": True}}


def package(footage_folder: Path, body: Path, face: Path | None, out: Path, facts: dict) -> Anchor:
    """Copy, thumbnail and seal; the anchor's id is the name of `out`. `facts`: name, licence, consent, description.

    Raises InputError when the consent does not permit training."""
    require_consent(Consent.model_validate(facts["consent"]), "train")
    footage = Footage(footage_folder, "train")
    camera = json.loads((footage_folder / "camera.json").read_text())
    trained = {
        part: json.loads((source / "training.json").read_text())
        for part, source in (("body", body), ("face", face))
        if source
    }
    out.mkdir(parents=True, exist_ok=True)
    shutil.copy(footage_folder / "body.safetensors", out / "body.safetensors")
    plate = footage_folder / "plate.png"
    if plate.exists():
        shutil.copy(plate, out / "background.png")
    Image.fromarray(thumbnail(footage)).save(out / "thumbnail.jpg", quality=88)
    manifest = {
        "id": out.name,
        "fps": 30,
        "width": footage.size,
        "height": footage.size,
        "camera": camera,
        "static_background": plate.exists(),
        "cross_frame_attention": True,
        "presets": PRESETS,
        "guided": all(training.get("guided", False) for training in trained.values()),
        "extra": trained,
        **facts,
    }
    for part, source in (("body", body), ("face", face)):
        shutil.rmtree(out / part, ignore_errors=True)
        if source is not None:
            NativeNetworks.load(source).save(out / part)
    if face is not None:
        manifest["face"] = {"resolution": Footage(footage_folder, "face").size, "margin": 1.3}
    return seal_anchor(out, manifest)


def thumbnail(footage: Footage) -> np.ndarray:
    """The picture whose head is most upright and in the middle, uint8 RGB."""
    heads = np.array([footage.head[n] for n in range(len(footage))])
    return footage.pictures[int(np.argmin(np.abs(heads - np.median(heads, 0)).sum(1)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("footage", "body", "face", "out"):
        parser.add_argument(name, type=Path)
    for name in ("name", "licence"):
        parser.add_argument(f"--{name}", required=True)
    add_consent_options(parser)
    parser.add_argument("--description", default="")
    arguments = parser.parse_args()
    facts = {key: getattr(arguments, key) for key in ("name", "licence", "description")}
    if (consent := consent_from(arguments)) is None:
        parser.error("please say with --consent who is shown")
    facts["consent"] = consent.model_dump(mode="json")
    face = None if str(arguments.face) == "-" else arguments.face
    package(arguments.footage, arguments.body, face, arguments.out, facts)


if __name__ == "__main__":
    main()
