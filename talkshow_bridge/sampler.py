"""The codes of `pixelcnn.sample_full_grid`, row by row: linear time, constant memory, endless.

Every layer's vertical path needs only the last rows of its input, and never the present row of codes. So a new row goes
down through all layers at once for both columns; then the body code and the hand code are drawn by two passes along the
row. All weights are held as matrices [in, out] and read once per row or column, which is what the time is spent on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from talkshow_bridge.pixelcnn import (
    COLUMNS,
    FIRST_ROWS,
    Choose,
    GatedLayer,
    GatedPixelCNN,
    draw,
    probabilities,
)


@dataclass
class _Layer:
    """A GatedLayer as matrices. The rows above lie flat: older row first, then column, then channel."""

    vertical: Tensor  # [rows * 2 * D, 2 * 2D]: all rows above and columns -> both columns
    vertical_bias: Tensor  # [2 * 2D]
    to_horizontal: Tensor  # [2D, 2D], alone as [out, in]: faster for the two rows that a sample brings
    own: Tensor  # [D, 2D]: a column's own share in the horizontal convolution; unused in the first layer
    left: Tensor  # [D, 2D]: the share of the column to the left
    residual: Tensor  # [D, D]
    residual_bias: Tensor  # [D]
    style: Tensor  # [speakers, 2D]
    across_bias: Tensor  # [speakers, 2D]: all that is added before the horizontal gate

    @classmethod
    def of(cls, layer: GatedLayer) -> _Layer:
        style = layer.class_cond_embedding.weight
        return cls(
            _dense(layer.vert_stack.weight),
            layer.vert_stack.bias.repeat(COLUMNS),
            layer.vert_to_horiz.weight[:, :, 0, 0].contiguous(),
            own=_matrix(layer.horiz_stack.weight[..., -1:]),
            left=_matrix(layer.horiz_stack.weight[..., :1]),
            residual=_matrix(layer.horiz_resid.weight),
            residual_bias=layer.horiz_resid.bias,
            style=style,
            across_bias=style + layer.vert_to_horiz.bias + layer.horiz_stack.bias,
        )


def _matrix(weight: Tensor) -> Tensor:
    """A 1x1 convolution [out, in, 1, 1] -> [in, out]."""
    return weight[:, :, 0, 0].T.contiguous()


def _dense(weight: Tensor) -> Tensor:
    """A (rows, 3) convolution [out, in, rows, 3] over two padded columns -> [rows * 2 * in, 2 * out].

    Tap k of output column j lies on input column j + k - 1.
    """
    taps = weight.permute(2, 3, 1, 0)  # [rows, 3, in, out]
    sources = [torch.stack([taps[:, c - j + 1] for j in range(COLUMNS)], dim=2) for c in range(COLUMNS)]
    return torch.stack(sources, dim=1).flatten(3).flatten(0, 2).contiguous()


def _gate(x: Tensor) -> Tensor:
    """As `pixelcnn.gate`, with tanh(a) = 2 sigmoid(2 a) - 1: torch's tanh wakes all threads even for a few numbers."""
    a, b = x.chunk(2, dim=1)
    b = torch.sigmoid(b)
    return torch.addcmul(-b, torch.sigmoid(a + a), b, value=2)


@dataclass
class SamplerState:
    """What the next row needs to know of the past, for a batch of B samples; a fixed size."""

    style: Tensor  # [layers, B, 1, 2D]: the speaker's share before every gate
    across_bias: Tensor  # [layers, B, 1, 2D]: all constants before the horizontal gate
    codes: Tensor  # [B, 3 * 2 * D]: embeddings of the last three rows
    above: Tensor  # [layers, B, 2 rows * 2 * D]: last and present row at the input of each layer but the first
    across: Tensor  # [layers, B, 2, 2D]: what each layer's horizontal gate gets in the present row


