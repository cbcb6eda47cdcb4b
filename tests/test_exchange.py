"""Motion files of other projects: the right conventions in and out, and one sentence for every bad file."""

import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from avatar_app.mesh.bodies import DEFAULT_DIRECTORY, OPEN_FILE
from avatar_app.mesh.body import Body
from talkshow_bridge import rig, rotations
from talkshow_bridge.errors import InputError
from talkshow_bridge.exchange import face_front, load_motion, save_amass, save_talkshow
from talkshow_bridge.motion import ROTATION_SHAPES, Motion
from tests.test_motion import random_motion, same_rotation


@pytest.fixture(scope="module")
def body() -> Body:
    return Body.from_smplx_npz(DEFAULT_DIRECTORY / OPEN_FILE)


def assert_same(a: Motion, b: Motion) -> None:
    assert len(a) == len(b) and a.fps == b.fps and a.expression_space == b.expression_space
    for name in ROTATION_SHAPES:
        assert same_rotation(getattr(a, name), getattr(b, name), 1e-5), name
    assert np.allclose(a.transl, b.transl, atol=1e-6) and np.allclose(a.expression, b.expression, atol=1e-6)


def smplx_file(path, count: int = 5, columns: int = 165, **more):
    poses = np.random.default_rng(0).normal(0, 0.3, (count, columns))
    arrays = {"poses": poses, "trans": np.zeros((count, 3)), "betas": np.zeros(16), "mocap_frame_rate": np.array(120.0)}
    save_arrays(path, **{**arrays, **more})
    return poses


def test_the_rig_is_the_open_body(body):
    assert np.abs(rig.REST_JOINTS - body.joints).max() < 0.6e-3
    assert np.array_equal(rig.PARENTS, body.parents)
    assert np.allclose(rig.RELAXED_HANDS, body.hand_mean, atol=1e-6)
    with np.load(DEFAULT_DIRECTORY / OPEN_FILE) as stored:
        assert list(stored["joint_names"]) == list(rig.JOINTS)


def test_our_own_file(tmp_path):
    motion = random_motion()
    motion.save(tmp_path / "m.npz")
    assert_same(load_motion(tmp_path / "m.npz"), motion)


@pytest.mark.parametrize("space", ["arkit52", "flame100"])
def test_talkshow_file(tmp_path, space):
    motion = random_motion(space=space)
    motion.transl[:] = 0
    save_talkshow(motion, tmp_path / "m.npy")
    assert_same(load_motion(tmp_path / "m.npy"), motion)


def test_talkshow_file_of_several_samples(tmp_path):
    takes = [random_motion(4, space="flame100").to_talkshow() + k for k in range(3)]
    np.save(tmp_path / "takes.npy", np.concatenate(takes))
    assert np.allclose(load_motion(tmp_path / "takes.npy", sample=(2, 3)).jaw, takes[1][:, :3])
    assert len(load_motion(tmp_path / "takes.npy")) == 12
    for wrong in ((4, 3), (0, 3), (1, 5)):
        with pytest.raises(InputError, match="sample"):
            load_motion(tmp_path / "takes.npy", sample=wrong)


@pytest.mark.parametrize("space", ["arkit52", "flame100"])
def test_amass_file_round_trip(tmp_path, space):
    motion = random_motion(space=space)
    save_amass(motion, tmp_path / "m.npz")
    assert_same(load_motion(tmp_path / "m.npz"), motion)
    with np.load(tmp_path / "m.npz") as stored:
        assert stored["poses"].shape == (12, 165) and np.array_equal(stored["poses"][:, 66:69], motion.jaw)
        right = stored["poses"][:, 120:].reshape(12, 15, 3) - rig.RELAXED_HANDS[1]
        assert np.allclose(right, motion.right_hand, atol=1e-6)


def test_amass_is_the_same_scene_with_z_up(tmp_path, body):
    motion = random_motion(6)
    save_amass(motion, tmp_path / "m.npz")
    with np.load(tmp_path / "m.npz") as stored:
        joints = body.pose_parameters(stored["poses"].reshape(6, 55, 3), np.zeros((6, 62)), stored["trans"]).joints
    ours = body.pose(motion).joints
    assert np.allclose(joints, ours @ np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]]).T, atol=1e-3)


