"""Frames -> mp4 in pieces that survive a crash, joined at the end under the user's audio; a probe of what came out."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from avatar_app.files import unfinished
from avatar_app.subtitles import Subtitles
from talkshow_bridge.audio import ffmpeg_path
from talkshow_bridge.errors import InputError

AUDIO_RATE = 48_000  # Hz in the video
AUDIO_BITRATE = "192k"
PIECE_SECONDS = 2.0


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
    """Writes silent H.264 yuv420p +faststart, one chunk of frames after the other; holds none of them.

    On any error or cancellation nothing is left.

        with VideoWriter("out.mp4", fps=30, size=(512, 512)) as video:
            video.write(frames)  # (n, 512, 512, 3) uint8 RGB

    path: ends in .mp4.   fps: frames per second; frame k is shown from k/fps on.   size: (width, height), both even.
    crf: H.264 quality, 0 lossless to 40 poor.
    """

    def __init__(self, path: str | os.PathLike[str], fps: float, size: tuple[int, int], crf: int = 18):
        width, height = size
        if width % 2 or height % 2:
            raise ValueError(f"H.264 yuv420p needs even sizes, not {width}x{height}")
        self.path, self.size, self.frames = check_output(path), (width, height), 0
        self._fps, self._crf = fps, crf

    def __enter__(self) -> VideoWriter:
        with contextlib.ExitStack() as stack:
            self._log = stack.enter_context(tempfile.TemporaryFile())
            temporary = stack.enter_context(unfinished(self.path))
            self._process = subprocess.Popen(
                self._command(temporary),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=self._log,
                start_new_session=True,  # Ctrl-C is ours to handle
            )
            stack.push(self._end)
            self._stack = stack.pop_all()
        return self

    def _command(self, path: Path) -> list[str]:
        import ffmpeg

        rate = Fraction(self._fps).limit_denominator(1001)
        source = ffmpeg.input(
            "pipe:0", format="rawvideo", pix_fmt="rgb24", s="{}x{}".format(*self.size), framerate=str(rate)
        ).filter("scale", out_color_matrix="bt709", out_range="tv")
        options = {
            "vcodec": "libx264", "preset": "veryfast", "crf": self._crf, "pix_fmt": "yuv420p",
            "colorspace": "bt709", "color_primaries": "bt709", "color_trc": "bt709",
        }  # fmt: skip
        return _compiled(source.output(f"file:{path}", **options, **_MP4))

    def write(self, frames: np.ndarray) -> None:
        """Appends (n, height, width, 3) uint8 RGB frames."""
        width, height = self.size
        if frames.dtype != np.uint8 or frames.shape[1:] != (height, width, 3):
            raise ValueError(f"expected (n, {height}, {width}, 3) uint8 frames, got {frames.shape} {frames.dtype}")
        try:
            self._process.stdin.write(np.ascontiguousarray(frames).data)
        except OSError as error:
            raise self._failure(error) from None
        self.frames += len(frames)

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        self._stack.__exit__(kind, error, trace)

    def _end(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        """Lets ffmpeg finish, or kills it when the block failed."""
        if kind is not None:
            self._process.kill()
        broken: OSError | None = None
        try:
            self._process.stdin.close()
        except OSError as problem:
            broken = problem
        status = self._process.wait()
        if kind is None and (status or broken or not self.frames):
            raise self._failure(broken)

    def _failure(self, error: OSError | None) -> VideoError:
        status = self._process.wait()
        return VideoError(f"The video could not be written: {_last_words(self._log) or error or f'status {status}'}")


class Pieces:
    """A video as closed mp4 pieces of `PIECE_SECONDS` in a folder; those that are there already are not made again.

        with Pieces(folder, fps=30, size=(512, 512), total=len(motion)) as video:
            video.write(frames)  # from frame number `video.frames` on
        video.join(path, audio="speech.wav")

    total: frames of the whole video.   frames: how many have been written, by earlier runs too.   length: of a piece.
    Every piece is encoded by itself, so that its bytes depend on its own frames alone.
    """

    def __init__(self, folder: Path, fps: float, size: tuple[int, int], total: int, crf: int = 18):
        self._folder, self._total, self._options = folder, total, (fps, size, crf)
        self.length = piece_length(fps)
        done = 0
        while self._path(done).exists():
            done += 1
        self.frames = min(done * self.length, total)
        self._writer: VideoWriter | None = None
        self._ending: Future | None = None  # the last piece while ffmpeg finishes it

    def _path(self, number: int) -> Path:
        return self._folder / f"piece-{number:05d}.mp4"

    def __enter__(self) -> Pieces:
        self._pool = ThreadPoolExecutor(1)
        return self

    def write(self, frames: np.ndarray) -> None:
        """Appends (n, height, width, 3) uint8 RGB frames."""
        while len(frames):
            if self._writer is None:
                self._writer = VideoWriter(self._path(self.frames // self.length), *self._options).__enter__()
            room = self.length - self._writer.frames
            self._writer.write(frames[:room])
            self.frames += min(room, len(frames))
            frames = frames[room:]
            if self._writer.frames == self.length or self.frames == self._total:
                self._settle()
                writer, self._writer = self._writer, None
                self._ending = self._pool.submit(writer.__exit__, None, None, None)

    def _settle(self) -> None:
        ending, self._ending = self._ending, None
        if ending is not None:
            ending.result()

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        try:
            if self._writer is not None:
                self._writer.__exit__(kind or VideoError, error, trace)
            self._settle()
        finally:
            self._pool.shutdown()
        if kind is None and self.frames != self._total:
            raise VideoError(f"The video has {self.frames} frames instead of {self._total}.")

    def join(self, path: Path, audio: str | os.PathLike[str] | None = None, subtitles: Subtitles | None = None) -> None:
        """Writes the whole video without encoding the pictures again.

        audio: any file that ffmpeg decodes; its first audio track is re-encoded as AAC, mono or stereo, 48 kHz.
        subtitles: become a track of text that players show or hide.
        """
        import ffmpeg

        names = [self._path(number).name for number in range(-(-self._total // self.length))]
        table = self._folder / "pieces.txt"
        table.write_text("".join(f"file {name}\n" for name in names))
        streams, options = [ffmpeg.input(f"file:{table}", format="concat", protocol_whitelist="file")["v:0"]], {}
        if audio is not None:
            streams.append(audio_track(audio))
            options = {"acodec": "aac", "audio_bitrate": AUDIO_BITRATE}
        if subtitles is not None:
            text = self._folder / "subtitles.vtt"
            text.write_text(subtitles.as_vtt(), encoding="utf-8")
            streams.append(ffmpeg.input(f"file:{text}", format="webvtt")["s:0"])
            options |= {"scodec": "mov_text", "metadata:s:s:0": f"language={subtitles.language_code}"}
        run_ffmpeg(ffmpeg.output(*streams, f"file:{path}", vcodec="copy", **options, **_MP4))


_MP4 = {"movflags": "+faststart", "map_metadata": -1, "format": "mp4"}


def piece_length(fps: float) -> int:
    """Frames of a piece; only the last may be shorter."""
    return max(1, round(PIECE_SECONDS * fps))


def audio_track(path: str | os.PathLike[str], **options: object):
    """The first audio track of a file as ffmpeg-python's stream, mono or stereo at `AUDIO_RATE`."""
    import ffmpeg

    track = ffmpeg.input(f"file:{os.path.abspath(path)}", protocol_whitelist="file", **options)["a:0"]
    # Timestamps from the sample count: gaps and late starts are dropped, as the speech loader drops them.
    track = track.filter("asetpts", "N/SR/TB")
    return track.filter("aformat", sample_rates=AUDIO_RATE, channel_layouts="mono|stereo")


