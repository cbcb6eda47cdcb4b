"""Other forms of a job's results, made on demand: for downloads, and for playing unfinished videos."""

from __future__ import annotations

from pathlib import Path

from avatar_app.files import unfinished
from avatar_app.jobs import Job
from avatar_app.jobs.training import sheet
from avatar_app.video import VideoError, audio_track, run_ffmpeg

GIF_SECONDS, GIF_FPS, GIF_WIDTH = 15, 12, 360
MOTION_FORMATS = ("motion.bvh", "motion.glb")
SHEETS = ("body.png", "face.png")  # of a training, as it goes
# Fragmented mp4 as media source extensions want it: headers first, times without edit lists.
FRAGMENTS = {"format": "mp4", "movflags": "+empty_moov+default_base_moof+frag_keyframe+negative_cts_offsets"}


def export(job: Job, name: str) -> Path | None:
    """The file of a job that goes by this public name, made now if need be; None when there is none."""
    if job.kind == "train":
        return sheet(job, Path(name).stem) if name in SHEETS else None
    ready = {
        "video.mp4": job.video,
        "settings.json": job.sidecar,
        "thumbnail.jpg": job.thumbnail,
        "motion.npz": job.motion,
        "face.jpg": job.comparison,
        "subtitles.vtt": job.subtitles,
    }
    if name in ready:
        return ready[name]
    path = job.folder / name
    if name == "video.gif" and job.video:
        return path if path.exists() else _gif(job.video, path)
    if name in MOTION_FORMATS and job.motion:
        return path if path.exists() else _motion(job, path)
    return None


def playable_piece(job: Job, number: int) -> Path | None:
    """A finished piece of a video in a form that browsers append to what they play; None for one that is not there."""
    if number >= len(job.segments):
        return None
    piece = job.segments[number]
    path = piece.with_name(f"play-{piece.name}")
    return path if path.exists() else _fragmented(_input(piece)["v:0"], path, vcodec="copy", use_editlist=0)


def playable_sound(job: Job) -> Path | None:
    """The whole speech of a job in such a form."""
    path = job.folder / "play-sound.mp4"
    if path.exists() or job.speech is None:
        return path if job.speech else None
    return _fragmented(audio_track(job.speech), path, acodec="aac", audio_bitrate="96k")


def _input(path: Path):
    import ffmpeg

    return ffmpeg.input(f"file:{path}")


def _fragmented(stream, path: Path, **options: object) -> Path | None:
    try:
        with unfinished(path) as temporary:
            run_ffmpeg(stream.output(f"file:{temporary}", **options, **FRAGMENTS))
    except (VideoError, OSError):  # the job has been deleted meanwhile
        return None
    return path


def _gif(video: Path, path: Path) -> Path:
    import ffmpeg

    source = ffmpeg.input(f"file:{video}", t=GIF_SECONDS)["v:0"].filter("fps", GIF_FPS)
    both = source.filter("scale", GIF_WIDTH, -2, flags="lanczos").split()
    colours = ffmpeg.filter([both[0], both[1].filter("palettegen")], "paletteuse")
    with unfinished(path) as temporary:
        run_ffmpeg(colours.output(f"file:{temporary}", format="gif"))
    return path


def _motion(job: Job, path: Path) -> Path:
    from avatar_app.cli_motion import write_motion
    from avatar_app.pipeline import choose_anchor
    from talkshow_bridge.motion import Motion

    write_motion(Motion.load(job.motion), path, lambda: choose_anchor(job.settings.anchor).body)
    return path
