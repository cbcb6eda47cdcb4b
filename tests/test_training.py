"""Training on a tiny filmed person: footage reading, losses, resuming, packaging."""

import json

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from avatar_app import InputError
from avatar_app.anchors import load_anchor
from avatar_app.diffusion.denoise import NATIVE_SCHEDULER, guide, overlapped_denoise, seeded_noise
from avatar_app.diffusion.face import picture_places
from avatar_app.diffusion.networks import NativeNetworks
from avatar_app.evaluation.anchor import make_frames, score
from avatar_app.evaluation.metrics import motion_error, psnr, shimmer, ssim
from avatar_app.evaluation.truth import Truth
from avatar_app.training import batches, train
from avatar_app.training.dataset import Footage, average_colours, places
from avatar_app.training.distil import Distiller
from avatar_app.training.package import package


def test_crops_are_parts_of_the_whole(footage):
    data = Footage(footage, "train")
    whole, part = data.sample(1), data.sample(1, 16, 8, 32)
    inside = (slice(8, 40), slice(16, 48))
    np.testing.assert_allclose(part.maps, whole.maps[inside], atol=1e-4)
    np.testing.assert_array_equal(part.picture, whole.picture[inside])
    np.testing.assert_allclose(part.place, whole.place[inside], atol=1e-6)


def test_places_are_those_of_the_face_pass(tiny_camera):
    crop = tiny_camera.crop(10, 4, 24, 32)
    np.testing.assert_allclose(
        places(crop, tiny_camera).transpose(2, 0, 1), picture_places(10, 4, 24, 32, tiny_camera), atol=1e-5
    )


def test_unknown_footage_is_refused(tmp_path):
    with pytest.raises(InputError, match="not a footage folder"):
        Footage(tmp_path, "train")


def test_texture_starts_with_the_filmed_colours(footage):
    colours = average_colours(Footage(footage, "train"), (16, 32))
    assert colours.shape == (3, 16, 32) and np.abs(colours).max() <= 1
    assert colours.std() > 0.05


def test_training_resumes_and_packages(footage, small_recipes, tmp_path):
    for kind in ("body", "face"):
        (tmp_path / kind).mkdir()
        trainer = train.Trainer(footage, kind, tmp_path / kind)
        first = trainer.loss(trainer.batches.next(whole=True))[0].item()
        trainer.run(2.0)
        assert np.isfinite(first) and trainer.step > 0
    again = train.Trainer(footage, "body", tmp_path / "body")
    assert again.step > 0 and again.elapsed == 2.0
    for mine, theirs in zip(
        again.average.parameters(), NativeNetworks.load(tmp_path / "body").parameters(), strict=True
    ):
        assert (mine - theirs).abs().max() <= mine.abs().max() / 127 + 1e-4  # packages keep 8 bits

    facts = {"name": "Small", "licence": "CC0-1.0", "consent": {"kind": "synthetic"}, "description": ""}
    anchor = package(footage, tmp_path / "body", tmp_path / "face", tmp_path / "small", facts)
    assert load_anchor(anchor.folder).has_face
    data = Footage(footage, "train")
    row = score(anchor, Truth.of(data), make_frames(anchor, data.vertices, "draft"), anchor.preset("draft"))
    assert row["PSNR"] > 10 and 0 < row["SSIM"] <= 1


def test_distilled_student_comes_nearer_to_its_guided_teacher(footage, small_recipes, tmp_path, monkeypatch):
    monkeypatch.setattr("avatar_app.training.distil.TEACHER_STEPS", 4)
    trainer = train.Trainer(footage, "body", tmp_path)
    trainer.run(2.0)
    assert json.loads((tmp_path / "training.json").read_text())["guided"]
    teacher = NativeNetworks.load(tmp_path)
    data = Footage(footage, "train")
    maps = batches.stack(data.sample(n).maps for n in range(len(data)))

    @torch.no_grad()
    def painted(networks: NativeNetworks, steps: int, guidance: float) -> torch.Tensor:
        condition, scheduler = networks.condition(maps), DDIMScheduler(**NATIVE_SCHEDULER)
        scheduler.set_timesteps(steps)

        def predict(latents, timestep, frames):
            blind = networks.predict(latents, timestep, condition.dropped())
            return guide(blind, networks.predict(latents, timestep, condition), guidance)

        noise = seeded_noise(networks.latent_shape(*maps.shape[-2:]), 0)
        return overlapped_denoise(predict, scheduler, noise, [range(len(maps))])

    wanted, before = painted(teacher, 4, 2.0), painted(teacher, 1, 1.0)
    distiller = Distiller(batches.Batches(footage, "body"), teacher, guidance=2.0, rate=3e-4)
    for _ in range(20):
        assert np.isfinite(distiller.step())
    after = painted(distiller.average, 1, 1.0)
    assert (after - wanted).square().mean() < 0.7 * (before - wanted).square().mean()


def test_metrics_know_what_is_better():
    rng = np.random.default_rng(0)
    truth = np.repeat(rng.integers(0, 256, (1, 32, 32, 3), dtype=np.uint8), 4, axis=0)
    noisy = np.clip(truth + rng.normal(0, 8, truth.shape), 0, 255).astype(np.uint8)
    assert psnr(truth, truth) == float("inf") and 28 < psnr(noisy, truth) < 32
    assert ssim(truth, truth) == pytest.approx(1) and ssim(noisy, truth) < 0.999
    assert motion_error(truth, truth) == shimmer(truth, truth) == 0 < shimmer(noisy, truth)
