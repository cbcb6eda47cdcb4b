"""BVH and GLB files, read back by small readers of their own: the skeleton and the skin move as ours do."""

import json
import re
import struct

import numpy as np
import pytest

from avatar_app.mesh.bodies import DEFAULT_DIRECTORY, OPEN_FILE
from avatar_app.mesh.body import Body
from avatar_app.mesh.gltf import JAW_UNIT, write_glb
from talkshow_bridge import rotations
from talkshow_bridge.bvh import euler_zxy, write_bvh
from talkshow_bridge.errors import InputError
from talkshow_bridge.motion import ARKIT_52, Motion
from tests.conftest import make_tiny_motion
from tests.test_motion import random_motion


@pytest.fixture(scope="module")
def body() -> Body:
    return Body.from_smplx_npz(DEFAULT_DIRECTORY / OPEN_FILE)


@pytest.fixture(scope="module")
def motion() -> Motion:
    """Every joint and unit moves; jaw and face within what people do."""
    motion = random_motion(5)
    motion.jaw[:] = np.linspace([0, 0, 0], [0.5, 0.05, 0], 5)
    return motion


# ---- BVH


def read_bvh(path) -> tuple[list[str], list[int], np.ndarray, np.ndarray, float]:
    """Names, parents, offsets (J, 3), motion rows (N, channels), frame time."""
    top, bottom = path.read_text().split("MOTION\n")
    names, parents, offsets, open_joints = [], [], [], []
    for line in top.splitlines():
        words = line.split()
        if words[0] in ("ROOT", "JOINT"):
            names.append(words[1])
            parents.append(open_joints[-1] if open_joints else -1)
        elif words[0] == "{":
            open_joints.append(len(names) - 1)
        elif words[0] == "}":
            open_joints.pop()
        elif words[0] == "OFFSET" and len(offsets) < len(names):
            offsets.append([float(word) for word in words[1:]])
    count, seconds = re.match(r"Frames: (\d+)\nFrame Time: (\S+)\n", bottom).groups()
    rows = np.array([line.split() for line in bottom.splitlines()[2:]], float)
    assert len(rows) == int(count)
    return names, parents, np.array(offsets), rows, float(seconds)


def test_bvh_moves_as_the_body_does(tmp_path, body, motion):
    write_bvh(motion, tmp_path / "m.bvh", body.joints, body.hand_mean)
    names, parents, offsets, rows, seconds = read_bvh(tmp_path / "m.bvh")
    assert seconds == pytest.approx(1 / 30) and len(set(names)) == 55
    z, x, y = np.moveaxis(np.deg2rad(rows[:, 3:]).reshape(5, 55, 3), -1, 0)
    axes = np.eye(3)
    local = [rotations.matrix(angle[..., None] * axis) for angle, axis in ((z, axes[2]), (x, axes[0]), (y, axes[1]))]
    turned, placed = local[0] @ local[1] @ local[2], np.empty((5, 55, 3))
    for joint, parent in enumerate(parents):
        if parent < 0:
            placed[:, joint] = rows[:, :3]
            continue
        placed[:, joint] = placed[:, parent] + turned[:, parent] @ offsets[joint]
        turned[:, joint] = turned[:, parent] @ turned[:, joint]
    with np.load(DEFAULT_DIRECTORY / OPEN_FILE) as stored:
        order = [list(stored["joint_names"]).index(name) for name in names]
    assert np.abs(placed / 100 - body.pose(motion).joints[:, order]).max() < 1e-5


def test_bvh_angles_do_not_jump(tmp_path):
    motion = Motion.rest(2500)
    motion.body[:, 15, 2] = np.linspace(0, 12, 2500)
    write_bvh(motion, tmp_path / "m.bvh")
    rows = read_bvh(tmp_path / "m.bvh")[3]
    assert np.abs(np.diff(rows, axis=0)).max() < 1 and rows.max() > 600


def test_euler_angles_at_the_pole():
    turn = rotations.matrix(np.array([[np.pi / 2, 0, 0], [-np.pi / 2, 0, 0], [0.3, 1.0, -2.0]]))
    z, x, y = np.moveaxis(euler_zxy(turn), -1, 0)[..., None]
    axes = np.eye(3)
    again = rotations.matrix(z * axes[2]) @ rotations.matrix(x * axes[0]) @ rotations.matrix(y * axes[1])
    assert np.allclose(again, turn, atol=1e-9)


# ---- GLB


