"""The streaming writer: what ends up in the file, and that failures leave nothing."""

import math
import subprocess

import numpy as np
import pytest

from avatar_app.video import VideoError, VideoWriter, probe
from talkshow_bridge.audio import ffmpeg_path, load_speech
from talkshow_bridge.errors import InputError


def tone(path, seconds, *options):
    source = ["-f", "lavfi", "-i", f"sine=frequency=330:duration={seconds}"]
    subprocess.run([ffmpeg_path(), "-loglevel", "error", *source, *options, str(path)], check=True)
    return path


def moving_square(count, size=64):
    frames = np.full((count, size, size, 3), (20, 40, 160), np.uint8)
    for number, frame in enumerate(frames):
        frame[8:24, number % 40 : number % 40 + 16] = (230, 120, 30)
    return frames


@pytest.mark.parametrize(
    ("name", "seconds", "options", "channels"),
    [
        ("mono.wav", 1.234, ["-ar", "8000"], 1),
        ("stereo.mp3", 0.9, ["-ac", "2"], 2),
        ("many.wav", 0.51, ["-ac", "8", "-ar", "192000"], 2),
        ("odd 'name' %03d; é.flac", 0.77, [], 1),
    ],
)
@pytest.mark.parametrize("fps", [25, 30000 / 1001])
def test_audio_and_video_agree_within_a_frame(tmp_path, name, seconds, options, channels, fps):
    audio = tone(tmp_path / name, seconds, *options)
    count = load_speech(audio).frame_count(fps)
    with VideoWriter(tmp_path / "out.mp4", fps, (64, 64), audio) as video:
        for start in range(0, count, 7):
            video.write(moving_square(count)[start : start + 7])
    facts = probe(tmp_path / "out.mp4")
    assert facts.frames == math.ceil(load_speech(audio).duration * fps - 1e-6)
    assert (facts.width, facts.height, facts.video_codec, facts.pixel_format) == (64, 64, "h264", "yuv420p")
    assert facts.fps == pytest.approx(fps, rel=1e-3)
    assert (facts.audio_codec, facts.audio_rate, facts.audio_channels) == ("aac", 48000, channels)
    assert abs(facts.duration - facts.audio_duration) <= 1 / fps


def test_colours_survive_and_the_index_comes_first(tmp_path):
    frames = moving_square(10)
    with VideoWriter(tmp_path / "out.mp4", 30, (64, 64), crf=4) as video:
        video.write(frames)
    command = [ffmpeg_path(), "-loglevel", "error", "-i", str(tmp_path / "out.mp4"), "-f", "rawvideo"]
    raw = subprocess.run([*command, "-pix_fmt", "rgb24", "-"], capture_output=True, check=True).stdout
    decoded = np.frombuffer(raw, np.uint8).reshape(frames.shape)
    assert np.abs(decoded[:, 40:].astype(int) - frames[:, 40:]).max() <= 6
    content = (tmp_path / "out.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")
    assert probe(tmp_path / "out.mp4").audio_codec is None


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_nothing_and_keeps_the_old_file(tmp_path, error):
    (tmp_path / "out.mp4").write_bytes(b"old")
    with pytest.raises(error), VideoWriter(tmp_path / "out.mp4", 30, (64, 64)) as video:
        video.write(moving_square(30))
        raise error
    assert [file.name for file in tmp_path.iterdir()] == ["out.mp4"]
    assert (tmp_path / "out.mp4").read_bytes() == b"old"


def test_ffmpeg_gets_the_last_word(tmp_path):
    (tmp_path / "speech.wav").write_bytes(b"not audio at all" * 100)
    writer = VideoWriter(tmp_path / "out.mp4", 30, (64, 64), tmp_path / "speech.wav")
    with pytest.raises(VideoError, match="ffmpeg said: .*[Ii]nvalid data"), writer as video:
        for _ in range(200):
            video.write(moving_square(10))
    assert [file.name for file in tmp_path.iterdir()] == ["speech.wav"]


def test_places_that_cannot_be_written_are_refused_first(tmp_path):
    (tmp_path / "folder.mp4").mkdir()
    for path, words in (
        (tmp_path / "out.avi", "must end in .mp4"),
        (tmp_path / "folder.mp4", "is a folder"),
        (tmp_path / "nowhere" / "out.mp4", "does not exist"),
    ):
        with pytest.raises(InputError, match=words):
            VideoWriter(path, 30, (64, 64))


def test_wrong_frames_are_a_bug_of_ours(tmp_path):
    with pytest.raises(ValueError, match="even sizes"):
        VideoWriter(tmp_path / "out.mp4", 30, (63, 64))
    with pytest.raises(ValueError, match="uint8"), VideoWriter(tmp_path / "out.mp4", 30, (64, 64)) as video:
        video.write(np.zeros((1, 32, 64, 3), np.uint8))
    assert not list(tmp_path.iterdir())
