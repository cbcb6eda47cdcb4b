"""What a presenter does besides gesturing: breathing, swaying, nodding, looking, blinking, raising the brows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from talkshow_bridge.curves import add_bump, drift, key_curve, smooth
from talkshow_bridge.motion import ARKIT_52
from talkshow_bridge.planner import Style
from talkshow_bridge.prosody import Prosody
from talkshow_bridge.skeleton import index

SPINE = [index("spine1"), index("spine2"), index("spine3")]
NECK, HEAD = index("neck"), index("head")
NECK_SHARE = 0.5
LISTENING_AFTER = 1.2  # s of pause after which the presenter listens


@dataclass(frozen=True)
class Presence:
    """Tracks at the planning rate. body: (T, 21, 3) with spine, neck and head set; eyes: (T, 3) axis-angle.

    breath: (T,) -1..1. blink, brow: (T,) 0..1. smile: (T,) 0..~.3.
    """

    body: np.ndarray
    eyes: np.ndarray
    breath: np.ndarray
    blink: np.ndarray
    brow: np.ndarray
    smile: np.ndarray


def hold_presence(
    prosody: Prosody, times: np.ndarray, rate: float, style: Style, energy: float, rng: np.random.Generator
) -> Presence:
    """Torso, head, eyes, lids and brows for uniform `times` at `rate` Hz."""
    count = len(times)
    pauses = _pauses(prosody, times[-1])
    breath = np.sin(
        2 * np.pi * np.cumsum(0.24 + 0.03 * drift(count, rate, 4.0, rng)[:, 0]) / rate + rng.uniform(0, 6.28)
    )
    torso = style.sway * _torso(prosody, times, rate, rng)
    head = _head(prosody, times, rate, style.nod * max(energy, 0.3) ** 0.5, pauses, rng)
    body = np.zeros((count, 21, 3))
    for joint, share in zip(SPINE, (0.4, 0.35, 0.25), strict=True):
        body[:, joint] = share * torso
    body[:, SPINE[2], 0] -= 0.010 * breath
    settled = head - 0.5 * torso  # the head stays with the camera while the torso sways
    settled[:, 0] += 0.008 * breath
    body[:, NECK], body[:, HEAD] = NECK_SHARE * settled, (1 - NECK_SHARE) * settled
    eyes = _gaze(prosody, times, rate, rng)
    eyes[:, :2] -= 0.6 * (settled + torso)[:, :2]
    eyes = np.clip(smooth(eyes, rate, 0.012), [-0.12, -0.26, 0], [0.12, 0.26, 0])
    smile = 0.10 + 0.04 * drift(count, rate, 3.0, rng)[:, 0]
    for start, end in pauses:
        add_bump(smile, times, start + 1.0, 0.10, 0.8, max(0.1, end - start - 1.2), 0.6)
    blink, brow = _blinks(prosody, times, style.blinks, rng), _brows(prosody, times, rng)
    return Presence(body, eyes, breath, blink, brow, np.clip(smile, 0, 0.3))


def _pauses(prosody: Prosody, duration: float) -> list[tuple[float, float]]:
    """(start, end) s of the times in which the presenter listens."""
    edges = [0.0, *prosody.phrases.ravel(), duration]
    return [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if b - a > LISTENING_AFTER]


def _torso(prosody: Prosody, times: np.ndarray, rate: float, rng: np.random.Generator) -> np.ndarray:
    """(T, 3) rotation of the whole torso: slow drift, a new lean at some phrases and now and then in long pauses."""
    lean = 0.042 * drift(len(times), rate, 1.15, rng, 3) * [1.0, 1.0, 0.55]
    keys, values = [-1.0], [np.zeros(3)]
    for start in _shifts(prosody, times[-1], rng):
        if start - 0.2 > keys[-1]:
            keys += [start - 0.2, start + rng.uniform(0.6, 1.2)]
            values += [values[-1], rng.normal(0, [0.03, 0.045, 0.018])]
    return lean + np.clip(key_curve(times, *_rising(keys, values)), -0.08, 0.08)


def _shifts(prosody: Prosody, duration: float, rng: np.random.Generator) -> np.ndarray:
    """Times (s, rising) at which posture changes: half of the phrase starts, and every 5 to 10 s of silence."""
    shifts = [start for start, _ in prosody.phrases if rng.random() < 0.5]
    for start, end in _pauses(prosody, duration):
        shifts += list(np.arange(start + rng.uniform(3, 6), end - 1, rng.uniform(5, 10)))
    return np.sort(shifts)


def _head(
    prosody: Prosody, times: np.ndarray, rate: float, nod: float, pauses: list, rng: np.random.Generator
) -> np.ndarray:
    """(T, 3) head rotation: nods on syllables, a turn per phrase, slow drift, small nods while listening."""
    head = 0.04 * drift(len(times), rate, 0.9, rng, 3) * [0.8, 1.2, 0.8]
    pitch = np.zeros(len(times))
    for beat, nucleus in enumerate(prosody.nuclei):
        strong = np.clip((prosody.strength[beat] + 14) / 14, 0.2, 1.2)
        if rng.random() < 0.42:
            size = nod * rng.uniform(0.03, 0.085) * strong * (1 if rng.random() < 0.85 else -0.6)
            rise = rng.uniform(0.15, 0.22)
            add_bump(pitch, times, nucleus, size, rise, 0.0, 1.6 * rise)
    for start, end in pauses:
        moment = start + rng.uniform(1.0, 2.0)
        while moment < end - 0.6:
            for again in range(rng.integers(1, 3)):
                add_bump(pitch, times, moment + 0.42 * again, rng.uniform(0.03, 0.06), 0.2, 0.0, 0.24)
            moment += rng.uniform(2.8, 6.0)
    keys, values = [-1.0], [np.zeros(3)]
    for start, _ in prosody.phrases:
        if start - 0.15 > keys[-1]:
            turn = rng.normal(0, [0.02, 0.09, 0.03]) if rng.random() < 0.6 else np.zeros(3)
            keys += [start - 0.15, start + rng.uniform(0.3, 0.6)]
            values += [values[-1], np.clip(turn, -0.18, 0.18)]
    head += key_curve(times, *_rising(keys, values))
    head[:, 0] += np.clip(pitch, -0.12, 0.16) + 0.015
    return smooth(head, rate, 0.03)


def _gaze(prosody: Prosody, times: np.ndarray, rate: float, rng: np.random.Generator) -> np.ndarray:
    """(T, 3) where the eyes point relative to the camera: tiny saccades, and glances away around phrase starts."""
    keys, values, now = [-1.0], [np.zeros(3)], 0.0
    while now < times[-1]:
        now += rng.uniform(0.4, 1.6)
        keys += [now, now + 0.035]
        values += [values[-1], rng.normal(0, [0.008, 0.014, 0])]
    gaze = key_curve(times, *_rising(keys, values))
    for start, _ in prosody.phrases:
        if rng.random() < 0.3:
            yaw, pitch = rng.choice([-1, 1]) * rng.uniform(0.06, 0.16), rng.uniform(-0.05, 0.06)
            begin, hold = start - rng.uniform(0.0, 0.3), rng.uniform(0.25, 0.7)
            for axis, size in ((0, pitch), (1, yaw)):
                add_bump(gaze[:, axis], times, begin, size, 0.045, hold, 0.05)
    return gaze


def _blinks(prosody: Prosody, times: np.ndarray, rate: float, rng: np.random.Generator) -> np.ndarray:
    """(T,) lid closure: `rate` a minute at log-normal intervals, drawn towards the ends of phrases."""
    blink, usual = np.zeros(len(times)), 60 / rate
    moment = rng.uniform(0.6, 2.5)
    while moment < times[-1]:
        ends = prosody.phrases[:, 1]
        near = ends[np.abs(ends - moment) < 0.5]
        if len(near) and rng.random() < 0.6:
            moment = float(near[0]) + 0.05
        add_bump(blink, times, moment, 1.0, 0.085, 0.02, 0.17)
        moment += float(np.clip(usual * rng.lognormal(-0.1, 0.45), 0.35 * usual, 2.2 * usual))
    return np.clip(blink, 0, 1)


def _brows(prosody: Prosody, times: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(T,) brow raise on pitch accents and strong syllables."""
    brow = np.zeros(len(times))
    if len(prosody.nuclei):
        loud = np.percentile(prosody.strength, 70)
        for nucleus, strength, accent in zip(prosody.nuclei, prosody.strength, prosody.accent, strict=True):
            if strength >= loud and rng.random() < (0.45 if accent > 1.5 else 0.15):
                add_bump(brow, times, nucleus, rng.uniform(0.35, 0.9), 0.16, rng.uniform(0.05, 0.2), 0.4)
    return np.clip(brow, 0, 1)


def _rising(keys: list[float], values: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Key lists -> arrays whose times strictly rise (a key that would come too early is moved just behind)."""
    times = np.array(keys)
    for k in range(1, len(times)):
        times[k] = max(times[k], times[k - 1] + 1e-3)
    return times, np.array(values)


def add_upper_face(expression: np.ndarray, blink: np.ndarray, brow: np.ndarray, smile: np.ndarray) -> None:
    """Tracks (N,) as `Presence` has them, added in place to mouth weights (N, 52)."""
    smile = smile * (1 - 0.7 * expression[:, ARKIT_52.index("mouthFunnel")])
    tracks = {
        "eyeBlinkLeft": blink, "eyeBlinkRight": blink, "browInnerUp": 0.45 * brow,
        "browOuterUpLeft": 0.5 * brow, "browOuterUpRight": 0.5 * brow,
        "mouthSmileLeft": smile, "mouthSmileRight": smile,
    }  # fmt: skip
    for name, curve in tracks.items():
        expression[:, ARKIT_52.index(name)] += curve
    np.clip(expression, 0, 1, out=expression)
