"""Keeps arms where they can be: out of the torso and of each other, inside the upper-body picture.

Wrists are moved softly, so that the path stays smooth; an arm that breaks no limit is left as it is.
"""

from __future__ import annotations

import numpy as np

from talkshow_bridge import rotations
from talkshow_bridge.rig import RELAXED_HANDS
from talkshow_bridge.skeleton import JOINTS, LEFT, REST_JOINTS, RIGHT, forward, index

WRISTS = np.array([[0.095, -0.118, 0.185], [0.335, 0.085, 0.355]])  # m from spine3: x outward, y, z
LOWEST_TIP = -0.200  # m from spine3: below it, the picture ends
HANDS_APART = 0.085  # m between the middle lines of the two hands
HAND = 0.17  # m from wrist to the tips of half-bent fingers
MARGIN = 0.02  # m before a limit at which a hand begins to slow down
FLEXION = (-0.5, 1.75)  # rad of a finger joint, from the flat hand
PASSES = 3  # a hand that is moved also turns, so what it meets is looked at again
TORSO = [index(f"spine{k}") for k in (1, 2, 3)]
FRAMES = 4096  # computed at a time
WRIST_JOINTS = [JOINTS.index("left_wrist"), JOINTS.index("right_wrist")]
MIRROR = np.array([[LEFT, 1, 1], [RIGHT, 1, 1]])
ALONG_HAND = (0.0, 0.35, 0.7, 1.0)


def confine(body: np.ndarray, shift: np.ndarray | None = None) -> np.ndarray:
    """(N, 21, 3) axis-angle -> the same with both arms inside their limits. The torso does not matter.

    shift: (N, 2, 3) m, moves the left and the right wrist first; x points outward.
    """
    confined = np.array(body, np.float64)
    for first in range(0, len(body), FRAMES):
        part = slice(first, first + FRAMES)
        for turn in range(PASSES):
            arms = confined[part].copy()
            arms[:, TORSO] = 0
            positions, world = forward(arms)
            wanted = positions.copy()
            if shift is not None and turn == 0:
                wanted[:, WRIST_JOINTS] += shift[part] * MIRROR
            for side, wrist in zip((LEFT, RIGHT), _allowed(wanted, world), strict=True):
                _pull(confined[part], side, wrist, positions, world)
    return confined


def bend_fingers(side: int, hand: np.ndarray) -> np.ndarray:
    """(N, 15, 3) axis-angle of one hand -> the same with no finger bent further than fingers go."""
    mean = RELAXED_HANDS[0 if side == LEFT else 1, :12, 2]
    bent = np.array(hand)
    bent[:, :12, 2] = -side * np.clip(-side * (hand[:, :12, 2] + mean), *FLEXION) - mean
    return bent


def _allowed(positions: np.ndarray, world: np.ndarray) -> list[np.ndarray]:
    """Where the wrists may be, nearest to where they are: (N, 3) for the left and the right one."""
    chest = REST_JOINTS[JOINTS.index("spine3")]
    wrists, hands = [], []
    for side, joint, mirror in zip((LEFT, RIGHT), WRIST_JOINTS, MIRROR, strict=True):
        reach = world[:, joint] @ np.array([side * HAND, 0, 0])
        wrist = _soft_clip((positions[:, joint] - chest) * mirror, *WRISTS) * mirror
        wrist[:, 1] += _soft_excess(LOWEST_TIP - np.minimum(wrist[:, 1], wrist[:, 1] + reach[:, 1]), 0.01)
        wrists.append(wrist)
        hands.append(np.stack([wrist + share * reach for share in ALONG_HAND], axis=1))
    gaps = np.linalg.norm(hands[0][:, :, None] - hands[1][:, None], axis=-1).min(axis=(1, 2))
    push = 0.5 * _soft_excess(HANDS_APART - gaps, 0.01)
    return [wrist + chest + push[:, None] * [side, 0, 0] for side, wrist in zip((LEFT, RIGHT), wrists, strict=True)]


def _soft_clip(x: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Like np.clip, but slowing down within MARGIN of the limits."""
    over, under = x - (high - MARGIN), (low + MARGIN) - x
    x = np.where(over > 0, high - MARGIN * np.exp(-np.maximum(over, 0) / MARGIN), x)
    return np.where(under > 0, low + MARGIN * np.exp(-np.maximum(under, 0) / MARGIN), x)


def _soft_excess(x: np.ndarray, width: float) -> np.ndarray:
    """max(0, x) with a rounded corner; 0 further than 5 widths below."""
    return np.where(x > -5 * width, width * np.logaddexp(0, x / width) - width * np.logaddexp(0, -5), 0)


def _pull(body: np.ndarray, side: int, wrist: np.ndarray, positions: np.ndarray, world: np.ndarray) -> None:
    """Bring one wrist to (N, 3) `wrist` by shoulder and elbow, in place; the elbow keeps its side of the arm."""
    name = "left" if side == LEFT else "right"
    s, e, w = (JOINTS.index(f"{name}_{joint}") for joint in ("shoulder", "elbow", "wrist"))
    upper, lower = positions[:, e] - positions[:, s], positions[:, w] - positions[:, e]
    a, b = (np.linalg.norm(bone[0]) for bone in (upper, lower))
    line = wrist - positions[:, s]
    distance = np.clip(np.linalg.norm(line, axis=1, keepdims=True), abs(a - b) + 0.12, 0.985 * (a + b))
    line /= np.linalg.norm(line, axis=1, keepdims=True)
    pole = upper - np.sum(upper * line, axis=1, keepdims=True) * line
    pole /= np.maximum(np.linalg.norm(pole, axis=1, keepdims=True), 1e-6)
    cosine = np.clip((a * a + distance**2 - b * b) / (2 * a * distance), -1, 1)
    elbow = a * (line * cosine + pole * np.sqrt(1 - cosine**2))
    turn_upper = _between(upper, elbow)
    turn_lower = _between(np.einsum("nij,nj->ni", turn_upper, lower), line * distance - elbow)
    shoulder_world = turn_upper @ world[:, s]
    elbow_world = turn_lower @ turn_upper @ world[:, e]
    collar_world = world[:, JOINTS.index(f"{name}_collar")]
    body[:, s - 1] = rotations.axis_angle(np.swapaxes(collar_world, -1, -2) @ shoulder_world)
    body[:, e - 1] = rotations.axis_angle(np.swapaxes(shoulder_world, -1, -2) @ elbow_world)


def _between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N, 3, 3) the smallest rotation that turns directions a (N, 3) to b (N, 3)."""
    axis = np.cross(a, b)
    sine = np.linalg.norm(axis, axis=1, keepdims=True)
    angle = np.arctan2(sine, np.sum(a * b, axis=1, keepdims=True))
    return rotations.matrix(axis / np.maximum(sine, 1e-12) * angle)
