"""Train networks of Make-Your-Anchor's kind: a UNet and a ControlNet of Stable Diffusion 1.5's size, in two stages.

    launch.py anchors pretrain --kind stable-diffusion PERSON1 PERSON2 ... --base SD15 --out pretrained  # 1: many
    launch.py anchors train --kind stable-diffusion PERSON --base SD15 --from pretrained --out name      # 2: one

Both stages are the same loop. A sample is one picture: its latents under noise, the picture of the posed mesh, and as
prompt CLIP's tokens of another picture of the same person, which tell identities apart. UNet and ControlNet learn
together to predict the noise. In a tenth of the samples the prompt is the empty text, so that guidance means something.
The head's networks repaint the face in an aligned crop; their UNet also sees the mask (1 is kept) and what it keeps.

A run folder holds body/ and head/, each with checkpoint-N/{unet,controlnet} (the best so far; N is the step), state.pt
to go on from, training.json and samples/. It is the original's own layout: `anchors import` reads it too.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from avatar_app.diffusion.denoise import guide, overlapped_denoise, seeded_noise
from avatar_app.diffusion.frames import to_bytes_range, to_frames
from avatar_app.diffusion.lora import frozen_state, learn_lora, learnt_lora, merge_lora
from avatar_app.diffusion.prompts import empty_text_tokens
from avatar_app.diffusion.samplers import make_scheduler
from avatar_app.files import unfinished, write_json
from avatar_app.stable_diffusion import (
    check_size,
    find_stages,
    open_network,
    open_scheduler,
    open_stage,
    write_network,
)
from avatar_app.training.build import check_start
from avatar_app.training.paper_data import Batch, Encoders, Look, Part, picture_count, split
from avatar_app.training.paper_needs import (
    Needs,
    StepCost,
    check_disk,
    count_step,
    first_fitting,
    measure_speed,
    run_needs,
)
from avatar_app.trust.consent import Consent, require_consent
from avatar_app.weights import place
from talkshow_bridge.errors import InputError

log = logging.getLogger(__name__)

EPOCHS = 60  # of the original, in both stages
SIZES = {"body": 512, "head": 256}
CHECKED = 64  # held-out pictures that the loss is measured on
SHOWN, SHOWN_STEPS = 4, 10  # pictures of a sample sheet and the steps that each takes
GUIDANCE = 2.0  # of sample sheets and of the package's presets


@dataclass(frozen=True)
class Recipe:
    """Numbers of a run; the defaults are the original's where it has one.

    size: pixels, None for 512 (body) or 256 (head). steps: updates, None for 60 times all pictures. batch: pictures an
    update, as many at a time as the memory holds. blind: share of samples without prompt. average: decay of the running
    mean of the weights, which is what ships; 0 for none. lora: rank of the additions that the UNet learns instead of
    all its weights; 0 for all. precision: "no", "bf16" or "fp16", None for what the device does well. condition: see
    `avatar_app.mesh.conditions`. check_every: updates between looks at the held-out pictures; patience: looks without
    progress before the run ends. save_every: updates between saved states."""

    part: Part = "body"
    size: int | None = None
    steps: int | None = None
    batch: int = 4
    rate: float = 1e-5
    decay: float = 1e-2
    clip: float = 1.0
    blind: float = 0.1
    average: float = 0.9999
    lora: int = 0
    precision: str | None = None
    condition: str = "mesh-picture"
    check_every: int = 1000
    patience: int = 8
    save_every: int = 500
    seed: int = 0

    @property
    def look(self) -> Look:
        return Look(self.part, self.size or SIZES[self.part], self.condition)


@dataclass(frozen=True)
class Base:
    """The user's own folders. folder: Stable Diffusion 1.5; inpainting: that of the inpainting model, from which a head
    may start; clip: clip-vit-base-patch32, None for that name beside `folder`."""

    folder: Path
    inpainting: Path | None = None
    clip: Path | None = None

    def of(self, part: Part) -> Path:
        return self.inpainting if part == "head" and self.inpainting else self.folder

    @property
    def encoder(self) -> Path:
        return self.clip or self.folder.resolve().parent / "clip-vit-base-patch32"


class Pair(nn.Module):
    """UNet and ControlNet as one network, so that one optimiser step trains both."""

    def __init__(self, unet: UNet2DConditionModel, controlnet: ControlNetModel):
        super().__init__()
        self.unet, self.controlnet = unet, controlnet

    def forward(self, noisy: Tensor, timestep: Tensor, tokens: Tensor, controls: Tensor, seen: Tensor) -> Tensor:
        """Noise prediction (n, z, h, w); controls (n, 3, height, width) in 0..1, seen (n, c, h, w)."""
        down, middle = self.controlnet(noisy, timestep, tokens, controls, return_dict=False)
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        return self.unet(torch.cat([noisy, seen], 1), timestep, tokens, **residuals, return_dict=False)[0]


def open_pair(base: Base, start: Path | None, part: Part, latents: int) -> Pair:
    """The networks to begin with, in 32 bits: those in `start` (see `find_stages`), or the base's UNet and a ControlNet
    made of it. latents: channels. Raises InputError."""
    if start is not None:
        stage = find_stages(start).get("face" if part == "head" else "body")
        if stage is None:
            raise InputError(f"'{place(start)}' has no networks of the head; without it the head starts from the base.")
        networks = open_stage(stage, "face" if part == "head" else "body", latents)
        return Pair(networks["unet"], networks["controlnet"]).float()
    unet = open_network(UNet2DConditionModel, base.of(part) / "unet").float()
    if unet.config.in_channels not in (latents, 2 * latents + 1) or unet.config.out_channels != latents:
        raise InputError(
            f"'{place(base.of(part))}/unet' has {unet.config.in_channels} input channels; expected {latents} or, of an "
            f"inpainting model, {2 * latents + 1}."
        )
    controlnet = ControlNetModel.from_unet(with_input_channels(unet, latents))
    return Pair(with_input_channels(unet, 2 * latents + 1 if part == "head" else latents), controlnet)


def with_input_channels(unet: UNet2DConditionModel, channels: int) -> UNet2DConditionModel:
    """The same UNet, cut or widened to so many input channels; it does not look at new ones until it learns to."""
    old = unet.conv_in
    new = nn.Conv2d(channels, old.out_channels, old.kernel_size, padding=old.padding)
    with torch.no_grad():
        new.weight.zero_()
        common = min(channels, old.in_channels)
        new.weight[:, :common] = old.weight[:, :common]
        new.bias.copy_(old.bias)
    state = unet.state_dict() | {f"conv_in.{name}": value for name, value in new.state_dict().items()}
    with torch.device("meta"):
        same = UNet2DConditionModel.from_config({**unet.config, "in_channels": channels})
    same.load_state_dict(state, assign=True)
    return same


class PaperTrainer:
    """One run of one part. Raises InputError for folders, sizes or a memory that do not fit, before any work is done.

    people: footage folders (`Footage`), several for the first stage. start: networks to begin with (see `open_pair`).
    device: "cpu", or None for the accelerator that is there. A run that was killed goes on from its last state; what a
    step sees depends on its number alone, so the result is the same."""

    def __init__(
        self,
        people: list[Path],
        out: Path,
        base: Base,
        recipe: Recipe,
        start: Path | None = None,
        device: str | None = None,
    ):
        self.recipe, self.base, self.out = recipe, base, out / recipe.part
        torch.manual_seed(recipe.seed)
        precision = recipe.precision or ("no" if device == "cpu" or not torch.cuda.is_available() else "bf16")
        if device is not None and device.startswith("cuda:"):
            torch.cuda.set_device(device)
        self.accelerator = Accelerator(cpu=device == "cpu", mixed_precision=precision)
        if self.accelerator.num_processes > 1:
            raise InputError("This training runs on one device: start it without `accelerate launch` on several.")
        self.device = self.accelerator.device
        if device is not None and self.device.type != torch.device(device).type:
            raise InputError(f"There is no '{device}' here: this training would run on '{self.device}'.")
        self.empty = empty_text_tokens(base.of(recipe.part) / "text_encoder")
        self.encoders = Encoders(base.of(recipe.part), base.encoder, self.device)
        vae = self.encoders.autoencoder.config
        self.pair = open_pair(base, start, recipe.part, vae.latent_channels)
        check_size((recipe.look.size,) * 2, vae, self.pair.unet.config)
        self._check_tokens()
        self.noising = open_scheduler(base.of(recipe.part))
        if self.noising.config.prediction_type != "epsilon":
            raise InputError(f"'{place(base.of(recipe.part))}' does not predict noise; expected Stable Diffusion 1.5.")
        if recipe.lora:
            learn_lora(self.pair.unet, recipe.lora)
        self.out.mkdir(parents=True, exist_ok=True)
        self._check_settings(people, start)
        count = sum(picture_count(person) for person in people)
        self.steps = recipe.steps or max(1, EPOCHS * count // recipe.batch)
        self.at_once = self._plan(precision != "no")
        parts = [split(person, recipe.look, self.encoders, out / "cache") for person in people]
        self.train, self.held_out = ([part[k] for part in parts] for k in (0, 1))
        self._place(precision)
        self.step, self.history, self.best, self.waited = 0, [], float("inf"), 0
        if (self.out / "state.pt").exists():
            self._resume()

    # -- before the first step
    def _check_tokens(self) -> None:
        expected = self.pair.unet.config.cross_attention_dim
        for what, width in (("CLIP", self.encoders.clip.width), ("the base's text encoder", self.empty.shape[-1])):
            if width != expected:
                raise InputError(f"The UNet expects tokens {expected} wide, {what} makes {width}.")

    def _check_settings(self, people: list[Path], start: Path | None) -> None:
        """A run that goes on must be the run that was begun; what only decides when it looks or ends may change."""
        free = ("steps", "check_every", "patience", "save_every", "precision")
        settings = {key: value for key, value in asdict(self.recipe).items() if key not in free}
        settings |= {"people": [person.name for person in people], "start": start and start.name}
        path = self.out / "settings.json"
        if path.exists():
            before = json.loads(path.read_text())
            changed = [name for name in settings if before.get(name) != settings[name]]
            if changed:
                raise InputError(
                    f"'{place(self.out)}' was begun with another '{changed[0]}' ({before.get(changed[0])}); "
                    "go on with that, or choose another --out."
                )
        write_json(path, settings)

    def _plan(self, mixed: bool) -> int:
        """Tells what the run will take -> pictures at a time; sets gradient checkpointing."""
        recipe, trained = self.recipe, sum(p.numel() for p in self.pair.parameters() if p.requires_grad)
        frozen = sum(p.numel() for p in self.pair.parameters()) - trained
        costs = {again: self._cost(again, mixed) for again in (False, True)}
        sizes = [batch for batch in range(recipe.batch, 0, -1) if recipe.batch % batch == 0]
        choices = [
            (False, recipe.batch),
            *((True, size) for size in sizes),
        ]  # dearest memory first

        def needs_of(again: bool, batch: int) -> Needs:
            pictures = self.steps * recipe.batch
            return run_needs(costs[again], trained, frozen, batch, pictures, recipe.average > 0, mixed)

        options = [(choice, needs_of(*choice)) for choice in choices]
        (self.checkpointing, at_once), needs = first_fitting(self.device, options)
        speed = measure_speed(self.device, torch.bfloat16 if mixed else torch.float32)
        log.info("%s: %s", recipe.part, needs)
        log.info(
            "%d steps of %d pictures, %d at a time%s: about %s on %s",
            *(self.steps, recipe.batch, at_once, ", blocks computed again" if self.checkpointing else ""),
            *(_duration(needs.work / speed), self.device),
        )
        numbers = trained + frozen
        states = (12 + (4 if recipe.average else 0)) * trained
        check_disk(self.out, 2 * (states + 4 * numbers), "Checkpoints (two while one replaces the other)")
        return at_once

    def _cost(self, checkpointing: bool, mixed: bool) -> StepCost:
        unet, size = self.pair.unet, self.recipe.look.size
        side, z = size // self.encoders.shrink, unet.config.out_channels
        with torch.device("meta"):
            pair = Pair(
                UNet2DConditionModel.from_config(unet.config), ControlNetModel.from_config(self.pair.controlnet.config)
            )
            inputs = (
                torch.zeros(1, z, side, side),
                torch.zeros(1),
                torch.zeros(1, *self.empty.shape[1:]),
                torch.zeros(1, 3, size, size),
                torch.zeros(1, unet.config.in_channels - z, side, side),
            )
        return count_step(pair, inputs, checkpointing, mixed)

    def _place(self, precision: str) -> None:
        """Networks, optimiser and running mean onto the device."""
        recipe, pair = self.recipe, self.pair
        if self.checkpointing:
            pair.unet.enable_gradient_checkpointing()
            pair.controlnet.enable_gradient_checkpointing()
        if precision != "no":
            for parameter in pair.parameters():
                if not parameter.requires_grad:
                    parameter.data = parameter.data.to(torch.bfloat16 if precision == "bf16" else torch.float16)
        self.encoders.clip, self.encoders.autoencoder = None, self.encoders.autoencoder.cpu()
        self.learning = [parameter for parameter in pair.parameters() if parameter.requires_grad]
        pair.to(self.device)
        fused = {"fused": True} if self.device.type == "cuda" else {"foreach": False}  # no copies of all weights
        optimizer = torch.optim.AdamW(self.learning, recipe.rate, weight_decay=recipe.decay, **fused)
        self.accelerator.gradient_accumulation_steps = recipe.batch // self.at_once
        self.model, self.optimizer = self.accelerator.prepare(pair.train(), optimizer)
        self.average = EMAModel(self.learning, recipe.average) if recipe.average else None

    # -- one step
    def draw(self, step: int) -> tuple[Batch, Tensor, Tensor, Tensor]:
        """What step number `step` sees: pictures, noise, timesteps, and where the prompt is dropped."""
        rng = np.random.default_rng([self.recipe.seed, step])
        noise = torch.Generator().manual_seed(int(rng.integers(2**62)))
        chosen = rng.integers(len(self.train), size=self.recipe.batch)  # all people equally often
        batches = []
        for person in chosen:
            prepared, numbers = self.train[person]
            batches.append(prepared.take(rng.choice(numbers, 1), noise))
        return _joined(batches), *self._noise(batches, rng, noise)

    def _noise(self, batches: list[Batch], rng: np.random.Generator, noise: torch.Generator):
        count = sum(len(batch.clean) for batch in batches)
        timesteps = torch.from_numpy(rng.integers(0, self.noising.config.num_train_timesteps, count))
        blind = torch.from_numpy(rng.random(count) < self.recipe.blind)
        return torch.randn(count, *batches[0].clean.shape[1:], generator=noise), timesteps, blind

    def loss(self, batch: Batch, noise: Tensor, timesteps: Tensor, blind: Tensor) -> Tensor:
        """Mean square error of the predicted noise."""
        tokens = torch.where(blind[:, None, None], self.empty, batch.tokens)
        noisy = self.noising.add_noise(batch.clean, noise, timesteps)
        inputs = (noisy, timesteps, tokens, batch.controls.float() / 255, batch.seen)
        predicted = self.model(*(tensor.to(self.device) for tensor in inputs))
        return functional.mse_loss(predicted.float(), noise.to(self.device))

    def update(self) -> float:
        """One update of all weights -> its loss."""
        drawn, total = self.draw(self.step), 0.0
        for start in range(0, self.recipe.batch, self.at_once):
            part = slice(start, start + self.at_once)
            with self.accelerator.accumulate(self.model):
                loss = self.loss(_part(drawn[0], part), *(tensor[part] for tensor in drawn[1:]))
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.learning, self.recipe.clip)
                self.optimizer.step()
                self.optimizer.zero_grad()
            total += loss.item() * self.at_once / self.recipe.batch
        if self.average is not None:
            self.average.step(self.learning)
        self.step += 1
        return total

    # -- the run
    def run(self) -> Path:
        """Train until the steps are done or the held-out loss no longer falls -> the folder of the best networks."""
        recipe, losses = self.recipe, []
        with tqdm(total=self.steps, initial=self.step, desc=recipe.part, unit="step", smoothing=0.05) as bar:
            while self.step < self.steps and self.waited < recipe.patience:
                losses.append(self.update())
                if not np.isfinite(losses[-1]):
                    raise InputError(f"The loss of step {self.step} is not a number: a smaller rate or bf16 may help.")
                bar.update()
                if self.step % recipe.check_every == 0 or self.step == self.steps:
                    self.check(float(np.mean(losses)))
                    bar.set_postfix(loss=f"{np.mean(losses):.4f}", held_out=f"{self.history[-1][2]:.4f}")
                    losses.clear()
                    self.save()
                elif self.step % recipe.save_every == 0:
                    self.save()
        return best_networks(self.out.parent)[recipe.part]

    def check(self, loss: float) -> None:
        """Measure the held-out loss, keep the networks if they are the best so far, paint a sample sheet."""
        with self._averaged():
            held_out = self.held_out_loss()
            self.history.append((self.step, loss, held_out))
            self.waited += 1
            if held_out < self.best:
                self.best, self.waited = held_out, 0
                self._keep()
            self._paint_sheet()

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """The loss on held-out pictures, the same ones under the same noise every time."""
        rng, losses = np.random.default_rng(0), []
        noise = torch.Generator().manual_seed(0)
        for prepared, numbers in self.held_out:
            count = min(len(numbers), max(1, CHECKED // len(self.held_out)))
            chosen = numbers[np.linspace(0, len(numbers) - 1, count).astype(int)]
            for number in chosen:
                batch = prepared.take([number], noise)
                made, timesteps, blind = self._noise([batch], rng, noise)
                losses.append(self.loss(batch, made, timesteps, blind & False).item())
        return float(np.mean(losses))

    @torch.no_grad()
    def _paint_sheet(self) -> None:
        """samples/<step>.jpg: mesh picture, what is painted for it, and the truth as the autoencoder has it."""
        prepared, numbers = self.held_out[self.step // self.recipe.check_every % len(self.held_out)]
        batch = prepared.take(numbers[np.linspace(0, len(numbers) - 1, SHOWN).astype(int)])
        scheduler = make_scheduler("dpm++", self.noising.config)
        scheduler.set_timesteps(SHOWN_STEPS)
        controls, seen, tokens, empty = (
            tensor.to(self.device) for tensor in (batch.controls.float() / 255, batch.seen, batch.tokens, self.empty)
        )

        def predict(latents: Tensor, timestep: Tensor, frames: slice) -> Tensor:
            told, untold = (
                self.model(latents, timestep, prompt, controls, seen).float()
                for prompt in (tokens, empty.expand_as(tokens))
            )
            return guide(untold, told, GUIDANCE)

        noise = seeded_noise(tuple(batch.clean.shape[1:]), 0).to(self.device)
        painted = overlapped_denoise(predict, scheduler, noise, [range(len(batch.clean))])
        autoencoder = self.encoders.autoencoder.to(self.device)
        rows = [batch.controls.permute(0, 2, 3, 1).numpy()]
        for latents in (painted, batch.clean.to(self.device)):
            pictures = [autoencoder.decode(one[None] / autoencoder.config.scaling_factor).sample for one in latents]
            rows.append(to_frames(to_bytes_range(torch.cat(pictures))))
        autoencoder.cpu()
        (self.out / "samples").mkdir(exist_ok=True)
        sheet = np.concatenate([np.concatenate(list(row), axis=1) for row in rows])
        Image.fromarray(sheet).save(self.out / "samples" / f"{self.step:06d}.jpg", quality=90)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The running mean in place of the weights, networks as they render."""
        if self.average is not None:
            self.average.store(self.learning)
            self.average.copy_to(self.learning)
        self.model.eval()
        try:
            yield
        finally:
            self.model.train()
            if self.average is not None:
                self.average.restore(self.learning)

    def _keep(self) -> None:
        """checkpoint-<step>/ appears whole; the former best goes."""
        part, target = self.out / ".checkpoint", self.out / f"checkpoint-{self.step}"
        for folder in (part, target):
            shutil.rmtree(folder, ignore_errors=True)
        if self.recipe.lora:
            self._write_merged(part)
        else:
            write_network(self.pair.unet, part / "unet")
        write_network(self.pair.controlnet, part / "controlnet")
        part.rename(target)
        for other in self.out.glob("checkpoint-*"):
            if other != target:
                shutil.rmtree(other)

    def _write_merged(self, folder: Path) -> None:
        """unet/ with its additions as plain weights, and the additions alone as lora.safetensors."""
        folder.mkdir()
        save_file(learnt_lora(self.pair.unet), folder / "lora.safetensors")
        with torch.device("meta"):
            plain = UNet2DConditionModel.from_config(self.pair.unet.config)
        state = {key: value.cpu().float().clone() for key, value in frozen_state(self.pair.unet).items()}
        plain.load_state_dict(state, assign=True)
        merge_lora(plain, folder / "lora.safetensors")
        write_network(plain, folder / "unet")

    def save(self) -> None:
        """Everything needed to go on; readers find the old state or the new one, never a half."""
        scaler = self.accelerator.scaler
        state = {
            "step": self.step,
            "history": self.history,
            "best": self.best,
            "waited": self.waited,
            "weights": [parameter.detach() for parameter in self.learning],
            "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }
        with unfinished(self.out / "state.pt") as path:
            torch.save(state, path)
        facts = {
            "steps": self.step,
            "of": self.steps,
            "pictures": sum(len(numbers) for _, numbers in self.train),
            "people": len(self.train),
            "held_out_loss": self.best,
            "lora": self.recipe.lora,
            "look": asdict(self.recipe.look),
            "history": self.history,
        }
        write_json(self.out / "training.json", facts)

    def _resume(self) -> None:
        state = torch.load(self.out / "state.pt", weights_only=True, map_location="cpu")
        with torch.no_grad():
            for parameter, value in zip(self.learning, state["weights"], strict=True):
                parameter.copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
            self.average.to(self.device)
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step, self.history, self.best = state["step"], state["history"], state["best"]
        self.waited = state["waited"]


def train_paper(
    people: list[Path],
    out: Path,
    base: Base,
    consent: Consent,
    recipes: list[Recipe],
    start: Path | None = None,
    device: str | None = None,
) -> dict[Part, Path]:
    """Train the parts that the recipes name, one after the other -> the folders of their best networks.

    people: footage folders, several for the first stage, one for the second. Raises InputError before any work when the
    consent does not permit training or something does not fit; see `PaperTrainer`."""
    require_consent(consent, "train")
    check_start(start)
    return {recipe.part: PaperTrainer(people, out, base, recipe, start, device).run() for recipe in recipes}


def best_networks(run: Path) -> dict[Part, Path]:
    """The parts that a run folder holds: the folders of their best networks."""
    snapshots = sorted(run.glob("*/checkpoint-*"), key=lambda folder: int(folder.name.partition("-")[2]))
    return {folder.parent.name: folder for folder in snapshots}


def _joined(batches: list[Batch]) -> Batch:
    return Batch(*map(torch.cat, zip(*map(_tensors, batches), strict=True)))


def _part(batch: Batch, rows: slice) -> Batch:
    return Batch(*(tensor[rows] for tensor in _tensors(batch)))


def _tensors(batch: Batch) -> tuple[Tensor, ...]:
    return batch.clean, batch.controls, batch.tokens, batch.seen


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"
