"""How natural a motion is, in numbers: rhythm, speed, stillness, variety, anatomy and distance from real motion.

Everything is measured at 30 frames a second on the open body's skeleton with the pelvis at rest, so that motions of any
source and frame rate compare.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.linalg import sqrtm
from scipy.signal import find_peaks, savgol_filter

from talkshow_bridge.motion import Motion
from talkshow_bridge.prosody import Prosody
from talkshow_bridge.rig import RELAXED_HANDS
from talkshow_bridge.rig import REST_JOINTS as ALL_REST_JOINTS
from talkshow_bridge.skeleton import JOINTS, REST_JOINTS, forward, index, joint_positions

FPS = 30
WRISTS = [JOINTS.index("left_wrist"), JOINTS.index("right_wrist")]
HEAD, SPINE3 = JOINTS.index("head"), JOINTS.index("spine3")
_UPPER = ("head", "collar", "shoulder", "elbow", "wrist")
UPPER_BODY = [k for k, name in enumerate(JOINTS) if name.split("_")[-1] in _UPPER]
LOWER_BODY = [index(f"{side}_{joint}") for side in ("left", "right") for joint in ("hip", "knee", "ankle", "foot")]
STILL = 0.05  # m/s: a hand below this rests
STRONG = 60  # percentile of strength from which a syllable asks for a stroke
NEAR = 0.08  # s, standard deviation of "at the same time"
BEAT = 0.1  # s, the same for beat consistency, as it is usually computed
TORSO = (0.15, 0.105, 0.04)  # m: half width, half depth and forward shift of the ellipse around the torso's axis
ARM_RADII = np.array([0.045, 0.042, 0.040, 0.036, 0.032, 0.028, 0.025, 0.022])  # m: elbow .. wrist, palm, fingers
# degrees: the largest turn of a joint away from the T-pose that an upright talking person shows
MOST_TURN = {
    "spine1": 30, "spine2": 30, "spine3": 30, "neck": 45, "head": 45, "left_collar": 35, "right_collar": 35,
    "left_elbow": 160, "right_elbow": 160, "left_wrist": 85, "right_wrist": 85,
}  # fmt: skip
STRETCHED = -10  # degrees: an elbow bends the other way no further than this
KNUCKLES = (-45, 115)  # degrees of flexion about a finger's hinge, from the flat hand
BEHIND, ACROSS = 0.75, 0.75  # how far an upper arm (unit vector) points backwards and to the other side
SAME_PLACE = 0.012  # m: two moments show the same arms
TRAVEL = 0.06  # m: a sequence in which the hands move less is rest, not repetition
REPEAT_WITHIN = 120.0  # s
WINDOW, HOP, COMPONENTS = 30, 15, 24  # of the Frechet distance: frames, frames, principal components


@dataclass(frozen=True)
class GestureMetrics:
    """Figures of one motion; nan where they need speech or face units that are not there.

    stroke_z: how much nearer hand strokes end to strong syllables than to the same syllables at other times, in
    standard deviations; shuffled_z: the same with the pauses between syllables shuffled. wrist_mean, wrist_p95,
    head_speed: m/s. jerk: m/s^3. still, still_in_pauses: share of frames with both hands resting, in speech and in
    pauses over 2 s. blinks: per minute. autocorrelation: highest of the wrists' path at lags over 1 s. repeated: s,
    longest sequence of movement seen twice within two minutes. largest_step: m, of a wrist in one frame. limits,
    torso, hands: shares of frames with a joint out of its range, an arm in the torso, arms or hands in each other.
    beats: beat consistency 0..1.
    """

    seconds: float
    stroke_z: float
    shuffled_z: float
    wrist_mean: float
    wrist_p95: float
    jerk: float
    still: float
    still_in_pauses: float
    head_speed: float
    blinks: float
    autocorrelation: float
    repeated: float
    largest_step: float
    limits: float
    torso: float
    hands: float
    beats: float


def measure(motion: Motion, prosody: Prosody | None = None) -> GestureMetrics:
    """All figures of a motion, with the prosody of its speech where there is one."""
    motion = motion.resample(FPS)
    joints, world = forward(motion.body)
    wrists = joints[:, WRISTS]
    speed = wrist_speed(wrists)
    resting = speed.max(axis=1) < STILL
    talking, pausing = _talking(prosody, len(speed))
    return GestureMetrics(
        seconds=motion.duration,
        stroke_z=stroke_z(wrists, prosody),
        shuffled_z=shuffled_z(wrists, prosody),
        wrist_mean=_mean(speed),
        wrist_p95=float(np.percentile(speed, 95)) if len(speed) else np.nan,
        jerk=_mean(np.linalg.norm(np.diff(wrists, 3, axis=0), axis=-1)) * FPS**3,
        still=_mean(resting[talking]),
        still_in_pauses=_mean(resting[pausing]),
        head_speed=_mean(np.linalg.norm(np.diff(joints[:, HEAD], axis=0), axis=-1)) * FPS,
        blinks=blinks_per_minute(motion),
        autocorrelation=autocorrelation(wrists),
        repeated=longest_repeat(wrists),
        largest_step=float(np.linalg.norm(np.diff(wrists, axis=0), axis=-1).max(initial=0)),
        limits=float(out_of_range(motion, world).mean()),
        torso=float((torso_clearance(joints, world) < 1).mean()),
        hands=float((arm_clearance(joints, world) < 0).mean()),
        beats=beat_consistency(wrists, prosody),
    )


# ---- rhythm


def wrist_speed(wrists: np.ndarray) -> np.ndarray:
    """Wrist paths (N, 2, 3) at 30 Hz -> speeds (N - 1, 2) m/s, lightly smoothed."""
    speed = np.linalg.norm(np.diff(wrists, axis=0), axis=-1) * FPS
    return savgol_filter(speed, 7, 2, axis=0) if len(speed) >= 7 else speed


def stroke_ends(wrists: np.ndarray) -> np.ndarray:
    """(S,) s: the moments at which a hand comes to rest after a fast move."""
    speed = np.linalg.norm(np.diff(wrists, axis=0), axis=-1) * FPS
    if len(speed) < 5:
        return np.zeros(0)
    ends = []
    for hand in savgol_filter(speed, 5, 2, axis=0).T:
        stops = find_peaks(-hand)[0]
        for peak in find_peaks(hand, height=0.2, prominence=0.1)[0]:
            ends += list(stops[stops > peak][:1] / FPS)
    return np.array(ends)


def stroke_z(wrists: np.ndarray, prosody: Prosody | None) -> float:
    """z-score of stroke ends against the strongest syllables, compared with circularly shifted speech."""
    strong = _strong_syllables(prosody)
    return np.nan if len(strong) < 3 else _z(stroke_ends(wrists), strong, prosody.duration)


def shuffled_z(wrists: np.ndarray, prosody: Prosody | None, rounds: int = 8) -> float:
    """`stroke_z` against speech that never was: the pauses between strong syllables in random order; mean of rounds."""
    strong, ends = _strong_syllables(prosody), stroke_ends(wrists)
    if len(strong) < 3 or len(ends) < 3:
        return np.nan
    rng = np.random.default_rng(0)
    gaps = np.diff(np.concatenate([[0.0], strong]))
    return float(np.mean([_z(ends, np.cumsum(rng.permutation(gaps)), prosody.duration) for _ in range(rounds)]))


def beat_consistency(wrists: np.ndarray, prosody: Prosody | None) -> float:
    """Mean nearness of syllables to minima of the wrist speed. Syllables are dense, so chance scores highly too."""
    if prosody is None or not len(prosody.nuclei):
        return np.nan
    beats = find_peaks(-wrist_speed(wrists).max(axis=1), prominence=0.03)[0] / FPS
    return _nearness(prosody.nuclei, beats, BEAT) if len(beats) else 0.0


def _strong_syllables(prosody: Prosody | None) -> np.ndarray:
    if prosody is None or not len(prosody.nuclei):
        return np.zeros(0)
    return prosody.nuclei[prosody.strength >= np.percentile(prosody.strength, STRONG)]


def _z(ends: np.ndarray, strong: np.ndarray, duration: float) -> float:
    if len(ends) < 3:
        return np.nan
    shifts = np.linspace(0, duration, 60, endpoint=False)
    near = [_nearness(ends, (strong + shift) % duration, NEAR) for shift in shifts]
    return float((near[0] - np.mean(near[3:-3])) / (np.std(near[3:-3]) + 1e-9))


def _nearness(times: np.ndarray, others: np.ndarray, width: float) -> float:
    """Mean over `times` of a bell of the distance to the nearest of `others`; 1 where they coincide."""
    others = np.sort(others)
    right = np.searchsorted(others, times)
    gaps = [np.abs(times - others[np.clip(k, 0, len(others) - 1)]) for k in (right - 1, right)]
    return float(np.exp(-(np.minimum(*gaps) ** 2) / (2 * width**2)).mean())


def _talking(prosody: Prosody | None, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(count,) frames in phrases, and frames in pauses of more than 2 s (without their first and last half second)."""
    times = np.arange(count) / FPS
    if prosody is None:
        return np.ones(count, bool), np.zeros(count, bool)
    talking, pausing = np.zeros(count, bool), np.zeros(count, bool)
    for start, end in prosody.phrases:
        talking |= (times >= start) & (times <= end)
    edges = [0.0, *prosody.phrases.ravel(), prosody.duration]
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        if end - start > 2.0:
            pausing |= (times >= start + 0.5) & (times <= end - 0.5)
    return talking, pausing


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else np.nan


