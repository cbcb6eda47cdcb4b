"""Data sets as users bring them: what is wrong is found before training, what is right becomes footage."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from avatar_app import InputError
from avatar_app.mesh.body import Body
from avatar_app.mesh.conditions import PART
from avatar_app.training import check
from avatar_app.training.check import as_table, check_dataset
from avatar_app.training.dataset import Footage
from avatar_app.training.prepare import Placing, prepare, read_delivery
from avatar_app.video import VideoWriter
from talkshow_bridge import rotations
from tests.conftest import DELIVERED, HIGH, WIDE


@pytest.fixture()
def dataset(delivered, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(delivered, tmp_path / "dataset")


def problems(folder):
    return "\n".join(f"{finding.where}: {finding.what}" for finding in check_dataset(folder) if finding.fatal)


def test_a_sound_delivery_has_remarks_only(delivered):
    findings = check_dataset(delivered)
    assert problems(delivered) == ""
    assert "No held-out clip" in as_table(findings) and "40 pictures" in as_table(findings)


def change_camera(folder, **changes):
    camera = json.loads((folder / "camera.json").read_text())
    (folder / "camera.json").write_text(json.dumps(camera | changes))


def spoil_motion(folder, change):
    with np.load(folder / "train" / "motion.npz") as data:
        arrays = dict(data)
    change(arrays)
    np.savez(folder / "train" / "motion.npz", **arrays)


def set_fps(arrays, fps):
    arrays["header"] = np.array(json.dumps(json.loads(str(arrays["header"])) | {"fps": fps}))


def repeat(folder, frames):
    for frame in frames:
        shutil.copy(folder / "train" / "000010.png", folder / "train" / f"{frame:06d}.png")


FAULTS = {
    "lost pictures": (lambda f: (f / "train" / "000007.png").unlink(), "1 pictures are missing"),
    "no motion": (lambda f: (f / "train" / "motion.npz").unlink(), "needs one motion file"),
    "short motion": (
        lambda f: spoil_motion(f, lambda a: a.update({k: v[:30] for k, v in a.items() if v.ndim > 1})),
        "10 pictures are of frames after the motion's last, 29",
    ),
    "NaN": (lambda f: spoil_motion(f, lambda a: a["jaw"].__setitem__(3, np.nan)), "not finite"),
    "slow": (lambda f: spoil_motion(f, lambda a: set_fps(a, 2.0)), "2 frames per second"),
    "no camera": (lambda f: (f / "camera.json").unlink(), "camera.json' is missing"),
    "camera of infinity": (lambda f: change_camera(f, focal=float("inf")), "focal length must be a number"),
    "camera looks away": (lambda f: change_camera(f, center=[2000, 64]), "does not see the head in 40 of 40"),
    "camera of another size": (lambda f: change_camera(f, width=256), "another size than their camera"),
    "black": (lambda f: Image.new("RGB", (WIDE, HIGH)).save(f / "train" / "000011.png"), "1 of 40 pictures are black"),
    "frozen": (lambda f: repeat(f, range(11, 16)), "the same as the one before"),
    "unreadable": (lambda f: (f / "train" / "000003.png").write_bytes(b"no picture"), "not a readable picture"),
    "set of another size": (lambda f: Image.new("RGB", (90, 60)).save(f / "plate.png"), "90x60 pixels large"),
    "unreadable set": (lambda f: (f / "plate.png").write_bytes(b"no picture"), "plate.png' is not a readable"),
    "mask of another size": (
        lambda f: Image.new("L", (90, 60)).save(f / "train" / "masks" / "000004.png"),
        "1 of 40 pictures are with a mask that",
    ),
    "few": (lambda f: [(f / "train" / f"{n:06d}.png").unlink() for n in range(20, 40)], "20 pictures"),
    "no train": (lambda f: (f / "train").rename(f / "film"), "no folder 'train'"),
    "no body": (lambda f: (f / "body.safetensors").write_bytes(b""), "not a readable body rig"),
    "tracking": (lambda f: (f / "tracking.json").write_text('{"fps": 3}'), "unknown entry 'fps'"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_found(dataset, fault):
    spoil, words = FAULTS[fault]
    spoil(dataset)
    assert words in problems(dataset)


def test_all_faults_stand_in_one_table(dataset):
    for fault in ("lost pictures", "black", "camera looks away"):
        FAULTS[fault][0](dataset)
    table = as_table(check_dataset(dataset))
    assert table.count("problem") >= 3 and table.splitlines()[-1].startswith("remark")


def test_a_video_must_match_its_motion(dataset, tiny_motion):
    pictures = [np.asarray(Image.open(path)) for path in sorted((dataset / "train").glob("*.png"))]
    for path in (dataset / "train").glob("*.png"):
        path.unlink()
    with VideoWriter(dataset / "train" / "film.mp4", tiny_motion.fps, (WIDE, HIGH), crf=4) as video:
        video.write(np.stack(pictures))
    assert problems(dataset) == ""
    footage = prepare(dataset, dataset / "work")
    assert len(Footage(footage, "train")) + len(Footage(footage, "test")) == DELIVERED
    spoil_motion(dataset, lambda arrays: set_fps(arrays, 30.0))
    assert "The video has 25 frames per second, the motion 30" in problems(dataset)
    spoil_motion(dataset, lambda arrays: arrays.update({k: v[:25] for k, v in arrays.items() if v.ndim > 1}))
    assert "The video has 40 frames, the motion 25" in problems(dataset)


def test_footage_is_square_with_a_held_out_clip_faces_and_a_plate(delivered, tmp_path, tiny_body):
    folder = prepare(delivered, tmp_path, size=64, face=32)
    train, test, clip, face = (Footage(folder, name) for name in ("train", "test", "clip", "face"))
    assert train.size == 64 and face.size == 32
    assert max(train.frames) < min(test.frames) and clip.frames == list(range(36, 40))
    for data in (train, face):  # pictures and condition maps still fit each other
        sample = data.sample(len(data) // 2)
        seen = np.abs(sample.picture.astype(int) - 90).sum(-1) > 12
        drawn = sample.maps[..., PART] > 0
        assert (seen & drawn).sum() > 0.85 * (seen | drawn).sum()
    plate = np.asarray(Image.open(folder / "plate.png"))
    assert plate.shape == (64, 64, 3) and np.abs(plate.astype(int) - 90).max() <= 2
    assert prepare(delivered, tmp_path, size=64) == folder  # made once
    assert prepare(folder, tmp_path / "again", size=64) == folder  # needs nothing


def test_a_frame_seen_by_two_cameras_gives_two_pictures(dataset, tmp_path):
    camera = json.loads((dataset / "camera.json").read_text())
    index = {path.name: {"frame": int(path.stem)} for path in (dataset / "train").glob("*.png")}
    shutil.copy(dataset / "train" / "000004.png", dataset / "train" / "again.png")
    index["again.png"] = {"frame": 4, "camera": camera}
    (dataset / "train" / "index.json").write_text(json.dumps(index))
    assert Footage(prepare(dataset, tmp_path / "work", size=64), "train").frames.count(4) == 2


def test_heads_too_small_for_a_face_are_not_cut(delivered, tmp_path):
    assert not (prepare(delivered, tmp_path, size=64, face=256) / "face").exists()


def test_a_tracked_person_is_brought_to_where_generated_motion_stands(delivered, tiny_body, wide_camera, tiny_motion):
    delivery = read_delivery(delivered)
    turn = rotations.matrix(np.array([0.1, 2.0, 0.2]))
    shift, pelvis = np.array([0.5, 0.2, -3.0]), tiny_body.joints[0]
    roots = rotations.axis_angle(turn @ rotations.matrix(tiny_motion.global_orient.astype(np.float64)))
    moved = replace(tiny_motion, global_orient=roots, transl=tiny_motion.transl + shift.astype(np.float32))
    camera = replace(
        wide_camera,
        position=turn @ (wide_camera.position - pelvis) + pelvis + shift,
        rotation=wide_camera.rotation @ turn.T,
    )
    take = replace(delivery.takes["train"], motion=moved)
    placing = Placing.of(replace(delivery, takes={"train": take}))
    there = wide_camera.project(tiny_body.pose(tiny_motion[:2]).vertices)
    np.testing.assert_allclose(camera.project(tiny_body.pose(moved[:2]).vertices), there, atol=2e-2)
    back = placing.camera(camera).project(tiny_body.pose(placing.motion(moved)[:2]).vertices)
    np.testing.assert_allclose(back, there, atol=2e-2)
    np.testing.assert_allclose(placing.motion(moved).transl, tiny_motion.transl, atol=1e-4)


def test_the_open_body_stands_in_for_a_missing_rig(delivered, tmp_path, monkeypatch):
    monkeypatch.setattr(check, "ENOUGH", 2)
    folder = shutil.copytree(delivered, tmp_path / "tracked")
    (folder / "body.safetensors").unlink()
    made = prepare(folder, tmp_path / "work", size=64)
    assert Body.load(made / "body.safetensors").part_names[-2:] == ("clothes", "hair")


def test_no_folder_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="no folder"):
        check_dataset(tmp_path / "nowhere")
