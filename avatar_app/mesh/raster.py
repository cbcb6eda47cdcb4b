"""A z-buffer triangle rasteriser that needs nothing but numba: deterministic, thread-safe, no GPU, no OpenGL.

Two passes keep it short: `rasterize` finds which triangle each pixel sees, the caller then uses `surface_weights` to
interpolate whatever it likes at that pixel. All kernels release the GIL.
"""

import numba
import numpy as np

NEAR = 0.01  # metres; triangles that come closer to the camera plane than this are dropped
SLIT = 4  # pixels; where the surface gapes less than this, its inside is seen, not what is behind the body


@numba.njit(nogil=True, cache=True)
def vertex_normals(vertices, faces):
    """Area-weighted unit normals (V, 3) float32 of a mesh whose faces are counter-clockwise seen from outside."""
    normals = np.zeros((vertices.shape[0], 3), np.float32)
    for t in range(faces.shape[0]):
        a, b, c = faces[t, 0], faces[t, 1], faces[t, 2]
        ux, uy, uz = vertices[b, 0] - vertices[a, 0], vertices[b, 1] - vertices[a, 1], vertices[b, 2] - vertices[a, 2]
        wx, wy, wz = vertices[c, 0] - vertices[a, 0], vertices[c, 1] - vertices[a, 1], vertices[c, 2] - vertices[a, 2]
        nx, ny, nz = uy * wz - uz * wy, uz * wx - ux * wz, ux * wy - uy * wx
        for v in (a, b, c):
            normals[v, 0] += nx
            normals[v, 1] += ny
            normals[v, 2] += nz
    for v in range(normals.shape[0]):
        length = np.sqrt(normals[v, 0] ** 2 + normals[v, 1] ** 2 + normals[v, 2] ** 2)
        if length > 0:
            normals[v] /= length
    return normals


@numba.njit(nogil=True, cache=True)
def project(vertices, position, rotation, focal, center_x, center_y):
    """`Camera.project` of vertices (V, 3): so small a matrix product costs more in the waiting than in the threads."""
    points = np.empty(vertices.shape, np.float64)
    for v in range(vertices.shape[0]):
        x, y, z = vertices[v, 0] - position[0], vertices[v, 1] - position[1], vertices[v, 2] - position[2]
        depth = rotation[2, 0] * x + rotation[2, 1] * y + rotation[2, 2] * z
        points[v, 0] = (rotation[0, 0] * x + rotation[0, 1] * y + rotation[0, 2] * z) / depth * focal + center_x
        points[v, 1] = (rotation[1, 0] * x + rotation[1, 1] * y + rotation[1, 2] * z) / depth * focal + center_y
        points[v, 2] = depth
    return points


@numba.njit(nogil=True, cache=True)
def turned(directions, rotation):
    """rotation (3, 3) times each of the directions (V, 3)."""
    result = np.empty_like(directions)
    for v in range(directions.shape[0]):
        x, y, z = directions[v, 0], directions[v, 1], directions[v, 2]
        for k in range(3):
            result[v, k] = rotation[k, 0] * x + rotation[k, 1] * y + rotation[k, 2] * z
    return result


@numba.njit(nogil=True, cache=True)
def surface_weights(points, a, b, c, x, y):
    """Weights of the corners (a, b, c) of a projected triangle in the surface point at the picture position (x, y)."""
    x0, y0, x1, y1, x2, y2 = points[a, 0], points[a, 1], points[b, 0], points[b, 1], points[c, 0], points[c, 1]
    inverse_area = 1.0 / ((y1 - y2) * (x0 - x2) + (x2 - x1) * (y0 - y2))
    w0 = ((y1 - y2) * (x - x2) + (x2 - x1) * (y - y2)) * inverse_area
    w1 = ((y2 - y0) * (x - x2) + (x0 - x2) * (y - y2)) * inverse_area
    w0, w1, w2 = w0 / points[a, 2], w1 / points[b, 2], (1.0 - w0 - w1) / points[c, 2]
    total = w0 + w1 + w2
    return np.float32(w0 / total), np.float32(w1 / total), np.float32(w2 / total)


