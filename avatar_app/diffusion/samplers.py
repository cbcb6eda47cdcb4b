"""The sampling schemes that a preset may name; all repeatable, so that videos can be made piece by piece."""

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, LCMScheduler
from torch import Tensor

from avatar_app.diffusion.denoise import seeded_noise


class RepeatableLCM(LCMScheduler):
    """Latent-consistency sampling whose fresh noise is one frame a step, the same for all frames, set by `seed`."""

    seed = 0

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor, **options):
        unused = torch.Generator("cpu").manual_seed(self.seed)  # or the global one would move
        result = super().step(model_output, timestep, sample, generator=unused)
        if self.step_index < self.num_inference_steps:
            noise = seeded_noise(sample.shape[1:], self.seed + self.step_index).to(sample).expand_as(sample)
            result.prev_sample = self.add_noise(result.denoised, noise, self.timesteps[self.step_index].reshape(1))
        return result


SAMPLERS = {"ddim": DDIMScheduler, "dpm++": DPMSolverMultistepScheduler, "lcm": RepeatableLCM}


def make_scheduler(name: str, config: dict, seed: int = 0):
    """The scheme `name` on the noise schedule that the network was trained with, a diffusers scheduler's config."""
    scheduler = SAMPLERS[name].from_config(config)
    scheduler.seed = seed
    return scheduler
