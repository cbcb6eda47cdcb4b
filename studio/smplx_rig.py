"""The MakeHuman mesh, all 19158 vertices, rigged with the 55 SMPL-X joints and brought into the SMPL-X T-pose.

`build_rig(load_base_mesh())` once, `rig.person(Phenotype(...))` per person, `assemble_body` for an anchor's rig file.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from avatar_app.mesh.body import Body
from studio.makehuman import VERTEX_COUNT, BaseMesh, Phenotype, load_bone_weights, load_face_units, shape_offset

SIDES = ("left", "right")
FINGERS = {"index": 2, "middle": 3, "pinky": 5, "ring": 4, "thumb": 1}  # SMPL-X order -> MakeHuman's finger number
# fmt: off
JOINT_NAMES = (
    "pelvis", "left_hip", "right_hip", "spine1", "left_knee", "right_knee", "spine2", "left_ankle", "right_ankle",
    "spine3", "left_foot", "right_foot", "neck", "left_collar", "right_collar", "head", "left_shoulder",
    "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist", "jaw", "left_eye", "right_eye",
    *(f"{side}_{finger}{k}" for side in SIDES for finger in FINGERS for k in (1, 2, 3)),
)
PARENTS = np.array(
    [-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 15, 15, 15,
     20, 25, 26, 20, 28, 29, 20, 31, 32, 20, 34, 35, 20, 37, 38, 21, 40, 41, 21, 43, 44, 21, 46, 47,
     21, 49, 50, 21, 52, 53]
)
# fmt: on
JOINT = {name: index for index, name in enumerate(JOINT_NAMES)}
PELVIS = np.array([0, -0.35, 0.01])  # about where SMPL-X has it, so that one camera fits both bodies

# Relaxed hand: flexion in degrees of the three joints of each finger.
_RELAXED = {"index": (12, 28, 16), "middle": (16, 34, 20), "pinky": (22, 30, 20), "ring": (20, 34, 20)}
_RELAXED_THUMB = (0, 6, 12)

_SPINE = {
    "root": {"pelvis": 1},
    "spine05": {"pelvis": 0.7, "spine1": 0.3},
    "spine04": {"spine1": 0.8, "spine2": 0.2},
    "spine03": {"spine1": 0.2, "spine2": 0.8},
    "spine02": {"spine2": 0.55, "spine3": 0.45},
    "spine01": {"spine3": 1},
    "neck01": {"neck": 1},
    "neck02": {"neck": 0.75, "head": 0.25},
    "neck03": {"neck": 0.3, "head": 0.7},
}
_LIMBS = {  # by the beginning of the bone's name
    "clavicle": "collar", "shoulder01": "collar", "upperarm": "shoulder", "lowerarm": "elbow", "wrist": "wrist",
    "metacarpal": "wrist", "upperleg": "hip", "lowerleg": "knee", "foot": "ankle", "toe": "foot",
}  # fmt: skip


@dataclass(frozen=True)
class Person:
    """One person in the T-pose: vertices (19158, 3) and joints (55, 3), metres."""

    vertices: np.ndarray
    joints: np.ndarray


@dataclass(frozen=True)
class Shell:
    """Extra geometry that follows the body (garment, hair cap): rest-pose vertices (n, 3) m, weights (n, 55), triangles
    (m, 3), uv (m, 3, 2)."""

    name: str
    vertices: np.ndarray
    weights: np.ndarray
    faces: np.ndarray
    uv: np.ndarray


@dataclass(frozen=True)
class Rig:
    """What all people share. weights (19158, 55); face_units: ARKit name -> offsets (19158, 3) m, eyeballs left alone
    (they turn by their joints); jaw_corrective (19158, 3) and jaw_direction (9,) as in avatar_app's Body."""

    base: BaseMesh
    weights: np.ndarray
    face_units: dict[str, np.ndarray]
    jaw_offset: np.ndarray
    neck_length: float
    jaw_corrective: np.ndarray
    jaw_direction: np.ndarray

    def person(self, phenotype: Phenotype) -> Person:
        """Rest mesh and joints of a phenotype."""
        return self.unpose(self.base.vertices + shape_offset(phenotype))

    def unpose(self, vertices: np.ndarray) -> Person:
        """Bring a mesh sculpted in MakeHuman's A-pose into the T-pose.

        The inverse of linear blend skinning, so that posing the result back gives the sculpted A-pose exactly."""
        joints = self.joints(vertices)
        turn = t_pose_rotations(joints, self._fingertips(vertices))
        rest_joints = joints.copy()
        for j in range(1, 55):
            rest_joints[j] = rest_joints[PARENTS[j]] + turn[PARENTS[j]] @ (joints[j] - joints[PARENTS[j]])
        linear = turn.transpose(0, 2, 1)  # of the transform that poses the T-pose back
        offset = joints - np.einsum("jab,jb->ja", linear, rest_joints)
        blended = np.einsum("vj,jab->vab", self.weights, linear)
        rest = np.linalg.solve(blended, (vertices - self.weights @ offset)[..., None])[..., 0]
        shift = PELVIS - rest_joints[0]
        return Person(rest + shift, rest_joints + shift)

    def joints(self, vertices: np.ndarray) -> np.ndarray:
        """(55, 3) joints of a mesh in MakeHuman's A-pose."""
        joints = joint_positions(self.base, vertices)
        scale = np.linalg.norm(joints[JOINT["head"]] - joints[JOINT["neck"]]) / self.neck_length
        joints[JOINT["jaw"]] += self.jaw_offset * scale
        return joints

    def _fingertips(self, vertices: np.ndarray) -> dict[str, np.ndarray]:
        return {
            f"{side}_{finger}": _cube(self.base, vertices, f"{side[0]}-finger-{number}-4")
            for side in SIDES
            for finger, number in FINGERS.items()
        }

    @cached_property
    def hand_mean(self) -> np.ndarray:
        """(2, 15, 3) axis-angle of the relaxed left and right hand."""
        hands = np.zeros((2, 15, 3))
        for hand, sign in zip(hands, (-1, 1), strict=True):
            for f, finger in enumerate(FINGERS):
                for k in range(3):
                    if finger == "thumb":
                        bend = sign * np.radians(_RELAXED_THUMB[k])
                        hand[3 * f + k] = 0, 0.9 * bend, 0.4 * bend
                    else:
                        hand[3 * f + k] = 0, 0, sign * np.radians(_RELAXED[finger][k])
        return hands