@numba.njit(nogil=True, cache=True)
def rasterize(points, faces, width, height):
    """Visible front faces, and back faces in slits: gaps of at most SLIT pixels that open where clothes or hair fold.

    points (V, 3) float64: x, y in pixels (y down) and depth in metres, as `Camera.project` returns them.
    faces (F, 3) integers, counter-clockwise seen from outside.
    Returns face (height, width) int32, -1 where nothing is seen, and inverse depth (height, width) float32, 1/m or 0.
    """
    face_id = np.full((height, width), -1, np.int32)
    inverse_depth = np.zeros((height, width), np.float32)
    _draw(points, faces, False, np.ones((height, width), np.bool_), face_id, inverse_depth)
    slits = _slits(face_id)
    if slits.any():
        _draw(points, faces, True, slits, face_id, inverse_depth)
    return face_id, inverse_depth


@numba.njit(nogil=True, cache=True)
def _draw(points, faces, back, allowed, face_id, inverse_depth):
    """The nearest front (or back) faces, in the allowed (height, width) pixels alone."""
    height, width = face_id.shape
    for t in range(faces.shape[0]):
        a, b, c = faces[t, 0], faces[t, 1], faces[t, 2]
        z0, z1, z2 = points[a, 2], points[b, 2], points[c, 2]
        if z0 < NEAR or z1 < NEAR or z2 < NEAR:
            continue
        x0, y0, x1, y1, x2, y2 = points[a, 0], points[a, 1], points[b, 0], points[b, 1], points[c, 0], points[c, 1]
        area = (y1 - y2) * (x0 - x2) + (x2 - x1) * (y0 - y2)
        if (area if back else -area) < 1e-9:  # clockwise on a y-down picture is the front; the rest is edge-on
            continue
        left, right = max(0, int(np.floor(min(x0, x1, x2)))), min(width - 1, int(np.floor(max(x0, x1, x2))))
        top, bottom = max(0, int(np.floor(min(y0, y1, y2)))), min(height - 1, int(np.floor(max(y0, y1, y2))))
        if left > right or top > bottom:
            continue
        inverse_area = 1.0 / area
        w0_x, w1_x = (y1 - y2) * inverse_area, (y2 - y0) * inverse_area
        w0_y, w1_y = (x2 - x1) * inverse_area, (x0 - x2) * inverse_area
        i0, i1, i2 = 1.0 / z0, 1.0 / z1, 1.0 / z2  # inverse depth is what is linear on the picture
        for y in range(top, bottom + 1):
            w0_row = w0_y * (y + 0.5 - y2) - w0_x * x2
            w1_row = w1_y * (y + 0.5 - y2) - w1_x * x2
            for x in range(left, right + 1):
                if not allowed[y, x]:
                    continue
                w0 = w0_x * (x + 0.5) + w0_row
                w1 = w1_x * (x + 0.5) + w1_row
                w2 = 1.0 - w0 - w1
                if w0 >= 0.0 and w1 >= 0.0 and w2 >= 0.0:
                    nearness = np.float32(w0 * i0 + w1 * i1 + w2 * i2)
                    if nearness > inverse_depth[y, x]:
                        inverse_depth[y, x] = nearness
                        face_id[y, x] = t


@numba.njit(nogil=True, cache=True)
def _slits(face_id):
    """Pixels (height, width) bool of empty runs, across or down, of at most SLIT with a face at both ends."""
    height, width = face_id.shape
    slits = np.zeros((height, width), np.bool_)
    last_row = np.full(width, -height, np.int64)  # where a face was last seen
    for y in range(height):
        last = -width
        for x in range(width):
            if face_id[y, x] < 0:
                continue
            if 1 < x - last <= SLIT + 1:
                slits[y, last + 1 : x] = True
            if 1 < y - last_row[x] <= SLIT + 1:
                slits[last_row[x] + 1 : y, x] = True
            last, last_row[x] = x, y
    return slits
