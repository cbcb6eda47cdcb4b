"""Training of Stable-Diffusion-kind anchors on two tiny filmed people, with tiny networks of the real architecture."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from PIL import Image
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel

from avatar_app import RenderSettings, render
from avatar_app.anchors import load_anchor
from avatar_app.cli import main
from avatar_app.diffusion import inpainting
from avatar_app.diffusion.alignment import similarity
from avatar_app.mesh.conditions import PART, normal_pictures, render_conditions
from avatar_app.training import paper, paper_data, paper_needs
from avatar_app.training.paper import Base, Pair, PaperTrainer, Recipe, train_paper
from avatar_app.training.paper_package import package_paper
from avatar_app.trust.consent import Consent
from avatar_app.video import probe
from talkshow_bridge.errors import InputError

CONSENT = Consent(kind="synthetic")
FACTS = {"name": "Two", "licence": "CC0-1.0", "consent": CONSENT.model_dump(mode="json")}
COLOURS = {"red": (200, 60, 40), "blue": (40, 80, 200)}  # of the two people
BODY = Recipe("body", 64, steps=4, batch=2, rate=1e-3, condition="normal-picture", check_every=3, save_every=2)
HEAD = replace(BODY, part="head", size=32)


@pytest.fixture(scope="module", autouse=True)
def quick_sheets():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paper, "SHOWN_STEPS", 2)
        yield


def landmarks_of(body) -> np.ndarray:
    """51 vertices of the ellipsoid that is the head, about where a face has them."""
    eyes, front = 0.31, 0.1
    ring = np.stack([np.cos(np.linspace(0, 2 * np.pi, 6)), np.sin(np.linspace(0, 2 * np.pi, 6))], 1)
    points = [(x, 0.36, front) for x in np.linspace(-0.05, 0.05, 10)]
    points += [(0, y, front) for y in np.linspace(0.3, 0.28, 4)] + [
        (x, 0.275, front) for x in np.linspace(-0.02, 0.02, 5)
    ]
    points += [(side * 0.03 + 0.01 * x, eyes + 0.01 * y, front) for side in (-1, 1) for x, y in ring]
    points += [(0.025 * np.cos(a), 0.235 + 0.01 * np.sin(a), front) for a in np.linspace(np.pi, -np.pi, 20)]
    distance = np.linalg.norm(body.vertices[:, None] - np.array(points, np.float32), axis=-1)
    return distance.argmin(0).astype(np.int32)


@pytest.fixture(scope="module")
def people(tiny_body, tiny_camera, tiny_motion, tmp_path_factory) -> dict[str, Path]:
    """Two footage folders: one shape, one motion, two colours."""
    folder = tmp_path_factory.mktemp("people")
    body = replace(tiny_body, landmarks=landmarks_of(tiny_body))
    for name, colour in COLOURS.items():
        (folder / name / "train").mkdir(parents=True)
        body.save(folder / name / "body.safetensors")
        (folder / name / "camera.json").write_text(json.dumps(tiny_camera.to_dict()))
        tiny_motion.save(folder / name / "train" / "motion.npz")
        index = {}
        for frame in range(0, 20, 2):
            vertices = body.pose(tiny_motion[frame : frame + 1]).vertices
            maps = render_conditions(body, vertices, tiny_camera)[0]
            light = maps[..., PART, None] > 0
            picture = np.where(light, np.array(colour) * (0.6 - 0.4 * maps[..., 2:3]), 90).astype(np.uint8)
            Image.fromarray(picture).save(folder / name / "train" / f"{frame:06d}.png")
            index[f"{frame:06d}.png"] = {"frame": frame, "camera": tiny_camera.to_dict()}
        (folder / name / "train" / "index.json").write_text(json.dumps(index))
    return {name: folder / name for name in COLOURS}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Base:
    """Folders as those of Stable Diffusion 1.5 and CLIP, with random weights."""
    folder = tmp_path_factory.mktemp("base") / "sd15"
    torch.manual_seed(0)
    networks = {
        "unet": UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=16,
            attention_head_dim=2,
            norm_num_groups=4,
        ),
        "vae": AutoencoderKL(
            block_out_channels=(8, 16, 16, 16),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            norm_num_groups=4,
        ),
        "scheduler": DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
        ),
        "text_encoder": CLIPTextModel(
            CLIPTextConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
        ),
        "../clip-vit-base-patch32": CLIPVisionModel(
            CLIPVisionConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
        ),
    }
    for name, network in networks.items():
        network.save_pretrained(folder / name)
    return Base(folder)


@pytest.fixture(scope="module")
def pretrained(people, base, tmp_path_factory) -> Path:
    """The first stage: both people, body and head."""
    out = tmp_path_factory.mktemp("runs") / "pretrained"
    train_paper(
        list(people.values()),
        out,
        base,
        CONSENT,
        [replace(BODY, steps=40, check_every=20, save_every=1000), HEAD],
        device="cpu",
    )
    return out


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """UNet and ControlNet of the best checkpoint below a part's folder."""
    (best,) = folder.glob("checkpoint-*")
    networks = (
        UNet2DConditionModel.from_pretrained(best / "unet"),
        ControlNetModel.from_pretrained(best / "controlnet"),
    )
    return {f"{n}.{key}": value for n, network in enumerate(networks) for key, value in network.state_dict().items()}


