"""Trainings of presenters as jobs: everything on the way lies in the job's folder, the outcome among the anchors.

Data sets lie in a folder of the server's owner, AVATAR_APP_DATASETS or work/datasets; visitors name them, not paths.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from avatar_app.anchors import MANIFEST, Anchor, anchor_folders, list_anchors, load_anchor
from avatar_app.jobs.store import ORDER, WORK, Job, Jobs
from avatar_app.unpack import DATA_SET_FILES, DATA_SET_SUFFIXES, unpack
from talkshow_bridge.errors import InputError

if TYPE_CHECKING:
    from avatar_app.trust.consent import Consent

FACE = 256  # pixels of the face networks, where heads are large enough
PACKING_SECONDS = 120.0  # measuring, the sample clip and the package, about
PARTS, PROGRESS, SCORES = ("body", "face"), "body/progress.json", "scores.json"
MINUTES = (1.0, 48 * 60.0)
DATASETS = Path(__file__).parents[2] / "work" / "datasets"


def datasets_folder() -> Path:
    """Where data sets are looked for; it need not exist."""
    return Path(os.environ.get("AVATAR_APP_DATASETS") or DATASETS).expanduser().absolute()


def datasets() -> dict[str, Path]:
    """The data sets on this machine by their names."""
    found = sorted(path for path in datasets_folder().glob("*") if path.is_dir() and not path.name.startswith("."))
    return {path.name: path for path in found}


def import_dataset(package: Path) -> str:
    """Unpacks the zip of a data set, with or without a folder around it; returns its name, which is the zip's.

    Raises InputError for a zip that is none, or holds what a data set has no use for."""
    name = anchor_id(package.stem, "footage")
    folder = datasets_folder()
    folder.mkdir(parents=True, exist_ok=True)
    if name in datasets():
        raise InputError(f"There is a data set '{name}' already; please give the zip another name.")
    with tempfile.TemporaryDirectory(prefix=".import-", dir=folder) as temporary:
        unpacked = Path(temporary) / "set"
        unpack(package, unpacked, DATA_SET_SUFFIXES, DATA_SET_FILES)
        entries = [path for path in unpacked.iterdir() if path.name != "__MACOSX"]
        shutil.move(entries[0] if len(entries) == 1 and entries[0].is_dir() else unpacked, folder / name)
    return name


def beginnings() -> list[Anchor]:
    """The presenters whose networks a training may begin with."""
    own_kind = (anchor for anchor in list_anchors() if anchor.manifest.kind == "native" and anchor.has_face)
    return [anchor for anchor in own_kind if not anchor.manifest.consent.problem("train")]


def submit_training(
    jobs: Jobs,
    owner: str,
    dataset: Path,
    name: str,
    consent: Consent,
    minutes: float,
    licence: str,
    start: str | None = None,
) -> str:
    """Queues a training and returns the job's id. name: of the presenter; its id is made of it.

    minutes: training time of each of the networks, body and face.   start: id of one of the `beginnings`.
    Raises InputError: no name, such a presenter exists, the consent does not permit it, minutes outside `MINUTES`, no
    room, no such beginning.
    """
    from avatar_app.training.build import anchor_facts

    name, licence = name.strip(), licence.strip()
    if not name or not licence:
        raise InputError("Please give the presenter a name and a licence.")
    if not MINUTES[0] <= minutes <= MINUTES[1]:
        raise InputError(f"A training takes {MINUTES[0]:g} to {MINUTES[1]:g} minutes, not {minutes:g}.")
    anchor = anchor_id(name)
    if (anchor_folders()[0] / anchor).exists():
        raise InputError(f"An anchor '{anchor}' exists already; please take another name.")
    if start is not None and start not in {anchor.id for anchor in beginnings()}:
        raise InputError(f"A training cannot begin with '{start}'.")
    facts = anchor_facts(dataset, consent, name, licence)
    order = {"dataset": str(dataset), "anchor": anchor, "minutes": minutes, "facts": facts, "start": start}
    rounds = 1 if (os.cpu_count() or 1) > 1 else 2  # body and face side by side, or one after the other
    return jobs.submit_training(order, owner, name, anchor, 60 * minutes * rounds + PACKING_SECONDS)


def anchor_id(name: str, otherwise: str = "presenter") -> str:
    """An id made of a name: its letters and digits, or another when none of them are Latin."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:40] or otherwise


def train(job: Job, device: str | None, progress: Callable[[str, int, int], None]) -> None:
    """Does a training or goes on with it; the presenter is installed at the end. Raises what `build_anchor` raises."""
    from avatar_app.bench import sample_files
    from avatar_app.pipeline import best_device
    from avatar_app.training.build import Order, build_anchor

    order, work = json.loads((job.folder / ORDER).read_text(encoding="utf-8")), job.folder / WORK
    out, planned = anchor_folders()[0] / order["anchor"], round(60 * order["minutes"])
    if (out / MANIFEST).exists() and not (work / "body").exists():
        raise InputError(f"An anchor '{out.name}' exists already; please take another name.")

    def tell(stage: str, done: int, total: int) -> None:
        if stage.startswith("training"):
            progress("training", max(0, planned - total + done), planned)
        else:
            progress("packing", done, total)

    progress("checking", 0, 1)
    work.mkdir(exist_ok=True)
    build_anchor(
        Order(
            dataset=Path(order["dataset"]),
            out=out,
            work=work,
            facts=order["facts"],
            minutes=order["minutes"],
            start=load_anchor(order["start"]).folder if order.get("start") else None,
            face=FACE,
            device=device or best_device(),
            sample=sample_files()[0],
        ),
        tell,
    )
    for part in PARTS:  # the work folder goes soon
        if picture := sheet(job, part):
            shutil.copyfile(picture, job.folder / f"{part}.png")
    if (work / PROGRESS).exists():
        shutil.copyfile(work / PROGRESS, job.folder / SCORES)


def sheet(job: Job, part: str) -> Path | None:
    """Held-out pictures, truth on the left, made on the right, as they are now. part: one of `PARTS`."""
    kept = job.folder / f"{part}.png"
    return kept if kept.exists() else next((job.folder / WORK).glob(f"{part}*/sheet.png"), None)


def scores(job: Job) -> list[tuple[float, float]]:
    """(seconds of training, dB) of the body's held-out pictures so far; empty before the first look at them."""
    kept = job.folder / SCORES
    try:
        facts = json.loads((kept if kept.exists() else job.folder / WORK / PROGRESS).read_text(encoding="utf-8"))
        return [tuple(entry) for entry in facts["held_out"]]
    except (OSError, ValueError, KeyError):
        return []
