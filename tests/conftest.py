"""Shared fixtures: a complete presenter small enough to render whole videos in seconds, made by code."""

import json

import numpy as np
import pytest

from avatar_app.anchors import Anchor, seal_anchor
from avatar_app.mesh.body import HEAD, JAW, LEFT_EYE, RIGHT_EYE, Body
from avatar_app.mesh.camera import Camera
from talkshow_bridge.motion import Motion
from tests.originals import (  # noqa: F401
    face_anchor,
    face_golden,
    golden,
    mesh_pictures,
    mesh_pictures_by_hand,
    original_anchor,
    portrait_camera,
    weights,
)

PIXELS, FACE_PIXELS, FPS = 64, 32, 25

# fmt: off
PARENTS = [-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 15, 15, 15]
# one joint a row, metres: pelvis, hips, spine1, knees, spine2, ankles, spine3, feet, neck, collars, head, shoulders,
# elbows, wrists, jaw, eyes; fingers are added by `joint_positions`
JOINTS = [
    (0, -.35, 0), (.07, -.44, 0), (-.07, -.44, 0), (0, -.24, 0), (.1, -.82, 0), (-.1, -.82, 0), (0, -.1, 0),
    (.09, -1.22, 0), (-.09, -1.22, 0), (0, -.05, 0), (.12, -1.28, .1), (-.12, -1.28, .1), (0, .12, 0),
    (.05, .05, 0), (-.05, .05, 0), (0, .22, 0), (.16, .08, 0), (-.16, .08, 0), (.42, .08, 0), (-.42, .08, 0),
    (.67, .08, 0), (-.67, .08, 0), (0, .25, .02), (.03, .31, .08), (-.03, .31, .08),
]
# part, joint, centre, radii: the person is made of ellipsoids
ELLIPSOIDS = [
    ("skin", HEAD, (0, .30, .01), (.08, .12, .10)), ("skin", 12, (0, .17, 0), (.05, .10, .05)),
    ("skin", JAW, (0, .23, .06), (.04, .02, .04)),
    ("skin", 18, (.55, .08, 0), (.14, .04, .04)), ("skin", 19, (-.55, .08, 0), (.14, .04, .04)),
    ("skin", 20, (.74, .08, 0), (.08, .02, .05)), ("skin", 21, (-.74, .08, 0), (.08, .02, .05)),
    ("eye_l", LEFT_EYE, (.03, .31, .09), (.015, .015, .025)),
    ("eye_r", RIGHT_EYE, (-.03, .31, .09), (.015, .015, .025)),
    ("clothes", 9, (0, -.12, 0), (.18, .24, .11)), ("clothes", 0, (0, -.42, 0), (.17, .20, .11)),
    ("clothes", 16, (.29, .08, 0), (.16, .06, .06)), ("clothes", 17, (-.29, .08, 0), (.16, .06, .06)),
    ("hair", HEAD, (0, .35, -.02), (.09, .10, .10)),
]
# fmt: on


def joint_positions() -> tuple[np.ndarray, np.ndarray]:
    """(55, 3) metres and (55,) parents: the table above plus three joints for each of ten fingers."""
    joints, parents = list(JOINTS), list(PARENTS)
    for side, wrist in ((1, 20), (-1, 21)):
        for finger in range(5):
            for knuckle in range(3):
                parents.append(len(joints) - 1 if knuckle else wrist)
                joints.append((side * (0.75 + 0.025 * knuckle), 0.08, 0.02 * (finger - 2)))
    return np.array(joints, np.float32), np.array(parents, np.int32)


