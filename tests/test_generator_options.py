"""What makes the generator cheaper or lighter: batches, shifted windows, pooled keys, LCM, LoRA, plans for memory."""

import shutil

import numpy as np
import pytest
import torch
from diffusers import LCMScheduler, UNet2DConditionModel
from safetensors.torch import save_file

from avatar_app.anchors import Anchor, Preset, load_anchor, seal_anchor
from avatar_app.diffusion import generator, planner
from avatar_app.diffusion.attention import FrameCoupling, largest_attention
from avatar_app.diffusion.denoise import guide, overlapped_denoise, seeded_noise, singly, stream_denoise
from avatar_app.diffusion.generator import FrameGenerator
from avatar_app.diffusion.lora import merge_lora
from avatar_app.diffusion.painters import StableDiffusionPainter
from avatar_app.diffusion.planner import Needs, Plan, make_plan
from avatar_app.diffusion.samplers import SAMPLERS, make_scheduler
from avatar_app.diffusion.windows import native_windows
from avatar_app.mesh.conditions import render_conditions
from talkshow_bridge.errors import InputError
from tests.originals import DATA

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def maps(tiny_body, tiny_camera, tiny_motion) -> np.ndarray:
    return render_conditions(tiny_body, tiny_body.pose(tiny_motion[:20]).vertices, tiny_camera)


@pytest.fixture(scope="module")
def coupled_anchor(tiny_anchor) -> Anchor:
    """The tiny native anchor with attention between frames."""
    return Anchor(tiny_anchor.folder, tiny_anchor.manifest.model_copy(update={"cross_frame_attention": True}))


def render(anchor: Anchor, conditions: np.ndarray, options: dict, **more) -> np.ndarray:
    frames = FrameGenerator(anchor, anchor.preset("best", options), seed=2, **more).frames(iter([conditions]))
    return np.concatenate(list(frames))


def close(a: np.ndarray, b: np.ndarray, levels: int = 1) -> bool:
    return a.shape == b.shape and int(np.abs(a.astype(int) - b).max()) <= levels


# ----------------------------------------------------------------------------- batches and shifted windows


@pytest.mark.parametrize("windows", ["overlap", "shifted"])
def test_windows_in_one_call_paint_the_same(windows, original_anchor, mesh_pictures, coupled_anchor, maps):
    options = {"steps": 2, "windows": windows}
    single = render(original_anchor, mesh_pictures, options, plan=Plan(windows=1, frames=1))
    assert close(render(original_anchor, mesh_pictures, options, plan=Plan(windows=3, frames=5)), single)
    single = render(coupled_anchor, maps, options, plan=Plan())
    assert close(render(coupled_anchor, maps, options, plan=Plan(windows=4)), single)


def test_shifted_windows_evaluate_each_frame_once_a_step(coupled_anchor, maps):
    evaluated = {}
    for windows in ("overlap", "shifted"):
        options = coupled_anchor.preset("best", {"steps": 3, "windows": windows})
        frames = FrameGenerator(coupled_anchor, options)
        counts, predict = [], frames._painter.predict
        frames._painter.predict = lambda *inputs, c=counts, p=predict: c.append(len(inputs[0])) or p(*inputs)
        assert sum(map(len, frames.frames(iter([maps])))) == len(maps)
        evaluated[windows] = sum(counts)
    assert evaluated["shifted"] == 3 * len(maps) < evaluated["overlap"] == 3 * 24


def test_memory_does_not_grow_with_the_length(coupled_anchor, maps, monkeypatch):
    held = []
    forget = generator.ConditionBuffer.forget

    def watch(buffer, before):
        held.append(sum(len(frames) for frames, _ in buffer._kept))
        forget(buffer, before)

    monkeypatch.setattr(generator.ConditionBuffer, "forget", watch)
    most = {}
    for windows in ("overlap", "shifted"):
        for length in (80, 240):
            held.clear()
            options = coupled_anchor.preset("best", {"steps": 2, "windows": windows})
            chunks = (maps[[i % 20]] for i in range(length))
            frames = FrameGenerator(coupled_anchor, options, plan=Plan(windows=2)).frames(chunks)
            assert sum(map(len, frames)) == length
            most[windows, length] = max(held)
        assert most[windows, 80] == most[windows, 240] < 70


# ----------------------------------------------------------------------------- attention