def test_two_identities_are_learnt_together(pretrained):
    facts = json.loads((pretrained / "body" / "training.json").read_text())
    (_, first, early), (_, last, late) = facts["history"]
    assert last < 0.9 * first and late < early and facts["people"] == 2
    assert sorted(path.name for path in (pretrained / "body" / "samples").iterdir()) == ["000020.jpg", "000040.jpg"]
    sheet = Image.open(pretrained / "body" / "samples" / "000040.jpg")
    assert sheet.size == (4 * 64, 3 * 64)


def test_second_stage_binds_packages_and_renders(people, base, pretrained, tiny_motion, tmp_path):
    recipes = [replace(recipe, steps=4, check_every=4) for recipe in (BODY, HEAD)]
    trained = train_paper([people["red"]], tmp_path / "run", base, CONSENT, recipes, start=pretrained, device="cpu")
    assert trained.keys() == {"body", "head"}
    before, after = weights(pretrained / "body"), weights(tmp_path / "run" / "body")
    assert before.keys() == after.keys()
    assert 0 < max((before[key] - after[key]).abs().max() for key in before) < 0.1  # it goes on from there
    anchor = package_paper(people["red"], trained, base, tmp_path / "anchors" / "red", FACTS)
    assert anchor.has_face and anchor.manifest.condition == "normal-picture"
    assert load_anchor(anchor.folder).manifest.extra["body"]["steps"] == 4
    settings = RenderSettings(preset="standard", steps=1)
    result = render(None, anchor.folder, tmp_path / "out.mp4", settings, motion=tiny_motion[:5])
    assert probe(result.path).frames == 5 and result.timings["face"] > 0


@pytest.fixture(scope="module")
def undisturbed(people, base, tmp_path_factory) -> dict[str, torch.Tensor]:
    """What `BODY` makes of one person."""
    out = tmp_path_factory.mktemp("undisturbed")
    train_paper([people["blue"]], out, base, CONSENT, [BODY], device="cpu")
    return weights(out / "body")