def build_rig(base: BaseMesh) -> Rig:
    """Skin weights, face units and jaw for the MakeHuman mesh (a few seconds)."""
    neutral = base.vertices + shape_offset(Phenotype())
    weights = _skin_weights(base, neutral)
    units = load_face_units()
    open_jaw = units["jawOpen"]

    joints = joint_positions(base, neutral)
    neck_length = np.linalg.norm(joints[JOINT["head"]] - joints[JOINT["neck"]])
    lower_teeth = base.members("helper-lower-teeth")
    jaw_offset, angle = _fit_jaw_arc(neutral[lower_teeth], open_jaw[lower_teeth], joints[JOINT["jaw"]])
    turned = Rotation.from_rotvec([angle, 0, 0]).as_matrix()
    arc = (neutral - joints[JOINT["jaw"]] - jaw_offset) @ (turned - np.eye(3)).T
    on_jaw = _follow_jaw(base, weights, open_jaw, arc)

    rotations = np.tile(np.eye(3), (55, 1, 1))
    rotations[JOINT["jaw"]] = turned
    blended = np.einsum("vj,jab->vab", weights, rotations)
    residual = np.linalg.solve(blended, (open_jaw - on_jaw[:, None] * arc)[..., None])[..., 0]
    feature = (turned - np.eye(3)).reshape(-1)
    length = np.linalg.norm(feature)

    eyeballs = np.concatenate([base.members("helper-l-eye"), base.members("helper-r-eye")])
    for offsets in units.values():
        offsets[eyeballs] = 0
    return Rig(base, weights, units, jaw_offset, neck_length, residual / length, feature / length)


def joint_positions(base: BaseMesh, vertices: np.ndarray) -> np.ndarray:
    """(55, 3) SMPL-X joints from MakeHuman's joint cubes (jaw at the mouth: `Rig.joints` moves it to its hinge)."""

    def at(name: str) -> np.ndarray:
        return _cube(base, vertices, name)

    def between(a: np.ndarray, b: np.ndarray, share: float) -> np.ndarray:
        return a * (1 - share) + b * share

    joints = {
        "pelvis": at("pelvis"),
        "spine1": at("spine-4"),
        "spine2": between(at("spine-3"), at("spine-2"), 0.65),
        "spine3": between(at("spine-2"), at("spine-1"), 0.45),
        "neck": at("neck"),
        "head": between(at("neck"), at("head"), 0.85),
        "jaw": at("mouth"),
    }
    names = {
        "hip": "upper-leg", "knee": "knee", "ankle": "ankle", "foot": "foot-1", "shoulder": "shoulder",
        "elbow": "elbow", "wrist": "hand", "eye": "eye",
    }  # fmt: skip
    for side in SIDES:
        s = side[0]
        joints[f"{side}_collar"] = between(at(f"{s}-clavicle"), at(f"{s}-scapula"), 0.35)
        joints |= {f"{side}_{ours}": at(f"{s}-{theirs}") for ours, theirs in names.items()}
        joints |= {f"{side}_{f}{k}": at(f"{s}-finger-{n}-{k}") for f, n in FINGERS.items() for k in (1, 2, 3)}
    return np.array([joints[name] for name in JOINT_NAMES])


