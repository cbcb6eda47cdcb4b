"""The whole chain on one page: speech -> motion -> mesh -> condition maps -> diffusion -> face -> mp4.

Everything after the motion is a generator over chunks of frames, so memory does not grow with the length of the speech.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import chain
from pathlib import Path

import numpy as np

from avatar_app import __version__
from avatar_app.anchors import MANIFEST, Anchor, Preset, anchor_folders, list_anchors, load_anchor
from avatar_app.estimate import remember
from avatar_app.mesh.body import check_expression_space
from avatar_app.settings import RenderSettings
from avatar_app.trust.consent import require_consent
from avatar_app.video import VideoWriter, check_output
from talkshow_bridge.audio import Speech, load_speech
from talkshow_bridge.errors import InputError
from talkshow_bridge.motion import Motion

CHUNK = 8  # frames that travel together: 84 MB of condition maps at 512x512

Progress = Callable[[str, int, int], None]  # (stage, done, total); may raise Cancelled


class Cancelled(Exception):
    """Raise this from a progress callback to stop a render; nothing is left behind."""


@dataclass(frozen=True)
class RenderResult:
    """A finished video. timings: seconds spent in each stage, and "total"."""

    path: Path
    sidecar: Path
    frames: int
    fps: float
    duration: float
    timings: dict[str, float]


def render(
    speech: str | os.PathLike[str] | None,
    anchor: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] = "out.mp4",
    settings: RenderSettings | None = None,
    progress: Progress | None = None,
    motion: Motion | None = None,
    preview: bool = False,
    device: str | None = None,
) -> RenderResult:
    """Renders speech to an mp4 with the user's audio, and a .json side-car that tells how it was made.

    speech: any file that ffmpeg decodes; None makes a silent video of ``motion``.
    anchor: overrides ``settings.anchor``.   out: path ending in .mp4; replaced when it exists.
    progress: called as progress(stage, done, total) with stage "speech", "anchor", "motion" or "frames".
    motion: use this instead of generating one.   preview: draw the posed mesh instead of the diffusion model's picture.
    device: torch device; None takes the GPU when there is one.
    Raises InputError (the user's to mend), Cancelled, or video.VideoError (ffmpeg failed).
    """
    settings = settings or RenderSettings()
    if anchor is not None:
        settings = replace(settings, anchor=str(anchor))
    out, clock = check_output(out), Stopwatch()
    with clock("loading"):
        device = device or best_device()
    if speech is not None and Path(speech).exists() and out.exists() and os.path.samefile(speech, out):
        raise InputError(f"The output {out.name!r} would replace the speech file.")
    report = progress or (lambda stage, done, total: None)

    with clock("speech"):
        report("speech", 0, 1)
        recording = None if speech is None else load_speech(speech)
    with clock("anchor"):
        report("anchor", 0, 1)
        presenter = choose_anchor(settings.anchor)
        require_consent(presenter, "render")
        options = presenter.preset(settings.preset, settings.sampler_overrides())
        body, camera, fps = presenter.body, presenter.camera, presenter.manifest.fps
        if motion is None:
            check_face(settings, body)
    with clock("motion"):
        report("motion", 0, 1)
        motion = make_motion(recording, settings, fps, device) if motion is None else fit_motion(motion, recording, fps)
        check_expression_space(body, motion)

    parts = (motion[start : start + CHUNK] for start in range(0, len(motion), CHUNK))
    if preview:
        frames = preview_frames(presenter, parts, clock)
    else:
        frames = presenter_frames(presenter, parts, options, settings.seed, device, clock)
    audio = None if recording is None else recording.path
    report("frames", 0, len(motion))
    with VideoWriter(out, fps, (camera.width, camera.height), audio, settings.crf) as video:
        for chunk in frames:
            with clock("video"):
                video.write(chunk)
            report("frames", video.frames, len(motion))

    timings = clock.seconds()
    if not settings.sampler_overrides():
        remember(presenter.id, "preview" if preview else settings.preset, len(motion), timings, device)
    sidecar = write_sidecar(out, settings, presenter, recording, motion, preview, timings)
    return RenderResult(out, sidecar, len(motion), fps, len(motion) / fps, timings)


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


def motion_model_folder(name: str | None) -> Path | None:
    """A motion model by folder; "talkshow" is where `launch.py motion import` puts one, beside the user's anchors."""
    if name == "talkshow":
        return anchor_folders()[0].parent / name
    return None if name is None else Path(name)


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
    """The anchor of that id or folder, checked; without a name the first whose consent permits rendering."""
    if name is None:
        installed = [anchor for anchor in list_anchors() if not anchor.manifest.consent.problem("render")]
        if not installed:
            raise InputError("No anchor is installed; `launch.py anchors import FILE.zip` adds one.")
        name = installed[0].folder
    return load_anchor(name)


def preview_frames(anchor: Anchor, parts: Iterable[Motion], clock: Stopwatch) -> Iterator[np.ndarray]:
    """Chunks of (n, height, width, 3) uint8 RGB pictures of the lit mesh, drawn on all cores."""
    from avatar_app.mesh.preview import render_preview

    def draw(part: Motion) -> np.ndarray:
        return render_preview(anchor.body, anchor.vertices(part), anchor.camera)

    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        drawing: deque[Future] = deque()
        for part in chain(parts, [None] * workers):
            if part is not None:
                drawing.append(pool.submit(draw, part))
            if drawing and (part is None or len(drawing) > workers):
                with clock("mesh"):
                    frames = drawing.popleft().result()
                yield frames


def presenter_frames(
    anchor: Anchor, parts: Iterable[Motion], options: Preset, seed: int, device: str, clock: Stopwatch
) -> Iterator[np.ndarray]:
    """Chunks of (n, height, width, 3) uint8 RGB pictures of the presenter; chunk sizes are the generator's choice."""
    with clock("loading"):  # importing diffusers takes longer than reading the weights
        from avatar_app.diffusion.face import FaceEnhancer
        from avatar_app.diffusion.generator import FrameGenerator
        from avatar_app.diffusion.inpainting import FaceInpainter

    draw = condition_renderer(anchor)
    drawn: deque[np.ndarray] = deque()  # vertices of frames that the generator still holds

    def conditions() -> Iterator[np.ndarray]:
        for part in parts:
            with clock("mesh"):
                vertices = anchor.vertices(part)
                maps = draw(anchor.body, vertices, anchor.camera)
            drawn.extend(vertices)
            yield maps

    with clock("loading"):
        generator = FrameGenerator(anchor, options, device=device, seed=seed)
        face_pass = FaceEnhancer if anchor.manifest.kind == "native" else FaceInpainter
        enhancer = face_pass(anchor, options, device=device, seed=seed) if options.face and anchor.has_face else None
    for frames in clock.each("diffusion", generator.frames(conditions())):
        vertices = np.stack([drawn.popleft() for _ in frames])
        if enhancer is not None:
            with clock("face"):
                frames = enhancer.enhance(frames, vertices)
        yield frames


def condition_renderer(anchor: Anchor) -> Callable:
    """draw(body, vertices, camera): what the anchor's networks were trained on."""
    from avatar_app.mesh import conditions

    return conditions.condition_renderer(anchor.manifest.condition)


def write_sidecar(
    out: Path,
    settings: RenderSettings,
    anchor: Anchor,
    recording: Speech | None,
    motion: Motion,
    preview: bool,
    timings: dict[str, float],
) -> Path:
    """Writes what is needed to make the same video again beside it, as JSON."""
    facts = {
        "settings": replace(settings, anchor=settings.anchor or anchor.id).to_dict(),
        "preview": preview,
        "speech": recording and {"sha256": recording.sha256, "duration": recording.duration},
        "anchor": {"id": anchor.id, "sha256": hashlib.sha256((anchor.folder / MANIFEST).read_bytes()).hexdigest()},
        "motion": {"frames": len(motion), "fps": motion.fps, **motion.meta},
        "timings_s": timings,
        "peak_memory_mb": peak_memory(),
        "versions": {
            "avatar_app": __version__,
            "python": platform.python_version(),
            **{package: version(package) for package in ("torch", "diffusers", "numpy")},
        },
    }
    sidecar = out.with_suffix(".json")
    temporary = sidecar.with_name(f".{sidecar.name}.part")
    temporary.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, sidecar)
    return sidecar


def best_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def peak_memory() -> int | None:
    """Largest resident size of this process so far in MB; None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024 if platform.system() == "Linux" else 1024**2))


class Stopwatch:
    """Seconds per stage. Stages may nest; the inner one's time is not counted to the outer one."""

    def __init__(self) -> None:
        self._started = self._mark = time.perf_counter()
        self._spent: dict[str, float] = {}
        self._stack: list[str] = []

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        self._book()
        self._stack.append(stage)
        try:
            yield
        finally:
            self._book()
            self._stack.pop()

    def each(self, stage: str, items: Iterable) -> Iterator:
        """Iterates over ``items``, booking the time that each takes to come."""
        iterator = iter(items)
        while True:
            with self(stage):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def _book(self) -> None:
        now = time.perf_counter()
        if self._stack:
            self._spent[self._stack[-1]] = self._spent.get(self._stack[-1], 0.0) + now - self._mark
        self._mark = now

    def seconds(self) -> dict[str, float]:
        spent = {stage: round(seconds, 3) for stage, seconds in self._spent.items()}
        return {**spent, "total": round(time.perf_counter() - self._started, 3)}