def ellipsoid(center, radii, around: int = 8, down: int = 6) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vertices (V, 3), faces (F, 3) counter-clockwise from outside, texture coordinates (V, 2)."""
    v, u = np.meshgrid(np.linspace(0, 1, down + 1), np.arange(around) / around, indexing="ij")
    ring = np.sin(np.pi * v)
    points = np.stack([ring * np.sin(2 * np.pi * u), np.cos(np.pi * v), ring * np.cos(2 * np.pi * u)], axis=-1)
    row, column = np.meshgrid(np.arange(down), np.arange(around), indexing="ij")
    a, b = row * around + column, row * around + (column + 1) % around
    faces = np.concatenate([np.stack([a, a + around, b], -1), np.stack([b, a + around, b + around], -1)])
    return points.reshape(-1, 3) * radii + center, faces.reshape(-1, 3), np.stack([u, v], -1).reshape(-1, 2)


def make_tiny_body() -> Body:
    """A jointed person of a thousand triangles."""
    joints, parents = joint_positions()
    names = ("skin", "eye_l", "eye_r", "teeth_up", "teeth_low", "tongue", "clothes", "hair")
    vertices, faces, uv, skinning, parts = [], [], [], [], []
    for part, joint, center, radii in ELLIPSOIDS:
        points, triangles, texture = ellipsoid(center, radii)
        faces.append(triangles + sum(map(len, vertices)))
        vertices.append(points)
        uv.append(texture)
        skinning.append(np.tile(np.eye(len(joints))[joint], (len(points), 1)))
        parts.append(np.full(len(triangles), names.index(part)))
    vertices, faces, skinning = np.concatenate(vertices), np.concatenate(faces), np.concatenate(skinning)
    head = np.flatnonzero(skinning[:, HEAD]).astype(np.int32)
    units = ("browInnerUp", "eyeBlinkLeft", "mouthPucker")
    deltas = np.random.default_rng(0).normal(0, 0.003, (len(units), len(head), 3))
    return Body(
        vertices=vertices.astype(np.float32),
        joints=joints,
        parents=parents,
        weights=skinning.astype(np.float32),
        faces=faces.astype(np.int32),
        part=np.concatenate(parts).astype(np.uint8),
        part_names=names,
        face_uv=np.concatenate(uv)[faces].astype(np.float32),
        expression=deltas.astype(np.float32),
        expression_vertices=head,
        expression_names=units,
        jaw_corrective=np.zeros_like(vertices, np.float32),
        jaw_direction=np.eye(9, dtype=np.float32)[0],
        hand_mean=np.zeros((2, 15, 3), np.float32),
    )


def make_tiny_camera() -> Camera:
    return Camera.look_at((0, 0.05, 3), (0, 0.05, 0), focal=2.6 * PIXELS, width=PIXELS, height=PIXELS)


def make_tiny_motion(count: int, seed: int = 0) -> Motion:
    """Arms down, head and jaw moving, `count` frames."""
    motion = Motion.rest(count, FPS)
    time = np.arange(count) / FPS
    phase = np.random.default_rng(seed).uniform(0, 2 * np.pi, 4)
    motion.body[:, 15, 2], motion.body[:, 16, 2] = -1.2, 1.2  # shoulders
    motion.body[:, 14, 1] = 0.3 * np.sin(5 * time + phase[0])  # head turns
    motion.body[:, 14, 0] = 0.2 * np.sin(4 * time + phase[1])  # and nods
    motion.jaw[:, 0] = 0.15 + 0.15 * np.sin(20 * time + phase[2])
    motion.expression[:, 12] = 0.5 + 0.5 * np.sin(3 * time + phase[3])
    return motion


@pytest.fixture(scope="session", autouse=True)
def signing_keys(tmp_path_factory):
    """Tests sign with a key of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AVATAR_APP_KEYS", str(tmp_path_factory.mktemp("keys")))
        yield


@pytest.fixture(scope="session")
def tiny_body() -> Body:
    return make_tiny_body()


@pytest.fixture(scope="session")
def tiny_camera() -> Camera:
    return make_tiny_camera()


@pytest.fixture(scope="session")
def tiny_motion() -> Motion:
    """Two seconds."""
    return make_tiny_motion(2 * FPS)


@pytest.fixture(scope="session")
def tiny_anchor(tmp_path_factory, tiny_body, tiny_camera) -> Anchor:
    """A whole native anchor with random networks: 64 px frames, 32 px face, every file of a real one.

    Shared by all tests: copy its folder before changing anything in it.
    """
    folder = tmp_path_factory.mktemp("anchors") / "tiny"
    return build_tiny_anchor(folder, tiny_body, tiny_camera)


def tiny_networks():
    """Random networks of the native kind; what starts at zero is made random too, so that everything takes part."""
    import torch

    from avatar_app.diffusion.networks import NativeNetworks

    networks = NativeNetworks(
        condition={
            "texture_size": (8, 16),
            "texture_channels": 4,
            "width": 8,
            "latent_width": 8,
            "detail_width": 4,
            "downscale": 8,
            "plate_size": (PIXELS, PIXELS),
        },
        autoencoder={
            "latent_channels": 4,
            "downscale": 8,
            "encoder_widths": (8, 8, 8),
            "decoder_widths": (8, 8, 8),
            "detail_width": 4,
        },
        unet_widths=(16, 32),
    )
    with torch.no_grad():
        for parameter in networks.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.2)
    return networks


