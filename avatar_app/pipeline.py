"""The whole chain on one page: speech -> motion -> mesh -> condition maps -> diffusion -> face -> mp4.

Everything after the motion is a generator over chunks of frames, so memory does not grow with the length of the speech.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np

from avatar_app.anchors import Anchor, Preset, list_anchors, load_anchor, motion_model_folder
from avatar_app.comparison import FaceComparison
from avatar_app.estimate import remember
from avatar_app.evaluation.report import QualityReport
from avatar_app.files import unfinished
from avatar_app.licences import require_commercial
from avatar_app.mesh.body import check_expression_space
from avatar_app.settings import RenderSettings
from avatar_app.sidecar import ingredients, peak_memory, write_sidecar
from avatar_app.stages import begun
from avatar_app.stopwatch import Stopwatch
from avatar_app.subtitles import Subtitles, load_subtitles
from avatar_app.trust import credentials
from avatar_app.trust.consent import require_consent
from avatar_app.trust.marks import marker, trust_facts
from avatar_app.video import Pieces, check_output
from avatar_app.workfolder import WorkFolder, folder_for, motion_digest
from talkshow_bridge.audio import Speech, load_speech
from talkshow_bridge.errors import InputError
from talkshow_bridge.motion import Motion

FACE_COMPARISON = "face.jpg"  # in the work folder
CHUNK = 8  # frames that travel together: 84 MB of condition maps at 512x512

Progress = Callable[[str, int, int], None]  # (stage, done, total); may raise Cancelled


class Cancelled(Exception):
    """Raise this from a progress callback to stop a render; nothing is left behind."""


@dataclass(frozen=True)
class RenderResult:
    """A finished video. timings: seconds spent in each stage by this run, and "total". id: of the video, for ever.
    report: what `QualityReport.finish` says."""

    path: Path
    sidecar: Path
    frames: int
    fps: float
    duration: float
    timings: dict[str, float]
    id: str
    report: dict


def render(
    speech: str | os.PathLike[str] | None,
    anchor: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] = "out.mp4",
    settings: RenderSettings | None = None,
    progress: Progress | None = None,
    motion: Motion | None = None,
    preview: bool = False,
    device: str | None = None,
    work: str | os.PathLike[str] | None = None,
    id: str | None = None,
    subtitles: str | os.PathLike[str] | Subtitles | None = None,
) -> RenderResult:
    """Renders speech to an mp4 with the user's audio, and a .json side-car that tells how it was made.

    speech: any file that ffmpeg decodes; None makes a silent video of ``motion``.
    anchor: overrides ``settings.anchor``.   out: path ending in .mp4; replaced when it exists.
    progress: called as progress(stage, done, total) with stage "speech", "anchor", "motion" or "frames".
    motion: use this instead of generating one.   preview: draw the posed mesh instead of the diffusion model's picture.
    device: torch device; None takes the GPU when there is one.
    work: folder that keeps the motion, finished pieces of the video and a comparison of the face pass (face.jpg): a
    render that was killed goes on there, with the same result as an undisturbed one. None takes a temporary folder.
    id: of the video; None makes one.
    subtitles: .srt or .vtt file, to be a track of the video that players show or hide.
    Raises InputError (the user's to mend), Cancelled, or video.VideoError (ffmpeg failed).
    """
    settings = settings or RenderSettings()
    if anchor is not None:
        settings = replace(settings, anchor=str(anchor))
    out, clock = check_output(out), Stopwatch()
    with clock("loading"):
        device = checked_device(device)
    if speech is not None and Path(speech).exists() and out.exists() and os.path.samefile(speech, out):
        raise InputError(f"The output {out.name!r} would replace the speech file.")
    report = progress or (lambda stage, done, total: None)

    with clock("speech"):
        report("speech", 0, 1)
        recording = None if speech is None else load_speech(speech)
        if isinstance(subtitles, (str, os.PathLike)):
            subtitles = load_subtitles(subtitles)
        if subtitles is not None and (recording or motion):
            subtitles = subtitles.until((recording or motion).duration)
    with clock("anchor"):
        report("anchor", 0, 1)
        presenter = presenter_for(settings, motion)
        options = presenter.preset(settings.preset, settings.sampler_overrides())
        body, camera, fps = presenter.body, presenter.camera, presenter.manifest.fps
    made_of = ingredients(settings, presenter, recording, preview) | {"device": device}
    if motion is not None:
        motion = fit_motion(motion, recording, fps)
        made_of["given_motion"] = motion_digest(motion)
    with folder_for(out, work) as folder:
        kept = WorkFolder(folder, made_of, id)
        mark, trust = marker(settings, kept.id), trust_facts(settings, kept.id, made_of, presenter.manifest.consent)
        with clock("loading"):
            painters = None if preview else begin_loading(presenter, options, settings.seed, device, kept)
        with clock("motion"):
            report("motion", 0, 1)
            if motion is None:
                motion = kept.motion(lambda: make_motion(recording, settings, fps, device))
            check_expression_space(body, motion)

        with Pieces(folder, fps, (camera.width, camera.height), len(motion), settings.crf) as video:
            begin = video.frames
            watch = QualityReport(
                presenter, None if preview else options, recording, len(motion), kept.keep, video.length
            )
            watch.resume(begin, kept.kept(begin) if begin else None)
            report("frames", begin, len(motion))
            if begin == len(motion):  # killed between the last frame and the end
                pictures = iter(())
            elif preview:
                pictures = preview_frames(presenter, motion, begin, clock)
            else:
                compare = FaceComparison(folder / FACE_COMPARISON, motion, mark)
                pictures = presenter_frames(presenter, motion, begin, painters, clock, kept, compare)
            for frames, vertices in pictures:
                with clock("trust"):
                    frames = mark(frames)
                with clock("report"):
                    watch.observe(frames, vertices)
                with clock("video"):
                    video.write(frames)
                report("frames", video.frames, len(motion))
        with clock("video"), unfinished(out) as temporary:
            video.join(temporary, None if recording is None else recording.path, subtitles)
            if settings.credentials:
                with clock("trust"):
                    credentials.sign(temporary, trust)

    timings = clock.seconds()
    if not settings.sampler_overrides() and not begin:
        remember(presenter.id, "preview" if preview else settings.preset, len(motion), timings, device, peak_memory())
    facts = {
        "id": kept.id,
        **made_of,
        "plan": kept.planned,
        "motion": {"frames": len(motion), "fps": motion.fps, **motion.meta},
        "subtitles": subtitles and subtitles.facts(),
        "trust": {**trust, "signed": settings.credentials},
        "quality": watch.finish(),
        "timings_s": timings,
        "resumed_at_frame": begin,
        "peak_memory_mb": peak_memory(),
    }
    return RenderResult(
        out, write_sidecar(out, facts), len(motion), fps, len(motion) / fps, timings, kept.id, facts["quality"]
    )


def presenter_for(settings: RenderSettings, motion: Motion | None = None) -> Anchor:
    """The anchor that the settings name; InputError for all that speaks against a render and can be known before it.

    motion: the user's own, None when one will be made."""
    presenter = choose_anchor(settings.anchor)
    if settings.credentials:
        credentials.check_ready()
    require_commercial(settings, presenter, motion)
    presenter.preset(settings.preset, settings.sampler_overrides())
    if motion is None:
        check_face(settings, presenter.body)
    return presenter


def make_motion(recording: Speech | None, settings: RenderSettings, fps: float, device: str = "cpu") -> Motion:
    """Lips, face, head and gestures for a recording, one frame per 1/fps seconds."""
    from talkshow_bridge.generator import MotionGenerator

    if recording is None:
        raise InputError("Without speech a motion file is needed.")
    generator = MotionGenerator.from_pretrained(motion_model_folder(settings.motion_model), device, settings.lips)
    return generator.generate(recording, settings.seed, settings.style, settings.gesture_energy, fps)


def check_face(settings: RenderSettings, body) -> None:
    """Raises InputError before a motion is made whose face the body would not understand."""
    from talkshow_bridge.checkpoints import holds_talkshow

    folder = motion_model_folder(settings.motion_model)
    if folder and holds_talkshow(folder) and settings.lips == "official" and body.expression_space != "flame100":
        raise InputError("TalkSHOW's face means nothing to this presenter: with `--lips bundled` it gets our lips.")


def fit_motion(motion: Motion, recording: Speech | None, fps: float) -> Motion:
    """A given motion at the anchor's frame rate, cut to the recording; InputError when it is too short."""
    motion = motion.resample(fps)
    if recording is None:
        return motion
    wanted = recording.frame_count(fps)
    if len(motion) < wanted - 1:
        raise InputError(
            f"The motion lasts {len(motion) / fps:.2f} s but the speech {recording.duration:.2f} s; "
            "please use the motion that was made for this speech."
        )
    return Motion.concatenate([motion, motion[-1:]])[:wanted]


def choose_anchor(name: str | None) -> Anchor:
    """The anchor of that id or folder, checked, whose consent permits showing it; without a name the first such."""
    if name is None:
        installed = [anchor for anchor in list_anchors() if not anchor.manifest.consent.problem("render")]
        if not installed:
            raise InputError("No anchor is installed; `launch.py anchors import FILE.zip` adds one.")
        name = installed[0].folder
    anchor = load_anchor(name)
    require_consent(anchor, "render")
    return anchor


def preview_frames(
    anchor: Anchor, motion: Motion, begin: int, clock: Stopwatch
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pictures of the lit mesh from frame `begin` on, drawn on all cores: (frames, vertices) as `presenter_frames`."""
    from avatar_app.mesh.preview import render_preview

    def draw(part: Motion) -> tuple[np.ndarray, np.ndarray]:
        vertices = anchor.vertices(part)
        return render_preview(anchor.body, vertices, anchor.camera), vertices

    first, workers = begin - begin % CHUNK, os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        drawing: deque[Future] = deque()
        for part in chain(chunks(motion, first), [None] * workers):
            if part is not None:
                drawing.append(pool.submit(draw, part))
            if drawing and (part is None or len(drawing) > workers):
                with clock("mesh"):
                    frames, vertices = drawing.popleft().result()
                skip = max(begin - first, 0)
                first += len(frames)
                yield frames[skip:], vertices[skip:]


def begin_loading(anchor: Anchor, options: Preset, seed: int, device: str, kept: WorkFolder) -> Callable[[], tuple]:
    """Loads the networks while other work goes on. What is returned waits for them.

    They are a `FrameGenerator` and what repaints faces: a `FaceEnhancer`, a `FaceInpainter` or None."""
    from avatar_app.diffusion.face import FaceEnhancer
    from avatar_app.diffusion.generator import FrameGenerator, plans_for
    from avatar_app.diffusion.inpainting import FaceInpainter
    from avatar_app.diffusion.planner import Plan

    kept_plans = kept.plan(lambda: plans_for(anchor, options, device))
    plans = {part: Plan.from_dict(plan) for part, plan in kept_plans.items()}

    def load() -> tuple:
        generator = FrameGenerator(anchor, options, device, seed=seed, plan=plans["body"])
        generator.prepare()
        face_pass = FaceEnhancer if anchor.manifest.kind == "native" else FaceInpainter
        return generator, face_pass(anchor, options, device, seed=seed, plan=plans["face"]) if "face" in plans else None

    return begun(load)


def presenter_frames(
    anchor: Anchor,
    motion: Motion,
    begin: int,
    painters: Callable[[], tuple],
    clock: Stopwatch,
    kept: WorkFolder,
    compare: FaceComparison,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pictures of the presenter from frame `begin` on, with their posed vertices, a few at a time.

    painters: of `begin_loading`.
    Yields frames (n, height, width, 3) uint8 RGB and vertices (n, V, 3) in metres; n is the generator's choice.
    """
    with clock("loading"):
        generator, enhancer = painters()
    drawn: deque[np.ndarray] = deque()  # vertices of frames that the generator still holds

    def posed(first: int) -> Iterator[np.ndarray]:
        for part in chunks(motion, first):
            with clock("mesh"):
                vertices = anchor.vertices(part)
            drawn.extend(vertices)
            yield vertices

    done = generator.restart(begin, len(motion), CHUNK)
    if enhancer is not None:
        with clock("face"):
            for part in chunks(motion[:done]):
                enhancer.skip(anchor.vertices(part))
    for frames in clock.each("diffusion", generator.frames(posed(done))):
        vertices = np.stack([drawn.popleft() for _ in frames])
        skip = max(begin - done, 0)
        done += len(frames)
        if enhancer is not None:
            with clock("face"):
                if done > begin:
                    before, frames = frames, enhancer.enhance(frames, vertices)
                    compare.look(done - len(frames), before, frames)
                else:
                    enhancer.skip(vertices)
            kept.replan("face", enhancer.plan.to_dict())
        kept.replan("body", generator.plan.to_dict())
        if done > begin:
            yield frames[skip:], vertices[skip:]


def chunks(motion: Motion, first: int = 0) -> Iterator[Motion]:
    """The motion from frame `first` on in pieces of `CHUNK` frames."""
    return (motion[start : start + CHUNK] for start in range(first, len(motion), CHUNK))


def best_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def checked_device(name: str | None) -> str:
    """A torch device by name, the best one for None. Raises InputError when there is no such device here."""
    import torch

    if name is None:
        return best_device()
    try:
        known = torch.device(name).type in ("cpu", "cuda", "mps")
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError):
        known = False
    if not known:
        raise InputError(f"There is no device {name!r} here; please leave --device out or say cpu, cuda or mps.")
    return name
