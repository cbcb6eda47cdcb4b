"""Put trained networks and footage together into an anchor package, with its numbers, a sample clip and a card.

    python -m avatar_app.training.package FOOTAGE BODY FACE checkpoints/anchors/NAME --name "Display name"
        --licence CC0-1.0 --consent synthetic --agree [--description TEXT] [--sample SPEECH]

FACE may be "-" for an anchor without face networks.  The package appears under its name when it is complete.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from avatar_app.anchors import Anchor, load_anchor, seal_anchor
from avatar_app.diffusion.networks import NativeNetworks
from avatar_app.training.dataset import Footage
from avatar_app.trust.consent import Consent, require_consent
from talkshow_bridge.errors import InputError

log = logging.getLogger(__name__)
DRAFT = {"steps": 1, "guidance": 1.0, "window": 16, "overlap": 0, "face": False, "int8": True}
STANDARD = DRAFT | {"overlap": 4, "face": True}
PRESETS = {
    "draft": DRAFT,
    "standard": STANDARD,
    "best": STANDARD | {"steps": 4, "int8": False},
}
SAMPLE_SECONDS = 5.0
SAMPLE_CRF = 23
FACTS = ("name", "licence", "consent", "description")


def package(
    footage_folder: Path, body: Path, face: Path | None, out: Path, facts: dict, sample: Path | None = None
) -> Anchor:
    """The finished anchor in `out`, whose name is its id; what was there before is replaced at the very end.

    facts: name, licence, consent (a `Consent` as a dict), description.  sample: speech that it says in sample.mp4.
    Raises InputError when the consent does not permit training."""
    require_consent(Consent.model_validate(facts["consent"]), "train")
    part = out.parent / f".{out.name}.part" / out.name
    shutil.rmtree(part.parent, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        manifest = write_parts(footage_folder, body, face, part, facts)
        anchor = seal_anchor(part, manifest)
        manifest["extra"]["held_out"] = measure(anchor, footage_folder)
        if sample is not None:
            try:
                write_sample(anchor, sample)
            except InputError as error:
                log.info("no sample clip: %s", error)
        (part / "card.md").write_text(card(manifest), encoding="utf-8")
        seal_anchor(part, manifest)
        shutil.rmtree(out, ignore_errors=True)
        part.rename(out)
    finally:
        shutil.rmtree(part.parent, ignore_errors=True)
    return load_anchor(out)


def write_parts(footage_folder: Path, body: Path, face: Path | None, part: Path, facts: dict) -> dict:
    """Networks, rig, pictures and the held-out clip into the folder `part` -> the manifest."""
    from avatar_app.evaluation.truth import Truth, held_out_sets, write_truth

    footage = Footage(footage_folder, "train")
    sources = {"body": body} | ({"face": face} if face else {})
    trained = {name: json.loads((source / "training.json").read_text()) for name, source in sources.items()}
    for name, source in sources.items():
        NativeNetworks.load(source).save(part / name)
    own_rig = (footage_folder / "body.safetensors").exists()
    if own_rig:
        shutil.copy(footage_folder / "body.safetensors", part / "body.safetensors")
    plate = footage_folder / "plate.png"
    if plate.exists():
        Image.open(plate).convert("RGB").save(part / "background.png", optimize=True)
    Image.fromarray(footage.pictures[most_upright(footage)]).save(part / "thumbnail.jpg", quality=88)
    for held_out in held_out_sets(footage_folder)[:1]:
        write_truth(Truth.of(Footage(footage_folder, held_out)), part)
    manifest = {
        "id": part.name,
        "fps": footage.fps,
        "width": footage.size,
        "height": footage.size,
        "expression_space": footage.body.expression_space,
        "camera": json.loads((footage_folder / "camera.json").read_text()),
        "static_background": plate.exists(),
        "cross_frame_attention": True,
        "presets": PRESETS,
        "guided": all(training.get("guided", False) for training in trained.values()),
        "extra": trained,
        **{key: facts[key] for key in FACTS},
    }
    if not own_rig:
        manifest["body"] = json.loads((footage_folder / "body.json").read_text())
    if face is not None:
        manifest["face"] = {"resolution": face_size(footage_folder, trained["face"]), "margin": 1.3}
    return manifest


def face_size(footage_folder: Path, training: dict) -> int:
    return training["size"] if "size" in training else Footage(footage_folder, "face").size


def measure(anchor: Anchor, footage_folder: Path) -> dict:
    """Preset -> numbers on the held-out pictures, what is about movement from consecutive ones; empty without any."""
    from avatar_app.evaluation.anchor import COST, MOVEMENT, Bench, presets
    from avatar_app.evaluation.truth import held_out_sets, held_out_truths

    if not held_out_sets(footage_folder):
        return {}
    (_, truth), *more = held_out_truths(anchor, footage_folder).items()
    rows = presets(Bench(anchor, truth))
    for _, clip in more:
        for preset, row in presets(Bench(anchor, clip)).items():
            rows[preset] |= {name: row[name] for name in MOVEMENT if name in row}
    return {
        preset: {name: round(value, 3) for name, value in row.items() if np.isfinite(value) and name != COST}
        for preset, row in rows.items()
    }


def write_sample(anchor: Anchor, speech: Path) -> None:
    """sample.mp4: the first seconds of a recording at the preset "standard"."""
    import tempfile

    from avatar_app.pipeline import render
    from avatar_app.settings import RenderSettings

    with tempfile.TemporaryDirectory() as folder:
        short = shortened(speech, Path(folder) / "speech.wav", SAMPLE_SECONDS)
        made = render(short, anchor.folder, Path(folder) / "sample.mp4", RenderSettings(crf=SAMPLE_CRF))
        shutil.copy(made.path, anchor.folder / "sample.mp4")


def shortened(speech: Path, out: Path, seconds: float) -> Path:
    import ffmpeg

    from talkshow_bridge.audio import ffmpeg_path

    ffmpeg.input(f"file:{speech.resolve()}", t=seconds).output(str(out), ar=48000, ac=1).run(
        cmd=ffmpeg_path(), quiet=True, overwrite_output=True
    )
    return out


def most_upright(footage: Footage) -> int:
    """Number of the picture whose head is most upright and in the middle."""
    heads = np.array([footage.head[n] for n in range(len(footage))])
    return int(np.argmin(np.abs(heads - np.median(heads, 0)).sum(1)))


def card(manifest: dict) -> str:
    """What people want to know of the anchor before they use it, as Markdown."""
    from avatar_app.evaluation.anchor import as_table

    trained, consent = manifest["extra"], Consent.model_validate(manifest["consent"])
    lines = [f"# {manifest['name']}", ""]
    lines += [manifest["description"], ""] if manifest["description"] else []
    lines += [
        "| | |",
        "|---|---|",
        f"| shown | {consent.summary()} |",
        f"| licence | {manifest['licence']} |",
        f"| picture | {manifest['width']}x{manifest['height']}, {manifest['fps']:g} fps, fixed camera |",
    ]
    for part in ("body", "face"):
        if part in trained:
            lines.append(f"| {part} networks | {training_words(trained[part])} |")
    if rows := trained.get("held_out"):
        lines += ["", "## Measured on a clip that training never saw", ""]
        lines += [as_table(rows, "preset"), "", MEANINGS]
    return "\n".join(lines) + "\n"


MEANINGS = (
    "`launch.py bench anchors` measures this again. PSNR in dB; px: how far points of face, hands and clothes lie from "
    "where they belong, found: share of them that was recognised; movement error and flicker: 0..255, of all and of "
    "still pixels; seams: change of the error at the joins of windows over elsewhere. Six of the pictures chose "
    "which of the running weights were kept."
)


def training_words(facts: dict) -> str:
    """ "212 pictures, 5000 steps, 70 min"."""
    words = [f"{facts['pictures']} pictures", f"{facts['steps']} steps", f"{facts['seconds'] / 60:.0f} min"]
    if facts.get("fine_tuned"):
        words.append("started from trained networks")
    if facts.get("distillation", {}).get("kept"):
        words.append("distilled")
    return ", ".join(words)


def main() -> None:
    from avatar_app.cli_trust import add_consent_options, consent_from

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("footage", "body", "face", "out"):
        parser.add_argument(name, type=Path)
    for name in ("name", "licence"):
        parser.add_argument(f"--{name}", required=True)
    add_consent_options(parser)
    parser.add_argument("--description", default="")
    parser.add_argument("--sample", type=Path, help="speech for sample.mp4")
    arguments = parser.parse_args()
    facts = {key: getattr(arguments, key) for key in ("name", "licence", "description")}
    if (consent := consent_from(arguments)) is None:
        parser.error("please say with --consent who is shown")
    facts["consent"] = consent.model_dump(mode="json")
    face = None if str(arguments.face) == "-" else arguments.face
    package(arguments.footage, arguments.body, face, arguments.out, facts, arguments.sample)


if __name__ == "__main__":
    main()
