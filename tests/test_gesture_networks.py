"""VQ-VAE, PixelCNN, samplers and gesture model against TalkSHOW's own results, and against each other.

`data/talkshow/{vq_vae,pixelcnn}.npz` hold what the original code computed with the made-up weights of `procedural.py`.
"""

import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from talkshow_bridge.errors import InputError
from talkshow_bridge.gesture_model import DECODER_REACH, ENCODER_REACH, GestureModel
from talkshow_bridge.pixelcnn import GatedPixelCNN, MfccEncoder, probabilities, sample_full_grid
from talkshow_bridge.sampler import IncrementalSampler
from talkshow_bridge.vq_vae import VQVAE, CodebookAverage
from tests.procedural import made_up

DATA = Path(__file__).parent / "data" / "talkshow"
MASKED = {"layers.0.vert_stack.weight": (0, 0, 1, 0), "layers.0.horiz_stack.weight": (0, 0, 0, 1)}


def official_name(key: str) -> str:
    key = re.sub(r"(^|\.)((?:enc|dec|down|up)_\d|layers(?=\.\d\.(?:conv|norm)))", r"\1_\2", key)
    return key.replace("codebook", "vq_layer.embeddings")


def with_made_up_weights(net):
    """The same net as from an official file: masked places of the PixelCNN are there, and not zero."""
    state = {}
    for key, value in net.state_dict().items():
        if key not in ("mean", "scale") and not key.endswith("num_batches_tracked"):
            shape = tuple(value.shape)
            if key in MASKED and isinstance(net, GatedPixelCNN):
                shape = tuple(np.add(shape, MASKED[key]))
            state[key] = torch.from_numpy(made_up(official_name(key), shape))
    return type(net).from_state_dict(state)


@cache
def vq(channels):
    return with_made_up_weights(VQVAE(channels, hidden=64, codes=128))


@cache
def pixelcnn():
    return with_made_up_weights(GatedPixelCNN(codes=128, dim=32, layers=5))


@cache
def encoder():
    return with_made_up_weights(MfccEncoder(64, 256))


@cache
def golden(name):
    with np.load(DATA / f"{name}.npz") as stored:
        arrays = {key: torch.from_numpy(stored[key]) for key in stored}
    return {key: value.long() if value.dtype == torch.int16 else value for key, value in arrays.items()}


@cache
def tiny_model():
    """Like the bundled model: 12 audio features, a plan of four channels, three styles."""
    torch.manual_seed(0)
    audio = MfccEncoder(12, 64)
    parts = [VQVAE(channels, hidden=32, codes=24, code_size=8, plan_channels=4) for channels in (39, 90)]
    net = GatedPixelCNN(codes=24, dim=16, layers=4, speakers=3, audio=64, head=32)
    for part in (audio, *parts):
        for name, value in part.named_buffers():
            if name.endswith("running_mean"):
                value.normal_(std=0.1)
            elif name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
    return GestureModel(audio.eval(), net.eval(), *(part.eval() for part in parts))


def close(a, b, tolerance=1e-4):
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


def greedy(chances):
    return chances.argmax(-1)


def by_uniform(drawn):
    """Inverse-CDF sampling with given uniform numbers (T4, 2)."""
    numbers = iter(drawn.flatten().tolist())

    def choose(chances):
        cdf = chances.double().cumsum(-1)
        return (cdf / cdf[:, -1:] <= next(numbers)).sum(-1)

    return choose


def incremental(net, *args, **kwargs):
    return IncrementalSampler(net).sample(*args, **kwargs)


both_samplers = pytest.mark.parametrize("sample", [sample_full_grid, incremental])


# ---- against the original -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part, channels", [("body", 39), ("hand", 90)])
@pytest.mark.parametrize("case", ["smooth", "noise"])  # 303 frames, not a multiple of four; a batch of two
@torch.inference_mode()
def test_vq_vae_is_the_originals(part, channels, case):
    truth, net = golden("vq_vae"), vq(channels)
    x, codes = truth[f"{part}_{case}_x"], truth[f"{part}_{case}_codes"]
    if case == "noise":
        close(net.latents(x), truth[f"{part}_{case}_z"])
    assert torch.equal(net.encode(x), codes)
    close(net.decode(codes), truth[f"{part}_{case}_decoded"])


@torch.inference_mode()
def test_encoder_and_teacher_forcing_are_the_originals():
    truth = golden("pixelcnn")
    audio = encoder()(truth["mfcc"].T[None])
    close(audio, truth["audio"])
    close(pixelcnn()(truth["teacher_tokens"], audio, truth["teacher_speaker"][None]), truth["teacher_logits"])


@both_samplers
@pytest.mark.parametrize("speaker", [0, 3])
def test_samplers_draw_the_originals_codes(sample, speaker):
    truth, who = golden("pixelcnn"), torch.tensor([speaker])
    assert torch.equal(sample(pixelcnn(), truth["audio"], who, choose=greedy), truth[f"greedy_{speaker}"])
    drawn = by_uniform(truth[f"uniform_{speaker}_drawn"])
    assert torch.equal(sample(pixelcnn(), truth["audio"], who, choose=drawn), truth[f"uniform_{speaker}"])


