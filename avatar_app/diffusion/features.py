"""What native networks see, and numba kernels for it and for a frame's last touches: one pass over the pixels.

Pictures are (height, width, channels) here, as the rasteriser makes them. The torch code that training differentiates,
`ConditionEncoder.features`, is the reference. All kernels release the GIL.
"""

from typing import NamedTuple

import numba
import numpy as np
from torch import Tensor

from avatar_app.mesh.conditions import INVERSE_DEPTH, NORMAL, PART, UV

PART_GROUPS = (("skin",), ("eye_l", "eye_r"), ("teeth_up", "teeth_low", "tongue"), ("clothes",), ("hair",))
PARTS = tuple(name for group in PART_GROUPS for name in group)
OUTLINE = 0.012  # jump of inverse depth in 1/m that makes an outline, about 6 cm at 2.2 m
WHOLE = np.zeros((0, 0, 2), np.float32)  # the place of maps that are the whole picture
UNKNOWN = np.zeros((0, 0, 0), np.float32)
MASK_OF_PART = np.array([-1] + [k for k, group in enumerate(PART_GROUPS) for _ in group])
_NORMAL, _UV = NORMAL.start, UV.start


class Condition(NamedTuple):
    """Encoded condition maps of N frames: `latent` (N, c, h, w) for the UNet, `detail` (N, d, H/2, W/2) for the decoder
    and `base` (N, 3, H, W), the plainly textured picture in [-1, 1] that the decoder corrects."""

    latent: Tensor
    detail: Tensor
    base: Tensor

    def dropped(self, where: Tensor | None = None) -> "Condition":
        """What the UNet gets where it shall not know the condition: zeros, for all frames or for those of a mask (N,).
        The decoder keeps its share."""
        kept = 0.0 if where is None else (~where).to(self.latent.dtype).view(-1, 1, 1, 1)
        return self._replace(latent=self.latent * kept)


@numba.njit(nogil=True, cache=True)
def condition_features(maps, place, texture, plate, empty, base, out):
    """One frame's features into out (h, w, F), in the order of `ConditionEncoder.features`, and its base (h, w, 3).

    maps (h, w, 10) condition maps. place (h, w, 2): x and y in the whole picture, -1..1, or `WHOLE`.
    texture (th, tw, C), plate (ph, pw, 3) float32. empty (h, w, F): the features where nobody stands, if known, or
    `UNKNOWN`.
    """
    height, width = maps.shape[:2]
    whole = place.shape[0] == 0
    normal = texture.shape[2]
    masks, last = normal + 3, out.shape[2] - 2
    own_plate = whole and plate.shape[0] == height and plate.shape[1] == width
    depth = np.empty((height, width), np.float32)
    top, bottom = height, -1
    known = empty.shape[0] > 0
    for y in range(height):
        if known:
            out[y] = empty[y]
            base[y] = empty[y, :, :3]
        for x in range(width):
            part = int(maps[y, x, PART])
            depth[y, x] = maps[y, x, INVERSE_DEPTH]
            if part == 0 and known:
                continue
            if not known:
                for k in range(last):
                    out[y, x, k] = 0
                out[y, x, last] = (x + 0.5) * 2 / width - 1 if whole else place[y, x, 0]
                out[y, x, last + 1] = (y + 0.5) * 2 / height - 1 if whole else place[y, x, 1]
            if part > 0:
                top, bottom = min(top, y), max(bottom, y)
                _sample(texture, maps[y, x, _UV], maps[y, x, _UV + 1], base, out, y, x)
                for k in range(3):
                    out[y, x, normal + k] = maps[y, x, _NORMAL + k]
                out[y, x, masks + MASK_OF_PART[part]] = 1
            elif own_plate:
                for k in range(3):
                    base[y, x, k] = plate[y, x, k]
            else:
                _sample_border(plate, out[y, x, last], out[y, x, last + 1], base, y, x)
            for k in range(3):
                out[y, x, k] = base[y, x, k]
    _soften_outlines(depth, base, max(top - 1, 0), min(bottom + 2, height), out)


