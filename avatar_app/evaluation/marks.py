"""Where eyes, mouth, head and hands of a posed mesh are, in space and in the picture."""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np

from avatar_app.mesh.body import HEAD, JAW, LEFT_EYE, RIGHT_EYE
from avatar_app.mesh.camera import Camera

HANDS = ([20, *range(25, 40)], [21, *range(40, 55)])  # SMPL-X joints: wrist and fingers, left and right
UPPER_UNITS = ("mouthUpperUpLeft", "mouthUpperUpRight")
LOWER_UNITS = ("mouthLowerDownLeft", "mouthLowerDownRight")
UPPER_LIP, LOWER_LIP, NOSE_BASE = (44, 45, 46), (48, 49, 50), 16  # of the 51 landmarks: the inner lips, from the middle
MOST_POINTS, HEAD_POINTS, HAND_POINTS = 1500, 250, 100  # of the silhouette, the head and each hand
HEAD_AREA = (-1.3, 1.3, -1.0, 2.0)  # left, right, top, bottom in eye distances from the middle between the eyes
MOUTH_AREA = (-0.5, 0.5, -0.45, 0.6)  # likewise, from the middle of the closed mouth


@dataclass(frozen=True)
class Mark:
    """A weighted mean of vertices: index (n,), share (n,) with sum 1."""

    index: np.ndarray
    share: np.ndarray

    @classmethod
    def mean(cls, index: np.ndarray) -> Mark:
        return cls(np.asarray(index), np.full(len(index), 1 / len(index)))

    def __call__(self, vertices: np.ndarray) -> np.ndarray:
        """(V, 3) -> (3,)."""
        return self.share @ vertices[self.index].astype(np.float64)


@dataclass(frozen=True)
class FacePlace:
    """A face in the picture. middle: between the eyes, pixels; along: unit vector to its left eye; size: pixels between
    the eyes when seen from the front."""

    middle: np.ndarray
    along: np.ndarray
    size: float

    def crop(self, frame: np.ndarray, origin: np.ndarray, area: tuple, shape: tuple[int, int]) -> np.ndarray:
        """Upright float32 picture (*shape, 3) of an area around `origin` (2,) px; areas are in eye distances."""
        left, right, top, bottom = (side * self.size for side in area)
        x = (np.arange(shape[1]) + 0.5) / shape[1] * (right - left) + left
        y = (np.arange(shape[0]) + 0.5) / shape[0] * (bottom - top) + top
        columns = origin[0] + x[None] * self.along[0] - y[:, None] * self.along[1] - 0.5
        rows = origin[1] + x[None] * self.along[1] + y[:, None] * self.along[0] - 0.5
        picture = np.empty((*shape, 3), np.float32)
        _interpolate(frame, rows, columns, picture)
        return picture


@numba.njit(nogil=True, cache=True)
def _interpolate(frame, rows, columns, picture):
    """picture (..., 3) = the frame at fractional places, at its rim where they are outside."""
    height, width = frame.shape[:2]
    for place in np.ndindex(rows.shape):
        row, column = min(max(rows[place], 0), height - 1.001), min(max(columns[place], 0), width - 1.001)
        i, j = int(row), int(column)
        u, v = np.float32(row - i), np.float32(column - j)
        for colour in range(3):
            above = frame[i, j, colour] * (1 - v) + frame[i, j + 1, colour] * v
            below = frame[i + 1, j, colour] * (1 - v) + frame[i + 1, j + 1, colour] * v
            picture[place][colour] = above * (1 - u) + below * u


@dataclass(frozen=True)
class InPicture:
    """points: some thousand vertices, (n, 2) pixels. head: whether the whole head is in the picture. hidden: share of
    the worse hand that is not."""

    points: np.ndarray
    head: bool
    hidden: float