@both_samplers
def test_samplers_continue_like_the_original(sample):
    truth = golden("pixelcnn")
    past = truth["greedy_0"][:, :20]
    tokens = sample(pixelcnn(), truth["audio"][..., :40], torch.tensor([0]), choose=greedy, history=past)
    assert torch.equal(tokens, torch.cat([past, truth["continued_0"]], dim=1))


@both_samplers
def test_samplers_take_a_batch_like_the_original(sample):
    truth = golden("pixelcnn")
    audio = truth["audio"][..., :10].expand(3, -1, -1)
    assert torch.equal(sample(pixelcnn(), audio, torch.tensor([1, 2, 3]), choose=greedy), truth["greedy_123"])


def test_decoded_gestures_are_the_originals():
    truth = golden("pixelcnn")
    model = GestureModel(encoder(), pixelcnn(), vq(39), vq(90))
    close(torch.from_numpy(model.decode(truth["greedy_3"])), truth["greedy_3_motion"])


# ---- the networks by themselves -------------------------------------------------------------------------------------


@torch.inference_mode()
def test_a_code_depends_on_what_came_before_it_only():
    net, truth = pixelcnn(), golden("pixelcnn")
    tokens, audio, speaker = truth["teacher_tokens"][:, :40].clone(), truth["audio"][..., :40], torch.tensor([1])
    before = net(tokens, audio, speaker)
    tokens[0, 20, 1] = (tokens[0, 20, 1] + 1) % 128  # a hand code
    changed = (net(tokens, audio, speaker) != before).any(1)[0]  # [T4, 2]
    memory = 2 + len(net.layers)
    assert not changed[:21].any()
    assert changed[21 : 21 + memory].all()
    assert not changed[21 + memory :].any()
    tokens[0, 20, 0] = (tokens[0, 20, 0] + 1) % 128  # the body code beside it
    changed = (net(tokens, audio, speaker) != before).any(1)[0]
    assert changed[20].tolist() == [False, True]


@torch.inference_mode()
def test_the_plan_acts_on_its_own_frames():
    net = tiny_model().body_vq
    codes, plan = torch.randint(24, (1, 20)), torch.zeros(1, 80, 4)
    still = net.decode(codes, plan)
    plan[0, 40] = 1.0
    changed = (net.decode(codes, plan) != still).any(-1)[0].nonzero()[:, 0]
    assert changed.tolist() == list(range(29, 52))


def test_mean_and_scale_bring_a_track_to_unit_size():
    net = VQVAE(2, hidden=16, codes=8, code_size=4).eval()
    x = torch.randn(1, 16, 2)
    unit = net.latents(x)
    net.mean.fill_(3.0), net.scale.fill_(0.5)
    close(net.latents(3 + 0.5 * x), unit)
    restored = VQVAE.from_state_dict(net.state_dict())
    assert torch.equal(restored.mean, net.mean)
    close(restored.decode(torch.tensor([[1, 2]])), net.decode(torch.tensor([[1, 2]])))


def test_small_networks_learn():
    torch.manual_seed(0)
    net = VQVAE(3, hidden=32, codes=16, code_size=8)
    steps, codebook = torch.optim.Adam(net.parameters(), 3e-3), CodebookAverage(net)
    x = torch.sin(torch.arange(64) * 0.3 + torch.rand(16, 1) * 6)[..., None] * torch.tensor([1.0, 0.5, -1.0])
    losses = []
    for _ in range(40):
        decoded, latents, codes = net(x)
        loss = F.mse_loss(decoded, x)
        steps.zero_grad()
        (loss + 0.25 * F.mse_loss(latents, net.codebook[codes])).backward()
        steps.step()
        codebook.update(latents, codes)
        losses.append(loss.item())
    assert losses[-1] < 0.35 * losses[0], losses
    assert len(codes.unique()) >= 8

    predictor = GatedPixelCNN(codes=16, dim=16, layers=3, speakers=2, audio=8, head=16)
    steps = torch.optim.Adam(predictor.parameters(), 1e-2)
    tokens, audio = torch.stack([codes, codes], dim=2), torch.randn(16, 8, 16)
    for _ in range(30):
        loss = F.cross_entropy(predictor(tokens, audio, torch.zeros(16, dtype=torch.long)), tokens)
        steps.zero_grad()
        loss.backward()
        steps.step()
    assert loss.item() < 1.5 < np.log(16)


def test_unused_codes_restart_on_a_latent():
    net = VQVAE(2, hidden=8, codes=4, code_size=3)
    average = CodebookAverage(net, decay=0.0)
    latents = torch.randn(1, 6, 3)
    average.update(latents, torch.zeros(1, 6, dtype=torch.long))
    close(net.codebook[0], latents[0].mean(0))
    assert all((code == latents[0]).all(-1).any() for code in net.codebook[1:])


# ---- sampling -------------------------------------------------------------------------------------------------------


