"""What the quality report looks at, frame after frame, in memory that does not grow with the length of the video.

Every observer is a dataclass of small numpy arrays and nothing else: `pack` and `unpack` write and read all of them, so
that a render that is resumed measures what an undisturbed one does.
"""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

LAGS = 12  # frames by which picture and sound may be apart, to both sides
LOWEST, PER_DECADE, DECADES = 1e-3, 40, 8  # bins of a histogram: 6 % wide


def pack(observer: Any) -> dict:
    """The arrays of an observer as JSON."""
    return {
        part.name: [value.dtype.str, list(value.shape), base64.b64encode(value.tobytes()).decode()]
        for part in fields(observer)
        for value in [getattr(observer, part.name)]
    }


def unpack(observer: Any, state: dict) -> None:
    """Give an observer what `pack` wrote. Raises ValueError or KeyError for anything else."""
    for part in fields(observer):
        kind, shape, data = state[part.name]
        own: np.ndarray = getattr(observer, part.name)
        if kind != own.dtype.str or tuple(shape) != own.shape:
            raise ValueError(f"'{part.name}' is of another kind")
        setattr(observer, part.name, np.frombuffer(base64.b64decode(data), own.dtype).reshape(own.shape).copy())


def zeros(*shape: int, dtype: type = np.float64) -> Any:
    return field(default_factory=lambda: np.zeros(shape, dtype))


@dataclass
class Histogram:
    """How often values from LOWEST upwards occurred, in logarithmic bins; smaller ones count as 0."""

    counts: np.ndarray = zeros(PER_DECADE * DECADES + 1, dtype=np.int64)

    def add(self, value: float) -> None:
        place = math.floor(PER_DECADE * math.log10(max(value, LOWEST / 10) / LOWEST)) + 1
        self.counts[min(max(place, 0), len(self.counts) - 1)] += 1

    def quantile(self, share: float) -> float:
        """The value that `share` of all values do not exceed; 0 without values."""
        total = np.cumsum(self.counts)
        place = int(np.searchsorted(total, max(share * total[-1], 1)))
        return 0.0 if place in (0, len(total)) else float(LOWEST * 10 ** ((place - 0.5) / PER_DECADE))


@dataclass
class Correlation:
    """Pearson's correlation of two signals at every lag from -LAGS to LAGS frames; above 0 the first one is late."""

    tails: np.ndarray = zeros(2, LAGS + 1)  # the last values, newest first
    sums: np.ndarray = zeros(6, 2 * LAGS + 1)  # n, x, y, xx, yy, xy
    seen: np.ndarray = zeros(1, dtype=np.int64)

    def add(self, x: float, y: float) -> None:
        """The signals in the next frame."""
        self.tails[:, 1:] = self.tails[:, :-1].copy()
        self.tails[:, 0] = x, y
        self.seen += 1
        now = np.empty_like(self.sums)
        n, a, b, *squares = now
        n[:] = np.abs(np.arange(-LAGS, LAGS + 1)) < self.seen
        a[:LAGS], a[LAGS:] = self.tails[0, :0:-1], x
        b[: LAGS + 1], b[LAGS + 1 :] = y, self.tails[1, 1:]
        a *= n
        b *= n
        for square, one, other in zip(squares, (a, b, a), (a, b, b), strict=True):
            np.multiply(one, other, out=square)
        self.sums += now

    def values(self) -> np.ndarray:
        """(2 * LAGS + 1,) from lag -LAGS to LAGS; 0 where a signal stands still."""
        n, x, y, xx, yy, xy = self.sums
        n = np.maximum(n, 1)
        spread = (xx - x * x / n) * (yy - y * y / n)
        return np.where(spread > 1e-9, (xy - x * y / n) / np.sqrt(np.maximum(spread, 1e-9)), 0.0)

    def best(self) -> tuple[float, float]:
        """(lag in frames, to a tenth or so; correlation there)."""
        values = self.values()
        top = int(values.argmax())
        shift = 0.0
        if 0 < top < len(values) - 1:
            before, at, after = values[top - 1 : top + 2]
            bend = before - 2 * at + after
            shift = 0.5 * (before - after) / bend if bend < 0 else 0.0
        return top - LAGS + shift, float(values[top])
