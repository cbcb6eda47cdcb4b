"""What a training step sees: crops of one person's pictures, chosen by the recipe of the networks."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from avatar_app.training.dataset import Footage, Sample

SETS = {"body": "train", "face": "face", "face512": "face512"}  # kind of networks -> set of pictures
HELD_OUT = 6  # pictures by which progress is judged


@dataclass(frozen=True)
class Recipe:
    """Numbers that differ between whole pictures and head crops."""

    networks: dict
    crop: int  # pixels along a side while training on crops
    crops: int  # crops a step
    whole: int  # whole pictures a step in the last part
    whole_share: float  # share of the time that whole pictures get


RECIPES = {
    "body": Recipe(
        dict(
            condition=dict(texture_size=(384, 768), width=32, detail_width=16),
            autoencoder=dict(decoder_widths=(16, 48, 64, 96), detail_width=16),
            unet_widths=(48, 64, 96),
        ),
        crop=192,
        crops=6,
        whole=2,
        whole_share=0.35,
    ),
    "face": Recipe(
        dict(
            condition=dict(texture_size=(448, 896), width=32, detail_width=16, downscale=8),
            autoencoder=dict(decoder_widths=(32, 48, 64), detail_width=16, downscale=8),
            unet_widths=(48, 64, 96),
        ),
        crop=128,
        crops=6,
        whole=3,
        whole_share=0.5,
    ),
    "face512": Recipe(  # for head crops filmed at 512 pixels: one halving more, so the latents are as many as at 256
        dict(
            condition=dict(texture_size=(448, 896), width=32, detail_width=16),
            autoencoder=dict(decoder_widths=(16, 48, 64, 96), detail_width=16),
            unet_widths=(48, 64, 96),
        ),
        crop=192,
        crops=4,
        whole=1,
        whole_share=0.4,
    ),
}


class Batches:
    """Random samples of one set: whole pictures, or crops mostly around head and hands.

    `held_out`: whole pictures that training does not see, from the set "test" or "clip", or else the last of the set.
    workers: threads that draw condition maps, 0 = in the caller's.
    """

    def __init__(self, folder: Path, kind: str, seed: int = 0, workers: int = 0) -> None:
        self.recipe, self.rng = RECIPES[kind], np.random.default_rng(seed)
        self.footage = Footage(folder, SETS[kind])
        other = next((name for name in ("test", "clip") if (folder / name / "index.json").exists()), None)
        held_out = Footage(folder, other) if kind == "body" and other else None
        self.count = len(self.footage)
        if held_out is None and self.count >= 10 * HELD_OUT:
            held_out, self.count = self.footage, self.count - HELD_OUT
        chosen = [] if held_out is None else np.linspace(len(held_out) - 1, 0, HELD_OUT).astype(int)
        if held_out is self.footage:
            chosen = range(self.count, len(self.footage))
        self.held_out = [held_out.sample(int(n)) for n in chosen]
        self._map = ThreadPoolExecutor(workers).map if workers else map

    def next(self, whole: bool = False) -> list[Sample]:
        footage, size = self.footage, min(self.recipe.crop, self.footage.size)
        if whole:
            chosen = [(int(n),) for n in self.rng.integers(0, self.count, self.recipe.whole)]
            return list(self._map(lambda place: footage.sample(*place), chosen))
        chosen = []
        for number in self.rng.integers(0, self.count, self.recipe.crops):
            dice, middle = self.rng.random(), self.rng.random(2) * footage.size
            if dice < 0.40:
                middle = footage.head[number] + self.rng.normal(0, size / 8, 2)
            elif dice < 0.75 and len(footage.interesting[number]):
                places = footage.interesting[number]
                middle = places[self.rng.integers(len(places))] + self.rng.normal(0, size / 8, 2)
            left, top = (np.clip(middle - size / 2, 0, footage.size - size) // 16 * 16).astype(int)
            chosen.append((int(number), int(left), int(top), size))
        return list(self._map(lambda place: footage.sample(*place), chosen))


def stack(arrays: Iterable[np.ndarray]) -> Tensor:
    """(H, W, C) arrays -> channels-last (N, C, H, W)."""
    return torch.from_numpy(np.stack(list(arrays))).permute(0, 3, 1, 2)
