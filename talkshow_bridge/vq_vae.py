"""Motion <-> discrete codes: the convolutional VQ-VAE of TalkSHOW (Yi et al., CVPR 2023), one code per four frames.

The same classes hold the official networks (hidden 1024, 2048 codes) and small ones that train on one CPU core.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FRAMES_PER_CODE = 4
SLOPE = 0.2  # of the leaky ReLUs
PLAN_TAPS = 9  # frames seen by each of the two convolutions of the plan branch

CONVOLUTIONS = {
    "same": lambda inside, outside: nn.Conv1d(inside, outside, 3, padding=1),
    "down": lambda inside, outside: nn.Conv1d(inside, outside, 4, stride=2, padding=1),
    "up": lambda inside, outside: nn.ConvTranspose1d(inside, outside, 4, stride=2, padding=1),
}


class Block(nn.Module):
    """Convolution, batch norm and leaky ReLU; "down" halves and "up" doubles the length, both with a residual."""

    def __init__(self, inside: int, outside: int, kind: str = "same") -> None:
        super().__init__()
        self.conv = CONVOLUTIONS[kind](inside, outside)
        self.norm = nn.BatchNorm1d(outside)
        self.residual_layer = None if kind == "same" else CONVOLUTIONS[kind](inside, outside)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, T] -> [B, C', T']
        y = self.norm(self.conv(x))
        return F.leaky_relu(y if self.residual_layer is None else y + self.residual_layer(x), SLOPE)


class Stack(nn.Module):
    """Two blocks and a convolution around which the input is added, then a plain ReLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(Block(width, width), Block(width, width))
        self.conv = CONVOLUTIONS["same"](width, width)
        self.norm = nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, T] -> [B, C, T]
        return F.relu(x + self.norm(self.conv(self.layers(x))))


class Encoder(nn.Module):
    """A track [B, channels, T] -> [B, outside or hidden, T // 2 // 2]; motion and audio are encoded alike.

    A frame of group g = frame // 4 influences outputs g - 7 .. g + 6.
    """

    def __init__(self, channels: int, hidden: int, outside: int | None = None) -> None:
        super().__init__()
        quarter, half = hidden // 4, hidden // 2
        self.project = Block(channels, quarter)
        self.enc_1 = Stack(quarter)
        self.down_1 = Block(quarter, half, "down")
        self.enc_2 = Stack(half)
        self.down_2 = Block(half, hidden, "down")
        self.enc_3 = Stack(hidden)
        self.pre_vq_conv = nn.Conv1d(hidden, outside, 1) if outside else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.enc_1(self.project(x))
        x = self.enc_2(self.down_1(x))
        return self.pre_vq_conv(self.enc_3(self.down_2(x)))

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> Encoder:
        """An encoder in evaluation mode, its sizes read from the tensors."""
        net = cls(state["project.conv.weight"].shape[1], state["enc_3.conv.weight"].shape[0])
        net.load_state_dict(dict(state))
        return net.eval()


class Decoder(nn.Module):
    """Code vectors [B, code_size, T4] -> a track [B, channels, 4 T4].

    plan_channels > 0 adds a branch at the full frame rate, for events that a code of four frames is too coarse for.
    A code influences its own four frames and 24 on either side, a frame of the plan 11 on either side.
    """

    def __init__(self, channels: int, hidden: int, code_size: int, plan_channels: int = 0) -> None:
        super().__init__()
        quarter, half = hidden // 4, hidden // 2
        self.aft_vq_conv = nn.Conv1d(code_size, hidden, 1)
        self.dec_1 = Stack(hidden)
        self.up_2 = Block(hidden, half, "up")
        self.dec_2 = Stack(half)
        self.up_3 = Block(half, quarter, "up")
        self.dec_3 = Stack(quarter)
        self.project = nn.Conv1d(quarter, channels, 1)
        self.plan = _plan_branch(plan_channels, quarter) if plan_channels else None

    def forward(self, x: Tensor, plan: Tensor | None = None) -> Tensor:  # plan [B, P, 4 T4]
        x = self.dec_1(self.aft_vq_conv(x))
        x = self.up_3(self.dec_2(self.up_2(x)))
        if self.plan is not None:
            x = x + self.plan(plan)
        return self.project(self.dec_3(x))


