"""Condition maps in, video frames out: lazily, in order, in memory that does not grow with the length.

Two kinds of anchors share the loop. A native anchor has small networks that predict the clean latents directly and, as
a rule, every frame on its own. A stable-diffusion anchor has a UNet and a ControlNet of Make-Your-Anchor's kind, which
predict the noise of a window of frames together under classifier-free guidance.
"""

import json
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from avatar_app.anchors import Anchor, Preset
from avatar_app.diffusion.denoise import OneStep, Windows, guide, seeded_noise, stream_denoise
from avatar_app.diffusion.engine import EngineNetworks, each, engine_wanted
from avatar_app.diffusion.features import PARTS, Condition, compose
from avatar_app.diffusion.lora import merge_lora
from avatar_app.diffusion.planner import (
    VALUES_PER_LATENT,
    VALUES_PER_PIXEL,
    Needs,
    Plan,
    in_parts,
    make_plan,
    weight_count,
)
from avatar_app.diffusion.windows import Available, compat_windows, native_windows, shifted_windows
from avatar_app.mesh.conditions import PART, render_conditions
from avatar_app.stages import ahead
from talkshow_bridge.errors import InputError
from talkshow_bridge.motion import Motion

BATCH = 4  # frames that are encoded or, where frames do not see each other, predicted at a time
LOOKAHEAD = 3  # batches that the CPU engine encodes while the UNet is at work
FINISHED = 2  # batches of frames that it finishes before they are asked for
NATIVE_SCHEDULER = {
    "num_train_timesteps": 1000,
    "prediction_type": "sample",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "clip_sample": False,
}


class FrameGenerator:
    """Renders the frames of one anchor, without the face pass.

    preset_options: a `Preset` or a dict of its fields. The same seed and options give the same frames however the
    input is cut into chunks. dtype: None leaves the precision to the plan; plan: None makes one for the free memory.
    compiled: torch.compile the networks, half a minute or more that only long videos on a GPU win back.
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
        compiled: bool = False,
    ):
        self._options = options = Preset.from_options(preset_options)
        self._device, self._seed = torch.device(device), seed
        plan = plan or plan_for(anchor, options, device, dtype)
        self._plan = replace(plan, dtype=dtype or plan.dtype)
        self._painter = _painter_of(anchor)(anchor, "body", options, self._device, self._plan.dtype, self._plan.offload)
        if compiled:
            self._painter.compile()
        self._plate = None
        if anchor.manifest.static_background and anchor.background is not None:
            self._plate = anchor.background.astype(np.float32)

    def frames(self, chunks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Condition chunks of any size -> uint8 RGB frames (n, height, width, 3), in order, a few at a time.

        A chunk holds float32 maps (n, height, width, 10) of `render_conditions`, or, for an anchor trained on mesh
        pictures, uint8 RGB pictures (n, height, width, 3). Chunks are pulled only as far as the windows reach.
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
        for frames, latents in stream_denoise(predict, scheduler, noise, windows, self._plan.windows):
            yield from self._decode(conditions, frames, latents)
            conditions.forget(frames.stop)

    def restart(self, frame: int, length: int, chunk: int = BATCH) -> int:
        """Where a run must begin to make `frame`, and all later ones of `length`, as a run from frame 0 makes them.

        A multiple of `chunk`, the length of the condition chunks. Equal to the bit, because all windows and batches
        come out the same: the run begins where they repeat, and early enough for what frames learn of earlier ones.
        """
        period, reach = self._painter.rhythm(self._options)
        end = length - 2 * self._options.window if reach else frame  # whole windows must be left for the end
        together = math.lcm(period * self._plan.windows, BATCH, chunk)
        return max(0, min(frame - reach, end)) // together * together

    def _predict(
        self, conditions: "ConditionBuffer", latents: Tensor, timesteps: Tensor, frames: list[slice]
    ) -> Tensor:
        """Windows (k, n, z, h, w), as many at once as the memory holds."""

        def part(now: slice) -> Tensor:
            condition = [self._condition(conditions, window) for window in frames[now]]
            condition = condition[0] if len(condition) == 1 else tuple(map(torch.cat, zip(*condition, strict=True)))
            folded = latents[now].flatten(0, 1)
            each = timesteps[now].repeat_interleave(latents.shape[1])
            output = self._painter.predict(folded, each, condition, latents.shape[1])
            return output.to(latents.dtype).view_as(latents[now])

        return torch.cat(list(self._in_parts(part, len(frames), "windows")))

    def _decode(self, conditions: "ConditionBuffer", frames: slice, latents: Tensor) -> Iterator[np.ndarray]:
        def part(now: slice) -> np.ndarray:
            video = slice(frames.start + now.start, frames.start + now.stop)
            pictures = self._painter.decode(latents[now], self._condition(conditions, video))
            return self._finish(pictures, conditions, video)

        return self._in_parts(part, len(latents), "frames")

    def _in_parts(self, work: Callable[[slice], object], count: int, size: str) -> Iterator:
        """work(slice) for parts of 0...count, each as large as the plan's `size`, which shrinks if memory runs out."""

        def part(now: slice, plan: Plan) -> object:
            self._painter.offload = plan.offload
            return work(now)

        for result, plan in in_parts(part, count, size, self._plan, self._device):
            self._plan = plan
            yield result

    def _encode(self, chunk: np.ndarray) -> tuple[Tensor, ...]:
        surroundings = () if self._plate is None else (coarse_surroundings(torch.from_numpy(person_mask(chunk))),)
        return (*self._painter.encode(chunk), *surroundings)

    def _condition(self, conditions: "ConditionBuffer", frames: slice) -> tuple[Tensor, ...]:
        tensors = conditions.take(frames)
        return tensors if self._plate is None else tensors[:-1]

    def _finish(self, pictures: Tensor, conditions: "ConditionBuffer", frames: slice) -> np.ndarray:
        """Pictures (n, 3, height, width) in 0..255 -> uint8 frames."""
        if self._plate is None:
            return to_frames(pictures if self._painter.truncates else pictures.round())
        pictures = pictures.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        result = np.empty(pictures.shape, np.uint8)
        shares = conditions.take(frames)[-1].numpy()

        def work(picture: np.ndarray, share: np.ndarray, out: np.ndarray) -> None:
            compose(picture, self._plate, share, self._painter.truncates, out)

        each(work, pictures, shares, result)
        return result


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