def blinks_per_minute(motion: Motion) -> float:
    """Lid closures a minute; nan for faces without named units."""
    if motion.expression_space != "arkit52":
        return np.nan
    return 60 * len(find_peaks(motion.unit("eyeBlinkLeft"), height=0.5)[0]) / motion.duration


# ---- variety


def autocorrelation(wrists: np.ndarray) -> float:
    """Highest autocorrelation of the wrists' path at lags from 1 s to half the clip; nan for clips under 2 s."""
    count = len(wrists)
    lags = np.arange(FPS, count // 2)
    if not len(lags):
        return np.nan
    path = wrists.reshape(count, -1) - wrists.reshape(count, -1).mean(axis=0)
    spectrum = np.fft.rfft(path, 2 * count, axis=0)
    products = np.fft.irfft((spectrum * spectrum.conj()).sum(axis=1))[lags]
    energy = np.concatenate([[0.0], np.cumsum(np.sum(path**2, axis=1))])
    overlap = np.sqrt(energy[count - lags] * (energy[-1] - energy[lags]))
    return float((products / np.maximum(overlap, 1e-12)).max())


def longest_repeat(wrists: np.ndarray, within: float = REPEAT_WITHIN) -> float:
    """s, of the longest stretch of movement that comes again, at least 1 s and at most `within` s later.

    Looks at every second frame of the first five minutes; both hands must be within SAME_PLACE of where they were and
    travel at least TRAVEL during the stretch."""
    rate = FPS // 2
    path = wrists[: 300 * FPS : 2]
    longest = 0
    for lag in range(rate, min(int(within * rate), len(path) - 1)):
        apart = np.linalg.norm(path[lag:] - path[:-lag], axis=-1).max(axis=1)
        same = np.concatenate([[0], apart < SAME_PLACE, [0]])
        starts, ends = (np.flatnonzero(np.diff(same) == step) for step in (1, -1))
        for start, end in zip(starts, ends, strict=True):
            if end - start > longest and np.ptp(path[start:end], axis=0).max() > TRAVEL:
                longest = end - start
    return longest / rate


def pairwise_distance(motions: Sequence[Motion]) -> float:
    """m: mean distance of the wrists between takes of the same speech, over all pairs; nan for fewer than two."""
    paths = [joint_positions(motion.body)[:, WRISTS] for motion in motions]
    return float(np.mean([np.linalg.norm(a - b, axis=-1).mean() for a, b in combinations(paths, 2)] or [np.nan]))


# ---- anatomy


def torso_clearance(joints: np.ndarray, world: np.ndarray) -> np.ndarray:
    """(N,) least distance of both forearms from the torso's axis; 1 is the surface of an ellipse round the torso."""
    least = np.full(len(joints), np.inf)
    width, depth, forward_by = TORSO
    for side in ("left", "right"):
        elbow, wrist = (joints[:, JOINTS.index(f"{side}_{part}")] - joints[:, SPINE3] for part in ("elbow", "wrist"))
        for share in np.linspace(0.15, 1, 6):
            point = np.einsum("nji,nj->ni", world[:, SPINE3], elbow * (1 - share) + wrist * share)
            ratio = np.hypot(point[:, 0] / width, (point[:, 2] + REST_JOINTS[SPINE3, 2] - forward_by) / depth)
            least = np.minimum(least, ratio)
    return least


def arm_clearance(joints: np.ndarray, world: np.ndarray) -> np.ndarray:
    """(N,) m between the surfaces of the two forearms and hands, seen as rows of balls; negative: in each other."""
    arms = []
    for number, side in enumerate(("left", "right")):
        elbow, wrist = (joints[:, JOINTS.index(f"{side}_{part}")] for part in ("elbow", "wrist"))
        rest = ALL_REST_JOINTS[WRISTS[number]]
        knuckle, middle = (ALL_REST_JOINTS[28 + 15 * number + k] - rest for k in (0, 1))
        turn = world[:, WRISTS[number]]
        forearm = [elbow * (1 - share) + wrist * share for share in np.linspace(0, 1, 5)]
        arms.append(np.stack([*forearm, *(wrist + turn @ point for point in (0.6 * knuckle, knuckle, middle))], axis=1))
    least = np.full(len(joints), np.inf)
    for ball, radius in zip(np.moveaxis(arms[0], 1, 0), ARM_RADII, strict=True):
        apart = np.linalg.norm(arms[1] - ball[:, None], axis=-1) - ARM_RADII - radius
        least = np.minimum(least, apart.min(axis=1))
    return least


def out_of_range(motion: Motion, world: np.ndarray) -> np.ndarray:
    """(N,) whether any joint of torso, arms or fingers is turned further than people turn it."""
    body = motion.body.astype(np.float64)
    wrong = np.zeros(len(body), bool)
    for name, most in MOST_TURN.items():
        wrong |= np.linalg.norm(body[:, index(name)], axis=-1) > np.deg2rad(most)
    hands = np.stack([motion.left_hand, motion.right_hand], axis=1) + RELAXED_HANDS
    low, high = np.deg2rad(KNUCKLES)
    for number, (side, sign) in enumerate((("left", 1.0), ("right", -1.0))):
        wrong |= body[:, index(f"{side}_elbow"), 1] * -sign < np.deg2rad(STRETCHED)
        upper = JOINTS.index(f"{side}_shoulder")
        direction = np.einsum("nji,nj->ni", world[:, SPINE3], sign * world[:, upper, :, 0])
        wrong |= (direction[:, 2] < -BEHIND) | (direction[:, 0] * sign < -ACROSS)
        flexion = -sign * hands[:, number, :12, 2]
        wrong |= (flexion < low).any(axis=1) | (flexion > high).any(axis=1)
    return wrong


def lower_body_moves(motion: Motion) -> float:
    """rad: the furthest that hips, knees, ankles and feet turn from their mean."""
    legs = motion.body[:, LOWER_BODY]
    return float(np.abs(legs - legs.mean(axis=0)).max())


# ---- distance from real motion


def frechet_distance(motions: Sequence[Motion], reference: Sequence[Motion]) -> float:
    """cm^2: Frechet distance between the movements of two sets of motions; nan for less than half a minute of either.

    Features are 1 s windows of the upper body's joints relative to spine3, less the clip's mean, in the reference's
    first principal components. Advisory: it says how alike two corpora move, not how well either goes with speech."""
    ours, theirs = (_windows(group) for group in (motions, reference))
    if min(len(ours), len(theirs)) < 2 * COMPONENTS:
        return np.nan
    centre = theirs.mean(axis=0)
    basis = np.linalg.svd(theirs - centre, full_matrices=False)[2][:COMPONENTS].T
    a, b = ((group - centre) @ basis for group in (ours, theirs))
    spread_a, spread_b = np.cov(a.T), np.cov(b.T)
    shared = sqrtm(spread_a @ spread_b).real
    return float(np.sum((a.mean(axis=0) - b.mean(axis=0)) ** 2) + np.trace(spread_a + spread_b - 2 * shared))


def _windows(motions: Sequence[Motion]) -> np.ndarray:
    """(windows, WINDOW x joints x 3) in cm."""
    rows = []
    for motion in motions:
        joints, world = forward(motion.resample(FPS).body)
        relative = joints[:, UPPER_BODY] - joints[:, SPINE3, None]
        local = 100 * np.einsum("nba,njb->nja", world[:, SPINE3], relative)
        local = (local - local.mean(axis=0)).reshape(len(local), -1)
        rows += [local[start : start + WINDOW].ravel() for start in range(0, len(local) - WINDOW + 1, HOP)]
    return np.array(rows).reshape(len(rows), -1)
