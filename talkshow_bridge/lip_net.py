"""The lip net: a small non-causal temporal convolution net from log-mels to 16 articulatory controls."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from talkshow_bridge.errors import InputError
from talkshow_bridge.features import BANDS, channel_mean, normalise

CONTROLS: tuple[str, ...] = (
    "jaw", "aperture", "closure", "labiodental", "pucker", "funnel", "spread", "upper_raise", "lower_drop",
    "tongue_tip", "tongue_dental", "tongue_back", "width", "speech", "voiced", "vowel",
)  # fmt: skip
CONTROL_RATE = 50  # Hz; control k shows time k / 50
PHONE_CLASSES = 17  # auxiliary head, used in training only
CHUNK = 3000  # control frames computed at a time (one minute)


class Block(nn.Module):
    """Residual block: layer norm over channels, dilated 3-tap convolution, GELU, pointwise projection."""

    def __init__(self, channels: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.dilation, self.dropout = dilation, dropout
        self.norm = nn.LayerNorm(channels)
        self.taps = nn.Linear(3 * channels, channels)
        self.project = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:  # [B, T, C] -> [B, T, C]
        frames, d = x.shape[1], self.dilation
        padded = F.pad(self.norm(x), (0, 0, d, d))
        taps = torch.cat([padded[:, k * d : k * d + frames] for k in range(3)], dim=-1)
        return x + F.dropout(self.project(F.gelu(self.taps(taps))), self.dropout, self.training)


class LipNet(nn.Module):
    """Normalised log-mels [B, 2T, 40] at 100 Hz -> logits of the controls [B, T, 16] and phone classes [B, T, 17]."""

    def __init__(
        self, channels: int = 176, dilations: tuple[int, ...] = 3 * (1, 2, 4, 8), dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.channels, self.dilations = channels, tuple(dilations)
        self.stem = nn.Conv1d(BANDS, channels, 5, stride=2, padding=2)
        self.blocks = nn.Sequential(*[Block(channels, d, dropout) for d in dilations])
        self.norm = nn.LayerNorm(channels)
        self.controls = nn.Linear(channels, len(CONTROLS))
        self.phones = nn.Linear(channels, PHONE_CLASSES)

    @property
    def reach(self) -> int:
        """Control frames on either side that can influence one output (half the receptive field)."""
        return sum(self.dilations) + 2

    def forward(self, mels: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.norm(self.blocks(self.stem(mels.transpose(1, 2)).transpose(1, 2)))
        return self.controls(hidden), self.phones(hidden)

    @torch.inference_mode()
    def run(self, mels: np.ndarray, chunk: int = CHUNK) -> np.ndarray:
        """(M, 40) log-mels at 100 Hz -> (T, 16) controls 0..1 at 50 Hz, computed `chunk` frames at a time.

        Chunks overlap by the net's reach, so any chunk length gives the same numbers.
        """
        mels = normalise(mels, channel_mean(mels))
        if len(mels) % 2:
            mels = np.concatenate([mels, mels[-1:]])
        count = len(mels) // 2
        device = self.controls.weight.device
        controls = np.empty((count, len(CONTROLS)), np.float32)
        for first in range(0, count, chunk):
            last = min(first + chunk, count)
            low, high = max(0, first - self.reach), min(count, last + self.reach)
            logits, _ = self(torch.from_numpy(mels[2 * low : 2 * high])[None].to(device))
            controls[first:last] = torch.sigmoid(logits[0, first - low : last - low]).cpu().numpy()
        return controls

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write lips.safetensors (float16) and its part of config.json."""
        from safetensors.torch import save_file

        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        weights = {k: v.half().contiguous() for k, v in self.state_dict().items() if not k.startswith("phones.")}
        save_file(weights, target / "lips.safetensors")
        (target / "lips.safetensors").chmod(0o644)
        config = target / "config.json"
        parts = json.loads(config.read_text()) if config.exists() else {"version": 1}
        parts["lips"] = {"channels": self.channels, "dilations": list(self.dilations), "controls": list(CONTROLS)}
        config.write_text(json.dumps(parts, indent=2) + "\n")

    @classmethod
    def load(cls, folder: str | os.PathLike[str], device: str = "cpu") -> LipNet:
        """Read what `save` wrote; raises InputError when the folder does not hold it."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        source = Path(folder)
        try:
            config = json.loads((source / "config.json").read_text())["lips"]
            if tuple(config["controls"]) != CONTROLS:
                raise InputError(f"The lip weights in '{source}' are for other controls.")
            net = cls(config["channels"], tuple(config["dilations"]))
            weights = load_file(source / "lips.safetensors")
            missing = net.load_state_dict({k: v.float() for k, v in weights.items()}, strict=False)
        except FileNotFoundError as error:
            raise InputError(f"The motion weights are not complete: '{error.filename or source}' is missing.") from None
        except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"The motion weights in '{source}' cannot be read ({error}).") from None
        if missing.unexpected_keys or any(not k.startswith("phones.") for k in missing.missing_keys):
            raise InputError(f"The motion weights in '{source}' do not fit their config.json.")
        return net.to(device).eval()
