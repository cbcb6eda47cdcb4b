"""Posed bodies in, video frames out: lazily, in order, in memory that does not grow with the length."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from avatar_app.anchors import Anchor, Preset
from avatar_app.diffusion.denoise import seeded_noise, stream_denoise
from avatar_app.diffusion.engine import engine_choice
from avatar_app.diffusion.frames import NO_PLATE, coarse_surroundings, person_mask
from avatar_app.diffusion.painters import BATCH, NativePainter, StableDiffusionPainter
from avatar_app.diffusion.planner import Plan, in_parts, make_plan
from avatar_app.mesh.conditions import condition_renderer
from avatar_app.stages import ahead

FINISHED = 2  # batches of frames that the CPU engine finishes before they are asked for


class FrameGenerator:
    """Renders the frames of one anchor, without the face pass.

    preset_options: a `Preset` or a dict of its fields. The same seed and options give the same frames however the
    input is cut into chunks. dtype: None leaves the precision to the plan; plan: None makes one for the free memory.
    Raises InputError for options that the anchor cannot do.
    """

    def __init__(
        self,
        anchor: Anchor,
        preset_options: Preset | dict,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        seed: int = 0,
        plan: Plan | None = None,
    ):
        self._options = options = Preset.from_options(preset_options)
        self._device, self._seed = torch.device(device), seed
        plan = plan or plan_for(anchor, options, device, dtype)
        self.plan = replace(plan, dtype=dtype or plan.dtype)  # becomes smaller when memory runs out
        self._painter = _painter_of(anchor)(anchor, "body", options, self._device, self.plan.dtype, self.plan.offload)
        if engine_choice() == "compiled":
            self._painter.compile()
        self._anchor, self._plate = anchor, NO_PLATE
        if anchor.manifest.static_background and anchor.background is not None:
            self._plate = anchor.background.astype(np.float32)

    def prepare(self) -> None:
        """Loads and compiles what the first frames need; other work may go on meanwhile."""
        if self._painter.draws:
            self._painter.prepare()

    def frames(self, chunks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Chunks of any size -> uint8 RGB frames (n, height, width, 3), in order, a few at a time.

        A chunk holds posed vertices (n, V, 3) in metres, or ready condition maps or pictures (n, height, width, c) of
        the manifest's `condition_renderer`. Chunks are pulled only as far as the windows reach.
        """
        frames = self._frames(chunks)
        return ahead(frames, FINISHED) if self._painter.lookahead else frames

    @torch.inference_mode()
    def _frames(self, chunks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        conditions = ConditionBuffer(chunks, self._encode, self._painter.lookahead)
        if not conditions.available(1):
            return
        height, width = conditions.picture_size
        painter, options = self._painter, self._options
        noise = seeded_noise(painter.latent_shape(height, width), self._seed).to(painter.device)
        scheduler = painter.scheduler(self._seed)
        scheduler.set_timesteps(options.steps)
        predict = partial(self._predict, conditions)
        windows = painter.windows(conditions.available, options)
        for frames, latents in stream_denoise(predict, scheduler, noise, windows, self.plan.group):
            yield from self._decode(conditions, frames, latents)
            conditions.forget(frames.stop)

    def restart(self, frame: int, length: int, chunk: int = BATCH) -> int:
        """Where a run must begin to make `frame`, and all later ones of `length`, as a run from frame 0 makes them.

        A multiple of `chunk`, the length of the condition chunks. Equal to the bit, because all windows and batches
        come out the same: the run begins where they repeat, and early enough for what frames learn of earlier ones.
        """
        period, reach = self._painter.rhythm(self._options)
        end = length - 2 * self._options.window if reach else frame  # whole windows must be left for the end
        together = math.lcm(period * self.plan.group, BATCH, chunk)
        return max(0, min(frame - reach, end)) // together * together

    def _predict(
        self, conditions: "ConditionBuffer", latents: Tensor, timesteps: Tensor, frames: list[slice]
    ) -> Tensor:
        """Windows (k, n, z, h, w), as many at once as the memory holds."""

        def part(now: slice) -> Tensor:
            condition = [conditions.take(window, self._painter.for_unet) for window in frames[now]]
            condition = condition[0] if len(condition) == 1 else tuple(map(torch.cat, zip(*condition, strict=True)))
            folded = latents[now].flatten(0, 1)
            each = timesteps[now].to(folded.device).repeat_interleave(latents.shape[1])  # a scheduler's is on the CPU
            output = self._painter.predict(folded, each, condition, latents.shape[1])
            return output.to(latents.dtype).view_as(latents[now])

        return torch.cat(list(self._in_parts(part, len(frames), "windows")))

    def _decode(self, conditions: "ConditionBuffer", frames: slice, latents: Tensor) -> Iterator[np.ndarray]:
        def part(now: slice) -> np.ndarray:
            video = slice(frames.start + now.start, frames.start + now.stop)
            condition = conditions.take(video, self._painter.for_decoder)
            shares = conditions.take(video, slice(-1, None))[0] if len(self._plate) else None
            return self._painter.paint(latents[now], condition, self._plate, shares)

        return self._in_parts(part, len(latents), "frames")

    def _in_parts(self, work: Callable[[slice], object], count: int, size: str) -> Iterator:
        """work(slice) for parts of 0...count, each as large as the plan's `size`, which shrinks if memory runs out."""

        def part(now: slice, plan: Plan) -> object:
            self._painter.offload = plan.offload
            return work(now)

        for result, plan in in_parts(part, count, size, self.plan, self._device):
            self.plan = plan
            yield result

    def _encode(self, chunk: np.ndarray) -> tuple[tuple[int, int], tuple[Tensor, ...]]:
        """A chunk's picture size (height, width) and its encoded conditions, the person's surroundings last."""
        camera = self._anchor.camera
        if chunk.ndim == 3:
            if self._painter.draws:
                condition, surroundings = self._painter.draw(chunk)
                return (camera.height, camera.width), (*condition, surroundings)
            chunk = condition_renderer(self._anchor.manifest.condition)(self._anchor.body, chunk, camera)
        mask = torch.from_numpy(person_mask(chunk)) if len(self._plate) else torch.zeros(len(chunk), 1, 1)
        return chunk.shape[1:3], (*self._painter.encode(chunk), coarse_surroundings(mask))


def plan_for(
    anchor: Anchor,
    preset_options: Preset | dict,
    device: str | torch.device,
    dtype: torch.dtype | None = None,
    part: str = "body",
) -> Plan:
    """What is computed at once in the memory that is free now; part: "body" or "face". Raises InputError."""
    painter, options, device = _painter_of(anchor), Preset.from_options(preset_options), torch.device(device)
    needs = painter.needs(anchor, part, options)
    if part == "face":  # painted and decoded in one go, in 32 bits as the original does
        return make_plan(device, replace(needs, frame=needs.frame + needs.window), dtype=dtype or torch.float32)
    return make_plan(device, needs, dtype=dtype or painter.best_dtype(device))


def plans_for(anchor: Anchor, preset_options: Preset | dict, device: str | torch.device) -> dict[str, dict]:
    """The plans of a video's parts, "body" and perhaps "face", as JSON."""
    options = Preset.from_options(preset_options)
    parts = ["body", "face"] if options.face and anchor.has_face else ["body"]
    return {part: plan_for(anchor, options, device, part=part).to_dict() for part in parts}


def _painter_of(anchor: Anchor) -> type:
    return NativePainter if anchor.manifest.kind == "native" else StableDiffusionPainter


class ConditionBuffer:
    """The conditions of the frames in flight: read on demand, encoded once, forgotten when their frames are out."""

    def __init__(
        self,
        chunks: Iterable[np.ndarray],
        encode: Callable[[np.ndarray], tuple[tuple[int, int], tuple[Tensor, ...]]],
        lookahead: int = 0,
    ):
        """encode(batch): picture size and conditions.   lookahead: batches that are read and encoded in threads of
        their own before they are asked for."""
        read = batches(ahead(chunks, 1) if lookahead else chunks, BATCH)
        encoded = ((len(batch), *encode(batch)) for batch in read)
        self._batches = ahead(encoded, lookahead) if lookahead else encoded
        self._kept: deque[tuple[range, tuple[Tensor, ...]]] = deque()  # (frames, their encoded conditions)
        self._read = 0
        self.picture_size: tuple[int, int] | None = None  # (height, width)

    def available(self, count: int) -> int:
        """How many of the first `count` frames there are; reads just enough to know."""
        while self._read < count:
            batch = next(self._batches, None)
            if batch is None:
                break
            length, self.picture_size, encoded = batch
            self._kept.append((range(self._read, self._read + length), encoded))
            self._read += length
        return min(count, self._read)

    def take(self, frames: slice, parts: slice) -> tuple[Tensor, ...]:
        """Some parts of the encoded conditions of some frames, (n, ...) each; a view where they lie together."""
        found = []
        for kept, tensors in self._kept:
            if kept.start < frames.stop and frames.start < kept.stop:
                rows = slice(max(frames.start - kept.start, 0), frames.stop - kept.start)
                found.append([tensor[rows] for tensor in tensors[parts]])
        return tuple(pieces[0] if len(pieces) == 1 else torch.cat(pieces) for pieces in zip(*found, strict=True))

    def forget(self, before: int) -> None:
        """Let go of all conditions whose frames lie wholly before frame `before`."""
        while self._kept and self._kept[0][0].stop <= before:
            self._kept.popleft()


def batches(chunks: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Cut chunks (n, ...) of any length anew into arrays of `size` frames; only the last may be shorter."""
    rest: np.ndarray | None = None
    for chunk in chunks:
        rest = chunk if rest is None or not len(rest) else np.concatenate([rest, chunk])
        while len(rest) >= size:
            yield rest[:size]
            rest = rest[size:]
    if rest is not None and len(rest):
        yield rest
