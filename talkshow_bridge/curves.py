"""Smooth time curves that movement is made of: minimum-jerk key curves, bumps and slow random drift."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.signal import lfilter


def minimum_jerk(u: np.ndarray) -> np.ndarray:
    """0..1 -> 0..1 with zero velocity and acceleration at both ends."""
    u = np.clip(u, 0.0, 1.0)
    return u**3 * (10 - 15 * u + 6 * u * u)


def key_curve(times: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Values (K, D) at rising key times (K,) s, joined by minimum-jerk moves -> (T, D) at `times`."""
    left = np.clip(np.searchsorted(keys, times, side="right") - 1, 0, len(keys) - 1)
    right = np.minimum(left + 1, len(keys) - 1)
    u = minimum_jerk((times - keys[left]) / np.maximum(keys[right] - keys[left], 1e-3))[:, None]
    return values[left] * (1 - u) + values[right] * u


def add_bump(
    track: np.ndarray, times: np.ndarray, peak: float, size: float, rise: float, hold: float, fall: float
) -> None:
    """Add a smooth bump to a (T,) track in place: up to `size` at `peak` (s), held, then back."""
    low, high = np.searchsorted(times, [peak - rise, peak + hold + fall])
    t = times[low:high]
    track[low:high] += size * (minimum_jerk((t - peak + rise) / rise) - minimum_jerk((t - peak - hold) / fall))


def drift(count: int, rate: float, period: float, rng: np.random.Generator, width: int = 1) -> np.ndarray:
    """(count, width) smooth random wandering of unit deviation with correlation time `period` (s), within +-2.5."""
    keep = np.exp(-1 / (rate * period))
    noise = rng.standard_normal((count, width)) * np.sqrt(1 - keep * keep)
    start = rng.standard_normal(width)
    wander, _ = lfilter([1.0], [1.0, -keep], noise, axis=0, zi=(keep * start)[None])
    return np.clip(gaussian_filter1d(wander, 0.3 * period * rate, axis=0) * 1.25, -2.5, 2.5)


def smooth(track: np.ndarray, rate: float, seconds: float) -> np.ndarray:
    """Gaussian smoothing over time (axis 0) with the given standard deviation."""
    return gaussian_filter1d(track, seconds * rate, axis=0, mode="nearest")