def pixel_count(anchor: Anchor, part: str) -> int:
    """Of the pictures that a part's networks paint."""
    manifest = anchor.manifest
    return manifest.width * manifest.height if part == "body" else manifest.face.resolution**2


def _painter_of(anchor: Anchor) -> type:
    return NativePainter if anchor.manifest.kind == "native" else StableDiffusionPainter


class ConditionBuffer:
    """The conditions of the frames in flight: read on demand, encoded once, forgotten when their frames are out."""

    def __init__(
        self, chunks: Iterable[np.ndarray], encode: Callable[[np.ndarray], tuple[Tensor, ...]], lookahead: int = 0
    ):
        """lookahead: batches that are read and encoded in threads of their own before they are asked for."""
        read = batches(ahead(chunks, 1) if lookahead else chunks, BATCH)
        encoded = ((len(batch), batch.shape[1:3], encode(batch)) for batch in read)
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

    def take(self, frames: slice) -> tuple[Tensor, ...]:
        """The encoded conditions of some frames, (n, ...) each; a view where they lie together."""
        parts = []
        for kept, tensors in self._kept:
            if kept.start < frames.stop and frames.start < kept.stop:
                part = slice(max(frames.start - kept.start, 0), frames.stop - kept.start)
                parts.append([tensor[part] for tensor in tensors])
        return tuple(pieces[0] if len(pieces) == 1 else torch.cat(pieces) for pieces in zip(*parts, strict=True))

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


