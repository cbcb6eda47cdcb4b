"""What native networks see, and numba kernels for it: one pass over the pixels.

Pictures are (height, width, channels) here, as the rasteriser makes them. The torch code that training differentiates,
`ConditionEncoder.features`, is the reference. All kernels release the GIL.
"""

from typing import NamedTuple

import numba
import numpy as np
from torch import Tensor

from avatar_app.mesh.conditions import INVERSE_DEPTH, NORMAL, PART, UV, surface_normal, surface_uv
from avatar_app.mesh.raster import surface_weights

PART_GROUPS = (("skin",), ("eye_l", "eye_r"), ("teeth_up", "teeth_low", "tongue"), ("clothes",), ("hair",))
PARTS = tuple(name for group in PART_GROUPS for name in group)
OUTLINE = 0.012  # jump of inverse depth in 1/m that makes an outline, about 6 cm at 2.2 m
WHOLE = np.zeros((0, 0, 2), np.float32)  # the place of maps that are the whole picture
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
def condition_features(maps, place, texture, plate, base, out):
    """One frame's features into out (h, w, F), in the order of `ConditionEncoder.features`, and its base (h, w, 3).

    maps (h, w, 10) condition maps. place (h, w, 2): x and y in the whole picture, -1..1, or `WHOLE`.
    texture (th, tw, C), plate (ph, pw, 3) float32.
    """
    height, width = maps.shape[:2]
    whole = place.shape[0] == 0
    normal, last = texture.shape[2], out.shape[2] - 2
    own_plate = whole and plate.shape[0] == height and plate.shape[1] == width
    depth = np.empty((height, width), np.float32)
    for y in range(height):
        for x in range(width):
            depth[y, x] = maps[y, x, INVERSE_DEPTH]
            for k in range(last):
                out[y, x, k] = 0
            out[y, x, last] = (x + 0.5) * 2 / width - 1 if whole else place[y, x, 0]
            out[y, x, last + 1] = (y + 0.5) * 2 / height - 1 if whole else place[y, x, 1]
            part = int(maps[y, x, PART])
            if part > 0:
                for k in range(3):
                    out[y, x, normal + k] = maps[y, x, _NORMAL + k]
                out[y, x, normal + 3 + MASK_OF_PART[part]] = 1
                _sample(texture, maps[y, x, _UV], maps[y, x, _UV + 1], base, out, y, x)
            else:
                if own_plate:
                    for k in range(3):
                        base[y, x, k] = plate[y, x, k]
                else:
                    _sample_border(plate, out[y, x, last], out[y, x, last + 1], base, y, x)
                for k in range(3):
                    out[y, x, k] = base[y, x, k]
    _soften_outlines(depth, base, 0, height, np.empty((height, width), np.bool_), out)


@numba.njit(nogil=True, cache=True)
def draw_features(
    points, normals, face, inverse_depth, faces, face_uv, part, texture, empty, touched, base, coarse, out
):
    """`condition_features` of the maps that `draw_conditions` makes of a `View`, without making them.

    The first four are the view, the next three the body's.
    out (h, w, F) holds the features of an earlier frame that was drawn here, touched (h, w) bool where they differ from
    those of the empty set, empty (h, w, F). base (h, w, 3) holds the empty set's.
    coarse (ceil(h / 4), ceil(w / 4)) becomes 1 where one of the pixels shows the body, else 0.
    """
    height, width = face.shape
    normal, last = texture.shape[2], out.shape[2] - 2
    coarse[:] = 0
    top, bottom = height, -1
    for y in range(height):
        for x in range(width):
            t = face[y, x]
            if t < 0:
                if touched[y, x]:
                    for k in range(last):
                        out[y, x, k] = empty[y, x, k]
                    touched[y, x] = False
                continue
            top, bottom = min(top, y), y
            touched[y, x] = True
            coarse[y >> 2, x >> 2] = 1
            a, b, c = faces[t, 0], faces[t, 1], faces[t, 2]
            w0, w1, w2 = surface_weights(points, a, b, c, x + 0.5, y + 0.5)
            for k in range(normal + 3, last):
                out[y, x, k] = 0
            out[y, x, normal + 3 + MASK_OF_PART[part[t] + 1]] = 1
            nx, ny, nz = surface_normal(normals, a, b, c, w0, w1, w2)
            out[y, x, normal], out[y, x, normal + 1], out[y, x, normal + 2] = nx, ny, nz
            u, v = surface_uv(face_uv, t, w0, w1, w2)
            _sample(texture, u, v, base, out, y, x)
    _soften_outlines(inverse_depth, base, max(top - 1, 0), min(bottom + 2, height), touched, out)


@numba.njit(nogil=True, cache=True)
def _soften_outlines(depth, base, top, bottom, touched, out):
    """Rows top...bottom of the base, smoothed by (1, 2, 1) both ways where depth jumps within 3x3, in base and out.

    touched (h, w) becomes True there."""
    height, width = depth.shape
    low, high = np.empty(width, np.float32), np.empty(width, np.float32)
    jumps = np.zeros((max(bottom - top, 0), width), np.bool_)
    for y in range(top, bottom):
        upper, here, lower = depth[max(y - 1, 0)], depth[y], depth[min(y + 1, height - 1)]
        for x in range(width):
            low[x] = min(min(upper[x], here[x]), lower[x])
            high[x] = max(max(upper[x], here[x]), lower[x])
        for x in range(width):
            left, right = max(x - 1, 0), min(x + 1, width - 1)
            most, least = max(max(high[left], high[x]), high[right]), min(min(low[left], low[x]), low[right])
            if most - least <= np.float32(OUTLINE):
                continue
            jumps[y - top, x] = touched[y, x] = True
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
            if jumps[y - top, x]:
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
    right, bottom = left + 1, top + 1
    w00, w01, w10, w11 = (1 - fy) * (1 - fx), (1 - fy) * fx, fy * (1 - fx), fy * fx
    if left < 0 or top < 0 or right >= width or bottom >= height:
        above, below = 0 <= top < height, 0 <= bottom < height
        before, after = 0 <= left < width, 0 <= right < width
        w00 = w00 if above and before else np.float32(0)
        w01 = w01 if above and after else np.float32(0)
        w10 = w10 if below and before else np.float32(0)
        w11 = w11 if below and after else np.float32(0)
        left, right = min(max(left, 0), width - 1), min(max(right, 0), width - 1)
        top, bottom = min(max(top, 0), height - 1), min(max(bottom, 0), height - 1)
    for k in range(channels):
        value = w00 * texture[top, left, k] + w01 * texture[top, right, k]
        out[y, x, k] = value + w10 * texture[bottom, left, k] + w11 * texture[bottom, right, k]
    for k in range(3):
        base[y, x, k] = out[y, x, k]


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
