"""Procedural co-speech movement of the whole upper body: the planner's keys played by arms and hands.

This is the teacher of the gesture model (training/gesture_corpus.py) and of anchors that need varied poses.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from talkshow_bridge import rotations
from talkshow_bridge.curves import drift, key_curve, minimum_jerk, smooth
from talkshow_bridge.planner import BOX, STYLES, Plan, Style, Track, check_wish, choose_style, plan_gestures
from talkshow_bridge.presence import Presence, hold_presence
from talkshow_bridge.prosody import Prosody
from talkshow_bridge.skeleton import JOINTS, LEFT, REST_JOINTS, RIGHT, index, reach

__all__ = ["STYLES", "Gestures", "Style", "synthesize"]

RATE = 60.0  # Hz at which movement is played; any frame rate samples the same movement
CHEST = REST_JOINTS[JOINTS.index("spine3")]
# curl of index, middle, ring, pinky, thumb relative to the mean hand (rad), and spread: 0.3 as it is, -2 together
SHAPES = {
    "relaxed": (0.36, 0.46, 0.52, 0.55, 0.55, -2.0),
    "open": (0.02, 0.02, 0.06, 0.10, -0.05, 0.2),
    "flat": (0.0, 0.0, 0.02, 0.04, 0.5, -2.6),
    "cup": (0.40, 0.40, 0.40, 0.42, 0.25, -0.8),
    "pinch": (0.62, 0.45, 0.35, 0.30, 0.9, -1.0),
    "point": (0.0, 0.85, 0.95, 0.95, 0.7, -1.0),
}
FINGERS = ("index", "middle", "pinky", "ring", "thumb")  # SMPL-X order
SPREAD = {"index": 0.12, "middle": 0.03, "pinky": -0.18, "ring": -0.08}


@dataclass(frozen=True)
class Gestures:
    """Movement at the frames asked for. body: (N, 21, 3), left_hand, right_hand: (N, 15, 3), eyes: (N, 3) axis-angle.

    blink, brow: (N,) 0..1; smile: (N,) 0..~.3. plan: the keys and strokes behind the movement.
    """

    body: np.ndarray
    left_hand: np.ndarray
    right_hand: np.ndarray
    eyes: np.ndarray
    blink: np.ndarray
    brow: np.ndarray
    smile: np.ndarray
    plan: Plan


def synthesize(
    prosody: Prosody, count: int, fps: float = 30.0, seed: int = 0, style: str | Style = "neutral", energy: float = 1.0
) -> Gestures:
    """Gestures for `count` frames at `fps`; the same seed always gives the same movement, at any frame rate.

    style: "calm", "neutral" or "lively" (or a Style). energy: 0 (hands rest, a listening presenter) .. 2.
    """
    chosen = choose_style(style)
    check_wish(seed, energy)
    rng_plan, rng_hands, rng_presence = (np.random.default_rng([seed, k]) for k in range(3))
    times = np.arange(int(np.ceil(count / fps * RATE)) + 2) / RATE
    plan = plan_gestures(prosody, chosen, energy, rng_plan)
    presence = hold_presence(prosody, times, RATE, chosen, energy, rng_presence)
    frames = np.arange(count) / fps
    body = _at(frames, times, presence.body)
    hands = {}
    for side, name in ((LEFT, "left"), (RIGHT, "right")):
        wrist, shape, palm, bend = _hand_curves(plan.tracks[side], times, presence, rng_hands)
        elbow_hint = np.array([0.28, -1.0, -0.4]) + 0.06 * drift(len(times), RATE, 2.0, rng_hands, 3)
        wobble = 0.05 * drift(len(times), RATE, 0.6, rng_hands, 3)
        wobble[:, 2] -= side * bend
        mirror = np.array([side, 1, 1])
        wrist, palm, hint, shape, wobble = (_at(frames, times, a) for a in (wrist, palm, elbow_hint, shape, wobble))
        collar = _collar(side, wrist, _at(frames, times, presence.breath[:, None])[:, 0])
        arm = reach(side, (wrist + CHEST * [0, 1, 1]) * mirror, hint * mirror, palm * mirror, collar)
        arm[:, 2] = rotations.axis_angle(rotations.matrix(arm[:, 2]) @ rotations.matrix(wobble))
        body[:, index(f"{name}_collar")] = collar
        for row, joint in enumerate(("shoulder", "elbow", "wrist")):
            body[:, index(f"{name}_{joint}")] = arm[:, row]
        hands[side] = _fingers(side, shape)
    face = _at(frames, times, np.stack([presence.blink, presence.brow, presence.smile], 1))
    eyes = _at(frames, times, presence.eyes)
    return Gestures(body, hands[LEFT], hands[RIGHT], eyes, face[:, 0], face[:, 1], face[:, 2], plan)


def _hand_curves(
    track: Track, times: np.ndarray, presence: Presence, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Keys -> wrist (T, 3), shape (T, 6), palm (T, 3) and bend (T,) curves: arcs, low-passed, never quite still."""
    keys, places = np.array(track.times), np.array(track.places)
    wrist = key_curve(times, keys, places) + _arcs(times, keys, places)
    wrist = smooth(wrist, RATE, 0.03)
    wrist += 0.008 * drift(len(times), RATE, 0.7, rng, 3)
    wrist[:, 1] += 0.004 * presence.breath
    shapes = np.array([SHAPES[name] for name in track.shapes])
    shape = key_curve(times, keys, shapes) + 0.05 * drift(len(times), RATE, 0.8, rng, 6)
    palm = smooth(key_curve(times, keys, np.array(track.palms)), RATE, 0.05)
    bend = smooth(key_curve(times, keys, np.array(track.bends)[:, None])[:, 0], RATE, 0.045)
    return np.clip(wrist, *BOX), smooth(shape, RATE, 0.04), palm, bend


