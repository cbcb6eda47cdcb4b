"""The small personalised networks of a native anchor: neural texture, condition encoder, UNet, autoencoder.

One light condition encoder is run once per frame and its result is concatenated to the noisy latents at every step (the
cheap relative of a ControlNet), and the decoder sees the condition too, at half resolution, so that lips, eyes and
fingers are as sharp as the mesh says.  The neural texture is sampled where the condition map's texture coordinates
point: it remembers the person's skin, cloth and hair, its first three channels being plain colours.

The same class serves the whole picture (body) and the head crop (face).
"""

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional

from avatar_app.diffusion.compact import load_compact, save_compact
from avatar_app.diffusion.features import OUTLINE, PART_GROUPS, PARTS, Condition
from avatar_app.mesh.conditions import INVERSE_DEPTH, NORMAL, PART, UV
from avatar_app.weights import outline, read_config
from talkshow_bridge.errors import InputError

LATENT_BOUND = 3.0  # latents are squashed into (-3, 3)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions without normalisation: crops and whole pictures give the same result."""

    def __init__(self, channels: int):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(functional.silu(self.first(functional.silu(x))))


class ConditionEncoder(ModelMixin, ConfigMixin):
    """Condition maps (N, 10, H, W) -> `Condition`.

    texture_channels includes three of colour. plate_size (height, width), if any, makes room for the picture of the
    empty set, which stands where no body is. downscale: pixels per latent along a side, 8 or 16.
    """

    @register_to_config
    def __init__(
        self,
        texture_size: tuple[int, int] = (384, 768),
        texture_channels: int = 6,
        width: int = 48,
        latent_width: int = 48,
        detail_width: int = 24,
        downscale: int = 16,
        plate_size: tuple[int, int] | None = None,
    ):
        super().__init__()
        self.texture = nn.Parameter(torch.zeros(1, texture_channels, *texture_size))
        self.plate = nn.Parameter(torch.zeros(1, 3, *(plate_size or (1, 1))), requires_grad=False)
        features = texture_channels + 3 + len(PART_GROUPS) + 2
        self.detail = nn.Conv2d(features, detail_width, 4, stride=2, padding=1)
        blocks, channels = [], detail_width
        for _ in range(downscale.bit_length() - 2):
            blocks += [nn.SiLU(), nn.Conv2d(channels, width, 4, stride=2, padding=1), ResidualBlock(width)]
            channels = width
        self.down = nn.Sequential(*blocks, nn.SiLU(), nn.Conv2d(width, latent_width, 3, padding=1))

    def forward(self, maps: Tensor, place: Tensor | None = None) -> Condition:
        features, base = self.features(maps, place)
        detail = self.detail(features)
        return Condition(self.down(detail), detail, base)

    def features(self, maps: Tensor, place: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Per-pixel features (N, F, H, W) and the base picture (N, 3, H, W).

        place (N, 2, H, W): where each pixel lies in the whole picture, -1..1; the whole picture itself when absent."""
        part = maps[:, PART]
        body = (part > 0).unsqueeze(1).to(maps.dtype)
        plate = self._plate(maps, place)
        place = picture_grid(maps) if place is None else place
        uv = maps[:, UV].permute(0, 2, 3, 1)
        grid = torch.stack([2 * uv[..., 0] - 1, 1 - 2 * uv[..., 1]], -1)
        texture = self.texture.expand(len(maps), -1, -1, -1)
        texture = functional.grid_sample(texture, grid, align_corners=False) * body
        base = soften_outlines(texture[:, :3] + (1 - body) * plate, maps[:, INVERSE_DEPTH])
        masks = [
            sum((part == PARTS.index(name) + 1).to(maps.dtype) for name in group).unsqueeze(1) for group in PART_GROUPS
        ]
        return torch.cat([base, texture[:, 3:], maps[:, NORMAL], *masks, place], 1), base

    def _plate(self, maps: Tensor, place: Tensor | None) -> Tensor:
        if place is None and self.plate.shape[-2:] == maps.shape[-2:]:
            return self.plate
        place = picture_grid(maps) if place is None else place
        plate = self.plate.expand(len(place), -1, -1, -1)
        return functional.grid_sample(plate, place.permute(0, 2, 3, 1), align_corners=False, padding_mode="border")


class Autoencoder(ModelMixin, ConfigMixin):
    """Pictures <-> latents; the decoder starts from the condition's base picture and corrects it."""

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 16,
        downscale: int = 16,
        encoder_widths: tuple[int, ...] = (24, 40, 64, 96),
        decoder_widths: tuple[int, ...] = (24, 48, 72, 96),
        detail_width: int = 24,
    ):
        super().__init__()
        levels = downscale.bit_length() - 1  # pixel (un)shuffle makes the first halving
        widths = encoder_widths[:levels]
        encoder = [nn.PixelUnshuffle(2), nn.Conv2d(12, widths[0], 3, padding=1)]
        for narrow, wide in zip(widths, widths[1:], strict=False):
            encoder += [ResidualBlock(narrow), nn.Conv2d(narrow, wide, 3, stride=2, padding=1)]
        self.encoder = nn.Sequential(
            *encoder, ResidualBlock(widths[-1]), nn.Conv2d(widths[-1], latent_channels, 3, padding=1)
        )
        widths = decoder_widths[:levels]
        decoder = [nn.Conv2d(latent_channels, widths[-1], 3, padding=1)]
        for wide, narrow in zip(widths[::-1], widths[-2::-1], strict=False):
            decoder += [ResidualBlock(wide), nn.Conv2d(wide, 4 * narrow, 1), nn.PixelShuffle(2)]
        self.decoder = nn.Sequential(*decoder)
        self.merge = nn.Conv2d(detail_width + widths[0], widths[0], 3, padding=1)
        self.finish = nn.Sequential(ResidualBlock(widths[0]), nn.SiLU())
        self.paint = nn.Conv2d(widths[0], 12, 3, padding=1)
        nn.init.zeros_(self.paint.weight)
        nn.init.zeros_(self.paint.bias)

    def encode(self, pictures: Tensor) -> Tensor:
        return LATENT_BOUND * torch.tanh(self.encoder(pictures) / LATENT_BOUND)

    def decode(self, latents: Tensor, condition: Condition) -> Tensor:
        half = self.merge(torch.cat([self.decoder(latents), functional.silu(condition.detail)], 1))
        return condition.base + functional.pixel_shuffle(self.paint(self.finish(half)), 2)


