"""Which body to pose: the user's licensed SMPL-X model when it is there, the bundled open body otherwise."""

import copy
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from avatar_app.mesh.body import LEFT_EYE, RIGHT_EYE, Body, Posed, check_expression_space, landmark_vertices
from avatar_app.mesh.skinning import joint_transforms
from talkshow_bridge.errors import InputError
from talkshow_bridge.motion import Motion
from talkshow_bridge.rig import full_pose
from talkshow_bridge.rotations import matrix

OPEN_FILE, LICENSED_FILE = "SMPLX_OPEN.npz", "SMPLX_NEUTRAL_2020.npz"
DEFAULT_DIRECTORY = Path(__file__).resolve().parents[2] / "checkpoints" / "body"
# what native anchors call the parts, in their order, and what else the same thing is called
NATIVE_PARTS = ("skin", "eye_l", "eye_r", "teeth_up", "teeth_low", "tongue", "clothes", "hair")
_ALIASES = {
    "lips": "skin",
    "mouth": "skin",
    "eye_left": "eye_l",
    "eye_right": "eye_r",
    "teeth_upper": "teeth_up",
    "teeth_lower": "teeth_low",
}


def load_body(
    directory: str | os.PathLike[str] | None = None, betas=None, model: Literal["smplx", "open"] | None = None
) -> "Body | SmplxBody":
    """The body in `directory` (default: checkpoints/body), with the shape numbers `betas`.

    SMPLX_NEUTRAL_2020.npz ("smplx") understands "flame100" motions, the open body ("open") "arkit52" ones; without
    `model` the licensed one goes first. Raises InputError when it is not there."""
    directory = DEFAULT_DIRECTORY if directory is None else Path(directory)
    if model != "open" and (directory / LICENSED_FILE).is_file():
        return SmplxBody(directory / LICENSED_FILE, betas)
    if model != "smplx" and (directory / OPEN_FILE).is_file():
        return Body.from_smplx_npz(directory / OPEN_FILE, betas)
    wanted = {"smplx": LICENSED_FILE, "open": OPEN_FILE}.get(model, f"{OPEN_FILE} or {LICENSED_FILE}")
    raise InputError(f"There is no body in '{directory}': expected {wanted}.")


def with_native_parts(body: "Body | SmplxBody") -> "Body | SmplxBody":
    """The same body with its faces sorted into `NATIVE_PARTS`, as the networks of native anchors know them."""
    numbers = [NATIVE_PARTS.index(_ALIASES.get(name, name)) for name in body.part_names]
    part = np.array(numbers, np.uint8)[body.part]
    if isinstance(body, Body):
        return replace(body, part=part, part_names=NATIVE_PARTS)
    sorted_body = copy.copy(body)
    sorted_body.part, sorted_body.part_names = part, NATIVE_PARTS
    return sorted_body


@contextmanager
def without_objects(path: str | os.PathLike[str]) -> Iterator[Path]:
    """An npz file that holds no Python objects: this one, or a copy without them that is gone after the block.

    The official model has two tables of names as pickled objects. Nobody needs them; `smplx` would unpickle them."""
    with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory(prefix="body-") as folder:
        plain = [entry for entry in archive.infolist() if not _holds_objects(archive, entry)]
        if len(plain) == len(archive.infolist()):
            yield Path(path)
            return
        copied = Path(folder) / "body.npz"
        with zipfile.ZipFile(copied, "w") as out:
            for entry in plain:
                with archive.open(entry) as source, out.open(entry.filename, "w", force_zip64=True) as target:
                    shutil.copyfileobj(source, target)
        yield copied