def run_ffmpeg(sink) -> None:
    """Runs what ffmpeg-python describes. Raises VideoError with ffmpeg's last words."""
    with tempfile.TemporaryFile() as log:
        status = subprocess.run(_compiled(sink), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log)
        if status.returncode:
            raise VideoError(f"The video could not be written: {_last_words(log) or f'status {status.returncode}'}")


def write_thumbnail(video: Path, path: Path, seconds: float, width: int = 320) -> None:
    """The picture at a time of a video as a small JPEG."""
    import ffmpeg

    with unfinished(path) as temporary:
        picture = ffmpeg.input(f"file:{video}", ss=seconds)["v:0"].filter("scale", width, -2)
        run_ffmpeg(picture.output(f"file:{temporary}", vframes=1, format="image2", vcodec="mjpeg", qscale=4))


def _compiled(sink) -> list[str]:
    return (
        sink.global_args("-hide_banner", "-nostats", "-loglevel", "warning").overwrite_output().compile(ffmpeg_path())
    )


def _last_words(log) -> str:
    log.seek(0)
    lines = log.read().decode("utf-8", "replace").strip().splitlines()
    return f"ffmpeg said: {lines[-1].strip()}" if lines else ""


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
        pixel_format=re.search(r"Video: [^,]+, (\w+)", described)[1],
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
