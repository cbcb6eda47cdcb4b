"""How far face, hands and clothes of a made picture lie from where the true picture has them.

Where a point of the body is in the true picture is known exactly: the posed mesh says it. In the made picture it is
looked for: the small patch of the true picture around the point is moved over the made one until both agree best. Only
points that are seen and have structure in both directions are measured; the others could lie anywhere.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import map_coordinates

from avatar_app.mesh.body import HEAD, JAW, LEFT_EYE, RIGHT_EYE
from avatar_app.mesh.camera import Camera
from avatar_app.mesh.conditions import INVERSE_DEPTH, render_conditions

GROUPS = {"face": 60, "hands": 60, "clothes": 60}  # points looked for
PATCH, REACH = 7, 4  # pixels: half a patch's side, how far a patch is moved
STRUCTURE = 8.0  # least mean squared slope (0..255 per pixel) of a patch in its flattest direction
ALIKE = 0.6  # least correlation of a patch that counts as found
SEEN = 0.02  # 1/m by which a point may lie behind the surface that the camera sees


def measured_points(body) -> dict[str, np.ndarray]:
    """Vertices (n,) of each of GROUPS, spread evenly over it."""
    part_of = np.full(len(body.vertices), -1)
    part_of[body.faces.ravel()] = np.repeat(body.part, 3)
    names = np.array([*body.part_names, ""])[part_of]
    share = {"face": [HEAD, JAW, LEFT_EYE, RIGHT_EYE], "hands": [20, 21, *range(25, 55)]}
    member = {group: body.weights[:, joints].sum(1) > 0.5 for group, joints in share.items()}
    member["face"] &= np.isin(names, ("skin", "lips", "eye_l", "eye_r", "eye_left", "eye_right")) & (
        body.vertices[:, 2] > np.median(body.vertices[member["face"], 2])
    )
    member["hands"] &= names == "skin"
    member["clothes"] = names == "clothes"
    return {group: spread_points(body.vertices, np.flatnonzero(member[group]), GROUPS[group]) for group in GROUPS}


def spread_points(vertices: np.ndarray, among: np.ndarray, count: int) -> np.ndarray:
    """`count` of the vertices `among`, each as far as possible from those before."""
    if len(among) <= count:
        return among
    points, chosen = vertices[among], [0]
    nearest = np.full(len(among), np.inf)
    for _ in range(count - 1):
        nearest = np.minimum(nearest, ((points - points[chosen[-1]]) ** 2).sum(1))
        chosen.append(int(nearest.argmax()))
    return among[chosen]


def landmark_distance(body, camera: Camera, vertices: np.ndarray, truth: np.ndarray, made: np.ndarray) -> dict:
    """Group -> mean distance in pixels and the share of measurable points that were found again.

    vertices (N, V, 3) m; truth, made (N, height, width, 3) uint8."""
    groups = measured_points(body)
    distances: dict[str, list[np.ndarray]] = {group: [] for group in groups}
    for points, wanted, got in zip(vertices, truth, made, strict=True):
        nearness = render_conditions(body, points[None], camera)[0, ..., INVERSE_DEPTH]
        for group, chosen in groups.items():
            x, y, depth = camera.project(points[chosen]).T
            rim = PATCH + REACH + 1
            inside = (x > rim) & (y > rim) & (x < camera.width - rim) & (y < camera.height - rim) & (depth > 0)
            places = np.stack([x, y], -1)[inside]
            column, row = places.astype(int).T
            seen = nearness[row, column] < 1 / depth[inside] + SEEN
            distances[group].append(patch_distance(luma(wanted), luma(got), places[seen]))
    return {group: summary(np.concatenate(parts)) for group, parts in distances.items()}


def summary(distances: np.ndarray) -> tuple[float, float]:
    """Mean of those found, and their share; NaN and 0 where nothing could be measured."""
    found = np.isfinite(distances)
    return (float(distances[found].mean()), float(found.mean())) if found.any() else (float("nan"), 0.0)


def patch_distance(truth: np.ndarray, made: np.ndarray, places: np.ndarray) -> np.ndarray:
    """How far the surroundings of places (n, 2) x, y of one luma picture have moved in another, pixels.

    Flat places are left out; infinite where nothing alike lies within REACH."""
    patches = around(truth, places, PATCH)
    slope_y, slope_x = np.gradient(patches, axis=(1, 2))
    across, along, both = (
        (a * b).mean((1, 2)) for a, b in ((slope_x, slope_x), (slope_y, slope_y), (slope_x, slope_y))
    )
    flattest = (across + along) / 2 - np.sqrt(((across - along) / 2) ** 2 + both**2)
    sharp = flattest > STRUCTURE
    places, patches = places[sharp], patches[sharp]
    if not len(places):
        return np.zeros(0)
    field = np.lib.stride_tricks.sliding_window_view(
        around(made, places, PATCH + REACH), patches.shape[1:], axis=(1, 2)
    )
    wanted = patches - patches.mean((1, 2), keepdims=True)
    got = field - field.mean((-1, -2), keepdims=True)
    power = np.sqrt((wanted**2).sum((1, 2))[:, None, None] * (got**2).sum((-1, -2)))
    alike = np.einsum("nuvab,nab->nuv", got, wanted) / np.maximum(power, 1e-6)
    peak = alike.reshape(len(alike), -1).argmax(1)
    row, column = np.unravel_index(peak, alike.shape[1:])
    number, last = np.arange(len(alike)), 2 * REACH
    rows = [alike[number, np.clip(row + k, 0, last), column] for k in (-1, 0, 1)]
    columns = [alike[number, row, np.clip(column + k, 0, last)] for k in (-1, 0, 1)]
    offset = row - REACH + _vertex(*rows), column - REACH + _vertex(*columns)
    return np.where(alike[number, row, column] >= ALIKE, np.hypot(*offset), np.inf)


def _vertex(before: np.ndarray, at: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Where a parabola through three neighbouring values is highest, -0.5..0.5 from the middle one."""
    bend = before - 2 * at + after
    return np.clip((before - after) / (2 * np.where(bend < -1e-9, bend, -np.inf)), -0.5, 0.5)


def around(picture: np.ndarray, places: np.ndarray, reach: int) -> np.ndarray:
    """Squares (n, 2 reach + 1, 2 reach + 1) of a picture around places between pixels; pixel k's middle is k + 0.5."""
    step = np.arange(-reach, reach + 1)
    rows = places[:, 1, None, None] - 0.5 + step[:, None]
    columns = places[:, 0, None, None] - 0.5 + step[None]
    return map_coordinates(picture, np.broadcast_arrays(rows, columns), order=1, mode="nearest")


def luma(picture: np.ndarray) -> np.ndarray:
    return picture.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