class NativePainter:
    """The project's own small networks: predict clean latents, decode with the condition at hand."""

    truncates = False

    def __init__(
        self,
        anchor: Anchor,
        part: str,
        options: Preset,
        device: torch.device,
        dtype: torch.dtype,
        offload: bool = False,
    ):
        if options.guidance > 1 and not anchor.manifest.guided:
            raise InputError(f"Anchor '{anchor.id}' was trained without guidance: leave the guidance at 1.")
        if options.lora:
            raise InputError(f"Anchor '{anchor.id}' has networks of its own kind, which no LoRA fits: leave it at 0.")
        self.device, self.dtype, self.options = device, dtype, options
        self.offload = offload  # not needed: all networks together are smaller than one picture's values
        if anchor.body.part_names != PARTS:
            raise InputError(
                f"Anchor '{anchor.id}': its body does not have the parts {', '.join(PARTS)} in this order."
            )
        self.together, self.coupling = part == "body" and anchor.manifest.cross_frame_attention, None
        self._engine = engine_wanted(device, dtype) and not (self.together and options.pooled_keys)
        self.lookahead = LOOKAHEAD if self._engine else 0
        if self._engine:
            typical = partial(typical_maps, anchor) if options.int8 and part == "body" else None
            self.networks = EngineNetworks(anchor.file(part), self.together, typical)
        else:
            self._load(anchor.file(part))

    def _load(self, folder: Path) -> None:
        from avatar_app.diffusion.attention import FrameCoupling
        from avatar_app.diffusion.networks import NativeNetworks

        networks = NativeNetworks.load(folder).eval().requires_grad_(False)
        self.networks = networks.to(self.device, self.dtype, memory_format=torch.channels_last)
        if self.together:
            self.coupling = FrameCoupling(networks.unet, pooled_keys=self.options.pooled_keys)

    @staticmethod
    def best_dtype(device: torch.device) -> torch.dtype | None:
        return torch.float32

    @staticmethod
    def needs(anchor: Anchor, part: str, options: Preset) -> Needs:
        folder, pixels = anchor.file(part), pixel_count(anchor, part)
        unet, autoencoder = (read_config(folder / name) for name in ("unet", "autoencoder"))
        latents = pixels // autoencoder["downscale"] ** 2
        frames = options.window if anchor.manifest.cross_frame_attention else BATCH
        frames = frames if part == "body" else 1
        return Needs(
            weights=weight_count(folder),
            window=frames * VALUES_PER_LATENT * unet["block_out_channels"][0] * latents,
            frame=VALUES_PER_PIXEL * autoencoder["decoder_widths"][0] * pixels,
        )

    def compile(self) -> None:
        if not self._engine:
            self.networks.unet.compile()

    def scheduler(self, seed: int = 0):
        if self.options.steps == 1 and self.options.scheduler == "ddim":
            return OneStep()
        from avatar_app.diffusion.samplers import make_scheduler

        return make_scheduler(self.options.scheduler, NATIVE_SCHEDULER, seed)

    def windows(self, available: Available, options: Preset) -> Windows:
        if not self.together:
            return compat_windows(available, BATCH, 0)  # every frame on its own
        return listed_windows(native_windows, available, options)

    def rhythm(self, options: Preset) -> tuple[int, int]:
        """After how many frames the windows repeat, and how many frames back a frame can learn from others."""
        return window_rhythm(options) if self.together else (BATCH, 0)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        return self.networks.latent_shape(height, width)

    def encode(self, maps: np.ndarray, place: np.ndarray | None = None) -> Condition:
        """place (n, 2, height, width): where the pixels lie in the whole picture, -1..1; None for the whole picture."""
        if self._engine:
            return self.networks.condition(maps, place)
        maps = torch.from_numpy(maps).permute(0, 3, 1, 2).to(self.device, self.dtype)
        place = None if place is None else torch.from_numpy(place).to(self.device, self.dtype)
        return self.networks.condition(maps, place)

    def predict(
        self, latents: Tensor, timestep: Tensor, condition: tuple[Tensor, ...], window: int | None = None
    ) -> Tensor:
        """latents (k * n, z, h, w) of windows of n = `window` frames (None: of one), timestep () or (k * n,)."""
        frames, latents, condition = window or len(latents), latents.to(self.dtype), Condition(*condition)
        conditional = self._predict(latents, timestep, condition, frames)
        if self.options.guidance <= 1:
            return conditional
        unconditional = self._predict(latents, timestep, condition.dropped(), frames)
        return guide(unconditional, conditional, self.options.guidance)

    def _predict(self, latents: Tensor, timestep: Tensor, condition: Condition, window: int) -> Tensor:
        if self._engine:
            return self.networks.predict(latents, timestep, condition, window)
        if self.coupling:
            self.coupling.state.frames = window
            self.coupling.state.latent_size = latents.shape[-2:]
        return self.networks.predict(latents, timestep, condition)

    def decode(self, latents: Tensor, condition: tuple[Tensor, ...]) -> Tensor:
        return to_bytes_range(self.networks.decode(latents.to(self.dtype), Condition(*condition)))


