"""Fréchet distance and identity with a judge of the user's: tiny untrained transformers models stand in for one."""

import json

import numpy as np
import pytest
from transformers import VideoMAEConfig, VideoMAEModel, ViTConfig, ViTModel

from avatar_app.evaluation.features import Judge, frechet
from talkshow_bridge.errors import InputError

TINY = dict(image_size=32, patch_size=16, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
TINY |= dict(intermediate_size=16)


def save(folder, model, processor: str):
    model.save_pretrained(folder)
    size = {"height": 32, "width": 32} if "ViT" in processor else {"shortest_edge": 32}
    settings = {"image_processor_type": processor, "size": size, "crop_size": {"height": 32, "width": 32}}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture
def pictures():
    return np.random.default_rng(0).integers(0, 255, (12, 40, 40, 3)).astype(np.uint8)


def test_frechet_distance_of_known_gaussians():
    rng = np.random.default_rng(0)
    one, other = rng.normal(0, 1, (200_000, 2)), rng.normal([3, 0], 2, (200_000, 2))
    assert frechet(one, one) == pytest.approx(0, abs=1e-6)
    assert frechet(one, other) == pytest.approx(9 + 2 * (2 - 1) ** 2, rel=0.02)


def test_a_picture_judge_gives_fid_and_identity(tmp_path, pictures):
    judge = Judge(save(tmp_path, ViTModel(ViTConfig(**TINY)), "ViTImageProcessor"))
    same = judge.compare(pictures, pictures, pictures, pictures)
    assert same["FID"] == pytest.approx(0, abs=1e-3) and same["identity"] == pytest.approx(1, abs=1e-5)
    other = judge.compare(pictures // 4, pictures, pictures // 4, pictures)
    assert other["FID"] > same["FID"] + 1e-3 and other["identity"] < 1


def test_a_video_judge_gives_fvd_of_every_stretch(tmp_path, pictures):
    config = VideoMAEConfig(**TINY, num_frames=4, tubelet_size=2)
    judge = Judge(save(tmp_path, VideoMAEModel(config), "VideoMAEImageProcessor"))
    assert judge.features(pictures).shape == (9, 16)
    assert judge.compare(pictures, pictures, pictures, pictures)["FVD"] == pytest.approx(0, abs=1e-3)
    with pytest.raises(InputError, match="needs 4 frames; the clip has 3"):
        judge.features(pictures[:3])


def test_what_is_no_judge_is_refused(tmp_path):
    with pytest.raises(InputError, match="is not a transformers vision model"):
        Judge(tmp_path)
