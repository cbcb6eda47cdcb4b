"""Upper-body kinematics on the open body's rest joints: where the wrists are, and how to put them somewhere."""

from __future__ import annotations

import numpy as np

from talkshow_bridge import rotations

JOINTS: tuple[str, ...] = (
    "pelvis", "left_hip", "right_hip", "spine1", "left_knee", "right_knee", "spine2", "left_ankle", "right_ankle",
    "spine3", "left_foot", "right_foot", "neck", "left_collar", "right_collar", "head", "left_shoulder",
    "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist",
)  # fmt: skip
PARENTS = (-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19)
# T-pose of the neutral open body in metres: y up, z forward, left = +x.
REST_JOINTS = np.array([
    [0, -0.350, 0.010], [0.101, -0.358, 0.002], [-0.101, -0.358, 0.002], [0, -0.270, -0.029],
    [0.143, -0.749, 0.034], [-0.143, -0.749, 0.034], [0, -0.155, -0.012], [0.181, -1.155, 0.019],
    [-0.181, -1.155, 0.019], [0, -0.064, -0.016], [0.186, -1.215, 0.136], [-0.186, -1.215, 0.136],
    [0, 0.190, 0.002], [0.049, 0.124, 0.018], [-0.049, 0.124, 0.018], [0, 0.276, 0.035],
    [0.170, 0.096, 0.016], [-0.170, 0.096, 0.016], [0.412, 0.096, 0.016], [-0.412, 0.096, 0.016],
    [0.651, 0.096, 0.016], [-0.651, 0.096, 0.016],
])  # fmt: skip
LEFT, RIGHT = 1, -1
MAX_TWIST = 1.2  # rad of forearm pronation or supination away from thumbs-up rest


def index(name: str) -> int:
    """Row of a joint in `Motion.body` (joint 1 is row 0)."""
    return JOINTS.index(name) - 1


def joint_positions(body: np.ndarray, rest: np.ndarray = REST_JOINTS) -> np.ndarray:
    """(N, 21, 3) axis-angle -> (N, 22, 3) joint positions in metres, pelvis fixed."""
    positions, _ = forward(body, rest)
    return positions


def forward(body: np.ndarray, rest: np.ndarray = REST_JOINTS) -> tuple[np.ndarray, np.ndarray]:
    """(N, 21, 3) axis-angle -> positions (N, 22, 3) and world rotations (N, 22, 3, 3)."""
    local = rotations.matrix(np.asarray(body, np.float64))
    world = np.empty((len(body), 22, 3, 3))
    positions = np.empty((len(body), 22, 3))
    world[:, 0], positions[:, 0] = np.eye(3), rest[0]
    for joint in range(1, 22):
        parent = PARENTS[joint]
        world[:, joint] = world[:, parent] @ local[:, joint - 1]
        positions[:, joint] = positions[:, parent] + world[:, parent] @ (rest[joint] - rest[parent])
    return positions, world


def reach(side: int, wrist: np.ndarray, elbow_hint: np.ndarray, palm: np.ndarray, collar: np.ndarray) -> np.ndarray:
    """Two-bone inverse kinematics of one arm, in the axes of the chest joint.

    side: LEFT or RIGHT. wrist: (N, 3) wanted positions in rest coordinates (m). elbow_hint: (N, 3) direction in which
    the elbow leaves the shoulder-wrist line. palm: (N, 3) direction the palm should face. collar: (N, 3) axis-angle.
    Returns (N, 3, 3): axis-angle of shoulder, elbow and wrist.
    """
    name = "left" if side == LEFT else "right"
    clavicle, s, e, w = (REST_JOINTS[JOINTS.index(f"{name}_{j}")] for j in ("collar", "shoulder", "elbow", "wrist"))
    upper, lower = np.linalg.norm(e - s), np.linalg.norm(w - e)
    lifted = rotations.matrix(collar)
    shoulder = clavicle + lifted @ (s - clavicle)
    line = wrist - shoulder
    distance = np.clip(np.linalg.norm(line, axis=1), 0.15, 0.985 * (upper + lower))[:, None]
    line = _unit(line)
    cosine = (upper**2 + distance**2 - lower**2) / (2 * upper * distance)
    out = _unit(elbow_hint - _dot(elbow_hint, line) * line)
    elbow = upper * (line * cosine + out * np.sqrt(1 - np.clip(cosine, -1, 1) ** 2))
    forearm = line * distance - elbow
    hinge = _unit(np.cross(elbow, forearm))
    outward = np.array([float(side), 0, 0])
    rest_hinge = np.array([0, -float(side), 0])
    shoulder_world = _frames(elbow, hinge) @ np.swapaxes(_frames(outward[None], rest_hinge[None]), -1, -2)
    bend = np.arctan2(np.linalg.norm(np.cross(elbow, forearm), axis=1), _dot(elbow, forearm)[:, 0])
    flexion = rest_hinge * bend[:, None]
    twist = _twist(shoulder_world @ rotations.matrix(flexion), _unit(forearm), palm)
    twisted = rotations.matrix(flexion) @ rotations.matrix(outward * (0.6 * twist)[:, None])
    shoulder_local = np.swapaxes(lifted, -1, -2) @ shoulder_world
    wrist_local = outward * (0.4 * twist)[:, None]
    return np.stack([rotations.axis_angle(shoulder_local), rotations.axis_angle(twisted), wrist_local], axis=1)


def _twist(forearm_world: np.ndarray, axis: np.ndarray, palm: np.ndarray) -> np.ndarray:
    """(N,) rotation about the forearm's outward axis that turns the palm (rest: down) towards `palm`."""
    now = forearm_world @ np.array([0, -1.0, 0])
    now = _unit(now - _dot(now, axis) * axis)
    wanted = _unit(palm - _dot(palm, axis) * axis)
    angle = np.arctan2(_dot(np.cross(now, wanted), axis)[:, 0], _dot(now, wanted)[:, 0])
    return np.clip(angle, -MAX_TWIST, MAX_TWIST)


def _frames(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Rotation matrices whose first column is x and second column as near y as can be."""
    x = _unit(x)
    z = _unit(np.cross(x, y))
    return np.stack([x, np.cross(z, x), z], -1)


def _unit(v: np.ndarray) -> np.ndarray:
    return v / np.maximum(np.linalg.norm(v, axis=-1, keepdims=True), 1e-9)


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.sum(a * b, axis=-1, keepdims=True)
