"""Motion files on the command line: inspect, convert, takes, and rendering motions of other projects."""

import numpy as np
import pytest

from avatar_app.cli import main
from avatar_app.video import probe
from talkshow_bridge.exchange import load_motion, save_amass, save_talkshow
from talkshow_bridge.motion import Motion
from tests.conftest import make_tiny_motion
from tests.speech import write_speech
from tests.test_cli import assert_one_sentence
from tests.test_motion import random_motion


@pytest.fixture(autouse=True)
def work_here(tmp_path, monkeypatch, tmp_path_factory, tiny_anchor):
    """An empty working folder; the tiny anchor is the only one of the user's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AVATAR_APP_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("AVATAR_APP_ANCHORS", str(tiny_anchor.folder.parent))


def fine_motion() -> Motion:
    motion = make_tiny_motion(25)
    motion.meta.update(generator="a test", seed=3, style="calm")
    return motion


def test_inspect(capsys):
    fine_motion().save("fine.npz")
    assert main(["motion", "inspect", "fine.npz"]) == 0
    facts = capsys.readouterr().out
    for words in ("25 frames at 25 per second, 1.00 s", "made by a test, seed 3, style calm", "arkit52", "m/s"):
        assert words in facts
    assert "warning" not in facts
    wild = random_motion()
    wild.expression[3] = 1.7
    wild.save("wild.npz")
    assert main(["motion", "inspect", "wild.npz"]) == 0
    facts = capsys.readouterr().out
    for words in ("out of its range", "jumps", "beyond 0..1", "0.5 m away"):
        assert words in facts


def test_convert_there_and_back(tmp_path, capsys):
    motion = fine_motion().resample(30)
    motion.save("a.npz")
    for out in ("b.npy", "c.bvh", "d.glb"):
        assert main(["motion", "convert", "a.npz", out]) == 0
        assert f"{out}  ({len(motion)} frames at 30 per second)" in capsys.readouterr().out
    assert main(["motion", "convert", "b.npy", "e.npz", "--amass"]) == 0
    assert main(["motion", "convert", "e.npz", "f.npz", "--fps", "60"]) == 0
    assert main(["motion", "convert", "a.npz", "g.glb", "--anchor", "tiny"]) == 0
    again = load_motion("f.npz")
    assert len(again) == 2 * len(motion) and np.allclose(again.body[::2], motion.body, atol=1e-4)
    assert (tmp_path / "c.bvh").read_text().startswith("HIERARCHY")
    assert (tmp_path / "d.glb").read_bytes()[:4] == b"glTF" == (tmp_path / "g.glb").read_bytes()[:4]
    assert (tmp_path / "g.glb").stat().st_size < (tmp_path / "d.glb").stat().st_size
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["inspect", "nowhere.npz"], "nowhere.npz"),
        (["inspect", "cut.npz"], "cut.npz"),
        (["convert", "fine.npz", "out.fbx"], "out.fbx"),
        (["convert", "fine.npz", "out.bvh", "--amass"], "AMASS"),
        (["convert", "fine.npz", "nowhere/out.bvh"], "nowhere"),
        (["convert", "fine.npz", "out.npz", "--fps", "0"], "frame rate"),
        (["convert", "fine.npz", "out.npz", "--fps", "nan"], "frame rate"),
        (["convert", "fine.npz", "out.npz", "--sample", "2/3"], "single motion"),
        (["convert", "fine.npz", "out.npz", "--sample", "two"], "2/12"),
        (["convert", "fine.npz", "out.glb", "--anchor", "nobody"], "nobody"),
    ],
)
def test_bad_requests_are_refused(tmp_path, capsys, arguments, words):
    fine_motion().save("fine.npz")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "fine.npz").read_bytes()[:999])
    assert main(["motion", *arguments]) == 2
    assert_one_sentence(capsys.readouterr().err, words)
    assert {file.name for file in tmp_path.iterdir()} == {"fine.npz", "cut.npz"}


def test_motions_of_other_projects_are_rendered(tmp_path, capsys):
    write_speech(tmp_path / "speech.wav", 1.0)
    motion = random_motion(30, space="flame100")
    save_talkshow(motion, tmp_path / "talkshow.npy")
    motion.transl[:] = [3, 1, 2]
    save_amass(motion, tmp_path / "amass.npz")
    for arguments, note in (
        (["speech.wav", "--motion", "talkshow.npy"], "follows the speech"),
        (["--motion", "amass.npz"], "only jaw and eyes"),
    ):
        assert main(["render", "--anchor", "tiny", *arguments, "--preview", "out.mp4"]) == 0
        assert note in capsys.readouterr().err
        assert probe("out.mp4").frames == 25
    assert main(["render", "--anchor", "tiny", "--motion", "amass.npz", "--motion-only", "placed.npz"]) == 0
    placed = load_motion("placed.npz")
    assert np.abs(placed.transl).max() < 0.01 and placed.expression_space == "arkit52" and placed.fps == 25


def test_takes(tmp_path, capsys):
    write_speech(tmp_path / "speech.wav", 0.6)
    base = ["render", "speech.wav", "--anchor", "tiny", "--seed", "7", "--takes", "2"]
    assert main([*base, "--motion-only", "m.npz"]) == 0
    first, second = (load_motion(f"m-{k}.npz") for k in (1, 2))
    assert (first.meta["seed"], second.meta["seed"]) == (7, 8) and not np.array_equal(first.body, second.body)
    assert main([*base, "--preview", "p.mp4"]) == 0
    assert {file.name for file in tmp_path.iterdir()} == {
        "speech.wav", "m-1.npz", "m-2.npz", "p-1.mp4", "p-1.json", "p-2.mp4", "p-2.json",
    }  # fmt: skip
    assert main(["render", "--anchor", "tiny", "--motion", "m-1.npz", "--takes", "2"]) == 2
    assert main([*base[:-1], "0"]) == 2
