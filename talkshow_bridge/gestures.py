"""Procedural co-speech gestures of arms and hands: strokes that land on the strongest syllables.

All positions are wrist positions in the chest's axes, in metres from the middle chest joint (spine3), for the left
hand; the right hand mirrors x. Nothing here knows about words: a phrase gets a place in gesture space, a hand shape
and strokes whose ends coincide with syllable nuclei; pauses bring the hands back to rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from talkshow_bridge.curves import drift, key_curve, minimum_jerk, smooth
from talkshow_bridge.errors import InputError
from talkshow_bridge.presence import Presence, hold_presence
from talkshow_bridge.prosody import Prosody
from talkshow_bridge.skeleton import JOINTS, LEFT, REST_JOINTS, RIGHT, index, reach

RATE = 60.0  # Hz at which movement is planned; any frame rate samples the same movement
CHEST = REST_JOINTS[JOINTS.index("spine3")]
BOX = np.array([[0.120, -0.112, 0.205], [0.31, 0.065, 0.335]])  # where wrists may be: x outward, y, z
RESTS = {"low": (0.15, -0.100, 0.230), "wide": (0.185, -0.098, 0.220), "near": (0.135, -0.100, 0.240)}
TOP_SPEED = 0.75  # m/s mean of a move, so that 25 frames a second show steps well under 6 cm
PALMS = {"inward": (-0.9, -0.25, -0.1), "open": (-0.75, 0.5, 0.1), "down": (-0.6, -0.8, 0.0)}
PALM_ODDS = (0.45, 0.35, 0.2)
REST_PALM = (-0.8, -0.6, 0.0)
# curl of index, middle, ring, pinky, thumb relative to the relaxed hand (rad at the knuckle), and spread 0..1
SHAPES = {
    "relaxed": (0.22, 0.26, 0.30, 0.32, 0.08, 0.2),
    "open": (-0.20, -0.22, -0.20, -0.15, -0.10, 0.9),
    "flat": (-0.25, -0.28, -0.28, -0.25, 0.05, 0.35),
    "cup": (0.22, 0.20, 0.20, 0.20, 0.08, 0.6),
    "pinch": (0.35, 0.15, 0.05, 0.0, 0.25, 0.5),
    "point": (-0.18, 0.42, 0.48, 0.48, 0.15, 0.3),
}
SHAPE_ODDS = {"open": 0.32, "relaxed": 0.2, "flat": 0.14, "cup": 0.18, "pinch": 0.1, "point": 0.06}
FINGERS = ("index", "middle", "pinky", "ring", "thumb")  # SMPL-X order
SPREAD = {"index": 0.12, "middle": 0.03, "pinky": -0.18, "ring": -0.08}


@dataclass(frozen=True)
class Style:
    """How a presenter moves. amplitude scales strokes; rate is the share of phrases that get gestures; two_handed and
    right_handed are shares; nod, sway scale head and torso; gap is the least time between strokes (s)."""

    amplitude: float
    rate: float
    two_handed: float
    right_handed: float
    nod: float
    sway: float
    gap: tuple[float, float]


STYLES: dict[str, Style] = {
    "calm": Style(0.8, 0.65, 0.35, 0.65, 0.75, 0.8, (0.65, 1.0)),
    "neutral": Style(1.0, 0.85, 0.45, 0.6, 1.0, 1.0, (0.5, 0.85)),
    "lively": Style(1.3, 1.0, 0.55, 0.55, 1.2, 1.25, (0.42, 0.7)),
}


@dataclass(frozen=True)
class Gestures:
    """Movement at the frames asked for. body: (N, 21, 3), left_hand, right_hand: (N, 15, 3), eyes: (N, 3) axis-angle.

    blink, brow: (N,) 0..1; smile: (N,) 0..~.3. strokes: (S,) s, the times at which hand strokes end.
    """

    body: np.ndarray
    left_hand: np.ndarray
    right_hand: np.ndarray
    eyes: np.ndarray
    blink: np.ndarray
    brow: np.ndarray
    smile: np.ndarray
    strokes: np.ndarray


@dataclass
class _Track:
    """Keys of one hand: time, position, hand shape, palm direction."""

    times: list[float] = field(default_factory=list)
    places: list[np.ndarray] = field(default_factory=list)
    shapes: list[np.ndarray] = field(default_factory=list)
    palms: list[np.ndarray] = field(default_factory=list)

    def add(self, time: float, place: np.ndarray, shape: str | np.ndarray, palm: Sequence[float]) -> None:
        """Append a key, no sooner than the hand can get there."""
        place = np.clip(place, *BOX)
        if self.times:
            time = max(time, self.times[-1] + max(0.1, float(np.linalg.norm(place - self.places[-1])) / TOP_SPEED))
        self.times.append(time)
        self.places.append(place)
        self.shapes.append(np.array(SHAPES[shape] if isinstance(shape, str) else shape))
        self.palms.append(np.array(palm))

    def stay(self, time: float) -> None:
        """Hold the last key until `time`."""
        if time > self.times[-1] + 0.08:
            self.add(time, self.places[-1], self.shapes[-1], self.palms[-1])


def synthesize(
    prosody: Prosody, count: int, fps: float = 30.0, seed: int = 0, style: str | Style = "neutral", energy: float = 1.0
) -> Gestures:
    """Gestures for `count` frames at `fps`; the same seed always gives the same movement, at any frame rate.

    style: "calm", "neutral" or "lively" (or a Style). energy: 0 (hands rest, a listening presenter) .. 2.
    """
    chosen = _style(style)
    if not 0 <= energy <= 2:
        raise InputError(f"Gesture energy goes from 0 to 2, not {energy}.")
    if not isinstance(seed, int | np.integer) or seed < 0:
        raise InputError(f"A seed is a whole number from 0, not {seed!r}.")
    rng_plan, rng_hands, rng_presence = (np.random.default_rng([seed, k]) for k in range(3))
    times = np.arange(int(np.ceil(count / fps * RATE)) + 2) / RATE
    tracks, strokes = _plan(prosody, chosen, energy, rng_plan)
    presence = hold_presence(prosody, times, RATE, chosen.nod * energy**0.5, chosen.sway, rng_presence)
    frames = np.arange(count) / fps
    body = _at(frames, times, presence.body)
    hands = {}
    for side, name in ((LEFT, "left"), (RIGHT, "right")):
        wrist, shape, palm = _hand_curves(tracks[side], times, presence, rng_hands)
        elbow_hint = np.array([0.28, -1.0, -0.4]) + 0.06 * drift(len(times), RATE, 2.0, rng_hands, 3)
        wobble = 0.05 * drift(len(times), RATE, 0.6, rng_hands, 3)
        mirror = np.array([side, 1, 1])
        wrist, palm, hint, shape, wobble = (_at(frames, times, a) for a in (wrist, palm, elbow_hint, shape, wobble))
        collar = _collar(side, wrist, _at(frames, times, presence.breath[:, None])[:, 0])
        arm = reach(side, (wrist + CHEST * [0, 1, 1]) * mirror, hint * mirror, palm * mirror, collar)
        arm[:, 2] += wobble
        body[:, index(f"{name}_collar")] = collar
        for row, joint in enumerate(("shoulder", "elbow", "wrist")):
            body[:, index(f"{name}_{joint}")] = arm[:, row]
        hands[side] = _fingers(side, shape)
    face = _at(frames, times, np.stack([presence.blink, presence.brow, presence.smile], 1))
    eyes = _at(frames, times, presence.eyes)
    return Gestures(body, hands[LEFT], hands[RIGHT], eyes, face[:, 0], face[:, 1], face[:, 2], np.array(strokes))


def _style(style: str | Style) -> Style:
    if isinstance(style, Style):
        return style
    if style not in STYLES:
        raise InputError(f"There is no gesture style '{style}'; choose from {', '.join(STYLES)}.")
    return STYLES[style]


def _plan(prosody: Prosody, style: Style, energy: float, rng: np.random.Generator) -> tuple[dict[int, _Track], list]:
    """Key frames of both hands and the times at which strokes end."""
    bases = {side: np.array(RESTS[name]) for side, name in zip((LEFT, RIGHT), _two_rests(rng), strict=True)}
    tracks = {side: _Track() for side in (LEFT, RIGHT)}
    for side, track in tracks.items():
        track.add(-1.0, bases[side] + rng.normal(0, 0.012, 3), "relaxed", REST_PALM)
    strokes: list[float] = []
    for number, (start, end) in enumerate(prosody.phrases):
        inside = np.flatnonzero((prosody.nuclei >= start - 0.05) & (prosody.nuclei <= end))
        gesture = rng.random() < style.rate * min(1.0, 1.5 * energy) or (energy > 0.3 and end - start > 3.0)
        if energy == 0 or not gesture or not len(inside):
            continue
        beats = _choose_beats(prosody, inside, end - start, style, rng)
        sides = _choose_sides(style, rng)
        strokes += _gesture_phrase(tracks, sides, beats, prosody, style.amplitude * energy**0.7, rng)
        following = prosody.phrases[number + 1, 0] if number + 1 < len(prosody.phrases) else np.inf
        if following - end > 0.9 or rng.random() < 0.3:
            for side in sides:
                _retract(tracks[side], end + rng.uniform(0, 0.3), bases[side], rng)
    for side, track in tracks.items():
        if np.linalg.norm(track.places[-1] - bases[side]) > 0.05:
            _retract(track, track.times[-1] + 0.3, bases[side], rng)
    return tracks, strokes


def _two_rests(rng: np.random.Generator) -> list[str]:
    """Mostly the same rest for both hands, sometimes one hand elsewhere."""
    first = str(rng.choice(list(RESTS)))
    second = first if rng.random() < 0.7 else str(rng.choice(["low", "wide"]))
    return [first, second]


def _choose_sides(style: Style, rng: np.random.Generator) -> list[int]:
    if rng.random() < style.two_handed:
        return [LEFT, RIGHT]
    return [RIGHT] if rng.random() < style.right_handed else [LEFT]


def _choose_beats(
    prosody: Prosody, inside: np.ndarray, length: float, style: Style, rng: np.random.Generator
) -> np.ndarray:
    """Indices of the phrase's strongest nuclei, far enough apart, in time order."""
    gap, most = rng.uniform(*style.gap), max(1, int(length * rng.uniform(0.8, 1.4)))
    chosen: list[int] = []
    for nucleus in inside[np.argsort(-(prosody.strength[inside] + rng.normal(0, 1.0, len(inside))))]:
        if all(abs(prosody.nuclei[nucleus] - prosody.nuclei[other]) > gap for other in chosen):
            chosen.append(int(nucleus))
        if len(chosen) >= most:
            break
    return np.array(sorted(chosen))


