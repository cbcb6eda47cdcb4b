"""A video that is played while it is being made: its finished pieces, each with its share of the sound."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from avatar_app.files import unfinished
from avatar_app.jobs.store import WORK, Job
from avatar_app.video import AUDIO_BITRATE, audio_track, piece_length, run_ffmpeg
from avatar_app.workfolder import begun_with

SOUND = "sound.m4a"


@dataclass(frozen=True)
class Segment:
    """A finished piece. path: silent mp4, playable by itself. start, duration: seconds."""

    number: int
    path: Path
    start: float
    duration: float


def segments(job: Job) -> list[Segment]:
    """The finished pieces of a job's video from the beginning on; none once it has been done for minutes."""
    begun = begun_with(job.folder / WORK)
    if not job.segments or not begun:
        return []
    fps, frames = begun["fps"], begun["frames"]
    length = piece_length(fps)
    return [
        Segment(number, path, number * length / fps, min(length, frames - number * length) / fps)
        for number, path in enumerate(job.segments)
    ]


def with_sound(job: Job, number: int) -> Path:
    """A piece as an MPEG transport stream with its share of the speech, as HTTP live streaming plays it gaplessly.

    Made when first asked for, in a fraction of a second; the pictures are not encoded again. Raises IndexError for a
    piece that is not finished, VideoError when the job's files are gone.
    """
    import ffmpeg

    segment = segments(job)[number]
    path = segment.path.with_name(f"live-{number:05d}.ts")
    if path.exists():
        return path
    streams, start = [ffmpeg.input(f"file:{segment.path}")["v:0"]], segment.start
    if job.speech is not None:
        sound = ffmpeg.input(f"file:{_whole_sound(job)}", ss=start, t=segment.duration)
        streams.append(sound["a:0"])
    with unfinished(path) as temporary:
        run_ffmpeg(
            ffmpeg.output(
                *streams,
                f"file:{temporary}",
                c="copy",
                format="mpegts",
                output_ts_offset=start,
                muxdelay=0,
                muxpreload=0,
            )
        )
    return path


def _whole_sound(job: Job) -> Path:
    """The speech as it will be in the video, encoded once, so that its cuts cannot be heard."""
    import ffmpeg

    path = job.folder / WORK / SOUND
    if not path.exists():
        with unfinished(path) as temporary:
            options = {"acodec": "aac", "audio_bitrate": AUDIO_BITRATE, "format": "mp4", "map_metadata": -1}
            run_ffmpeg(ffmpeg.output(audio_track(job.speech), f"file:{temporary}", **options))
    return path
