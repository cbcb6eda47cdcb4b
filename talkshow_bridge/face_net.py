"""TalkSHOW's face generator: raw waveform -> wav2vec 2.0 at 30 frames a second -> jaw rotation and FLAME expression."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

FRAME_RATE = 30  # Hz
SAMPLE_RATE = 16_000  # Hz
WINDOW = 720  # frames (24 s) that attend to each other at a time
OVERLAP = 120  # frames (4 s) over which neighbouring windows fade into each other
_STRIDES = (5, 2, 2, 2, 2, 2, 2)  # of the convolutions over the waveform, and
_HEADS = 12  # of the attention: the two sizes of wav2vec2-base that no tensor shape tells
_BLOCK = 1000  # steps of the convolutions' output computed together (20 s)


class FaceGenerator(nn.Module):
    """Waveform [B, N] at 16 kHz -> [B, T, 103]: jaw axis-angle (radians) and 100 expression numbers.

    Modules are named as in the official state dict. Sizes are read from `state` (see `from_state_dict`).
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        from transformers import Wav2Vec2Model

        mapped, hidden = state["audio_feature_map.weight"].shape
        self.speakers = state["audio_middle.id_mlp.weight"].shape[1]
        self.audio_encoder = Wav2Vec2Model(_wav2vec_config(state, hidden))
        self.audio_feature_map = nn.Linear(hidden, mapped)
        self.audio_middle = _Middle(state)
        heads = [_head(state, f"decoder.{k}.") for k in range(2)]
        self.decoder = nn.ModuleList(nn.ModuleList(blocks) for blocks in heads)
        sizes = [state[f"final_out.{k}.weight"].shape[:2] for k in range(2)]
        self.final_out = nn.ModuleList(nn.Conv1d(width, out, 1) for out, width in sizes)

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> FaceGenerator:
        """Build the net around its tensors, without copying them. KeyError or RuntimeError when they do not fit."""
        with torch.device("meta"):
            net = cls(state)
        net.load_state_dict(dict(state), assign=True)
        return net.eval().requires_grad_(False)

    def forward(self, wave: Tensor, frames: int, speaker: Tensor | None = None) -> Tensor:
        """wave [B, N] in [-1, 1], speaker [B, S] one-hot (None: zeros, as the demo does) -> [B, frames, 103]."""
        norm = self._clip_norm(wave)
        return self._decode(self._features(wave, norm, frames, 0, frames), speaker)

    @torch.inference_mode()
    def run(
        self, samples: np.ndarray, frames: int, speaker: int | None = None, window: int | None = WINDOW
    ) -> np.ndarray:
        """(N,) float32 at 16 kHz -> (frames, 103). Clips longer than `window` frames are seen in overlapping windows.

        Only the attention is windowed: loudness normalisation and frame grid are those of the whole clip.
        window=None attends to the whole clip, as TalkSHOW does (time grows with the square of the length).
        """
        wave = torch.from_numpy(samples)[None]
        norm = self._clip_norm(wave)
        one_hot = None if speaker is None else F.one_hot(torch.tensor([speaker]), self.speakers).to(self._weight)
        total, weights = np.zeros((frames, self.outputs), np.float32), np.zeros((frames, 1), np.float32)
        for first, last in _windows(frames, window or frames):
            face = self._decode(self._features(wave, norm, frames, first, last), one_hot)[0].cpu().numpy()
            ramp = np.minimum(np.arange(1, last - first + 1), np.arange(last - first, 0, -1))
            fade = np.minimum(1, ramp / (OVERLAP + 1)).astype(np.float32)[:, None]
            total[first:last] += fade * face
            weights[first:last] += fade
        return total / weights

    @property
    def outputs(self) -> int:
        return sum(layer.out_channels for layer in self.final_out)

    @property
    def _weight(self) -> Tensor:
        return self.audio_feature_map.weight

    def _clip_norm(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and shift [B, C, 1] with which group norm over the whole clip answers the first convolution.

        Mean and variance of a bias-free convolution follow from those of its input's taps: no need to run it.
        """
        layer = self.audio_encoder.feature_extractor.conv_layers[0]
        kernel = layer.conv.weight[:, 0].cpu().double()
        taps = wave.cpu().unfold(1, kernel.shape[1], layer.conv.stride[0])  # [B, steps, k]
        count, width = taps.shape[1:]
        total, square = kernel.new_zeros(len(wave), width), kernel.new_zeros(len(wave), width, width)
        for part in taps.split(_BLOCK * 64, dim=1):
            part = part.double()
            total += part.sum(dim=1)
            square += part.transpose(1, 2) @ part
        mean, square = total / count, square / count
        covariance = square - mean[:, :, None] * mean[:, None, :]
        variance = torch.einsum("ck,bkl,cl->bc", kernel, covariance, kernel).clamp_min(0)
        scale = layer.layer_norm.weight.cpu() / torch.sqrt(variance + layer.layer_norm.eps)
        shift = layer.layer_norm.bias.cpu() - scale * (mean @ kernel.T)
        return scale.to(self._weight)[..., None], shift.to(self._weight)[..., None]

    def _features(self, wave: Tensor, norm: tuple[Tensor, Tensor], frames: int, first: int, last: int) -> Tensor:
        """Convolutional features [B, last - first, C] of some of the clip's frames, stretched to the frame grid."""
        steps = self._steps(wave.shape[1])
        at = ((torch.arange(first, last, dtype=torch.float64) + 0.5) * steps / frames - 0.5).clamp_min(0)
        low = at.long().clamp_max(steps - 1)
        high = (low + 1).clamp_max(steps - 1)
        start = int(low[0])
        known = self._convolve(wave, norm, start, int(high[-1]) + 1)
        weight = (at - low).to(known)[:, None]
        low, high = (low - start).to(known.device), (high - start).to(known.device)
        return known[:, low] * (1 - weight) + known[:, high] * weight

    def _convolve(self, wave: Tensor, norm: tuple[Tensor, Tensor], first: int, last: int) -> Tensor:
        """Steps first..last of the convolutions over the waveform [B, last - first, C], a block at a time."""
        head, *rest = self.audio_encoder.feature_extractor.conv_layers
        scale, shift = norm
        reach, stride = self._reach_and_stride()
        blocks = []
        for low in range(first, last, _BLOCK):
            high = min(low + _BLOCK, last)
            part = wave[:, low * stride : (high - 1) * stride + reach].to(self._weight)
            hidden = head.activation(head.conv(part[:, None]).mul_(scale).add_(shift))
            for layer in rest:
                hidden = layer(hidden)
            blocks.append(hidden.transpose(1, 2))
        return torch.cat(blocks, dim=1)

    def _reach_and_stride(self) -> tuple[int, int]:
        """Samples that one step sees (400) and samples between steps (320)."""
        reach, stride = 1, 1
        for layer in self.audio_encoder.feature_extractor.conv_layers:
            reach += stride * (layer.conv.kernel_size[0] - 1)
            stride *= layer.conv.stride[0]
        return reach, stride

    def _steps(self, samples: int) -> int:
        reach, stride = self._reach_and_stride()
        return (samples - reach) // stride + 1

    def _decode(self, features: Tensor, speaker: Tensor | None) -> Tensor:
        hidden = self.audio_encoder.feature_projection(features)[0]
        hidden = self.audio_feature_map(self.audio_encoder.encoder(hidden)[0]).transpose(1, 2)
        if speaker is None:
            speaker = hidden.new_zeros(len(hidden), self.speakers)
        hidden = self.audio_middle(hidden, speaker)
        parts = []
        for blocks, out in zip(self.decoder, self.final_out, strict=True):
            part = hidden
            for block in blocks:
                part = block(part)
            parts.append(out(part))
        return torch.cat(parts, dim=1).transpose(1, 2)


class _Block(nn.Module):
    """3-tap convolution, layer norm over channels, residual (if any), ReLU: [B, C, T] -> [B, D, T]."""

    def __init__(self, state: Mapping[str, Tensor], prefix: str, residual: bool) -> None:
        super().__init__()
        out, width, _ = state[f"{prefix}conv.weight"].shape
        self.residual = residual
        self.conv = nn.Conv1d(width, out, 3, padding=1)
        self.norm = nn.LayerNorm(out)
        if residual and width != out:
            self.residual_layer = nn.Sequential(nn.Conv1d(width, out, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x).transpose(1, 2)).transpose(1, 2)
        if self.residual:
            y = y + (self.residual_layer(x) if hasattr(self, "residual_layer") else x)
        return F.relu(y)


class _Middle(nn.Module):
    """Puts the speaker beside the audio and mixes both."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        out, speakers, _ = state["audio_middle.id_mlp.weight"].shape
        self.id_mlp = nn.Conv1d(speakers, out, 1)
        self.first_net = nn.Module()
        self.first_net.conv_layers = nn.ModuleList(_head(state, "audio_middle.first_net.conv_layers.", residual=True))

    def forward(self, audio: Tensor, speaker: Tensor) -> Tensor:  # [B, C, T], [B, S] -> [B, D, T]
        who = self.id_mlp(speaker[..., None]).expand(-1, -1, audio.shape[-1])
        hidden = torch.cat([audio, who], dim=1)
        for block in self.first_net.conv_layers:
            hidden = block(hidden)
        return hidden


def _head(state: Mapping[str, Tensor], prefix: str, residual: bool = False) -> list[_Block]:
    count = sum(f"{prefix}{k}.conv.weight" in state for k in range(100))
    return [_Block(state, f"{prefix}{k}.", residual) for k in range(count)]


def _wav2vec_config(state: Mapping[str, Tensor], hidden: int):
    """The configuration of the stock wav2vec2 class that the tensors under `audio_encoder.` belong to."""
    from transformers import Wav2Vec2Config

    prefix = "audio_encoder.feature_extractor.conv_layers."
    convolutions = [state[f"{prefix}{k}.conv.weight"].shape for k in range(len(_STRIDES))]
    layers = sum(k.startswith("audio_encoder.encoder.layers.") and k.endswith("attention.k_proj.weight") for k in state)
    position = state["audio_encoder.encoder.pos_conv_embed.conv.parametrizations.weight.original1"].shape
    return Wav2Vec2Config(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=_HEADS,
        intermediate_size=len(state["audio_encoder.encoder.layers.0.feed_forward.output_dense.weight"][0]),
        conv_dim=[shape[0] for shape in convolutions], conv_kernel=[shape[2] for shape in convolutions],
        conv_stride=_STRIDES, conv_bias=False, feat_extract_norm="group", do_stable_layer_norm=False,
        num_conv_pos_embeddings=position[2], num_conv_pos_embedding_groups=hidden // position[1],
        mask_time_prob=0.0, mask_feature_prob=0.0, attn_implementation="sdpa",
    )  # fmt: skip


def _windows(frames: int, window: int) -> list[tuple[int, int]]:
    """Windows of equal length, evenly spread, that overlap by OVERLAP or more."""
    if frames <= window:
        return [(0, frames)]
    count = -(-(frames - OVERLAP) // (window - OVERLAP))
    return [(first, first + window) for first in np.linspace(0, frames - window, count).round().astype(int).tolist()]
