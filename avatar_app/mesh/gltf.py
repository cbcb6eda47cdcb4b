"""A moving body as a GLB file (glTF 2.0): skinned mesh, joints, named face units as morph targets, one animation.

Metres, y up, facing +z, as everywhere here. Frame k stands at k / fps seconds. Blender, three.js and game engines read
it as it is; glTF viewers that know only four joints a vertex take the four strongest, which come first.
"""

from __future__ import annotations

import json
import os
import struct

import numpy as np

from avatar_app import __version__
from avatar_app.mesh.body import Body, check_expression_space
from avatar_app.mesh.preview import face_paint
from talkshow_bridge import rotations
from talkshow_bridge.errors import InputError
from talkshow_bridge.motion import ARKIT_52, Motion
from talkshow_bridge.rig import JOINTS, full_pose

JAW_UNIT = "jawOpenCorrective"  # what the jaw's hinge alone cannot do; follows the jaw joint
_BYTE, _SHORT, _INT, _FLOAT = 5121, 5123, 5125, 5126  # glTF component types
_TYPES = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4", 16: "MAT4"}
_ARRAY, _INDEX = 34962, 34963  # glTF buffer targets


def write_glb(body: Body, motion: Motion, path: str | os.PathLike[str]) -> None:
    """Write the body moving as `motion` says. InputError when the motion's face is not of the body's kind."""
    check_expression_space(body, motion)
    if not len(motion):
        raise InputError("There is no motion to write.")
    binary = _Binary()
    units, weights = _morph_weights(body, motion)
    materials, material = face_paint(body)
    nodes, channels, samplers = _joints(body, motion, binary)
    times = binary.add(np.arange(len(motion), dtype=np.float32) / np.float32(motion.fps), bounds=True)
    for sampler in samplers:
        sampler["input"] = times
    channels.append({"sampler": len(samplers), "target": {"node": len(nodes), "path": "weights"}})
    samplers.append({"input": times, "output": binary.add(weights.reshape(-1)), "interpolation": "LINEAR"})
    nodes.append({"name": "body", "mesh": 0, "skin": 0})
    bind = np.tile(np.eye(4, dtype=np.float32), (len(body.joints), 1, 1))
    bind[:, 3, :3] = -body.joints  # transposed: glTF stores columns
    skin = {"joints": list(range(len(bind))), "skeleton": 0, "inverseBindMatrices": binary.add(bind.reshape(-1, 16))}
    mesh = {
        "name": "body",
        "primitives": _primitives(body, list(units.values()), material, binary),
        "weights": weights[0].tolist(),
        "extras": {"targetNames": list(units)},
    }
    facts = {
        "asset": {"version": "2.0", "generator": f"avatar_app {__version__}", "extras": {"motion": motion.meta}},
        "scene": 0,
        "scenes": [{"nodes": [0, len(nodes) - 1]}],
        "nodes": nodes,
        "meshes": [mesh],
        "skins": [skin],
        "materials": [_material(name, colour) for name, colour in materials.items()],
        "animations": [{"name": "motion", "channels": channels, "samplers": samplers}],
        **binary.tables(),
    }
    _write(path, facts, bytes(binary.content))