def typical_maps(anchor: Anchor) -> np.ndarray:
    """Condition maps (n, height, width, 10) of a few poses far apart, from which 8-bit arithmetic takes its ranges."""
    motion = Motion.rest(6, anchor.manifest.fps, anchor.body.expression_space)
    swing = np.linspace(-1, 1, len(motion), dtype=np.float32)
    left_shoulder, right_shoulder, left_elbow, right_elbow, head = 15, 16, 17, 18, 14  # rows of Motion.body
    motion.body[:, left_shoulder, 2], motion.body[:, right_shoulder, 2] = swing * 0.3 - 1, 1 + swing * 0.3
    motion.body[:, left_elbow, 1], motion.body[:, right_elbow, 1] = swing - 1.2, swing + 1.2
    motion.body[:, head, 1] = 0.4 * swing
    motion.jaw[:, 0] = 0.15 + 0.15 * swing
    return render_conditions(anchor.body, anchor.vertices(motion), anchor.camera)


class StableDiffusionPainter:
    """Networks of Make-Your-Anchor's kind: conditions are RGB pictures of the mesh, the prompt is a fixed embedding.

    Body networks look at all frames of a window as far as the manifest's `cross_frame_attention` and `compat` say. Face
    networks paint every frame on its own, and their UNet sees a mask and the masked picture besides.
    """

    lookahead = 0

    def __init__(
        self,
        anchor: Anchor,
        part: str,
        options: Preset,
        device: torch.device,
        dtype: torch.dtype,
        offload: bool = False,
    ):
        from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel

        from avatar_app.diffusion.attention import FrameCoupling

        self.device, self.dtype, self.options, self.offload = device, dtype, options, offload
        manifest, together = anchor.manifest, part == "body"
        self.unet = self._load(UNet2DConditionModel, anchor.file(f"{part}/unet"))
        self.controlnet = self._load(ControlNetModel, anchor.file(f"{part}/controlnet"))
        self.autoencoder = self._load(AutoencoderKL, own_or_common(anchor, part, "vae"))
        self._check_channels(anchor, part)
        if options.lora:
            merge_lora(self.unet, own_or_common(anchor, part, "lora.safetensors"), options.lora)
        embeddings = load_file(anchor.file(f"{part}/embeddings.safetensors"))
        self.embeddings = {name: value.to(device, dtype) for name, value in embeddings.items()}
        self.truncates = manifest.compat.truncate_pixels
        self._list_windows = compat_windows if manifest.compat.original_windows else native_windows
        self.coupling = FrameCoupling(
            self.unet,
            self.controlnet,
            cross_frame_attention=together and manifest.cross_frame_attention,
            pooled_keys=options.pooled_keys,
            shared_by_halves=options.guidance > 1,
            pooled_norm=together and manifest.compat.pooled_norm,
            residual_into_mid=together and manifest.compat.residual_into_mid,
        )
        self._schedule = DDIMScheduler.from_pretrained(anchor.file("scheduler")).config

    @staticmethod
    def best_dtype(device: torch.device) -> torch.dtype | None:
        return torch.float16 if device.type != "cpu" else None

    @staticmethod
    def needs(anchor: Anchor, part: str, options: Preset) -> Needs:
        vae_folder = own_or_common(anchor, part, "vae")
        unet, vae = read_config(anchor.file(f"{part}/unet")), read_config(vae_folder)
        pixels, frames = pixel_count(anchor, part), options.window if part == "body" else 1
        latents = pixels // 4 ** (len(vae["block_out_channels"]) - 1)
        return Needs(
            weights=sum(weight_count(folder) for folder in {anchor.file(part), vae_folder}),
            window=frames * VALUES_PER_LATENT * unet["block_out_channels"][0] * latents,
            frame=VALUES_PER_PIXEL * vae["block_out_channels"][0] * pixels,
        )

    def compile(self) -> None:
        self.unet.compile()
        self.controlnet.compile()

    def _load(self, network, folder: Path) -> torch.nn.Module:
        name = f"{folder.parent.name}/{folder.name}"
        try:
            model, report = network.from_pretrained(
                folder, torch_dtype=self.dtype, use_safetensors=True, output_loading_info=True, local_files_only=True
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"The weights in '{name}' cannot be read: {reason}") from None
        wrong = [*report["missing_keys"], *report["unexpected_keys"], *report["mismatched_keys"]]
        if wrong:
            raise InputError(f"The weights in '{name}' do not fit their configuration ('{wrong[0]}').")
        place = "cpu" if self.offload else self.device
        return model.eval().requires_grad_(False).to(place, memory_format=torch.channels_last)

    def _at_work(self, *networks: torch.nn.Module) -> None:
        """Where memory is short, only these networks are on the device."""
        if self.offload:
            for network in (self.unet, self.controlnet, self.autoencoder):
                if network not in networks:
                    network.to("cpu")
            for network in networks:
                network.to(self.device)

    def _check_channels(self, anchor: Anchor, part: str) -> None:
        latents = self.autoencoder.config.latent_channels
        expected = latents if part == "body" else 2 * latents + 1
        found = self.unet.config.in_channels
        if found != expected:
            raise InputError(f"Anchor '{anchor.id}': '{part}/unet' has {found} input channels, expected {expected}.")

    def scheduler(self, seed: int = 0):
        from avatar_app.diffusion.samplers import make_scheduler

        return make_scheduler(self.options.scheduler, self._schedule, seed)

    def windows(self, available: Available, options: Preset) -> Windows:
        return listed_windows(self._list_windows, available, options)

    def rhythm(self, options: Preset) -> tuple[int, int]:
        return window_rhythm(options)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(channels, height, width) of the latents of one picture. Raises InputError for an impossible picture size."""
        shrink = 2 ** (len(self.autoencoder.config.block_out_channels) - 1)
        multiple = shrink * 2 ** (len(self.unet.config.block_out_channels) - 1)
        if height % multiple or width % multiple:
            raise InputError(f"This anchor paints multiples of {multiple} pixels, which {width}x{height} is not.")
        return self.autoencoder.config.latent_channels, height // shrink, width // shrink

    def encode(self, pictures: np.ndarray) -> tuple[Tensor]:
        return (torch.from_numpy(pictures).permute(0, 3, 1, 2),)

    def predict(
        self, latents: Tensor, timestep: Tensor, condition: tuple[Tensor, ...], window: int | None = None
    ) -> Tensor:
        """latents (k * n, z, h, w) of windows of n = `window` frames (None: of one), timestep () or (k * n,).

        condition: mesh pictures uint8 (k * n, 3, height, width) and, for a face, inpainting channels (k * n, c, h, w).
        """
        self._at_work(self.unet, self.controlnet)
        self.coupling.state.frames = window or len(latents)
        self.coupling.state.latent_size = latents.shape[-2:]
        pictures, *channels = condition
        pictures = pictures.to(self.device, self.dtype) / 255
        noise = partial(self._noise, latents.to(self.dtype), timestep, pictures, channels)
        if self.options.guidance <= 1:
            return noise("prompt")
        return guide(noise("negative", half=0), noise("prompt", half=1), self.options.guidance)

    def _noise(
        self,
        latents: Tensor,
        timestep: Tensor,
        pictures: Tensor,
        channels: list[Tensor],
        prompt: str,
        half: int | None = None,
    ) -> Tensor:
        """Noise prediction under one prompt embedding for all frames; half: see `WindowState`."""
        embedding = self.embeddings[prompt].expand(len(latents), -1, -1)
        self.coupling.state.half = half
        down, middle = self.controlnet(
            latents, timestep, embedding, pictures, self.options.condition_scale, return_dict=False
        )
        self.coupling.state.mid_residual = down[-1]
        sample = torch.cat([latents, *channels], dim=1)
        return self.unet(
            sample, timestep, embedding, down_block_additional_residuals=down, mid_block_additional_residual=middle
        ).sample

    def decode(self, latents: Tensor, condition: tuple[Tensor, ...]) -> Tensor:
        self._at_work(self.autoencoder)
        latents = latents.to(self.dtype) / self.autoencoder.config.scaling_factor
        return to_bytes_range(self.autoencoder.decode(latents).sample)


def listed_windows(overlapping: Callable, available: Available, options: Preset) -> Windows:
    """What the preset's `windows` means; overlapping(length, size, overlap) lists those of "overlap"."""
    if options.windows == "shifted":
        return lambda step: shifted_windows(available, options.window, step)
    return overlapping(available, options.window, options.overlap)