class IncrementalSampler:
    """Draws codes from a GatedPixelCNN as it is now: make a new one after training further."""

    @torch.inference_mode()
    def __init__(self, net: GatedPixelCNN) -> None:
        self.layers = [_Layer.of(layer) for layer in net.layers]
        self.embedding = net.embedding.weight
        self.dim = self.embedding.shape[1]
        self.head = [(_matrix(net.output_conv[n].weight), net.output_conv[n].bias) for n in (0, 2)]
        heard, heard_bias = _matrix(net.embedding_aud.weight), net.embedding_aud.bias
        self.fusion, self.audio = [], []  # for the vertical and the horizontal path
        for conv in (net.fusion_v, net.fusion_h):
            own, other = _matrix(conv.weight).split(self.dim)
            self.fusion.append(own)
            self.audio.append((heard @ other, heard_bias @ other + conv.bias))

    def sample(
        self, audio: Tensor, speaker: Tensor, generator: torch.Generator | None = None,
        temperature: float = 1.0, top_p: float = 1.0, choose: Choose | None = None, history: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """As `sample_full_grid`: audio (B or 1, D, T4), speaker (B,), history (B, H, 2) -> tokens (B, T4, 2)."""
        state = self.start(speaker)
        if history is None:
            return self.extend(state, audio, generator, temperature, top_p, choose)
        done = history.shape[1]
        self.remember(state, history, audio[:, :, :done])
        drawn = self.extend(state, audio[:, :, done:], generator, temperature, top_p, choose)
        return torch.cat([history, drawn], dim=1)

    @torch.inference_mode()
    def start(self, speaker: Tensor) -> SamplerState:
        """The state before the first row, for speakers (B,)."""
        depth, batch, dim = len(self.layers), len(speaker), self.dim
        zeros = self.embedding.new_zeros
        return SamplerState(
            style=torch.stack([layer.style[speaker, None] for layer in self.layers]),
            across_bias=torch.stack([layer.across_bias[speaker, None] for layer in self.layers]),
            codes=zeros(batch, FIRST_ROWS * COLUMNS * dim),
            above=zeros(depth, batch, 2 * COLUMNS * dim),
            across=zeros(depth, batch, COLUMNS, 2 * dim),
        )

    @torch.inference_mode()
    def extend(
        self, state: SamplerState, audio: Tensor, generator: torch.Generator | None = None,
        temperature: float = 1.0, top_p: float = 1.0, choose: Choose | None = None,
    ) -> Tensor:  # fmt: skip
        """Draw the next rows, one for each time step of audio (B or 1, D, n) -> tokens (B, n, 2); moves the state on.

        choose turns probabilities (B, K) into codes (B,), body and hand by turns; without it: a random draw.
        """
        choose = choose or draw(generator)
        tokens = torch.empty(len(state.codes), audio.shape[2], COLUMNS, dtype=torch.int64, device=audio.device)
        for row, (heard_v, heard_h) in enumerate(self._heard(audio)):
            self._go_down(state, heard_v)
            for column in range(COLUMNS):
                logits = self._go_across(state, column, heard_h)
                tokens[:, row, column] = choose(probabilities(logits, temperature, top_p))
                if column == 0:
                    state.across[0, :, 1].addmm_(self.embedding[tokens[:, row, 0]], self.layers[0].left)
            self._push(state, tokens[:, row])
        return tokens

    @torch.inference_mode()
    def remember(self, state: SamplerState, tokens: Tensor, audio: Tensor) -> None:
        """Move the state on over rows that are already known: tokens (B, n, 2), audio (B or 1, D, n)."""
        for row, (heard, _) in enumerate(self._heard(audio)):
            self._go_down(state, heard)
            self._push(state, tokens[:, row])

    def _heard(self, audio: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Audio (B, D, n) -> per row what it adds to the fused vertical and horizontal paths, [B, dim] each."""
        steps = audio.permute(2, 0, 1)
        vertical, horizontal = (steps @ weight + bias for weight, bias in self.audio)
        return zip(vertical, horizontal, strict=True)

    def _go_down(self, state: SamplerState, heard: Tensor) -> None:
        """The vertical path of a new row: fills state.across and the present rows of state.above."""
        batch, row = len(state.codes), COLUMNS * self.dim
        above = state.codes
        for n, layer in enumerate(self.layers):
            down = torch.addmm(layer.vertical_bias, above, layer.vertical).view(-1, 2 * self.dim)  # [B * 2, 2D]
            across = (layer.to_horizontal @ down.T).T
            torch.add(across.view(batch, COLUMNS, -1), state.across_bias[n], out=state.across[n])
            if n + 1 == len(self.layers):
                return
            x = _gate((down.view(batch, COLUMNS, -1) + state.style[n]).flatten(0, 1))
            if n == 0:
                x = (x @ self.fusion[0]).view(batch, COLUMNS, -1) + heard[:, None]
            above = state.above[n + 1]
            above[:, row:] = x.view(batch, row)

    def _go_across(self, state: SamplerState, column: int, heard: Tensor) -> Tensor:
        """The horizontal path of one column -> logits (B, K); the first column leaves its share to the second."""
        first, *others = self.layers
        x = torch.addmm(first.residual_bias, _gate(state.across[0, :, column]), first.residual)
        x = x @ self.fusion[1] + heard
        for layer, across in zip(others, state.across[1:], strict=True):
            gated = _gate(torch.addmm(across[:, column], x, layer.own))
            if column == 0:
                across[:, 1].addmm_(x, layer.left)
            x = torch.addmm(x + layer.residual_bias, gated, layer.residual)
        (inner, inner_bias), (outer, outer_bias) = self.head
        return torch.addmm(outer_bias, torch.addmm(inner_bias, x, inner).relu_(), outer)

    def _push(self, state: SamplerState, tokens: Tensor) -> None:
        """Make the present row, codes (B, 2), the last one."""
        row = COLUMNS * self.dim
        state.codes = torch.cat([state.codes[:, row:], self.embedding[tokens].flatten(1)], dim=1)
        state.above[:, :, :row] = state.above[:, :, row:]