def test_top_p_keeps_the_fewest_likely_codes():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.05, 0.9, 0.03, 0.02]]).log()
    close(probabilities(logits, top_p=0.75), torch.tensor([[0.625, 0.375, 0, 0], [0, 1.0, 0, 0]]))
    close(probabilities(logits, top_p=0.0), torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0]]))
    close(probabilities(logits, temperature=0.5), logits.exp() ** 2 / (logits.exp() ** 2).sum(1, keepdim=True))


@pytest.mark.parametrize("temperature, top_p", [(1.0, 1.0), (0.8, 0.9)])
def test_fast_sampler_equals_the_reference(temperature, top_p):
    audio, speaker = golden("pixelcnn")["audio"][..., :30], torch.tensor([2, 0, 2])
    audio = audio.expand(3, -1, -1)
    reference, fast = (
        sample(pixelcnn(), audio, speaker, torch.Generator().manual_seed(7), temperature, top_p)
        for sample in (sample_full_grid, incremental)
    )
    assert torch.equal(reference, fast)
    assert not torch.equal(fast[0], fast[2])  # same speaker, another draw


def test_stream_equals_the_whole_at_a_constant_size():
    audio, speaker = golden("pixelcnn")["audio"], torch.tensor([1, 3])
    sampler = IncrementalSampler(pixelcnn())
    whole = sampler.sample(audio, speaker, torch.Generator().manual_seed(3))
    state, generator = sampler.start(speaker), torch.Generator().manual_seed(3)
    pieces, sizes = [], set()
    for piece in audio.split([1, 2, 0, 30, 42], dim=2):
        pieces.append(sampler.extend(state, piece, generator))
        sizes.add(sum(value.numel() for value in vars(state).values()))
    assert torch.equal(torch.cat(pieces, dim=1), whole)
    assert len(sizes) == 1


# ---- the whole model ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [0, 3, 4, 7, 50, 111, 402])
@pytest.mark.parametrize("window", [1, 5, 16])
def test_windows_do_not_show(frames, window):
    model, rng = tiny_model(), np.random.default_rng(frames)
    features = rng.standard_normal((frames, 12)).astype(np.float32)
    plan = rng.random((frames, 4)).astype(np.float32)
    whole = model.codes(features, speaker=1, seed=5)
    assert whole.shape == (1, frames // 4, 2)
    assert torch.equal(model.codes(features, speaker=1, seed=5, window=window), whole)
    motion = model.decode(whole, plan, window)
    assert motion.shape == (1, frames // 4 * 4, 129) and motion.dtype == np.float32
    np.testing.assert_allclose(motion, model.decode(whole, plan), atol=2e-6)
    if frames >= 4:
        with torch.inference_mode():
            audio = model.encoder(torch.from_numpy(features).T[None])
            close(torch.cat(list(model._encode(features, window)), dim=2), audio, 2e-6)


def test_networks_see_a_window_at_a_time():
    model = tiny_model()
    seen = {"encoder": 0, "decoder": 0}

    def watch(name):
        def look(_, inputs):
            seen[name] = max(seen[name], inputs[0].shape[2])

        return look

    hooks = [
        model.encoder.register_forward_pre_hook(watch("encoder")),
        model.hand_vq.decoder.register_forward_pre_hook(watch("decoder")),
    ]
    model.run(np.zeros((600, 12), np.float32), 0, plan=np.zeros((600, 4), np.float32), window=20)
    for hook in hooks:
        hook.remove()
    assert seen == {"encoder": 4 * (20 + 2 * ENCODER_REACH), "decoder": 20 + 2 * DECODER_REACH}


def test_seed_and_samples():
    model, features = tiny_model(), np.zeros((40, 12), np.float32)
    plan = np.zeros((40, 4), np.float32)
    takes = model.run(features, 2, seed=1, plan=plan, samples=3)
    assert takes.shape == (3, 40, 129)
    assert np.array_equal(takes, model.run(features, 2, seed=1, plan=plan, samples=3))
    assert not np.array_equal(takes[0], takes[1])
    assert not np.array_equal(takes, model.run(features, 2, seed=2, plan=plan, samples=3))


def test_saved_model_moves_the_same(tmp_path):
    model, features = tiny_model(), np.random.default_rng(0).standard_normal((60, 12)).astype(np.float32)
    model.save(tmp_path / "new" / "gestures.safetensors")
    loaded = GestureModel.load(tmp_path / "new" / "gestures.safetensors")
    assert loaded.speakers == 3
    loaded.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "new/gestures.safetensors").read_bytes()
    plan, codes = np.ones((60, 4), np.float32), model.codes(features, 1)
    np.testing.assert_allclose(loaded.decode(codes, plan), model.decode(codes, plan), atol=2e-3)


def test_broken_weights_are_refused(tmp_path):
    file = tmp_path / "gestures.safetensors"
    with pytest.raises(InputError, match="missing"):
        GestureModel.load(file)
    file.write_bytes(b"no weights")
    with pytest.raises(InputError, match="cannot be read"):
        GestureModel.load(file)
    tiny_model().save(file)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match="cannot be read"):
        GestureModel.load(file)
