"""Audio features -> movement of body and hands, any length: the networks of TalkSHOW (Yi et al., CVPR 2023) joined up.

Everything runs in windows that overlap by what the networks can see, so the windows do not show in the result; the
memory needed for an hour is that of a window plus the movement itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from talkshow_bridge.errors import InputError
from talkshow_bridge.pixelcnn import GatedPixelCNN, MfccEncoder
from talkshow_bridge.sampler import IncrementalSampler
from talkshow_bridge.vq_vae import FRAMES_PER_CODE, VQVAE

WINDOW = 512  # codes computed at a time (68 s at 30 fps)
ENCODER_REACH = 7  # codes: audio of the 7 groups of four frames after a code and of the 6 before it matters
DECODER_REACH = 6  # codes on either side that a frame depends on
PARTS = {"encoder": MfccEncoder, "pixelcnn": GatedPixelCNN, "body_vq": VQVAE, "hand_vq": VQVAE}


class GestureModel:
    """Four trained networks: the official ones, or small ones with a stroke plan in their VQ decoders."""

    def __init__(self, encoder: MfccEncoder, pixelcnn: GatedPixelCNN, body_vq: VQVAE, hand_vq: VQVAE) -> None:
        self.encoder, self.pixelcnn, self.body_vq, self.hand_vq = encoder, pixelcnn, body_vq, hand_vq
        self.sampler = IncrementalSampler(pixelcnn)

    @property
    def speakers(self) -> int:
        """How many speakers (or styles) the model knows."""
        return self.pixelcnn.layers[0].class_cond_embedding.num_embeddings

    @property
    def device(self) -> torch.device:
        return self.body_vq.codebook.device

    @torch.inference_mode()
    def run(
        self, features: np.ndarray, speaker: int, seed: int = 0, plan: np.ndarray | None = None, samples: int = 1,
        temperature: float = 1.0, top_p: float = 1.0, window: int = WINDOW,
    ) -> np.ndarray:  # fmt: skip
        """Features (T, C) at 30 fps -> (samples, T // 2 // 2 * 4, body + hands) float32, movements to choose from.

        speaker: row of the speaker table. plan: (T, P) for models that have a plan branch. The same seed gives the
        same movement. temperature < 1 and top_p < 1 make it more typical. window: codes computed at a time.
        """
        codes = self.codes(features, speaker, seed, samples, temperature, top_p, window)
        return self.decode(codes, plan, window)

    @torch.inference_mode()
    def codes(
        self, features: np.ndarray, speaker: int, seed: int = 0, samples: int = 1,
        temperature: float = 1.0, top_p: float = 1.0, window: int = WINDOW,
    ) -> Tensor:  # fmt: skip
        """The first half of `run` -> (samples, T4, 2) codes of body and hands on the CPU."""
        state = self.sampler.start(torch.full((samples,), speaker, device=self.device))
        generator = torch.Generator().manual_seed(seed)
        parts = [torch.empty(samples, 0, 2, dtype=torch.int64)]
        for audio in self._encode(features, window):
            parts.append(self.sampler.extend(state, audio, generator, temperature, top_p).cpu())
        return torch.cat(parts, dim=1)

    @torch.inference_mode()
    def decode(self, codes: Tensor, plan: np.ndarray | None = None, window: int = WINDOW) -> np.ndarray:
        """The second half of `run`: codes (B, T4, 2) -> (B, 4 T4, body + hands)."""
        batch, count, _ = codes.shape
        nets = (self.body_vq, self.hand_vq)
        motion = np.empty((batch, count * FRAMES_PER_CODE, sum(len(net.mean) for net in nets)), np.float32)
        for first, last, low, high in _windows(count, window, DECODER_REACH):
            seen, strokes = codes[:, low:high].to(self.device), None
            if plan is not None:
                strokes = torch.from_numpy(plan[low * FRAMES_PER_CODE : high * FRAMES_PER_CODE]).to(self.device)
                strokes = strokes.expand(batch, -1, -1)
            decoded = torch.cat([net.decode(seen[..., n], strokes) for n, net in enumerate(nets)], dim=2)
            inside = slice((first - low) * FRAMES_PER_CODE, (last - low) * FRAMES_PER_CODE)
            motion[:, first * FRAMES_PER_CODE : last * FRAMES_PER_CODE] = decoded[:, inside].cpu().numpy()
        return motion

    def _encode(self, features: np.ndarray, window: int) -> Iterator[Tensor]:
        """Features (T, C) -> audio (1, D, up to `window`), one window after another."""
        count = len(features) // FRAMES_PER_CODE
        for first, last, low, high in _windows(count, window, ENCODER_REACH):
            end = len(features) if high == count else high * FRAMES_PER_CODE  # the last 0..3 frames are heard too
            heard = torch.from_numpy(features[low * FRAMES_PER_CODE : end]).to(self.device)
            yield self.encoder(heard.T[None])[:, :, first - low : last - low]

    def to(self, device: str | torch.device) -> GestureModel:
        """The same model on another device."""
        return GestureModel(*(getattr(self, part).to(device) for part in PARTS))

    @classmethod
    def from_state(cls, states: Mapping[str, Mapping[str, Tensor]]) -> GestureModel:
        """From the state dicts of "encoder", "pixelcnn", "body_vq" and "hand_vq", their sizes read from them.

        Raises KeyError or RuntimeError when tensors are missing or do not fit.
        """
        return cls(**{part: kind.from_state_dict(states[part]) for part, kind in PARTS.items()})

    def save(self, file: str | os.PathLike[str]) -> None:
        """Write all weights to one safetensors file: matrices as float16, vectors as float32."""
        from safetensors.torch import save_file

        weights = {
            f"{part}.{key}": (value.half() if value.ndim > 1 else value.float()).contiguous().cpu()
            for part in PARTS
            for key, value in getattr(self, part).state_dict().items()
            if not key.endswith("num_batches_tracked")
        }
        target = Path(file)
        target.parent.mkdir(parents=True, exist_ok=True)
        save_file(weights, target)
        target.chmod(0o644)

    @classmethod
    def load(cls, file: str | os.PathLike[str], device: str = "cpu") -> GestureModel:
        """Read what `save` wrote; raises InputError when the file does not hold it."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        states: dict[str, dict[str, Tensor]] = {part: {} for part in PARTS}
        try:
            for name, value in load_file(file).items():
                part, key = name.split(".", 1)
                states[part][key] = value.float()
            return cls.from_state(states).to(device)
        except FileNotFoundError:
            raise InputError(f"The gesture weights '{file}' are missing.") from None
        except (OSError, KeyError, IndexError, ValueError, RuntimeError, SafetensorError) as error:
            raise InputError(f"The gesture weights '{file}' cannot be read ({error}).") from None


def _windows(count: int, size: int, reach: int) -> Iterator[tuple[int, int, int, int]]:
    """Cut 0..count into pieces first..last, each with what it can see: low..high."""
    for first in range(0, count, size):
        last = min(first + size, count)
        yield first, last, max(0, first - reach), min(count, last + reach)