def _morph_weights(body: Body, motion: Motion) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Morph targets {name: (V, 3) deltas} and their weights (N, targets)."""
    units, weights = {}, []
    for row, name in enumerate(body.expression_names):
        if name in ARKIT_52:
            units[name] = np.zeros_like(body.vertices)
            units[name][body.expression_vertices] = body.expression[row]
            weights.append(motion.expression[:, ARKIT_52.index(name)])
    turned = rotations.matrix(motion.jaw.astype(np.float64)) - np.eye(3)
    jaw = turned.reshape(-1, 9) @ body.jaw_direction
    widest = rotations.matrix(np.array([0.5, 0.0, 0.0])) - np.eye(3)
    unit = float(widest.reshape(9) @ body.jaw_direction)  # so that weight 1 is a wide open mouth
    if body.jaw_corrective.any() and unit:
        units[JAW_UNIT] = body.jaw_corrective * np.float32(unit)
        weights.append(jaw / unit)
    return units, np.stack(weights, axis=1).astype(np.float32)


def _joints(body: Body, motion: Motion, binary: _Binary) -> tuple[list[dict], list[dict], list[dict]]:
    """Nodes of the skeleton, animation channels and samplers (without input) of the joints that move."""
    quaternions = rotations.quaternion(full_pose(motion, body.hand_mean).astype(np.float64))
    quaternions = np.roll(_continuous(quaternions), -1, axis=-1).astype(np.float32)  # glTF: scalar last
    offsets = body.joints - body.joints[np.maximum(body.parents, 0)]
    offsets[0] = body.joints[0]
    nodes, channels, samplers = [], [], []

    def animate(joint: int, path: str, values: np.ndarray) -> None:
        if (values != values[:1]).any():
            channels.append({"sampler": len(samplers), "target": {"node": joint, "path": path}})
            samplers.append({"output": binary.add(values), "interpolation": "LINEAR"})

    for joint, offset in enumerate(offsets):
        children = np.flatnonzero(body.parents == joint).tolist()
        node = {"name": JOINTS[joint], "translation": offset.tolist(), "rotation": quaternions[0, joint].tolist()}
        nodes.append(node | ({"children": children} if children else {}))
        animate(joint, "rotation", quaternions[:, joint])
    nodes[0]["translation"] = (offsets[0] + motion.transl[0]).tolist()
    animate(0, "translation", offsets[0] + motion.transl)
    return nodes, channels, samplers


def _continuous(quaternions: np.ndarray) -> np.ndarray:
    """(N, J, 4) with signs such that neighbours in time are on the same side."""
    flips = np.sum(quaternions[1:] * quaternions[:-1], axis=-1) < 0
    signs = np.where(np.cumsum(flips, axis=0) % 2, -1.0, 1.0)
    return np.concatenate([quaternions[:1], quaternions[1:] * signs[..., None]])


def _primitives(body: Body, targets: list[np.ndarray], material: np.ndarray, binary: _Binary) -> list[dict]:
    """One primitive for each material, with the vertices it needs."""
    normals = _normals(body)
    joints, strengths = _strongest(body.weights)
    primitives = []
    for number in np.unique(material):
        faces = material == number
        corners = np.concatenate(
            [body.faces[faces].reshape(-1, 1).astype(np.float32), body.face_uv[faces].reshape(-1, 2)], axis=1
        )
        corners, index = np.unique(corners, axis=0, return_inverse=True)
        vertex, uv = corners[:, 0].astype(int), corners[:, 1:]
        attributes = {
            "POSITION": binary.add(body.vertices[vertex], _ARRAY, bounds=True),
            "NORMAL": binary.add(normals[vertex], _ARRAY),
            "TEXCOORD_0": binary.add(np.stack([uv[:, 0], 1 - uv[:, 1]], axis=1).astype(np.float32), _ARRAY),
        }
        sets = -(-int(np.count_nonzero(strengths[vertex], axis=1).max()) // 4)
        for k in range(sets):
            columns = np.s_[vertex, 4 * k : 4 * k + 4]
            attributes[f"JOINTS_{k}"] = binary.add(joints[columns], _ARRAY)
            attributes[f"WEIGHTS_{k}"] = binary.add(strengths[columns], _ARRAY)
        primitives.append(
            {
                "attributes": attributes,
                "indices": binary.add(index.reshape(-1).astype(np.uint32), _INDEX),
                "material": int(number),
                "targets": [{"POSITION": binary.add_sparse(deltas[vertex])} for deltas in targets],
            }
        )
    return primitives


def _strongest(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(V, J) skin weights -> joints uint8 and weights float32, both (V, 8), strongest first."""
    order = np.argsort(-weights, axis=1, kind="stable")[:, :8]
    strengths = np.take_along_axis(weights, order, axis=1)
    strengths = strengths / strengths.sum(axis=1, keepdims=True)
    return np.where(strengths > 0, order, 0).astype(np.uint8), strengths.astype(np.float32)


