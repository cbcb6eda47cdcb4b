"""Small mesh tools shared by the scene and the rig (quads are (Q, 4) vertex indices, points (V, 3) metres)."""

import numpy as np
from scipy import sparse


def quad_normals(points: np.ndarray, quads: np.ndarray) -> np.ndarray:
    """Area-weighted unit vertex normals (V, 3); zero where no quad touches."""
    face = np.cross(points[quads[:, 2]] - points[quads[:, 0]], points[quads[:, 3]] - points[quads[:, 1]])
    total = np.zeros_like(points)
    for corner in range(4):
        np.add.at(total, quads[:, corner], face)
    return total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-9)


def triangulate(quads: np.ndarray) -> np.ndarray:
    """(Q, 4, ...) -> (2Q, 3, ...)."""
    return np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])


def smoothing_matrix(quads: np.ndarray, count: int, rounds: int, strength: float = 0.5) -> sparse.csr_matrix:
    """`rounds` steps of uniform Laplacian smoothing of `count` points as one sparse matrix."""
    edges = np.concatenate([quads[:, [k, (k + 1) % 4]] for k in range(4)])
    adjacency = sparse.coo_matrix((np.ones(len(edges)), edges.T), (count, count)).tocsr()
    adjacency = ((adjacency + adjacency.T) > 0).astype(float)
    degree = np.maximum(np.asarray(adjacency.sum(1)).ravel(), 1)
    step = (1 - strength) * sparse.identity(count) + strength * sparse.diags(1 / degree) @ adjacency
    matrix = sparse.identity(count, format="csr")
    for _ in range(rounds):
        matrix = (step @ matrix).tocsr()
    return matrix


def sample_surface(count: int, triangles: np.ndarray, points: np.ndarray, rng: np.random.Generator):
    """Random points on triangles, by area -> (triangle index, barycentric (count, 3), position (count, 3))."""
    a, b, c = (points[triangles[:, k]] for k in range(3))
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    chosen = rng.choice(len(triangles), count, p=area / area.sum())
    uv = rng.random((count, 2))
    uv[uv.sum(1) > 1] = 1 - uv[uv.sum(1) > 1]
    bary = np.c_[1 - uv.sum(1), uv]
    return chosen, bary, np.einsum("nk,nkc->nc", bary, points[triangles[chosen]])


def triangle_frames(triangles: np.ndarray, bary: np.ndarray, points: np.ndarray):
    """Origin (n, 3) and orthonormal frame (n, 3, 3; columns tangent, bitangent, normal) on each triangle."""
    a, b, c = (points[triangles[:, k]] for k in range(3))
    normal = np.cross(b - a, c - a)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    tangent = (b - a) / np.linalg.norm(b - a, axis=1, keepdims=True)
    return np.einsum("nk,nkc->nc", bary, points[triangles]), np.stack([tangent, np.cross(normal, tangent), normal], -1)