def _gesture_phrase(
    tracks: dict[int, _Track], sides: list[int], beats: np.ndarray, prosody: Prosody, amplitude: float,
    rng: np.random.Generator,
) -> list[float]:  # fmt: skip
    """Add one phrase's strokes to the chosen hands -> the times at which they end."""
    centre, shape, palm = _gesture_place(rng)
    ends = []
    for beat in beats:
        if rng.random() < 0.25:
            centre, shape, palm = 0.5 * (centre + _gesture_place(rng)[0]), _gesture_place(rng)[1], palm
        downward = rng.random() < 0.75
        direction = np.array(
            [
                rng.uniform(-0.2, 0.8),
                rng.uniform(-1, -0.3) if downward else rng.uniform(0.2, 0.7),
                rng.uniform(-0.1, 0.5),
            ]
        )
        direction /= np.linalg.norm(direction)
        emphasis = 1 + 0.04 * (prosody.strength[beat] + 6)
        size = float(np.clip(amplitude * rng.uniform(0.05, 0.10) * emphasis, 0.025, 0.15))
        seconds = float(np.clip(0.15 + 0.9 * size + rng.normal(0, 0.015), 0.16, 0.3))
        end = prosody.nuclei[beat] - rng.uniform(0.0, 0.05)
        for side in sides:
            _stroke(tracks[side], end, seconds, centre + rng.normal(0, 0.01, 3), direction * size, shape, palm, rng)
        ends.append(end)
    return ends


