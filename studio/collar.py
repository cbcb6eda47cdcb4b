"""A shirt collar and a tie knot, swept around the neck in the rest pose and skinned like the body beneath."""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from avatar_app.mesh.body import Body
from studio import makehuman
from studio.geometry import sample_surface, triangulate

AROUND, DOWN = 61, 7  # points of the leaf around the neck and from the fold to the edge
STAND, LEAF = 0.034, 0.040  # heights in metres
POINT, POINT_WIDTH = 0.034, 0.42  # how much longer the tips are, and over how many radians they taper
EDGE = (0.06, 0.40)  # azimuth in radians of the front edge at the fold and at the tip
KNOT = (0.0175, 0.0105, 0.036)  # half widths at the top and at the bottom, height
CHART = (0.51, 0.462, 0.98, 0.034)  # left, bottom, width, height in the anchor's texture atlas


class Collar:
    """`grids`: name -> rest points (rows, columns, 3), rows downwards; `points` (n, 3) and `weights` (n, 55) of all of
    them, in that order; `quads`: name -> (Q, 4) into `points`."""

    def __init__(self, film_body: Body) -> None:
        self.neck = film_body.joints[12].astype(float)
        self._measure(film_body)
        self.grids = {"stand": self._stand(), "leaf": self._leaf(), "knot": self._knot()}
        self.points = np.concatenate([grid.reshape(-1, 3) for grid in self.grids.values()])
        self.weights = self._weights(film_body)
        quads, start = {}, 0
        for name, grid in self.grids.items():
            rows, columns = grid.shape[:2]
            number = start + np.arange(rows * columns).reshape(rows, columns)
            corner = number[:-1, :-1], number[1:, :-1], number[1:, 1:], number[:-1, 1:]
            quads[name] = np.stack([c.ravel() for c in corner], 1)
            start += rows * columns
        quads["stand"] = quads["stand"][:, ::-1]  # only its inner side is ever seen
        self.quads = quads

    def _measure(self, film_body: Body) -> None:
        """Outer radius of neck, chest and shoulders around the neck's axis: a smooth table (height, azimuth)."""
        rest, weights = film_body.vertices.astype(float), film_body.weights
        quads = makehuman.load_base_mesh().groups["body"][..., 0]
        below_chin = (weights[quads][:, :, [15, 22]].sum(2).mean(1) < 0.5) & (np.abs(rest[quads].mean(1)[:, 0]) < 0.2)
        points = sample_surface(150000, triangulate(quads[below_chin]), rest, np.random.default_rng(3))[2]
        points = points[np.abs(points[:, 1] - self.neck[1] + 0.04) < 0.12]
        throat = points[np.abs(points[:, 0]) < 0.01]
        self.heights = np.linspace(-0.15, 0.07, 45)
        upright = np.abs(throat[:, 1] - self.neck[1]) < 0.03
        self.axis = float((throat[upright, 2].max() + throat[upright, 2].min()) / 2)
        azimuth = np.arctan2(points[:, 0], points[:, 2] - self.axis)
        column = ((azimuth / (2 * np.pi) + 0.5) * 72).astype(int) % 72
        row = np.round((points[:, 1] - self.neck[1] + 0.15) / 0.005).astype(int)
        valid = (row >= 0) & (row < 45)
        table = np.zeros((45, 72))
        radius = np.hypot(points[:, 0], points[:, 2] - self.axis)
        np.maximum.at(table, (row[valid], column[valid]), radius[valid])
        gap = ndimage.distance_transform_edt(table == 0, return_distances=False, return_indices=True)
        self.table = ndimage.gaussian_filter(table[tuple(gap)], (1.2, 1.0), mode=("nearest", "wrap"))

    def _place(self, azimuth: np.ndarray, height: np.ndarray, above: np.ndarray | float) -> np.ndarray:
        """Points `above` metres off the skin at azimuth (0 in front) and height over the neck joint."""
        column = (azimuth / (2 * np.pi) + 0.5) * 72 - 0.5
        row = (height + 0.15) / 0.005
        radius = ndimage.map_coordinates(self.table, [row, column % 72], order=1, mode="grid-wrap") + above
        x, z = radius * np.sin(azimuth), self.axis + radius * np.cos(azimuth)
        return np.stack([x, self.neck[1] + height, z], -1)

    def _fold(self, azimuth: np.ndarray) -> np.ndarray:
        """Height of the collar's upper edge: low at the throat, high at the nape."""
        return -0.002 - 0.037 * np.cos(azimuth) + 0.012 * np.sin(azimuth) ** 2

    def _sweep(self, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Azimuth (rows, AROUND) from the left front edge by the nape to the right one, and how far down (rows, 1)."""
        down = np.linspace(0, 1, rows)[:, None]
        edge = EDGE[0] + (EDGE[1] - EDGE[0]) * down
        return -np.pi - (np.pi - edge) * np.linspace(1, -1, AROUND)[None], down

    def _stand(self) -> np.ndarray:
        azimuth, _ = self._sweep(1)
        azimuth = np.repeat(azimuth, 3, 0)
        down = np.linspace(0, 1, 3)[:, None]
        return self._place(azimuth, self._fold(azimuth) - STAND * down, 0.0055)

    def _leaf(self) -> np.ndarray:
        azimuth, down = self._sweep(DOWN)
        front = np.abs(np.angle(np.exp(1j * azimuth)))
        length = LEAF + POINT * np.exp(-(((front - EDGE[0]) / POINT_WIDTH) ** 2))
        bulge = 0.0080 + 0.0085 * np.sqrt(down) + 0.002 * np.sin(np.pi * down)
        return self._place(azimuth, self._fold(azimuth) - length * down + 0.001, bulge)

    def _knot(self) -> np.ndarray:
        down, across = np.linspace(0, 1, 6)[:, None], np.linspace(-1, 1, 9)[None]
        height = float(self._fold(np.zeros(1))[0]) + 0.001 - KNOT[2] * down + 0 * across
        x = across * (KNOT[0] * (1 - down) + KNOT[1] * down)
        front = self._place(np.zeros_like(height), height, 0.0)[..., 2]
        bulge = 0.009 + 0.0120 * np.sqrt(np.clip(1 - across**2, 0, 1)) * np.sin(np.pi * (0.25 + 0.65 * down)) ** 0.5
        return np.stack([x, self.neck[1] + height, front + bulge - 0.15 * np.abs(x)], -1)

    def _weights(self, film_body: Body) -> np.ndarray:
        tights = makehuman.load_base_mesh().members("helper-tights")
        skin = np.concatenate([makehuman.load_base_mesh().members("body"), tights])
        skin = skin[film_body.weights[skin][:, [15, 22]].sum(1) < 0.5]
        rest = film_body.vertices.astype(float)
        distance, nearest = cKDTree(rest[skin]).query(self.points, k=12)
        share = 1 / (distance + 0.01)
        weights = np.einsum("nk,nkj->nj", share / share.sum(1, keepdims=True), film_body.weights[skin[nearest]])
        smooth, start = [], 0
        for grid in self.grids.values():
            rows, columns = grid.shape[:2]
            part = weights[start : start + rows * columns].reshape(rows, columns, -1)
            smooth.append(ndimage.gaussian_filter(part, (1.5, 3, 0), mode="nearest").reshape(rows * columns, -1))
            start += rows * columns
        weights = np.concatenate(smooth)
        return weights / weights.sum(1, keepdims=True)

    def pose(self, transforms: np.ndarray) -> np.ndarray:
        """`points` under joint transforms (55, 4, 4), rest -> posed."""
        blended = np.einsum("nj,jab->nab", self.weights, transforms)
        return np.einsum("nab,nb->na", blended[:, :3, :3], self.points) + blended[:, :3, 3]

    def shell(self) -> tuple[np.ndarray, np.ndarray]:
        """Triangles (F, 3) into `points` and their texture coordinates (F, 3, 2) in the anchor's atlas."""
        left, bottom, width, height = CHART
        uv, start = np.zeros((len(self.points), 2)), 0
        for k, grid in enumerate(self.grids.values()):
            rows, columns = grid.shape[:2]
            u, v = np.meshgrid(np.linspace(0, 1, columns), np.linspace(1, 0, rows))
            share = (0.0, 0.10, 0.88)[k], (0.08, 0.76, 0.12)[k]
            place = [left + width * 0.5 * (share[0] + share[1] * u), bottom + height * v]
            uv[start : start + rows * columns] = np.stack(place, -1).reshape(-1, 2)
            start += rows * columns
        triangles = np.concatenate([triangulate(quads) for quads in self.quads.values()])
        return triangles, uv[triangles]