def build_tiny_anchor(folder, body: Body, camera: Camera) -> Anchor:
    """Write the package into `folder` (new) and load it. The folder's name becomes the anchor's id."""
    import torch
    from PIL import Image

    folder.mkdir(parents=True)
    torch.manual_seed(0)
    tiny_networks().save(folder / "body")
    tiny_networks().save(folder / "face")
    body.save(folder / "body.safetensors")
    plate = np.full((PIXELS, PIXELS, 3), (40, 60, 90), np.uint8)
    Image.fromarray(plate).save(folder / "background.png")
    Image.fromarray(plate).save(folder / "thumbnail.jpg")
    (folder / "card.md").write_text("# Tiny\nRandom networks, for tests.\n", encoding="utf-8")
    preset = {"steps": 1, "guidance": 1.0, "window": 8, "overlap": 2, "face": False}
    return seal_anchor(
        folder,
        {
            "id": folder.name,
            "name": "Tiny",
            "licence": "CC0-1.0",
            "consent": {"kind": "synthetic"},
            "fps": FPS,
            "width": PIXELS,
            "height": PIXELS,
            "camera": camera.to_dict(),
            "face": {"resolution": FACE_PIXELS, "margin": 1.35},
            "presets": {
                "draft": preset,
                "standard": preset | {"face": True},
                "best": preset | {"steps": 3, "face": True},
            },
        },
    )


# ------------------------------------------------------------------------------------ what presenters are trained from

WIDE, HIGH, DELIVERED = 192, 128, 40  # pixels, frames
SMALL = {"condition": {"texture_size": (32, 64)}, "unet_widths": (16, 16)}  # networks


def picture_of(body, motion, frame, camera):
    from avatar_app.mesh.conditions import PART, render_conditions

    maps = render_conditions(body, body.pose(motion[frame : frame + 1]).vertices, camera)[0]
    return np.where(maps[..., PART, None] > 0, (maps[..., :3] * 0.5 + 0.5) * 255, 90).astype(np.uint8)


@pytest.fixture(scope="module")
def wide_camera(tiny_camera):
    """Of pictures larger and wider than the anchor's."""
    return Camera(
        5 * HIGH, (WIDE / 2 + 20, HIGH / 2), WIDE, HIGH, tiny_camera.position + (0, 0.1, 0), tiny_camera.rotation
    )


@pytest.fixture(scope="module")
def delivered(tiny_body, wide_camera, tiny_motion, tmp_path_factory):
    """Numbered pictures with masks, a motion, a camera, the person's rig; no held-out clip, no faces, no plate."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("delivered")
    (folder / "train" / "masks").mkdir(parents=True)
    tiny_body.save(folder / "body.safetensors")
    (folder / "camera.json").write_text(json.dumps(wide_camera.to_dict()))
    motion = tiny_motion[:DELIVERED]
    motion.save(folder / "train" / "motion.npz")
    for frame in range(DELIVERED):
        picture = picture_of(tiny_body, motion, frame, wide_camera)
        Image.fromarray(picture).save(folder / "train" / f"{frame:06d}.png")
        mask = (np.abs(picture.astype(int) - 90).sum(-1) > 0).astype(np.uint8) * 255
        Image.fromarray(mask).save(folder / "train" / "masks" / f"{frame:06d}.png")
    return folder


@pytest.fixture(scope="module")
def footage(tiny_body, tiny_camera, tiny_motion, tmp_path_factory):
    """A footage folder whose "films" are the person's normals in colour on a grey set."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("footage")
    tiny_body.save(folder / "body.safetensors")
    (folder / "camera.json").write_text(json.dumps(tiny_camera.to_dict()))
    Image.new("RGB", (tiny_camera.width, tiny_camera.height), (90, 90, 90)).save(folder / "plate.png")
    for name, camera in (("train", tiny_camera), ("face", tiny_camera.crop(16, 0, 32, 32))):
        (folder / name).mkdir()
        tiny_motion.save(folder / name / "motion.npz")
        index = {}
        for frame in range(0, 8, 2):
            Image.fromarray(picture_of(tiny_body, tiny_motion, frame, camera)).save(folder / name / f"{frame:06d}.png")
            index[f"{frame:06d}.png"] = {"frame": frame, "camera": camera.to_dict()}
        (folder / name / "index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture()
def small_recipes(monkeypatch):
    from avatar_app.training import batches

    recipe = batches.Recipe(SMALL, crop=32, crops=2, whole=2, whole_share=0.5)
    for kind in ("body", "face"):
        monkeypatch.setitem(batches.RECIPES, kind, recipe)
