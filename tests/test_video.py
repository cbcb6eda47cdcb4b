"""The writers: what ends up in the file, that failures leave nothing, and that pieces make one whole."""

import math
import subprocess

import numpy as np
import pytest

from avatar_app.files import unfinished
from avatar_app.video import Pieces, VideoError, VideoWriter, piece_length, probe
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
    with Pieces(tmp_path, fps, (64, 64), count) as video:
        for start in range(0, count, 7):
            video.write(moving_square(count)[start : start + 7])
    video.join(tmp_path / "out.mp4", audio)
    facts = probe(tmp_path / "out.mp4")
    assert facts.frames == math.ceil(load_speech(audio).duration * fps - 1e-6)
    assert (facts.width, facts.height, facts.video_codec, facts.pixel_format) == (64, 64, "h264", "yuv420p")
    assert facts.fps == pytest.approx(fps, rel=1e-3)
    assert (facts.audio_codec, facts.audio_rate, facts.audio_channels) == ("aac", 48000, channels)
    assert abs(facts.duration - facts.audio_duration) <= 1 / fps


@pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [
        ("alpha.mov", ["prores_ks", "-profile:v", "4444"], "yuva444p10le"),
        ("raw.avi", ["rawvideo"], "bgr24"),
        ("camera.avi", ["rawvideo"], "yuyv422"),
        ("grey.mkv", ["ffv1"], "gray"),
    ],
)
def test_any_pixel_format_is_told(tmp_path, name, codec, pixels):
    source = ["-f", "lavfi", "-i", "testsrc=s=64x64:r=5:d=1", "-c:v", *codec, "-pix_fmt", pixels]
    subprocess.run([ffmpeg_path(), "-v", "error", *source, str(tmp_path / name)], check=True)
    facts = probe(tmp_path / name)
    assert (facts.width, facts.frames) == (64, 5) and facts.pixel_format.startswith(pixels[:4])


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
    with Pieces(tmp_path, 30, (64, 64), 10) as video:
        video.write(moving_square(10))
    with pytest.raises(VideoError, match="ffmpeg said: .*[Ii]nvalid data"), unfinished(tmp_path / "out.mp4") as path:
        video.join(path, tmp_path / "speech.wav")
    assert not list(tmp_path.glob("*out*"))


def decoded(path, *options):
    command = [ffmpeg_path(), "-loglevel", "error", "-i", str(path), "-f", "framemd5", "-an", *options, "-"]
    lines = subprocess.run(command, capture_output=True, check=True, text=True).stdout.splitlines()
    return [line.split(",") for line in lines if line[:1].isdigit()]


@pytest.mark.parametrize("fps", [25, 30, 30000 / 1001, 23.976])
def test_pieces_make_one_whole_that_an_interruption_does_not_change(tmp_path, fps):
    count = 2 * piece_length(fps) + 11
    frames = moving_square(count)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder, cuts in ((whole, [count]), (broken, [37, piece_length(fps) + 9, count])):
        folder.mkdir()
        for stop in cuts:
            video = Pieces(folder, fps, (64, 64), count)
            assert video.frames % piece_length(fps) == 0
            try:
                with video:
                    for start in range(video.frames, stop, 8):
                        video.write(frames[start : min(start + 8, stop)])
            except VideoError as error:
                assert stop < count and "frames instead of" in str(error)
        video.join(folder / "out.mp4")
    assert (whole / "out.mp4").read_bytes() == (broken / "out.mp4").read_bytes()
    assert not list(broken.glob(".*"))

    facts, shown = probe(whole / "out.mp4"), decoded(whole / "out.mp4", "-enc_time_base", f"1:{round(fps * 1000)}")
    assert (facts.frames, len(shown)) == (count, count) and facts.duration == pytest.approx(count / fps, abs=2e-3)
    assert [round(int(row[2]) / 1000) for row in shown] == list(range(count))  # each frame at its time
    pieces = [row[-1] for number in range(3) for row in decoded(whole / f"piece-{number:05d}.mp4")]
    assert pieces == [row[-1] for row in shown]


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
