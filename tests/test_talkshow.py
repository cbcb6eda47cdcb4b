"""TalkSHOW's features, face net, checkpoint files and whole output against what the original code computed.

`data/talkshow` holds synthetic audio, the names and shapes of official state dicts at small sizes, and the original's
results with the made-up weights of `procedural.py`.
"""

import json
import shutil
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from avatar_app.cli import main
from talkshow_bridge import checkpoints, face_net, mfcc
from talkshow_bridge.audio import Speech, decode, load_speech, stream
from talkshow_bridge.checkpoints import convert, holds_talkshow, read_states
from talkshow_bridge.errors import InputError
from talkshow_bridge.lip_net import LipNet
from talkshow_bridge.talkshow import TalkShow
from tests.procedural import made_up

DATA = Path(__file__).parent / "data" / "talkshow"
CLIP = DATA / "16k_mono.flac"  # 10 s
FIXED = [*range(3, 18), *range(21, 27), *range(30, 36), *range(39, 45)]  # eyes, root, legs
PROGRAM = b"cposix\nsystem\n(S'touch RAN'\ntR."  # a pickle that starts a program


@cache
def golden(name):
    with np.load(DATA / f"{name}.npz") as stored:
        return {key: stored[key] for key in stored}


def official_files() -> dict[str, dict]:
    """What the three official files hold, at small sizes."""
    files = {}
    for file, networks in json.loads((DATA / "official_keys.json").read_text()).items():
        weights = {"discriminator": None, "discriminator_optim": None}
        for network, shapes in networks.items():
            weights[network] = {key: official_tensor(key, tuple(shape)) for key, shape in shapes.items()}
            momenta = {0: {"momentum_buffer": torch.zeros(3), "step": 1}}
            weights[f"{network}_optim"] = {"state": momenta, "param_groups": [{"lr": 0.001, "params": [0]}]}
        files[file] = {"generator": weights, "epoch": 99, "global_steps": 1}
    return files


def official_tensor(key, shape):
    return torch.tensor(0) if key.endswith("num_batches_tracked") else torch.from_numpy(made_up(key, shape))


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """A folder as it is unpacked from the authors' archive."""
    folder = tmp_path_factory.mktemp("experiments")
    for file, stored in official_files().items():
        (folder / f"2022-smplx_{file}").mkdir()
        torch.save(stored, folder / f"2022-smplx_{file}" / "ckpt-99.pth")
    torch.save({"generator": {"g": {"encoder.project.conv.weight": torch.zeros(3)}}}, folder / "feature_extractor.pth")
    return folder


@pytest.fixture
def copied(official, tmp_path):
    """A copy to spoil: face.pth, body_vq.pth, body_pixel.pth."""
    folder = tmp_path / "weights"
    folder.mkdir()
    for part in ("face", "body_vq", "body_pixel"):
        shutil.copy(official / f"2022-smplx_{part}" / "ckpt-99.pth", folder / f"{part}.pth")
    return folder


@pytest.fixture(scope="module")
def talkshow(official):
    return TalkShow.from_pretrained(official)


@pytest.fixture(scope="module")
def clip():
    return load_speech(CLIP)


class Ramp:
    """Stands for a network: the value of every number is the frame's index."""

    speakers, outputs = 4, 103

    def run(self, heard, *where, samples=1, **options):
        frames = where[0] if len(heard.shape) == 1 else len(heard) // 4 * 4
        ramp = np.arange(frames, dtype=np.float32)[:, None]
        if heard.ndim == 1:
            return np.repeat(ramp, 103, axis=1)
        return np.repeat(np.repeat(ramp, 129, axis=1)[None], samples, axis=0)


def of_seconds(seconds, rate=16_000):
    return Speech.from_samples(np.random.default_rng(0).normal(0, 0.1, round(seconds * rate)).astype(np.float32), rate)


