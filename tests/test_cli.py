"""The command line: what it accepts, and that bad input ends with one sentence, code 2 and no leftovers."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from avatar_app.cli import main
from avatar_app.cli_motion import read_motion_for
from avatar_app.video import probe
from talkshow_bridge.audio import ffmpeg_path, load_speech
from talkshow_bridge.exchange import save_amass
from talkshow_bridge.motion import Motion
from tests.speech import write_speech


@pytest.fixture(autouse=True)
def work_here(tmp_path, monkeypatch, tmp_path_factory, tiny_anchor):
    """An empty working folder; the tiny anchor is the only one of the user's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AVATAR_APP_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("AVATAR_APP_ANCHORS", str(tiny_anchor.folder.parent))


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """A folder of files: good ones in odd formats and names, and bad ones of each kind."""
    folder = tmp_path_factory.mktemp("recordings")
    good = write_speech(folder / "good.wav", 0.5)
    write_speech(folder / "-odd näme '%d' #1;.wav", 0.3)
    write_speech(folder / "low.wav", 0.4, rate=8_000)
    write_speech(folder / "high.wav", 0.4, rate=192_000)
    write_speech(folder / "eight.wav", 0.4, rate=48_000, channels=8)
    source = ["-f", "lavfi", "-i", "testsrc=size=64x64:rate=10:duration=0.5", "-i", str(good)]
    for name, options in (("film.mp4", []), ("deaf.mp4", ["-an"])):
        command = [ffmpeg_path(), "-loglevel", "error", *source, "-pix_fmt", "yuv420p", *options, str(folder / name)]
        subprocess.run(command, check=True)
    subprocess.run(
        [ffmpeg_path(), "-loglevel", "error", "-f", "lavfi", "-i", "anullsrc=d=0.5", str(folder / "silent.flac")],
        check=True,
    )
    write_speech(folder / "short.wav", 0.05)
    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("This is no sound at all.\n" * 50)
    (folder / "cut.mp4").write_bytes((folder / "film.mp4").read_bytes()[:700])
    (folder / "a folder.wav").mkdir()
    return folder


@pytest.mark.parametrize(
    "name", ["good.wav", "-odd näme '%d' #1;.wav", "low.wav", "high.wav", "eight.wav", "film.mp4", "silent.flac"]
)
def test_any_decodable_file_is_rendered(recordings, tmp_path, capsys, name):
    shutil.copy(recordings / name, tmp_path / name)
    arguments = ["render", "--anchor", "tiny", "--preset", "draft", "--out", "out.mp4", "--", name]
    assert main(arguments) == 0, capsys.readouterr().err
    facts = probe("out.mp4")
    assert facts.audio_codec == "aac" and abs(facts.duration - facts.audio_duration) <= 1 / facts.fps
    assert {file.name for file in tmp_path.iterdir()} == {name, "out.mp4", "out.json"}
    assert "out.mp4" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name", ["empty.wav", "text.wav", "cut.mp4", "short.wav", "deaf.mp4", "a folder.wav", "missing.wav"]
)
def test_bad_speech_is_refused(recordings, tmp_path, capsys, name):
    assert main(["render", str(recordings / name), "--anchor", "tiny"]) == 2
    assert_one_sentence(capsys.readouterr().err, name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--anchor", "nobody"], "nobody"),
        (["--anchor", "tiny", "--out", "nowhere/out.mp4"], "does not exist"),
        (["--anchor", "tiny", "--out", "out.gif"], "end in .mp4"),
        (["--anchor", "tiny", "--gesture-energy", "9"], "gesture_energy"),
        (["--anchor", "tiny", "--window", "4", "--overlap", "4"], "overlap"),
        (["--anchor", "tiny", "--motion", "missing.npz"], "missing.npz"),
        (["--anchor", "tiny", "--settings", "missing.json"], "missing.json"),
        (["--anchor", "tiny", "--motion-only", "motion.txt"], "end in .npz"),
        (["--anchor", "tiny", "--preset", "ultra"], "ultra"),
        (["--anchor", "tiny", "--device", "gpu"], "no device 'gpu'"),
        (["--anchor", "tiny", "--device", "cuda:77"], "no device 'cuda:77'"),
    ],
)
def test_bad_options_are_refused(recordings, tmp_path, capsys, arguments, words):
    try:
        code = main(["render", str(recordings / "good.wav"), *arguments])
    except SystemExit as exit:  # argparse's own way out
        code = exit.code
    assert code == 2
    assert_one_sentence(capsys.readouterr().err, words)
    assert not list(tmp_path.iterdir())


