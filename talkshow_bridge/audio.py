"""Any audio or video file that ffmpeg decodes -> mono 16 kHz speech, or one clear sentence why not."""

from __future__ import annotations

import hashlib
import math
import os
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import numpy as np

from talkshow_bridge.errors import InputError

SAMPLE_RATE = 16_000  # Hz, everything after decoding
MIN_DURATION = 0.1  # s, below this there is nothing to speak
BLOCK = 1 << 18  # samples decoded at a time
PLAYLISTS = {"concat", "concatf", "dash", "hls", "imf", "rtsp", "sdp", "webm_dash_manifest"}


@dataclass(frozen=True)
class Speech:
    """A decoded recording.

    samples: (S,) float32 in [-1, 1], mono, at `sample_rate`.
    sample_rate: Hz, always 16,000.
    duration: seconds of the original audio stream, counted in its own samples.
    sha256: hex digest of the file as it lies on disk.
    path: the absolute path it was read from, or None for samples made in memory.
    """

    samples: np.ndarray
    sample_rate: int
    duration: float
    sha256: str
    path: Path | None = None

    @classmethod
    def from_samples(cls, samples: np.ndarray, sample_rate: int = SAMPLE_RATE) -> Speech:
        """Wrap a mono float signal in [-1, 1] that is already in memory (resampled to 16 kHz if need be)."""
        source = np.ascontiguousarray(samples, dtype=np.float32)
        if source.ndim != 1 or len(source) < MIN_DURATION * sample_rate:
            raise InputError(f"Speech needs a mono signal of at least {MIN_DURATION} s.")
        if not np.isfinite(source).all():
            raise InputError("Some samples of the speech are not finite numbers.")
        digest = hashlib.sha256(source.tobytes()).hexdigest()
        mono = _to_16k(iter([source]), sample_rate)
        return cls(_tame(mono), SAMPLE_RATE, len(source) / sample_rate, digest)

    def frame_count(self, fps: float) -> int:
        """Frames of a video that covers the whole recording; frame k shows time k / fps."""
        return frame_count(self.duration, fps)


def frame_count(duration: float, fps: float) -> int:
    """Round-up of duration (s) x fps, immune to the last bit of the product."""
    return max(1, math.ceil(duration * fps - 1e-6))


def ffmpeg_path() -> str:
    """The ffmpeg binary to run: the one inside the imageio-ffmpeg wheel, or $IMAGEIO_FFMPEG_EXE."""
    import imageio_ffmpeg

    return imageio_ffmpeg.get_ffmpeg_exe()


def load_speech(path: str | os.PathLike[str]) -> Speech:
    """Decode the first audio track of a local file.

    Names are never interpreted (no protocols, options or patterns); any sample rate, channel count, codec or
    container works, video files too. Silence is fine: it makes a listening presenter.
    Raises InputError in one sentence when the file is missing, empty, not audio, cut off or under 0.1 s.
    """
    file = _local_file(path)
    samples, duration = _decode(file)
    if duration < MIN_DURATION:
        raise InputError(
            f"'{_shown(file)}' holds only {duration:.3f} s of audio; at least {MIN_DURATION} s are needed."
        )
    return Speech(samples, SAMPLE_RATE, duration, _sha256(file), file)


def _local_file(path: str | os.PathLike[str]) -> Path:
    try:
        file = Path(path)
        if not file.exists():
            raise InputError(f"There is no file '{_shown(file)}'.")
        if not file.is_file():
            raise InputError(f"'{_shown(file)}' is not a file.")
        if file.stat().st_size == 0:
            raise InputError(f"'{_shown(file)}' is empty (0 bytes).")
        with file.open("rb"):
            pass
        return Path(os.path.abspath(file))
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"The file '{_shown(path)}' cannot be read: {error.strerror or error}.") from None
    except (TypeError, ValueError):
        raise InputError(f"{_shown(path)!r} is not a file path.") from None


def decode(path: str | os.PathLike[str]) -> tuple[np.ndarray, int]:
    """The first audio track as it lies in the file -> ((C, N) float32, its own rate in Hz). Raises InputError."""
    with stream(path) as (blocks, rate):
        return np.concatenate(list(blocks), axis=1), rate


@contextmanager
def stream(path: str | os.PathLike[str]) -> Iterator[tuple[Iterator[np.ndarray], int]]:
    """The same without holding it: gives (an iterator of (C, n) float32 blocks, the rate in Hz)."""
    with _ffmpeg_stream(_local_file(path)) as opened:
        yield opened


def _decode(file: Path) -> tuple[np.ndarray, float]:
    """(Mono 16 kHz samples, duration in s of the original stream)."""
    counted = 0

    def mono() -> Iterator[np.ndarray]:
        nonlocal counted
        for block in blocks:
            counted += block.shape[1]
            yield block[0]

    with _ffmpeg_stream(file, ac=1) as (blocks, rate):
        samples = _to_16k(mono(), rate)
    return _tame(samples), counted / rate


