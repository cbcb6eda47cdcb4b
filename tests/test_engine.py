"""The fast CPU engine and its kernels against the torch networks; 8-bit weights."""

import numpy as np
import pytest
import torch
from conftest import FACE_PIXELS, make_tiny_motion

from avatar_app.diffusion.engine import EngineNetworks, engine_version
from avatar_app.diffusion.networks import NativeNetworks
from avatar_app.mesh.conditions import render_conditions

needs_openvino = pytest.mark.skipif(engine_version() is None, reason="OpenVINO is not installed")


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AVATAR_APP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def maps(tiny_anchor) -> np.ndarray:
    return render_conditions(tiny_anchor.body, tiny_anchor.vertices(make_tiny_motion(6)), tiny_anchor.camera)


def channels_first(pictures: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pictures).permute(0, 3, 1, 2)


@needs_openvino
@pytest.mark.parametrize("crop", [False, True])
def test_engine_equals_torch(tiny_anchor, maps, crop):
    folder = tiny_anchor.file("body")
    torch_networks, place = NativeNetworks.load(folder).eval(), None
    if crop:
        maps = maps[:, :FACE_PIXELS, 16 : 16 + FACE_PIXELS]
        place = np.random.default_rng(0).uniform(-1.1, 1.1, (len(maps), 2, FACE_PIXELS, FACE_PIXELS))
        place = place.astype(np.float32)
    noise = torch.randn(6, 4, *(size // 8 for size in maps.shape[1:3]))
    with torch.inference_mode():
        expected = torch_networks.condition(channels_first(maps), None if place is None else torch.from_numpy(place))
        latents = torch_networks.predict(noise, 999, expected)
        pictures = torch_networks.decode(latents, expected)
        engine = EngineNetworks(folder, together=False)
        condition = engine.condition(maps, place)
        close(condition.latent, expected.latent)
        close(condition.detail.permute(0, 3, 1, 2), expected.detail)
        close(condition.base.permute(0, 3, 1, 2), expected.base)
        close(engine.predict(noise, 999, condition, 6), latents)
        close(engine.decode(latents, condition), pictures)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert (found - expected).abs().max() < 1e-3
