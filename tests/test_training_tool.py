"""`anchors train`, `anchors pretrain` and `bench anchors`: from a delivered data set to a measured package."""

import shutil
import time

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import shift

from avatar_app import InputError, cli
from avatar_app.anchors import load_anchor
from avatar_app.evaluation import truth as truths
from avatar_app.evaluation.anchor import save_pictures
from avatar_app.evaluation.landmarks import landmark_distance, measured_points, patch_distance
from avatar_app.evaluation.metrics import psnr, seam
from avatar_app.evaluation.truth import Truth, read_truth, write_truth
from avatar_app.training import batches, build, train
from avatar_app.training.dataset import Footage
from avatar_app.training.delivery import read_video
from avatar_app.training.distil import Distiller, ship
from avatar_app.training.package import package

FACTS = {"name": "Small", "licence": "CC0-1.0", "consent": {"kind": "synthetic"}, "description": "Small."}
CONSENT = ["--consent", "synthetic", "--agree"]


def moved(picture, down, right):
    return np.stack(
        [shift(channel, (down, right), order=3, mode="nearest") for channel in picture.T.swapaxes(1, 2)], -1
    )


def test_displaced_patches_are_measured_to_a_fraction_of_a_pixel():
    rng = np.random.default_rng(0)
    smooth = shift(np.kron(rng.uniform(0, 255, (24, 24)), np.ones((4, 4))), 0.5, order=1)
    places = rng.uniform(24, 72, (40, 2))
    assert np.abs(patch_distance(smooth, smooth, places)).max() < 0.15
    far = patch_distance(smooth, shift(smooth, (1.2, -1.6), order=1), places)
    assert np.median(far[np.isfinite(far)]) == pytest.approx(2.0, abs=0.15)
    assert not np.isfinite(patch_distance(smooth, rng.uniform(0, 255, (96, 96)), places)).any()
    assert len(patch_distance(np.full((96, 96), 90.0), smooth, places)) == 0  # flat: nothing to measure


def test_landmarks_are_points_of_their_group_that_the_camera_sees(footage):
    data = Footage(footage, "train")
    groups = measured_points(data.body)
    assert all(len(points) == len(set(points)) for points in groups.values()) and len(groups["hands"]) > 10
    result = landmark_distance(data.body, data.whole, data.vertices, data.pictures, data.pictures)
    assert set(result) == {"face", "hands", "clothes"} and result["clothes"][0] < 0.1


def test_seams_stand_out():
    still = np.zeros((12, 8, 8, 3), np.uint8)
    noisy = np.random.default_rng(0).integers(0, 3, still.shape).astype(np.uint8)
    jumping = noisy.copy()
    jumping[6:] += 20
    assert seam(noisy, still, [6]) == pytest.approx(1, abs=0.2) and seam(jumping, still, [6]) > 5
    assert np.isnan(seam(noisy, still, []))


def test_measured_pictures_can_be_looked_at(tmp_path):
    pictures = {name: np.full((6, 16, 32, 3), colour, np.uint8) for name, colour in (("truth", 40), ("draft", 200))}
    save_pictures(pictures, 30.0, tmp_path / "seen")
    assert np.abs(np.stack(list(read_video(tmp_path / "seen" / "draft.mp4"))).astype(int) - 200).max() < 4
    assert Image.open(tmp_path / "seen" / "sheet.png").size == (2 * 32, 4 * 16)


def test_a_held_out_clip_survives_its_package(footage, tmp_path, monkeypatch):
    truth = Truth.of(Footage(footage, "train"))
    write_truth(truth, tmp_path)
    kept = read_truth(tmp_path)
    assert psnr(kept.pictures, truth.pictures) > 38 and kept.consecutive == truth.consecutive
    np.testing.assert_array_equal(kept.motion.body, truth.motion.body)
    monkeypatch.setattr(truths, "LARGEST", 3000)
    write_truth(truth, tmp_path)
    assert (tmp_path / truths.PICTURES).stat().st_size < 3000
    (tmp_path / truths.NUMBERS).write_bytes(b"nothing")
    with pytest.raises(InputError, match="not a readable held-out motion"):
        read_truth(tmp_path)


@pytest.fixture()
def person(footage, tmp_path):
    """Footage with a held-out set."""
    folder = shutil.copytree(footage, tmp_path / "person")
    shutil.copytree(folder / "train", folder / "test")
    return folder


