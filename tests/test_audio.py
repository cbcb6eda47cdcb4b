"""Any file ffmpeg decodes is read on its own clock; anything else is refused in one sentence."""

import os
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest

from talkshow_bridge.audio import SAMPLE_RATE, Speech, ffmpeg_path, frame_count, load_speech
from talkshow_bridge.errors import InputError

TONE = "sine=frequency=220:duration={seconds}"


def make(path: Path, *options: str, seconds: float = 1.0, source: str = TONE) -> Path:
    """Write a file with ffmpeg from a synthetic source."""
    command = [ffmpeg_path(), "-v", "error", "-f", "lavfi", "-i", source.format(seconds=seconds), *options]
    subprocess.run([*command, "-y", f"file:{path}"], check=True)
    return path


@pytest.mark.parametrize(
    ("name", "options", "tolerance"),
    [
        ("a.wav", [], 0),
        ("rate8k.wav", ["-ar", "8000"], 0),
        ("rate192k.wav", ["-ar", "192000"], 0),
        ("eight.wav", ["-ac", "8"], 0),
        ("u8.wav", ["-c:a", "pcm_u8"], 0),
        ("float.wav", ["-c:a", "pcm_f64le"], 0),
        ("a.flac", [], 0),
        ("a.mp3", [], 0.06),
        ("a.m4a", [], 0.06),
        ("a.ogg", ["-c:a", "libvorbis"], 0.01),
        ("a.opus", ["-c:a", "libopus"], 0.01),
        ("a.aiff", [], 0),
        ("a.mka", ["-c:a", "ac3"], 0.06),
        ("no_suffix", ["-f", "wav"], 0),
        ("wrong.mp3", ["-f", "wav"], 0),
        ("-i.wav", [], 0),
        ("odd 'name' %d;$(x) é 语.wav", [], 0),
        ("http:x.wav", [], 0),
        ("concat:a|b.wav", [], 0),
    ],
)
def test_decodes(tmp_path, name, options, tolerance):
    speech = load_speech(make(tmp_path / name, *options))
    assert speech.sample_rate == SAMPLE_RATE
    assert speech.samples.dtype == np.float32 and speech.samples.ndim == 1
    assert speech.duration == pytest.approx(1.0, abs=tolerance + 1e-9)
    assert len(speech.samples) == pytest.approx(SAMPLE_RATE * speech.duration, abs=2)
    assert 0.02 < np.abs(speech.samples).max() <= 1.0
    spectrum = np.abs(np.fft.rfft(speech.samples))
    assert np.argmax(spectrum) * SAMPLE_RATE / len(speech.samples) == pytest.approx(220, abs=3)


def test_video_file_gives_its_sound(tmp_path):
    film = make(tmp_path / "film.mp4", "-f", "lavfi", "-i", "color=red:s=64x64:d=1", "-shortest")
    assert load_speech(film).duration == pytest.approx(1.0, abs=0.06)


def test_relative_path_that_looks_like_an_option(tmp_path, monkeypatch):
    make(tmp_path / "-version.wav")
    monkeypatch.chdir(tmp_path)
    assert load_speech("-version.wav").duration == pytest.approx(1.0)


def test_a_name_that_is_not_text(tmp_path):
    odd = os.fsencode(tmp_path) + b"/caf\xe9.wav"
    os.rename(make(tmp_path / "a.wav"), odd)
    assert load_speech(os.fsdecode(odd)).duration == pytest.approx(1.0)


def test_silence_is_speech_of_nobody(tmp_path):
    silent = load_speech(make(tmp_path / "silent.wav", "-t", "1", source="anullsrc=r=16000:cl=mono"))
    assert silent.duration == pytest.approx(1.0) and not silent.samples.any()


def _floats(path: Path, value: float) -> Path:
    """A second of 32-bit floats, all 4 but one."""
    values = np.full(16_000, 4.0, "<f4")
    values[100] = value
    form = struct.pack("<IHHIIHH", 16, 3, 1, 16_000, 64_000, 4, 32)
    header = b"RIFF" + struct.pack("<I", 36 + values.nbytes) + b"WAVEfmt " + form
    path.write_bytes(header + b"data" + struct.pack("<I", values.nbytes) + values.tobytes())
    return path


