"""What the generator saves against the plain loop that it repeats: `python benchmarks/generator.py [PART...]`.

exact     CPU time and latents of the streaming generator in its exact mode against a plain transcription of
          Make-Your-Anchor's loop (explicit softmax, one window at a time, whole-sequence tensors), same weights
cost      UNet evaluations per frame of a bundled anchor's presets against 20 steps with guidance and overlap
latency   share of a one-minute render after which its first second is finished
memory    peak memory of ten minutes of video against ten seconds
The networks of "exact" have Stable Diffusion 1.5's shape at an eighth of its width, head size included, and random
weights; it takes three minutes and 8 GB. All numbers are ratios within one run; with OMP_NUM_THREADS=1 other work on
the machine disturbs "exact" little, as CPU time is taken. "memory" takes about five minutes.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import save_file
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from avatar_app.anchors import Anchor, Preset, list_anchors, seal_anchor
from avatar_app.diffusion.denoise import seeded_noise, singly, stream_denoise
from avatar_app.diffusion.generator import FrameGenerator, StableDiffusionPainter
from avatar_app.diffusion.windows import compat_windows
from avatar_app.mesh.camera import Camera

SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "clip_sample": False,
}
ORIGINAL = Preset(steps=20, guidance=7.5, window=16, overlap=4, condition_scale=2.0)
FPS = 30


def main() -> None:
    parts = {"exact": exact, "cost": cost, "latency": latency, "memory": memory}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(parts))
    parser.add_argument("--frames", type=int, help=argparse.SUPPRESS)  # of the process that "memory" starts
    arguments = parser.parse_args()
    if arguments.frames:
        print(peak_memory_of(arguments.frames))
        return
    for name in arguments.parts or parts:
        parts[name]()


# ----------------------------------------------------------------------------- exact mode against the plain loop


def exact(pixels: int = 256, length: int = 28, steps: int = 2) -> None:
    options = ORIGINAL.model_copy(update={"steps": steps})
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        anchor = random_anchor(Path(folder) / "eighth", pixels, widths=(40, 80, 160, 160), heads=1)
        pictures = mesh_like_pictures(length, pixels)
        plain, plain_seconds = cpu_seconds(lambda: plain_latents(anchor, pictures, options))
        ours, seconds = cpu_seconds(lambda: streamed_latents(anchor, pictures, options))
    print(f"exact: {length} frames of {pixels} pixels, {steps} steps, {torch.get_num_threads()} threads")
    print(f"  plain loop {plain_seconds:.1f} s of CPU time, streaming generator {seconds:.1f} s")
    difference = float((plain - ours).abs().max())
    print(f"  {plain_seconds / seconds:.2f} times less; latents of deviation {ours.std():.2f} within {difference:.1e}")


def random_anchor(folder: Path, pixels: int, widths: tuple[int, ...], heads: int) -> Anchor:
    """A package of Make-Your-Anchor's kind with random networks."""
    torch.manual_seed(0)
    shape = {
        "block_out_channels": widths,
        "attention_head_dim": heads,
        "cross_attention_dim": 96,
        "norm_num_groups": 8,
    }
    unet = UNet2DConditionModel(**shape)
    controlnet = ControlNetModel(**shape, conditioning_embedding_out_channels=(4, 8, 16, 32))
    vae_widths = (16, 32, 32, 32)
    vae = AutoencoderKL(
        block_out_channels=vae_widths,
        down_block_types=("DownEncoderBlock2D",) * len(vae_widths),
        up_block_types=("UpDecoderBlock2D",) * len(vae_widths),
        norm_num_groups=8,
    )
    with torch.no_grad():
        for parameter in controlnet.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.02)
    for network, name in ((unet, "body/unet"), (controlnet, "body/controlnet"), (vae, "vae")):
        network.save_pretrained(folder / name)
    DDIMScheduler(**SCHEDULE).save_pretrained(folder / "scheduler")
    embeddings = {name: torch.randn(1, 50, 96) for name in ("prompt", "negative")}
    save_file(embeddings, folder / "body" / "embeddings.safetensors")
    camera = Camera.look_at((0, 0, 3), (0, 0, 0), focal=2.0 * pixels, width=pixels, height=pixels)
    return seal_anchor(
        folder,
        {
            "id": folder.name,
            "name": "Random weights",
            "licence": "CC0-1.0",
            "consent": {"kind": "synthetic"},
            "kind": "stable-diffusion",
            "fps": FPS,
            "width": pixels,
            "height": pixels,
            "camera": camera.to_dict(),
            "condition": "mesh-picture",
            "cross_frame_attention": True,
            "compat": "make-your-anchor",
            "presets": dict.fromkeys(("draft", "standard", "best"), ORIGINAL.model_dump()),
        },
    )