def _gesture_place(rng: np.random.Generator) -> tuple[np.ndarray, str, tuple[float, ...]]:
    """A place in front of the body, a hand shape and a palm direction."""
    place = np.array([rng.uniform(0.14, 0.26), rng.uniform(-0.11, 0.02), rng.uniform(0.235, 0.31)])
    shape = str(rng.choice(list(SHAPE_ODDS), p=list(SHAPE_ODDS.values())))
    return place, shape, PALMS[str(rng.choice(list(PALMS), p=PALM_ODDS))]


def _stroke(
    track: _Track, end: float, seconds: float, centre: np.ndarray, move: np.ndarray, shape: str,
    palm: Sequence[float], rng: np.random.Generator,
) -> None:  # fmt: skip
    """Preparation, stroke that ends at `end`, a little recoil and hold. Skipped when the hand is still busy."""
    before, after = np.clip(centre - move / 2, *BOX), np.clip(centre + move / 2, *BOX)
    begin = end - seconds
    away = float(np.linalg.norm(before - track.places[-1]))
    preparation = max(rng.uniform(0.32, 0.5), away / TOP_SPEED)
    if track.times[-1] + min(preparation, max(0.12, away / TOP_SPEED)) > begin + 0.02:
        return
    if begin - track.times[-1] > preparation + 0.1:
        track.stay(begin - preparation)
    track.add(begin, before, shape, palm)
    track.add(end, after, shape, palm)
    track.add(end + rng.uniform(0.14, 0.3), after - move * rng.uniform(0.1, 0.3), shape, palm)