def t_pose_rotations(joints: np.ndarray, fingertips: dict[str, np.ndarray]) -> np.ndarray:
    """(55, 3, 3) world rotations that bring A-pose bones onto the T-pose: arms along x, palms down, fingers flat."""
    turn = np.tile(np.eye(3), (55, 1, 1))
    for side, sign in (("left", 1), ("right", -1)):
        out, up = np.array([sign, 0, 0.0]), np.array([0, 1.0, 0])
        shoulder, elbow, wrist = (JOINT[f"{side}_{name}"] for name in ("shoulder", "elbow", "wrist"))
        turn[wrist] = _frame(out, up) @ _hand_frame(joints, side, sign).T

        upper = _rotation_between(joints[elbow] - joints[shoulder], out)
        fore = _rotation_between(upper @ (joints[wrist] - joints[elbow]), out) @ upper
        twist = Rotation.from_matrix(turn[wrist] @ fore.T).as_rotvec()[0]  # spread the hand's roll along the arm
        turn[elbow] = Rotation.from_rotvec([0.6 * twist, 0, 0]).as_matrix() @ fore
        turn[shoulder] = Rotation.from_rotvec([0.25 * twist, 0, 0]).as_matrix() @ upper

        for finger in FINGERS:
            bones = [JOINT[f"{side}_{finger}{k}"] for k in (1, 2, 3)]
            if finger == "thumb":
                turn[bones] = turn[wrist]
                continue
            points = [*joints[bones], fingertips[f"{side}_{finger}"]]
            first = turn[wrist] @ (points[1] - points[0])
            fan = 0.6 * np.clip(np.arctan2(first[2], first[0] * sign), -0.15, 0.15)
            straight = np.array([np.cos(fan) * sign, -0.03, np.sin(fan)])
            current = turn[wrist]
            for k, bone in enumerate(bones):
                current = _rotation_between(current @ (points[k + 1] - points[k]), straight) @ current
                turn[bone] = current
    return turn


def triangles(quads: np.ndarray) -> np.ndarray:
    """(Q, 4, ...) quads -> (2Q, 3, ...) triangles without the empty ones (first entry of the last axis = vertex)."""
    split = np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])
    a, b, c = (split[:, k, 0] for k in range(3))
    return split[(a != b) & (b != c) & (a != c)]


def assemble_body(rig: Rig, person: Person, parts: dict[str, np.ndarray], shells: list[Shell] = ()) -> Body:
    """An anchor's Body: `parts` names quads (Q, 4, 2) of (MakeHuman vertex, uv), `shells` come after them."""
    corners = {name: triangles(quads) for name, quads in parts.items()}
    used = np.unique(np.concatenate([c[..., 0].ravel() for c in corners.values()]))
    position = np.full(VERTEX_COUNT, -1)
    position[used] = np.arange(len(used))

    faces = [position[c[..., 0]] for c in corners.values()]
    uv = [rig.base.uv[c[..., 1]] for c in corners.values()]
    vertices, weights = [person.vertices[used]], [rig.weights[used]]
    for shell in shells:
        faces.append(shell.faces + sum(map(len, vertices)))
        uv.append(shell.uv)
        vertices.append(shell.vertices)
        weights.append(shell.weights)
    names = (*corners, *(shell.name for shell in shells))
    part = np.repeat(np.arange(len(names)), [len(f) for f in faces])
    vertices = np.concatenate(vertices).astype(np.float32)

    units = np.stack([offsets[used] for offsets in rig.face_units.values()])
    moved = np.flatnonzero(units.any(axis=(0, 2)))
    jaw = np.zeros_like(vertices)
    jaw[: len(used)] = rig.jaw_corrective[used]
    return Body(
        vertices=vertices,
        joints=person.joints.astype(np.float32),
        parents=PARENTS.astype(np.int32),
        weights=np.concatenate(weights).astype(np.float32),
        faces=np.concatenate(faces).astype(np.int32),
        part=part.astype(np.uint8),
        part_names=names,
        face_uv=np.concatenate(uv).astype(np.float32),
        expression=units[:, moved].astype(np.float32),
        expression_vertices=moved.astype(np.int32),
        expression_names=tuple(rig.face_units),
        jaw_corrective=jaw,
        jaw_direction=rig.jaw_direction.astype(np.float32),
        hand_mean=rig.hand_mean.astype(np.float32),
    )


