"""The Motion container: slices, joins, resamples, files without pickle, TalkSHOW's columns."""

from dataclasses import replace

import numpy as np
import pytest

from talkshow_bridge import rotations
from talkshow_bridge.errors import InputError
from talkshow_bridge.motion import ARKIT_52, ROTATION_SHAPES, Motion


def random_motion(count: int = 12, fps: float = 30.0, space: str = "arkit52") -> Motion:
    rng = np.random.default_rng(3)
    arrays = {name: rng.normal(0, 0.6, (count, *shape)) for name, shape in ROTATION_SHAPES.items()}
    expression = rng.random((count, 52 if space == "arkit52" else 100))
    return Motion(fps, **arrays, expression=expression, transl=rng.normal(size=(count, 3)), expression_space=space)


def same_rotation(a: np.ndarray, b: np.ndarray, tolerance: float = 1e-5) -> bool:
    return np.allclose(rotations.matrix(a.astype(float)), rotations.matrix(b.astype(float)), atol=tolerance)


def test_names_are_the_52_units_in_order():
    assert len(ARKIT_52) == len(set(ARKIT_52)) == 52
    assert list(ARKIT_52) == sorted(ARKIT_52)


def test_arrays_are_checked_and_made_float32():
    motion = random_motion()
    assert motion.body.dtype == np.float32 and len(motion) == 12 and motion.duration == pytest.approx(0.4)
    fields = {name: getattr(motion, name) for name in (*ROTATION_SHAPES, "expression", "transl")}
    with pytest.raises(InputError, match="'body' has shape"):
        Motion(30, **{**fields, "body": motion.body[:, :20]})
    with pytest.raises(InputError, match="not finite"):
        Motion(30, **{**fields, "jaw": motion.jaw * np.nan})
    with pytest.raises(InputError, match="expression space"):
        Motion(30, **fields, expression_space="emoji")
    with pytest.raises(InputError, match="frame rate"):
        Motion(0, **fields)


def test_slice_and_concatenate():
    motion = random_motion()
    joined = Motion.concatenate([motion[:5], motion[5:]])
    assert np.array_equal(joined.body, motion.body) and np.array_equal(joined.expression, motion.expression)
    with pytest.raises(InputError, match="same"):
        Motion.concatenate([motion, motion.resample(25)])
    with pytest.raises(InputError):
        Motion.concatenate([])


def test_save_and_load(tmp_path):
    motion = random_motion()
    motion.meta.update(seed=7, style="calm")
    motion.save(tmp_path / "m.npz")
    loaded = Motion.load(tmp_path / "m.npz")
    assert loaded.meta == motion.meta and loaded.fps == motion.fps
    for name in (*ROTATION_SHAPES, "expression", "transl", "betas"):
        assert np.array_equal(getattr(loaded, name), getattr(motion, name))


def test_what_cannot_be_written_replaces_nothing(tmp_path):
    motion, path = Motion.rest(3, np.float32(25)), tmp_path / "m.npz"
    motion.save(path)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        replace(motion, meta={"seed": object()}).save(path)
    assert path.read_bytes() == before and Motion.load(path).fps == 25


def test_load_refuses_everything_else(tmp_path):
    np.savez(tmp_path / "pickled.npz", header=np.array({"a": 1}, dtype=object), jaw=np.zeros(3))
    np.savez(tmp_path / "other.npz", poses=np.zeros((3, 165)))
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "empty.npz").write_bytes(b"")
    whole = tmp_path / "whole.npz"
    random_motion().save(whole)
    (tmp_path / "cut.npz").write_bytes(whole.read_bytes()[:3000])
    for name in ("pickled", "other", "text", "empty", "cut", "missing"):
        with pytest.raises(InputError, match=name):
            Motion.load(tmp_path / f"{name}.npz")


def test_resample_keeps_time_and_takes_the_short_way():
    motion = Motion.rest(31)
    motion.jaw[:, 0] = np.linspace(0, 0.3, 31)
    motion.global_orient[:, 1] = np.linspace(-3.0, 3.0, 31)
    slow = motion.resample(25)
    assert len(slow) == 26 and slow.fps == 25
    assert slow.jaw[:25, 0] == pytest.approx(np.arange(25) / 25 * 0.3, abs=1e-6)
    assert slow.global_orient[:25, 1] == pytest.approx(-3 + 6 * np.arange(25) / 25, abs=1e-4)
    turned = Motion.rest(2)
    turned.global_orient[:, 1] = [3.1, -3.1]  # 0.08 rad apart through the half turn
    between = turned.resample(60).global_orient[1]
    assert same_rotation(between, np.array([0, np.pi, 0]))


def test_talkshow_columns_round_trip():
    motion = random_motion(space="flame100")
    columns = motion.to_talkshow()
    assert columns.shape == (12, 265) and columns.dtype == np.float32
    assert np.array_equal(columns[:, :3], motion.jaw)
    assert np.array_equal(columns[:, 12 + 3 * 15 : 12 + 3 * 16], motion.body[:, 15])
    back = Motion.from_talkshow(columns)
    assert np.array_equal(back.left_hand, motion.left_hand) and np.array_equal(back.expression, motion.expression)
    assert same_rotation(back.global_orient, motion.global_orient)
    units = random_motion()
    assert np.array_equal(Motion.from_talkshow(units.to_talkshow(), 30, "arkit52").expression, units.expression)
    with pytest.raises(InputError, match="265"):
        Motion.from_talkshow(np.zeros((3, 264)))


def test_talkshow_root_stands_upright():
    columns = np.zeros((1, 265), np.float32)
    columns[:, 9:12] = (3.0747, -0.0158, -0.0152)  # TalkSHOW's constant root
    up = rotations.matrix(Motion.from_talkshow(columns).global_orient.astype(float))[0] @ [0, 1, 0]
    assert up[1] > 0.99


def test_rotation_conversions_agree():
    rng = np.random.default_rng(0)
    turns = rng.normal(size=(500, 3))
    turns *= (rng.uniform(0, np.pi, 500) / np.linalg.norm(turns, axis=1))[:, None]
    turns[:4] = [[0, 0, 0], [np.pi, 0, 0], [0, 1e-7, 0], [0, 0, -np.pi + 1e-6]]
    assert same_rotation(rotations.axis_angle(rotations.matrix(turns)), turns, 1e-7)
    assert np.allclose(rotations.axis_angle_of_quaternion(rotations.quaternion(turns[4:])), turns[4:], atol=1e-9)
