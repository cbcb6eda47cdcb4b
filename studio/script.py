"""Scripted presenter motion: random but natural visemes, blinks, gaze, head, arms and hands, for filming an anchor.

    python -m studio.script scripted|performed SECONDS SEED OUT.npz

It covers more than speech ever asks for (every mouth shape at every head pose), because an image model must not meet a
new pose on air.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter1d

from talkshow_bridge.audio import load_speech
from talkshow_bridge.motion import ARKIT_52, Motion

SAMPLES = Path(__file__).resolve().parent.parent / "samples"

BODY_JOINTS = [
    "left_hip",
    "right_hip",
    "spine1",
    "left_knee",
    "right_knee",
    "spine2",
    "left_ankle",
    "right_ankle",
    "spine3",
    "left_foot",
    "right_foot",
    "neck",
    "left_collar",
    "right_collar",
    "head",
    "left_shoulder",
    "right_shoulder",
    "left_elbow",
    "right_elbow",
    "left_wrist",
    "right_wrist",
]
# viseme -> jaw opening (rad) and mouth units; "_" stands for both sides
VISEMES: dict[str, tuple[float, dict[str, float]]] = {
    "rest": (0.0, {}),
    "aa": (0.20, {"mouthLowerDown_": 0.30, "mouthUpperUp_": 0.25}),
    "eh": (0.13, {"mouthLowerDown_": 0.35, "mouthUpperUp_": 0.30, "mouthStretch_": 0.2}),
    "ee": (0.07, {"mouthLowerDown_": 0.45, "mouthUpperUp_": 0.35, "mouthSmile_": 0.45, "mouthStretch_": 0.4}),
    "oh": (0.12, {"mouthFunnel": 0.75, "mouthPucker": 0.2}),
    "oo": (0.04, {"mouthPucker": 0.9, "mouthFunnel": 0.2}),
    "mm": (0.0, {"mouthPress_": 0.6, "mouthRollLower": 0.35, "mouthRollUpper": 0.3, "mouthClose": 0.1}),
    "ff": (0.04, {"mouthRollLower": 0.7, "mouthUpperUp_": 0.35}),
    "th": (0.08, {"mouthLowerDown_": 0.3, "mouthUpperUp_": 0.25, "tongueOut": 0.25}),
    "ch": (0.05, {"mouthFunnel": 0.5, "mouthLowerDown_": 0.3, "mouthUpperUp_": 0.3}),
    "ss": (0.03, {"mouthLowerDown_": 0.35, "mouthUpperUp_": 0.25, "mouthStretch_": 0.25}),
}


def scripted_motion(count: int, seed: int, fps: float = 30.0) -> Motion:
    """`count` frames of continuous motion; the same seed gives the same motion."""
    rng = np.random.default_rng(seed)
    body = _body(count, rng, fps)
    gaze, blink = _gaze(count, rng, fps, body["head"]), _blinks(count, rng, fps)
    jaw, units = _mouth(count, rng, fps)
    for name, value in _brows(count, rng, fps).items():
        units[name] = units.get(name, 0) + value
    units["eyeBlink_"] = blink
    hands = [_hand(count, rng, fps, side) for side in (-1, 1)]
    zero = np.zeros((count, 3), np.float32)
    return Motion(
        fps=fps,
        jaw=np.stack([jaw, 0.02 * _wander(count, rng, 0.4, fps)[:, 0] * (jaw > 0.02), 0 * jaw], 1).astype(np.float32),
        leye=gaze,
        reye=gaze,
        global_orient=zero,
        body=np.stack([body.get(name, zero) for name in BODY_JOINTS], 1).astype(np.float32),
        left_hand=hands[0],
        right_hand=hands[1],
        expression=unit_array(units, count),
        transl=zero,
        meta={"generator": "studio.script", "seed": seed},
    )


def unit_array(units: dict[str, np.ndarray | float], count: int) -> np.ndarray:
    """Named units (a trailing "_" means left and right) -> (count, 52) float32, clipped to 0..1.2."""
    values = np.zeros((count, len(ARKIT_52)), np.float32)
    for name, value in units.items():
        for full in (name[:-1] + "Left", name[:-1] + "Right") if name.endswith("_") else (name,):
            values[:, ARKIT_52.index(full)] += value
    return values.clip(0, 1.2)


def _wander(count, rng, seconds, fps, channels=1, limit=2.2) -> np.ndarray:
    """Smooth noise of unit variance, correlation about `seconds`."""
    noise = gaussian_filter1d(rng.normal(size=(count + 400, channels)), seconds * fps, axis=0)[200:-200]
    return np.clip(noise / noise.std(0), -limit, limit)


def _holds(count, rng, seconds, fps, channels, transition=0.25) -> np.ndarray:
    """Piecewise poses in 0..1: held about `seconds`, then moved on smoothly, as gestures are."""
    track, at, pose = np.zeros((count, channels)), 0, rng.random(channels)
    while at < count:
        length = int(fps * seconds * (0.4 + 1.2 * rng.random())) + 1
        track[at : at + length] = pose
        at += length
        pose = rng.random(channels) if rng.random() < 0.85 else 0.1 * rng.random(channels)
    return gaussian_filter1d(track, transition * fps, axis=0)


def _body(count, rng, fps) -> dict[str, np.ndarray]:
    pose: dict[str, np.ndarray] = {}
    for side, sign in (("left", 1), ("right", -1)):
        k, j = _holds(count, rng, 1.0, fps, 7), 0.02 * _wander(count, rng, 0.25, fps, 8)
        swing = np.array([1, sign, sign])
        pose[f"{side}_shoulder"] = np.stack(
            [0.05 + 0.35 * k[:, 0] + j[:, 0], -0.05 - 0.50 * k[:, 1] + j[:, 1], -1.26 + 0.32 * k[:, 2] + j[:, 2]], 1
        )
        pose[f"{side}_shoulder"] *= swing
        elbow = np.stack([-0.65 + 0.65 * k[:, 3], -1.35 - 0.75 * k[:, 4], 0.2 + 2 * j[:, 3]], 1)
        pose[f"{side}_elbow"] = (elbow + j[:, 4:5]) * swing
        wrist = np.stack([0.5 * (k[:, 5] - 0.5) + 5 * j[:, 5], 0.4 * (k[:, 6] - 0.5) + 5 * j[:, 6], 6 * j[:, 7]], 1)
        pose[f"{side}_wrist"] = wrist * swing
        pose[f"{side}_collar"] = np.outer(-0.10 + 0.08 * k[:, 2], (0, 0, sign))
    quick, slow = _wander(count, rng, 0.35, fps, 3), _wander(count, rng, 1.2, fps, 3)
    pose["head"] = [0.02, 0, 0] + quick * [0.05, 0.07, 0.03] + slow * [0.04, 0.11, 0.03]
    pose["neck"] = 0.5 * pose["head"]
    sway = _wander(count, rng, 1.5, fps, 3)
    pose["spine1"] = sway * [0.01, 0.02, 0.01]
    pose["spine2"] = sway * [0.02, 0.05, 0.02]
    pose["spine3"] = _wander(count, rng, 0.8, fps, 3) * [0.015, 0.03, 0.015]
    return pose


def _hand(count, rng, fps, sign) -> np.ndarray:
    """(count, 15, 3) fingers: common curl, pointing, spread; sign -1 left, 1 right."""
    hold, own = _holds(count, rng, 0.8, fps, 3, 0.18), 0.08 * _wander(count, rng, 0.3, fps, 5)
    pose = np.zeros((count, 15, 3), np.float32)
    curl, point = -0.30 + 0.85 * hold[:, 0], 2 * np.clip(hold[:, 1] - 0.6, 0, 1)
    for finger, spread in enumerate((0.12, 0.03, -0.18, -0.08)):
        bend = (curl + own[:, finger]) * (1 - point if finger == 0 else 1) + (0.5 * point if finger else 0)
        for joint, share in enumerate((1, 1.1, 0.7)):
            pose[:, 3 * finger + joint, 2] = sign * share * bend
        pose[:, 3 * finger, 1] = sign * (hold[:, 2] - 0.3) * spread
    pose[:, 12] = 0.12 * _wander(count, rng, 0.4, fps, 3)
    pose[:, 13, 1] = sign * 0.3 * np.clip(curl, 0, 1)
    return pose


def _mouth(count, rng, fps) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Visemes of 60 to 200 ms with random strength, sometimes two at once, some silence."""
    names = sorted({unit for _, units in VISEMES.values() for unit in units})
    tracks = {name: np.zeros(count) for name in ("jaw", *names)}
    keys, at = list(VISEMES), 0
    while at < count:
        length = max(2, round(fps * rng.uniform(0.06, 0.2)))
        first, second = (keys[rng.integers(1, len(keys))] for _ in range(2))
        blend = rng.uniform(0.3, 0.7) if rng.random() < 0.3 else 1.0
        if rng.random() < 0.08:
            first, blend, length = "rest", 1.0, int(fps * rng.uniform(0.3, 0.8))
        for viseme, share in ((first, blend), (second, 1 - blend)):
            gain = share * rng.uniform(0.5, 1.25)
            jaw, units = VISEMES[viseme]
            tracks["jaw"][at : at + length] += jaw * gain
            for name, value in units.items():
                tracks[name][at : at + length] += value * gain
        at += length
    tracks = {name: gaussian_filter1d(track, 0.035 * fps) for name, track in tracks.items()}
    smile = np.clip(0.15 + 0.15 * _wander(count, rng, 1.0, fps)[:, 0], 0, 0.5)
    tracks["mouthSmile_"] = tracks["mouthSmile_"] + smile
    return tracks.pop("jaw"), tracks


