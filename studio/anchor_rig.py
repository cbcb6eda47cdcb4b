"""The body an anchor ships: visible skin, eyes, teeth, tongue, one merged clothes shell and one hair hull.

Texture atlas (u right, v up): skin and mouth keep MakeHuman's chart in the left half; clothes and collar take the right
half below v = .75, hair the rest.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from avatar_app.mesh.body import Body
from studio.hair import HEAD, Scalp, hull
from studio.outfit import Outfit
from studio.script import unit_array
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


def anchor_body(
    rig: Rig, person: Person, outfit: Outfit, scalp: Scalp, strands: np.ndarray, resting: dict[str, float]
) -> Body:
    """`strands` (n, k, 3): the hair in rest coordinates, metres; `resting`: units of the face at rest, baked in."""
    parts = {name: rig.base.groups[group] for name, group in PARTS.items()}
    skin = parts["skin"]
    parts["skin"] = skin[outfit.visible_skin(skin[..., 0])]
    body = assemble_body(rig, person, parts, [clothes_shell(rig, outfit), hair_shell(rig, outfit, scalp, strands)])
    body = with_resting_face(body, resting)
    face_uv = body.face_uv.copy()
    face_uv[body.part < len(PARTS), :, 0] *= 0.5
    expression = np.where(np.abs(body.expression) < 2e-5, 0, body.expression)
    weights = np.where(body.weights < 0.002, 0, body.weights)
    return replace(body, face_uv=face_uv, expression=expression, weights=weights / weights.sum(1, keepdims=True))


def with_resting_face(body: Body, resting: dict[str, float]) -> Body:
    """Bake the presenter's resting lids and brows into the rest vertices, so that a neutral Motion looks as filmed."""
    weights = unit_array(resting, 1)[0]
    vertices = body.vertices.copy()
    for name, deltas in zip(body.expression_names, body.expression, strict=True):
        vertices[body.expression_vertices] += weights[ARKIT_52.index(name)] * deltas
    return replace(body, vertices=vertices)


def clothes_shell(rig: Rig, outfit: Outfit) -> Shell:
    """The cut layers, merged, and the collar."""
    points, weights = outfit.shell_rest(), np.tile(rig.weights[outfit.index], (2, 1))
    faces, uv = outfit.shell_faces()
    if outfit.collar:
        collar_faces, collar_uv = outfit.collar.shell()
        faces, uv = np.concatenate([faces, collar_faces + len(points)]), np.concatenate([uv, collar_uv])
        points = np.concatenate([points, outfit.collar.points])
        weights = np.concatenate([weights, outfit.collar.weights])
    used, compact = np.unique(faces, return_inverse=True)
    return Shell("clothes", points[used], weights[used], compact.reshape(faces.shape), uv)


def hair_shell(rig: Rig, outfit: Outfit, scalp: Scalp, strands: np.ndarray) -> Shell:
    """The hull of the hair, rigid with the head, charted by azimuth and elevation."""
    points, triangles = hull(scalp, strands)
    offset = points - (0, outfit.eye_y + 0.02, 0.05)
    azimuth = np.arctan2(offset[:, 0], offset[:, 2]) / (2 * np.pi)  # 0 in front; the seam lies behind
    elevation = np.arctan2(offset[:, 1], np.hypot(offset[:, 0], offset[:, 2])) / np.pi
    chart = np.stack([0.75 + 0.5 * azimuth, 0.875 + 0.25 * elevation], 1)[triangles]
    across_seam = np.ptp(chart[..., 0], axis=1) > 0.25
    chart[across_seam, :, 0] = np.where(chart[across_seam, :, 0] < 0.75, 1.0, chart[across_seam, :, 0])
    weights = np.zeros((len(points), rig.weights.shape[1]))
    weights[:, HEAD] = 1
    return Shell("hair", points, weights, triangles, chart)
