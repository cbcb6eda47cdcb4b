"""Hair as strands over the skull, in rest coordinates: where it grows, how it is combed, and the hull that a rig ships.

Two styles: a short side part, and a chin-long bob.  Both follow the head rigidly.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from avatar_app.mesh.body import Body
from studio import makehuman
from studio.geometry import quad_normals, sample_surface, triangulate

VOXEL = 0.006  # metres, of the hull
SOLID = 1.8  # where hair counts as solid, in medians of its density
HEAD, JAW = 15, 22


class Scalp:
    """The head that hair grows on; `film_body` has all 19158 MakeHuman vertices."""

    def __init__(self, film_body: Body, seed: int = 1) -> None:
        self.rng = np.random.default_rng(seed)
        self.rest = film_body.vertices.astype(np.float64)
        self.quads = makehuman.load_base_mesh().groups["body"][..., 0]
        skin, weights = np.unique(self.quads), film_body.weights
        self.head = skin[weights[skin][:, [HEAD, JAW]].sum(1) > 0.7]
        self.eye_y = float(film_body.joints[23][1])
        self.width = np.abs(self.rest[self.head, 0]).max()
        self.centre = np.array([0, self.eye_y + 0.025, self.rest[self.head, 2].mean() * 0.5])
        self.triangles = triangulate(self.quads[weights[self.quads][:, :, HEAD].mean(1) > 0.6])

    @cached_property
    def _skull(self) -> tuple[cKDTree, np.ndarray, np.ndarray]:
        points = sample_surface(60000, self.triangles, self.rest, self.rng)[2]
        normals = quad_normals(self.rest, self.quads)[self.head][cKDTree(self.rest[self.head]).query(points)[1]]
        return cKDTree(points), points, normals

    def height(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Metres above the skin (n,) and the skin's normal there (n, 3)."""
        tree, skull, normals = self._skull
        nearest = tree.query(points)[1]
        return ((points - skull[nearest]) * normals[nearest]).sum(1), normals[nearest]

    def hairline(self, points: np.ndarray) -> np.ndarray:
        """Metres above (positive) or below the hairline."""
        x, y, z = points[:, 0], points[:, 1], points[:, 2]
        front, back = self.rest[self.head, 2].max() - 0.025, self.rest[self.head, 2].min()
        depth = (z - back) / (front - back)
        knots = [-0.01, 0.25, 0.42, 0.55, 0.66, 0.76, 0.86, 1.05]
        line = np.interp(depth, knots, [-0.085, -0.07, -0.05, -0.018, 0.008, 0.040, 0.058, 0.066])
        temple = 0.009 * np.exp(-(((np.abs(x) - 0.046) / 0.014) ** 2)) * (depth > 0.7)
        peak = -0.003 * np.exp(-((x / 0.016) ** 2)) * (depth > 0.7)
        ripple = 0.0012 * np.sin(x * 190 + 1) * (depth > 0.7)
        return y - self.eye_y - line - temple - peak - ripple

    def on_ear(self, points: np.ndarray) -> np.ndarray:
        beside = np.abs(points[:, 0]) > self.width - 0.0135
        return beside & (np.abs(points[:, 1] - self.eye_y + 0.012) < 0.038) & (points[:, 2] < 0.085)

    def shade(self) -> np.ndarray:
        """How much of the hair's colour the skin under it takes, 0..1 per vertex."""
        shade = np.zeros(len(self.rest))
        points = self.rest[self.head]
        shade[self.head] = np.where(self.on_ear(points), 0, np.clip(self.hairline(points) / 0.012 + 0.3, 0, 1))
        return shade

    def roots(self, count: int) -> np.ndarray:
        """(count, 3) places above a softly ragged hairline."""
        centre = self.rest[self.triangles].mean(1)
        outer = np.linalg.norm(centre - self.centre, axis=1) > 0.06
        hairy = (self.hairline(centre) > -0.012) & ~self.on_ear(centre) & outer & (centre[:, 1] > self.eye_y - 0.1)
        root = sample_surface(count * 3, self.triangles[hairy], self.rest, self.rng)[2]
        above = self.hairline(root)
        density = np.clip((above + 0.002) / 0.010, 0, 1)  # thins out towards the hairline
        return root[(above + self.rng.normal(0, 0.002, len(root)) > 0) & (self.rng.random(len(root)) < density)][:count]


def grow(scalp: Scalp, style: str) -> np.ndarray:
    """Strands (n, k, 3) of one of the styles, metres, rest coordinates."""
    return {"side part": _side_part, "bob": _bob}[style](scalp)