def test_a_damaged_anchor_is_refused(recordings, tmp_path, capsys, tiny_anchor):
    damaged = tmp_path / "damaged"
    shutil.copytree(tiny_anchor.folder, damaged)
    weights = next(damaged.rglob("body/**/*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    for arguments in (
        ["render", str(recordings / "good.wav"), "--anchor", str(damaged)],
        ["anchors", "verify", str(damaged)],
    ):
        assert main(arguments) == 2
        assert_one_sentence(capsys.readouterr().err, weights.name)
    assert [file.name for file in tmp_path.iterdir()] == ["damaged"]


def test_motion_only_then_that_motion(recordings, tmp_path, capsys):
    speech = str(recordings / "good.wav")
    assert main(["render", speech, "--anchor", "tiny", "--motion-only", "motion.npz", "--seed", "3"]) == 0
    assert main(["render", speech, "--anchor", "tiny", "--motion", "motion.npz", "--preview", "mesh.mp4"]) == 0
    assert probe("mesh.mp4").frames == 13
    assert {file.name for file in tmp_path.iterdir()} == {"motion.npz", "mesh.mp4", "mesh.json"}
    assert main(["render", speech, "--anchor", "tiny", "--settings", "mesh.json", "--preset", "draft"]) == 0
    assert json.loads((tmp_path / "out.json").read_text())["settings"]["preset"] == "draft"


def test_a_motion_without_a_face_speaks(recordings, capsys):
    speech = load_speech(recordings / "good.wav")
    save_amass(Motion.rest(speech.frame_count(30)), "amass.npz")
    motion = read_motion_for("amass.npz", "arkit52", speech)
    assert motion.jaw.any() and "follows the speech" in capsys.readouterr().err
    assert not read_motion_for("amass.npz", "arkit52", None).jaw.any()


def test_motion_files_are_not_overwritten_by_themselves(tmp_path, capsys):
    Motion.rest(5).save("m.npz")
    before = (tmp_path / "m.npz").read_bytes()
    for command in (["motion", "convert", "m.npz", "m.npz"], ["render", "--motion", "m.npz", "--motion-only", "m.npz"]):
        assert main(command) == 2
        assert_one_sentence(capsys.readouterr().err, "would replace")
    assert (tmp_path / "m.npz").read_bytes() == before
    assert main(["motion", "convert", "m.npz", "m.npy", "--fps", "60"]) == 0
    assert "5 frames at 30 per second" in capsys.readouterr().out
    assert main(["motion", "convert", "m.npz", "m.bvh"]) == 0
    capsys.readouterr()
    assert main(["motion", "inspect", "m.bvh"]) == 2
    assert_one_sentence(capsys.readouterr().err, "only written")


def test_a_face_that_the_presenter_does_not_understand_is_refused_at_once(recordings, tmp_path, capsys):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "face.pth").write_bytes(b"never opened")
    command = ["render", str(recordings / "good.wav"), "--anchor", "tiny", "--motion-model", "weights"]
    assert main(command) == 2
    assert_one_sentence(capsys.readouterr().err, "--lips bundled")


def test_anchors_list_export_import(tmp_path, capsys, monkeypatch):
    assert main(["anchors", "list"]) == 0
    assert "tiny " in capsys.readouterr().out
    assert main(["anchors", "verify", "tiny"]) == 0
    assert main(["anchors", "export", "tiny", "packed.zip"]) == 0
    monkeypatch.setenv("AVATAR_APP_ANCHORS", str(tmp_path / "mine"))
    assert main(["anchors", "import", "packed.zip"]) == 0
    assert main(["anchors", "import", "packed.zip"]) == 2
    assert_one_sentence(capsys.readouterr().err, "exists already")
    assert main(["anchors", "import", "--replace", "packed.zip"]) == 0
    (tmp_path / "bad.zip").write_bytes(b"PK not a zip")
    assert main(["anchors", "import", "bad.zip"]) == 2
    assert main(["anchors", "export", "nobody"]) == 2


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopping_leaves_nothing(tmp_path, number, code):
    speech = write_speech(tmp_path / "long.wav", 20)
    command = [sys.executable, "-c", "import sys; from avatar_app.cli import main; sys.exit(main(sys.argv[1:]))"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen(
        [*command, "render", str(speech), "--anchor", "tiny"],
        cwd=tmp_path,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs start with it ignored
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("*.part")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(30) == code
    assert [file.name for file in tmp_path.iterdir()] == ["long.wav"]


def assert_one_sentence(error: str, words: str) -> None:
    lines = [line for line in error.splitlines() if line.startswith("avatar_app:")]
    assert len(lines) == 1 and error.splitlines()[-1] == lines[0], error
    assert words in lines[0] and "Traceback" not in error
