"""Few-step distillation: a UNet that lands in one to four steps where its teacher needs twenty and guidance.

    python -m avatar_app.training.distil FOOTAGE body TEACHER OUT --guidance 1.5 --minutes 10

The teacher walks its whole guided way down from pure noise; from the places where samplers of one, two and four steps
stop, the student learns to name the end of that way (sampler distillation after Luhman and Luhman, 2021).  It is
never guided, so guidance is folded in and costs nothing afterwards.  Condition encoder and autoencoder stay the
teacher's.  The student ships only if it paints the held-out pictures at least as well as its teacher does in as many
steps; otherwise OUT holds the teacher.  Killed runs resume."""

from __future__ import annotations

import argparse
import copy
import json
import logging
import math
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn
from torch.nn import functional

from avatar_app.diffusion.denoise import NATIVE_SCHEDULER, guide, seeded_noise
from avatar_app.diffusion.networks import Condition, NativeNetworks
from avatar_app.files import unfinished, write_json
from avatar_app.training.batches import SETS, Batches, stack
from avatar_app.training.dataset import Sample
from avatar_app.training.train import FIELDS, importance, stop_with

log = logging.getLogger(__name__)
TEACHER_STEPS = 20
STOPS = (0, 0.25, 0.5, 0.75)  # shares of the way at which samplers of 1, 2 and 4 steps begin a step
SLOW = 0.98  # decay of the running mean of the weights, which is what ships
JUDGED_STEPS = (1, 2, 4)  # numbers of steps in which student and teacher are compared
SHARPNESS = 0.05  # latent difference below which the loss is quadratic


class Distiller:
    """Teaches `student`, a copy of the teacher's UNet, for one to four steps; `average` is what ships."""

    def __init__(
        self,
        batches: Batches,
        teacher: NativeNetworks,
        guidance: float,
        rate: float = 1e-4,
        seed: int = 0,
        device: str = "cpu",
    ):
        self.seed = seed
        torch.manual_seed(seed)
        self.batches, self.guidance, self.device = batches, guidance, torch.device(device)
        self.teacher = teacher.to(self.device).eval().requires_grad_(False)
        self.student = copy.deepcopy(teacher.unet).train().requires_grad_(True)
        self.average = copy.deepcopy(teacher)
        self.scheduler = DDIMScheduler(**NATIVE_SCHEDULER)
        self.scheduler.set_timesteps(TEACHER_STEPS)
        self.optimizer = torch.optim.AdamW(self.student.parameters(), rate, weight_decay=0.0)
        self.count, self.elapsed, self.stopped = 0, 0.0, False

    def run(self, seconds: float, out: Path) -> None:
        """Steps until the time is over, with everything saved on the way and at the end; goes on from out/state.pt."""
        if (out / "state.pt").exists():
            self.resume(out)
        begin, saved, losses = time.time() - self.elapsed, time.time(), []
        while self.elapsed < seconds and not self.stopped:
            losses.append(self.step())
            self.count, self.elapsed = self.count + 1, time.time() - begin
            if self.count % 20 == 0:
                log.info("step %d, loss %.4f", self.count, sum(losses[-20:]) / 20)
            if self.count % 4 == 0:
                facts = {"step": self.count, "seconds": self.elapsed, "of": seconds}
                write_json(out / "progress.json", facts, durable=False)
            if time.time() - saved > 120:
                self.save(out)
                saved = time.time()
        self.save(out)

    def save(self, out: Path) -> None:
        state = {name: getattr(self, name).state_dict() for name in ("student", "average", "optimizer")}
        with unfinished(out / "state.pt") as path:
            torch.save(state | {"count": self.count, "elapsed": self.elapsed}, path)

    def resume(self, out: Path) -> None:
        state = torch.load(out / "state.pt", weights_only=True, map_location=self.device)
        for name in ("student", "average", "optimizer"):
            getattr(self, name).load_state_dict(state[name])
        self.count, self.elapsed = state["count"], state["elapsed"]
        self.batches.rng = np.random.default_rng([self.seed, self.count])
        torch.manual_seed(self.seed + self.count)

    def step(self) -> float:
        """One update -> its loss."""
        samples = self.batches.next(whole=True)  # normalisation and attention see what they will see later
        maps, place = (stack(getattr(s, name) for s in samples).to(self.device) for name in ("maps", "place"))
        with torch.no_grad():
            condition = self.teacher.condition(maps, place)
            way = self.walk(condition)
        level = int(STOPS[int(torch.rand(()) ** 2 * len(STOPS))] * TEACHER_STEPS)  # one step gets the most attention
        predicted = self._predict(self.student, way[level], level, condition)
        loss = functional.smooth_l1_loss(predicted, way[-1], beta=SHARPNESS)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(self.average.unet.parameters(), self.student.parameters(), strict=True):
                slow.lerp_(fast, 1 - SLOW)
        return loss.item()

    def walk(self, condition: Condition) -> list[Tensor]:
        """The teacher's way from one noise for all frames: latents before each step, and the clean ones at the end."""
        channels = self.teacher.autoencoder.config.latent_channels
        noise = torch.randn(1, channels, *condition.latent.shape[-2:]).to(self.device)
        way = [noise.expand(len(condition.latent), -1, -1, -1)]
        for level, timestep in enumerate(self.scheduler.timesteps):
            answer = self._predict(self.teacher.unet, way[-1], level, condition)
            if self.guidance > 1:
                blind = self._predict(self.teacher.unet, way[-1], level, condition.dropped())
                answer = guide(blind, answer, self.guidance)
            way.append(self.scheduler.step(answer, timestep, way[-1]).prev_sample)
        return way

    def _predict(self, unet: nn.Module, latents: Tensor, level: int, condition: Condition) -> Tensor:
        token = self.teacher.token.expand(len(latents), -1, -1)
        seen = torch.cat([latents, condition.latent], 1)
        return unet(seen, self.scheduler.timesteps[level], token, return_dict=False)[0]


