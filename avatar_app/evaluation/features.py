"""Numbers that need a trained judge, whose weights the user names: Fréchet distance and identity.

The judge is a folder of a transformers vision model (CLIP, DINO, ViT, or a video model such as VideoMAE) with
safetensors weights and its image processor. Nothing is downloaded. Fréchet distances are only comparable between runs
with the same judge and the same number of pictures; from a few dozen pictures they are rough.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from scipy.linalg import sqrtm

from talkshow_bridge.errors import InputError

BATCH = 8
VIDEO_MODELS = ("videomae", "vivit", "timesformer")


class Judge:
    """Features of pictures, or of short clips when the model is one for videos."""

    def __init__(self, folder: str | Path, device: str = "cpu") -> None:
        from transformers import AutoConfig, AutoImageProcessor, AutoModel

        options = {"local_files_only": True, "trust_remote_code": False}
        try:
            config = AutoConfig.from_pretrained(str(folder), **options)
            self._processor = AutoImageProcessor.from_pretrained(str(folder), **options)
            model = AutoModel.from_pretrained(str(folder), use_safetensors=True, **options)
        except (OSError, ValueError, ImportError) as error:
            raise InputError(f"'{folder}' is not a transformers vision model: {str(error).splitlines()[0]}") from None
        self._model = getattr(model, "vision_model", model).to(device).eval()
        self._device, self.frames = device, getattr(config, "num_frames", 1) if config.model_type in VIDEO_MODELS else 1

    def compare(self, made: np.ndarray, truth: np.ndarray, heads: np.ndarray, true_heads: np.ndarray) -> dict:
        """Fréchet distance of whole pictures ("FID") or clips ("FVD"); mean cosine of the heads' features."""
        if self.frames > 1:
            return {"FVD": frechet(self.features(made), self.features(truth))}
        mine, theirs = self.features(heads), self.features(true_heads)
        cosine = (mine * theirs).sum(1) / (np.linalg.norm(mine, axis=1) * np.linalg.norm(theirs, axis=1))
        return {"FID": frechet(self.features(made), self.features(truth)), "identity": float(cosine.mean())}

    @torch.inference_mode()
    def features(self, pictures: np.ndarray) -> np.ndarray:
        """uint8 RGB (N, h, w, 3) -> (N, d), or (N - frames + 1, d) for a model of videos: every stretch of frames."""
        if self.frames > 1:
            clips = [list(pictures[n : n + self.frames]) for n in range(len(pictures) - self.frames + 1)]
            if not clips:
                raise InputError(f"The video model needs {self.frames} frames; the clip has {len(pictures)}.")
            return np.concatenate([self._of(clip) for clip in clips])
        return np.concatenate([self._of(list(pictures[n : n + BATCH])) for n in range(0, len(pictures), BATCH)])

    def _of(self, pictures: list[np.ndarray]) -> np.ndarray:
        inputs = self._processor(pictures, return_tensors="pt").to(self._device)
        output = self._model(**inputs)
        pooled = getattr(output, "pooler_output", None)
        return (output.last_hidden_state.mean(1) if pooled is None else pooled).float().cpu().numpy()


def frechet(mine: np.ndarray, theirs: np.ndarray) -> float:
    """Fréchet distance of two Gaussians fitted to features (n, d) and (m, d) (Heusel et al. 2017)."""
    apart = ((mine.mean(0) - theirs.mean(0)) ** 2).sum()
    a, b = np.cov(mine, rowvar=False), np.cov(theirs, rowvar=False)
    return float(apart + np.trace(a + b - 2 * sqrtm(a @ b).real))
