"""Trainings that belong to the server: data sets by name, orders that are refused, a job that stops and goes on."""

import json
import shutil
import threading
import time
import zipfile
from pathlib import Path

import pytest

from avatar_app import InputError
from avatar_app.anchors import load_anchor
from avatar_app.jobs import Jobs, Limits, training, worker
from avatar_app.jobs.store import WORK
from avatar_app.training import build
from avatar_app.training.check import check_dataset
from avatar_app.trust.consent import Consent

NOBODY = Consent(kind="synthetic")


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    for name in ("anchors", "datasets", "cache"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"AVATAR_APP_{name.upper()}", str(tmp_path / name))
    return tmp_path


@pytest.fixture
def jobs(tmp_path):
    return Jobs(tmp_path / "jobs", Limits())


def order(jobs, place, **changes):
    given = {"name": "Dora, studio", "consent": NOBODY, "minutes": 2.0, "licence": "CC0-1.0"} | changes
    return training.submit_training(jobs, "ann", place, **given)


def pack(folder: Path, path: Path, around: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in folder.rglob("*"):
            if file.is_file():
                archive.write(file, around + str(file.relative_to(folder)))
    return path


def test_data_sets_come_as_folders_or_zips(delivered, places):
    (places / "datasets" / ".hidden").mkdir()
    assert training.datasets() == {}
    assert training.import_dataset(pack(delivered, places / "Dora Müller.zip", "inside/")) == "dora-muller"
    assert training.import_dataset(pack(delivered, places / "plain.zip")) == "plain"
    assert list(training.datasets()) == ["dora-muller", "plain"]
    assert not any(finding.fatal for finding in check_dataset(training.datasets()["dora-muller"]))
    with pytest.raises(InputError, match="'plain' already"):
        training.import_dataset(places / "plain.zip")
    for name, words in (
        ("../evil.png", "Unsafe"),
        ("train/model.pt", "pickle"),
        ("train/run.sh", "not a kind of file"),
    ):
        with zipfile.ZipFile(places / "bad.zip", "w") as archive:
            archive.writestr(name, "x")
        with pytest.raises(InputError, match=words):
            training.import_dataset(places / "bad.zip")
    assert sorted(path.name for path in (places / "datasets").iterdir()) == [".hidden", "dora-muller", "plain"]


def test_pictures_of_a_set_lie_in_its_folder(delivered, tmp_path):
    folder = shutil.copytree(delivered, tmp_path / "datasets" / "stray")
    (folder / "train" / "index.json").write_text(json.dumps({"../../../secret.png": {"frame": 1}}))
    assert any("outside of its folder" in finding.what for finding in check_dataset(folder) if finding.fatal)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": " "}, "a name and a licence"),
        ({"licence": ""}, "a name and a licence"),
        ({"minutes": 0.5}, "1 to 2880 minutes"),
        ({"name": "Taken"}, "exists already"),
        ({"consent": Consent(kind="synthetic", uses=("render",))}, "does not permit training"),
        ({"start": "stranger"}, "cannot begin with 'stranger'"),
    ],
)
def test_wrong_orders_are_refused(jobs, delivered, places, changes, words):
    (places / "anchors" / "taken").mkdir()
    with pytest.raises(InputError, match=words):
        order(jobs, delivered, **changes)
    assert jobs.list("ann", kinds=("train",)) == []


def test_names_become_ids():
    assert training.anchor_id("  Dörte & Co. ") == "dorte-co" and training.anchor_id("主播") == "presenter"


def test_a_training_tells_how_far_it_is(jobs, delivered, places, monkeypatch):
    """The networks' trainings are counted from the first start on, however often they were stopped."""
    told, orders = [], []

    def build_anchor(order, progress):
        orders.append(order)
        (order.work / "body").mkdir(exist_ok=True)
        progress("training body", 10, 50)
        progress("measuring and packing", 0, 1)

    monkeypatch.setattr(build, "build_anchor", build_anchor)
    id = order(jobs, delivered, start="eve")
    assert jobs.list("ann") == [] and jobs.claim("w") is None and jobs.claim("w", "train") == id
    job = jobs.get(id, "ann")
    assert (job.kind, job.name, job.settings.anchor, job.seconds_left > 200) == (
        "train",
        "Dora, studio",
        "dora-studio",
        1,
    )
    worker.make(job, "cpu", lambda *facts: told.append(facts))
    assert told == [("checking", 0, 1), ("training", 80, 120), ("packing", 0, 1)]
    assert orders[0].out == places / "anchors" / "dora-studio" and orders[0].work == job.folder / WORK
    assert orders[0].facts["consent"]["kind"] == "synthetic" and orders[0].minutes == 2.0
    assert orders[0].start == load_anchor("eve").folder

    assert jobs.progress(id, "w", "training", 80, 120) and jobs.get(id, "ann").stage == "training"
    assert training.scores(job) == [] and training.sheet(job, "body") is None
    (job.folder / WORK / "body" / "progress.json").write_text('{"held_out": [[60.0, 24.5]]}')
    (job.folder / WORK / "body" / "sheet.png").touch()
    assert training.scores(job) == [(60.0, 24.5)] and training.sheet(job, "body").exists()

    (places / "anchors" / "dora-studio").mkdir()
    (places / "anchors" / "dora-studio" / "anchor.json").touch()
    worker.make(job, "cpu", lambda *facts: None)  # killed after the package was complete: it is its own
    shutil.rmtree(job.folder / WORK)  # as happens some time after the end
    assert training.scores(job) == [(60.0, 24.5)] and training.sheet(job, "body").exists()
    with pytest.raises(InputError, match="exists already"):
        worker.make(job, "cpu", lambda *facts: None)


@pytest.mark.slow
def test_a_training_stops_goes_on_and_installs_its_presenter(jobs, delivered, places, monkeypatch):
    monkeypatch.setattr(training, "MINUTES", (0.0, 1.0))
    monkeypatch.setattr(training, "FACE", 0)
    id = order(jobs, delivered, minutes=0.4)

    def work():
        worker.do(jobs, jobs.claim("w", "train"), "cpu", "w")

    first = threading.Thread(target=work)
    first.start()
    while jobs.get(id, "ann").stage != "training":
        time.sleep(0.2)
    assert jobs.cancel(id, "ann")
    first.join(60)
    job = jobs.get(id, "ann")
    assert job.state == "cancelled" and (job.folder / WORK / "body" / "state.pt").exists()
    assert jobs.retry(id, "ann")
    work()
    job = jobs.get(id, "ann")
    assert (job.state, job.error) == ("done", None)
    anchor = load_anchor(places / "anchors" / "dora-studio")
    assert anchor.manifest.name == "Dora, studio" and anchor.manifest.consent.kind == "synthetic"
