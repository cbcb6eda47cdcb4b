"""Painted pictures -> finished frames: levels, and the still background where the person is not.

The kernels pass over the pixels once and release the GIL.
"""

import numba
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from avatar_app.mesh.conditions import PART
from avatar_app.stages import each

NO_PLATE, NO_SHARE = np.zeros((0, 0, 3), np.float32), np.zeros((0, 0), np.float32)
CELL = 4  # pixels along a side of what a share of a plate tells about


def to_bytes_range(picture: Tensor) -> Tensor:
    """[-1, 1] -> float32 0..255, clamped."""
    return (picture.float() / 2 + 0.5).clamp(0, 1) * 255


def to_frames(pictures: Tensor) -> np.ndarray:
    """Pictures (n, 3, height, width) in 0..255 -> uint8 frames (n, height, width, 3), cutting off fractions."""
    return pictures.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def composed(
    pictures: Tensor, plate: np.ndarray = NO_PLATE, shares: np.ndarray | None = None, truncates: bool = False
) -> np.ndarray:
    """Pictures (n, 3, height, width) in 0..255 -> uint8 frames, over a plate as far as the shares of `compose` say."""
    if shares is None:
        return to_frames(pictures if truncates else pictures.round())
    pictures = pictures.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    frames = np.empty(pictures.shape, np.uint8)
    each(lambda *one: compose(one[0], plate, one[1], truncates, one[2]), pictures, shares, frames)
    return frames


def person_mask(chunk: np.ndarray) -> np.ndarray:
    """Condition chunk -> uint8 (n, height, width), 1 where the body is."""
    mask = chunk[..., PART] > 0 if chunk.shape[-1] > 3 else chunk.any(axis=-1)
    return mask.astype(np.uint8)


def soft_surroundings(mask: Tensor) -> Tensor:
    """Person mask (n, height, width) -> share of the generated picture (n, 1, height, width) in [0, 1].

    1 on the body and a margin of about 4 % of the height around it (hair, cloth, shadows), then fading to 0.
    """
    return functional.interpolate(coarse_surroundings(mask)[:, None], size=mask.shape[1:], mode="bilinear")


def coarse_surroundings(mask: Tensor) -> Tensor:
    """`soft_surroundings` at a quarter of the size along each side, (n, ceil(height / 4), ceil(width / 4))."""
    coarse = functional.max_pool2d(mask[:, None].float(), CELL, ceil_mode=True)
    coarse = coarse[:, 0].contiguous().numpy()
    for one in coarse:
        spread(one, mask.shape[1])
    return torch.from_numpy(coarse)


def spread(coarse: np.ndarray, height: int) -> None:
    """A coarse mask (rows, columns) float32 of a picture `height` pixels high becomes its `coarse_surroundings`."""
    margin = max(1, round(0.04 * height / CELL))
    fade = max(1, margin // 2)
    reach = margin + 2 * fade
    for lines in (coarse, coarse.T):
        _widen(lines, reach)
    for lines in (coarse, coarse.T) * 2:
        _smooth(lines, fade)


@numba.njit(nogil=True, cache=True)
def _widen(lines, reach):
    """Each value of each line becomes the largest within `reach` places."""
    rows, columns = lines.shape
    line = np.empty(columns, lines.dtype)
    for row in range(rows):
        line[:] = lines[row]
        for x in range(columns):
            largest = line[x]
            for k in range(max(x - reach, 0), min(x + reach + 1, columns)):
                largest = max(largest, line[k])
            lines[row, x] = largest


@numba.njit(nogil=True, cache=True)
def _smooth(lines, reach):
    """Each value of each line becomes the mean within `reach` places; the ends go on for ever."""
    rows, columns = lines.shape
    line = np.empty(columns, lines.dtype)
    for row in range(rows):
        line[:] = lines[row]
        for x in range(columns):
            total = np.float32(0)
            for k in range(x - reach, x + reach + 1):
                total += line[min(max(k, 0), columns - 1)]
            lines[row, x] = total / np.float32(2 * reach + 1)


@numba.njit(nogil=True, cache=True)
def compose(picture, plate, share, whole_levels, out):
    """A generated picture (h, w, 3) in 0..255 over the plate (h, w, 3), or `NO_PLATE`, into the uint8 frame `out`.

    share (ceil(h / 4), ceil(w / 4)): how much of the picture is seen, enlarged bilinearly; `NO_SHARE` for all of it.
    whole_levels: cut fractions off instead of rounding.
    """
    height, width = out.shape[:2]
    wide, levels = _widened(share, width), np.empty(3 * width, np.float32)
    half = np.float32(0.0 if whole_levels else 0.5)
    for y in range(height):
        for x in range(width):
            for k in range(3):
                levels[3 * x + k] = picture[y, x, k]
        _lay(levels, plate, wide, half, out, y)


@numba.njit(nogil=True, cache=True)
def compose_corrected(correction, base, plate, share, out):
    """`compose` of base (h, w, 3) plus correction, in [-1, 1].

    correction (h / 2, w / 2, 12): red, green and blue of the upper left, upper right, lower left, lower right pixel.
    """
    height, width = out.shape[:2]
    wide, levels = _widened(share, width), np.empty(3 * width, np.float32)
    for y in range(height):
        row, first = y >> 1, 6 * (y & 1)
        for x in range(0, width, 2):
            for k in range(6):
                value = base[y, x + (k > 2), k - 3 * (k > 2)] + correction[row, x >> 1, first + k]
                levels[3 * x + k] = (value * np.float32(0.5) + np.float32(0.5)) * np.float32(255)
        _lay(levels, plate, wide, np.float32(0.5), out, y)


@numba.njit(nogil=True, cache=True)
def _widened(share, width):
    """Shares (rows, columns) enlarged linearly along the rows, each three times: (rows, 3 * width)."""
    rows, columns = share.shape
    wide = np.empty((rows, 3 * width), np.float32)
    for x in range(width if rows else 0):
        place = min(max((x + 0.5) * columns / width - 0.5, 0.0), columns - 1.0)
        left = int(place)
        right, part = min(left + 1, columns - 1), np.float32(place - left)
        for row in range(rows):
            seen = share[row, left] * (1 - part) + share[row, right] * part
            for k in range(3):
                wide[row, 3 * x + k] = seen
    return wide


@numba.njit(nogil=True, cache=True)
def _lay(levels, plate, wide, half, out, y):
    """Row y of the frame `out`: levels (3 * width,), clamped, over the plate as far as the widened shares say."""
    height, width = out.shape[:2]
    rows = len(wide)
    if rows:
        place = min(max((y + 0.5) * rows / height - 0.5, 0.0), rows - 1.0)
        upper = int(place)
        part = np.float32(place - upper)
        above, below = wide[upper], wide[min(upper + 1, rows - 1)]
        for x in range(width):
            for k in range(3):
                i = 3 * x + k
                under, seen = plate[y, x, k], above[i] * (1 - part) + below[i] * part
                levels[i] = under + seen * (min(max(levels[i], np.float32(0)), np.float32(255)) - under)
    for x in range(width):
        for k in range(3):
            level = min(max(levels[3 * x + k], np.float32(0)), np.float32(255))
            out[y, x, k] = np.uint8(min(level + half, np.float32(255)))
