"""When and where hands gesture: keys and strokes chosen from the prosody, and the stroke plan drawn from them.

All positions are wrist positions in the chest's axes, in metres from the middle chest joint (spine3), for the left
hand; the right hand mirrors x. Nothing here knows about words: a phrase gets a place in gesture space, a hand shape
and strokes whose ends coincide with syllable nuclei; pauses bring the hands back to rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from talkshow_bridge.curves import minimum_jerk
from talkshow_bridge.errors import InputError
from talkshow_bridge.prosody import Prosody
from talkshow_bridge.skeleton import LEFT, RIGHT

BOX = np.array([[0.115, -0.104, 0.205], [0.31, 0.065, 0.335]])  # where wrists may be: x outward, y, z
# resting wrist and wrist bend: hands loosely before the belly, backs to the viewer
RESTS = {
    "low": ((0.155, -0.096, 0.225), 0.42),
    "near": ((0.145, -0.090, 0.235), 0.48),
    "wide": ((0.185, -0.094, 0.218), 0.30),
}
TOP_SPEED = 0.75  # m/s mean of a move, so that 25 frames a second show steps well under 6 cm
PALMS = {"inward": (-0.9, -0.25, -0.1), "open": (-0.75, 0.5, 0.1), "down": (-0.6, -0.8, 0.0)}
PALM_ODDS = (0.45, 0.35, 0.2)
REST_PALM = (-0.9, -0.3, -0.1)
SHAPE_ODDS = {"open": 0.28, "relaxed": 0.22, "flat": 0.14, "cup": 0.2, "pinch": 0.1, "point": 0.06}
FULL_STROKE = 0.10  # m; a stroke of this length has height 1 in the plan
PLAN_CHANNELS = 4  # left and right stroke pulse 0..1.5, left and right activity 0..1
FADE = 0.4  # s in which a pulse falls after the apex, and in which activity rises and falls


@dataclass(frozen=True)
class Style:
    """How a presenter moves. amplitude scales strokes; rate is the share of phrases that get gestures; two_handed and
    right_handed are shares; nod, sway scale head and torso; gap is the least time between strokes (s); blinks is
    the mean number a minute."""

    amplitude: float
    rate: float
    two_handed: float
    right_handed: float
    nod: float
    sway: float
    gap: tuple[float, float]
    blinks: float


STYLES: dict[str, Style] = {
    "calm": Style(0.82, 0.92, 0.4, 0.62, 1.05, 1.15, (0.62, 1.0), 13.0),
    "neutral": Style(1.0, 0.95, 0.45, 0.6, 1.25, 1.3, (0.5, 0.85), 16.5),
    "lively": Style(1.35, 1.0, 0.6, 0.55, 1.5, 1.5, (0.4, 0.65), 21.0),
}


@dataclass(frozen=True)
class Stroke:
    """One hand's move towards an apex. side: LEFT or RIGHT. begin, end: s. size: m."""

    side: int
    begin: float
    end: float
    size: float


@dataclass
class Track:
    """Keys of one hand: time, position, hand shape by name, palm direction, wrist bend (rad, towards the palm)."""

    times: list[float] = field(default_factory=list)
    places: list[np.ndarray] = field(default_factory=list)
    shapes: list[str] = field(default_factory=list)
    palms: list[Sequence[float]] = field(default_factory=list)
    bends: list[float] = field(default_factory=list)
    away: list[tuple[float, float]] = field(default_factory=list)  # s, intervals in which the hand gestures

    def add(self, time: float, place: np.ndarray, shape: str, palm: Sequence[float], bend: float) -> None:
        """Append a key, no sooner than the hand can get there."""
        place = np.clip(place, *BOX)
        if self.times:
            time = max(time, self.times[-1] + max(0.1, float(np.linalg.norm(place - self.places[-1])) / TOP_SPEED))
        self.times.append(time)
        self.places.append(place)
        self.shapes.append(shape)
        self.palms.append(palm)
        self.bends.append(bend)

    def stay(self, time: float) -> None:
        """Hold the last key until `time`."""
        if time > self.times[-1] + 0.08:
            self.add(time, self.places[-1], self.shapes[-1], self.palms[-1], self.bends[-1])


