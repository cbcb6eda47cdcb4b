"""Condition maps: what the diffusion model sees of the posed body, pixel-aligned with the anchor's camera."""

from collections.abc import Callable
from typing import NamedTuple

import numba
import numpy as np

from avatar_app.mesh.camera import Camera
from avatar_app.mesh.raster import project, rasterize, surface_weights, turned, vertex_normals

CHANNELS = 10
NORMAL, REST, UV, PART, INVERSE_DEPTH = slice(0, 3), slice(3, 6), slice(6, 8), 8, 9


def render_conditions(body, vertices: np.ndarray, camera: Camera) -> np.ndarray:
    """Posed vertices (N, V, 3) in metres -> float32 maps (N, height, width, 10); everything is 0 on the background.

    Channels: 0-2 unit normal in camera space (x right, y down, z into the scene), 3-5 position of the same surface
    point in the rest pose (m), 6-7 texture coordinates, 8 part (k+1 = `body.part_names[k]`), 9 inverse depth (1/m).
    `body` gives faces, face_uv, part and the rest vertices. Back faces are drawn in slits alone, see `rasterize`.
    """
    maps = np.zeros((len(vertices), camera.height, camera.width, CHANNELS), np.float32)
    for frame, out in zip(vertices, maps, strict=True):
        draw_conditions(body, frame, camera, out)
    return maps


def condition_renderer(style: str) -> Callable:
    """draw(body, vertices, camera) of a manifest's `condition`: "maps", "normal-picture" or "mesh-picture"."""
    if style == "mesh-picture":
        from avatar_app.mesh import pyrender_style

        return pyrender_style.render_mesh_pictures
    return normal_pictures if style == "normal-picture" else render_conditions


def normal_pictures(body, vertices: np.ndarray, camera: Camera) -> np.ndarray:
    """Posed vertices (N, V, 3) -> uint8 RGB (N, height, width, 3): normals as colours on black, parts by brightness.

    For networks that want pictures, without OpenGL."""
    pictures = np.empty((len(vertices), camera.height, camera.width, 3), np.uint8)
    for frame, picture in zip(vertices, pictures, strict=True):
        maps = render_conditions(body, frame[None], camera)[0]
        part = maps[..., PART, None]
        share = np.where(part > 0, 1 - 0.5 * (part - 1) / len(body.part_names), 0)
        picture[:] = np.rint((maps[..., NORMAL] * 0.5 + 0.5) * share * 255)
    return pictures


class View(NamedTuple):
    """What a camera sees of one posed body: points (V, 3) as `Camera.project` gives them, unit normals (V, 3) in camera
    space, and for each pixel the nearest face (height, width) int32, -1 for none, and inverse depth, 1/m."""

    points: np.ndarray
    normals: np.ndarray
    face: np.ndarray
    inverse_depth: np.ndarray


def look(body, vertices: np.ndarray, camera: Camera) -> View:
    """One posed body, vertices (V, 3) in metres."""
    vertices = np.ascontiguousarray(vertices, np.float32)
    points = project(vertices, camera.position, camera.rotation, camera.focal, *camera.center)
    normals = turned(vertex_normals(vertices, body.faces), camera.rotation.astype(np.float32))
    return View(points, normals, *rasterize(points, body.faces, camera.width, camera.height))


def draw_conditions(body, vertices: np.ndarray, camera: Camera, out: np.ndarray) -> np.ndarray:
    """One frame of `render_conditions` into `out` (height, width, 10), whose background must already be 0.

    Returns which pixels are covered, (height, width) bool."""
    view = look(body, vertices, camera)
    _fill(*view, body.faces, body.vertices, body.face_uv, body.part, out)
    return view.face >= 0


@numba.njit(nogil=True, cache=True)
def surface_normal(normals, a, b, c, w0, w1, w2):
    """Unit normal (x, y, z) of a surface point with these weights of its triangle's corners."""
    x = w0 * normals[a, 0] + w1 * normals[b, 0] + w2 * normals[c, 0]
    y = w0 * normals[a, 1] + w1 * normals[b, 1] + w2 * normals[c, 1]
    z = w0 * normals[a, 2] + w1 * normals[b, 2] + w2 * normals[c, 2]
    length = np.float32(1.0) / np.sqrt(max(x * x + y * y + z * z, np.float32(1e-20)))
    return x * length, y * length, z * length


@numba.njit(nogil=True, cache=True)
def surface_uv(face_uv, t, w0, w1, w2):
    """Texture coordinates (u, v) of a point of face t with these weights of its corners."""
    u = w0 * face_uv[t, 0, 0] + w1 * face_uv[t, 1, 0] + w2 * face_uv[t, 2, 0]
    return u, w0 * face_uv[t, 0, 1] + w1 * face_uv[t, 1, 1] + w2 * face_uv[t, 2, 1]


@numba.njit(nogil=True, cache=True)
def _fill(points, normals, face, inverse_depth, faces, rest, face_uv, part, out):
    height, width = face.shape
    for y in range(height):
        for x in range(width):
            t = face[y, x]
            if t < 0:
                continue
            a, b, c = faces[t, 0], faces[t, 1], faces[t, 2]
            w0, w1, w2 = surface_weights(points, a, b, c, x + 0.5, y + 0.5)
            out[y, x, 0], out[y, x, 1], out[y, x, 2] = surface_normal(normals, a, b, c, w0, w1, w2)
            for k in range(3):
                out[y, x, 3 + k] = w0 * rest[a, k] + w1 * rest[b, k] + w2 * rest[c, k]
            out[y, x, 6], out[y, x, 7] = surface_uv(face_uv, t, w0, w1, w2)
            out[y, x, 8] = part[t] + 1
            out[y, x, 9] = inverse_depth[y, x]
