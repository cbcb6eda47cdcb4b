"""Train the networks of one picture (body or face) of a native anchor on footage of one person.

    python -m avatar_app.training.train FOOTAGE body OUT --minutes 60      # whole pictures, set "train"
    python -m avatar_app.training.train FOOTAGE face OUT --minutes 30      # head crops, set "face"

One stage, end to end: the encoder makes latents of the picture; the decoder learns to undo that; the UNet learns to
predict the same latents from noise under the condition, mostly from pure noise, because that is where few-step sampling
starts; what the decoder makes of its prediction is compared with the picture again.  Crops around head and hands first,
whole pictures at the end, so that normalisation and attention see what they will see later.  Killed runs resume
from OUT/state.pt."""

from __future__ import annotations

import argparse
import copy
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from avatar_app.diffusion.generator import NATIVE_SCHEDULER
from avatar_app.diffusion.networks import NativeNetworks
from avatar_app.mesh.conditions import PART
from avatar_app.training.dataset import Footage, Sample, average_colours

EYES_AND_MOUTH = (2, 6)  # part ids of eyes, teeth and tongue, inclusive
SKIN, CLOTHES, HAIR = 1, 7, 8
BLIND_SHARE = 0.1  # of the samples the UNet does not see the condition of, so that guidance means something


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
        dict(condition=dict(texture_size=(384, 768)), unet_widths=(64, 96, 128)),
        crop=192,
        crops=6,
        whole=2,
        whole_share=0.35,
    ),
    "face": Recipe(
        dict(
            condition=dict(texture_size=(448, 896), downscale=8),
            autoencoder=dict(downscale=8),
            unet_widths=(48, 64, 96),
        ),
        crop=128,
        crops=6,
        whole=3,
        whole_share=0.5,
    ),
}


def importance(maps: Tensor) -> Tensor:
    """Loss weight (N, 1, H, W): eyes and mouth most, then skin, hair, clothes, their surroundings, the set."""
    part = maps[:, PART : PART + 1]

    def near(mask: Tensor, reach: int) -> Tensor:
        rows = functional.max_pool2d(mask.float(), (2 * reach + 1, 1), 1, (reach, 0))
        return functional.max_pool2d(rows, (1, 2 * reach + 1), 1, (0, reach))

    fine = (part >= EYES_AND_MOUTH[0]) & (part <= EYES_AND_MOUTH[1])
    return (
        0.25
        + 0.75 * near(part > 0, 12)
        + 1.5 * near(part == SKIN, 3)
        + 0.5 * near(part == HAIR, 4)
        + 3.5 * near(fine, 3)
    )


def picture_loss(made: Tensor, wanted: Tensor, weight: Tensor) -> Tensor:
    """Weighted L1 of colours and of their differences to the right and downwards."""
    error = made - wanted
    loss = (error.abs() * weight).mean()
    across, down = error[..., 1:] - error[..., :-1], error[:, :, 1:] - error[:, :, :-1]
    return loss + 0.7 * ((across.abs() * weight[..., 1:]).mean() + (down.abs() * weight[:, :, 1:]).mean())