@dataclass(frozen=True)
class Plan:
    """Keys of both hands by side, and all strokes in time order."""

    tracks: dict[int, Track]
    strokes: list[Stroke]

    def curves(self, count: int, fps: float = 30.0) -> np.ndarray:
        """The stroke plan, (count, 4) float32 at k / fps: left and right pulse, left and right activity.

        A pulse rises on a minimum-jerk curve from 0 at a stroke's begin to its size (1 = 10 cm) at the apex, then
        falls; activity is 1 while the hand is away from rest.
        """
        times = np.arange(count) / fps
        curves = np.zeros((count, PLAN_CHANNELS), np.float32)
        for stroke in self.strokes:
            low, high = np.searchsorted(times, (stroke.begin, stroke.end + FADE))
            t, column = times[low:high], 0 if stroke.side == LEFT else 1
            rise = minimum_jerk((t - stroke.begin) / (stroke.end - stroke.begin))
            pulse = stroke.size / FULL_STROKE * (rise - minimum_jerk((t - stroke.end) / FADE))
            curves[low:high, column] = np.maximum(curves[low:high, column], pulse)
        for column, side in ((2, LEFT), (3, RIGHT)):
            for start, end in self.tracks[side].away:
                low, high = np.searchsorted(times, (start, end))
                t = times[low:high]
                active = np.minimum(minimum_jerk((t - start) / FADE), minimum_jerk((end - t) / FADE))
                curves[low:high, column] = np.maximum(curves[low:high, column], active)
        return curves


def choose_style(style: str | Style) -> Style:
    """The style of that name; InputError when there is none."""
    if isinstance(style, Style):
        return style
    if style not in STYLES:
        raise InputError(f"There is no gesture style '{style}'; choose from {', '.join(STYLES)}.")
    return STYLES[style]


def check_wish(seed: int, energy: float) -> None:
    """InputError unless the seed is a whole number from 0 below 2^63 and the gesture energy within 0..2."""
    if not 0 <= energy <= 2:
        raise InputError(f"Gesture energy goes from 0 to 2, not {energy}.")
    if not isinstance(seed, int | np.integer) or not 0 <= seed < 2**63:
        raise InputError(f"A seed is a whole number from 0 and below 2^63, not {seed!r}.")


def check_sampling(temperature: float, top_p: float, least: float = 0.1) -> None:
    """InputError unless both are in their ranges. least: the smallest top_p; 0 takes the likeliest code alone."""
    if not (0.1 <= temperature <= 2 and least <= top_p <= 1):
        given = f"{temperature} and {top_p}"
        raise InputError(f"Temperature goes from 0.1 to 2 and top_p from {least:g} to 1, not {given}.")


def plan_gestures(prosody: Prosody, style: Style, energy: float, rng: np.random.Generator) -> Plan:
    """Key frames of both hands and their strokes for a whole recording. energy: 0 (hands rest) .. 2."""
    rests = {side: RESTS[name] for side, name in zip((LEFT, RIGHT), _two_rests(rng), strict=True)}
    tracks = {side: Track() for side in (LEFT, RIGHT)}
    for side, track in tracks.items():
        track.add(-1.0, *_rest_key(rests[side], rng))
    strokes: list[Stroke] = []
    for number, (start, end) in enumerate(prosody.phrases):
        inside = np.flatnonzero((prosody.nuclei >= start - 0.05) & (prosody.nuclei <= end))
        gesture = rng.random() < style.rate * min(1.0, 1.5 * energy) or (energy > 0.3 and end - start > 3.0)
        if energy == 0 or not gesture or not len(inside):
            continue
        beats = _choose_beats(prosody, inside, end - start, style, rng)
        sides = _choose_sides(style, rng)
        _idle(tracks, rests, start - 1.5, rng)
        strokes += _gesture_phrase(tracks, sides, beats, prosody, style.amplitude * energy**0.7, rng)
        following = prosody.phrases[number + 1, 0] if number + 1 < len(prosody.phrases) else np.inf
        if following - end > 0.9 or rng.random() < 0.3:
            for side in sides:
                _retract(tracks[side], end + rng.uniform(0, 0.3), rests[side], rng)
    for side, track in tracks.items():
        if np.linalg.norm(track.places[-1] - rests[side][0]) > 0.05:
            _retract(track, track.times[-1] + 0.3, rests[side], rng)
    _idle(tracks, rests, prosody.duration, rng)
    return Plan(tracks, sorted(strokes, key=lambda stroke: stroke.end))


def _rest_key(rest: tuple, rng: np.random.Generator) -> tuple[np.ndarray, str, Sequence[float], float]:
    """A resting place, shape, palm and bend, never quite the same twice."""
    return np.array(rest[0]) + rng.normal(0, 0.014, 3), "relaxed", REST_PALM, rest[1] + rng.normal(0, 0.08)


def _idle(tracks: dict[int, Track], rests: dict[int, tuple], until: float, rng: np.random.Generator) -> None:
    """Small changes of the resting hands, every few seconds, up to `until` (s)."""
    for side, track in tracks.items():
        while track.times[-1] + 6.0 < until:
            track.stay(track.times[-1] + rng.uniform(2.5, 6.0))
            if track.times[-1] + 2.0 < until and _resting(track, rests[side]):
                track.add(track.times[-1] + rng.uniform(0.7, 1.4), *_rest_key(rests[side], rng))


