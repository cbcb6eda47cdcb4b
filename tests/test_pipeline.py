"""The whole chain with the tiny anchor: real speech loading, motion, mesh, diffusion and video."""

import json

import numpy as np
import pytest

from avatar_app import Cancelled, InputError, RenderSettings, render
from avatar_app.pipeline import CHUNK, make_motion
from avatar_app.stopwatch import Stopwatch
from avatar_app.video import probe
from talkshow_bridge.audio import load_speech
from talkshow_bridge.motion import Motion
from tests.speech import write_speech


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("AVATAR_APP_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    return write_speech(tmp_path_factory.mktemp("speech") / "hello world.wav", seconds=1.1)


def test_speech_to_video_with_side_car(tiny_anchor, speech, tmp_path):
    stages = []
    settings = RenderSettings(preset="standard", seed=5, credentials=False)  # a signature is never the same twice
    result = render(speech, tiny_anchor.folder, tmp_path / "out.mp4", settings, lambda *step: stages.append(step))

    facts = probe(result.path)
    assert facts.frames == result.frames == load_speech(speech).frame_count(25) == 28
    assert (facts.width, facts.height, facts.fps) == (64, 64, 25)
    assert abs(facts.duration - facts.audio_duration) <= 1 / 25

    assert [stage for stage, done, total in stages if done == 0] == ["speech", "anchor", "motion", "frames"]
    assert stages[-1] == ("frames", 28, 28)
    told = json.loads(result.sidecar.read_text())
    assert told["settings"] == {**settings.to_dict(), "anchor": str(tiny_anchor.folder)}
    assert told["speech"]["sha256"] == load_speech(speech).sha256 and len(told["anchor"]["sha256"]) == 64
    assert {"mesh", "diffusion", "face", "video", "total"} <= set(told["timings_s"])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.json", "out.mp4"]

    again = render(speech, out=tmp_path / "again.mp4", settings=RenderSettings.load(result.sidecar), id=result.id)
    assert again.path.read_bytes() == result.path.read_bytes()


def test_preview_and_given_motion(tiny_anchor, tiny_motion, speech, tmp_path):
    result = render(speech, tiny_anchor.folder, tmp_path / "mesh.mp4", motion=tiny_motion, preview=True)
    assert probe(result.path).frames == 28
    assert "diffusion" not in result.timings
    silent = render(None, tiny_anchor.folder, tmp_path / "silent.mp4", motion=tiny_motion, preview=True)
    assert (probe(silent.path).frames, probe(silent.path).audio_codec) == (len(tiny_motion), None)


def test_motion_must_fit_the_speech(tiny_anchor, tiny_motion, speech, tmp_path):
    with pytest.raises(InputError, match="motion lasts 0.80 s but the speech 1.10 s"):
        render(speech, tiny_anchor.folder, tmp_path / "out.mp4", motion=tiny_motion[:20])
    with pytest.raises(InputError, match="motion file is needed"):
        render(None, tiny_anchor.folder, tmp_path / "out.mp4")
    assert not list(tmp_path.iterdir())


def test_cancelling_leaves_nothing(tiny_anchor, speech, tmp_path):
    def stop(stage, done, total):
        if stage == "frames" and done >= CHUNK:
            raise Cancelled

    with pytest.raises(Cancelled):
        render(speech, tiny_anchor.folder, tmp_path / "out.mp4", progress=stop)
    assert not list(tmp_path.iterdir())


def test_the_speech_file_is_never_overwritten(tiny_anchor, speech, tmp_path):
    import shutil

    video = tmp_path / "speech.mp4"
    shutil.copy(speech, video)
    with pytest.raises(InputError, match="would replace the speech"):
        render(video, tiny_anchor.folder, video)
    assert video.read_bytes() == speech.read_bytes()


def test_motion_of_another_kind_is_refused(tiny_anchor, tmp_path):
    flame = Motion.rest(10, 25, "flame100")
    with pytest.raises(InputError, match="flame100"):
        render(None, tiny_anchor.folder, tmp_path / "out.mp4", motion=flame)
    assert not list(tmp_path.iterdir())


def test_same_seed_same_motion(speech):
    recording = load_speech(speech)
    one, two, other = (make_motion(recording, RenderSettings(seed=seed), 25) for seed in (1, 1, 2))
    assert np.array_equal(one.body, two.body) and not np.array_equal(one.body, other.body)


def test_stopwatch_books_nested_stages_once(monkeypatch):
    now = iter([0.0, 1.0, 3.0, 6.0, 10.0, 15.0, 15.0])
    monkeypatch.setattr("avatar_app.stopwatch.time.perf_counter", lambda: next(now))
    clock = Stopwatch()
    with clock("outer"), clock("inner"):
        pass
    assert clock.seconds() == {"outer": 6.0, "inner": 3.0, "total": 15.0}