class Glb:
    """Just enough of a reader."""

    def __init__(self, path):
        content = path.read_bytes()
        magic, version, length = struct.unpack_from("<4sII", content)
        assert magic == b"glTF" and version == 2 and length == len(content) and length % 4 == 0
        size, kind = struct.unpack_from("<I4s", content, 12)
        assert kind == b"JSON"
        self.facts = json.loads(content[20 : 20 + size])
        self.binary = content[20 + size + 8 :]
        assert self.facts["buffers"][0]["byteLength"] <= len(self.binary)

    def view(self, number: int, kind: int, columns: int) -> np.ndarray:
        view = self.facts["bufferViews"][number]
        start = view["byteOffset"]
        flat = np.frombuffer(
            self.binary[start : start + view["byteLength"]],
            {5121: np.uint8, 5125: np.uint32, 5126: np.float32}[kind],
        )
        return flat.reshape(-1, columns)

    def __getitem__(self, number: int) -> np.ndarray:
        accessor = self.facts["accessors"][number]
        columns = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}[accessor["type"]]
        if "bufferView" in accessor:
            values = self.view(accessor["bufferView"], accessor["componentType"], columns)
        else:
            values = np.zeros((accessor["count"], columns), np.float32)
        if "sparse" in accessor:
            sparse = accessor["sparse"]
            rows = self.view(sparse["indices"]["bufferView"], sparse["indices"]["componentType"], 1)[:, 0]
            values[rows] = self.view(sparse["values"]["bufferView"], 5126, columns)
        assert len(values) == accessor["count"]
        if "min" in accessor:
            assert np.allclose(values.min(axis=0), accessor["min"]) and np.allclose(values.max(axis=0), accessor["max"])
        return values

    def pose(self, frame: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(rest vertices, posed vertices, joint positions) at a frame."""
        nodes, (animation,) = self.facts["nodes"], self.facts["animations"]
        poses = {n: [np.array(node.get("translation", [0] * 3)), np.array(node.get("rotation", [0, 0, 0, 1]))]
                 for n, node in enumerate(nodes)}  # fmt: skip
        (mesh,) = self.facts["meshes"]
        weights = np.array(mesh["weights"])
        for channel in animation["channels"]:
            output = self[animation["samplers"][channel["sampler"]]["output"]]
            path, node = channel["target"]["path"], channel["target"]["node"]
            if path == "weights":
                weights = output.reshape(-1, len(weights))[frame]
            else:
                poses[node][path == "rotation"] = output[frame]
        world = np.zeros((len(nodes), 4, 4))
        for number, parent in self.walk(self.facts["scenes"][0]["nodes"], None):
            local = np.eye(4)
            x, y, z, w = poses[number][1]
            local[:3, :3] = rotations.matrix(rotations.axis_angle_of_quaternion(np.array([w, x, y, z])))
            local[:3, 3] = poses[number][0]
            world[number] = local if parent is None else world[parent] @ local
        skin = self.facts["skins"][0]
        bind = self[skin["inverseBindMatrices"]].reshape(-1, 4, 4).transpose(0, 2, 1)
        joints = world[skin["joints"]]
        rest, posed = [], []
        for primitive in mesh["primitives"]:
            attributes = primitive["attributes"]
            vertices = self[attributes["POSITION"]]
            morphed = vertices.astype(float)
            for weight, target in zip(weights, primitive["targets"], strict=True):
                morphed = morphed + weight * self[target["POSITION"]]
            strengths, owners = (
                np.concatenate(
                    [self[attributes[f"{name}_{k}"]] for k in range(2) if f"{name}_{k}" in attributes], axis=1
                )
                for name in ("WEIGHTS", "JOINTS")
            )
            assert np.allclose(strengths.sum(axis=1), 1, atol=1e-5)
            blend = np.einsum("vi,viab->vab", strengths, (joints @ bind)[owners])
            rest.append(vertices)
            posed.append(np.einsum("vab,vb->va", blend[:, :3, :3], morphed) + blend[:, :3, 3])
        return np.concatenate(rest), np.concatenate(posed), joints[:, :3, 3]

    def walk(self, numbers, parent):
        for number in numbers:
            yield number, parent
            yield from self.walk(self.facts["nodes"][number].get("children", []), number)


def nearest(body: Body, vertices: np.ndarray) -> np.ndarray:
    from scipy.spatial import cKDTree

    distance, index = cKDTree(body.vertices).query(vertices)
    assert distance.max() == 0
    return index


def test_glb_moves_as_the_body_does(tmp_path, body, motion):
    write_glb(body, motion, tmp_path / "m.glb")
    glb = Glb(tmp_path / "m.glb")
    times = glb[glb.facts["animations"][0]["samplers"][0]["input"]][:, 0]
    assert np.allclose(times, np.arange(5) / 30)
    names = glb.facts["meshes"][0]["extras"]["targetNames"]
    assert set(names) == {*ARKIT_52, JAW_UNIT}
    posed = body.pose(motion)
    for frame in (0, 4):
        rest, vertices, joints = glb.pose(frame)
        assert np.abs(joints - posed.joints[frame]).max() < 1e-5
        assert np.abs(vertices - posed.vertices[frame][nearest(body, rest)]).max() < 2e-5
    triangles = sum(glb.facts["accessors"][p["indices"]]["count"] // 3 for p in glb.facts["meshes"][0]["primitives"])
    assert triangles == len(body.faces)
    materials = {material["name"] for material in glb.facts["materials"]}
    assert {"skin", "lips", "leotard", "iris", "tongue"} <= materials
    assert (tmp_path / "m.glb").stat().st_size < 4e6


def test_glb_of_any_body(tmp_path, tiny_body):
    motion = make_tiny_motion(20)
    write_glb(tiny_body, motion, tmp_path / "m.glb")
    glb = Glb(tmp_path / "m.glb")
    moving = {channel["target"]["node"] for channel in glb.facts["animations"][0]["channels"]}
    assert len(moving) == 3  # head, jaw and the mesh's units: joints that stay are not animated
    posed = tiny_body.pose(motion)
    _, vertices, joints = glb.pose(13)
    assert np.abs(joints - posed.joints[13]).max() < 1e-5
    assert np.abs(np.sort(vertices[:, 0])[[0, -1]] - np.sort(posed.vertices[13][:, 0])[[0, -1]]).max() < 1e-5


def test_glb_refuses_a_face_of_another_kind(tmp_path, tiny_body):
    with pytest.raises(InputError, match="flame100"):
        write_glb(tiny_body, random_motion(space="flame100"), tmp_path / "m.glb")
    assert not list(tmp_path.iterdir())
