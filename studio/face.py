"""What is drawn on a face: paint on a front projection, brow hairs, lashes, lid lines.  Rest coordinates, no `bpy`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from studio import makehuman
from studio.geometry import quad_normals, sample_surface, triangle_frames
from studio.hair import Scalp
from studio.people import Look

PAINT_SIDE, PAINT_SIZE = 0.24, 1024  # metres, pixels
BROW_RADIUS, LASH_RADIUS, WET_RADIUS = 0.000075, 0.00009, 0.00035
EYES = {"l": 23, "r": 24}


def paint(look: Look, eye: tuple[float, float], mouth_y: float) -> tuple[np.ndarray, tuple[float, float]]:
    """Masks on the front projection: redness, beard, brow base, eye socket -> (S, S, 4) uint8, origin.

    eye: |x| and y of the eyes."""
    eye_x, eye_y = eye
    size, origin = PAINT_SIZE, (-0.12, eye_y - 0.14)
    scale = size / PAINT_SIDE

    def at(x, y):
        return (x - origin[0]) * scale, size - (y - origin[1]) * scale

    def layer(blur, draw_on):
        image = Image.new("L", (size, size))
        draw_on(ImageDraw.Draw(image))
        return np.array(image.filter(ImageFilter.GaussianBlur(blur)))

    def redness(draw):
        for x, y, rx, ry, value in (
            (0.045, eye_y - 0.040, 0.024, 0.017, 160),
            (-0.045, eye_y - 0.040, 0.024, 0.017, 160),
            (0, eye_y - 0.038, 0.013, 0.016, 150),
            (0, mouth_y - 0.035, 0.018, 0.010, 80),
            (0, eye_y + 0.045, 0.040, 0.010, 45),
        ):
            draw.ellipse([*at(x - rx, y + ry), *at(x + rx, y - ry)], fill=value)

    def beard(draw):
        side = [(0.08, eye_y - 0.02), (0.062, eye_y - 0.055), (0.036, mouth_y + 0.012), (0.018, mouth_y + 0.022)]
        outline = [(-x, y) for x, y in side] + side[::-1] + [(0.09, eye_y - 0.14), (-0.09, eye_y - 0.14)]
        draw.polygon([at(x, y) for x, y in outline], fill=200)
        draw.ellipse([*at(-0.027, mouth_y + 0.010), *at(0.027, mouth_y - 0.014)], fill=30)

    def brows(draw):
        for side in (-1, 1):
            draw.line([at(side * x, eye_y + y) for x, y in look.brow], fill=150, width=int(0.0042 * scale))

    def sockets(draw):
        for side in (-1, 1):
            draw.ellipse([*at(side * eye_x - 0.020, eye_y + 0.015), *at(side * eye_x + 0.020, eye_y - 0.016)], fill=110)

    return np.stack([layer(34, redness), layer(20, beard), layer(9, brows), layer(14, sockets)], -1), origin


@dataclass(frozen=True)
class OnSkin:
    """Strands (n, k) stored in the frames of the triangles they grow on, so that they follow every expression."""

    triangle: np.ndarray
    bary: np.ndarray
    offsets: np.ndarray

    def points(self, vertices: np.ndarray) -> np.ndarray:
        """(n, k, 3) for posed vertices of the MakeHuman mesh."""
        origin, frame = triangle_frames(self.triangle, self.bary, vertices)
        return origin[:, None] + np.einsum("nac,nkc->nka", frame, self.offsets)


def brows(scalp: Scalp, look: Look) -> OnSkin:
    """Brow hairs: upright at the nose, lying outwards towards the temple."""
    rng, rest, eye = scalp.rng, scalp.rest, scalp.eye_y
    centre = rest[scalp.triangles].mean(1)
    triangles = scalp.triangles[(centre[:, 2] > 0.04) & (np.abs(centre[:, 1] - eye - 0.02) < 0.022)]
    chosen, bary, root = sample_surface(30000, triangles, rest, rng)
    line, x = np.array(look.brow), np.abs(root[:, 0])
    along = np.clip((x - line[0, 0]) / (line[-1, 0] - line[0, 0]), 0, 1)
    height = np.interp(x, line[:, 0], line[:, 1])
    width = look.brow_half_width * np.interp(along, [0, 0.12, 0.35, 0.7, 1], [0.55, 0.95, 1, 0.62, 0.15])
    width = width * (1 + 0.3 * rng.normal(size=len(along)))
    fade = rng.random(len(along)) < np.interp(along, [0, 0.1, 0.85, 1], [0.35, 1, 1, 0.6])
    inside = (x > line[0, 0]) & (x < line[-1, 0]) & (np.abs(root[:, 1] - eye - height) < width) & fade
    keep = np.where(inside)[0][: look.brow_hairs]
    triangle, bary, root, along = triangles[chosen[keep]], bary[keep], root[keep], along[keep]
    across = eye + height[keep] - root[:, 1]
    outwards = np.sign(root[:, 0]) * (0.35 + 0.65 * along)
    flow = np.stack([outwards, 0.75 * (1 - along) ** 1.5 - 0.2 * along + across * 70, -0.35 * along - 0.05], 1)
    flow += rng.normal(0, 0.10, flow.shape)
    flow /= np.linalg.norm(flow, axis=1, keepdims=True)
    normal = quad_normals(rest, scalp.quads)[triangle[:, 0]]
    length = 0.0062 * (1 - 0.35 * along) * (1 + 0.2 * rng.normal(size=len(along)))
    t = np.linspace(0, 1, 4)
    points = root[:, None] + flow[:, None] * (t[None, :, None] * length[:, None, None])
    points += normal[:, None] * (0.0007 * np.sin(t * 2.2))[None, :, None]
    origin, frame = triangle_frames(triangle, bary, rest)
    return OnSkin(triangle, bary, np.einsum("nac,nka->nkc", frame, points - origin[:, None]))


class Lashes:
    """Lashes across MakeHuman's eyelash strips, and the lines where upper and lower lid end."""

    def __init__(self, scalp: Scalp, eye_centres: dict[str, np.ndarray], look: Look) -> None:
        rng, rest, spans = scalp.rng, scalp.rest, []
        base = makehuman.load_base_mesh()
        self.rims: dict[bool, list[np.ndarray]] = {True: [], False: []}
        for side in EYES:
            for number in (1, 2):
                strip = base.members(f"helper-{side}-eyelashes-{number}")
                distance = np.linalg.norm(rest[strip] - eye_centres[side], axis=1)
                upper = bool(rest[strip, 1].mean() > eye_centres[side][1])
                inner = strip[distance < np.percentile(distance, 45)]
                outer = strip[distance > np.percentile(distance, 70)]
                self.rims[upper].append(inner[np.argsort(rest[inner, 0])])
                for _ in range(130 if upper else 44):
                    first = rng.choice(inner)
                    second = rng.choice(inner[np.argsort(np.linalg.norm(rest[inner] - rest[first], axis=1))[:3]])
                    ends = [outer[np.argmin(np.linalg.norm(rest[outer] - rest[i], axis=1))] for i in (first, second)]
                    length = look.lash_length * (0.75 + 0.35 * rng.random() if upper else 0.35)
                    spans.append((first, second, *ends, rng.random(), length))
        self._index = np.array([span[:4] for span in spans], int)
        self._blend, self._length = (np.array([span[k] for span in spans])[:, None] for k in (4, 5))

    def points(self, vertices: np.ndarray) -> np.ndarray:
        """(n, 4, 3) lashes."""
        a, b, c, d = (vertices[self._index[:, k]] for k in range(4))
        root = a * (1 - self._blend) + b * self._blend
        tip = root + (c * (1 - self._blend) + d * self._blend - root) * self._length
        t = np.linspace(0, 1, 4)[None, :, None]
        return root[:, None] * (1 - t) + tip[:, None] * t

    def rim(self, vertices: np.ndarray, upper: bool) -> np.ndarray:
        """(2, 12, 3): the lid's edge of each eye, from one corner to the other."""
        lines = []
        for index in self.rims[upper]:
            line = vertices[index]
            x = np.linspace(line[0, 0], line[-1, 0], 12)
            lines.append(
                np.stack([x, *(np.interp(x, np.maximum.accumulate(line[:, 0]), line[:, k]) for k in (1, 2))], 1)
            )
        return np.stack(lines)
