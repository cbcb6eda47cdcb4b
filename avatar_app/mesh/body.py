"""A posable body in SMPL-X joint order: rest mesh, skin weights, named face units; parameters in, vertices out.

Two files hold one: the SMPL-X layout npz (the bundled open body) and this project's own compact safetensors rig, in
which an anchor keeps its person, garments and hair cap.
"""

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from avatar_app.mesh.skinning import joint_transforms, skin
from talkshow_bridge.errors import InputError, shown
from talkshow_bridge.motion import ARKIT_52, Motion
from talkshow_bridge.rig import full_pose
from talkshow_bridge.rotations import matrix

HEAD, JAW, LEFT_EYE, RIGHT_EYE = 15, 22, 23, 24  # SMPL-X joint numbers
_JAW_COLUMNS = slice(9 * (JAW - 1), 9 * JAW)
_WEIGHT_SCALE = 65535  # rig files keep weights and texture coordinates as 16-bit fixed point


@dataclass(frozen=True)
class Posed:
    """N posed frames. vertices (N, V, 3) float32 m; transforms (N, 55, 4, 4) float32, rest point -> world point of each
    joint; joints (N, 55, 3) float32 m."""

    vertices: np.ndarray
    transforms: np.ndarray
    joints: np.ndarray


@dataclass(frozen=True)
class Body:
    """Arrays are float32 unless said otherwise; metres, y up, facing +z, the body's left is +x.

    vertices (V, 3) rest T-pose; joints (55, 3); parents (55,) int32, -1 for the pelvis; weights (V, 55), rows sum to 1.
    faces (F, 3) int32, counter-clockwise from outside; part (F,) uint8 index into part_names; face_uv (F, 3, 2), 0..1.
    expression (E, Ve, 3) deltas of the vertices expression_vertices (Ve,) int32, one per expression_names.
    jaw_corrective (V, 3): added in the rest pose with weight <jaw_direction (9,), vec(R_jaw - I)>.
    hand_mean (2, 15, 3): the relaxed hands, axis-angle rad, left first; hand poses of a Motion are relative to them.
    landmarks (51,) int32: the vertices at the iBUG face landmarks 17..67 (brows, nose, eyes, mouth), or None.
    """

    vertices: np.ndarray
    joints: np.ndarray
    parents: np.ndarray
    weights: np.ndarray
    faces: np.ndarray
    part: np.ndarray
    part_names: tuple[str, ...]
    face_uv: np.ndarray
    expression: np.ndarray
    expression_vertices: np.ndarray
    expression_names: tuple[str, ...]
    jaw_corrective: np.ndarray
    jaw_direction: np.ndarray
    hand_mean: np.ndarray
    landmarks: np.ndarray | None = None
    expression_space: str = field(default="arkit52", init=False)

    def pose(self, motion: Motion) -> Posed:
        """All frames of a motion. Raises InputError when its expression numbers mean nothing to this body."""
        check_expression_space(self, motion)
        names = {name: column for column, name in enumerate(ARKIT_52)}
        expression = np.zeros((len(motion), len(self.expression_names)), np.float32)
        for column, name in enumerate(self.expression_names):
            if name in names:
                expression[:, column] = motion.expression[:, names[name]]
        return self.pose_parameters(full_pose(motion, self.hand_mean), expression, motion.transl)

    def pose_parameters(self, pose: np.ndarray, expression: np.ndarray, transl: np.ndarray) -> Posed:
        """pose (N, 55, 3) axis-angle rad of every joint (hand mean included), expression (N, E), transl (N, 3) m."""
        rotations = matrix(pose.astype(np.float64))
        transforms = joint_transforms(rotations, self.joints.astype(np.float64), self.parents)
        transforms[..., :3, 3] += transl[:, None]
        joints = np.einsum("njab,jb->nja", transforms[..., :3, :3], self.joints) + transforms[..., :3, 3]
        transforms = transforms.astype(np.float32)

        deltas = expression.astype(np.float32) @ self.expression.reshape(len(self.expression), -1)
        deltas = deltas.reshape(len(pose), -1, 3)
        jaw = ((rotations[:, JAW] - np.eye(3)).reshape(-1, 9) @ self.jaw_direction).astype(np.float32)
        vertices = np.empty((len(pose), len(self.vertices), 3), np.float32)
        for n in range(len(pose)):
            shaped = self.vertices + jaw[n] * self.jaw_corrective
            shaped[self.expression_vertices] += deltas[n]
            skin(shaped, transforms[n], *self.sparse_weights, vertices[n])
        return Posed(vertices, transforms, joints.astype(np.float32))

    @cached_property
    def sparse_weights(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(start (V+1,) int32, joint uint8, weight float32): the non-zero weights, vertex after vertex."""
        vertex, joint = np.nonzero(self.weights)
        start = np.searchsorted(vertex, np.arange(len(self.weights) + 1)).astype(np.int32)
        return start, joint.astype(np.uint8), self.weights[vertex, joint]

    @classmethod
    def from_smplx_npz(cls, path, betas=None) -> "Body":
        """Read the bundled open body, or any npz of its layout, with the shape numbers `betas` baked in.

        Raises InputError for a body that needs pose correctives other than the jaw's (the licensed SMPL-X model: see
        `load_body`)."""
        with _open_npz(path) as data:
            shapedirs, posedirs = data["shapedirs"], data["posedirs"]
            jaw_block = posedirs[:, :, _JAW_COLUMNS].reshape(-1, 9)
            elsewhere = np.delete(posedirs, np.r_[_JAW_COLUMNS], axis=2)
            if elsewhere.any() or "expr_names" not in data:
                raise InputError(f"'{Path(path).name}' is not an open body; use load_body for a licensed SMPL-X model.")
            betas = np.zeros(0, np.float32) if betas is None else np.asarray(betas, np.float32).reshape(-1)
            vertices = data["v_template"] + shapedirs[:, :, : len(betas)] @ betas
            names = tuple(str(name) for name in data["expr_names"])
            deltas = np.moveaxis(shapedirs[:, :, 300 : 300 + len(names)], 2, 0)
            moved = np.flatnonzero(deltas.any(axis=(0, 2))).astype(np.int32)
            direction = np.linalg.eigh(jaw_block.T @ jaw_block)[1][:, -1]  # the block is rank 1: deltas x direction
            parents = data["kintree_table"][0].astype(np.int64)
            parents[0] = -1
            return cls(
                vertices=vertices.astype(np.float32),
                joints=(data["J_regressor"].astype(np.float64) @ vertices).astype(np.float32),
                parents=parents.astype(np.int32),
                weights=data["weights"],
                faces=data["f"].astype(np.int32),
                part=data["part"],
                part_names=tuple(str(name) for name in data["part_names"]),
                face_uv=data["vt"][data["ft"]],
                expression=np.ascontiguousarray(deltas[:, moved]),
                expression_vertices=moved,
                expression_names=names,
                jaw_corrective=(jaw_block @ direction).reshape(-1, 3),
                jaw_direction=direction.astype(np.float32),
                hand_mean=np.stack([data["hands_meanl"], data["hands_meanr"]]).reshape(2, 15, 3),
                landmarks=landmark_vertices(data["f"], data["lmk_faces_idx"], data["lmk_bary_coords"]),
            )

    def save(self, path) -> None:
        """Write the compact safetensors rig (weights, deltas and texture coordinates in 16 bits, sparse)."""
        from safetensors.numpy import save_file

        start, joint, weight = self.sparse_weights
        unit, vertex = np.nonzero(self.expression.any(axis=2))
        uv = np.round(self.face_uv * _WEIGHT_SCALE).astype(np.uint16)
        corners, uv_index = np.unique(uv.reshape(-1, 2), axis=0, return_inverse=True)
        corrected = np.flatnonzero(self.jaw_corrective.any(axis=1))
        tensors = {
            "vertices": self.vertices,
            "joints": self.joints,
            "parents": self.parents,
            "weight_count": np.diff(start).astype(np.uint8),
            "weight_joint": joint,
            "weight": np.round(weight * _WEIGHT_SCALE).astype(np.uint16),
            "faces": _smallest(self.faces),
            "part": self.part,
            "uv": corners,
            "uv_index": _smallest(uv_index.reshape(-1, 3)),
            "expression_count": np.bincount(unit, minlength=len(self.expression)).astype(np.int32),
            "expression_vertex": _smallest(self.expression_vertices[vertex]),
            "expression_delta": self.expression[unit, vertex].astype(np.float16),
            "jaw_vertex": _smallest(corrected),
            "jaw_delta": self.jaw_corrective[corrected].astype(np.float16),
            "jaw_direction": self.jaw_direction,
            "hand_mean": self.hand_mean,
        }
        if self.landmarks is not None:
            tensors["landmarks"] = self.landmarks
        names = {"part_names": self.part_names, "expression_names": self.expression_names}
        metadata = {key: json.dumps(value) for key, value in names.items()} | {"format": "body-rig-1"}
        save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, path, metadata=metadata)

    @classmethod
    def load(cls, path) -> "Body":
        """Read what `save` wrote. Raises InputError when the file is missing or something else."""
        from safetensors import SafetensorError, safe_open

        name = Path(path).name
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, ValueError, TypeError, AttributeError):
            raise InputError(f"'{name}' is not a readable body rig.") from None
        if metadata.get("format") != "body-rig-1":
            raise InputError(f"'{name}' is not a body rig of a known version.")
        try:
            body = cls._from_rig(tensors, metadata)
            body.check()
        except (KeyError, ValueError, IndexError, TypeError, ArithmeticError, AttributeError, RecursionError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"'{name}' is not a sound body rig ({shown(reason)}).") from None
        return body

    def check(self) -> None:
        """Raises ValueError unless shapes and indices fit each other: compiled code follows them without looking."""
        count, joints, units = len(self.vertices), len(self.joints), len(self.expression_names)
        shapes = {
            "vertices": (count, 3), "joints": (55, 3), "parents": (joints,), "weights": (count, joints),
            "faces": (len(self.faces), 3), "part": (len(self.faces),), "face_uv": (len(self.faces), 3, 2),
            "expression": (units, len(self.expression_vertices), 3),
            "expression_vertices": (len(self.expression_vertices),), "jaw_corrective": (count, 3),
            "jaw_direction": (9,), "hand_mean": (2, 15, 3),
        }  # fmt: skip
        for name, shape in shapes.items():
            array = getattr(self, name)
            if array.shape != shape or not array.size and name in ("vertices", "faces"):
                raise ValueError(f"{name} has the shape {array.shape}")
            if not np.isfinite(array).all():
                raise ValueError(f"{name} holds numbers that are not finite")
        landmarks = np.zeros(0, np.int32) if self.landmarks is None else self.landmarks
        indices = {"faces": count, "expression_vertices": count, "part": len(self.part_names)}
        for name, limit in indices.items():
            _check_index(getattr(self, name), limit, name)
        if self.landmarks is not None and landmarks.shape != (51,):
            raise ValueError(f"landmarks has the shape {landmarks.shape}")
        _check_index(landmarks, count, "landmarks")
        if (
            self.parents.dtype.kind not in "iu"
            or (self.parents >= np.arange(joints)).any()
            or (self.parents < -1).any()
        ):
            raise ValueError("parents must come before their children")
        if not all(isinstance(name, str) for name in (*self.part_names, *self.expression_names)):
            raise ValueError("names must be texts")

    @classmethod
    def _from_rig(cls, tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> "Body":
        vertices = tensors["vertices"]
        weights = np.zeros((len(vertices), len(tensors["joints"])), np.float32)
        rows = np.repeat(np.arange(len(vertices)), tensors["weight_count"])
        weights[rows, tensors["weight_joint"]] = tensors["weight"]
        weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1e-9)

        expression_names = tuple(json.loads(metadata["expression_names"]))
        moved, position = np.unique(tensors["expression_vertex"], return_inverse=True)
        expression = np.zeros((len(expression_names), len(moved), 3), np.float32)
        units = np.repeat(np.arange(len(expression_names)), tensors["expression_count"])
        expression[units, position] = tensors["expression_delta"]

        jaw_corrective = np.zeros_like(vertices)
        jaw_corrective[tensors["jaw_vertex"]] = tensors["jaw_delta"]
        return cls(
            vertices=vertices,
            joints=tensors["joints"],
            parents=tensors["parents"],
            weights=weights,
            faces=tensors["faces"].astype(np.int32),
            part=tensors["part"],
            part_names=tuple(json.loads(metadata["part_names"])),
            face_uv=tensors["uv"][tensors["uv_index"]].astype(np.float32) / _WEIGHT_SCALE,
            expression=expression,
            expression_vertices=moved.astype(np.int32),
            expression_names=expression_names,
            jaw_corrective=jaw_corrective,
            jaw_direction=tensors["jaw_direction"],
            hand_mean=tensors["hand_mean"],
            landmarks=tensors.get("landmarks"),
        )


def _check_index(array: np.ndarray, limit: int, name: str) -> None:
    if array.dtype.kind not in "iu" or (array.size and not 0 <= int(array.min()) <= int(array.max()) < limit):
        raise ValueError(f"{name} points outside the body")


def landmark_vertices(faces: np.ndarray, face: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Landmarks on triangles, face (L,) and barycentric weights (L, 3), -> the nearest corner of each, (L,) int32."""
    return faces[face, weights.argmax(axis=1)].astype(np.int32)


def check_expression_space(body, motion: Motion) -> None:
    """Raises InputError when the motion's expression numbers are not of the kind this body understands."""
    if motion.expression_space != body.expression_space:
        raise InputError(
            f"This motion's face is written in '{motion.expression_space}' numbers, but the body needs "
            f"'{body.expression_space}'; generate it for this body (TalkSHOW weights: `--lips bundled`)."
        )


def _open_npz(path):
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError):
        raise InputError(f"'{Path(path).name}' is not a readable body file (.npz).") from None


def _smallest(index: np.ndarray) -> np.ndarray:
    """Indices as 16-bit integers where they fit."""
    return index.astype(np.uint16 if index.size == 0 or index.max() < 2**16 else np.uint32)
