"""The fast CPU engine and its kernels against the torch networks; 8-bit weights."""

from itertools import count
from threading import Event

import numpy as np
import pytest
import torch
from conftest import FACE_PIXELS, make_tiny_motion
from safetensors.torch import save_file

from avatar_app.anchors import Anchor
from avatar_app.diffusion import engine, graphs
from avatar_app.diffusion.compact import load_compact, save_compact
from avatar_app.diffusion.engine import EngineNetworks
from avatar_app.diffusion.face import FaceEnhancer
from avatar_app.diffusion.features import WHOLE, condition_features, draw_features
from avatar_app.diffusion.frames import composed, to_bytes_range
from avatar_app.diffusion.generator import FrameGenerator
from avatar_app.diffusion.graphs import engine_version
from avatar_app.diffusion.networks import NativeNetworks
from avatar_app.mesh.conditions import PART, look, render_conditions
from avatar_app.stages import ahead
from talkshow_bridge.errors import InputError

needs_openvino = pytest.mark.skipif(engine_version() is None, reason="OpenVINO is not installed")


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AVATAR_APP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def posed(tiny_anchor) -> np.ndarray:
    return tiny_anchor.vertices(make_tiny_motion(6))


@pytest.fixture(scope="module")
def maps(tiny_anchor, posed) -> np.ndarray:
    return render_conditions(tiny_anchor.body, posed, tiny_anchor.camera)


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
        fast = EngineNetworks(folder, together=False)
        condition = fast.condition(maps, place)
        close(condition.latent, expected.latent)
        close(condition.detail.permute(0, 3, 1, 2), expected.detail)
        close(condition.base.permute(0, 3, 1, 2), expected.base)
        close(fast.predict(noise, 999, condition.latent, 6), latents)
        painted = fast.paint(latents, condition.detail, condition.base)
    nearly_equal(painted, composed(to_bytes_range(pictures)))


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert (found - expected).abs().max() < 1e-3


def nearly_equal(found: np.ndarray, expected: np.ndarray) -> None:
    """Frames whose levels were within 1e-3 of [-1, 1] before they were rounded."""
    difference = np.abs(found.astype(int) - expected)
    assert expected.std() > 1 and difference.max() <= 1 and (difference > 0).mean() < 0.01


@needs_openvino
def test_videos_of_both_engines_are_the_same(tiny_anchor, maps, monkeypatch):
    manifest = tiny_anchor.manifest.model_copy(update={"cross_frame_attention": True, "static_background": True})
    anchor = Anchor(tiny_anchor.folder, manifest)
    options = anchor.preset("draft", {"window": 4})
    videos = {}
    for choice in ("torch", "openvino"):
        monkeypatch.setenv("AVATAR_APP_ENGINE", choice)
        generator = FrameGenerator(anchor, options)
        videos[choice] = np.concatenate(list(generator.frames(iter([maps]))))
        assert (generator._painter.coupling is None) == (choice == "openvino")
    nearly_equal(videos["openvino"], videos["torch"])


@needs_openvino
def test_graphs_are_kept_on_disk(tiny_anchor, monkeypatch):
    EngineNetworks(tiny_anchor.file("face"), together=False)
    monkeypatch.setattr(graphs, "_trace", lambda *arguments: pytest.fail("the graphs were there"))
    EngineNetworks(tiny_anchor.file("face"), together=False)


@needs_openvino
def test_8_bit_arithmetic_stays_near(tiny_anchor, maps, monkeypatch):
    videos = []
    for int8 in (False, True, True):
        generator = FrameGenerator(tiny_anchor, tiny_anchor.preset("draft", {"int8": int8}))
        videos.append(np.concatenate(list(generator.frames(iter([maps])))).astype(int))
        if int8:  # the ranges are kept: the same pictures ever after
            monkeypatch.setattr("avatar_app.diffusion.painters.typical_maps", lambda anchor: pytest.fail("kept"))
    plain, rounded, again = videos
    assert np.array_equal(rounded, again) and 0 < np.abs(rounded - plain).mean() < 2


@needs_openvino
def test_faces_in_8_bits_stay_near(tiny_anchor, posed):
    frames = np.full((len(posed), 64, 64, 3), 128, np.uint8)
    options = (tiny_anchor.preset("standard", {"int8": int8}) for int8 in (False, True))
    plain, rounded = (FaceEnhancer(tiny_anchor, chosen).enhance(frames, posed).astype(int) for chosen in options)
    assert (plain != frames).any() and 0 < np.abs(rounded - plain).mean() < 2


