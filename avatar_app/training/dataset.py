"""Footage of one person with its motion: what an anchor is trained on.

A footage folder holds `body.safetensors` (the person's rig) or `body.json` (the `BodyModel` that stands for it),
`camera.json` (the whole picture's camera), optionally `plate.png` (the empty set) and one folder per set, each with
`motion.npz`, RGB frames `*.png` and `index.json`: {file name: {"frame": number in the motion, "camera": camera of this
picture}}. `prepare.py` makes it of other forms.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from avatar_app.anchors import BodyModel
from avatar_app.mesh.bodies import SmplxBody, load_body, with_native_parts
from avatar_app.mesh.body import Body
from avatar_app.mesh.camera import Camera
from avatar_app.mesh.conditions import PART, UV, render_conditions
from talkshow_bridge.errors import InputError
from talkshow_bridge.motion import Motion


@dataclass(frozen=True)
class Sample:
    """One training picture or crop: maps (S, S, 10) float32, picture (S, S, 3) uint8 RGB, place (S, S, 2) float32:
    where its pixels lie in the whole picture, -1..1."""

    maps: np.ndarray
    picture: np.ndarray
    place: np.ndarray


class Footage:
    """All pictures of one set, in memory, in the order of their frame numbers."""

    def __init__(self, folder: str | Path, name: str) -> None:
        folder = Path(folder)
        try:
            self.body = footage_body(folder)
            index = json.loads((folder / name / "index.json").read_text())
            motion = Motion.load(folder / name / "motion.npz")
            self.whole = Camera.from_dict(json.loads((folder / "camera.json").read_text()))
        except (OSError, ValueError) as error:
            raise InputError(f"'{folder}' is not a footage folder with a set '{name}': {error}") from None
        entries = sorted(index.items(), key=lambda entry: entry[1]["frame"])
        entries = [(file, entry) for file, entry in entries if (folder / name / file).exists()]
        if not entries:
            raise InputError(f"The set '{name}' of '{folder}' holds no pictures.")
        self.frames = [entry["frame"] for _, entry in entries]
        self.fps = motion.fps
        self.cameras = [Camera.from_dict(entry["camera"]) for _, entry in entries]
        self.pictures = np.stack([np.asarray(Image.open(folder / name / file).convert("RGB")) for file, _ in entries])
        self.motion = Motion.concatenate([motion[n : n + 1] for n in self.frames])
        self.vertices = self.body.pose(self.motion).vertices

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def size(self) -> int:
        """Pixels along a side of the (square) pictures."""
        return self.pictures.shape[1]

    def sample(self, number: int, left: int = 0, top: int = 0, size: int | None = None) -> Sample:
        """The square [left, left+size) x [top, top+size) of a picture; the whole picture without arguments."""
        size = size or self.size
        camera = self.cameras[number].crop(left, top, size, size)
        maps = render_conditions(self.body, self.vertices[[number]], camera)[0]
        picture = self.pictures[number, top : top + size, left : left + size]
        return Sample(maps, picture, places(camera, self.whole))

    @cached_property
    def interesting(self) -> list[np.ndarray]:
        """Per picture: pixel positions (k, 2) x, y of head and hands, the places worth a closer look."""
        joints = self.body.weights[:, [15, *range(25, 55)]]
        vertex = np.flatnonzero(joints.sum(1) > 0.5)[::7]
        found = []
        for camera, vertices in zip(self.cameras, self.vertices, strict=True):
            points = camera.project(vertices[vertex])[:, :2]
            inside = ((points > 0) & (points < self.size)).all(1)
            found.append(points[inside])
        return found

    @cached_property
    def head(self) -> list[np.ndarray]:
        """Per picture: the middle of the head in pixels, x and y."""
        vertex = np.flatnonzero(self.body.weights[:, [15, 22, 23, 24]].sum(1) > 0.5)
        return [camera.project(v[vertex])[:, :2].mean(0) for camera, v in zip(self.cameras, self.vertices, strict=True)]


def footage_body(folder: Path) -> Body | SmplxBody:
    """The body that the motion of this footage moves."""
    if (folder / "body.json").exists():
        model = BodyModel.model_validate_json((folder / "body.json").read_text())
        return with_native_parts(load_body(betas=model.betas, model=model.model))
    return Body.load(folder / "body.safetensors")


def places(camera: Camera, whole: Camera) -> np.ndarray:
    """Where the pixel centres of a crop's camera lie in the whole picture, float32 (height, width, 2), -1..1."""
    zoom = whole.focal / camera.focal
    x = (np.arange(camera.width) + 0.5 - camera.center[0]) * zoom + whole.center[0]
    y = (np.arange(camera.height) + 0.5 - camera.center[1]) * zoom + whole.center[1]
    grid = np.stack(np.meshgrid(x * (2 / whole.width) - 1, y * (2 / whole.height) - 1), -1)
    return grid.astype(np.float32)


def average_colours(footage: Footage, texture_size: tuple[int, int]) -> np.ndarray:
    """Mean picture colour at every texel -> float32 (3, height, width) in [-1, 1]; others take the nearest."""
    height, width = texture_size
    total, count = np.zeros((height * width, 3)), np.zeros(height * width)
    for number in range(len(footage)):
        sample = footage.sample(number)
        seen = sample.maps[..., PART] > 0
        u, v = sample.maps[seen][:, UV].T
        texel = np.clip((1 - v) * height, 0, height - 1).astype(int) * width + np.clip(u * width, 0, width - 1).astype(
            int
        )
        np.add.at(total, texel, sample.picture[seen] / 127.5 - 1)
        np.add.at(count, texel, 1)
    colours = (total / np.maximum(count, 1)[:, None]).reshape(height, width, 3)
    colours = nearest_known(colours, (count > 0).reshape(height, width))
    return colours.transpose(2, 0, 1).astype(np.float32)


def nearest_known(picture: np.ndarray, known: np.ndarray) -> np.ndarray:
    """(height, width, c) with every unknown pixel set to the nearest one of the mask `known` (height, width)."""
    from scipy.ndimage import distance_transform_edt

    nearest = distance_transform_edt(~known, return_distances=False, return_indices=True)
    return picture[tuple(nearest)]
