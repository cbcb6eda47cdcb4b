"""Train the networks of one picture (body or face) of a native anchor on footage of one person.

    python -m avatar_app.training.train FOOTAGE body OUT --minutes 60      # whole pictures, set "train"
    python -m avatar_app.training.train FOOTAGE face OUT --minutes 30      # head crops, set "face" ("face512": at 512)
    python -m avatar_app.training.train ONE TWO THREE body OUT             # several people share all but the texture

`launch.py anchors train` runs this for both pictures and packs the result.

One stage, end to end: the encoder makes latents of the picture; the decoder learns to undo that; the UNet learns to
predict the same latents from noise under the condition, mostly from pure noise, because that is where few-step sampling
starts; what the decoder makes of its prediction is compared with the picture again.  Crops around head and hands first,
whole pictures at the end, so that normalisation and attention see what they will see later.

Killed runs resume from OUT/state.pt.  What is kept is the running mean of the weights that paints held-out pictures
best; OUT/sheet.png shows them (truth, made) and OUT/progress.json tells how far it is."""

from __future__ import annotations

import argparse
import copy
import math
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from threading import Thread

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from avatar_app.diffusion.denoise import NATIVE_SCHEDULER
from avatar_app.diffusion.networks import ConditionEncoder, NativeNetworks
from avatar_app.files import unfinished, write_json
from avatar_app.mesh.conditions import PART
from avatar_app.training.batches import RECIPES, Batches, stack
from avatar_app.training.dataset import Footage, Sample, average_colours

EYES_AND_MOUTH = (2, 6)  # part ids of eyes, teeth and tongue, inclusive
SKIN, CLOTHES, HAIR = 1, 7, 8
FIELDS = ("maps", "place", "picture")
CHECK_SHARE = 1 / 24  # of the time between two looks at them
PATIENCE = 0.25  # share of the time without a better look after which training stops
RATE, FINE_TUNING_RATE = 1e-3, 5e-4  # highest learning rates
BLIND_SHARE = 0.1  # of the samples the UNet does not see the condition of, so that guidance means something


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


class Person:
    """What the networks learn about one person alone: the texture, its running mean, the picture of the empty set."""

    def __init__(self, folder: Path, batches: Batches, encoder: ConditionEncoder) -> None:
        self.batches = batches
        texture = torch.randn_like(encoder.texture) * 0.1
        height, width = texture.shape[-2:]
        texture[0, :3] = torch.from_numpy(average_colours(batches.footage, (height, width)))
        self.texture = nn.Parameter(texture)
        self.slow_texture = nn.Parameter(texture.clone(), requires_grad=False)
        self.plate = encoder.plate
        if encoder.config.plate_size:
            picture = np.asarray(Image.open(folder / "plate.png").convert("RGB"), np.float32) / 127.5 - 1
            plate = torch.from_numpy(picture).permute(2, 0, 1)[None]
            self.plate = nn.Parameter(plate.to(texture.device), requires_grad=False)