def _plan_branch(channels: int, width: int) -> nn.Sequential:
    pad = PLAN_TAPS // 2
    return nn.Sequential(
        nn.Conv1d(channels, width, PLAN_TAPS, padding=pad),
        nn.LeakyReLU(SLOPE),
        nn.Conv1d(width, width, PLAN_TAPS, padding=pad),
    )


class VQVAE(nn.Module):
    """Tracks (B, T, channels) <-> codes (B, T // 2 // 2) int64 in 0..codes-1.

    mean and scale (channels,) bring the track to about unit size inside; 0 and 1, as in the official weights,
    unless set by training.
    """

    def __init__(
        self, channels: int, hidden: int = 1024, codes: int = 2048, code_size: int = 64, plan_channels: int = 0
    ) -> None:
        super().__init__()
        self.encoder = Encoder(channels, hidden, code_size)
        self.decoder = Decoder(channels, hidden, code_size, plan_channels)
        self.register_buffer("codebook", torch.randn(codes, code_size) * 0.3)
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("scale", torch.ones(channels))

    def latents(self, x: Tensor) -> Tensor:
        """Track (B, T, channels) -> the encoder's vectors (B, T4, code_size), before they snap to codes."""
        return self.encoder(((x - self.mean) / self.scale).transpose(1, 2)).transpose(1, 2)

    def nearest(self, latents: Tensor) -> Tensor:
        """(B, T4, code_size) -> the code of the nearest codebook row (squared distance; ties: the lowest code)."""
        distance = self.codebook.square().sum(1) - 2 * latents @ self.codebook.T  # but for |latents|^2
        return distance.argmin(dim=-1)

    def encode(self, x: Tensor) -> Tensor:
        """Track (B, T, channels) -> codes (B, T4)."""
        return self.nearest(self.latents(x))

    def decode(self, codes: Tensor, plan: Tensor | None = None) -> Tensor:
        """Codes (B, T4), plan (B, 4 T4, P) if the net has the branch -> track (B, 4 T4, channels)."""
        return self._decode(self.codebook[codes], plan)

    def forward(self, x: Tensor, plan: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """For training: (reconstruction, latents, codes); gradients pass straight through the quantiser."""
        latents = self.latents(x)
        codes = self.nearest(latents)
        return self._decode(latents + (self.codebook[codes] - latents).detach(), plan), latents, codes

    def _decode(self, vectors: Tensor, plan: Tensor | None) -> Tensor:
        plan = None if plan is None else plan.transpose(1, 2)
        return self.decoder(vectors.transpose(1, 2), plan).transpose(1, 2) * self.scale + self.mean

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> VQVAE:
        """A net in evaluation mode, its sizes read from the tensors; mean and scale may be absent."""
        codes, code_size = state["codebook"].shape
        channels, hidden = state["decoder.project.weight"].shape[0], state["encoder.enc_3.conv.weight"].shape[0]
        plan = state["decoder.plan.0.weight"].shape[1] if "decoder.plan.0.weight" in state else 0
        net = cls(channels, hidden, codes, code_size, plan)
        net.load_state_dict({"mean": net.mean, "scale": net.scale, **state})
        return net.eval()


class CodebookAverage:
    """Training of the codebook: each code follows the mean of the latents that chose it (van den Oord 2017, A.1).

    A code that is hardly ever chosen restarts on a random latent of the batch.
    """

    def __init__(self, net: VQVAE, decay: float = 0.98, unused: float = 0.05) -> None:
        self.codebook, self.decay, self.unused = net.codebook, decay, unused
        self.counts = torch.ones(len(net.codebook), device=net.codebook.device)
        self.sums = net.codebook.clone()

    @torch.no_grad()
    def update(self, latents: Tensor, codes: Tensor) -> None:
        """One step with the latents (B, T4, code_size) and codes (B, T4) of a batch."""
        flat = latents.detach().flatten(0, 1)
        chosen = F.one_hot(codes.flatten(), len(self.codebook)).to(flat.dtype)
        self.counts.lerp_(chosen.sum(0), 1 - self.decay)
        self.sums.lerp_(chosen.T @ flat, 1 - self.decay)
        dead = (self.counts < self.unused).nonzero()[:, 0]
        self.sums[dead] = flat[torch.randint(len(flat), (len(dead),), device=flat.device)]
        self.counts[dead] = 1.0
        self.codebook.copy_(self.sums / self.counts[:, None])
