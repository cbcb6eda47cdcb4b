"""What a training step of a Stable-Diffusion-sized anchor needs of its footage: computed once, kept on disk.

Footage is read as every training reads it (`Footage`). For each picture a cache holds the autoencoder's latents, the
picture of the mesh, and CLIP's tokens, with which it may serve as another picture's reference. Training then needs
neither footage nor autoencoder nor OpenGL, and memory that does not grow with the number of pictures.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from avatar_app.diffusion.alignment import resize, similarity
from avatar_app.diffusion.inpainting import FaceCropper, five_points
from avatar_app.diffusion.prompts import TOKENS, PictureEncoder
from avatar_app.mesh.conditions import condition_renderer
from avatar_app.stable_diffusion import open_network
from avatar_app.training.dataset import Footage
from avatar_app.training.paper_needs import check_disk
from talkshow_bridge.errors import InputError, shown

Part = Literal["body", "head"]
CLIP_SECONDS = 10  # a picture's reference is another one of the same stretch, as in the original's lists
REFERENCE = 256  # pixels of a head's reference, as the original makes it
HELD_OUT = 0.1  # of the pictures, from the end, where the footage has no set of its own for it
_BATCH = 4  # pictures encoded at a time
_ARRAYS = ("latents", "controls", "tokens", "clips", "masked", "keep")


@dataclass(frozen=True)
class Look:
    """How pictures are prepared. part, size in pixels, and the condition's style (see `condition_renderer`)."""

    part: Part
    size: int
    condition: str


@dataclass(frozen=True)
class Batch:
    """n pictures as a step wants them.

    clean (n, z, h, w) latents; controls uint8 (n, 3, size, size); tokens (n, 50, width) of their references;
    seen (n, 0 or 1 + z, h, w): what a head's UNet sees besides, as `inpainting_channels`."""

    clean: Tensor
    controls: Tensor
    tokens: Tensor
    seen: Tensor


class Encoders:
    """The frozen networks that a base folder and CLIP bring: pictures to latents and tokens."""

    def __init__(self, base: Path, clip: Path, device: torch.device):
        self.device = device
        self.autoencoder = open_network(AutoencoderKL, base / "vae").float().eval().requires_grad_(False).to(device)
        self.clip = PictureEncoder(clip, device)
        self.identity = _listing([*_files(base / "vae"), *_files(clip)])

    @property
    def shrink(self) -> int:
        """Pixels along a latent's side."""
        return 2 ** (len(self.autoencoder.config.block_out_channels) - 1)

    @torch.inference_mode()
    def posterior(self, pictures: np.ndarray, keep: np.ndarray | None = None) -> np.ndarray:
        """uint8 (n, s, s, 3) and, for what is masked, bool (n, s, s) -> float16 (n, 2, z, h, w): mean and deviation."""
        tensor = torch.from_numpy(pictures).permute(0, 3, 1, 2).to(self.device) / 127.5 - 1
        if keep is not None:
            tensor = tensor * torch.from_numpy(keep)[:, None].to(self.device)
        found = self.autoencoder.encode(tensor).latent_dist
        both = torch.stack([found.mean, found.std], 1) * self.autoencoder.config.scaling_factor
        return both.cpu().numpy().astype(np.float16)


class Prepared:
    """One set of one person, memory-mapped; see the module's docstring."""

    def __init__(self, folder: Path):
        files = {name: folder / f"{name}.npy" for name in _ARRAYS}
        self._arrays = {name: np.load(path, mmap_mode="r") for name, path in files.items() if path.exists()}
        self.references = self._choose_references()

    def __len__(self) -> int:
        return len(self._arrays["latents"])

    @property
    def clips(self) -> np.ndarray:
        """(N,) number of the stretch of video that each picture lies in."""
        return self._arrays["clips"]

    def _choose_references(self) -> np.ndarray:
        """(N,) number of each picture's reference: a fixed random other one of its stretch, itself if it is alone."""
        rng, chosen = np.random.default_rng(0), np.arange(len(self))
        for clip in np.unique(self.clips):
            members = np.flatnonzero(self.clips == clip)
            steps = rng.integers(1, len(members), len(members)) if len(members) > 1 else 0
            chosen[members] = members[(np.arange(len(members)) + steps) % len(members)]
        return chosen

    def take(self, numbers: np.ndarray, noise: torch.Generator | None = None) -> Batch:
        """Pictures by number; noise samples the autoencoder's posterior, None takes its mean."""
        taken = {
            name: np.stack([array[n] for n in numbers]) for name, array in self._arrays.items() if name != "tokens"
        }
        tokens = np.stack([self._arrays["tokens"][self.references[n]] for n in numbers])
        clean = _sampled(taken["latents"], noise)
        seen = clean[:, :0]
        if "masked" in taken:
            mask = torch.from_numpy(taken["keep"]).float()[:, None]
            seen = torch.cat([mask, _sampled(taken["masked"], noise)], 1)
        controls = torch.from_numpy(taken["controls"]).permute(0, 3, 1, 2)
        return Batch(clean, controls, torch.from_numpy(tokens).float(), seen)


def prepare(folder: Path, name: str, look: Look, encoders: Encoders, cache: Path) -> Prepared:
    """The cache of a set of a footage folder, made if it is not there; it appears as a whole or not at all.

    Raises InputError for footage that cannot be used, a disk too full, or a body without a face for the head."""
    sources = _listing([folder / "body.safetensors", folder / "camera.json", *_files(folder / name)])
    sources += _listing([folder / "body.json"])
    key = hashlib.sha256(json.dumps([sources, encoders.identity, vars(look)]).encode()).hexdigest()[:16]
    target = cache / f"{folder.name}-{name}-{look.part}-{look.size}-{key}"
    if not target.exists():
        footage = Footage(folder, name)
        unfinished = cache / f".{target.name}"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        _check_size(footage, look, encoders)
        _write(footage, f"{folder.name}/{name}", look, encoders, unfinished)
        unfinished.rename(target)
    return Prepared(target)


