"""The body an anchor ships: visible skin, eyes, teeth, tongue, one merged clothes shell and one hair cap.

Texture atlas (u right, v up): skin and mouth keep MakeHuman's chart in the left half; clothes take the right half below
v = .75, hair the rest.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.spatial import cKDTree

from avatar_app.mesh.body import Body
from studio.geometry import quad_normals, smoothing_matrix, triangulate
from studio.outfit import Outfit
from studio.script import RESTING_FACE, unit_array
from studio.smplx_rig import Person, Rig, Shell, assemble_body
from talkshow_bridge.motion import ARKIT_52

PARTS = {
    "skin": "body",
    "eye_l": "helper-l-eye",
    "eye_r": "helper-r-eye",
    "teeth_up": "helper-upper-teeth",
    "teeth_low": "helper-lower-teeth",
    "tongue": "helper-tongue",
}
HEAD = 15


def anchor_body(rig: Rig, person: Person, outfit: Outfit, strands: np.ndarray) -> Body:
    """`strands` (n, k, 3): the hair in rest coordinates, metres; it becomes a cap as high as the hair."""
    cap = hair_cap(rig, person, outfit, strands)
    parts = {name: rig.base.groups[group] for name, group in PARTS.items()}
    skin = parts["skin"]
    parts["skin"] = skin[outfit.visible_skin(skin[..., 0])]
    faces, uv = outfit.shell_faces()
    clothes = Shell("clothes", outfit.shell_rest(), np.tile(rig.weights[outfit.index], (2, 1)), faces, uv)
    body = with_resting_face(assemble_body(rig, person, parts, [clothes, cap]))
    face_uv = body.face_uv.copy()
    face_uv[body.part < len(PARTS), :, 0] *= 0.5
    expression = np.where(np.abs(body.expression) < 2e-5, 0, body.expression)
    weights = np.where(body.weights < 0.002, 0, body.weights)
    return replace(body, face_uv=face_uv, expression=expression, weights=weights / weights.sum(1, keepdims=True))


def with_resting_face(body: Body) -> Body:
    """Bake the presenter's resting lids and brows into the rest vertices, so that a neutral Motion looks as filmed."""
    weights = unit_array(RESTING_FACE, 1)[0]
    vertices = body.vertices.copy()
    for name, deltas in zip(body.expression_names, body.expression, strict=True):
        vertices[body.expression_vertices] += weights[ARKIT_52.index(name)] * deltas
    return replace(body, vertices=vertices)


def hair_cap(rig: Rig, person: Person, outfit: Outfit, strands: np.ndarray) -> Shell:
    """A shell over the scalp as high as the hair on it, rigid with the head."""
    rest, quads = person.vertices.astype(np.float64), rig.base.groups["body"][..., 0]
    normals = quad_normals(rest, quads)
    head = np.unique(quads[rig.weights[quads][:, :, HEAD].mean(1) > 0.6])
    points = strands[:, 1:].reshape(-1, 3)
    nearest = head[cKDTree(rest[head]).query(points)[1]]
    height = ((points - rest[nearest]) * normals[nearest]).sum(1)
    hairy = np.bincount(nearest, minlength=len(rest)) > 8
    top = np.zeros(len(rest))
    for vertex in np.flatnonzero(hairy):
        top[vertex] = np.percentile(height[nearest == vertex], 80)

    chosen = quads[hairy[quads].sum(1) >= 2]
    index, inverse = np.unique(chosen, return_inverse=True)
    local = inverse.reshape(chosen.shape)
    lifted = smoothing_matrix(local, len(index), 2) @ np.maximum(top[index], 0.0005)
    cap = smoothing_matrix(local, len(index), 1) @ (rest[index] + normals[index] * lifted[:, None])
    triangles = triangulate(local)

    offset = cap - (0, outfit.eye_y + 0.02, 0.05)
    azimuth = np.arctan2(offset[:, 0], offset[:, 2]) / (2 * np.pi)  # 0 in front; the seam lies behind
    elevation = np.arctan2(offset[:, 1], np.hypot(offset[:, 0], offset[:, 2])) / np.pi
    chart = np.stack([0.75 + 0.5 * azimuth, 0.875 + 0.25 * elevation], 1)[triangles]
    across_seam = np.ptp(chart[..., 0], axis=1) > 0.25
    chart[across_seam, :, 0] = np.where(chart[across_seam, :, 0] < 0.75, 1.0, chart[across_seam, :, 0])
    weights = np.zeros((len(cap), rig.weights.shape[1]))
    weights[:, HEAD] = 1
    return Shell("hair", cap, weights, triangles, chart)
