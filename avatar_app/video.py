"""Frames -> mp4: a streaming ffmpeg writer that muxes the user's audio, and a probe of what came out."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import subprocess
import tempfile
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from talkshow_bridge.audio import ffmpeg_path
from talkshow_bridge.errors import InputError

AUDIO_RATE = 48_000  # Hz in the video
AUDIO_BITRATE = "192k"


class VideoError(RuntimeError):
    """ffmpeg failed at its work; the message carries its last words."""


def check_output(path: str | os.PathLike[str], suffix: str = ".mp4") -> Path:
    """The absolute output path, or InputError in one sentence when nothing can be written there."""
    path = Path(os.path.abspath(path))
    if path.suffix.lower() != suffix:
        raise InputError(f"The output file {path.name!r} must end in {suffix}.")
    if path.is_dir():
        raise InputError(f"The output {str(path)!r} is a folder, not a file.")
    if not path.parent.is_dir():
        raise InputError(f"The output folder {str(path.parent)!r} does not exist.")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"The output folder {str(path.parent)!r} is not writable.")
    return path


class VideoWriter:
    """Writes H.264 yuv420p +faststart, one chunk of frames after the other; holds none of them.

    The file is made beside ``path`` under a temporary name and moved there when all went well; on any error or
    cancellation nothing is left.

        with VideoWriter("out.mp4", fps=30, size=(512, 512), audio="speech.wav") as video:
            video.write(frames)  # (n, 512, 512, 3) uint8 RGB

    path: ends in .mp4.   fps: frames per second; frame k is shown from k/fps on.   size: (width, height), both even.
    audio: any file that ffmpeg decodes; its first audio track is re-encoded as AAC, mono or stereo, 48 kHz.
    crf: H.264 quality, 0 lossless to 40 poor.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        fps: float,
        size: tuple[int, int],
        audio: str | os.PathLike[str] | None = None,
        crf: int = 18,
    ):
        width, height = size
        if width % 2 or height % 2:
            raise ValueError(f"H.264 yuv420p needs even sizes, not {width}x{height}")
        self.path, self.size, self.frames = check_output(path), (width, height), 0
        self._temporary = self.path.with_name(f".{self.path.stem[:40]}.{secrets.token_hex(6)}.mp4.part")
        self._options = fps, audio, crf
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> VideoWriter:
        self._log = tempfile.TemporaryFile()
        try:
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=self._log,
                start_new_session=True,  # Ctrl-C is ours to handle
            )
        except BaseException:
            self._discard()
            raise
        return self

    def _command(self) -> list[str]:
        import ffmpeg

        fps, audio, crf = self._options
        rate = Fraction(fps).limit_denominator(1001)
        streams = [
            ffmpeg.input(
                "pipe:0", format="rawvideo", pix_fmt="rgb24", s="{}x{}".format(*self.size), framerate=str(rate)
            ).filter("scale", out_color_matrix="bt709", out_range="tv")
        ]
        options = {
            "vcodec": "libx264", "preset": "veryfast", "crf": crf, "pix_fmt": "yuv420p", "movflags": "+faststart",
            "colorspace": "bt709", "color_primaries": "bt709", "color_trc": "bt709",
            "map_metadata": -1, "format": "mp4",
        }  # fmt: skip
        if audio is not None:
            track = ffmpeg.input(f"file:{os.path.abspath(audio)}", protocol_whitelist="file")["a:0"]
            # Timestamps from the sample count: gaps and late starts are dropped, as the speech loader drops them.
            track = track.filter("asetpts", "N/SR/TB")
            track = track.filter("aformat", sample_rates=AUDIO_RATE, channel_layouts="mono|stereo")
            streams.append(track)
            options |= {"acodec": "aac", "audio_bitrate": AUDIO_BITRATE}
        sink = ffmpeg.output(*streams, f"file:{self._temporary}", **options)
        return (
            sink.global_args("-hide_banner", "-nostats", "-loglevel", "warning")
            .overwrite_output()
            .compile(ffmpeg_path())
        )

    def write(self, frames: np.ndarray) -> None:
        """Appends (n, height, width, 3) uint8 RGB frames."""
        width, height = self.size
        if frames.dtype != np.uint8 or frames.shape[1:] != (height, width, 3):
            raise ValueError(f"expected (n, {height}, {width}, 3) uint8 frames, got {frames.shape} {frames.dtype}")
        try:
            self._process.stdin.write(np.ascontiguousarray(frames).data)
        except OSError as error:
            raise VideoError(f"The video could not be written: {self._last_words(error)}") from None
        self.frames += len(frames)

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._discard()

    def _finish(self) -> None:
        failure: OSError | None = None
        try:
            self._process.stdin.close()
        except OSError as error:
            failure = error
        if self._process.wait() or failure or not self.frames:
            raise VideoError(f"The video could not be written: {self._last_words(failure)}")
        os.replace(self._temporary, self.path)

    def _discard(self) -> None:
        """Ends ffmpeg if it still runs and removes what is left of the temporary file."""
        if self._process is not None:
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        self._log.close()
        self._temporary.unlink(missing_ok=True)

    def _last_words(self, error: OSError | None) -> str:
        self._process.wait()
        self._log.seek(0)
        lines = self._log.read().decode("utf-8", "replace").strip().splitlines()
        return f"ffmpeg said: {lines[-1].strip()}" if lines else str(error or f"status {self._process.returncode}")