def window_rhythm(options: Preset) -> tuple[int, int]:
    """(period, reach) in frames: each step carries news over one window, moving ones at first over up to two."""
    shifted = options.windows == "shifted"
    return options.window - (0 if shifted else options.overlap), options.window * (options.steps + shifted)


def own_or_common(anchor: Anchor, part: str, name: str) -> Path:
    """A file or folder of a part or, if the part brings none, the one for all parts. Raises InputError."""
    own = anchor.folder / part / name
    return own if own.exists() else anchor.file(name)


def read_config(folder: Path) -> dict:
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise InputError(f"'{folder.parent.name}/{folder.name}' has no readable config.json.") from None


def to_bytes_range(picture: Tensor) -> Tensor:
    """[-1, 1] -> float32 0..255, clamped."""
    return (picture.float() / 2 + 0.5).clamp(0, 1) * 255


def to_frames(pictures: Tensor) -> np.ndarray:
    """Pictures (n, 3, height, width) in 0..255 -> uint8 frames (n, height, width, 3), cutting off fractions."""
    return pictures.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def person_mask(chunk: np.ndarray) -> np.ndarray:
    """Condition chunk -> uint8 (n, height, width), 1 where the body is."""
    mask = chunk[..., PART] > 0 if chunk.shape[-1] > 3 else chunk.any(axis=-1)
    return mask.astype(np.uint8)


def soft_surroundings(mask: Tensor) -> Tensor:
    """Person mask (n, height, width) -> share of the generated picture (n, 1, height, width) in [0, 1].

    1 on the body and a margin of about 4 % of the height around it (hair, cloth, shadows), then fading to 0.
    """
    return functional.interpolate(coarse_surroundings(mask)[:, None], size=mask.shape[1:], mode="bilinear")


def coarse_surroundings(mask: Tensor) -> Tensor:
    """`soft_surroundings` at a quarter of the size along each side, (n, ceil(height / 4), ceil(width / 4))."""
    height = mask.shape[1]
    coarse = functional.max_pool2d(mask[:, None].float(), 4, ceil_mode=True)
    margin = max(1, round(0.04 * height / 4))
    fade = max(1, margin // 2)
    reach = margin + 2 * fade
    coarse = functional.max_pool2d(coarse, (2 * reach + 1, 1), 1, (reach, 0))
    coarse = functional.max_pool2d(coarse, (1, 2 * reach + 1), 1, (0, reach))
    for _ in range(2):
        padded = functional.pad(coarse, (fade, fade, fade, fade), mode="replicate")
        coarse = functional.avg_pool2d(padded, 2 * fade + 1, 1)
    return coarse[:, 0]