def test_amass_stands_upright_with_absolute_hands(tmp_path):
    half = np.pi / 2
    poses = np.zeros((3, 156))
    poses[:, 0] = half  # the y-up template put on its feet in a z-up room
    np.savez(
        tmp_path / "a.npz", poses=poses, trans=np.tile([1.0, 2, 0.9], (3, 1)), mocap_framerate=60, betas=np.ones(16)
    )
    motion = load_motion(tmp_path / "a.npz")
    assert same_rotation(motion.global_orient, np.zeros((3, 3))) and motion.fps == 60
    z_up = np.array([1, 2, 0.9]) + rig.REST_JOINTS[0]
    assert np.allclose(motion.transl + rig.REST_JOINTS[0], [z_up[0], z_up[2], -z_up[1]], atol=1e-6)
    assert np.allclose(rig.full_pose(motion)[:, 25:], 0, atol=1e-7)  # flat hands
    assert not motion.jaw.any() and motion.expression_space == "arkit52"
    as_it_is = load_motion(tmp_path / "a.npz", hands="relative", up="y")
    assert not as_it_is.left_hand.any() and as_it_is.global_orient[0, 0] == pytest.approx(half)


def test_beat2_file(tmp_path):
    expressions = np.random.default_rng(1).normal(size=(5, 100))
    poses = smplx_file(
        tmp_path / "b.npz", expressions=expressions, betas=np.zeros(300), mocap_frame_rate=np.array(30),
        model=np.array("smplx2020"), gender=np.array("neutral"),
    )  # fmt: skip
    motion = load_motion(tmp_path / "b.npz")
    assert motion.expression_space == "flame100" and motion.fps == 30 and len(motion.betas) == 300
    assert np.allclose(motion.global_orient, poses[:, :3]) and np.allclose(motion.jaw, poses[:, 66:69])
    assert np.allclose(motion.left_hand.reshape(5, 45), poses[:, 75:120])
    assert np.allclose(motion.expression, expressions)


def test_facing_the_camera_on_the_spot():
    motion = random_motion(30)
    motion.global_orient[:] = [0, 2.0, 0]
    motion.transl[:] = np.linspace([5, 1, -3], [6, 1, -3], 30)
    front = face_front(motion)
    assert np.allclose(rotations.matrix(front.global_orient.astype(float))[..., 2], [0, 0, 1], atol=1e-6)
    assert np.allclose(front.transl.mean(axis=0), 0, atol=1e-6)
    assert np.allclose(np.linalg.norm(np.diff(front.transl, axis=0), axis=1), 1 / 29, atol=1e-5)


# ---- files that must be refused


def header(shape: tuple, descr: str = "<f4") -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def npz_of(path, **members: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)


def changed(path, **arrays) -> None:
    """One of our own files with some arrays replaced."""
    random_motion().save(path)
    with np.load(path) as stored:
        content = {name: stored[name] for name in stored.files}
    save_arrays(path, **{**content, **arrays})


def save_arrays(path, **arrays) -> None:
    with open(path, "wb") as stream:
        np.savez(stream, **arrays)


def own_header(**changes) -> np.ndarray:
    facts = {"version": 1, "fps": 30, "expression_space": "arkit52", "meta": {}}
    return np.array(json.dumps({**facts, **changes}))