class NativeNetworks(nn.Module):
    """All networks of one picture (body or face); see the module's docstring.

    condition / autoencoder: keyword arguments of `ConditionEncoder` / `Autoencoder`; unet_widths: channels per level.
    """

    def __init__(
        self,
        condition: dict | None = None,
        autoencoder: dict | None = None,
        unet_widths: tuple[int, ...] = (64, 96, 144),
        *,
        networks: tuple | None = None,
    ):
        super().__init__()
        if networks is None:
            autoencoder, encoder = Autoencoder(**autoencoder or {}), ConditionEncoder(**condition or {})
            networks = (
                encoder,
                small_unet(autoencoder.config.latent_channels, encoder.config.latent_width, unet_widths),
                autoencoder,
            )
        self.condition_encoder, self.unet, self.autoencoder = networks
        token = torch.zeros(1, 1, self.unet.config.cross_attention_dim)
        self.register_buffer("token", token, persistent=False)  # there is no prompt: the person is in the weights

    def condition(self, maps: Tensor, place: Tensor | None = None) -> Condition:
        """Condition maps (N, 10, H, W) float32 -> what `predict` and `decode` need, once per frame."""
        return self.condition_encoder(maps, place)

    def predict(self, latents: Tensor, timestep: Tensor | int, condition: Condition) -> Tensor:
        """Noisy latents (N, z, h, w) at `timestep` (int or (N,)) -> predicted clean latents."""
        token = self.token.to(latents.dtype).expand(len(latents), -1, -1)
        return self.unet(torch.cat([latents, condition.latent], 1), timestep, token, return_dict=False)[0]

    def encode(self, pictures: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> clean latents (N, z, h, w)."""
        return self.autoencoder.encode(pictures)

    def decode(self, latents: Tensor, condition: Condition) -> Tensor:
        """Clean latents -> pictures (N, 3, H, W), about [-1, 1] (not clamped)."""
        return self.autoencoder.decode(latents, condition)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(channels, height, width) of the latents of one picture."""
        scale = self.autoencoder.config.downscale
        return self.autoencoder.config.latent_channels, height // scale, width // scale

    def save(self, folder: str | Path) -> None:
        """Write condition_encoder/, unet/ and autoencoder/ as diffusers folders, the large tensors in 8 bits."""
        for name in ("condition_encoder", "unet", "autoencoder"):
            network = getattr(self, name)
            (Path(folder) / name).mkdir(parents=True, exist_ok=True)
            network.save_config(Path(folder) / name)
            save_compact(network.state_dict(), Path(folder) / name / "diffusion_pytorch_model.safetensors")

    @classmethod
    def load(cls, folder: str | Path) -> "NativeNetworks":
        """Read what `save` wrote, strictly, as float32. Raises InputError when a part is missing or does not fit."""
        kinds = {"condition_encoder": ConditionEncoder, "unet": UNet2DConditionModel, "autoencoder": Autoencoder}
        networks = []
        for name, kind in kinds.items():
            try:
                path = Path(folder) / name / "config.json"
                network = outline(kind, read_config(path, f"a {kind.__name__}"), path)  # no memory for what may not fit
                weights = load_compact(Path(folder) / name / "diffusion_pytorch_model.safetensors")
                network.load_state_dict(weights, strict=True, assign=True)
            except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
                reason = str(error).splitlines()[0]
                raise InputError(f"The weights in '{Path(folder).name}/{name}' cannot be used: {reason}") from None
            networks.append(network)
        return cls(networks=tuple(networks))


def soften_outlines(picture: Tensor, inverse_depth: Tensor) -> Tensor:
    """Smooth (N, 3, H, W) by a small kernel where depth jumps: maps have one sample per pixel, eyes see more."""
    depth = inverse_depth.unsqueeze(1)
    jump = functional.max_pool2d(depth, 3, 1, 1) + functional.max_pool2d(-depth, 3, 1, 1) > OUTLINE
    padded = functional.pad(picture, (1, 1, 1, 1), mode="replicate")
    rows = (padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]) / 4
    smooth = (rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:]) / 4
    return torch.where(jump, smooth, picture)


def picture_grid(maps: Tensor) -> Tensor:
    """(N, 2, H, W): x and y of every pixel centre, -1..1."""
    height, width = maps.shape[-2:]
    y = (torch.arange(height, device=maps.device, dtype=maps.dtype) + 0.5) * (2 / height) - 1
    x = (torch.arange(width, device=maps.device, dtype=maps.dtype) + 0.5) * (2 / width) - 1
    return torch.stack(torch.meshgrid(x, y, indexing="xy")).expand(len(maps), -1, -1, -1)


def small_unet(latent_channels: int, condition_channels: int, widths: tuple[int, ...]) -> UNet2DConditionModel:
    """A diffusers UNet with attention at its lowest level only."""
    plain = len(widths) - 1
    return UNet2DConditionModel(
        sample_size=32,
        in_channels=latent_channels + condition_channels,
        out_channels=latent_channels,
        block_out_channels=widths,
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * plain + ("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",) + ("UpBlock2D",) * plain,
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=16,
    )
