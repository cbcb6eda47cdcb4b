"""Clothes as offset shells of MakeHuman's tights, cut to shape by masks drawn in the rest pose, and a swept collar.

The scene renders the layers one by one (shirt, tie, jacket, lapel); the anchor's condition mesh gets one merged shell.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from avatar_app.mesh.body import Body
from studio import makehuman
from studio.collar import Collar
from studio.geometry import quad_normals, smoothing_matrix, triangulate

PAD = 0.006  # shoulder pad, metres
MASK_SIZE, MASK_SIDE = 2048, 0.84
SLEEVE_INSIDE = 0.30  # metres of sleeve, from the wrist, that are modelled from within
INSIDE_SPOT = (0.995, 0.745)  # unused place of the texture atlas
LEG_JOINTS, TRUNK_JOINTS = [1, 2, 4, 5, 7, 8, 10, 11], [0, 3, 6, 9, 13, 14, 16, 17, 18, 19]

Polygon = list[tuple[float, float]]
_ALL: list[Polygon] = [[(-0.6, -0.9), (-0.6, 0.3), (0.6, 0.3), (0.6, -0.9)]]


@dataclass(frozen=True)
class Layer:
    """offset: metres above the tights; rounds of smoothing; ((front keep, front cut), (back keep, back cut)): polygons
    in metres from the neck joint, mirrored left and right."""

    offset: float
    smoothing: int
    front: tuple[list[Polygon], list[Polygon]]
    back: tuple[list[Polygon], list[Polygon]]
    sleeve_gap: float = 0.028  # how far before the wrist joint the sleeve ends


@dataclass(frozen=True)
class Cut:
    """layers from the inside outwards; button: where the jacket closes, metres from the neck joint; neckline: below it
    the clothes hide the skin."""

    layers: dict[str, Layer]
    button: float
    neckline: float
    collar: bool


CUTS = {
    "suit": Cut(
        {
            "shirt": Layer(
                0.005, 4,
                (_ALL, [[(0, -0.052), (0.03, -0.040), (0.06, -0.014), (0.085, 0.03), (0.085, 0.4), (0, 0.4)]]),
                (_ALL, [[(0, 0.020), (0.3, 0.020), (0.3, 0.5), (0, 0.5)]]),
                0.006,
            ),
            "tie": Layer(
                0.0085, 1,
                ([[(0, -0.066), (0.0125, -0.066), (0.0150, -0.10), (0.040, -0.45), (0, -0.45)]], []),
                ([], []),
            ),
            "jacket": Layer(
                0.0125, 5,
                (_ALL, [[(0, -0.36), (0.046, -0.08), (0.058, -0.02), (0.064, 0.3), (0, 0.3)],
                        [(0, -0.003), (0.13, -0.003), (0.13, 0.3), (0, 0.3)]]),
                (_ALL, [[(0, -0.004), (0.13, -0.004), (0.13, 0.5), (0, 0.5)]]),
            ),
            "lapel": Layer(
                0.0160, 5,
                ([[(0.001, -0.36), (0.046, -0.08), (0.056, -0.03), (0.061, 0.001), (0.086, -0.003), (0.096, -0.055),
                   (0.118, -0.098), (0.095, -0.112), (0.108, -0.129), (0.058, -0.28)]], []),
                ([[(0, 0.001), (0, -0.036), (0.088, -0.036), (0.088, 0.001)]], []),
            ),
        },
        button=-0.36, neckline=-0.05, collar=True,
    ),
    "blazer": Cut(
        {
            "shirt": Layer(
                0.004, 6,
                (_ALL, [[(0, -0.108), (0.020, -0.106), (0.040, -0.096), (0.056, -0.076), (0.066, -0.048),
                         (0.071, -0.015), (0.075, 0.4), (0, 0.4)]]),
                (_ALL, [[(0, -0.004), (0.3, -0.004), (0.3, 0.5), (0, 0.5)]]),
                0.002,
            ),
            "jacket": Layer(
                0.0105, 6,
                (_ALL, [[(0, -0.345), (0.052, -0.085), (0.066, -0.03), (0.074, 0.3), (0, 0.3)],
                        [(0, -0.012), (0.13, -0.012), (0.13, 0.3), (0, 0.3)]]),
                (_ALL, [[(0, -0.014), (0.13, -0.014), (0.13, 0.5), (0, 0.5)]]),
                0.020,
            ),
            "lapel": Layer(
                0.0138, 6,
                ([[(0.001, -0.345), (0.052, -0.085), (0.064, -0.035), (0.069, -0.008), (0.092, -0.012), (0.100, -0.045),
                   (0.112, -0.10), (0.106, -0.16), (0.080, -0.235), (0.045, -0.30)]], []),
                ([[(0, -0.010), (0, -0.044), (0.094, -0.044), (0.094, -0.010)]], []),
            ),
        },
        button=-0.345, neckline=-0.150, collar=False,
    ),
}  # fmt: skip


class Outfit:
    """Shell geometry and masks of a cut on one body (a `Body` with all 19158 MakeHuman vertices).

    hidden_below: what is further down than this (metres from the neck joint) never shows, a desk stands before them."""

    def __init__(self, film_body: Body, cut: str = "suit", hidden_below: float = -0.75) -> None:
        base = makehuman.load_base_mesh()
        self.cut, self.layers = CUTS[cut], CUTS[cut].layers
        self.rest = film_body.vertices.astype(np.float64)
        self.joints, self.weights = film_body.joints, film_body.weights
        self.neck, self.eye_y = self.joints[12], float(self.joints[23][1])
        self.hidden_below = float(self.neck[1]) + hidden_below
        self.origin = (-0.32, float(self.neck[1]) - 0.66)
        self.side = MASK_SIDE
        self.split_depth = float(self.neck[2]) - 0.004
        wrist = abs(float(self.joints[20][0]))
        self.sleeve_end = {name: wrist - layer.sleeve_gap for name, layer in self.layers.items()}
        self.shirt_sleeve = (
            0.15,
            wrist - 0.07,
        )  # the shirt's arms are left out between these |x|: the jacket hides them
        self.masks = {name: (self._mask(*layer.front), self._mask(*layer.back)) for name, layer in self.layers.items()}

        tights = base.groups["helper-tights"][..., 0]
        centre = self.rest[tights].mean(1)
        tights = tights[(centre[:, 1] > self.joints[1][1] - 0.16) & (np.abs(centre[:, 0]) < wrist + 0.02)]
        self.quads = tights
        self.index, inverse = np.unique(tights, return_inverse=True)
        self.local = inverse.reshape(tights.shape)
        self._smooth = {
            name: smoothing_matrix(self.local, len(self.index), layer.smoothing) for name, layer in self.layers.items()
        }
        points, weights = self.rest[self.index], self.weights[self.index]
        shoulder = np.clip(weights[:, [13, 14, 16, 17]].sum(1), 0, 1) * (points[:, 1] > self.joints[16][1])
        self._pad = shoulder * np.exp(-(((np.abs(points[:, 0]) - 0.14) / 0.05) ** 2))
        # shells hug the neck so that no dark gap opens between collar and skin
        self._hug = 1 - 0.45 * np.clip((points[:, 1] - self.neck[1] + 0.02) / 0.05, 0, 1) * (np.abs(points[:, 0]) < 0.1)
        self.collar = Collar(film_body) if self.cut.collar else None

    def _mask(self, keep: list[Polygon], cut: list[Polygon]) -> np.ndarray:
        image = Image.new("L", (MASK_SIZE, MASK_SIZE))
        draw = ImageDraw.Draw(image)
        scale = MASK_SIZE / MASK_SIDE
        for polygons, value in ((keep, 255), (cut, 0)):
            for polygon in polygons:
                for mirror in (1, -1):
                    at = [(mirror * x - self.origin[0], self.neck[1] + y - self.origin[1]) for x, y in polygon]
                    draw.polygon([(x * scale, MASK_SIZE - y * scale) for x, y in at], fill=value)
        return np.array(image.filter(ImageFilter.GaussianBlur(1.2)))

    def layer_quads(self, name: str) -> np.ndarray:
        """The quads (Q, 4) of the tights on which a layer shows at all (the others would only slow rendering)."""
        scale = MASK_SIZE / MASK_SIDE
        points = self.layer_rest(name)[self.local]
        column = np.clip((points[..., 0] - self.origin[0]) * scale, 0, MASK_SIZE - 1).astype(int)
        row = np.clip(MASK_SIZE - (points[..., 1] - self.origin[1]) * scale, 0, MASK_SIZE - 1).astype(int)
        boxes = zip(row.min(1), row.max(1) + 1, column.min(1), column.max(1) + 1, strict=True)
        front, back = self.masks[name]
        both = np.maximum(front, back)
        shown = np.array([both[top:bottom, left:right].any() for top, bottom, left, right in boxes])
        reach = np.abs(points[..., 0]).min(1)
        shown &= reach < self.sleeve_end[name]
        if name == "shirt":
            shown &= (reach < self.shirt_sleeve[0]) | (np.abs(points[..., 0]).max(1) > self.shirt_sleeve[1])
        return self.quads[shown]

    def covers(self, name: str, points: np.ndarray) -> np.ndarray:
        """Whether a layer exists at rest positions (n, 3)."""
        scale = MASK_SIZE / MASK_SIDE
        column = np.clip((points[:, 0] - self.origin[0]) * scale, 0, MASK_SIZE - 1).astype(int)
        row = np.clip(MASK_SIZE - (points[:, 1] - self.origin[1]) * scale, 0, MASK_SIZE - 1).astype(int)
        front, back = (mask[row, column] > 127 for mask in self.masks[name])
        reach = np.abs(points[:, 0])
        inside = reach < self.sleeve_end[name]
        if name == "shirt":
            inside &= (reach < self.shirt_sleeve[0]) | (reach > self.shirt_sleeve[1])
        return np.where(points[:, 2] > self.split_depth, front, back) & inside

    def layer_rest(self, name: str) -> np.ndarray:
        """Rest positions (n, 3) by which a layer is cut: as smooth as its shape, or its edges would waver."""
        return self._smooth[name] @ self.rest[self.index]

    def layer_shape(self, name: str):
        """Function from posed vertices of the whole tights (n, 3) to the posed shell of one layer."""
        offset, smooth = self.layers[name].offset * self._hug, self._smooth[name]
        lift = np.outer(self._pad * (PAD if name in ("jacket", "lapel") else 0), (0, 1, 0))

        def shape(points: np.ndarray) -> np.ndarray:
            points = smooth @ points
            return points + quad_normals(points, self.local) * offset[:, None] + lift

        return shape

    def visible_skin(self, quads: np.ndarray) -> np.ndarray:
        """Which skin quads (Q, 4) are not surely under the clothes."""
        weights, centre = self.weights[quads], self.rest[quads].mean(1)
        legs = weights[:, :, LEG_JOINTS].sum(2).mean(1) > 0.2
        trunk = weights[:, :, TRUNK_JOINTS].sum(2).mean(1) > 0.97
        low = centre[:, 1] < self.neck[1] + self.cut.neckline
        under = centre[:, 1] < self.hidden_below
        return ~(legs | under | (trunk & low & (np.abs(centre[:, 0]) < abs(self.joints[20][0]) - 0.035)))

    def shell_rest(self) -> np.ndarray:
        """The merged shell's rest vertices (2n, 3), each as far out as its outermost layer, and once more for the
        inside, which has normals of its own."""
        points = self.rest[self.index]
        shell = self.layer_shape("shirt")(points)
        for name in self.layers:
            inside = self.covers(name, self.layer_rest(name))
            shell[inside] = self.layer_shape(name)(points)[inside]
        return np.concatenate([shell, shell])

    def shell_faces(self) -> tuple[np.ndarray, np.ndarray]:
        """Triangles (F, 3) into the shell's vertices and their texture coordinates (F, 3, 2) in the atlas.

        The ends of the sleeves have an inside too, which is seen past the wrist and takes its own dark spot."""
        points = self.rest[self.index]
        triangles = triangulate(self.local)
        centre = points[triangles].mean(1)
        layers = ("shirt", "jacket", "lapel")
        shown = np.any([self.covers(name, self.layer_rest(name)[triangles].mean(1)) for name in layers], axis=0)
        triangles = triangles[shown & (centre[:, 1] > self.hidden_below)]
        facing = points[triangles].mean(1)[:, 2] > self.split_depth
        chart = clothes_chart(points[triangles], facing, float(self.neck[1]))
        reach = np.abs(points[triangles].mean(1)[:, 0])
        inside = triangles[reach > abs(float(self.joints[20][0])) - SLEEVE_INSIDE][:, ::-1] + len(points)
        return np.concatenate([triangles, inside]), np.concatenate([chart, np.full((len(inside), 3, 2), INSIDE_SPOT)])


def clothes_chart(points: np.ndarray, front: np.ndarray, neck_y: float) -> np.ndarray:
    """Rest positions (F, 3, 3) -> (F, 3, 2): front chart below v = .5, back up to .75, more texels at the chest.

    Above v = .46 of the front chart no clothes are left: the collar takes that strip."""
    x = np.abs(points[..., 0])
    spread = np.where(x < 0.24, x / 0.24 * 0.7, 0.7 + (x - 0.24) / 0.48 * 0.3).clip(0, 1)
    u = 0.75 + 0.25 * np.sign(points[..., 0]) * spread
    v = ((points[..., 1] - neck_y + 0.62) / 0.72).clip(0, 1)
    return np.stack([u, np.where(front[:, None], 0.5 * v, 0.5 + 0.25 * v)], -1)