def _skin_weights(base: BaseMesh, neutral: np.ndarray) -> np.ndarray:
    """MakeHuman's 137 bones gathered into 55 joints; helper geometry without weights copies its nearest neighbour."""
    weights = np.zeros((VERTEX_COUNT, 55))
    for bone, rows in load_bone_weights().items():
        for joint, share in _joints_of_bone(bone).items():
            np.add.at(weights[:, JOINT[joint]], rows[:, 0].astype(int), rows[:, 1] * share)
    bare = weights.sum(axis=1) <= 1e-6
    rigged = np.flatnonzero(~bare)
    weights[bare] = weights[rigged[cKDTree(neutral[rigged]).query(neutral[bare])[1]]]
    weights /= weights.sum(axis=1, keepdims=True)

    body = base.members("body")  # eyelid skin must not follow the eyeball
    for eye in ("left_eye", "right_eye"):
        weights[body, JOINT["head"]] += weights[body, JOINT[eye]]
        weights[body, JOINT[eye]] = 0
    rigid = {"l-eye": "left_eye", "r-eye": "right_eye", "lower-teeth": "jaw", "upper-teeth": "head"}
    for group, joint in rigid.items():
        weights[base.members(f"helper-{group}")] = np.eye(55)[JOINT[joint]]
    return weights


def _joints_of_bone(bone: str) -> dict[str, float]:
    name, _, suffix = bone.partition(".")
    side = "left_" if suffix == "L" else "right_"
    if bone in _SPINE:
        return _SPINE[bone]
    if name == "pelvis":
        return {"pelvis": 1}
    if name == "breast":
        return {"spine3": 1}
    if name == "eye":
        return {side + "eye": 1}
    if name.startswith("finger"):
        number, k = name.removeprefix("finger").split("-")
        finger = next(finger for finger, n in FINGERS.items() if n == int(number))
        return {f"{side}{finger}{k}": 1}
    for beginning, joint in _LIMBS.items():
        if name.startswith(beginning):
            return {side + joint: 1}
    lower_lip = name in ("special04", "oris01", "oris02", "oris07") or (name == "oris06" and suffix)
    return {"jaw" if name == "jaw" or name.startswith("tongue") or lower_lip else "head": 1}


def _fit_jaw_arc(teeth: np.ndarray, moved: np.ndarray, mouth: np.ndarray) -> tuple[np.ndarray, float]:
    """The hinge (as an offset from `mouth`, near the temporomandibular joint) and the angle in radians of the rotation
    about x that explains best how the sculpted jawOpen moves the lower teeth."""
    best = None
    for dy in np.linspace(-0.015, 0.03, 10):
        for dz in np.linspace(-0.03, 0, 7):
            for angle in np.radians(np.arange(8, 30, 0.5)):
                turn = Rotation.from_rotvec([angle, 0, 0]).as_matrix() - np.eye(3)
                error = np.linalg.norm(moved - (teeth - mouth - (0, dy, dz)) @ turn.T, axis=1).mean()
                if best is None or error < best[0]:
                    best = error, np.array([0, dy, dz]), angle
    return best[1:]


def _follow_jaw(base: BaseMesh, weights: np.ndarray, open_jaw: np.ndarray, arc: np.ndarray) -> np.ndarray:
    """Set the jaw weights, in place, to how far the sculpted open mouth follows the hinge; returns that share (V,)."""
    share = np.clip((open_jaw * arc).sum(1) / np.maximum((arc**2).sum(1), 1e-8), 0, 1)
    share[np.linalg.norm(open_jaw, axis=1) < 1e-5] = 0
    share[base.members("helper-lower-teeth")] = 1
    share[base.members("helper-upper-teeth")] = 0
    neck, head, jaw = (weights[:, JOINT[name]].copy() for name in ("neck", "head", "jaw"))
    weights[:, JOINT["jaw"]] = share * (neck + head + jaw)
    weights[:, JOINT["neck"]] = (1 - share) * neck
    weights[:, JOINT["head"]] = (1 - share) * (head + jaw)
    return share


def _cube(base: BaseMesh, vertices: np.ndarray, name: str) -> np.ndarray:
    return vertices[base.members(f"joint-{name}")].mean(axis=0)


def _hand_frame(joints: np.ndarray, side: str, sign: int) -> np.ndarray:
    wrist, index, middle, pinky = (joints[JOINT[f"{side}_{name}"]] for name in ("wrist", "index1", "middle1", "pinky1"))
    back = np.cross(index - wrist, pinky - wrist) * sign
    return _frame(middle - wrist, back)


def _frame(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Orthonormal columns: x, y made orthogonal to it, and their cross product."""
    x = x / np.linalg.norm(x)
    y = y - x * (x @ y)
    y = y / np.linalg.norm(y)
    return np.stack([x, y, np.cross(x, y)], axis=1)


def _rotation_between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The shortest rotation that turns direction a onto direction b."""
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    axis = np.cross(a, b)
    sine = np.linalg.norm(axis)
    return np.eye(3) if sine < 1e-9 else Rotation.from_rotvec(axis / sine * np.arctan2(sine, a @ b)).as_matrix()