@contextmanager
def _ffmpeg_stream(file: Path, **options: object) -> Iterator[tuple[Iterator[np.ndarray], int]]:
    """Run the file through ffmpeg; its complaints become an InputError at the start or at the end of the block."""
    with tempfile.TemporaryFile() as log:
        command = _decode_command(file, options)
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log)
        try:
            rate, channels = _au_format(process.stdout)
            blocks = _blocks(process.stdout, channels, file)
            first = next(blocks, None) if rate else None
            if first is not None:
                yield chain([first], blocks), rate
        finally:
            process.stdout.close()
            status = process.wait()
        log.seek(0)
        said = log.read().decode("utf-8", "replace")
    _refuse_playlists(file, said)
    if first is None:
        raise InputError(_why_undecodable(file, said, status))


def _decode_command(file: Path, options: dict[str, object]) -> list[str]:
    import ffmpeg

    source = ffmpeg.input("file", protocol_whitelist="file", vn=None, sn=None, dn=None)
    sink = source.output("pipe:1", map="0:a:0", acodec="pcm_f32be", format="au", **options)
    command = sink.global_args("-nostdin", "-hide_banner", "-nostats").compile(cmd=ffmpeg_path())
    command[command.index("-i") + 1] = f"file:{file}"  # ffmpeg-python cannot hold a name that is not UTF-8
    return command


def _au_format(pipe: BinaryIO) -> tuple[int, int]:
    """Read the AU header (big-endian: magic, offset, size, encoding, rate, channels) -> Hz, channels; 0, 0 without."""
    head = pipe.read(24)
    if len(head) < 24:
        return 0, 0
    magic, offset, _, _, rate, channels = struct.unpack(">4s5I", head)
    if magic != b".snd":
        return 0, 0
    pipe.read(offset - 24)
    return rate, channels


def _blocks(pipe: BinaryIO, channels: int, file: Path) -> Iterator[np.ndarray]:
    """Raw big-endian float32, channels interleaved -> native (C, n) float32 blocks. Raises InputError for NaN, inf."""
    size = 4 * channels
    while raw := pipe.read(BLOCK // channels * size):
        block = np.frombuffer(raw[: len(raw) // size * size], dtype=">f4").astype(np.float32)
        if not np.isfinite(block).all():
            raise InputError(f"'{_shown(file)}' is damaged: some of its samples are not finite numbers.")
        yield block.reshape(-1, channels).T


def _to_16k(blocks: Iterator[np.ndarray], rate: int) -> np.ndarray:
    """Resample a stream of mono blocks; memory holds the 16 kHz result and one block."""
    if rate == SAMPLE_RATE:
        return np.concatenate([np.zeros(0, np.float32), *blocks])
    import soxr

    stream = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32")
    parts = [stream.resample_chunk(block) for block in blocks]
    parts.append(stream.resample_chunk(np.zeros(0, np.float32), last=True))
    return np.concatenate(parts)


def _tame(samples: np.ndarray) -> np.ndarray:
    """Scale a float recording that exceeds full scale back into [-1, 1]."""
    peak = float(np.abs(samples).max(initial=0.0))
    return samples / peak if peak > 1.0 else samples


def _refuse_playlists(file: Path, said: str) -> None:
    header = next((line for line in said.splitlines() if line.startswith("Input #0, ")), "")
    formats = header.removeprefix("Input #0, ").split(", from")[0]
    if PLAYLISTS & set(formats.split(",")):
        raise InputError(f"'{_shown(file)}' is a playlist, not a recording.")


def _why_undecodable(file: Path, said: str, status: int) -> str:
    """One sentence from ffmpeg's log: no audio track, cut off, or whatever it said last."""
    if "matches no streams" in said or "does not contain any stream" in said:
        return f"'{_shown(file)}' has no audio track."
    if "moov atom not found" in said or "partial file" in said or "End of file" in said:
        return f"'{_shown(file)}' is cut off or damaged, no audio could be read."
    lines = [line.split("] ", 1)[-1].strip() for line in said.splitlines() if line.strip()]
    reason = next((line for line in reversed(lines) if "Invalid data" in line or "rror" in line), f"status {status}")
    reason = reason.replace(f"file:{file}", "").replace(str(file), "").strip(" :.")
    return f"'{_shown(file)}' could not be decoded as audio (ffmpeg: {reason})."


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _shown(path: object) -> str:
    """A file's name as it may stand in a message: printable, on one line, not endless."""
    name = path.name if isinstance(path, Path) and path.name else str(path)
    name = "".join(c if c.isprintable() else "?" for c in name)
    return name if len(name) <= 120 else name[:117] + "..."