def test_pooled_keys_are_exact_on_coarse_pictures_and_only_in_the_largest_layers():
    """Four equal keys weigh as much as one among others that count four times."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_pretrained(DATA / "unet").eval()
    attention = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1
    small = torch.randn(2, 3, 4, 6, attention.to_q.in_features)  # samples, frames, height, width, channels
    tokens = small.repeat_interleave(2, 2).repeat_interleave(2, 3).flatten(2, 3).flatten(0, 1)
    results, largest = [], None
    for pooled in (False, True):
        coupling = FrameCoupling(unet, pooled_keys=pooled)
        coupling.state.frames, coupling.state.latent_size = 3, (8, 12)
        with torch.inference_mode():
            results.append(attention(tokens))
        largest = {name for name, processor in unet.attn_processors.items() if getattr(processor, "pooled_keys", 0)}
        coupling.remove()
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-5)
    assert largest == {n for n in largest_attention(unet.attn_processors) if "attn1" in n}
    assert all(name.startswith(("down_blocks.0.", "up_blocks.3.")) or len(unet.up_blocks) < 4 for name in largest)


def test_pooled_keys_render(original_anchor, mesh_pictures, coupled_anchor, maps):
    for anchor, conditions in ((original_anchor, mesh_pictures[:8]), (coupled_anchor, maps)):
        exact, pooled = (render(anchor, conditions, {"steps": 1, "pooled_keys": on}) for on in (False, True))
        assert pooled.shape == exact.shape and not np.array_equal(pooled, exact)


def test_halves_of_guidance_share_what_does_not_depend_on_the_prompt(original_anchor, mesh_pictures):
    painter = StableDiffusionPainter(original_anchor, "body", original_anchor.preset("best"), CPU, torch.float32)
    latents, timestep = torch.randn(6, 4, 8, 8), torch.tensor(501)
    with torch.inference_mode():
        shared = painter.predict(latents, timestep, painter.encode(mesh_pictures[:6]), 3)
        pictures = painter.encode(mesh_pictures[:6])[0] / 255
        apart = [painter._noise(latents, timestep, pictures, [], name) for name in ("negative", "prompt")]
    assert torch.equal(shared, guide(*apart, painter.options.guidance))


# ----------------------------------------------------------------------------- samplers and LoRA


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_stream_and_repeat(name):
    """Also the one that adds noise: the same for all frames, however they are grouped, and set by the seed."""
    scheduler = make_scheduler(name, {"prediction_type": "sample", "timestep_spacing": "trailing"}, seed=3)
    scheduler.set_timesteps(4)

    def predict(latents, timestep, frames):
        return 0.5 * latents + torch.arange(frames.start, frames.stop).reshape(-1, 1, 1, 1) / 30

    before = torch.get_rng_state()
    results = []
    for seed in (3, 3, 4):
        scheduler.seed, noise = seed, seeded_noise((4, 2, 2), 9)
        results.append(overlapped_denoise(predict, scheduler, noise, native_windows(21, 8, 2)))
        parts = stream_denoise(singly(predict), scheduler, noise, native_windows(21, 8, 2), batch=2)
        assert torch.equal(torch.cat([latents for _, latents in parts]), results[-1])
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2]) == (name != "lcm")
    assert torch.equal(torch.get_rng_state(), before)


def test_lcm_is_diffusers_own_but_for_the_noise(monkeypatch):
    ours, theirs = make_scheduler("lcm", {}, seed=1), LCMScheduler()
    sample = seeded_noise((4, 2, 2), 0)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(3)
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_lcm.randn_tensor",
        lambda *_, **__: seeded_noise((4, 2, 2), 2 + (ours.step_index or 0)),
    )
    expected = sample
    for timestep in ours.timesteps:
        expected = theirs.step(expected * 0.5, timestep, expected).prev_sample
        sample = ours.step(sample * 0.5, timestep, sample).prev_sample
    torch.testing.assert_close(sample, expected)


SPELLINGS = {
    "lcm-lora": ("lora_unet_{_}.lora_down.weight", "lora_unet_{_}.lora_up.weight", "lora_unet_{_}.alpha"),
    "peft": ("unet.{}.lora_A.weight", "unet.{}.lora_B.weight", None),
    "diffusers": ("unet.{}.lora.down.weight", "unet.{}.lora.up.weight", None),
}
LINEAR = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
CONVOLUTION = "down_blocks.0.resnets.0.conv1"


def tiny_lora(spelling: str, rank: int = 2, alpha: float = 4.0) -> dict[str, torch.Tensor]:
    unet, generator, tensors = UNet2DConditionModel.from_pretrained(DATA / "unet"), torch.manual_seed(1), {}
    for layer in (LINEAR, CONVOLUTION):
        outputs, inputs, *kernel = unet.get_submodule(layer).weight.shape
        down, up, scale = (k and k.replace("{_}", layer.replace(".", "_")).format(layer) for k in SPELLINGS[spelling])
        tensors[down] = torch.randn(rank, inputs, *kernel, generator=generator)
        tensors[up] = torch.randn(outputs, rank, *[1] * len(kernel), generator=generator)
        if scale:
            tensors[scale] = torch.tensor(alpha)
    return tensors


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_merged_lora_is_the_layer_plus_the_thin_pair(spelling, tmp_path):
    tensors = tiny_lora(spelling)
    save_file(tensors, tmp_path / "lora.safetensors")
    unet = UNet2DConditionModel.from_pretrained(DATA / "unet").requires_grad_(False)
    plain = {name: unet.get_submodule(name).weight.clone() for name in (LINEAR, CONVOLUTION)}
    assert merge_lora(unet, tmp_path / "lora.safetensors", 0.5) == 2
    downs, ups = (
        [t for k, t in tensors.items() if any(w in k for w in words)]
        for words in ((".lora_down", ".down.", "_A"), (".lora_up", ".up.", "_B"))
    )
    scale = 0.5 * (4.0 / 2 if spelling == "lcm-lora" else 1)
    x = torch.randn(3, plain[LINEAR].shape[1])
    added = x @ downs[0].T @ ups[0].T * scale
    torch.testing.assert_close(unet.get_submodule(LINEAR)(x), x @ plain[LINEAR].T + added, atol=1e-4, rtol=1e-4)
    convolution = unet.get_submodule(CONVOLUTION)
    x = torch.randn(1, plain[CONVOLUTION].shape[1], 8, 8)
    plainly = torch.nn.functional.conv2d(x, plain[CONVOLUTION], convolution.bias, padding=1)
    added = torch.nn.functional.conv2d(torch.nn.functional.conv2d(x, downs[1], padding=1), ups[1]) * scale
    torch.testing.assert_close(convolution(x), plainly + added, atol=1e-4, rtol=1e-4)


BAD_LORAS = {
    "unknown layer": (lambda t: t.update({"lora_unet_x.lora_up.weight": torch.zeros(1, 1)}), "'x' .* is no layer"),
    "half a pair": (lambda t: t.pop(next(k for k in t if "lora_up" in k)), "is incomplete"),
    "wrong shape": (lambda t: t.update({next(k for k in t if "lora_up" in k): torch.zeros(3, 2)}), "does not fit"),
    "text encoder": (lambda t: t.update({"lora_te_x.alpha": torch.ones(1)}), "expected a LoRA of a UNet alone"),
    "other method": (lambda t: t.update({"lora_unet_x.hada_w1_a": torch.ones(1)}), "expected a LoRA of a UNet alone"),
    "not finite": (lambda t: t.update({next(iter(t)): torch.full((2, 2), torch.nan)}), "not finite"),
    "empty": (lambda t: t.clear(), "is empty"),
}


@pytest.mark.parametrize("case", BAD_LORAS)
def test_bad_loras_are_refused_and_change_nothing(case, tmp_path):
    damage, words = BAD_LORAS[case]
    tensors = tiny_lora("lcm-lora")
    damage(tensors)
    save_file(tensors, tmp_path / "lora.safetensors")
    unet = UNet2DConditionModel.from_pretrained(DATA / "unet")
    before = {name: weight.clone() for name, weight in unet.state_dict().items()}
    with pytest.raises(InputError, match=words):
        merge_lora(unet, tmp_path / "lora.safetensors")
    assert all(torch.equal(weight, before[name]) for name, weight in unet.state_dict().items())
    (tmp_path / "lora.safetensors").write_bytes(b"\xff" * 50)
    with pytest.raises(InputError, match="not a readable safetensors"):
        merge_lora(unet, tmp_path / "lora.safetensors")


def test_lcm_lora_in_a_package(original_anchor, mesh_pictures, tiny_anchor, tmp_path):
    few = {"steps": 2, "guidance": 1.0, "scheduler": "lcm"}
    plain = render(original_anchor, mesh_pictures[:5], few)
    with pytest.raises(InputError, match="'lora.safetensors' is missing"):
        render(original_anchor, mesh_pictures[:5], few | {"lora": 1.0})
    folder = tmp_path / "faster"
    shutil.copytree(original_anchor.folder, folder)
    save_file(tiny_lora("lcm-lora"), folder / "body" / "lora.safetensors")
    anchor = seal_anchor(folder, original_anchor.manifest.model_dump(mode="json") | {"id": "faster"})
    assert "body/lora.safetensors" in load_anchor(folder).manifest.files
    assert np.array_equal(render(anchor, mesh_pictures[:5], few), plain)
    assert not np.array_equal(render(anchor, mesh_pictures[:5], few | {"lora": 0.5}), plain)
    with pytest.raises(InputError, match="LoRA"):
        FrameGenerator(tiny_anchor, tiny_anchor.preset("draft", {"lora": 1.0}))
    with pytest.raises(InputError, match="at most 50"):
        Preset.from_options({"steps": 60, "scheduler": "lcm"})


# ----------------------------------------------------------------------------- plans

SD15 = Needs(weights=1_300_000_000, window=16 * 60 * 320 * 4096, frame=10 * 128 * 512 * 512)


def test_plans_fit_the_memory_and_say_so(caplog):
    cuda = torch.device("cuda")
    with caplog.at_level("INFO"):
        plans = [make_plan(cuda, SD15, gigabytes * 2**30, torch.float16) for gigabytes in (4, 8, 12, 24, 80)]
    assert [plan.windows for plan in plans] == sorted(plan.windows for plan in plans)
    assert plans[0].windows == 1 and plans[-1] == Plan(8, 16, torch.float16)
    assert [plan.offload for plan in plans] == sorted((plan.offload for plan in plans), reverse=True)
    assert plans[0].offload and len(caplog.messages) == 5
    assert caplog.messages[-1] == "cuda with 80.0 GB free: 8 window(s) and 16 frame(s) at once, float16"
    assert make_plan(CPU, SD15, 64 * 2**30) == Plan()
    assert make_plan(CPU, SD15, 8 * 2**30).dtype == torch.bfloat16
    assert make_plan(cuda, SD15, 8 * 2**30).dtype == torch.float16
    assert 2**20 < planner.free_memory(CPU) < 2**50


def test_plans_shrink_notch_by_notch():
    plan, seen = Plan(windows=8, frames=4, dtype=torch.float16), []
    while plan := plan.smaller(torch.device("cuda")):
        seen.append((plan.windows, plan.frames, plan.offload))
    assert seen == [(4, 4, False), (2, 4, False), (1, 4, False), (1, 2, False), (1, 1, False), (1, 1, True)]
    assert Plan(windows=1, frames=1).smaller(CPU) is None


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")])
def test_out_of_memory_is_met_with_a_smaller_plan(error, coupled_anchor, maps, monkeypatch, caplog):
    options = {"windows": "shifted"}
    expected = render(coupled_anchor, maps, options, plan=Plan())
    limit = {"predict": 9, "paint": 2}

    def short_of_memory(name):
        method = getattr(generator.NativePainter, name)

        def tight(self, latents, *arguments):
            if len(latents) > limit[name]:
                raise error
            return method(self, latents, *arguments)

        monkeypatch.setattr(generator.NativePainter, name, tight)

    short_of_memory("predict")
    short_of_memory("paint")
    assert close(render(coupled_anchor, maps, options, plan=Plan(windows=4)), expected)
    assert any("trying again with 2 window(s)" in message for message in caplog.messages)
    limit["predict"] = 0
    with pytest.raises(InputError, match="memory of cpu does not suffice"):
        render(coupled_anchor, maps, options, plan=Plan(windows=4))
    error = ValueError("something else")
    with pytest.raises(ValueError, match="else"):
        render(coupled_anchor, maps, options, plan=Plan(windows=4))


def test_idle_networks_wait_in_main_memory(original_anchor, mesh_pictures, monkeypatch):
    expected = render(original_anchor, mesh_pictures[:5], {"steps": 1}, plan=Plan())
    moved = []
    move = torch.nn.Module.to
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *to, **how: (moved.append(to), move(self, *to, **how))[1])
    assert np.array_equal(render(original_anchor, mesh_pictures[:5], {"steps": 1}, plan=Plan(offload=True)), expected)
    assert len(moved) > 6


# ----------------------------------------------------------------------------- devices


def gpus() -> list:
    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    return [
        pytest.param(n, marks=[pytest.mark.gpu, pytest.mark.skipif(not f, reason="no GPU")]) for n, f in found.items()
    ]


@pytest.mark.parametrize("device", gpus())
def test_devices_paint_the_same(device, original_anchor, mesh_pictures, coupled_anchor, maps):
    for anchor, conditions in ((original_anchor, mesh_pictures), (coupled_anchor, maps)):
        expected = render(anchor, conditions, {"steps": 2})
        assert close(render(anchor, conditions, {"steps": 2}, device=device, dtype=torch.float32), expected, 3)
        half = render(anchor, conditions, {"steps": 2}, device=device, dtype=torch.float16)
        assert np.abs(half.astype(int) - expected).mean() < 8


@pytest.mark.slow
def test_compiled_networks_paint_the_same(coupled_anchor, maps, monkeypatch):
    plain = render(coupled_anchor, maps[:8], {"steps": 1})
    monkeypatch.setenv("AVATAR_APP_ENGINE", "compiled")
    assert close(render(coupled_anchor, maps[:8], {"steps": 1}), plain)
