"""Few-step distillation: a UNet that lands in one to four steps where its teacher needs twenty and guidance.

    python -m avatar_app.training.distil FOOTAGE body TEACHER OUT --guidance 1.5 --steps 2000

The teacher walks its whole guided way down from pure noise; from the places where samplers of one, two and four steps
stop, the student learns to name the end of that way (sampler distillation after Luhman and Luhman, 2021).  It is
never guided, so guidance is folded in and costs nothing afterwards.  Condition encoder and autoencoder stay the
teacher's."""

from __future__ import annotations

import argparse
import copy
import json
import logging
from pathlib import Path

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn
from torch.nn import functional

from avatar_app.diffusion.denoise import guide
from avatar_app.diffusion.generator import NATIVE_SCHEDULER
from avatar_app.diffusion.networks import Condition, NativeNetworks
from avatar_app.training.train import Batches, stack

log = logging.getLogger(__name__)
TEACHER_STEPS = 20
STOPS = (0, 0.25, 0.5, 0.75)  # shares of the way at which samplers of 1, 2 and 4 steps begin a step
SLOW = 0.98  # decay of the running mean of the weights, which is what ships
SHARPNESS = 0.05  # latent difference below which the loss is quadratic


class Distiller:
    """Teaches `networks.unet` (a copy of the teacher's) for one to four steps; `average` is what ships."""

    def __init__(self, batches: Batches, teacher: NativeNetworks, guidance: float, rate: float = 1e-4, seed: int = 0):
        torch.manual_seed(seed)
        self.batches, self.guidance = batches, guidance
        self.teacher = teacher.eval().requires_grad_(False)
        self.student = copy.deepcopy(teacher.unet).train().requires_grad_(True)
        self.average = copy.deepcopy(teacher)
        self.scheduler = DDIMScheduler(**NATIVE_SCHEDULER)
        self.scheduler.set_timesteps(TEACHER_STEPS)
        self.optimizer = torch.optim.AdamW(self.student.parameters(), rate, weight_decay=0.0)

    def step(self) -> float:
        """One update -> its loss."""
        samples = self.batches.next(whole=True)  # normalisation and attention see what they will see later
        maps, place = (stack(getattr(sample, name) for sample in samples) for name in ("maps", "place"))
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
        noise = torch.randn(1, channels, *condition.latent.shape[-2:])
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("footage", type=Path)
    parser.add_argument("kind", choices=("body", "face"))
    parser.add_argument("teacher", type=Path, help="folder with the trained networks")
    parser.add_argument("out", type=Path)
    parser.add_argument("--guidance", type=float, default=1.0, help="of the teacher; needs condition dropout above 1")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    batches = Batches(arguments.footage, arguments.kind, arguments.seed)
    teacher = NativeNetworks.load(arguments.teacher)
    distiller = Distiller(batches, teacher, arguments.guidance, seed=arguments.seed)
    for step in range(1, arguments.steps + 1):
        loss = distiller.step()
        if step % 50 == 0 or step == arguments.steps:
            log.info("step %d of %d, loss %.4f", step, arguments.steps, loss)
    distiller.average.save(arguments.out)
    facts = json.loads((arguments.teacher / "training.json").read_text())
    distilled = {"steps": arguments.steps, "guidance": arguments.guidance, "teacher_steps": TEACHER_STEPS}
    (arguments.out / "training.json").write_text(json.dumps({**facts, "guided": False, "distilled": distilled}))


if __name__ == "__main__":
    main()