def bad_files(path: Path) -> dict[str, Callable]:
    """What writes each kind of bad file to `path`."""
    return {
        "missing": lambda: None,
        "folder": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
        "empty": lambda: path.write_bytes(b""),
        "text": lambda: path.write_text("frame,x,y,z\n" * 20),
        "pickle": lambda: path.write_bytes(b"\x80\x04\x95\x10\x00\x00\x00c__builtin__\neval\n"),
        "cut npy": lambda: path.write_bytes(header((500, 265)) + b"\0" * 999),
        "billion rows npy": lambda: path.write_bytes(header((10**9, 265))),
        "negative rows npy": lambda: path.write_bytes(header((-5, 265))),
        "overflowing rows npy": lambda: path.write_bytes(header((2**40, 2**40))),
        "npy of 264": lambda: path.write_bytes(header((2, 264)) + b"\0" * 4 * 2 * 264),
        "npy of text": lambda: path.write_bytes(header((2, 265), "<U1") + b"\0" * 4 * 2 * 265),
        "npy of whole numbers": lambda: path.write_bytes(header((2, 265), "<i4") + b"\0" * 4 * 2 * 265),
        "npy of no frames": lambda: path.write_bytes(header((0, 265))),
        "npy of not numbers": lambda: path.write_bytes(header((1, 265)) + np.full(265, np.nan, "<f4").tobytes()),
        "npy of objects": lambda: path.write_bytes(header((2, 265), "|O") + b"\x80\x04."),
        "npy of records": lambda: path.write_bytes(header((2,), [("a", "<f4")])),
        "billion frames": lambda: npz_of(path, poses=header((10**9, 165)), trans=header((10**9, 3))),
        "endless text": lambda: npz_of(path, header=header((), f"<U{2**30}")),
        "bomb": lambda: npz_of(path, poses=header((999_999, 165), "<f8") + b"\0" * 40_000_000),
        "objects": lambda: smplx_file(path, poses=np.array([{}] * 3, dtype=object)),
        "SMPL": lambda: smplx_file(path, columns=72),
        "flat poses": lambda: smplx_file(path, poses=np.zeros(165)),
        "infinite": lambda: smplx_file(path, poses=np.full((5, 165), np.inf)),
        "too large": lambda: smplx_file(path, poses=np.full((5, 165), 1e300)),
        "other lengths": lambda: smplx_file(path, trans=np.zeros((4, 3))),
        "no rate": lambda: save_arrays(path, poses=np.zeros((3, 165)), trans=np.zeros((3, 3))),
        "rate of text": lambda: smplx_file(path, mocap_frame_rate=np.array("fast")),
        "rate of none": lambda: smplx_file(path, mocap_frame_rate=np.zeros(0)),
        "endless rate": lambda: smplx_file(path, mocap_frame_rate=np.array(1e-9)),
        "trans of text": lambda: smplx_file(path, trans=np.full((5, 3), "x")),
        "betas not numbers": lambda: smplx_file(path, betas=np.full(10, np.nan)),
        "not our arrays": lambda: save_arrays(path, a=np.zeros(3)),
        "own, wrong shape": lambda: changed(path, body=np.zeros((12, 20, 3))),
        "own, not numbers": lambda: changed(path, transl=np.full((12, 3), np.nan)),
        "own, other face": lambda: changed(path, expression=np.zeros((12, 100))),
        "own, text": lambda: changed(path, jaw=np.full((12, 3), "x")),
        "own, version": lambda: changed(path, header=own_header(version=9)),
        "own, no json": lambda: changed(path, header=np.array("{")),
        "own, deep json": lambda: changed(path, header=np.array("[" * 100_000)),
        "own, list": lambda: changed(path, header=np.array("[1]")),
        "own, rate": lambda: changed(path, header=own_header(fps=1e-12)),
        "own, rate of text": lambda: changed(path, header=own_header(fps="x")),
        "own, meta": lambda: changed(path, header=own_header(meta=7)),
        "own, many betas": lambda: changed(path, betas=np.zeros(10_000)),
        "own, one missing": lambda: npz_of(path, header=header((), "<U1") + b"\0\0\0\0"),
    }


@pytest.mark.parametrize("kind", bad_files(Path()))
def test_bad_files_are_refused_in_one_sentence(tmp_path, kind):
    path = tmp_path / "some file.dat"
    bad_files(path)[kind]()
    with pytest.raises(InputError) as caught:
        load_motion(path)
    sentence = str(caught.value)
    assert "some file.dat" in sentence and "\n" not in sentence and len(sentence) < 250


def test_misspelt_conventions_and_empty_poses_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", poses=np.zeros((0, 165)), mocap_frame_rate=30.0)
    for options, words in (({"hands": "Absolute"}, "neither"), ({"up": "Y"}, "neither y nor"), ({}, "no frames")):
        with pytest.raises(InputError, match=words):
            load_motion(tmp_path / "a.npz", **options)


def test_damage_anywhere_is_refused(tmp_path):
    whole = tmp_path / "whole.npz"
    random_motion(30).save(whole)
    content = whole.read_bytes()
    bad = tmp_path / "bad.npz"
    for k in range(0, len(content), len(content) // 40):
        bad.write_bytes(content[:k])
        with pytest.raises(InputError, match="bad.npz"):
            load_motion(bad)
        flipped = bytearray(content)
        flipped[k] ^= 0xFF
        bad.write_bytes(flipped)
        try:
            assert len(load_motion(bad)) == 30  # damage to what nobody reads, such as a time stamp
        except InputError as error:
            assert "bad.npz" in str(error)
