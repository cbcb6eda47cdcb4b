"""The whole SMPL-X skeleton of 55 joints at the open body's proportions: body, jaw, eyes and fingers."""

from __future__ import annotations

import numpy as np

from talkshow_bridge import skeleton
from talkshow_bridge.motion import Motion

FINGERS = ("index", "middle", "pinky", "ring", "thumb")  # three joints each
JOINTS: tuple[str, ...] = (
    *skeleton.JOINTS, "jaw", "left_eye", "right_eye",
    *(f"{side}_{finger}{k}" for side in ("left", "right") for finger in FINGERS for k in (1, 2, 3)),
)  # fmt: skip


def _hand_parents(wrist: int, first: int) -> list[int]:
    return [joint - 1 if joint % 3 != first % 3 else wrist for joint in range(first, first + 15)]


PARENTS = (*skeleton.PARENTS, 15, 15, 15, *_hand_parents(20, 25), *_hand_parents(21, 40))
_EYES_AND_JAW = np.array([[0, 0.287, 0.053], [0.029, 0.330, 0.115], [-0.029, 0.330, 0.115]])
_LEFT_HAND = np.array([
    [0.754, 0.091, 0.042], [0.780, 0.090, 0.044], [0.803, 0.090, 0.046], [0.753, 0.096, 0.016], [0.787, 0.095, 0.013],
    [0.814, 0.094, 0.011], [0.738, 0.092, -0.022], [0.759, 0.091, -0.024], [0.775, 0.091, -0.025],
    [0.747, 0.097, -0.003], [0.777, 0.096, -0.006], [0.802, 0.095, -0.008], [0.688, 0.092, 0.040],
    [0.699, 0.071, 0.060], [0.724, 0.053, 0.079],
])  # fmt: skip
# T-pose in metres: y up, z forward, left = +x.
REST_JOINTS = np.concatenate([skeleton.REST_JOINTS, _EYES_AND_JAW, _LEFT_HAND, _LEFT_HAND * [-1, 1, 1]])
_LEFT_RELAXED = np.zeros((15, 3))
_LEFT_RELAXED[:12, 2] = np.deg2rad([-12, -28, -16, -16, -34, -20, -22, -30, -20, -20, -34, -20])
_LEFT_RELAXED[13:, 1:] = np.deg2rad([[-5.4, -2.4], [-10.8, -4.8]])
# (2, 15, 3) axis-angle, left first: the open body's relaxed hands, to which the hands of a Motion are relative
RELAXED_HANDS = np.stack([_LEFT_RELAXED, _LEFT_RELAXED * [1, -1, -1]])


def full_pose(motion: Motion, hand_mean: np.ndarray = RELAXED_HANDS) -> np.ndarray:
    """(N, 55, 3) axis-angle of every joint; hand_mean (2, 15, 3) is added to the motion's hands."""
    face = [motion.jaw[:, None], motion.leye[:, None], motion.reye[:, None]]
    hands = [motion.left_hand + hand_mean[0], motion.right_hand + hand_mean[1]]
    return np.concatenate([motion.global_orient[:, None], motion.body, *face, *hands], axis=1)