# ---- features -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["16k_mono", "22k_mono", "24k_mono", "44k_stereo", "48k_mono"])
def test_features_are_the_originals(name):
    samples, rate = decode(DATA / f"{name}.flac")
    features = mfcc.talkshow_mfcc(samples, rate)
    np.testing.assert_allclose(features, golden("mfcc")[name], atol=1e-2)
    pieces = (samples[:, first : first + 997] for first in range(0, samples.shape[1], 997))
    np.testing.assert_allclose(mfcc.mfcc_of_blocks(pieces, rate), features, atol=1e-3)


def test_decoding_keeps_rate_and_channels(tmp_path):
    samples, rate = decode(DATA / "44k_stereo.flac")
    assert rate == 44_100 and samples.shape == (2, 110_250) and samples.dtype == np.float32
    assert not np.array_equal(samples[0], samples[1])
    with stream(CLIP) as (blocks, rate):
        assert (sum(block.shape[1] for block in blocks), rate) == (160_000, 16_000)
    (tmp_path / "text.wav").write_text("no sound")
    with pytest.raises(InputError), stream(tmp_path / "text.wav"):
        pass


@pytest.mark.parametrize("rate", [8_000, 11_025, 44_099, 96_000])
def test_any_rate_has_the_same_clock(rate):
    tone = np.sin(2 * np.pi * 440 * np.arange(rate) / rate).astype(np.float32)[None]
    wave = np.concatenate(list(mfcc.resample([tone], rate)))
    assert abs(len(wave) - mfcc.SAMPLE_RATE) <= 1
    expected = np.sin(2 * np.pi * 440 * np.arange(len(wave)) / mfcc.SAMPLE_RATE)
    np.testing.assert_allclose(wave[300:-300], expected[300:-300], atol=2e-2)
    assert len(mfcc.talkshow_mfcc(tone, rate)) == 30


def test_too_little_sound_is_refused():
    with pytest.raises(InputError, match="more than"):
        mfcc.talkshow_mfcc(np.zeros((1, 900), np.float32), 22_000)


# ---- face -----------------------------------------------------------------------------------------------------------


def test_face_is_the_originals(talkshow, clip):
    truth, face, samples = golden("face"), talkshow.face, clip.samples
    np.testing.assert_allclose(face.run(samples, 300)[::3], truth["zeros"], atol=1e-3)
    np.testing.assert_allclose(face.run(samples, 300, speaker=2)[::3], truth["speaker_2"], atol=1e-3)
    np.testing.assert_allclose(face.run(samples[:32777], 61), truth["odd"], atol=1e-3)
    np.testing.assert_allclose(face.run(samples[:32000], 60), truth["loud"], atol=1e-3)
    np.testing.assert_allclose(face.run(samples[:32000] * np.float32(0.01), 60), truth["quiet"], atol=1e-3)


@torch.inference_mode()
def test_face_takes_a_batch(talkshow, clip):
    waves = torch.from_numpy(np.stack([clip.samples[:32000], 0.01 * clip.samples[:32000]]).astype(np.float32))
    faces = talkshow.face(waves, 60).numpy()
    np.testing.assert_allclose(faces, [golden("face")["loud"], golden("face")["quiet"]], atol=1e-3)


@torch.inference_mode()
def test_features_of_windows_are_those_of_the_whole(talkshow, clip, monkeypatch):
    face, wave = talkshow.face, torch.from_numpy(clip.samples)[None]
    norm = face._clip_norm(wave)
    whole = face._features(wave, norm, 300, 0, 300)
    stock = face.audio_encoder.feature_extractor(wave)
    stock = torch.nn.functional.interpolate(stock, 300, mode="linear").transpose(1, 2)
    torch.testing.assert_close(whole, stock, atol=1e-4, rtol=1e-4)
    monkeypatch.setattr(face_net, "_BLOCK", 37)
    parts = [face._features(wave, norm, 300, first, first + 60) for first in range(0, 300, 60)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=1e-5)