def _retract(track: _Track, time: float, base: np.ndarray, rng: np.random.Generator) -> None:
    """Back to the resting place, unhurried."""
    track.stay(time)
    away = float(np.linalg.norm(track.places[-1] - base))
    leave = max(time, track.times[-1])
    track.add(leave + max(rng.uniform(0.6, 1.0), away / 0.35), base + rng.normal(0, 0.012, 3), "relaxed", REST_PALM)


def _hand_curves(
    track: _Track, times: np.ndarray, presence: Presence, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keys -> wrist (T, 3), shape (T, 6) and palm (T, 3) curves: arcs, low-passed, never quite still."""
    keys = np.array(track.times)
    wrist = key_curve(times, keys, np.array(track.places)) + _arcs(times, keys, np.array(track.places))
    wrist = smooth(wrist, RATE, 0.03)
    wrist += 0.008 * drift(len(times), RATE, 0.7, rng, 3)
    wrist[:, 1] += 0.004 * presence.breath
    shape = key_curve(times, keys, np.array(track.shapes)) + 0.04 * drift(len(times), RATE, 0.8, rng, 6)
    palm = smooth(key_curve(times, keys, np.array(track.palms)), RATE, 0.05)
    return np.clip(wrist, *BOX), smooth(shape, RATE, 0.04), palm


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
        for joint, share in enumerate((1.0, 1.1, 0.7)):
            hand[:, 3 * row + joint, 2] = -side * share * shape[:, curls[finger]]
        hand[:, 3 * row, 1] = -side * (shape[:, 5] - 0.3) * SPREAD[finger]
    hand[:, 12, 1] = -side * 0.5 * shape[:, 4]
    hand[:, 12, 0] = 0.3 * shape[:, 4]
    hand[:, 13, 1] = hand[:, 14, 1] = -side * 0.4 * shape[:, 4]
    return hand


def _at(frames: np.ndarray, times: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Sample (T, ...) values planned at `times` (uniform) at the frame times, linearly."""
    position = np.clip(frames * RATE, 0, len(times) - 1)
    low = np.minimum(position.astype(int), len(times) - 2)
    weight = (position - low).reshape(-1, *[1] * (values.ndim - 1))
    return values[low] * (1 - weight) + values[low + 1] * weight