def _holds_objects(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bool:
    with archive.open(entry) as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        return read(stream)[2].hasobject


class SmplxBody:
    """A body of the SMPL-X layout posed by the `smplx` package (for the licensed model; the package has its licence).

    Offers what `Body` offers to cameras and renderers: vertices, joints, faces, part, part_names, face_uv,
    landmarks, pose."""

    expression_space = "flame100"
    hand_mean = np.zeros((2, 15, 3), np.float32)  # smplx adds its own

    def __init__(self, path: str | os.PathLike[str], betas=None, expression_space: str = "flame100"):
        self.expression_space = expression_space
        self._betas = np.zeros(10, np.float32) if betas is None else np.asarray(betas, np.float32).reshape(-1)
        try:
            import smplx
        except ImportError:
            raise InputError("The licensed SMPL-X model needs the 'smplx' package: pip install smplx.") from None
        settings = {"num_betas": 300, "num_expression_coeffs": 100, "use_pca": False, "ext": "npz"}
        try:
            with without_objects(path) as plain, np.load(plain, allow_pickle=False) as data:
                self._model = smplx.SMPLX(str(plain), flat_hand_mean=False, **settings)
                optional = {key: data[key] for key in ("vt", "ft", "part", "part_names") if key in data}
        except (OSError, ValueError, KeyError, AssertionError, AttributeError, zipfile.BadZipFile) as problem:
            raise InputError(f"'{Path(path).name}' is not an SMPL-X model that smplx can read: {problem}") from None
        self.faces = self._model.faces.astype(np.int32)
        self.face_uv = np.zeros((len(self.faces), 3, 2), np.float32)
        if "ft" in optional:
            self.face_uv = optional["vt"].astype(np.float32)[optional["ft"].astype(np.int64)]
        self.part, self.part_names = self._parts(optional)
        self.landmarks = landmark_vertices(
            self.faces, self._model.lmk_faces_idx.numpy(), self._model.lmk_bary_coords.numpy()
        )

    def pose(self, motion: Motion) -> Posed:
        """All frames of a motion. Raises InputError when its expression numbers mean nothing to this body."""
        check_expression_space(self, motion)
        return self.pose_parameters(full_pose(motion, self.hand_mean), motion.expression, motion.transl)

    def pose_parameters(self, pose: np.ndarray, expression: np.ndarray, transl: np.ndarray) -> Posed:
        """pose (N, 55, 3) axis-angle rad (hands relative to the mean hand), expression (N, <= 100), transl (N, 3) m."""
        vertices, joints = self._forward(pose, expression, transl)
        rotations = matrix(pose.astype(np.float64) + self._model.pose_mean.numpy().reshape(55, 3))
        transforms = joint_transforms(rotations, self.joints.astype(np.float64), self._model.parents.numpy())
        transforms[..., :3, 3] += transl[:, None]
        return Posed(vertices, transforms.astype(np.float32), joints)

    @cached_property
    def vertices(self) -> np.ndarray:
        """(V, 3) rest T-pose with this body's shape."""
        return self._rest[0][0]

    @cached_property
    def joints(self) -> np.ndarray:
        """(55, 3) rest joints."""
        return self._rest[1][0]

    @cached_property
    def weights(self) -> np.ndarray:
        """(V, 55) skin weights."""
        return self._model.lbs_weights.numpy()

    @cached_property
    def _rest(self) -> tuple[np.ndarray, np.ndarray]:
        flat = -self._model.pose_mean.numpy().reshape(1, 55, 3)
        return self._forward(flat, np.zeros((1, 0), np.float32), np.zeros((1, 3), np.float32))

    def _forward(self, pose, expression, transl) -> tuple[np.ndarray, np.ndarray]:
        import torch

        def rows(values: np.ndarray, columns: int) -> "torch.Tensor":
            padded = np.zeros((len(pose), columns), np.float32)
            values = values.reshape(len(values), -1)
            padded[:, : values.shape[1]] = values
            return torch.from_numpy(padded)

        with torch.no_grad():
            result = self._model(
                betas=rows(self._betas[None], 300), expression=rows(expression, 100), transl=rows(transl, 3),
                global_orient=rows(pose[:, 0], 3), body_pose=rows(pose[:, 1:22], 63), jaw_pose=rows(pose[:, 22], 3),
                leye_pose=rows(pose[:, 23], 3), reye_pose=rows(pose[:, 24], 3),
                left_hand_pose=rows(pose[:, 25:40], 45), right_hand_pose=rows(pose[:, 40:], 45),
            )  # fmt: skip
        return result.vertices.numpy(), result.joints[:, :55].numpy()

    def _parts(self, optional: dict[str, np.ndarray]) -> tuple[np.ndarray, tuple[str, ...]]:
        if "part" in optional:
            return optional["part"], tuple(str(name) for name in optional["part_names"])
        owner = self.weights[self.faces].mean(axis=1).argmax(axis=1)
        part = np.select([owner == LEFT_EYE, owner == RIGHT_EYE], [1, 2], 0).astype(np.uint8)
        return part, ("skin", "eye_left", "eye_right")