def test_floats_beyond_full_scale_are_tamed(tmp_path):
    assert np.abs(load_speech(_floats(tmp_path / "loud.wav", 4.0)).samples).max() <= 1.0


def test_samples_in_memory_must_be_finite():
    with pytest.raises(InputError, match="not finite numbers"):
        Speech.from_samples(np.full(16_000, np.nan))


def test_a_wav_that_ends_early_plays_as_far_as_it_goes(tmp_path):
    whole = make(tmp_path / "a.wav").read_bytes()
    (tmp_path / "cut.wav").write_bytes(whole[: len(whole) // 2])
    assert load_speech(tmp_path / "cut.wav").duration == pytest.approx(0.5, abs=0.01)


def _write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def _cut_film(folder: Path) -> Path:
    film = make(folder / "whole.m4a").read_bytes()
    return _write(folder / "cut.m4a", film[: len(film) // 2])


BAD = {
    "missing": (lambda d: d / "nothing.wav", "There is no file"),
    "folder": (lambda d: d, "is not a file"),
    "empty": (lambda d: _write(d / "empty.wav", b""), "is empty"),
    "text": (lambda d: _write(d / "text.wav", b"hello, I am not a recording\n" * 50), "could not be decoded"),
    "noise": (lambda d: _write(d / "x.wav", np.random.default_rng(0).bytes(5000)), "x.wav"),
    "header only": (lambda d: _write(d / "h.wav", make(d / "a.wav").read_bytes()[:44]), "h.wav"),
    "cut container": (_cut_film, "cut off or damaged"),
    "picture": (lambda d: make(d / "p.png", "-frames:v", "1", source="color=red:s=64x64"), "no audio track"),
    "silent film": (lambda d: make(d / "v.mp4", "-t", "1", source="color=red:s=64x64"), "no audio track"),
    "not a number": (lambda d: _floats(d / "nan.wav", np.nan), "samples are not finite"),
    "infinite": (lambda d: _floats(d / "inf.wav", np.inf), "samples are not finite"),
    "too short": (lambda d: make(d / "s.wav", seconds=0.05), "holds only 0.050 s"),
    "playlist": (lambda d: _write(d / "l.m3u8", b"#EXTM3U\n#EXTINF:1,\n" + str(make(d / "a.ts")).encode()), "l.m3u8"),
    "address": (lambda d: "http://127.0.0.1:9/a.wav", "There is no file"),
    "protocol": (lambda d: f"concat:{make(d / 'a.wav')}", "There is no file"),
    "pipe": (lambda d: "pipe:0", "There is no file"),
    "null byte": (lambda d: "a\0b.wav", "a?b.wav"),
    "number": (lambda d: 42, "is not a file path"),
    "none": (lambda d: None, "is not a file path"),
    "device": (lambda d: "/dev/zero", "is not a file"),
    "endless name": (lambda d: "x" * 5000, "cannot be read"),
}


@pytest.mark.parametrize("case", BAD)
def test_refused_in_one_sentence(tmp_path, case):
    bring, said = BAD[case]
    with pytest.raises(InputError) as refusal:
        load_speech(bring(tmp_path))
    message = str(refusal.value)
    assert said in message and message.endswith(".") and "\n" not in message and len(message) < 260


def test_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "fifo.wav")
    with pytest.raises(InputError, match="is not a file"):
        load_speech(tmp_path / "fifo.wav")


def test_frame_count_is_the_round_up():
    assert [frame_count(d, 30) for d in (1.0, 1.0001, 0.9999, 2.1, 0.1)] == [30, 31, 30, 63, 3]
    assert frame_count(12.692666666666666, 25) == 318


def test_from_samples_resamples():
    t = np.arange(44_100) / 44_100
    speech = Speech.from_samples(np.sin(2 * np.pi * 220 * t).astype(np.float32), 44_100)
    assert speech.duration == 1.0 and abs(len(speech.samples) - 16_000) <= 2
    with pytest.raises(InputError):
        Speech.from_samples(np.zeros(10, np.float32))
