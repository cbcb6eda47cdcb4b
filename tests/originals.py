"""Anchors of Make-Your-Anchor's kind with tiny random networks, and what the original code computed with them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from avatar_app.anchors import Anchor, seal_anchor
from avatar_app.mesh.camera import Camera
from avatar_app.mesh.conditions import PART, render_conditions

DATA = Path(__file__).parent / "data" / "make_your_anchor"


def variant(anchor: Anchor, **changes) -> Anchor:
    """The same package under a changed manifest; a body that is loaded already is kept."""
    other = Anchor(anchor.folder, anchor.manifest.model_copy(update=changes))
    if "body" in anchor.__dict__:
        other.__dict__["body"] = anchor.body
    return other


def habits(anchor: Anchor, **flags: bool) -> Anchor:
    """The same package with some of the original's habits changed."""
    return variant(anchor, compat=anchor.manifest.compat.model_copy(update=flags))


def arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(DATA / name) as file:
        return {key: file[key] for key in file.files}


@pytest.fixture(scope="session")
def golden() -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays("golden.npz").items()}


@pytest.fixture(scope="session")
def mesh_pictures() -> np.ndarray:
    """(22, 64, 64, 3) uint8 RGB, resized as the original does it."""
    files = sorted((DATA / "frames").glob("*.png"))
    return np.stack([np.asarray(Image.open(f).convert("RGB").resize((64, 64), Image.LANCZOS)) for f in files])


@pytest.fixture(scope="session")
def original_anchor(tmp_path_factory, golden, tiny_camera) -> Anchor:
    folder = tmp_path_factory.mktemp("original") / "original"
    for source, target in [("unet", "body/unet"), ("controlnet", "body/controlnet"), ("vae",) * 2, ("scheduler",) * 2]:
        shutil.copytree(DATA / source, folder / target)
    save_file({name: golden[name] for name in ("prompt", "negative")}, folder / "body" / "embeddings.safetensors")
    preset = {"steps": 4, "guidance": 7.5, "window": 8, "overlap": 2, "condition_scale": 2.0}
    return seal_anchor(
        folder,
        {
            "id": "original",
            "name": "Random weights",
            "licence": "CC0-1.0",
            "consent": {"kind": "synthetic"},
            "kind": "stable-diffusion",
            "fps": 30,
            "width": 64,
            "height": 64,
            "camera": tiny_camera.to_dict(),
            "condition": "mesh-picture",
            "cross_frame_attention": True,
            "compat": "make-your-anchor",
            "presets": dict.fromkeys(("draft", "standard", "best"), preset),
        },
    )


@pytest.fixture(scope="session")
def weights() -> dict[str, dict[str, torch.Tensor]]:
    """State dicts of the face networks (unet, controlnet, vae) and of CLIP (vision, text), all tiny and random."""
    packed = arrays("weights.npz")
    flat = torch.from_numpy(packed["planes"].T.copy().view(np.float32)[:, 0])
    states, start = {}, 0
    for name, shape in json.loads(packed["shapes"].tobytes()).items():
        network, key = name.split("/", 1)
        count = int(np.prod(shape))
        states.setdefault(network, {})[key] = flat[start : start + count].reshape(shape).clone()
        start += count
    return states


def write_networks(folder: Path, states: dict, unet_channels: int = 9) -> None:
    """unet/, controlnet/ and vae/ as diffusers folders."""
    for name in ("unet", "controlnet", "vae"):
        config = json.loads((DATA / name / "config.json").read_text())
        if name == "unet":
            config["in_channels"] = unet_channels
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(config))
        save_file(states[name], folder / name / "diffusion_pytorch_model.safetensors")


@pytest.fixture(scope="session")
def face_golden() -> dict[str, np.ndarray]:
    return arrays("face.npz")


@pytest.fixture(scope="session")
def portrait_camera() -> Camera:
    return Camera.look_at((0, 0.32, 2), (0, 0.32, 0), focal=400, width=64, height=64)


@pytest.fixture(scope="session")
def face_anchor(original_anchor, weights, face_golden, portrait_camera, tmp_path_factory) -> Anchor:
    """The original anchor with its face networks; it shows the open body."""
    folder = tmp_path_factory.mktemp("face") / "withface"
    shutil.copytree(original_anchor.folder, folder)
    write_networks(folder / "face", weights)
    prompts = {name: torch.from_numpy(face_golden[f"{name}_embeds"]) for name in ("prompt", "negative")}
    save_file(prompts, folder / "face" / "embeddings.safetensors")
    manifest = original_anchor.manifest.model_dump() | {
        "id": "withface",
        "camera": portrait_camera.to_dict(),
        "face": {"resolution": 64, "guidance": 3.5},
        "body": {"model": "open"},
    }
    anchor = seal_anchor(folder, manifest)
    assert anchor.body.landmarks.shape == (51,)
    return anchor


@pytest.fixture
def mesh_pictures_by_hand(monkeypatch):
    """Grey mesh pictures without OpenGL."""

    def draw(body, vertices, camera):
        maps = render_conditions(body, vertices, camera)
        return np.repeat((maps[..., PART] > 0).astype(np.uint8) * 150, 3).reshape(*maps.shape[:3], 3)

    monkeypatch.setattr("avatar_app.mesh.pyrender_style.render_mesh_pictures", draw)
