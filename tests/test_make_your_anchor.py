"""Anchors of Make-Your-Anchor's kind: the numbers of the original code, its face pass, the import of its checkpoints.

`data/make_your_anchor` holds tiny networks with random weights and what the original code computed with them.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel
from diffusers import UNet2DConditionModel as UNet
from diffusers.models.attention_processor import Attention
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, CLIPVisionModel

from avatar_app import RenderSettings, render
from avatar_app.anchors import Anchor, Compat, Placement, Preset, load_anchor
from avatar_app.cli import main
from avatar_app.diffusion import alignment, inpainting, prompts
from avatar_app.diffusion.attention import CrossFrameAttention, FrameCoupling, WindowState
from avatar_app.diffusion.denoise import overlapped_denoise, singly, stream_denoise
from avatar_app.diffusion.generator import FrameGenerator
from avatar_app.diffusion.painters import StableDiffusionPainter
from avatar_app.import_original import Original, import_original, show_camera
from avatar_app.mesh.bodies import DEFAULT_DIRECTORY, LICENSED_FILE
from avatar_app.mesh.conditions import PART, render_conditions
from avatar_app.trust.consent import Consent
from avatar_app.video import probe
from talkshow_bridge.errors import InputError
from talkshow_bridge.motion import Motion
from talkshow_bridge.rotations import matrix
from tests.originals import DATA, arrays, habits, variant, write_networks

ORIGINAL_RUNS = {  # name: (frames, window, overlap, steps, guidance, condition scale)
    "full": (22, 8, 2, 4, 7.5, 2.0),
    "tail": (20, 8, 2, 4, 7.5, 2.0),
    "short": (5, 16, 4, 4, 7.5, 2.0),
    "steps20": (10, 8, 2, 20, 3.0, 1.0),
    "nooverlap": (16, 8, 0, 4, 7.5, 2.0),
    "single": (1, 16, 4, 4, 7.5, 2.0),
}


@pytest.mark.parametrize("run", ORIGINAL_RUNS)
def test_compat_anchor_repeats_the_original_latents(run, golden, mesh_pictures, original_anchor):
    length, window, overlap, steps, guidance, scale = ORIGINAL_RUNS[run]
    options = Preset(steps=steps, guidance=guidance, window=window, overlap=overlap, condition_scale=scale)
    painter = StableDiffusionPainter(original_anchor, "body", options, torch.device("cpu"), torch.float32)
    scheduler = painter.scheduler()
    scheduler.set_timesteps(steps)

    def predict(latents, timestep, frames):
        return painter.predict(latents, timestep, painter.encode(mesh_pictures[frames]))

    with torch.inference_mode():
        windows = painter.windows(lambda count: min(count, length), options)
        latents = torch.cat([part for _, part in stream_denoise(singly(predict), scheduler, golden["noise"], windows)])
        assert torch.allclose(latents, golden[run], atol=3e-4)
        if run == "full":
            pixels = painter.decode(latents[:4], ()).to(torch.uint8).permute(0, 2, 3, 1)
            assert (pixels == golden["pixels"]).float().mean() > 0.999


def test_generator_streams_a_compat_anchor(mesh_pictures, original_anchor):
    generator = FrameGenerator(original_anchor, original_anchor.preset("standard", {"steps": 2}), seed=1)
    whole = np.concatenate(list(generator.frames(iter([mesh_pictures]))))
    parts = np.concatenate(list(generator.frames(iter(np.split(mesh_pictures, [3, 4, 15])))))
    assert whole.shape == (22, 64, 64, 3) and whole.dtype == np.uint8
    assert np.array_equal(whole, parts)


@pytest.mark.parametrize("first_and_last,expected", [(False, "unit_out"), (True, "unit_first_last")])
def test_coupling_repeats_one_window_and_comes_off(golden, first_and_last, expected):
    unet, controlnet = UNet.from_pretrained(DATA / "unet"), ControlNetModel.from_pretrained(DATA / "controlnet")
    video, condition = golden["unit_x"], golden["unit_cond"].float() / 255  # (2, channels, 8 frames, h, w)
    before = set(unet.attn_processors.values())

    @torch.inference_mode()
    def run(video, condition, state=None):
        frames = video.shape[2]
        sample, picture = (x.transpose(1, 2).flatten(0, 1) for x in (video, condition))
        embedding = golden["unit_emb"].repeat_interleave(frames, 0)
        down, middle = controlnet(sample, golden["unit_t"], embedding, picture, 2.0, return_dict=False)
        if state:
            state.mid_residual = down[-1]
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        return unet(sample, golden["unit_t"], embedding, **residuals).sample.unflatten(0, (2, frames)).transpose(1, 2)

    coupling = FrameCoupling(unet, controlnet, first_and_last=first_and_last, pooled_norm=True, residual_into_mid=True)
    coupling.state.frames = 8
    assert torch.allclose(run(video, condition, coupling.state), golden[expected], atol=2e-5)
    coupling.remove()
    assert set(unet.attn_processors.values()) == before
    plain = run(video[:, :, :1], condition[:, :, :1])[:, :, 0]
    assert torch.allclose(plain, golden["unit_plain_one_frame"], atol=2e-5)


def test_cross_frame_attention_alone():
    data = {name: torch.from_numpy(array) for name, array in arrays("attention.npz").items()}
    attention = Attention(query_dim=16, heads=2, dim_head=8)
    attention.load_state_dict({name[2:]: value for name, value in data.items() if name.startswith("w_")})
    state = WindowState(frames=3)
    for processor, name in [
        (CrossFrameAttention(state), "full"),
        (CrossFrameAttention(state, first_and_last=True), "first_last"),
    ]:
        attention.set_processor(processor)
        assert torch.allclose(attention(data["hidden"]), data[name], atol=1e-6)


def test_weights_that_do_not_fit_are_refused(tmp_path, original_anchor):
    broken = tmp_path / "broken"
    shutil.copytree(original_anchor.folder, broken)
    config = broken / "body" / "unet" / "config.json"
    config.write_text(config.read_text().replace('"layers_per_block": 1', '"layers_per_block": 2'))
    with pytest.raises(InputError, match="unet"):
        FrameGenerator(Anchor(broken, original_anchor.manifest), original_anchor.preset("draft"))


# ----------------------------------------------------------------------------- the face pass


def test_face_pass_repeats_the_original_numbers(face_anchor, face_golden):
    options = Preset(steps=5, guidance=3.5)
    painter = StableDiffusionPainter(face_anchor, "face", options, torch.device("cpu"), torch.float32)
    noise = inpainting.posterior_noise(inpainting.ORIGINAL_BATCH, painter.latent_shape(64, 64))
    assert torch.equal(noise[:3], torch.from_numpy(face_golden["posterior_noise"]))
    with torch.inference_mode():
        channels = inpainting.inpainting_channels(painter, face_golden["face"], face_golden["mask"], noise[:3])
        kept, latents = channels.split((1, 4), dim=1)
        assert np.array_equal((face_golden["mask"] >= 128)[:, None], face_golden["mask_pixels"])
        assert np.array_equal(kept, face_golden["mask_latent"])
        np.testing.assert_allclose(latents, face_golden["masked_image_latents"], atol=1e-5)
        condition = (*painter.encode(face_golden["control"]), channels)
        scheduler = painter.scheduler()
        scheduler.set_timesteps(5)
        start = torch.from_numpy(face_golden["init_latent_single"])
        result = overlapped_denoise(lambda x, t, _: painter.predict(x, t, condition), scheduler, start, [range(3)])
        np.testing.assert_allclose(result, face_golden["latents"][-1], atol=5e-5)  # values up to 25
        pixels = painter.decode(result, condition)
        np.testing.assert_allclose(pixels[0].permute(1, 2, 0)[::4] / 255, face_golden["image"], atol=5e-6)
        assert np.mean(pixels.round().permute(0, 2, 3, 1)[:, ::4].numpy() == face_golden["outputs"]) > 0.999


@pytest.fixture(scope="module")
def geometry() -> dict[str, np.ndarray]:
    return arrays("geometry.npz")


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """(512, 512, 3) uint8 RGB."""
    return np.asarray(Image.open(DATA / "photo.webp").convert("RGB"))


def test_five_points_give_the_original_matrix(geometry):
    for points, expected in zip(geometry["landmarks"], geometry["matrices"], strict=True):
        np.testing.assert_allclose(alignment.similarity(points), expected, atol=1e-4)
        np.testing.assert_allclose(alignment.inverse(alignment.inverse(expected)), expected, atol=1e-9)


def test_crop_and_blend_repeat_the_original_to_the_bit(geometry, photo):
    crop = alignment.warp(photo, geometry["M"], 512, 512)
    assert np.array_equal(crop[8::32], geometry["crop"])
    for case in ("", "_edge"):
        aligned = geometry["M" + case]
        blended = alignment.paste_square(photo, geometry["face"], aligned)
        changed = np.argwhere((blended != photo).any(axis=-1))
        (top, left), (bottom, right) = changed.min(axis=0), changed.max(axis=0) + 1
        assert (top, left) == tuple(geometry["corner" + case])
        assert np.array_equal(blended[top:bottom:6, left:right], geometry["blended" + case])
        mask = alignment.square_mask(aligned, 512, 512)
        np.testing.assert_allclose(mask[::8, ::8], geometry["mask" + case], atol=1e-7)


def test_mask_is_widened_turned_over_and_resized_as_in_the_original(geometry):
    keep = inpainting.keep_mask((geometry["parsing"] >= 1) & (geometry["parsing"] <= 13))
    assert np.array_equal(keep[::4, ::4], geometry["keep"])
    assert np.array_equal(alignment.resize(keep, 256), geometry["keep_256"])


def test_resize_keeps_what_it_can(photo):
    assert np.array_equal(alignment.resize(photo, 512), photo)
    assert np.array_equal(alignment.resize(alignment.resize(photo[:8, :8], 512), 8).shape, (8, 8, 3))


def test_points_and_aligned_camera_agree(face_anchor, portrait_camera):
    """The mesh, seen through the camera of the crop, has its landmarks where the matrix takes them."""
    body = face_anchor.body
    motion = Motion.rest(2, 30)
    motion.body[1, 14] = (0.1, 0.4, 0.3)  # the head turns
    vertices = body.pose(motion).vertices
    for posed, points in zip(vertices, inpainting.five_points(body, vertices, portrait_camera), strict=True):
        aligned = alignment.similarity(points)
        crop = inpainting.aligned_camera(portrait_camera, aligned)
        seen = inpainting.five_points(body, posed[None], crop)[0]
        np.testing.assert_allclose(seen, np.c_[points, np.ones(5)] @ aligned.T, atol=1e-6)
        assert np.abs(seen - alignment.TEMPLATE).max() < 45
        maps = render_conditions(body, posed[None], crop)[0]
        face = inpainting.FaceMask(body)(maps)
        assert 0.15 < face.mean() < 0.5 and face[round(seen[2, 1]), round(seen[2, 0])]
        assert (maps[..., PART] > 0)[~face].mean() > 0.05  # neck and scalp


@pytest.mark.parametrize("square", [True, False])
def test_face_pass_changes_the_face_alone_however_it_is_cut(face_anchor, mesh_pictures_by_hand, square):
    anchor = habits(face_anchor, square_face_mask=square)
    motion = Motion.rest(5, 30)
    motion.body[:, 14, 1] = np.linspace(0, 0.4, 5)
    vertices = anchor.vertices(motion)
    frames = np.random.default_rng(0).integers(0, 255, (5, 64, 64, 3), dtype=np.uint8)
    options = anchor.preset("draft", {"steps": 1})
    whole = inpainting.FaceInpainter(anchor, options).enhance(frames, vertices, before=True)
    assert np.array_equal(whole[:, :, :64], frames)
    whole = whole[:, :, 64:]
    changed = (whole != frames).any(axis=-1)
    assert 0.02 < changed[0].mean() < (1 if square else 0.6)
    enhancer = inpainting.FaceInpainter(anchor, options)
    parts = [enhancer.enhance(frames[a:b], vertices[a:b]) for a, b in ((0, 1), (1, 5))]
    assert np.abs(np.concatenate(parts).astype(int) - whole).max() <= 1


def test_face_pass_needs_networks_and_landmarks(original_anchor, face_anchor, tiny_body):
    with pytest.raises(InputError, match="no face networks"):
        inpainting.FaceInpainter(original_anchor, original_anchor.preset("draft"))
    bare = variant(face_anchor)
    bare.__dict__["body"] = tiny_body
    with pytest.raises(InputError, match="no facial landmarks"):
        inpainting.FaceInpainter(bare, bare.preset("draft"))


# ----------------------------------------------------------------------------- flags, sizes, channels


def test_compat_is_one_flag_per_habit(original_anchor, face_anchor):
    assert original_anchor.manifest.compat == Compat(**dict.fromkeys(Compat.model_fields, True))
    manifest = original_anchor.manifest
    for value, expected in ((False, Compat()), ({"pooled_norm": True}, Compat(pooled_norm=True))):
        assert type(manifest).model_validate(manifest.model_dump() | {"compat": value}).compat == expected


@pytest.mark.parametrize("flag", ["pooled_norm", "residual_into_mid", "original_windows", "truncate_pixels"])
def test_every_flag_of_the_body_matters(original_anchor, mesh_pictures, flag):
    def render(anchor):
        options = anchor.preset("draft", {"steps": 1})
        return np.concatenate(list(FrameGenerator(anchor, options).frames(iter([mesh_pictures[:9]]))))

    assert not np.array_equal(render(habits(original_anchor, **{flag: False})), render(original_anchor))


def test_guidance_of_one_works(original_anchor, mesh_pictures):
    for guidance in (0.5, 1.0):
        options = original_anchor.preset("draft", {"steps": 1, "guidance": guidance})
        assert len(next(FrameGenerator(original_anchor, options).frames(iter([mesh_pictures[:2]])))) == 2


def test_sizes_and_channels_that_do_not_fit_are_refused(original_anchor, face_anchor, mesh_pictures):
    with pytest.raises(InputError, match="multiples of 16 pixels, which 64x56"):
        list(FrameGenerator(original_anchor, original_anchor.preset("draft")).frames(iter([mesh_pictures[:, :56]])))
    options = face_anchor.preset("draft")
    (face_anchor.folder / "body" / "unet").rename(face_anchor.folder / "body" / "aside")
    shutil.copytree(face_anchor.folder / "face" / "unet", face_anchor.folder / "body" / "unet")
    try:
        with pytest.raises(InputError, match="'body/unet' has 9 input channels, expected 4"):
            FrameGenerator(face_anchor, options)
    finally:
        shutil.rmtree(face_anchor.folder / "body" / "unet")
        (face_anchor.folder / "body" / "aside").rename(face_anchor.folder / "body" / "unet")


# ----------------------------------------------------------------------------- prompts


def write_clip(folder: Path, part: str, state: dict, config: dict | None = None) -> None:
    """A CLIP folder; the rows of the vocabulary that no test needs are zero."""
    state = {f"{part}_model.{key.removeprefix(f'{part}_model.')}": value for key, value in state.items()}
    if part == "text":
        rows = state.pop("text_model.rows_49406_49407")
        table = torch.zeros(49408, rows.shape[1])
        table[49406:] = rows
        state["text_model.embeddings.token_embedding.weight"] = table
    state[f"{part}_model.embeddings.position_ids"] = torch.arange(50)[None]
    folder.mkdir(parents=True)
    config = config or json.loads((DATA / f"{part}.json").read_text())
    (folder / "config.json").write_text(json.dumps(config))
    torch.save(state, folder / "pytorch_model.bin")


def test_prompts_repeat_the_original(weights, photo, tmp_path):
    expected = arrays("clip.npz")
    for name, rows in (("512", 512), ("512x400", 400)):
        pixels = prompts.picture_pixels(Image.fromarray(photo[:rows]))
        assert np.array_equal(pixels[0, :, ::6, ::6], expected[f"pixels_{name}"])
    write_clip(tmp_path / "vision", "vision", weights["vision"])
    write_clip(tmp_path / "text", "text", weights["text"])
    tokens = prompts.picture_tokens(tmp_path / "vision", Image.fromarray(photo))
    np.testing.assert_allclose(tokens, expected["hidden"], atol=5e-6)
    np.testing.assert_allclose(prompts.empty_text_tokens(tmp_path / "text"), expected["negative"], atol=5e-6)


# ----------------------------------------------------------------------------- import of a checkpoint


WEIGHTS = "diffusion_pytorch_model"


@pytest.fixture(scope="module")
def originals(tmp_path_factory, weights, photo) -> Path:
    """presenter/ (body as .bin, head as training leaves it), base/, inpainting/, clip/, photos and the camera file."""
    folder = tmp_path_factory.mktemp("originals")
    for name in ("unet", "controlnet"):
        shutil.copytree(DATA / name, folder / "presenter" / "body" / name)
        path = folder / "presenter" / "body" / name / f"{WEIGHTS}.safetensors"
        state = load_file(path)
        if name == "controlnet":
            state["down_blocks.0.attentions.0.transformer_blocks.0.norm_temp.weight"] = torch.zeros(16)
        torch.save(state, path.with_suffix(".bin"))
        path.unlink()
    write_networks(folder / "presenter" / "head" / "checkpoint-20", weights)
    (folder / "presenter" / "head" / "checkpoint-3").mkdir()
    for base, vae in (("base", load_file(DATA / "vae" / f"{WEIGHTS}.safetensors")), ("inpainting", weights["vae"])):
        old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        for new, name in old.items():
            vae = {key.replace(f"attentions.0.{new}.", f"attentions.0.{name}."): value for key, value in vae.items()}
        shutil.copytree(DATA / "vae", folder / base / "vae")
        save_file(vae, folder / base / "vae" / f"{WEIGHTS}.safetensors")
        shutil.copytree(DATA / "scheduler", folder / base / "scheduler")
        write_clip(folder / base / "text_encoder", "text", weights["text"])
    config = json.loads((DATA / "vision.json").read_text()) | {"hidden_size": 16, "intermediate_size": 32}
    torch.manual_seed(0)
    vision = CLIPVisionModel(CLIPVisionConfig(**config)).state_dict()
    write_clip(folder / "clip-vit-base-patch32", "vision", vision, {"vision_config": config})
    Image.fromarray(photo).save(folder / "photo.png")
    camera = {"translation": [0, -1.02, 2], "focal": 400, "width": 64, "height": 64, "betas": [0.5] * 10}
    (folder / "camera.json").write_text(json.dumps(camera))
    return folder


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "home"
    monkeypatch.setenv("AVATAR_APP_ANCHORS", str(folder))
    monkeypatch.setenv("AVATAR_APP_CACHE", str(tmp_path / "cache"))
    return folder


def arguments(folder: Path, *more: str) -> list[str]:
    options = {"base": "base", "reference": "photo.png", "head-reference": "photo.png", "camera": "camera.json"}
    given = [text for name, value in options.items() for text in (f"--{name}", str(folder / value))]
    given += ["--consent", "synthetic", "--agree", "--body", "open", "--face-size", "64"]
    return ["anchors", "import", str(folder / "presenter"), *given, *more]


def test_import_and_render(originals, home, tmp_path, mesh_pictures_by_hand, face_anchor, golden, capsys):
    more = ["--inpainting-base", str(originals / "inpainting"), "--name", "The presenter"]
    assert main(arguments(originals, *more)) == 0, capsys.readouterr().err
    anchor = load_anchor("presenter")
    manifest = anchor.manifest
    assert [path.name for path in home.iterdir()] == ["presenter"] and manifest.name == "The presenter"
    assert manifest.compat == Compat(**dict.fromkeys(Compat.model_fields, True)) and manifest.cross_frame_attention
    assert manifest.presets["standard"] == Preset(steps=20, guidance=7.5, condition_scale=2.0)
    assert (manifest.face.guidance, manifest.face.condition_scale) == (3.5, 1.0)
    for part, network in (("body", "unet"), ("face", "vae")):
        written = load_file(anchor.folder / part / network / f"{WEIGHTS}.safetensors")
        source = DATA if part == "body" else face_anchor.folder / part
        expected = load_file(source / network / f"{WEIGHTS}.safetensors")
        assert written.keys() == expected.keys() and all(torch.equal(written[key], expected[key]) for key in written)

    settings = RenderSettings(steps=1)
    result = render(None, "presenter", tmp_path / "out.mp4", settings, motion=Motion.rest(5, 30))
    assert probe(result.path).frames == 5 and result.timings["face"] > 0
    assert torch.nn.Module.register_parameter.__module__.startswith("torch.")  # two parts loaded at once alter nothing
    with pytest.raises(InputError, match="arkit52"):
        render(None, "presenter", tmp_path / "x.mp4", settings, motion=Motion.rest(5, 30, "flame100"))

    assert main(arguments(originals)) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(arguments(originals, "--replace", "--half", "--body", "smplx", "--id", "other")) == 0
    other = load_anchor("other")
    assert other.manifest.expression_space == "flame100" and other.manifest.body.betas == (0.5,) * 10
    assert not (other.folder / "face" / "vae").exists()
    assert load_file(other.folder / "vae" / f"{WEIGHTS}.safetensors").popitem()[1].dtype == torch.float16
    if not (DEFAULT_DIRECTORY / LICENSED_FILE).exists():
        with pytest.raises(InputError, match=f"'other' needs a body .* expected {LICENSED_FILE}"):
            _ = other.body


def test_body_alone_and_npz_camera(originals, home, tmp_path):
    np.savez(tmp_path / "camera.npz", translation=np.array([[0.1, -1, 9]]), width=64, height=64, transl=np.ones(3))
    source = Original(
        checkpoint=originals / "presenter" / "body",
        base=originals / "base",
        reference=originals / "photo.png",
        camera=tmp_path / "camera.npz",
        consent=Consent(kind="synthetic"),
        id="bodily",
    )
    anchor = import_original(source)
    assert not anchor.has_face and anchor.camera.focal == 5000 and anchor.camera.center == (32, 32)
    assert np.allclose(anchor.camera.position, (0.1, 1, 9)) and anchor.manifest.placement.transl == (1, 1, 1)


def test_placement_is_shows(tiny_body):
    """The fit's frame has y down and z into the scene; the picture is that of the fit's own projection."""
    figures = {"translation": np.array([0.1, 0.2, 9.0]), "width": np.array([64]), "height": np.array([64])}
    camera = show_camera(figures)
    turn, transl = np.array((3.0, 0.2, 0.1)), np.array((0.1, 0.3, 0.2))
    rotation = matrix(turn)
    fitted = (tiny_body.vertices - tiny_body.joints[0]) @ rotation.T + tiny_body.joints[0] + transl
    seen = fitted - (0.1, 0.2, -9.0)
    expected = 5000 * seen[:, :2] / seen[:, 2:] + 32
    placed = Placement(global_orient=turn, transl=transl).apply(tiny_body.vertices[None], tiny_body.joints[0])
    np.testing.assert_allclose(camera.project(placed[0])[:, :2], expected, atol=1e-2)


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("evil"),))


def swap_stages(folder: Path) -> None:
    shutil.rmtree(folder / "presenter/body/unet")
    shutil.copytree(folder / "presenter/head/checkpoint-20/unet", folder / "presenter/body/unet")


def change_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_state(path: Path, change) -> None:
    state = torch.load(path)
    change(state)
    torch.save(state, path)


def header(**tensor) -> bytes:
    text = json.dumps({"conv_in.weight": tensor}).encode()
    return len(text).to_bytes(8, "little") + text + bytes(64)


BIN, HEAD = f"presenter/body/unet/{WEIGHTS}.bin", f"presenter/head/checkpoint-20/unet/{WEIGHTS}.safetensors"
HUGE = {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 64]}
REFUSALS = {
    "pickle that runs code": (lambda f: torch.save({"x": Evil()}, f / BIN), f"{WEIGHTS}.bin' holds more than weights"),
    "truncated .bin": (lambda f: (f / BIN).write_bytes((f / BIN).read_bytes()[:5000]), f"{WEIGHTS}.bin' is cut off"),
    "truncated safetensors": (
        lambda f: (f / HEAD).write_bytes((f / HEAD).read_bytes()[:-9]),
        "safetensors' is cut off",
    ),
    "absurd header": (lambda f: (f / HEAD).write_bytes(header(**HUGE)), "safetensors' is cut off, damaged"),
    "absurd header size": (lambda f: (f / HEAD).write_bytes(b"\xff" * 64), "safetensors' is cut off, damaged"),
    "list of weights": (lambda f: torch.save([torch.zeros(1)], f / BIN), "no file of weights"),
    "missing key": (lambda f: change_state(f / BIN, lambda s: s.pop("conv_in.bias")), "'conv_in.bias' is missing"),
    "unknown key": (lambda f: change_state(f / BIN, lambda s: s.update(x=torch.zeros(1))), "'x' is unknown"),
    "few numbers shown as many": (
        lambda f: change_state(f / BIN, lambda s: s.update({"conv_in.bias": torch.zeros(1).expand(10**9)})),
        "needs more memory or time than a file of its size should",
    ),
    "wrong shape": (
        lambda f: change_state(f / BIN, lambda s: s.update({"conv_in.bias": torch.zeros(17)})),
        "'conv_in.bias' has the shape (17,), expected (16,)",
    ),
    "not a number": (lambda f: change_state(f / BIN, lambda s: s["conv_in.bias"].fill_(np.nan)), "finite numbers"),
    "head as body": (swap_stages, "body/unet/config.json' has in_channels 9 (a head network?); expected 4"),
    "absurd configuration": (
        lambda f: change_json(f / "presenter/body/unet/config.json", layers_per_block=10**9),
        "unet/config.json' has an impossible 'layers_per_block'",
    ),
    "senseless configuration": (
        lambda f: change_json(f / "presenter/body/unet/config.json", block_out_channels=[16, "x"]),
        "does not describe a UNet2DConditionModel",
    ),
    "other class": (
        lambda f: change_json(f / "presenter/body/unet/config.json", _class_name="UNet3DConditionModel"),
        "expected a UNet2DConditionModel",
    ),
    "unfitting pair": (
        lambda f: change_json(f / "presenter/body/controlnet/config.json", layers_per_block=2),
        "controlnet/config.json' has layers_per_block 2; expected 1",
    ),
    "no controlnet": (lambda f: shutil.rmtree(f / "presenter/body/controlnet"), "has no folder 'controlnet'"),
    "no weights": (lambda f: (f / BIN).unlink(), "body/unet' holds no weights"),
    "no vae": (lambda f: shutil.rmtree(f / "base/vae"), "base/vae/config.json' is missing; expected a AutoencoderKL"),
    "no text encoder": (lambda f: shutil.rmtree(f / "base/text_encoder"), "base/text_encoder/config.json' is missing"),
    "no clip": (lambda f: shutil.rmtree(f / "clip-vit-base-patch32"), "clip-vit-base-patch32/config.json' is missing"),
    "no base": (lambda f: shutil.rmtree(f / "base"), "no folder 'base'; expected Stable Diffusion 1.5"),
    "bad schedule": (
        lambda f: change_json(f / "base/scheduler/scheduler_config.json", beta_schedule="x"),
        "scheduler_config.json' does not describe",
    ),
    "odd size": (
        lambda f: change_json(f / "camera.json", width=60),
        "60x64 cannot be painted: each side must be a mul",
    ),
    "no translation": (lambda f: (f / "camera.json").write_text("{}"), "camera.json' has no 'translation'"),
    "bad betas": (lambda f: change_json(f / "camera.json", betas=["x"]), "'betas' in 'camera.json' must be up to 300"),
    "unknown entry": (lambda f: change_json(f / "camera.json", size=3), "unknown entry 'size'"),
    "no picture": (lambda f: (f / "photo.png").write_text("x"), "'photo.png' is not a readable picture"),
    "other folder": (lambda f: shutil.rmtree(f / "presenter/body"), "'presenter' is no Make-Your-Anchor checkpoint"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_bad_checkpoints_are_refused_and_leave_nothing(case, originals, home, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "originals"
    shutil.copytree(originals, folder)
    damage, words = REFUSALS[case]
    damage(folder)
    assert main(arguments(folder)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("avatar_app: ") and words in error
    assert not home.exists() or not list(home.iterdir())
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    ("option", "words"), [("--consent", "needs --consent"), ("--head-reference", "head-reference")]
)
def test_what_is_needed_is_said(originals, home, capsys, option, words):
    given = arguments(originals)
    at = given.index(option)
    assert main(given[:at] + given[at + 2 :]) == 2
    assert words in capsys.readouterr().err.splitlines()[-1]