def test_the_best_weights_are_kept_and_training_ends_when_nothing_improves(
    person, small_recipes, tmp_path, monkeypatch
):
    monkeypatch.setattr(train, "CHECK_SHARE", 0.0)
    trainer = train.Trainer(person, "body", tmp_path)
    trainer.check()
    kept = {key: value.clone() for key, value in trainer.best.items()}
    with torch.no_grad():
        trainer.average.autoencoder.paint.bias.fill_(3.0)
    trainer.check()
    assert len(trainer.scores) == 2 and trainer.scores[1][1] < trainer.scores[0][1]
    assert all(torch.equal(value, kept[key]) for key, value in trainer.best.items())
    trainer.scores, trainer.elapsed = [(1.0, 30.0), (2.0, 29.0)], 80.0
    assert trainer.exhausted(100.0) and not trainer.exhausted(400.0)
    assert (tmp_path / "sheet.png").exists()


def test_a_stopped_training_saves_and_goes_on(person, small_recipes, tmp_path):
    trainer = train.Trainer(person, "body", tmp_path)
    trainer.update(1e-3, whole=True)
    trainer.stopped = True
    trainer.run(60)
    assert not build.finished(tmp_path)
    again = train.Trainer(person, "body", tmp_path)
    assert again.step == 1
    assert again.rng.random() != trainer.rng.random() != train.Trainer(person, "body", tmp_path / "new").rng.random()
    again.run(again.elapsed + 0.5)
    assert build.finished(tmp_path)


def test_a_training_that_fails_is_told_at_once(tmp_path):
    commands = {"body": ["timeit", "-n", "1", "import time; time.sleep(60)"], "face": ["timeit", "-n", "1", "1 / 0"]}
    begun = time.monotonic()
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        build._run(commands, {kind: tmp_path / kind for kind in commands}, "training", lambda *facts: None)
    assert time.monotonic() - begun < 30


def test_several_people_share_all_but_texture_and_set(person, footage, small_recipes, tmp_path):
    trainer = train.Trainer([person, footage], "body", tmp_path / "both")
    (tmp_path / "both").mkdir()
    for _ in range(4):
        trainer.update(1e-3, whole=False)
    one, other = trainer.people
    assert not torch.equal(one.texture, other.texture)
    with torch.no_grad():
        one.slow_texture.fill_(5.0)
    trainer.save(finished=True)
    again = train.Trainer([person, footage], "body", tmp_path / "both")
    assert torch.equal(again.people[1].texture, other.texture)
    bound = train.Trainer(person, "body", tmp_path / "bound", start=tmp_path / "both")
    shared, begun = bound.networks.unet.conv_in.weight, trainer.average.unet.conv_in.weight
    assert (shared - begun).abs().max() < 0.02 * begun.abs().max()  # packages keep 8 bits
    assert bound.people[0].texture.abs().max() < 2  # nobody else's


def test_a_student_ships_only_if_it_is_as_good(person, small_recipes, tmp_path):
    trainer = train.Trainer(person, "body", tmp_path)
    trainer.save()
    distiller = Distiller(batches.Batches(person, "body"), trainer.average, 1.0)
    same = ship(distiller, tmp_path, tmp_path / "same")
    assert same["distillation"]["kept"] and not same["guided"]
    with torch.no_grad():
        distiller.average.unet.conv_out.weight.normal_(0, 3)
        distiller.average.unet.conv_out.bias.fill_(2)
        distiller.teacher.autoencoder.paint.weight.normal_(0, 0.1)
        distiller.average.autoencoder.paint.weight.normal_(0, 3)
    worse = ship(distiller, tmp_path, tmp_path / "worse")
    assert not worse["distillation"]["kept"] and worse["guided"] and build.finished(tmp_path / "worse")