def _normals(body: Body) -> np.ndarray:
    """(V, 3) unit normals of the rest mesh, weighted by the area of the faces around."""
    corners = body.vertices[body.faces]
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = np.zeros(body.vertices.shape)
    for k in range(3):
        np.add.at(normals, body.faces[:, k], across)
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    return np.where(length > 0, normals / np.maximum(length, 1e-20), [0.0, 1.0, 0.0]).astype(np.float32)


def _material(name: str, colour: tuple[float, float, float]) -> dict:
    surface = {"baseColorFactor": [*map(float, colour), 1.0], "metallicFactor": 0.0, "roughnessFactor": 0.6}
    return {"name": name, "pbrMetallicRoughness": surface, "doubleSided": True}


class _Binary:
    """The binary chunk as it grows, with the tables of views and accessors that describe it."""

    def __init__(self) -> None:
        self.content, self._views, self._accessors = bytearray(), [], []

    def add(self, values: np.ndarray, target: int | None = None, bounds: bool = False) -> int:
        """Append an array (rows, or rows of columns) -> number of its accessor."""
        accessor = {"bufferView": self._view(values, target)} | self._kind(values)
        if bounds:
            rows = values.reshape(len(values), -1)
            accessor |= {"min": rows.min(axis=0).tolist(), "max": rows.max(axis=0).tolist()}
        self._accessors.append(accessor)
        return len(self._accessors) - 1

    def add_sparse(self, values: np.ndarray) -> int:
        """Append (n, 3) float32 of which most rows are zero."""
        rows = np.flatnonzero(values.any(axis=1)).astype(np.uint32)
        accessor = self._kind(values) | {"min": values.min(axis=0).tolist(), "max": values.max(axis=0).tolist()}
        if len(rows):
            accessor["sparse"] = {
                "count": len(rows),
                "indices": {"bufferView": self._view(rows), "componentType": _INT},
                "values": {"bufferView": self._view(values[rows])},
            }
        self._accessors.append(accessor)
        return len(self._accessors) - 1

    def tables(self) -> dict:
        return {
            "buffers": [{"byteLength": len(self.content)}],
            "bufferViews": self._views,
            "accessors": self._accessors,
        }

    def _view(self, values: np.ndarray, target: int | None = None) -> int:
        self.content.extend(b"\0" * (-len(self.content) % 4))
        view = {"buffer": 0, "byteOffset": len(self.content), "byteLength": values.nbytes}
        self._views.append(view | ({"target": target} if target else {}))
        self.content.extend(np.ascontiguousarray(values).tobytes())
        return len(self._views) - 1

    @staticmethod
    def _kind(values: np.ndarray) -> dict:
        component = {"uint8": _BYTE, "uint16": _SHORT, "uint32": _INT, "float32": _FLOAT}[values.dtype.name]
        columns = values.shape[1] if values.ndim == 2 else 1
        return {"componentType": component, "count": len(values), "type": _TYPES[columns]}


def _write(path: str | os.PathLike[str], facts: dict, binary: bytes) -> None:
    """The GLB container: header, JSON chunk, binary chunk, each padded to 4 bytes."""
    text = json.dumps(facts, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    binary += b"\0" * (-len(binary) % 4)
    with open(path, "wb") as stream:
        stream.write(struct.pack("<4sII", b"glTF", 2, 12 + 8 + len(text) + 8 + len(binary)))
        stream.write(struct.pack("<I4s", len(text), b"JSON") + text)
        stream.write(struct.pack("<I4s", len(binary), b"BIN\0") + binary)
