"""Linear blend skinning: joint rotations to world transforms to vertices."""

import numba
import numpy as np


def joint_transforms(rotations: np.ndarray, joints: np.ndarray, parents: np.ndarray) -> np.ndarray:
    """(N, J, 3, 3) local rotations about rest joints (J, 3) -> (N, J, 4, 4) world transforms of rest-pose points."""
    count = len(rotations)
    world = np.zeros((count, len(joints), 4, 4))
    world[:, :, 3, 3] = 1
    for j, parent in enumerate(parents):
        if parent < 0:
            world[:, j, :3, :3] = rotations[:, j]
            world[:, j, :3, 3] = joints[j]
            continue
        local = np.zeros((count, 4, 4))
        local[:, :3, :3] = rotations[:, j]
        local[:, :3, 3] = joints[j] - joints[parent]
        local[:, 3, 3] = 1
        world[:, j] = world[:, parent] @ local
    world[..., :3, 3] -= np.einsum("njab,jb->nja", world[..., :3, :3], joints)
    return world


@numba.njit(nogil=True, cache=True)
def skin(vertices, transforms, start, joint, weight, out):
    """Blend one frame into out (V, 3): vertices (V, 3), transforms (J, 4, 4), weights of v at start[v]:start[v+1]."""
    for v in range(vertices.shape[0]):
        x, y, z = vertices[v, 0], vertices[v, 1], vertices[v, 2]
        out[v] = 0
        for i in range(start[v], start[v + 1]):
            t, w = transforms[joint[i]], weight[i]
            for k in range(3):
                out[v, k] += w * (t[k, 0] * x + t[k, 1] * y + t[k, 2] * z + t[k, 3])
