"""Articulatory controls at 50 Hz -> jaw rotation and ARKit mouth units at the video's frame rate.

The ranges are those that look right on the open body: jaw 0..0.25 rad, units 0..1. A bilabial closure really closes:
the jaw comes up, lips press and roll in. In silence the mouth is shut.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter1d, maximum_filter1d

from talkshow_bridge.features import HOP, SAMPLE_RATE
from talkshow_bridge.lip_net import CONTROL_RATE, CONTROLS
from talkshow_bridge.motion import ARKIT_52

FINE_RATE = 200.0  # Hz at which contacts are resolved, so that none falls between two video frames
JAW_WIDEST = 0.25  # rad
JAW_GAIN = 0.36  # rad per unit of openness above rest
JAW_LAG = 0.02  # s over which the jaw comes up before a closure and goes down after it
PEAK_REACH = 4  # control frames on either side within which the highest value of the control is a closure's peak
SURE = (0.15, 0.30)  # closure control at its peak: from maybe to surely closed
HELD = (0.7, 0.9)  # closure control relative to its peak: from open to closed
MEL_RATE = SAMPLE_RATE / HOP  # Hz
SOFTEST, LOUDEST = 0.3, 1.3  # factors of the openings in the softest and the loudest speech
SOFT = 5.0  # natural log of power (22 dB) below the loud syllables: as soft as speech gets
EFFORT_SMOOTHING = 0.035  # s
SMOOTHING = 0.014  # s, standard deviation of everything but contacts


def mouth(
    controls: np.ndarray, count: int, fps: float, effort: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(T, 16) controls 0..1 -> jaw (count, 3) axis-angle radians and expression (count, 52) ARKit weights.

    effort: (M,) factor of the openings at 100 Hz (see `effort_of`); without it every vowel opens alike.
    """
    values = _at_frames(controls, count, fps)
    if effort is not None and len(effort):
        factor = np.interp(np.arange(count) / fps, np.arange(len(effort)) / MEL_RATE, effort)
        for name in ("jaw", "aperture"):
            values[name] = values[name] * factor
    closed = values["closure"]
    teeth = _step(values["labiodental"], 0.22, 0.65) * (1 - closed)
    speaking = _step(values["speech"], 0.25, 0.6)
    free = speaking * (1 - closed)
    rounding = np.clip(1.2 * np.maximum(values["pucker"], values["funnel"]), 0, 1)
    openness = np.clip(0.5 * values["jaw"] + 0.5 * values["aperture"] - 0.10, 0, 1)
    rising = np.maximum(closed, gaussian_filter1d(closed, JAW_LAG * fps, mode="nearest"))
    jaw = np.zeros((count, 3))
    jaw[:, 0] = np.clip(JAW_GAIN * openness * speaking * (1 - rising) * (1 - 0.75 * teeth), 0, JAW_WIDEST)
    funnel = np.clip(1.1 * values["funnel"] - 0.2 * values["pucker"], 0, 0.8) * speaking
    pucker = np.clip(1.05 * values["pucker"] - 0.45 * values["funnel"], 0, 0.85) * speaking
    unrounded = free * (1 - teeth) * (1 - 0.85 * rounding)  # rounded lips hide the teeth
    spread = np.clip(values["spread"] * (1 - rounding), 0, 1) * speaking * (1 - 0.6 * closed)
    units = {
        "mouthClose": np.clip(2.0 * closed * jaw[:, 0], 0, 0.25),  # what is left of the jaw's opening
        "mouthPress": 0.5 * closed * speaking,
        "mouthRollLower": (0.3 * closed + 0.7 * teeth) * speaking,
        "mouthRollUpper": 0.25 * closed * speaking,
        "mouthFunnel": funnel * (1 - 0.8 * closed) * (1 - 0.7 * teeth),
        "mouthPucker": pucker * (1 - 0.4 * closed) * (1 - 0.6 * teeth),
        "mouthUpperUp": unrounded * (1.1 * values["upper_raise"] + 0.12 * openness) + 0.35 * teeth * speaking,
        "mouthLowerDown": unrounded * (0.75 * np.clip(values["lower_drop"] - 0.05, 0, 1) + 0.35 * spread),
        "mouthShrugLower": 0.12 * teeth * speaking,
        "mouthStretch": 0.45 * spread,
        "mouthSmile": 0.35 * spread,
    }
    return jaw.astype(np.float32), _expression(units, count)


def effort_of(mels: np.ndarray) -> np.ndarray:
    """(M, 40) log-mels -> (M,) how wide the speaker opens the mouth for it: about 1 in loud syllables, less in soft."""
    if not len(mels):
        return np.zeros(0)
    level = np.log(np.exp(mels).sum(axis=1))
    level = np.clip(1 + (level - np.percentile(level, 97)) / SOFT, 0, 1.1)
    return SOFTEST + (LOUDEST - SOFTEST) * gaussian_filter1d(level, EFFORT_SMOOTHING * MEL_RATE, mode="nearest")


def closing(closure: np.ndarray) -> np.ndarray:
    """The net's closure control (T,) 0..1 at 50 Hz -> how far the lips really close, (T,) 0..1.

    Bilabials are events: lips meet around a peak of the control that is sure enough and part where it has fallen below
    that peak. So a short p counts as much as a long m, and the vowel beside it stays open.
    """
    if not len(closure):
        return closure
    peak = maximum_filter1d(closure, 2 * PEAK_REACH + 1, mode="nearest")
    return _step(peak, *SURE) * _step(closure / np.maximum(peak, 1e-6), *HELD)


def _at_frames(controls: np.ndarray, count: int, fps: float) -> dict[str, np.ndarray]:
    """Controls at the frame times: contacts (closures decided) as a frame's strongest moment, all else as its mean."""
    frames = np.arange(count) / fps
    if not len(controls):
        return {name: np.zeros(count) for name in CONTROLS}
    offsets = np.arange(-0.5, 0.5, fps / FINE_RATE) / fps
    times = frames[:, None] + offsets  # (count, samples within the frame)
    known = np.arange(len(controls)) / CONTROL_RATE
    controls = controls.copy()
    controls[:, CONTROLS.index("closure")] = closing(controls[:, CONTROLS.index("closure")])
    smooth = np.exp(-0.5 * (offsets / np.hypot(SMOOTHING, 0.25 / fps)) ** 2)
    values = {}
    for column, name in enumerate(CONTROLS):
        fine = np.interp(times, known, controls[:, column])
        values[name] = fine.max(axis=1) if name in ("closure", "labiodental") else fine @ (smooth / smooth.sum())
    return values


def _expression(units: dict[str, np.ndarray], count: int) -> np.ndarray:
    """Unit curves -> (count, 52); a name without a side fills both sides."""
    expression = np.zeros((count, len(ARKIT_52)), np.float32)
    for name, curve in units.items():
        columns = [k for k, unit in enumerate(ARKIT_52) if unit in (name, f"{name}Left", f"{name}Right")]
        expression[:, columns] = np.clip(curve, 0, 1)[:, None]
    return expression


def _step(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """Smooth 0..1 step between low and high."""
    u = np.clip((x - low) / (high - low), 0, 1)
    return u * u * (3 - 2 * u)