def mesh_like_pictures(count: int, pixels: int) -> np.ndarray:
    """A disc that moves: uint8 RGB (count, pixels, pixels, 3)."""
    y, x = np.mgrid[:pixels, :pixels] / pixels
    centers = 0.5 + 0.1 * np.sin(np.arange(count) / 5)
    inside = (x - centers[:, None, None]) ** 2 + (y - 0.5) ** 2 < 0.1
    return (inside[..., None] * np.array([145, 179, 186])).astype(np.uint8)


def streamed_latents(anchor: Anchor, pictures: np.ndarray, options: Preset) -> Tensor:
    painter = StableDiffusionPainter(anchor, "body", options, torch.device("cpu"), torch.float32)
    scheduler = painter.scheduler()
    scheduler.set_timesteps(options.steps)

    def predict(latents: Tensor, timestep: Tensor, frames: slice) -> Tensor:
        return painter.predict(latents, timestep, painter.encode(pictures[frames]))

    noise = seeded_noise(painter.latent_shape(*pictures.shape[1:3]), 42)
    windows = painter.windows(lambda count: min(count, len(pictures)), options)
    return torch.cat([latents for _, latents in stream_denoise(singly(predict), scheduler, noise, windows)])


def plain_latents(anchor: Anchor, pictures: np.ndarray, options: Preset) -> Tensor:
    """The original's loop, line by line: everything at hand for the whole video, both guidance halves in one batch."""
    unet = UNet2DConditionModel.from_pretrained(anchor.folder / "body" / "unet").eval()
    controlnet = ControlNetModel.from_pretrained(anchor.folder / "body" / "controlnet").eval()
    embeddings = safetensors(anchor.folder / "body" / "embeddings.safetensors")
    scheduler = DDIMScheduler.from_pretrained(anchor.folder / "scheduler")
    scheduler.set_timesteps(options.steps)
    conditions = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255
    coupling = PlainCoupling(unet, controlnet)
    latents = seeded_noise((4, pictures.shape[1] // 8, pictures.shape[2] // 8), 42).repeat(len(pictures), 1, 1, 1)
    for timestep in scheduler.timesteps:
        total, count = torch.zeros(2, *latents.shape), torch.zeros(len(latents), 1, 1, 1)
        for window in compat_windows(len(latents), options.window, options.overlap):
            frames = slice(window.start, window.stop)
            coupling.frames = len(window)
            sample, condition = latents[frames].repeat(2, 1, 1, 1), conditions[frames].repeat(2, 1, 1, 1)
            prompt = torch.cat([embeddings["negative"], embeddings["prompt"]]).repeat_interleave(len(window), 0)
            down, middle = controlnet(sample, timestep, prompt, condition, options.condition_scale, return_dict=False)
            coupling.residual = down[-1]
            noise = unet(
                sample, timestep, prompt, down_block_additional_residuals=down, mid_block_additional_residual=middle
            ).sample
            total[:, frames] += noise.unflatten(0, (2, -1))
            count[frames] += 1
        unconditional, conditional = total / count
        noise = unconditional + options.guidance * (conditional - unconditional)
        latents = scheduler.step(noise, timestep, latents).prev_sample
    return latents


class PlainCoupling:
    """All-frame attention with an explicit softmax, five-dimensional group norms, the residual in the mid block."""

    def __init__(self, unet: UNet2DConditionModel, controlnet: ControlNetModel):
        self.frames, self.residual = 1, None
        plain = AttnProcessor()

        class AllFrames(AttnProcessor):
            def __call__(_, attn, states: Tensor, *arguments, **options) -> Tensor:
                video = states.unflatten(0, (-1, self.frames)).flatten(1, 2)
                return plain(attn, video, *arguments, **options).reshape(states.shape)

        controlnet.set_attn_processor(plain)
        everywhere = AllFrames()
        unet.set_attn_processor({name: everywhere if ".attn1." in name else plain for name in unet.attn_processors})
        for network in (unet, controlnet):
            for name, module in network.named_modules():
                if isinstance(module, nn.GroupNorm) and ".attentions." not in name:
                    module.register_forward_pre_hook(
                        lambda _, inputs: inputs[0].unflatten(0, (-1, self.frames)).transpose(1, 2)
                    )
                    module.register_forward_hook(lambda _, __, video: video.transpose(1, 2).flatten(0, 1))
        unet.mid_block.register_forward_pre_hook(lambda _, inputs: (inputs[0] + self.residual, *inputs[1:]))


def safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def cpu_seconds(work) -> tuple[Tensor, float]:
    start = time.process_time()
    result = work()
    return result, time.process_time() - start


# ----------------------------------------------------------------------------- cost of the presets


def cost(length: int = 48) -> None:
    """Frames that enter the body's UNet, counted while frames are made."""
    windows = [len(window) for window in compat_windows(300, ORIGINAL.window, ORIGINAL.overlap)]
    original = ORIGINAL.steps * 2 * sum(windows) / 300
    print(f"cost: UNet evaluations per frame; 20 steps with guidance and overlap: {original:.1f}")
    for anchor in (anchor for anchor in list_anchors() if anchor.manifest.kind == "native"):
        for name, preset in anchor.manifest.presets.items():
            each = evaluations(anchor, preset, length) / length
            print(f"  {anchor.id}, {name}: {each:.2f}, {original / each:.0f} times fewer")


def evaluations(anchor: Anchor, preset: Preset, length: int) -> int:
    generator, counted = FrameGenerator(anchor, preset), 0
    predict = generator._painter.predict

    def count(latents: Tensor, *arguments) -> Tensor:
        nonlocal counted
        counted += len(latents)
        return predict(latents, *arguments)

    generator._painter.predict = count
    for _ in generator.frames(anchor.body.vertices[None] for _ in range(length)):
        pass
    return counted


# ----------------------------------------------------------------------------- latency


def latency(seconds: int = 60) -> None:
    print(f"latency: share of the windows' predictions of {seconds} s that the first second waits for")
    for name, fps, steps in (("the original's 20 steps", FPS, 20), ("4 steps", FPS, 4), ("1 step", FPS, 1)):
        for batch in (1, 4):
            share = first_second(fps, steps, seconds, batch)
            print(f"  {name}, {batch} window(s) at once: {share:.1%}")


def first_second(fps: int, steps: int, seconds: int, batch: int) -> float:
    scheduler, predicted, first = DDIMScheduler(**SCHEDULE), 0, 0
    scheduler.set_timesteps(steps)

    def predict(latents: Tensor, timesteps: Tensor, frames: list[slice]) -> Tensor:
        nonlocal predicted
        predicted += len(frames)
        return latents

    windows = compat_windows(seconds * fps, ORIGINAL.window, ORIGINAL.overlap)
    for frames, _ in stream_denoise(predict, scheduler, torch.zeros(1, 1, 1, 1), windows, batch):
        if not first and frames.stop >= fps:
            first = predicted
    return first / predicted


# ----------------------------------------------------------------------------- memory


def memory() -> None:
    """Each length in a process of its own, tiny networks of the original's kind, all couplings on."""
    peaks = {}
    for seconds in (10, 600):
        command = [sys.executable, __file__, "--frames", str(seconds * FPS)]
        peaks[seconds] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    short, long = peaks[10], peaks[600]
    print(f"memory: peak {short:.0f} MB for 10 s, {long:.0f} MB for 10 minutes: ratio {long / short:.3f}")


def peak_memory_of(count: int, pixels: int = 64) -> float:
    """MB, for rendering so many frames with two steps."""
    torch.set_num_threads(1)
    options = ORIGINAL.model_copy(update={"steps": 2, "guidance": 1.0, "window": 8, "overlap": 2})
    with tempfile.TemporaryDirectory() as folder:
        anchor = random_anchor(Path(folder) / "tiny", pixels, widths=(8, 8, 8, 8), heads=1)
        turns = mesh_like_pictures(100, pixels)
        chunks = (turns[[i % 100]] for i in range(count))
        done = sum(len(frames) for frames in FrameGenerator(anchor, options).frames(islice(chunks, count)))
    assert done == count
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
