"""Two kinds of networks behind one face: what a condition is to them, how they predict and how they paint.

A native anchor has small networks that predict the clean latents directly and, as a rule, every frame on its own. A
stable-diffusion anchor has a UNet and a ControlNet of Make-Your-Anchor's kind, which predict the noise of a window of
frames together under classifier-free guidance.

`encode` gives a condition as a tuple of tensors; `for_unet` and `for_decoder` are the parts that `predict` and `decode`
or `paint` want.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from avatar_app.anchors import Anchor, Preset
from avatar_app.diffusion.denoise import NATIVE_SCHEDULER, OneStep, Windows, guide
from avatar_app.diffusion.engine import EngineNetworks, engine_wanted
from avatar_app.diffusion.features import PARTS, Condition
from avatar_app.diffusion.frames import NO_PLATE, composed, spread, to_bytes_range
from avatar_app.diffusion.lora import merge_lora
from avatar_app.diffusion.planner import VALUES_PER_LATENT, VALUES_PER_PIXEL, Needs, weight_count
from avatar_app.diffusion.windows import Available, compat_windows, native_windows, shifted_windows
from avatar_app.mesh.conditions import render_conditions
from avatar_app.stages import each
from avatar_app.weights import read_config
from talkshow_bridge.errors import InputError
from talkshow_bridge.motion import Motion

BATCH = 4  # frames that are encoded or, where frames do not see each other, predicted at a time
LOOKAHEAD = 3  # batches that the CPU engine encodes while the UNet is at work


class NativePainter:
    """The project's own small networks: predict clean latents, decode with the condition at hand.

    typical: makes maps and places as `encode` takes them, like those to come; None for the whole picture.
    """

    truncates = False
    for_unet, for_decoder = slice(0, 1), slice(1, 3)

    def __init__(
        self,
        anchor: Anchor,
        part: str,
        options: Preset,
        device: torch.device,
        dtype: torch.dtype,
        offload: bool = False,
        typical: Callable[[], tuple] | None = None,
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
        self.draws = self._engine
        self.lookahead = LOOKAHEAD if self._engine else 0
        self._anchor = anchor
        if self._engine:
            typical = (typical or partial(typical_maps, anchor)) if options.int8 else None
            self.networks = EngineNetworks(anchor.file(part), self.together, typical)
        else:
            self._load(anchor.file(part))

    @torch.inference_mode()
    def prepare(self) -> None:
        """Only where it `draws`: the body at rest goes through all networks, compiled for whole windows."""
        camera, window = self._anchor.camera, self.options.window if self.together else 1
        condition, _ = self.draw(self._anchor.body.vertices[None])
        latents = torch.zeros(window, *self.latent_shape(camera.height, camera.width))
        clean = self.networks.predict(latents, 999, condition.latent.expand(window, -1, -1, -1), window)
        self.networks.paint(clean[:1], *condition[self.for_decoder])

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
        unet, autoencoder = (read_config(folder / name / "config.json", "networks") for name in ("unet", "autoencoder"))
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

    def draw(self, vertices: np.ndarray) -> tuple[Condition, Tensor]:
        """Only where it `draws`: posed vertices (n, V, 3) -> what `encode` makes of their maps, and surroundings."""
        condition, coarse = self.networks.draw(self._anchor.body, vertices, self._anchor.camera)
        each(lambda one: spread(one, self._anchor.camera.height), coarse)
        return condition, torch.from_numpy(coarse)

    def predict(
        self, latents: Tensor, timestep: Tensor, condition: tuple[Tensor, ...], window: int | None = None
    ) -> Tensor:
        """latents (k * n, z, h, w) of windows of n = `window` frames (None: of one), timestep () or (k * n,)."""
        frames, latents, condition = window or len(latents), latents.to(self.dtype), condition[0]
        conditional = self._predict(latents, timestep, condition, frames)
        if self.options.guidance <= 1:
            return conditional
        unconditional = self._predict(latents, timestep, torch.zeros_like(condition), frames)
        return guide(unconditional, conditional, self.options.guidance)

    def _predict(self, latents: Tensor, timestep: Tensor, condition: Tensor, window: int) -> Tensor:
        if self._engine:
            return self.networks.predict(latents, timestep, condition, window)
        if self.coupling:
            self.coupling.state.frames = window
            self.coupling.state.latent_size = latents.shape[-2:]
        return self.networks.predict(latents, timestep, Condition(condition, None, None))

    def paint(
        self,
        latents: Tensor,
        condition: tuple[Tensor, ...],
        plate: np.ndarray = NO_PLATE,
        shares: Tensor | None = None,
    ) -> np.ndarray:
        """Clean latents -> uint8 frames (n, height, width, 3), over a plate where `shares` of `compose` say so."""
        shares = None if shares is None else shares.numpy()
        if self._engine:
            return self.networks.paint(latents, *condition, plate, shares)
        pictures = self.networks.decode(latents.to(self.dtype), Condition(None, *condition))
        return composed(to_bytes_range(pictures), plate, shares)


def typical_maps(anchor: Anchor) -> tuple[np.ndarray, None]:
    """Whole condition maps of `typical_poses`, and no places."""
    return render_conditions(anchor.body, typical_poses(anchor), anchor.camera), None


def typical_poses(anchor: Anchor) -> np.ndarray:
    """Vertices (n, V, 3) of a few poses far apart, from which 8-bit arithmetic takes its ranges."""
    motion = Motion.rest(6, anchor.manifest.fps, anchor.body.expression_space)
    swing = np.linspace(-1, 1, len(motion), dtype=np.float32)
    left_shoulder, right_shoulder, left_elbow, right_elbow, head = 15, 16, 17, 18, 14  # rows of Motion.body
    motion.body[:, left_shoulder, 2], motion.body[:, right_shoulder, 2] = swing * 0.3 - 1, 1 + swing * 0.3
    motion.body[:, left_elbow, 1], motion.body[:, right_elbow, 1] = swing - 1.2, swing + 1.2
    motion.body[:, head, 1] = 0.4 * swing
    motion.jaw[:, 0] = 0.15 + 0.15 * swing
    return anchor.vertices(motion)


class StableDiffusionPainter:
    """Networks of Make-Your-Anchor's kind: conditions are RGB pictures of the mesh, the prompt is a fixed embedding.

    Body networks look at all frames of a window as far as the manifest's `cross_frame_attention` and `compat` say. Face
    networks paint every frame on its own, and their UNet sees a mask and the masked picture besides.
    """

    lookahead, draws = 0, False
    for_unet, for_decoder = slice(0, 1), slice(0, 0)

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
        unet, vae = (
            read_config(folder / "config.json", "networks") for folder in (anchor.file(f"{part}/unet"), vae_folder)
        )
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

    def _load(self, network: type, folder: Path) -> torch.nn.Module:
        """Not by `from_pretrained`, which alters torch for all threads while it works, nor by its own `to`,
        which warns of rounding."""
        from avatar_app.stable_diffusion import open_network

        place = "cpu" if self.offload else self.device
        model = open_network(network, folder).eval().requires_grad_(False)
        return torch.nn.Module.to(model, place, self.dtype, memory_format=torch.channels_last)

    def at_work(self, *networks: torch.nn.Module) -> None:
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
        self.at_work(self.unet, self.controlnet)
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
        self.at_work(self.autoencoder)
        latents = latents.to(self.dtype) / self.autoencoder.config.scaling_factor
        return to_bytes_range(self.autoencoder.decode(latents).sample)

    def paint(
        self,
        latents: Tensor,
        condition: tuple[Tensor, ...] = (),
        plate: np.ndarray = NO_PLATE,
        shares: Tensor | None = None,
    ) -> np.ndarray:
        """Clean latents -> uint8 frames (n, height, width, 3), over a plate where `shares` of `compose` say so."""
        shares = None if shares is None else shares.numpy()
        return composed(self.decode(latents, condition), plate, shares, self.truncates)


def listed_windows(overlapping: Callable, available: Available, options: Preset) -> Windows:
    """What the preset's `windows` means; overlapping(length, size, overlap) lists those of "overlap"."""
    if options.windows == "shifted":
        return lambda step: shifted_windows(available, options.window, step)
    return overlapping(available, options.window, options.overlap)


def window_rhythm(options: Preset) -> tuple[int, int]:
    """(period, reach) in frames: each step carries news over one window, moving ones at first over up to two."""
    shifted = options.windows == "shifted"
    return options.window - (0 if shifted else options.overlap), options.window * (options.steps + shifted)


def pixel_count(anchor: Anchor, part: str) -> int:
    """Of the pictures that a part's networks paint."""
    manifest = anchor.manifest
    return manifest.width * manifest.height if part == "body" else manifest.face.resolution**2


def own_or_common(anchor: Anchor, part: str, name: str) -> Path:
    """A file or folder of a part or, if the part brings none, the one for all parts. Raises InputError."""
    own = anchor.folder / part / name
    return own if own.exists() else anchor.file(name)