@torch.no_grad()
def held_out_psnr(networks: NativeNetworks, samples: list[Sample], steps: int, guidance: float = 1.0) -> float:
    """PSNR in dB, face and hands counting more as in training, of `steps` DDIM steps from a fixed noise."""
    device = networks.token.device
    error = total = 0.0
    for sample in samples:
        maps, place, picture = (stack([getattr(sample, name)]).to(device) for name in FIELDS)
        condition, scheduler = networks.condition(maps, place), DDIMScheduler(**NATIVE_SCHEDULER)
        scheduler.set_timesteps(steps)
        latents = (
            seeded_noise(networks.latent_shape(*maps.shape[-2:]), 0)
            .to(device)
            .view(1, -1, *condition.latent.shape[-2:])
        )
        for timestep in scheduler.timesteps:
            answer = networks.predict(latents, timestep, condition)
            if guidance > 1:
                answer = guide(networks.predict(latents, timestep, condition.dropped()), answer, guidance)
            latents = scheduler.step(answer, timestep, latents).prev_sample
        weight = importance(maps)
        made = networks.decode(latents, condition)
        error += ((made - (picture.float() / 127.5 - 1)).square() * weight).mean().item() / 4
        total += weight.mean().item()
    return -10 * math.log10(error / total)


def ship(distiller: Distiller, teacher_folder: Path, out: Path) -> dict:
    """Write the better of student and teacher to `out`, with the facts of its training, which are returned."""
    samples = distiller.batches.held_out
    judged = {"student": distiller.average, "teacher": distiller.teacher}
    scores = {
        who: [round(held_out_psnr(n, samples, k), 3) for k in JUDGED_STEPS] for who, n in judged.items() if samples
    }
    kept = not samples or sum(scores["student"]) >= sum(scores["teacher"])
    facts = json.loads((teacher_folder / "training.json").read_text())
    facts["distillation"] = {"steps": distiller.count, "guidance": distiller.guidance, "kept": kept, "psnr": scores}
    facts["guided"] = facts.get("guided", False) and not kept
    (distiller.average if kept else distiller.teacher).save(out)
    write_json(out / "training.json", facts | {"finished": True})
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("footage", type=Path)
    parser.add_argument("kind", choices=SETS)
    parser.add_argument("teacher", type=Path, help="folder with the trained networks")
    parser.add_argument("out", type=Path)
    parser.add_argument("--guidance", type=float, default=1.0, help="of the teacher; needs condition dropout above 1")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parent", type=int, help="process without which to stop")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    batches = Batches(arguments.footage, arguments.kind, arguments.seed)
    teacher = NativeNetworks.load(arguments.teacher)
    distiller = Distiller(batches, teacher, arguments.guidance, seed=arguments.seed, device=arguments.device)
    stop_with(distiller, arguments.parent)
    distiller.run(60 * arguments.minutes, arguments.out)
    if not distiller.stopped:
        log.info("%s", ship(distiller, arguments.teacher, arguments.out)["distillation"])


if __name__ == "__main__":
    main()