def test_switch(monkeypatch):
    monkeypatch.setenv("AVATAR_APP_ENGINE", "torch")
    assert not engine.engine_wanted(torch.device("cpu"), torch.float32)
    monkeypatch.setenv("AVATAR_APP_ENGINE", "auto")
    assert not engine.engine_wanted(torch.device("cuda"), torch.float32)
    assert not engine.engine_wanted(torch.device("cpu"), torch.bfloat16)
    monkeypatch.setattr(engine, "engine_version", lambda: None)
    assert not engine.engine_wanted(torch.device("cpu"), torch.float32)
    for choice, message in (("openvino", "not installed"), ("tensorrt", "must be one of")):
        monkeypatch.setenv("AVATAR_APP_ENGINE", choice)
        with pytest.raises(InputError, match=message):
            engine.engine_wanted(torch.device("cpu"), torch.float32)


def test_drawing_features_is_drawing_maps_and_reading_them(tiny_anchor, posed, maps):
    body, camera, rng = tiny_anchor.body, tiny_anchor.camera, np.random.default_rng(0)
    texture, plate = rng.random((8, 16, 4), np.float32), rng.random((64, 64, 3), np.float32)

    def read(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        base, features = np.empty((64, 64, 3), np.float32), np.empty((64, 64, 14), np.float32)
        condition_features(maps, WHOLE, texture, plate, base, features)
        return features, base

    empty, empty_base = read(np.zeros_like(maps[0]))
    features, touched, coarse = empty.copy(), np.zeros((64, 64), bool), np.empty((16, 16), np.float32)
    for vertices, picture in zip(posed, maps, strict=True):  # one after the other into the same features
        base = empty_base.copy()
        seen = *look(body, vertices, camera), body.faces, body.face_uv, body.part
        draw_features(*seen, texture, empty, touched, base, coarse, features)
        for found, expected in zip((features, base), read(picture), strict=True):
            assert np.array_equal(found, expected)
        assert np.array_equal(coarse, (picture[..., PART] > 0).reshape(16, 4, 16, 4).any((1, 3)))


@needs_openvino
@pytest.mark.parametrize("choice", ["torch", "openvino"])
def test_posed_bodies_make_the_video_of_their_maps(tiny_anchor, posed, maps, choice, monkeypatch):
    monkeypatch.setenv("AVATAR_APP_ENGINE", choice)
    manifest = tiny_anchor.manifest.model_copy(update={"static_background": True})
    generator = FrameGenerator(Anchor(tiny_anchor.folder, manifest), tiny_anchor.preset("draft"))
    drawn, given = (np.concatenate(list(generator.frames(iter([chunk])))) for chunk in (posed, maps))
    assert np.array_equal(drawn, given)


def test_weights_in_8_bits(tmp_path):
    weights = {"texture": torch.randn(1, 4, 64, 64), "conv": torch.randn(64, 8, 3, 3) * 5, "bias": torch.randn(64)}
    weights["conv"][3] = 0
    save_compact(weights, tmp_path / "w.safetensors")
    again = load_compact(tmp_path / "w.safetensors")
    assert again.keys() == weights.keys() and not again["conv"][3].any()
    for name, bound in (("texture", 0.6 * 5 / 127), ("conv", 0.6 * 25 / 127), ("bias", 2e-3)):
        assert (again[name] - weights[name]).abs().max() < bound
    save_file({name: value.half() for name, value in weights.items()}, tmp_path / "old.safetensors")
    assert torch.equal(load_compact(tmp_path / "old.safetensors")["conv"], weights["conv"].half().float())
    save_file({"conv": torch.ones(8, 8, dtype=torch.int8)}, tmp_path / "bad.safetensors")
    with pytest.raises(ValueError, match="scale"):
        load_compact(tmp_path / "bad.safetensors")


def test_stages_keep_order_hand_on_errors_and_stop():
    assert list(ahead(range(20), 3)) == list(range(20))
    closed, made = Event(), []

    def endless():
        try:
            for number in count():
                made.append(number)
                yield number
        finally:
            closed.set()

    stage = ahead(endless(), 2)
    assert [next(stage) for _ in range(3)] == [0, 1, 2]
    stage.close()
    assert closed.is_set() and len(made) <= 7

    def failing():
        yield 1
        raise InputError("no more")

    stage = ahead(failing(), 2)
    assert next(stage) == 1
    with pytest.raises(InputError, match="no more"):
        next(stage)