def test_long_clips_are_seen_in_windows_without_jumps(talkshow, clip):
    whole = talkshow.face.run(clip.samples, 300)
    longest = []
    hook = talkshow.face.audio_encoder.encoder.register_forward_pre_hook(lambda _, x: longest.append(x[0].shape[1]))
    windowed = talkshow.face.run(clip.samples, 300, window=160)
    hook.remove()
    assert longest == [160] * 5
    assert np.abs(windowed - whole).mean() < 0.1 * whole.std()
    assert np.abs(np.diff(windowed, axis=0)).max() < 1.2 * np.abs(np.diff(whole, axis=0)).max()


# ---- the 265 columns of the original --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("speaker", "posture"), [(0, "sit"), (1, "sit"), (2, "sit"), (3, "sit"), (0, "stand"), (0, "only_face")]
)
def test_compat_columns_are_the_originals(talkshow, clip, speaker, posture):
    truth = golden("columns")
    (columns,) = talkshow.columns(clip, speaker, posture, seed=0, top_p=0.0)
    assert columns.shape == (300, 265) and columns.dtype == np.float32
    columns = columns[truth["frames"]]
    expected = truth[f"id0_{posture}"]
    if speaker:
        expected = truth["id0_sit"].copy()
        expected[:, 12:165] = truth[f"id{speaker}_body"]
    np.testing.assert_allclose(columns[:, : expected.shape[1]], expected, atol=1e-3)
    assert np.array_equal(columns[:, FIXED], expected[:, FIXED])


def test_compat_motion_holds_the_columns(talkshow, clip):
    motion = talkshow.generate(clip, style="seth", top_p=0.0, compat=True)
    expected = golden("columns")["id0_sit"].copy()
    expected[:, 12:165] = golden("columns")["id2_body"]
    np.testing.assert_allclose(motion.to_talkshow()[golden("columns")["frames"]], expected, atol=1e-3)
    assert motion.meta["compat"] and motion.fps == 30


# ---- the mended default ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0.1, 1.0, 7.77, 61.013])
@pytest.mark.parametrize("fps", [24, 25, 29.97, 30, 60])
def test_one_clock_for_face_and_body(seconds, fps):
    motion = TalkShow(Ramp(), Ramp()).generate(of_seconds(seconds), fps=fps)
    times = np.arange(len(motion)) / fps
    assert len(motion) == np.ceil(seconds * fps - 1e-6)
    np.testing.assert_allclose(motion.body[:, 2, 0], times * mfcc.FRAME_RATE, atol=1e-3)  # spine1: the body's frames
    face = np.minimum(times * 30, np.ceil(seconds * 30 - 1e-6) - 1)
    np.testing.assert_allclose(motion.expression[:, 0], face, atol=1e-3)


def test_neck_collar_and_posture(talkshow, clip):
    sitting = talkshow.generate(clip, seed=1)
    neck, left, right = (sitting.body[:, joint - 1] for joint in (12, 13, 14))
    assert not neck.any()
    np.testing.assert_allclose(left, np.tile(right.mean(axis=0) * [1, -1, -1], (300, 1)), atol=1e-6)
    assert np.abs(sitting.global_orient).max() < 0.1  # upright
    standing = talkshow.generate(clip, seed=1, posture="stand")
    assert not standing.body[:, [0, 1, 3, 4]].any() and sitting.body[:, [0, 1, 3, 4]].any()
    assert np.array_equal(sitting.body[:, 5:], standing.body[:, 5:])
    quiet = talkshow.generate(clip, posture="only_face")
    assert not quiet.body.any() and not quiet.left_hand.any()
    assert np.array_equal(quiet.jaw, sitting.jaw)