@pytest.mark.parametrize("at_once", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_run_ends_with_the_same_weights(people, base, undisturbed, tmp_path, monkeypatch, at_once):
    """Killed while the state is being written; pictures at a time do not matter either."""
    folders = [people["blue"]]
    if at_once == 1:
        monkeypatch.setattr(paper, "first_fitting", lambda device, options: ((True, 1), options[0][1]))
    save = torch.save

    def killed(state, path):
        if state["step"] == 4:
            path.write_bytes(b"half")
            raise KeyboardInterrupt
        save(state, path)

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        train_paper(folders, tmp_path / "killed", base, CONSENT, [BODY], device="cpu")
    monkeypatch.setattr(torch, "save", save)
    trainer = PaperTrainer(folders, tmp_path / "killed", base, BODY, device="cpu")
    assert trainer.step == 3 and trainer.at_once == at_once
    trainer.run()
    resumed = weights(tmp_path / "killed" / "body")
    for key, wanted in undisturbed.items():
        torch.testing.assert_close(resumed[key], wanted, rtol=1e-3, atol=1e-4)
    with pytest.raises(InputError, match="begun with another 'rate'"):
        PaperTrainer(folders, tmp_path / "killed", base, replace(BODY, rate=1.0), device="cpu")


def test_lora_merges_into_what_was_trained(people, base, tmp_path):
    trainer = PaperTrainer([people["red"]], tmp_path, base, replace(BODY, lora=2, average=0.0), device="cpu")
    folder = trainer.run()
    batch, noise, timesteps, _ = trainer.draw(0)
    inputs = (noise, timesteps, batch.tokens, batch.controls.float() / 255, batch.seen)
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    merged = Pair(unet, ControlNetModel.from_pretrained(folder / "controlnet"))
    with torch.no_grad():
        expected = trainer.pair(*inputs)
        torch.testing.assert_close(merged(*inputs), expected, rtol=1e-4, atol=1e-4)
        before = UNet2DConditionModel.from_pretrained(base.folder / "unet").state_dict()
    changed = [name for name, value in unet.state_dict().items() if not torch.equal(value, before[name])]
    assert changed and all(".to_" in name for name in changed)


def test_patience_ends_a_run_that_no_longer_improves(people, base, tmp_path, monkeypatch):
    losses = iter([1.0, 2.0, 3.0, 0.1])
    monkeypatch.setattr(PaperTrainer, "held_out_loss", lambda self: next(losses))
    recipe = replace(BODY, steps=8, check_every=1, patience=2)
    folder = train_paper([people["red"]], tmp_path, base, CONSENT, [recipe], device="cpu")["body"]
    assert folder.name == "checkpoint-1" and json.loads((tmp_path / "body" / "training.json").read_text())["steps"] == 3


def test_head_sees_the_mask_as_the_face_pass_does(people, base, tmp_path):
    """1 is kept, 0 painted again, and the kept pixels' latents are those of the picture without its face."""
    encoders = paper_data.Encoders(base.folder, base.encoder, torch.device("cpu"))
    footage = paper_data.Footage(people["red"], "train")
    prepared = paper_data.prepare(people["red"], "train", HEAD.look, encoders, tmp_path)
    batch = prepared.take(np.array([0, 3]))
    assert batch.seen.shape == (2, 5, 4, 4)
    for row, number in enumerate((0, 3)):
        vertices, camera = footage.vertices[[number]], footage.cameras[number]
        matrix = similarity(inpainting.five_points(footage.body, vertices, camera)[0])
        cut = inpainting.FaceCropper(footage.body, normal_pictures, 32)
        crop = cut(footage.pictures[[number]], vertices, [camera], [matrix])
        assert 0.05 < (crop.keep == 0).mean() < 0.9

        class Painter:
            device, dtype, autoencoder = torch.device("cpu"), torch.float32, encoders.autoencoder
            at_work = staticmethod(lambda *networks: None)

        wanted = inpainting.inpainting_channels(Painter, crop.pictures, crop.keep, None)
        torch.testing.assert_close(batch.seen[row : row + 1], wanted, atol=2e-3, rtol=2e-3)
        assert set(wanted[:, 0].unique().tolist()) <= {0.0, 1.0}
        assert np.array_equal(batch.controls[row].permute(1, 2, 0), crop.controls[0])


def test_references_are_other_pictures_of_the_same_person(people, base, tmp_path):
    encoders = paper_data.Encoders(base.folder, base.encoder, torch.device("cpu"))
    (train, numbers), (test, held_out) = paper_data.split(people["red"], BODY.look, encoders, tmp_path)
    assert not set(numbers) & set(held_out) and len(numbers) + len(held_out) == len(train) == 10
    assert (train.references != np.arange(10)).all() and set(train.references) <= set(range(10))
    cache = {path.name: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    paper_data.split(people["red"], BODY.look, encoders, tmp_path)
    assert cache == {path.name: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}


def test_prompt_is_dropped_as_often_as_the_recipe_says(people, base, tmp_path):
    trainer = PaperTrainer([people["red"]], tmp_path, base, replace(BODY, blind=0.5, batch=4), device="cpu")
    dropped = torch.cat([trainer.draw(step)[3] for step in range(50)]).float().mean()
    assert 0.35 < dropped < 0.65
    assert all(torch.equal(a, b) for a, b in zip(trainer.draw(7)[1:], trainer.draw(7)[1:], strict=True))


def test_the_command_line_trains_both_stages(people, base, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("AVATAR_APP_ANCHORS", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("avatar_app.training.build.checked_footage", lambda dataset, *numbers: dataset)
    common = ["--kind", "stable-diffusion", "--base", str(base.folder), "--steps", "2", "--batch", "2", "--face", "0"]
    common += ["--condition", "normal-picture", "--consent", "synthetic", "--agree"]
    person = ["anchors", "train", str(people["red"]), "--out", "red", "--size", "64", *common]
    assert main([*person[:-1]]) == 2 and "--agree" in capsys.readouterr().err.splitlines()[-1]
    train_paper([people["blue"]], tmp_path / "pre", base, CONSENT, [replace(BODY, steps=2)], device="cpu")
    assert main([*person, "--from", str(tmp_path / "pre")]) == 0, capsys.readouterr().err
    anchor = load_anchor("red")
    assert not anchor.has_face and anchor.manifest.extra["body"]["steps"] == 2
    assert main([*person, "--batch", "0", "--replace"]) == 2
    assert "--batch must be more than 0" in capsys.readouterr().err.splitlines()[-1]


# ----------------------------------------------------------------------------- what a run takes


def test_work_and_memory_are_those_of_real_tensors(base):
    unet = UNet2DConditionModel.from_pretrained(base.folder / "unet")
    pair = Pair(unet, ControlNetModel.from_unet(unet))
    held = 0
    seen = {parameter.untyped_storage().data_ptr() for parameter in pair.parameters()}

    def keep(tensor):
        nonlocal held
        if tensor.untyped_storage().data_ptr() not in seen:
            seen.add(tensor.untyped_storage().data_ptr())
            held += tensor.untyped_storage().nbytes()
        return tensor

    shapes = ((2, 4, 8, 8), (2,), (2, 50, 16), (2, 3, 64, 64), (2, 0, 8, 8))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        alive = pair(*(torch.zeros(shape) for shape in shapes))
    assert alive.shape == (2, 4, 8, 8)
    with torch.device("meta"):
        outline = Pair(
            UNet2DConditionModel.from_config(unet.config), ControlNetModel.from_config(pair.controlnet.config)
        )
        cost = paper_needs.count_step(outline, tuple(torch.zeros(shape) for shape in shapes), False, False)
        again = paper_needs.count_step(outline, tuple(torch.zeros(shape) for shape in shapes), True, False)
    assert cost.kept == pytest.approx(held, rel=0.15)
    assert again.kept + again.again < 0.85 * cost.kept and again.work == cost.work


@pytest.mark.slow
def test_the_real_size_needs_what_its_authors_report():
    """A nearly full A100 of 40 GB for four pictures of 512 in 32 bits; 1.083 TFLOP a picture, counted by hand."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768)
        pair = Pair(unet, ControlNetModel.from_unet(unet, load_weights_from_unet=False))
        inputs = [
            torch.zeros(shape) for shape in ((1, 4, 64, 64), (1,), (1, 50, 768), (1, 3, 512, 512), (1, 0, 64, 64))
        ]
        cost = paper_needs.count_step(pair, tuple(inputs), False, False)
    count = sum(parameter.numel() for parameter in pair.parameters())
    assert count == pytest.approx(1220.8e6, rel=1e-3) and cost.work == pytest.approx(1.083e12, rel=0.02)
    needs = paper_needs.run_needs(cost, count, 0, 4, 1, average=False, mixed=False)
    assert 25 < needs.total / 2**30 < 40


def test_too_little_memory_is_said_before_anything_is_done(people, base, tmp_path, monkeypatch):
    monkeypatch.setattr(paper_needs, "free_memory", lambda device: 10**6)
    with pytest.raises(InputError, match="Training needs at least .* GB of memory and cpu has 0.0 GB free"):
        PaperTrainer([people["red"]], tmp_path, base, BODY, device="cpu")
    assert not list(tmp_path.rglob("*.npy"))


def change_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


REFUSALS = {
    "no consent": (lambda a: a.update(consent=Consent(kind="unstated")), "consent"),
    "no footage": (lambda a: a.update(people=[Path("nowhere")]), "'nowhere' is not a footage folder"),
    "no base": (lambda a: a.update(base=Base(Path("nowhere"))), "nowhere/text_encoder/config.json' is missing"),
    "odd size": (lambda a: a.update(recipes=[replace(BODY, size=60)]), "60x60 cannot be painted"),
    "maps": (lambda a: a.update(recipes=[replace(BODY, condition="maps")]), "see pictures"),
    "no head to start from": (lambda a: a.update(recipes=[HEAD], start="body"), "has no networks of the head"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_does_not_fit_is_refused_in_one_sentence(case, people, base, pretrained, tmp_path):
    change, words = REFUSALS[case]
    given = {"people": [people["red"]], "base": base, "consent": CONSENT, "recipes": [BODY], "start": None}
    change(given)
    if given["start"]:
        given["start"] = pretrained / "body"
    with pytest.raises(InputError, match=words):
        train_paper(out=tmp_path / "run", device="cpu", **given)


def test_wrong_weights_to_start_from_are_refused(people, base, pretrained, tmp_path):
    import shutil

    shutil.copytree(pretrained, tmp_path / "start", ignore=shutil.ignore_patterns("cache"))
    (best,) = (tmp_path / "start" / "body").glob("checkpoint-*")
    change_config(best / "unet", layers_per_block=2)
    with pytest.raises(InputError, match="unet"):
        train_paper([people["red"]], tmp_path / "run", base, CONSENT, [BODY], start=tmp_path / "start", device="cpu")


def test_head_of_a_base_without_inpainting_ignores_its_new_channels_at_first(base):
    pair = paper.open_pair(base, None, "head", 4)
    assert pair.unet.config.in_channels == 9 and pair.controlnet.config.in_channels == 4
    noisy, tokens, controls = torch.randn(1, 4, 8, 8), torch.randn(1, 50, 16), torch.rand(1, 3, 64, 64)
    body = paper.open_pair(base, None, "body", 4)
    with torch.no_grad():
        plain = body(noisy, torch.tensor([5]), tokens, controls, noisy[:, :0])
        masked = pair(noisy, torch.tensor([5]), tokens, controls, torch.randn(1, 5, 8, 8))
    assert functional.mse_loss(plain, masked) < 1e-6