class Trainer:
    """One training run; `run` returns when its time is over or the held-out pictures have long not become better.

    folders: footage of one person or, for pre-training, of several.  start: folder of trained networks whose weights,
    all but texture and set, are the beginning.  Mixed precision (bfloat16) where `computes_bfloat16`.
    """

    def __init__(
        self,
        folders: Path | Sequence[Path],
        kind: str,
        out: Path,
        seed: int = 0,
        device: str = "cpu",
        start: Path | None = None,
    ) -> None:
        folders = [folders] if isinstance(folders, Path) else list(folders)
        self.kind, self.recipe, self.out, self.device = kind, RECIPES[kind], out, torch.device(device)
        self.fine_tuned = start is not None
        self.seed = seed
        torch.manual_seed(seed)
        workers = 0 if self.device.type == "cpu" else min(8, os.cpu_count() or 1)
        batches = [Batches(folder, kind, seed + number, workers) for number, folder in enumerate(folders)]
        self.rng = batches[0].rng
        self.networks = self._new_networks(folders, start)
        self.networks.to(self.device, memory_format=torch.channels_last)
        encoder = self.networks.condition_encoder
        self.people = [Person(folder, each, encoder) for folder, each in zip(folders, batches, strict=True)]
        self.average = copy.deepcopy(self.networks).requires_grad_(False)
        self.turn_to(self.people[0])
        shared = [p for p in self.networks.parameters() if p.requires_grad and p is not encoder.texture]
        textures = [person.texture for person in self.people]
        groups = [dict(params=shared, share=1.0), dict(params=textures, share=5.0, weight_decay=0.0)]
        self.optimizer = torch.optim.AdamW(groups, 1e-3, weight_decay=1e-3, betas=(0.9, 0.99))
        self.signal, self.noise = (level.to(self.device) for level in noise_levels())
        self.step, self.elapsed = 0, 0.0
        self.scores: list[tuple[float, float]] = []  # (seconds, PSNR of the held-out pictures) of every check
        self.best: dict[str, Tensor] | None = None
        self.stopped = False  # set it to end `run` after the step in hand, with everything saved
        if (out / "state.pt").exists():
            self.resume()

    def _new_networks(self, folders: list[Path], start: Path | None) -> NativeNetworks:
        config = copy.deepcopy(self.recipe.networks)
        begun = NativeNetworks.load(start) if start else None
        if begun:  # the architecture comes with the weights
            texture = tuple(begun.condition_encoder.texture.shape[-2:])
            config = {
                "condition": own_options(begun.condition_encoder.config) | {"texture_size": texture},
                "autoencoder": own_options(begun.autoencoder.config),
                "unet_widths": tuple(begun.unet.config.block_out_channels),
            }
        plates = [folder / "plate.png" for folder in folders]
        plate_size = Image.open(plates[0]).size[::-1] if all(plate.exists() for plate in plates) else None
        config.setdefault("condition", {})["plate_size"] = plate_size
        networks = NativeNetworks(**config)
        if begun:
            known = begun.state_dict()
            dropped = {"condition_encoder.texture", "condition_encoder.plate"}
            networks.load_state_dict({k: v for k, v in known.items() if k not in dropped}, strict=False)
        return networks

    @property
    def batches(self) -> Batches:
        """Of the person whose turn it is."""
        return self.person.batches

    @property
    def footage(self) -> Footage:
        return self.batches.footage

    def turn_to(self, person: Person) -> None:
        """Let both networks wear this person's texture and stand in his set."""
        self.person = person
        for networks, texture in ((self.networks, person.texture), (self.average, person.slow_texture)):
            networks.condition_encoder.texture = texture
            networks.condition_encoder.plate = person.plate

    # -- one step
    def loss(self, samples: list[Sample]) -> tuple[Tensor, float]:
        networks = self.networks
        maps, place, picture = self.inputs(samples)
        weight = importance(maps)
        condition = networks.condition(maps, place)
        clean = networks.encode(picture)
        timestep = self.timesteps(len(samples)).to(self.device)
        signal, noise = (level[timestep].view(-1, 1, 1, 1) for level in (self.signal, self.noise))
        noisy = signal * clean.detach() + noise * torch.randn_like(clean)
        blind = torch.from_numpy(self.rng.random(len(samples)) < BLIND_SHARE).to(self.device)
        predicted = networks.predict(noisy, timestep, condition.dropped(blind))
        rough = networks.decode(clean + 0.1 * torch.randn_like(clean), condition)
        made = networks.decode(predicted, condition)
        latent = functional.smooth_l1_loss(predicted, clean.detach())
        seeing = weight * (~blind).to(weight).view(-1, 1, 1, 1)  # nobody can paint what he does not see
        loss = picture_loss(made, picture, seeing) + 0.5 * picture_loss(rough, picture, weight) + 0.1 * latent
        loss = loss + 0.1 * picture_loss(condition.base, picture, weight)  # keeps the texture's colours colours
        return loss, (made - picture).detach().square().mean().item() / 4

    def inputs(self, samples: list[Sample]) -> tuple[Tensor, Tensor, Tensor]:
        """Maps, places and pictures in [-1, 1], channels first, on the device."""
        maps, place, picture = (stack(getattr(sample, name) for sample in samples) for name in FIELDS)
        return maps.to(self.device), place.to(self.device), picture.to(self.device).float() / 127.5 - 1

    def timesteps(self, count: int) -> Tensor:
        """Pure noise half of the time, else where 2- and 4-step samplers stop, else anywhere."""
        dice = self.rng.random(count)
        stops = self.rng.choice([499, 749, 249], count)
        anywhere = self.rng.integers(0, 1000, count)
        return torch.from_numpy(np.where(dice < 0.6, 999, np.where(dice < 0.85, stops, anywhere)))

    def update(self, rate: float, whole: bool) -> tuple[float, float]:
        """One step of the optimiser and of the running mean -> loss, squared error."""
        for group in self.optimizer.param_groups:
            group["lr"] = float(rate * group["share"])
        if len(self.people) > 1:
            self.turn_to(self.people[self.rng.integers(len(self.people))])
        with torch.autocast(self.device.type, torch.bfloat16, enabled=computes_bfloat16(self.device)):
            loss, error = self.loss(self.batches.next(whole))
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.networks.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        with torch.no_grad():
            decay = min(0.998, self.step / (self.step + 20))
            for slow, fast in zip(self.average.parameters(), self.networks.parameters(), strict=True):
                slow.lerp_(fast, 1 - decay)
        return loss.item(), error

    # -- the run
    def run(self, seconds: float) -> None:
        report, saved, noted = [], time.time(), 0.0
        begin = time.time() - self.elapsed
        checked = self.scores[-1][0] if self.scores else self.elapsed
        peak = FINE_TUNING_RATE if self.fine_tuned else RATE
        while (progress := (time.time() - begin) / seconds) < 1:
            if self.stopped:
                self.save()
                return
            rate = 2e-5 + peak * min(1, (self.step + 1) / 100) * 0.5 * (1 + np.cos(np.pi * progress))
            report.append(self.update(rate, whole=progress > 1 - self.recipe.whole_share))
            self.elapsed = time.time() - begin
            if self.step % 50 == 0:
                self.tell(np.mean(report[-50:], axis=0), seconds)
            if time.time() - noted > 2:
                facts = {"step": self.step, "seconds": self.elapsed, "of": seconds, "held_out": self.scores}
                write_json(self.out / "progress.json", facts, durable=False)
                noted = time.time()
            if self.elapsed - checked > max(60, CHECK_SHARE * seconds):
                checked = self.elapsed
                self.check()
                if self.exhausted(seconds):
                    break
            if time.time() - saved > 120:
                self.save()
                saved = time.time()
        else:
            self.elapsed = seconds
        self.check()
        self.save(finished=True)

    def tell(self, mean: np.ndarray, seconds: float) -> None:
        left, psnr = (seconds - self.elapsed) / 60, -10 * np.log10(mean[1])
        print(f"step {self.step} loss {mean[0]:.4f} PSNR {psnr:.2f} dB, {left:.0f} min left", flush=True)

    def check(self) -> None:
        """Paint the held-out pictures with the running mean: note how good they are, show some, keep the best weights.

        The error counts as the loss does: face and hands more than the set."""
        total = weight_total = 0.0
        rows = []
        for person in self.people:
            self.turn_to(person)
            for sample in person.batches.held_out:
                made, picture, weight = self.paint(sample)
                total += ((made - picture).square() * weight).mean().item() / 4
                weight_total += weight.mean().item()
                rows.append(torch.cat([picture, made], -1)[0])
        if not rows:
            return
        self.scores.append((round(self.elapsed, 1), round(-10 * math.log10(total / weight_total), 3)))
        print(f"held-out pictures: {self.scores[-1][1]:.2f} dB", flush=True)
        if self.best is None or self.scores[-1][1] >= max(score for _, score in self.scores):
            self.turn_to(self.people[0])
            self.best = {key: value.detach().half().cpu() for key, value in self.average.state_dict().items()}
        sheet = torch.cat(rows[:: max(1, len(rows) // 3)][:3], 1).permute(1, 2, 0)
        sheet = ((sheet.clamp(-1, 1) + 1) * 127.5).round().byte().cpu().numpy()
        with unfinished(self.out / "sheet.png", durable=False) as path:
            Image.fromarray(sheet).save(path, "PNG")

    @torch.no_grad()
    def paint(self, sample: Sample) -> tuple[Tensor, Tensor, Tensor]:
        """One step from a fixed noise with the running mean -> made, truth (1, 3, H, W), weight (1, 1, H, W)."""
        maps, place, picture = self.inputs([sample])
        condition = self.average.condition(maps, place)
        shape = self.average.latent_shape(*maps.shape[-2:])
        noise = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0)).to(self.device)
        made = self.average.decode(self.average.predict(noise, 999, condition), condition)
        return made, picture, importance(maps)

    def exhausted(self, seconds: float) -> bool:
        """Whether the last PATIENCE of the planned time, past its middle, brought nothing."""
        best = max(self.scores, key=lambda entry: entry[1], default=(self.elapsed, 0))
        return self.elapsed > seconds / 2 and self.elapsed - best[0] > PATIENCE * seconds

    def save(self, finished: bool = False) -> None:
        """The averaged networks, the best so far, as an anchor folder and everything needed to go on."""
        self.turn_to(self.people[0])
        kept = self.average
        if self.best is not None:
            kept = copy.deepcopy(self.average)
            kept.load_state_dict(self.best)
        kept.save(self.out)
        state = dict(
            networks=self.networks.state_dict(),
            average=self.average.state_dict(),
            optimizer=self.optimizer.state_dict(),
            textures=[(person.texture.detach(), person.slow_texture.detach()) for person in self.people],
            best=self.best,
            scores=self.scores,
            step=self.step,
            elapsed=self.elapsed,
        )
        with unfinished(self.out / "state.pt") as path:
            torch.save(state, path)
        facts = {
            "steps": self.step,
            "seconds": round(self.elapsed),
            "pictures": sum(person.batches.count for person in self.people),
            "size": self.people[0].batches.footage.size,
            "people": len(self.people),
            "fine_tuned": self.fine_tuned,
            "guided": True,
            "held_out_psnr": max((score for _, score in self.scores), default=None),
            "finished": finished,
        }
        write_json(self.out / "training.json", facts)

    def resume(self) -> None:
        state = torch.load(self.out / "state.pt", weights_only=True, map_location=self.device)
        self.networks.load_state_dict(state["networks"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        with torch.no_grad():
            for person, (texture, slow) in zip(self.people, state.get("textures", ()), strict=False):
                person.texture.copy_(texture)
                person.slow_texture.copy_(slow)
        self.best, self.scores = state.get("best"), state.get("scores", [])
        self.step, self.elapsed = state["step"], state["elapsed"]
        for number, person in enumerate(self.people):  # not the same pictures and noise as from the start
            person.batches.rng = np.random.default_rng([self.seed, number, self.step])
        self.rng = self.people[0].batches.rng
        torch.manual_seed(self.seed + self.step)


def own_options(config: dict) -> dict:
    """A diffusers configuration without the library's private entries."""
    return {key: value for key, value in config.items() if not key.startswith("_")}


def computes_bfloat16(device: torch.device) -> bool:
    """GPUs of CUDA do, and CPUs with instructions for it: their steps take two thirds of the time."""
    if device.type != "cpu":
        return device.type == "cuda"
    able = torch.cpu.get_capabilities()
    return able.get("avx512_bf16", False) or able.get("amx_bf16", False)


def noise_levels() -> tuple[Tensor, Tensor]:
    """Signal and noise amplitude (1000,) of every timestep, as the sampler has them."""
    from diffusers import DDIMScheduler

    signal = DDIMScheduler(**NATIVE_SCHEDULER).alphas_cumprod
    return signal.sqrt(), (1 - signal).sqrt()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("footage", type=Path, nargs="+")
    parser.add_argument("kind", choices=RECIPES)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--from", dest="start", type=Path, help="folder of trained networks to begin with")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parent", type=int, help="process without which to stop")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(
        arguments.footage, arguments.kind, arguments.out, arguments.seed, arguments.device, arguments.start
    )
    stop_with(trainer, arguments.parent)
    trainer.run(60 * arguments.minutes)


def stop_with(trainer, parent: int | None) -> None:
    """Set `trainer.stopped` when this process is told to end, or when its parent is gone."""

    def stop(*_: object) -> None:
        trainer.stopped = True

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(2)
        stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    if parent is not None:
        Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    main()