@numba.njit(nogil=True, cache=True)
def _soften_outlines(depth, base, top, bottom, out):
    """Rows top...bottom of the base, smoothed by (1, 2, 1) both ways where depth jumps within 3x3, in base and out."""
    height, width = depth.shape
    jump = np.empty(width, np.bool_)
    for y in range(top, bottom):
        upper, lower = depth[max(y - 1, 0)], depth[min(y + 1, height - 1)]
        for x in range(width):
            left, right = max(x - 1, 0), min(x + 1, width - 1)
            high = max(upper[left], upper[x], upper[right], lower[left], lower[x], lower[right])
            low = min(upper[left], upper[x], upper[right], lower[left], lower[x], lower[right])
            high = max(high, depth[y, left], depth[y, x], depth[y, right])
            low = min(low, depth[y, left], depth[y, x], depth[y, right])
            jump[x] = high - low > np.float32(OUTLINE)
        for x in range(width):
            if not jump[x]:
                continue
            for k in range(3):
                value = np.float32(0)
                for dy in range(-1, 2):
                    row = min(max(y + dy, 0), height - 1)
                    for dx in range(-1, 2):
                        column = min(max(x + dx, 0), width - 1)
                        value += np.float32((2 - abs(dy)) * (2 - abs(dx)) / 16) * base[row, column, k]
                out[y, x, k] = value
    for y in range(top, bottom):
        for x in range(width):
            for k in range(3):
                base[y, x, k] = out[y, x, k]


@numba.njit(nogil=True, cache=True)
def _sample(texture, u, v, base, out, y, x):
    """Bilinear look-up at texture coordinates, into a pixel of base and out; nothing lies beyond the rim.

    Plain indices here and below: slices of arrays are counted references, which cost more than the arithmetic."""
    height, width, channels = texture.shape
    column, row = u * width - np.float32(0.5), (1 - v) * height - np.float32(0.5)
    left, top = int(np.floor(column)), int(np.floor(row))
    fx, fy = np.float32(column - left), np.float32(row - top)
    for k in range(3):
        base[y, x, k] = 0
    for dy in range(max(0, -top), min(2, height - top)):
        wy = fy if dy else 1 - fy
        for dx in range(max(0, -left), min(2, width - left)):
            weight = wy * (fx if dx else 1 - fx)
            for k in range(3):
                base[y, x, k] += weight * texture[top + dy, left + dx, k]
            for k in range(3, channels):
                out[y, x, k] += weight * texture[top + dy, left + dx, k]


@numba.njit(nogil=True, cache=True)
def _sample_border(plate, place_x, place_y, base, y, x):
    """Bilinear look-up at a place in the picture, -1..1, into a pixel of base; the rim goes on for ever."""
    height, width = plate.shape[:2]
    column = min(max(((place_x + 1) * width - 1) / 2, 0), width - 1)
    row = min(max(((place_y + 1) * height - 1) / 2, 0), height - 1)
    left, top = int(column), int(row)
    right, bottom = min(left + 1, width - 1), min(top + 1, height - 1)
    fx, fy = np.float32(column - left), np.float32(row - top)
    for k in range(3):
        upper = plate[top, left, k] * (1 - fx) + plate[top, right, k] * fx
        lower = plate[bottom, left, k] * (1 - fx) + plate[bottom, right, k] * fx
        base[y, x, k] = upper * (1 - fy) + lower * fy


@numba.njit(nogil=True, cache=True)
def compose(picture, plate, share, whole_levels, out):
    """A generated picture (h, w, 3) in 0..255 over the plate (h, w, 3) into the uint8 frame `out`.

    share (ceil(h / 4), ceil(w / 4)): how much of the picture is seen, enlarged bilinearly; (0, 0) for all of it.
    whole_levels: cut fractions off instead of rounding.
    """
    height, width = out.shape[:2]
    rows, columns = share.shape
    half = np.float32(0.0 if whole_levels else 0.5)
    for y in range(height):
        if rows:
            sy = min(max((y + 0.5) * rows / height - 0.5, 0.0), rows - 1.0)
            upper = int(sy)
            lower, fy = min(upper + 1, rows - 1), np.float32(sy - upper)
        for x in range(width):
            seen = np.float32(1)
            if rows:
                sx = min(max((x + 0.5) * columns / width - 0.5, 0.0), columns - 1.0)
                left = int(sx)
                right, fx = min(left + 1, columns - 1), np.float32(sx - left)
                above = share[upper, left] * (1 - fx) + share[upper, right] * fx
                below = share[lower, left] * (1 - fx) + share[lower, right] * fx
                seen = above * (1 - fy) + below * fy
            for k in range(3):
                value = min(max(picture[y, x, k], np.float32(0)), np.float32(255))
                if rows:
                    value = plate[y, x, k] + seen * (value - plate[y, x, k])
                out[y, x, k] = np.uint8(min(value + half, np.float32(255)))