def test_seeds_takes_styles_energy(talkshow):
    speech = of_seconds(3.0)
    takes = talkshow.takes(speech, 3, seed=5)
    assert len(takes) == 3 and [take.meta["take"] for take in takes] == [0, 1, 2]
    assert np.array_equal(takes[0].expression, takes[1].expression)
    assert not np.array_equal(takes[0].body, takes[1].body)
    assert np.array_equal(talkshow.takes(speech, 3, seed=5)[2].body, takes[2].body)
    assert np.array_equal(talkshow.generate(speech, style="conan").body, talkshow.generate(speech, style=3).body)
    assert not np.array_equal(talkshow.generate(speech, style="conan").body, talkshow.generate(speech).body)
    assert np.ptp(talkshow.generate(speech, energy=0.0).body, axis=0).max() < 1e-5
    told = talkshow.generate(speech, style="seth", face_style=True)
    assert not np.array_equal(told.expression, talkshow.generate(speech, style="seth").expression)
    assert talkshow.styles == ("oliver", "chemistry", "seth", "conan")
    assert talkshow.expression_space == told.expression_space == "flame100"


@pytest.mark.parametrize(
    "wish", [{"style": "nobody"}, {"style": 4}, {"fps": 0}, {"fps": 1000}, {"energy": 3}, {"posture": "lying"}]
)
def test_impossible_wishes_are_refused(wish):
    with pytest.raises(InputError):
        TalkShow(Ramp(), Ramp()).generate(of_seconds(0.5), **wish)


def test_the_shortest_speech(talkshow):
    assert len(talkshow.generate(of_seconds(0.1))) == 3
    assert len(talkshow.generate(of_seconds(0.14), compat=True)) == 4
    with pytest.raises(InputError, match="more speech"):
        talkshow.generate(of_seconds(0.1), compat=True)


def test_compat_freezes_the_end_and_runs_ahead():
    model, speech = TalkShow(Ramp(), Ramp()), of_seconds(60)
    body = model.generate(speech, compat=True).body[:, 2, 0]
    assert np.array_equal(body, np.minimum(np.arange(1800), 1795))  # frames made at 29.973 Hz, shown at 30
    assert model.generate(speech).body[-1, 2, 0] > 1797


def test_bundled_lips_for_bodies_with_arkit_units(talkshow, clip):
    from talkshow_bridge.generator import BUNDLED

    model = TalkShow(talkshow.face, talkshow.gestures, LipNet.load(BUNDLED))
    motion = model.generate(clip, seed=2, fps=25)
    assert model.expression_space == motion.expression_space == "arkit52"
    assert motion.expression.shape == (250, 52) and motion.unit("eyeBlinkLeft").max() > 0.9
    official = talkshow.generate(clip, seed=2, fps=25, posture="stand")
    assert np.array_equal(motion.body, official.body)
    with pytest.raises(InputError, match="bundled"):
        TalkShow.from_pretrained("anywhere", lips="other")


# ---- checkpoint files -----------------------------------------------------------------------------------------------


def equal(some, others):
    return all(
        some[name].keys() == others[name].keys()
        and all(torch.equal(value, others[name][key]) for key, value in some[name].items())
        for name in checkpoints.NETWORKS
    )


def test_networks_are_known_by_what_they_hold(official, copied):
    states = read_states(official)
    shutil.move(copied / "face.pth", copied / "x.pth")
    shutil.move(copied / "body_pixel.pth", copied / "face.pth")
    shutil.move(copied / "x.pth", copied / "body_pixel.pth")
    assert equal(read_states(copied), states)
    stored = official_files()["body_pixel"]["generator"]
    wrapped = {name: {f"module.{key}": v for key, v in stored[name].items()} for name in ("generator", "audioencoder")}
    torch.save(wrapped, copied / "face.pth")  # a bare state dict from several GPUs
    assert equal(read_states(copied), states)