def split(folder: Path, look: Look, encoders: Encoders, cache: Path) -> tuple[tuple[Prepared, np.ndarray], ...]:
    """The pictures to train on and the held-out ones: (cache, numbers) each. The latter are the set "test" or "clip"
    or, without them, the last tenth."""
    train = prepare(folder, "train", look, encoders, cache)
    for name in ("test", "clip"):
        if (folder / name / "index.json").exists():
            test = prepare(folder, name, look, encoders, cache)
            return (train, np.arange(len(train))), (test, np.arange(len(test)))
    first = len(train) - max(1, round(HELD_OUT * len(train)))
    if first < 1:
        raise InputError(f"'{folder}' holds too few pictures to train on some and to keep others apart.")
    return (train, np.arange(first)), (train, np.arange(first, len(train)))


class View:
    """What the networks see of each picture. Raises InputError for a body without facial landmarks, for the head."""

    def __init__(self, footage: Footage, look: Look):
        if look.part == "head" and footage.body.landmarks is None:
            raise InputError("The footage's body has no facial landmarks, which head crops need: train the body only.")
        self._footage, self._look = footage, look
        self._draw = condition_renderer(look.condition)
        self._cut = FaceCropper(footage.body, self._draw, look.size) if look.part == "head" else None

    def __call__(self, n: int) -> tuple[np.ndarray, ...]:
        """Picture and mesh picture, uint8 RGB (size, size, 3), and for a head the mask uint8 (size, size), 255 kept."""
        body, camera = self._footage.body, self._footage.cameras[n]
        picture, vertices = self._footage.pictures[n], self._footage.vertices[[n]]
        if self._cut is None:
            camera = camera.crop(0, 0, self._footage.size, self._look.size)
            return resize(picture, self._look.size), self._draw(body, vertices, camera)[0]
        matrix = similarity(five_points(body, vertices, camera)[0])
        crop = self._cut(picture[None], vertices, [camera], [matrix])
        return crop.pictures[0], crop.controls[0], crop.keep[0]


def picture_count(folder: Path) -> int:
    """Pictures of a footage folder's training set. Raises InputError."""
    try:
        return len(json.loads((folder / "train" / "index.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise InputError(f"'{shown(folder)}' is not a footage folder with a set 'train'.") from None


def reference_photo(picture: np.ndarray, look: Look) -> Image.Image:
    """What CLIP is shown of a picture."""
    return Image.fromarray(resize(picture, REFERENCE) if look.part == "head" else picture)


def _check_size(footage: Footage, look: Look, encoders: Encoders) -> None:
    height, width = footage.pictures.shape[1:3]
    if height != width:
        raise InputError(f"Footage of {width}x{height} pixels cannot be trained on; pictures must be square.")
    if look.condition == "maps":
        raise InputError(
            'Networks of this kind see pictures: the condition must be "mesh-picture" or "normal-picture".'
        )
    if look.size % encoders.shrink:
        raise InputError(
            f"Pictures of {look.size} pixels cannot be encoded; the side must divide by {encoders.shrink}."
        )


def _write(footage: Footage, name: str, look: Look, encoders: Encoders, folder: Path) -> None:
    count, side = len(footage), look.size // encoders.shrink
    latents = ((count, 2, encoders.autoencoder.config.latent_channels, side, side), np.float16)
    shapes = {
        "latents": latents,
        "controls": ((count, look.size, look.size, 3), np.uint8),
        "tokens": ((count, TOKENS, encoders.clip.width), np.float16),
        "clips": ((count,), np.int32),
    }
    if look.part == "head":
        shapes |= {"masked": latents, "keep": ((count, side, side), np.uint8)}
    check_disk(folder, sum(int(np.prod(shape)) * np.dtype(kind).itemsize for shape, kind in shapes.values()), "Latents")
    arrays = {
        array: np.lib.format.open_memmap(folder / f"{array}.npy", "w+", kind, shape)
        for array, (shape, kind) in shapes.items()
    }
    arrays["clips"][:] = np.array(footage.frames) // round(CLIP_SECONDS * footage.fps)
    with tqdm(total=count, desc=f"encoding {name}", unit="picture", smoothing=0.1) as bar:
        view = View(footage, look)
        for start in range(0, count, _BATCH):
            rows = slice(start, min(start + _BATCH, count))
            pictures, controls, *keep = map(np.stack, zip(*map(view, range(count)[rows]), strict=True))
            arrays["latents"][rows] = encoders.posterior(pictures)
            arrays["controls"][rows] = controls
            arrays["tokens"][rows] = encoders.clip([reference_photo(picture, look) for picture in pictures]).cpu()
            if keep:
                kept = keep[0] >= 128
                small = functional.interpolate(torch.from_numpy(kept).float()[:, None], (side, side))
                arrays["masked"][rows], arrays["keep"][rows] = encoders.posterior(pictures, kept), small[:, 0]
            bar.update(len(pictures))
    for array in arrays.values():
        array.flush()


def _sampled(posterior: np.ndarray, noise: torch.Generator | None) -> Tensor:
    mean, deviation = torch.from_numpy(posterior).float().unbind(1)
    return mean if noise is None else mean + deviation * torch.randn(mean.shape, generator=noise)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.is_file())


def _listing(files: list[Path]) -> list[tuple[str, int, int]]:
    """Name, size and time of files; missing ones are left to whoever reads them."""
    return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files if path.exists()]
