"""Condition maps in, video frames out: lazily, in order, in memory that does not grow with the length.

Two kinds of anchors share the loop. A native anchor has small networks that predict the clean latents directly and, as
a rule, every frame on its own. A stable-diffusion anchor has a UNet and a ControlNet of Make-Your-Anchor's kind, which
predict the noise of a window of frames together under classifier-free guidance.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from avatar_app.anchors import Anchor, Preset
from avatar_app.diffusion.attention import FrameCoupling
from avatar_app.diffusion.denoise import guide, seeded_noise, stream_denoise
from avatar_app.diffusion.networks import PARTS, Condition, NativeNetworks
from avatar_app.diffusion.windows import compat_windows, native_windows
from avatar_app.mesh.conditions import PART
from talkshow_bridge.errors import InputError

BATCH = 4  # frames that are encoded, decoded or, where frames do not see each other, predicted at a time
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
    input is cut into chunks. Raises InputError for options that the anchor cannot do.
    """

    def __init__(
        self,
        anchor: Anchor,
        preset_options: Preset | dict,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ):
        options = Preset.from_options(preset_options)
        painter = NativePainter if anchor.manifest.kind == "native" else StableDiffusionPainter
        self._painter = painter(anchor, "body", options, torch.device(device), dtype)
        self._options = options
        self._seed = seed
        self._plate = None
        if anchor.manifest.static_background and anchor.background is not None:
            self._plate = torch.from_numpy(anchor.background.copy()).permute(2, 0, 1).float()

    @torch.inference_mode()
    def frames(self, chunks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Condition chunks of any size -> uint8 RGB frames (n, height, width, 3), in order, n at most `BATCH`.

        A chunk holds float32 maps (n, height, width, 10) of `render_conditions`, or, for an anchor trained on mesh
        pictures, uint8 RGB pictures (n, height, width, 3). Chunks are pulled only as far as the windows reach.
        """
        conditions = ConditionBuffer(chunks, self._encode)
        if not conditions.available(1):
            return
        height, width = conditions.picture_size
        painter, options = self._painter, self._options
        noise = seeded_noise(painter.latent_shape(height, width), self._seed).to(painter.device)
        scheduler = painter.scheduler()
        scheduler.set_timesteps(options.steps)

        def predict(latents: Tensor, timestep: Tensor, frames: slice) -> Tensor:
            return painter.predict(latents, timestep, self._condition(conditions, frames)).to(latents.dtype)

        windows = painter.windows(conditions.available, options)
        for frames, latents in stream_denoise(predict, scheduler, noise, windows):
            for start in range(frames.start, frames.stop, BATCH):
                part = slice(start, min(start + BATCH, frames.stop))
                pictures = painter.decode(
                    latents[start - frames.start : part.stop - frames.start], self._condition(conditions, part)
                )
                yield self._finish(pictures, conditions, part)
            conditions.forget(frames.stop)

    def _encode(self, chunk: np.ndarray) -> tuple[Tensor, ...]:
        person = () if self._plate is None else (torch.from_numpy(person_mask(chunk)),)
        return (*self._painter.encode(chunk), *person)

    def _condition(self, conditions: "ConditionBuffer", frames: slice) -> tuple[Tensor, ...]:
        tensors = conditions.take(frames)
        return tensors if self._plate is None else tensors[:-1]

    def _finish(self, pictures: Tensor, conditions: "ConditionBuffer", frames: slice) -> np.ndarray:
        """Pictures (n, 3, height, width) in 0..255 -> uint8 frames."""
        if self._plate is not None:
            share = soft_surroundings(conditions.take(frames)[-1])
            pictures = self._plate + share * (pictures.cpu() - self._plate)
        return to_frames(pictures if self._painter.truncates else pictures.round())


class ConditionBuffer:
    """The conditions of the frames in flight: read on demand, encoded once, forgotten when their frames are out."""

    def __init__(self, chunks: Iterable[np.ndarray], encode: Callable[[np.ndarray], tuple[Tensor, ...]]):
        self._batches = batches(chunks, BATCH)
        self._encode = encode
        self._kept: deque[tuple[range, tuple[Tensor, ...]]] = deque()  # (frames, their encoded conditions)
        self._read = 0
        self.picture_size: tuple[int, int] | None = None  # (height, width)

    def available(self, count: int) -> int:
        """How many of the first `count` frames there are; reads just enough to know."""
        while self._read < count:
            batch = next(self._batches, None)
            if batch is None:
                break
            self.picture_size = batch.shape[1:3]
            self._kept.append((range(self._read, self._read + len(batch)), self._encode(batch)))
            self._read += len(batch)
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

    def __init__(self, anchor: Anchor, part: str, options: Preset, device: torch.device, dtype: torch.dtype):
        if options.guidance > 1:
            raise InputError(f"Anchor '{anchor.id}' was trained without guidance: leave the guidance at 1.")
        self.device, self.dtype = device, dtype
        if anchor.body.part_names != PARTS:
            raise InputError(
                f"Anchor '{anchor.id}': its body does not have the parts {', '.join(PARTS)} in this order."
            )
        networks = NativeNetworks.load(anchor.file(part)).eval().requires_grad_(False)
        self.networks = networks.to(device, dtype, memory_format=torch.channels_last)
        together = part == "body" and anchor.manifest.cross_frame_attention
        self.coupling = FrameCoupling(networks.unet) if together else None

    def scheduler(self) -> DDIMScheduler:
        return DDIMScheduler(**NATIVE_SCHEDULER)

    def windows(self, available, options: Preset) -> Iterator[range]:
        if self.coupling is None:
            return compat_windows(available, BATCH, 0)  # every frame on its own
        return native_windows(available, options.window, options.overlap)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        return self.networks.latent_shape(height, width)

    def encode(self, maps: np.ndarray, place: np.ndarray | None = None) -> Condition:
        """place (n, 2, height, width): where the pixels lie in the whole picture, -1..1; None for the whole picture."""
        maps = torch.from_numpy(maps).permute(0, 3, 1, 2).to(self.device, self.dtype)
        place = None if place is None else torch.from_numpy(place).to(self.device, self.dtype)
        return self.networks.condition(maps, place)

    def predict(self, latents: Tensor, timestep: Tensor, condition: tuple[Tensor, ...]) -> Tensor:
        if self.coupling:
            self.coupling.state.frames = len(latents)
        return self.networks.predict(latents.to(self.dtype), int(timestep), Condition(*condition))

    def decode(self, latents: Tensor, condition: tuple[Tensor, ...]) -> Tensor:
        return to_bytes_range(self.networks.decode(latents.to(self.dtype), Condition(*condition)))


class StableDiffusionPainter:
    """Networks of Make-Your-Anchor's kind: conditions are RGB pictures of the mesh, the prompt is a fixed embedding.

    Body networks look at all frames of a window as far as the manifest's `cross_frame_attention` and `compat` say. Face
    networks paint every frame on its own, and their UNet sees a mask and the masked picture besides.
    """

    def __init__(self, anchor: Anchor, part: str, options: Preset, device: torch.device, dtype: torch.dtype):
        self.device, self.dtype, self.options = device, dtype, options
        manifest, together = anchor.manifest, part == "body"
        self.unet = self._load(UNet2DConditionModel, anchor.file(f"{part}/unet"))
        self.controlnet = self._load(ControlNetModel, anchor.file(f"{part}/controlnet"))
        own_vae = anchor.folder / part / "vae"
        self.autoencoder = self._load(AutoencoderKL, own_vae if own_vae.exists() else anchor.file("vae"))
        self._check_channels(anchor, part)
        embeddings = load_file(anchor.file(f"{part}/embeddings.safetensors"))
        self.embeddings = {name: value.to(device, dtype) for name, value in embeddings.items()}
        self.truncates = manifest.compat.truncate_pixels
        self._list_windows = compat_windows if manifest.compat.original_windows else native_windows
        self.coupling = FrameCoupling(
            self.unet,
            self.controlnet,
            cross_frame_attention=together and manifest.cross_frame_attention,
            pooled_norm=together and manifest.compat.pooled_norm,
            residual_into_mid=together and manifest.compat.residual_into_mid,
        )
        self._scheduler = DDIMScheduler.from_pretrained(anchor.file("scheduler"))

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
        return model.eval().requires_grad_(False).to(self.device, memory_format=torch.channels_last)

    def _check_channels(self, anchor: Anchor, part: str) -> None:
        latents = self.autoencoder.config.latent_channels
        expected = latents if part == "body" else 2 * latents + 1
        found = self.unet.config.in_channels
        if found != expected:
            raise InputError(f"Anchor '{anchor.id}': '{part}/unet' has {found} input channels, expected {expected}.")

    def scheduler(self) -> DDIMScheduler:
        return self._scheduler

    def windows(self, available, options: Preset) -> Iterator[range]:
        return self._list_windows(available, options.window, options.overlap)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(channels, height, width) of the latents of one picture. Raises InputError for an impossible picture size."""
        shrink = 2 ** (len(self.autoencoder.config.block_out_channels) - 1)
        multiple = shrink * 2 ** (len(self.unet.config.block_out_channels) - 1)
        if height % multiple or width % multiple:
            raise InputError(f"This anchor paints multiples of {multiple} pixels, which {width}x{height} is not.")
        return self.autoencoder.config.latent_channels, height // shrink, width // shrink

    def encode(self, pictures: np.ndarray) -> tuple[Tensor]:
        return (torch.from_numpy(pictures).permute(0, 3, 1, 2),)

    def predict(self, latents: Tensor, timestep: Tensor, condition: tuple[Tensor, ...]) -> Tensor:
        """condition: mesh pictures uint8 (n, 3, height, width) and, for a face, inpainting channels (n, c, h, w)."""
        pictures, *channels = condition
        pictures = pictures.to(self.device, self.dtype) / 255
        conditional = self._noise(latents, timestep, pictures, channels, self.embeddings["prompt"])
        if self.options.guidance <= 1:
            return conditional
        unconditional = self._noise(latents, timestep, pictures, channels, self.embeddings["negative"])
        return guide(unconditional, conditional, self.options.guidance)

    def _noise(self, latents: Tensor, timestep: Tensor, pictures: Tensor, channels: list, embedding: Tensor) -> Tensor:
        """Noise prediction under one prompt embedding (1, tokens, width) for all frames of a window."""
        latents, embedding = latents.to(self.dtype), embedding.expand(len(latents), -1, -1)
        state = self.coupling.state
        state.frames = len(latents)
        down, middle = self.controlnet(
            latents, timestep, embedding, pictures, self.options.condition_scale, return_dict=False
        )
        state.mid_residual = down[-1]
        sample = torch.cat([latents, *channels], dim=1)
        return self.unet(
            sample, timestep, embedding, down_block_additional_residuals=down, mid_block_additional_residual=middle
        ).sample

    def decode(self, latents: Tensor, condition: tuple[Tensor, ...]) -> Tensor:
        latents = latents.to(self.dtype) / self.autoencoder.config.scaling_factor
        return to_bytes_range(torch.cat([self.autoencoder.decode(frame).sample for frame in latents.split(1)]))


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
    height, width = mask.shape[1:]
    coarse = functional.max_pool2d(mask[:, None].float(), 4, ceil_mode=True)
    margin = max(1, round(0.04 * height / 4))
    fade = max(1, margin // 2)
    reach = margin + 2 * fade
    coarse = functional.max_pool2d(coarse, (2 * reach + 1, 1), 1, (reach, 0))
    coarse = functional.max_pool2d(coarse, (1, 2 * reach + 1), 1, (0, reach))
    for _ in range(2):
        padded = functional.pad(coarse, (fade, fade, fade, fade), mode="replicate")
        coarse = functional.avg_pool2d(padded, 2 * fade + 1, 1)
    return functional.interpolate(coarse, size=(height, width), mode="bilinear")