def _blinks(count, rng, fps) -> np.ndarray:
    closed, at = np.zeros(count), int(rng.integers(20, 60))
    while at < count:
        closed[at] = 1
        at += int(fps * rng.uniform(0.8, 3.0))
    return np.clip(np.convolve(closed, [0.3, 0.85, 1, 0.75, 0.45, 0.2], "same"), 0, 1)


def _gaze(count, rng, fps, head) -> np.ndarray:
    """Eyes look near the camera, jump now and then, and hold it against the head's turn."""
    jumps = gaussian_filter1d(_holds(count, rng, 0.9, fps, 2, 0.01) - 0.5, 0.8, axis=0)
    gaze = jumps * [0.16, 0.5] - 0.5 * 1.5 * head[:, :2]
    return np.concatenate([gaze, np.zeros((count, 1))], 1).astype(np.float32)


def _brows(count, rng, fps) -> dict[str, np.ndarray]:
    up = np.clip(0.5 * _wander(count, rng, 0.5, fps)[:, 0], 0, 1)
    down = np.clip(0.4 * _wander(count, rng, 0.6, fps)[:, 0], 0, 1)
    squint = np.clip(0.3 * _wander(count, rng, 0.8, fps)[:, 0], 0, 0.6)
    return {
        "browInnerUp": 0.6 * up,
        "browOuterUp_": 0.6 * up,
        "browDown_": 0.5 * down,
        "eyeSquint_": squint,
        "cheekSquint_": 0.5 * squint,
    }