def _arcs(times: np.ndarray, keys: np.ndarray, places: np.ndarray) -> np.ndarray:
    """(T, 3) bow of each move: outwards, a little up and forward, in proportion to its length."""
    left = np.clip(np.searchsorted(keys, times, side="right") - 1, 0, len(keys) - 1)
    right = np.minimum(left + 1, len(keys) - 1)
    u = minimum_jerk((times - keys[left]) / np.maximum(keys[right] - keys[left], 1e-3))
    length = np.linalg.norm(places[right] - places[left], axis=1)
    return (0.14 * length * np.sin(np.pi * u))[:, None] * np.array([0.5, 0.25, 0.7])


def _collar(side: int, wrist: np.ndarray, breath: np.ndarray) -> np.ndarray:
    """(N, 3) axis-angle of the collar bone: shoulders down at rest, lifting with a high hand and with breath."""
    lift = np.clip(wrist[:, 1] + 0.12, 0, 0.2)
    collar = np.zeros((len(wrist), 3))
    collar[:, 2] = side * (-0.085 + 0.3 * lift + 0.012 * breath)
    collar[:, 1] = -side * 0.02
    return collar


def _fingers(side: int, shape: np.ndarray) -> np.ndarray:
    """(N, 6) curls and spread -> (N, 15, 3) axis-angle relative to the relaxed hand."""
    hand = np.zeros((len(shape), 15, 3))
    curls = {"index": 0, "middle": 1, "ring": 2, "pinky": 3}
    for row, finger in enumerate(FINGERS[:4]):
        for joint, share in enumerate((0.8, 1.25, 0.8)):
            hand[:, 3 * row + joint, 2] = -side * share * shape[:, curls[finger]]
        hand[:, 3 * row, 1] = -side * (shape[:, 5] - 0.3) * SPREAD[finger]
    thumb = shape[:, 4]
    hand[:, 12, 0], hand[:, 12, 1] = 0.5 * thumb, side * 0.35 * thumb
    hand[:, 13, 0], hand[:, 13, 1] = 0.15 * thumb, -side * 0.25 * thumb
    hand[:, 14, 1] = -side * 0.45 * thumb
    return hand


def _at(frames: np.ndarray, times: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Sample (T, ...) values planned at `times` (uniform) at the frame times, linearly."""
    position = np.clip(frames * RATE, 0, len(times) - 1)
    low = np.minimum(position.astype(int), len(times) - 2)
    weight = (position - low).reshape(-1, *[1] * (values.ndim - 1))
    return values[low] * (1 - weight) + values[low + 1] * weight