@dataclass(frozen=True)
class VideoFacts:
    """What a video file holds. Durations in seconds; audio fields are None without an audio track."""

    width: int
    height: int
    fps: float
    frames: int
    duration: float
    video_codec: str
    pixel_format: str
    audio_codec: str | None = None
    audio_rate: int | None = None
    audio_channels: int | None = None
    audio_duration: float | None = None


def probe(path: str | os.PathLike[str]) -> VideoFacts:
    """Reads every packet of a video file and sums them up. Raises VideoError when it is none."""
    source = ["-i", f"file:{os.path.abspath(path)}", "-map", "0:v:0", "-map", "0:a:0?", "-c", "copy"]
    result = subprocess.run(
        [ffmpeg_path(), "-nostdin", "-hide_banner", *source, "-f", "framecrc", "-"], capture_output=True, text=True
    )
    if result.returncode:
        raise VideoError(f"{str(path)!r} is not a video: {result.stderr.strip().splitlines()[-1]}")
    header = dict(re.findall(r"^#(\w+ \d): (.+)$", result.stdout, re.MULTILINE))
    packets = [[int(cell) for cell in row.split(",")[:4]] for row in result.stdout.splitlines() if row[:1].isdigit()]

    def track(index: int) -> tuple[int, float]:
        """Number of packets and the time from 0 to the end of the last one."""
        rows = [(pts, length) for stream, _, pts, length in packets if stream == index]
        return len(rows), float(max(pts + length for pts, length in rows) * Fraction(header[f"tb {index}"]))

    frames, duration = track(0)
    width, height = header["dimensions 0"].split("x")
    described = re.search(r"Stream #0:\d.*Video: .*", result.stderr).group()
    facts = VideoFacts(
        width=int(width),
        height=int(height),
        fps=round(frames / duration, 4),
        frames=frames,
        duration=duration,
        video_codec=header["codec_id 0"],
        pixel_format=re.search(r"\b(yuvj?\d{3}p\w*|gbrp\w*|rgb\w+|nv12)\b", described).group(),
    )
    if "codec_id 1" not in header:
        return facts
    layout = header.get("channel_layout_name 1", "")
    return VideoFacts(
        **{
            **facts.__dict__,
            "audio_codec": header["codec_id 1"],
            "audio_rate": int(header["sample_rate 1"]),
            "audio_channels": {"mono": 1, "stereo": 2}.get(layout),
            "audio_duration": track(1)[1],
        }
    )