def _resting(track: Track, rest: tuple) -> bool:
    return bool(np.linalg.norm(track.places[-1] - rest[0]) < 0.06)


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
    gap, most = rng.uniform(*style.gap), max(1, int(length * rng.uniform(0.9, 1.5)))
    chosen: list[int] = []
    for nucleus in inside[np.argsort(-(prosody.strength[inside] + rng.normal(0, 1.0, len(inside))))]:
        if all(abs(prosody.nuclei[nucleus] - prosody.nuclei[other]) > gap for other in chosen):
            chosen.append(int(nucleus))
        if len(chosen) >= most:
            break
    return np.array(sorted(chosen))


def _gesture_phrase(
    tracks: dict[int, Track], sides: list[int], beats: np.ndarray, prosody: Prosody, amplitude: float,
    rng: np.random.Generator,
) -> list[Stroke]:  # fmt: skip
    """Add one phrase's strokes to the chosen hands -> those that found their time."""
    centre, shape, palm = _gesture_place(rng)
    strokes = []
    for beat in beats:
        if rng.random() < 0.25:
            centre, shape, palm = 0.5 * (centre + _gesture_place(rng)[0]), _gesture_place(rng)[1], palm
        upwards = rng.uniform(-1, -0.3) if rng.random() < 0.75 else rng.uniform(0.2, 0.7)
        direction = np.array([rng.uniform(-0.2, 0.8), upwards, rng.uniform(-0.1, 0.5)])
        direction /= np.linalg.norm(direction)
        emphasis = 1 + 0.04 * (prosody.strength[beat] + 6)
        size = float(np.clip(amplitude * rng.uniform(0.05, 0.10) * emphasis, 0.025, 0.15))
        seconds = float(np.clip(0.15 + 0.9 * size + rng.normal(0, 0.015), 0.16, 0.3))
        end = prosody.nuclei[beat] - rng.uniform(0.0, 0.05)
        bend = rng.normal(0.05, 0.12)
        for side in sides:
            place = centre + rng.normal(0, 0.012, 3)
            stroke = Stroke(side, end - seconds, end, size)
            if _stroke(tracks[side], stroke, place, direction * size, (shape, palm, bend), rng):
                strokes.append(stroke)
    return strokes


def _gesture_place(rng: np.random.Generator) -> tuple[np.ndarray, str, tuple[float, ...]]:
    """A place in front of the body, a hand shape and a palm direction."""
    place = np.array([rng.uniform(0.14, 0.27), rng.uniform(-0.11, 0.03), rng.uniform(0.235, 0.31)])
    shape = str(rng.choice(list(SHAPE_ODDS), p=list(SHAPE_ODDS.values())))
    return place, shape, PALMS[str(rng.choice(list(PALMS), p=PALM_ODDS))]


def _stroke(
    track: Track, stroke: Stroke, centre: np.ndarray, move: np.ndarray, manner: tuple[str, Sequence[float], float],
    rng: np.random.Generator,
) -> bool:  # fmt: skip
    """Preparation, the stroke, a little recoil and hold. False when the hand is still busy."""
    shape, palm, bend = manner
    before, after = np.clip(centre - move / 2, *BOX), np.clip(centre + move / 2, *BOX)
    distance = float(np.linalg.norm(before - track.places[-1]))
    preparation = max(rng.uniform(0.32, 0.5), distance / TOP_SPEED)
    if track.times[-1] + min(preparation, max(0.12, distance / TOP_SPEED)) > stroke.begin + 0.02:
        return False
    if stroke.begin - track.times[-1] > preparation + 0.1:
        track.stay(stroke.begin - preparation)
    flick = rng.uniform(0.1, 0.3) * np.sign(-move[1])  # the hand trails the wrist
    leave = track.times[-1]
    track.add(stroke.begin, before, shape, palm, bend - flick)
    track.add(stroke.end, after, shape, palm, bend + flick)
    track.add(stroke.end + rng.uniform(0.14, 0.3), after - move * rng.uniform(0.1, 0.3), shape, palm, bend)
    if track.away and track.away[-1][1] >= leave - FADE:
        track.away[-1] = (track.away[-1][0], np.inf)
    else:
        track.away.append((leave, np.inf))
    return True


def _retract(track: Track, time: float, rest: tuple, rng: np.random.Generator) -> None:
    """Back to the resting place, unhurried."""
    track.stay(time)
    place, *manner = _rest_key(rest, rng)
    distance = float(np.linalg.norm(track.places[-1] - place))
    leave = max(time, track.times[-1])
    track.add(leave + max(rng.uniform(0.6, 1.0), distance / 0.35), place, *manner)
    if track.away:
        track.away[-1] = (track.away[-1][0], min(track.away[-1][1], track.times[-1]))