class BodyMarks:
    """The marks of one body before one camera; everything is found once, from the rest pose.

    The lips are found by landmarks, or by the face units that move them, or, on a body without either, eyes and
    jaw stand for them; `lips` is None where nothing of it can move.
    """

    def __init__(self, body, camera: Camera):
        self._camera = camera
        weights = body.weights
        self.eyes = [Mark.mean(np.flatnonzero(weights[:, joint] > 0.5)) for joint in (LEFT_EYE, RIGHT_EYE)]
        self.head = Mark.mean(np.concatenate([eye.index for eye in self.eyes]))  # rigid, whatever the face does
        on_head = weights[:, [HEAD, JAW, LEFT_EYE, RIGHT_EYE]].sum(1) > 0.5
        self.hands = [
            Mark.mean(_some(np.flatnonzero(weights[:, joints].sum(1) > 0.5), HAND_POINTS)) for joints in HANDS
        ]
        self.lips = _lips(body)
        silhouette = _some(np.arange(len(body.vertices)), MOST_POINTS)
        watched = [silhouette, _some(np.flatnonzero(on_head), HEAD_POINTS), *(hand.index for hand in self.hands)]
        self._watched, self._ends = np.concatenate(watched), np.cumsum([len(part) for part in watched])[:-1]
        rest = body.vertices
        self.eye_distance = float(np.linalg.norm(self.eyes[0](rest) - self.eyes[1](rest)))
        self._skull = _near_the_mouth(body) or self.head
        mouth = self._skull(rest) if self.lips is None else (self.lips[0](rest) + self.lips[1](rest)) / 2
        self._drop = float((self._skull(rest) - mouth)[1] / self.eye_distance)

    def aperture(self, vertices: np.ndarray) -> float:
        """Distance between the lips in mm; it is not 0 when they are closed."""
        upper, lower = self.lips
        return 1000 * float(np.linalg.norm(upper(vertices) - lower(vertices)))

    def face(self, vertices: np.ndarray) -> FacePlace:
        left, right, *_ = self._camera.project(np.stack([eye(vertices) for eye in self.eyes]))
        across = (left - right)[:2]
        length = max(float(np.linalg.norm(across)), 1e-6)
        size = self._camera.focal * self.eye_distance / max((left[2] + right[2]) / 2, 1e-6)
        return FacePlace((left + right)[:2] / 2, across / length, size)

    def mouth(self, vertices: np.ndarray, place: FacePlace) -> np.ndarray:
        """Where the closed mouth would be in the picture, (2,) pixels: it moves with the skull alone."""
        point = self._camera.project(self._skull(vertices))[:2]
        return point + self._drop * place.size * np.array([-place.along[1], place.along[0]])

    def in_picture(self, vertices: np.ndarray) -> InPicture:
        points = self._camera.project(vertices[self._watched])[:, :2]
        x, y = points.T
        outside = (x < 0) | (x >= self._camera.width) | (y < 0) | (y >= self._camera.height)
        _, head, *hands = np.split(outside, self._ends)
        return InPicture(points[: self._ends[0]], not head.any(), max(float(hand.mean()) for hand in hands))


def _some(index: np.ndarray, most: int) -> np.ndarray:
    """At most about `most` of the indices, evenly."""
    return index[:: max(1, -(-len(index) // most))]


def _part(body, name: str) -> np.ndarray:
    names = list(body.part_names)
    return np.unique(body.faces[body.part == names.index(name)]) if name in names else np.zeros(0, int)


def _lips(body) -> tuple[Mark, Mark] | None:
    if body.landmarks is not None:
        return Mark.mean(body.landmarks[list(UPPER_LIP)]), Mark.mean(body.landmarks[list(LOWER_LIP)])
    names = list(getattr(body, "expression_names", ()))
    if all(unit in names for unit in (*UPPER_UNITS, *LOWER_UNITS)):
        return _moved_most(body, UPPER_UNITS), _moved_most(body, LOWER_UNITS)
    jaw, eyes = (np.flatnonzero(body.weights[:, joints].sum(1) > 0.5) for joints in ([JAW], [LEFT_EYE, RIGHT_EYE]))
    return (Mark.mean(eyes), Mark.mean(jaw)) if len(jaw) else None


def _moved_most(body, units: tuple[str, ...]) -> Mark:
    """The few vertices that face units move most."""
    deltas = body.expression[[body.expression_names.index(unit) for unit in units]]
    share = np.linalg.norm(deltas.astype(np.float64), axis=2).sum(axis=0) ** 4
    chosen = share > 0.01 * share.max()
    return Mark(body.expression_vertices[chosen], share[chosen] / share[chosen].sum())


def _near_the_mouth(body) -> Mark | None:
    """Something beside the mouth that does not move when it does."""
    if len(teeth := _part(body, "teeth_up")):
        return Mark.mean(teeth)
    return None if body.landmarks is None else Mark.mean(body.landmarks[[NOSE_BASE]])
