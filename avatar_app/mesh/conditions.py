"""Condition maps: what the diffusion model sees of the posed body, pixel-aligned with the anchor's camera."""

from collections.abc import Callable

import numba
import numpy as np

from avatar_app.mesh.camera import Camera
from avatar_app.mesh.raster import pixel_weights, rasterize, vertex_normals

CHANNELS = 10
NORMAL, REST, UV, PART, INVERSE_DEPTH = slice(0, 3), slice(3, 6), slice(6, 8), 8, 9


def render_conditions(body, vertices: np.ndarray, camera: Camera) -> np.ndarray:
    """Posed vertices (N, V, 3) in metres -> float32 maps (N, height, width, 10); everything is 0 on the background.

    Channels: 0-2 unit normal in camera space (x right, y down, z into the scene), 3-5 position of the same surface
    point in the rest pose (m), 6-7 texture coordinates, 8 part (k+1 = `body.part_names[k]`), 9 inverse depth (1/m).
    `body` gives faces, face_uv, part and the rest vertices. Back faces are not drawn.
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


def draw_conditions(body, vertices: np.ndarray, camera: Camera, out: np.ndarray) -> np.ndarray:
    """One frame of `render_conditions` into `out` (height, width, 10), whose background must already be 0.

    Returns which pixels are covered, (height, width) bool."""
    vertices = np.ascontiguousarray(vertices, np.float32)
    points = camera.project(vertices.astype(np.float64))
    normals = vertex_normals(vertices, body.faces) @ camera.rotation.T.astype(np.float32)
    face_id, inverse_depth = rasterize(points, body.faces, camera.width, camera.height)
    _fill(points, body.faces, face_id, inverse_depth, normals, body.vertices, body.face_uv, body.part, out)
    return face_id >= 0


@numba.njit(nogil=True, cache=True)
def _fill(points, faces, face_id, inverse_depth, normals, rest, face_uv, part, out):
    height, width = face_id.shape
    for y in range(height):
        for x in range(width):
            t = face_id[y, x]
            if t < 0:
                continue
            a, b, c = faces[t, 0], faces[t, 1], faces[t, 2]
            w0, w1, w2 = pixel_weights(points, a, b, c, x + 0.5, y + 0.5)
            w0, w1, w2 = w0 / points[a, 2], w1 / points[b, 2], w2 / points[c, 2]
            total = w0 + w1 + w2
            w0, w1, w2 = np.float32(w0 / total), np.float32(w1 / total), np.float32(w2 / total)
            pixel = out[y, x]
            length = np.float32(0.0)
            for k in range(3):
                n = w0 * normals[a, k] + w1 * normals[b, k] + w2 * normals[c, k]
                length += n * n
                pixel[k] = n
                pixel[3 + k] = w0 * rest[a, k] + w1 * rest[b, k] + w2 * rest[c, k]
            length = np.float32(1.0) / np.sqrt(max(length, np.float32(1e-20)))
            for k in range(3):
                pixel[k] *= length
            for k in range(2):
                pixel[6 + k] = w0 * face_uv[t, 0, k] + w1 * face_uv[t, 1, k] + w2 * face_uv[t, 2, k]
            pixel[8] = part[t] + 1
            pixel[9] = inverse_depth[y, x]