def _noise(scalp: Scalp, root: np.ndarray, per_clump: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit noise (n, 3) shared by neighbours and of each strand's own."""
    rng = scalp.rng
    clump = cKDTree(root[rng.choice(len(root), len(root) // per_clump)]).query(root)[1]
    return rng.normal(0, 1, (len(root), 3))[clump], rng.normal(0, 1, (len(root), 3))


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)


def _side_part(scalp: Scalp, count: int = 9000, steps: int = 9) -> np.ndarray:
    """Short at the sides and the nape, longer on top, parted on the presenter's left and brushed over and back."""
    root = scalp.roots(count)
    clumped, own = _noise(scalp, root, 24)
    x = root[:, 0]
    top = np.clip((root[:, 1] - (scalp.eye_y + 0.052)) / 0.028, 0, 1)
    front = np.clip((root[:, 2] - 0.05) / 0.08, 0, 1)
    top = np.maximum(top, np.clip((front - 0.7) / 0.15, 0, 1) * (root[:, 1] > scalp.eye_y + 0.045))
    across = np.tanh((0.036 - x) / 0.006)  # +1 on the wide side of the parting, -1 beyond it
    swept = np.stack([-0.62 * across - 0.1 * front, 0.25 * front, -0.75 + 0.25 * front], 1)
    down = np.stack([0 * x, 0 * x - 1, -0.50 - 0.25 * (root[:, 2] > 0.03)], 1)
    direction = _unit(swept * top[:, None] + down * (1 - top[:, None]) + 0.13 * clumped + 0.06 * own)
    length = 0.007 + 0.040 * top + 0.012 * front * top
    length *= np.clip(1 + 0.10 * own[:, 0] + 0.12 * clumped[:, 0], 0.6, 1.5)
    wide = np.clip((0.036 - x) / 0.02, 0, 1)
    lift = 0.0016 + top * (0.0055 + 0.0075 * front * wide + 0.003 * wide) * (1 + 0.18 * clumped[:, 1])

    points = np.zeros((len(root), steps, 3))
    current, normal = root.copy(), scalp.height(root)[1]
    points[:, 0] = root - normal * 0.0008
    for step in range(1, steps):
        share = step / (steps - 1)
        current = current + direction * (length / (steps - 1))[:, None]
        height, normal = scalp.height(current)
        arch = np.sin(np.pi * min(1.0, 0.14 + 0.70 * share))
        current = current + normal * (lift * arch - height)[:, None]
        direction = _unit(direction - normal * (direction * normal).sum(1)[:, None] * 0.8)
        points[:, step] = current + (0.0008 * own + 0.0016 * clumped) * share
    return points


def _bob(scalp: Scalp, count: int = 10500, steps: int = 20) -> np.ndarray:
    """Chin-long, parted on the presenter's left, tucked under at the tips; it leaves the face free."""
    eye, part = scalp.eye_y, 0.026
    root = scalp.roots(3 * count)
    upper = np.clip((root[:, 1] - eye - 0.03) / 0.05, 0, 1)
    near_part = upper * np.exp(-(((root[:, 0] - part) / 0.014) ** 2)) * (root[:, 2] > 0.02)
    root = root[scalp.rng.random(len(root)) < 0.28 + 0.72 * near_part]
    clumped, own = _noise(scalp, root, 40)
    loose = scalp.rng.random(len(root))
    centre = np.array([0, eye + 0.030, scalp.rest[scalp.head, 2].mean() * 0.55])
    low, high = scalp.rest[scalp.head].min(0), scalp.rest[scalp.head].max(0)
    forehead = scalp.rest[scalp.head][scalp.rest[scalp.head, 1] > eye + 0.05, 2].max()
    radius = np.array([scalp.width + 0.004, high[1] - centre[1] + 0.013, forehead + 0.013 - centre[2]])
    behind = centre[2] - low[2] + 0.018
    side = np.where(root[:, 0] > part + 0.006 * own[:, 0], 1.0, -1.0)  # some cross the parting
    layer = 1 - 0.17 * loose**1.5 + 0.012 * clumped[:, 0]
    tip = eye - 0.106 + 0.006 * own[:, 1] + 0.004 * clumped[:, 1] - 0.02 * (1 - layer)

    def around(point):
        """Nearness to the outer surface of the hair: 1 on it; a dome above, a curtain below."""
        q = point - centre
        drop = np.clip(-q[:, 1], 0, None)
        bell = np.interp(drop, [0, 0.05, 0.09, 0.12, 0.14, 0.16], [1, 1.005, 0.99, 0.955, 0.91, 0.84])
        depth = np.where(q[:, 2] > 0, radius[2], behind)
        return np.sqrt(
            (q[:, 0] / (radius[0] * bell)) ** 2
            + (np.clip(q[:, 1], 0, None) / radius[1]) ** 2
            + (q[:, 2] / (depth * bell)) ** 2
        )

    def free_face(point):
        """Turn strands that hang before the face outwards."""
        q = point - centre
        angle, reach = np.arctan2(q[:, 0], q[:, 2]), np.hypot(q[:, 0], q[:, 2])
        limit = np.interp(point[:, 1] - eye, [-0.13, -0.06, -0.01, 0.025, 0.055, 0.078], [60, 65, 64, 52, 26, 0])
        limit = np.radians(limit * (1 + 0.42 * loose) + 1.8 * clumped[:, 2] + 1.0 * own[:, 2])
        turned = np.where((limit > 0) & (np.abs(angle) < 1.75), side * np.maximum(side * angle, limit), angle)
        turned = angle + np.clip(turned - angle, -0.22, 0.22)
        return np.stack([centre[0] + reach * np.sin(turned), point[:, 1], centre[2] + reach * np.cos(turned)], 1)

    back = np.clip((0.045 - root[:, 2]) / 0.06, 0, 1)
    aside = side * (1 - back) + back * np.clip(root[:, 0] / 0.05, -1, 1)
    forward = 0.3 * (root[:, 2] > 0.1)
    direction = _unit(np.stack([aside, 0.12 + 0 * side, forward - 0.35 - 0.6 * back], 1) + 0.06 * clumped)
    over = (1 - back) * np.clip(scalp.width - np.abs(root[:, 0]), 0, None) + back * np.clip(
        root[:, 2] - low[2], 0, None
    )
    length = (np.clip(root[:, 1] - tip, 0.01, None) + 1.0 * over) * (1.25 + 0.02 * own[:, 0])
    points = np.zeros((len(root), steps, 3))
    points[:, 0] = root - scalp.height(root)[1] * 0.001
    current, ended = root.copy(), np.zeros(len(root), bool)
    for step in range(1, steps):
        share = step / (steps - 1)
        direction = _unit(direction + np.array([0, -0.24, 0]))
        moved = current + direction * (length / (steps - 1))[:, None]
        pull = np.clip(share * 3.0, 0, 1) * 0.65
        scale = 1 + (layer / np.maximum(around(moved), 0.2) - 1) * pull
        above = moved[:, 1] > centre[1]
        moved = free_face(centre + (moved - centre) * np.stack([scale, np.where(above, scale, 1), scale], 1))
        height, normal = scalp.height(moved)
        moved = moved + normal * np.clip(0.004 * min(1.0, 3 * share) - height, 0, 0.05)[:, None]
        direction = _unit(0.5 * direction + 0.5 * _unit(moved - current))
        ended |= moved[:, 1] < tip
        current = np.where(ended[:, None], current + 0.0004 * direction, moved)
        points[:, step] = current + (0.0005 * own + 0.0013 * clumped) * share
    step_length = np.linalg.norm(np.diff(points, axis=1), axis=2).max(1)
    return points[ended & (step_length < 0.06)]


def hull(scalp: Scalp, strands: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A mesh around the hair: vertices (n, 3) and outward triangles (m, 3), without what lies inside the head."""
    from skimage.measure import marching_cubes

    low = strands.reshape(-1, 3).min(0) - 5 * VOXEL
    shape = np.ceil((strands.reshape(-1, 3).max(0) + 5 * VOXEL - low) / VOXEL).astype(int)
    fine = np.linspace(0, 1, 4, endpoint=False)[None, None, :, None]
    points = (strands[:, :-1, None] * (1 - fine) + strands[:, 1:, None] * fine).reshape(-1, 3)
    cell = ((points - low) / VOXEL).astype(int)
    density = np.zeros(shape)
    np.add.at(density, tuple(cell.T), np.linalg.norm(np.diff(strands, axis=1), axis=2).repeat(4) / 4)
    density = ndimage.gaussian_filter(density / VOXEL, 0.6)
    hair = np.clip(density / (SOLID * np.median(density[density > 0.5])), 0, 1)

    middle = low + (np.indices(shape).reshape(3, -1).T + 0.5) * VOXEL
    inside = (scalp.height(middle)[0] < -0.002).reshape(shape)
    inside &= (np.abs(middle[:, 0]) < scalp.width).reshape(shape)
    inside &= (middle[:, 1] > scalp.eye_y - 0.10).reshape(shape)
    solid = ndimage.gaussian_filter(np.maximum(hair, inside.astype(float)), 0.7)
    vertices, faces, _, _ = marching_cubes(solid, 0.5)
    place = low + (vertices + 0.5) * VOXEL
    hairy = ndimage.map_coordinates(ndimage.maximum_filter(hair, 3), vertices.T, order=0) > 0.4
    above = scalp.height(place)[0] > -0.001
    keep = (hairy & above)[faces].all(1)
    used, compact = np.unique(faces[keep], return_inverse=True)
    return place[used], compact.reshape(-1, 3)[:, ::-1]  # marching cubes winds them inwards