class Batches:
    """Random samples of one set: whole pictures, or crops mostly around head and hands."""

    def __init__(self, folder: Path, kind: str, seed: int = 0) -> None:
        self.recipe, self.rng = RECIPES[kind], np.random.default_rng(seed)
        self.footage = Footage(folder, "train" if kind == "body" else "face")

    def next(self, whole: bool = False) -> list[Sample]:
        footage, size = self.footage, self.recipe.crop
        if whole:
            return [footage.sample(int(n)) for n in self.rng.integers(0, len(footage), self.recipe.whole)]
        samples = []
        for number in self.rng.integers(0, len(footage), self.recipe.crops):
            dice, middle = self.rng.random(), self.rng.random(2) * footage.size
            if dice < 0.40:
                middle = footage.head[number] + self.rng.normal(0, size / 8, 2)
            elif dice < 0.75 and len(footage.interesting[number]):
                places = footage.interesting[number]
                middle = places[self.rng.integers(len(places))] + self.rng.normal(0, size / 8, 2)
            left, top = (np.clip(middle - size / 2, 0, footage.size - size) // 16 * 16).astype(int)
            samples.append(footage.sample(int(number), int(left), int(top), size))
        return samples


class Trainer:
    """One training run; `run` returns when its time is over."""

    def __init__(self, footage_folder: Path, kind: str, out: Path, seed: int = 0) -> None:
        self.recipe, self.out = RECIPES[kind], out
        self.batches = Batches(footage_folder, kind, seed)
        self.rng, self.footage = self.batches.rng, self.batches.footage
        torch.manual_seed(seed)
        config = copy.deepcopy(self.recipe.networks)
        plate = footage_folder / "plate.png"
        has_plate = kind == "body" and plate.exists()
        if has_plate:
            config["condition"]["plate_size"] = (self.footage.size, self.footage.size)
        self.networks = NativeNetworks(**config)
        encoder = self.networks.condition_encoder
        with torch.no_grad():
            encoder.texture.normal_(0, 0.1)
            encoder.texture[0, :3] = torch.from_numpy(
                average_colours(self.footage, config["condition"]["texture_size"])
            )
            if has_plate:
                picture = np.asarray(Image.open(plate).convert("RGB"), np.float32) / 127.5 - 1
                encoder.plate[0] = torch.from_numpy(picture).permute(2, 0, 1)
        self.networks.to(memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.networks).requires_grad_(False)
        texture = [encoder.texture]
        others = [p for p in self.networks.parameters() if p.requires_grad and p is not encoder.texture]
        groups = [dict(params=others, share=1.0), dict(params=texture, share=5.0, weight_decay=0.0)]
        self.optimizer = torch.optim.AdamW(groups, 1e-3, weight_decay=1e-3, betas=(0.9, 0.99))
        self.signal, self.noise = noise_levels()
        self.step, self.elapsed = 0, 0.0
        if (out / "state.pt").exists():
            self.resume()

    # -- one step
    def loss(self, samples: list[Sample]) -> tuple[Tensor, float]:
        networks = self.networks
        maps, place = (stack(getattr(sample, name) for sample in samples) for name in ("maps", "place"))
        picture = stack(sample.picture for sample in samples).float() / 127.5 - 1
        weight = importance(maps)
        condition = networks.condition(maps, place)
        clean = networks.encode(picture)
        timestep = self.timesteps(len(samples))
        signal, noise = (level[timestep].view(-1, 1, 1, 1) for level in (self.signal, self.noise))
        noisy = signal * clean.detach() + noise * torch.randn_like(clean)
        blind = torch.from_numpy(self.rng.random(len(samples)) < BLIND_SHARE)
        predicted = networks.predict(noisy, timestep, condition.dropped(blind))
        rough = networks.decode(clean + 0.1 * torch.randn_like(clean), condition)
        made = networks.decode(predicted, condition)
        latent = functional.smooth_l1_loss(predicted, clean.detach())
        seeing = weight * (~blind).to(weight).view(-1, 1, 1, 1)  # nobody can paint what he does not see
        loss = picture_loss(made, picture, seeing) + 0.5 * picture_loss(rough, picture, weight) + 0.1 * latent
        loss = loss + 0.1 * picture_loss(condition.base, picture, weight)  # keeps the texture's colours colours
        return loss, (made - picture).detach().square().mean().item() / 4

    def timesteps(self, count: int) -> Tensor:
        """Pure noise half of the time, else where 2- and 4-step samplers stop, else anywhere."""
        dice = self.rng.random(count)
        stops = self.rng.choice([499, 749, 249], count)
        anywhere = self.rng.integers(0, 1000, count)
        return torch.from_numpy(np.where(dice < 0.6, 999, np.where(dice < 0.85, stops, anywhere)))

    # -- the run
    def run(self, seconds: float) -> None:
        report, saved = [], time.time()
        begin = time.time() - self.elapsed
        while (progress := (time.time() - begin) / seconds) < 1:
            rate = 2e-5 + 1e-3 * min(1, (self.step + 1) / 100) * 0.5 * (1 + np.cos(np.pi * progress))
            for group in self.optimizer.param_groups:
                group["lr"] = float(rate * group["share"])
            loss, error = self.loss(self.batches.next(whole=progress > 1 - self.recipe.whole_share))
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.networks.parameters(), 1.0)
            self.optimizer.step()
            self.step += 1
            with torch.no_grad():
                decay = min(0.998, self.step / (self.step + 20))
                for slow, fast in zip(self.average.parameters(), self.networks.parameters(), strict=True):
                    slow.lerp_(fast, 1 - decay)
            report.append((loss.item(), error))
            if self.step % 50 == 0:
                mean = np.mean(report[-50:], axis=0)
                left = seconds * (1 - progress) / 60
                psnr = -10 * np.log10(mean[1])
                print(f"step {self.step} loss {mean[0]:.4f} PSNR {psnr:.2f} dB, {left:.0f} min left", flush=True)
            if time.time() - saved > 120:
                self.elapsed = time.time() - begin
                self.save()
                saved = time.time()
        self.elapsed = seconds
        self.save()

    def save(self) -> None:
        """The averaged networks as an anchor folder and everything needed to go on."""
        self.average.save(self.out)
        state = dict(
            networks=self.networks.state_dict(),
            average=self.average.state_dict(),
            optimizer=self.optimizer.state_dict(),
            step=self.step,
            elapsed=self.elapsed,
        )
        torch.save(state, self.out / "state.tmp")
        (self.out / "state.tmp").replace(self.out / "state.pt")
        (self.out / "training.json").write_text(
            json.dumps(
                {"steps": self.step, "seconds": round(self.elapsed), "pictures": len(self.footage), "guided": True}
            )
        )

    def resume(self) -> None:
        state = torch.load(self.out / "state.pt", weights_only=True)
        self.networks.load_state_dict(state["networks"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.elapsed = state["step"], state["elapsed"]


def noise_levels() -> tuple[Tensor, Tensor]:
    """Signal and noise amplitude (1000,) of every timestep, as the sampler has them."""
    from diffusers import DDIMScheduler

    signal = DDIMScheduler(**NATIVE_SCHEDULER).alphas_cumprod
    return signal.sqrt(), (1 - signal).sqrt()


def stack(arrays) -> Tensor:
    """(H, W, C) arrays -> channels-last (N, C, H, W)."""
    return torch.from_numpy(np.stack(list(arrays))).permute(0, 3, 1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("footage", type=Path)
    parser.add_argument("kind", choices=RECIPES)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    Trainer(arguments.footage, arguments.kind, arguments.out, arguments.seed).run(60 * arguments.minutes)


if __name__ == "__main__":
    main()
