"""Codes of body and hands from audio: TalkSHOW's gated PixelCNN (van den Oord 2016) and its slow, obvious sampler.

The "image" is time x 2: row t holds the body code and the hand code of four frames. A body code depends on all earlier
rows, a hand code also on the body code of its own row. `talkshow_bridge.sampler` draws the same codes much faster.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from talkshow_bridge.vq_vae import Encoder

FIRST_ROWS = 3  # earlier rows seen by the first layer; every further layer sees one more
COLUMNS = 2
AUDIO_DROPOUT = 0.1  # share of time steps without audio in training

MfccEncoder = Encoder  # features (B, C, T) -> audio (B, D, T4)
Choose = Callable[[Tensor], Tensor]  # probabilities (B, K) -> codes (B,)


def gate(x: Tensor) -> Tensor:
    """tanh of the first half of the channels (dim 1) times the sigmoid of the second half."""
    a, b = x.chunk(2, dim=1)
    return torch.tanh(a) * torch.sigmoid(b)


class GatedLayer(nn.Module):
    """A vertical path that sees whole earlier rows, and a horizontal one that sees the columns up to its own.

    The first layer must not see the present: its convolutions end one row, one column earlier ("mask A").
    """

    def __init__(self, dim: int, speakers: int, first: bool) -> None:
        super().__init__()
        self.first = first
        rows, columns = (FIRST_ROWS, 1) if first else (2, 2)
        self.class_cond_embedding = nn.Embedding(speakers, 2 * dim)
        self.vert_stack = nn.Conv2d(dim, 2 * dim, (rows, 3))
        self.vert_to_horiz = nn.Conv2d(2 * dim, 2 * dim, 1)
        self.horiz_stack = nn.Conv2d(dim, 2 * dim, (1, columns))
        self.horiz_resid = nn.Conv2d(dim, dim, 1)

    def forward(self, vertical: Tensor, horizontal: Tensor, speaker: Tensor) -> tuple[Tensor, Tensor]:
        """Two grids (B, dim, T4, 2) and speakers (B,) -> two grids."""
        style = self.class_cond_embedding(speaker)[:, :, None, None]
        if self.first:
            above, left = F.pad(vertical[:, :, :-1], (1, 1, FIRST_ROWS, 0)), F.pad(horizontal[..., :-1], (1, 0))
        else:
            above, left = F.pad(vertical, (1, 1, 1, 0)), F.pad(horizontal, (1, 0))
        down = self.vert_stack(above)
        across = self.horiz_resid(gate(self.vert_to_horiz(down) + self.horiz_stack(left) + style))
        return gate(down + style), across if self.first else across + horizontal


class GatedPixelCNN(nn.Module):
    """Codes so far + audio + speaker -> logits of every code. Remembers 2 + layers rows of codes."""

    def __init__(
        self, codes: int = 2048, dim: int = 256, layers: int = 15, speakers: int = 4, audio: int = 256, head: int = 512
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codes, dim)
        self.embedding_aud = nn.Conv2d(audio, dim, 1)
        self.fusion_v = nn.Conv2d(2 * dim, dim, 1)
        self.fusion_h = nn.Conv2d(2 * dim, dim, 1)
        self.layers = nn.ModuleList([GatedLayer(dim, speakers, first=n == 0) for n in range(layers)])
        self.output_conv = nn.Sequential(nn.Conv2d(dim, head, 1), nn.ReLU(), nn.Conv2d(head, codes, 1))

    def forward(self, tokens: Tensor, audio: Tensor, speaker: Tensor) -> Tensor:
        """Codes (B, T4, 2) int64, audio (B, D, T4), speakers (B,) int64 -> logits (B, K, T4, 2).

        The logits at a place do not depend on the code at that place nor on later ones.
        """
        vertical = horizontal = self.embedding(tokens).permute(0, 3, 1, 2)
        heard = self.embedding_aud(audio[..., None])
        if self.training:
            heard = heard * (torch.rand(heard.shape[2], 1, device=heard.device) >= AUDIO_DROPOUT)
        heard = heard.expand_as(vertical)
        for layer in self.layers:
            vertical, horizontal = layer(vertical, horizontal, speaker)
            if layer.first:
                vertical = self.fusion_v(torch.cat([vertical, heard], dim=1))
                horizontal = self.fusion_h(torch.cat([horizontal, heard], dim=1))
        return self.output_conv(horizontal)

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> GatedPixelCNN:
        """A net in evaluation mode, its sizes read from the tensors.

        In the official files the first layer's kernels still have their masked last row and column, with leftovers of
        the optimiser in them: those are cut off.
        """
        state = dict(state)
        state["layers.0.vert_stack.weight"] = state["layers.0.vert_stack.weight"][:, :, :FIRST_ROWS]
        state["layers.0.horiz_stack.weight"] = state["layers.0.horiz_stack.weight"][..., :1]
        codes, dim = state["embedding.weight"].shape
        layers = sum(key.endswith(".vert_stack.weight") for key in state)
        speakers = state["layers.0.class_cond_embedding.weight"].shape[0]
        audio, head = state["embedding_aud.weight"].shape[1], state["output_conv.0.weight"].shape[0]
        net = cls(codes, dim, layers, speakers, audio, head)
        net.load_state_dict(state)
        return net.eval()


def probabilities(logits: Tensor, temperature: float = 1.0, top_p: float = 1.0) -> Tensor:
    """Logits (B, K) -> probabilities (B, K); top_p < 1 keeps the fewest likely codes that hold that share."""
    chances = torch.softmax(logits / temperature, dim=-1)
    if top_p >= 1.0:
        return chances
    ordered, order = chances.sort(dim=-1, descending=True)
    ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered > top_p, 0.0)
    kept = torch.zeros_like(chances).scatter_(-1, order, ordered)
    return kept / kept.sum(-1, keepdim=True)


def draw(generator: torch.Generator | None) -> Choose:
    """The usual way to choose: one random draw per sample, on the CPU, so that a seed means the same everywhere."""
    return lambda chances: torch.multinomial(chances.cpu(), 1, generator=generator)[:, 0]


@torch.inference_mode()
def sample_full_grid(
    net: GatedPixelCNN, audio: Tensor, speaker: Tensor, generator: torch.Generator | None = None,
    temperature: float = 1.0, top_p: float = 1.0, choose: Choose | None = None, history: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Reference: one pass over the whole grid per code, quadratic in the duration. -> tokens (B, T4, 2).

    audio (B, D, T4) and speaker (B,) as in `forward`; history (B, H, 2): codes of the first H rows, kept as they are.
    """
    choose = choose or draw(generator)
    tokens = torch.zeros(len(audio), audio.shape[2], COLUMNS, dtype=torch.int64, device=audio.device)
    done = 0 if history is None else history.shape[1]
    if history is not None:
        tokens[:, :done] = history
    for row in range(done, tokens.shape[1]):
        for column in range(COLUMNS):
            logits = net(tokens, audio, speaker)[:, :, row, column]
            tokens[:, row, column] = choose(probabilities(logits, temperature, top_p))
    return tokens