def test_converted_set_is_the_same(official, copied, tmp_path, capsys):
    assert not holds_talkshow(tmp_path / "nowhere")
    assert main(["motion", "import", str(official), "--out", str(tmp_path / "new" / "set")]) == 0
    assert "set" in capsys.readouterr().out
    files = {file.name for file in (tmp_path / "new" / "set").iterdir()}
    assert files == {"config.json", *(f"{name}.safetensors" for name in checkpoints.NETWORKS)}
    assert equal(read_states(tmp_path / "new" / "set"), read_states(official))
    assert holds_talkshow(official) and holds_talkshow(tmp_path / "new" / "set")
    assert main(["motion", "import", str(copied), "--out", str(tmp_path / "new" / "set")]) == 2
    assert "exists already" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["set"]


def spoil(path, change):
    stored = torch.load(path, weights_only=True)
    change(stored["generator"])
    torch.save(stored, path)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BAD_FILES = {
    "no face": (lambda f: (f / "face.pth").unlink(), "no face network"),
    "no VQ-VAEs": (lambda f: (f / "body_vq.pth").unlink(), "no body VQ-VAE and no hand VQ-VAE"),
    "no PixelCNN": (lambda f: (f / "body_pixel.pth").unlink(), "no PixelCNN"),
    "cut off": (lambda f: cut(f / "face.pth"), "'face.pth' is cut off"),
    "empty": (lambda f: (f / "face.pth").write_bytes(b""), "'face.pth' is cut off"),
    "text": (lambda f: (f / "face.pth").write_text("404: not found"), "no file of weights"),
    "a program": (lambda f: (f / "face.pth").write_bytes(PROGRAM), "could run code"),
    "a program in a zip": (
        lambda f: torch.save({"generator": SimpleNamespace(x=torch.zeros(3))}, f / "face.pth"), "could run code",
    ),
    "twice": (lambda f: shutil.copy(f / "face.pth", f / "older.pth"), "in two files"),
    "not finite": (
        lambda f: spoil(f / "face.pth", lambda w: w["generator"]["final_out.0.bias"].fill_(torch.nan)), "not finite",
    ),
    "of another shape": (
        lambda f: spoil(f / "face.pth", lambda w: w["generator"].update({"final_out.0.bias": torch.zeros(7)})),
        "face network .* is not TalkSHOW's",
    ),
    "a tensor short": (
        lambda f: spoil(f / "body_pixel.pth", lambda w: w["generator"].pop("layers.1.horiz_resid.bias")),
        "PixelCNN .* is not TalkSHOW's",
    ),
    "not of one training": (
        lambda f: spoil(f / "body_vq.pth", lambda w: w["g_body"].update({"vq_layer.embeddings": torch.zeros(9, 64)})),
        "9 body codes instead of 128",
    ),
    "of other motion": (
        lambda f: spoil(f / "body_vq.pth", lambda w: w["g_hand"].update({"decoder.project.bias": torch.zeros(50)})),
        "no hand VQ-VAE",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_files_are_refused_in_a_sentence(copied, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    do_harm, words = BAD_FILES[kind]
    do_harm(copied)
    with pytest.raises(InputError, match=words) as refused:
        convert(copied, tmp_path / "new")
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 400
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]  # nothing ran, nothing is left behind


def test_other_projects_are_refused(tmp_path):
    with pytest.raises(InputError, match="no folder"):
        read_states(tmp_path / "nowhere")
    with pytest.raises(InputError, match="does not hold TalkSHOW's weights"):
        read_states(tmp_path)
    torch.save({"state_dict": {"unet.weight": torch.zeros(3)}}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="does not hold TalkSHOW's weights"):
        read_states(tmp_path)


def test_a_damaged_set_is_refused(official, tmp_path):
    folder = convert(official, tmp_path / "set")
    states = load_file(folder / "hand_vq.safetensors")
    save_file({**states, "codebook": states["codebook"] / 0}, folder / "hand_vq.safetensors")
    with pytest.raises(InputError, match="not finite"):
        read_states(folder)
    cut(folder / "face.safetensors")
    with pytest.raises(InputError, match="'face.safetensors' is cut off"):
        read_states(folder)
    (folder / "face.safetensors").unlink()
    with pytest.raises(InputError, match="'face.safetensors' is missing"):
        read_states(folder)