def test_a_package_brings_numbers_card_and_truth(person, small_recipes, tmp_path, capsys, monkeypatch):
    trainer = train.Trainer(person, "body", tmp_path / "body")
    (tmp_path / "body").mkdir()
    trainer.save()
    anchor = package(person, tmp_path / "body", None, tmp_path / "small", FACTS)
    assert set(anchor.manifest.extra["held_out"]) == {"draft", "standard", "best"} and anchor.manifest.fps == 25
    card = (anchor.folder / "card.md").read_text()
    assert "synthetic person" in card and "| draft |" in card and "CC0-1.0" in card
    assert not list(tmp_path.glob(".*.part"))
    assert cli.main(["bench", "anchors", str(anchor.folder)]) == 0
    monkeypatch.setattr("avatar_app.evaluation.anchor.STEPS", (2,))
    assert cli.main(["bench", "anchors", str(anchor.folder), str(person), "--table", "steps"]) == 0
    assert (
        cli.main(["bench", "anchors", str(anchor.folder), "--table", "body", "--bodies", str(tmp_path / "body")]) == 0
    )
    printed = capsys.readouterr().out
    assert "| standard |" in printed and "| 2 steps, guidance 1.5, overlap 4 |" in printed
    own, other = (
        line.split("|")[2:9] for line in printed.splitlines() if line.startswith(("| own |", f"| {tmp_path.name}/body"))
    )
    assert own == other


REFUSED = {
    "no consent": ([], "who is shown"),
    "not agreed": (["--consent", "synthetic"], "--agree"),
    "id": ([*CONSENT, "--out", "Big Name"], "no id"),
    "minutes": ([*CONSENT, "--minutes", "0"], "more than 0 minutes"),
    "start": ([*CONSENT, "--from", "nowhere"], "Unknown anchor 'nowhere'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_orders_are_one_sentence(delivered, tmp_path, capsys, case, monkeypatch):
    monkeypatch.setenv("AVATAR_APP_ANCHORS", str(tmp_path))
    options, words = REFUSED[case]
    assert cli.main(["anchors", "train", str(delivered), "--out", "small", *options]) == 2
    assert words in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_folder_of_other_files_does_not_become_an_anchor(delivered, tmp_path, capsys):
    (tmp_path / "holiday.jpg").touch()
    assert cli.main(["anchors", "train", str(delivered), "--out", str(tmp_path), *CONSENT, "--replace"]) == 2
    assert "holds other files" in capsys.readouterr().err and (tmp_path / "holiday.jpg").exists()


def test_a_faulty_data_set_writes_nothing(delivered, tmp_path, capsys, monkeypatch):
    folder = shutil.copytree(delivered, tmp_path / "faulty")
    (folder / "train" / "000007.png").unlink()
    (folder / "camera.json").unlink()
    monkeypatch.setenv("AVATAR_APP_ANCHORS", str(tmp_path / "anchors"))
    command = ["anchors", "train", str(folder), "--out", "small", "--work", str(tmp_path / "work"), *CONSENT]
    assert cli.main(command) == 2
    said = capsys.readouterr().err
    assert said.count("problem  ") == 2 and "please mend the 2 problems" in said
    assert not (tmp_path / "work").exists() and not (tmp_path / "anchors").exists()


def test_one_training_at_a_time_in_a_folder(delivered, tmp_path, capsys):
    command = ["anchors", "train", str(delivered), "--out", "small", "--work", str(tmp_path / "work"), *CONSENT]
    with build.alone_in(tmp_path / "work"):
        (tmp_path / "work" / "footage").touch()
        assert cli.main(command) == 2
        assert "Another training is at work" in capsys.readouterr().err
    with build.alone_in(tmp_path / "work"):
        assert (tmp_path / "work" / "footage").exists()


@pytest.mark.slow
def test_train_makes_an_anchor_and_goes_on_after_a_stop(delivered, tmp_path, monkeypatch):
    monkeypatch.setenv("AVATAR_APP_ANCHORS", str(tmp_path / "anchors"))
    monkeypatch.chdir(tmp_path)
    options = ["--minutes", "0.3", "--distil-minutes", "0.1", "--face", "0"]
    command = ["anchors", "train", str(delivered), "--out", "small", *options, *CONSENT]
    (tmp_path / "anchors").mkdir()

    def stop(stage: str, done: int, total: int) -> None:
        if done >= 3:
            raise KeyboardInterrupt

    work = tmp_path / "work" / "small"
    order = build.Order(delivered, tmp_path / "anchors" / "small", work, FACTS, minutes=0.3, face=0)
    with pytest.raises(KeyboardInterrupt):
        build.build_anchor(order, stop)
    assert (work / "body" / "state.pt").exists() and not build.finished(work / "body") and not order.out.exists()
    assert cli.main(command) == 0
    assert build.finished(work / "body") and build.finished(work / "body-distilled")
    anchor = load_anchor(order.out)
    assert (anchor.folder / "sample.mp4").exists() and anchor.manifest.extra["held_out"]
    assert cli.main(command) == 2  # there is one of this id now