def performed_motion(seconds: float, seed: int, fps: float = 30.0) -> Motion:
    """What an anchor meets on air: the bundled motion model over the speech samples (all styles, from listening to
    lively), half of the time with the scripted mouth and gaze, which show more than speech does."""
    from talkshow_bridge.generator import MotionGenerator

    rng, generator = np.random.default_rng(seed), MotionGenerator.from_pretrained()
    samples = [load_speech(path) for path in sorted(SAMPLES.glob("*.opus"))]
    parts, total = [], 0
    while total < seconds * fps:
        speech, style = samples[rng.integers(len(samples))], generator.styles[rng.integers(len(generator.styles))]
        energy = 0.0 if rng.random() < 0.1 else float(rng.uniform(0.5, 1.8))
        play = generator.generate(speech, int(rng.integers(1 << 30)), style, energy, fps)
        face = scripted_motion(len(play), int(rng.integers(1 << 30)), fps)
        if rng.random() < 0.5:
            play = replace(play, jaw=face.jaw, expression=face.expression, leye=face.leye, reye=face.reye)
        parts.append(replace(play, meta={"generator": "studio.script", "seed": seed}))
        total += len(play)
    return Motion.concatenate(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("scripted", "performed"))
    parser.add_argument("seconds", type=float)
    parser.add_argument("seed", type=int)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    if arguments.kind == "scripted":
        motion = scripted_motion(round(arguments.seconds * 30), arguments.seed)
    else:
        motion = performed_motion(arguments.seconds, arguments.seed)
    motion.save(arguments.out)


if __name__ == "__main__":
    main()
