"""The synthetic people we film: phenotypes over the CC0 MakeHuman mesh.  None of them is a real person."""

from __future__ import annotations

from functools import cache

import numpy as np

from avatar_app.mesh.body import Body
from studio.makehuman import Phenotype, load_base_mesh
from studio.smplx_rig import PARENTS, Person, Rig, build_rig

PEOPLE = {
    "man": Phenotype(
        gender=1.0,
        old=0.16,
        muscle=-0.1,
        proportions=0.8,
        race=(0.12, 0.18, 0.70),
        targets={
            "head/head-oval": 0.35,
            "chin/chin-width-incr": 0.25,
            "chin/chin-prominent-incr": 0.25,
            "nose/nose-scale-horiz-decr": 0.3,
            "nose/nose-point-up": 0.15,
            "mouth/mouth-scale-horiz-incr": 0.2,
            "eyes/l-eye-scale-incr": 0.25,
            "eyes/r-eye-scale-incr": 0.25,
            "mouth/mouth-angles-up": 0.25,
            "mouth/mouth-lowerlip-volume-incr": 0.25,
            "neck/neck-scale-horiz-incr": 0.25,
            "head/head-scale-horiz-incr": 0.15,
            "head/head-scale-vert-incr": 0.1,
            "torso/torso-scale-horiz-decr": 0.15,
        },
    ),
}


@cache
def shared_rig() -> Rig:
    """Weights and face units common to everybody."""
    return build_rig(load_base_mesh())


def person_of(name: str) -> Person:
    """Rest mesh and joints of one of PEOPLE."""
    return shared_rig().person(PEOPLE[name])


def film_body(person: Person) -> Body:
    """A Body with all 19158 MakeHuman vertices (no faces): what the scene needs to pose skin, clothes and lashes."""
    rig = shared_rig()
    units = np.stack(list(rig.face_units.values()))
    moved = np.flatnonzero(np.abs(units).max(axis=(0, 2)) > 1e-6)
    return Body(
        vertices=person.vertices.astype(np.float32),
        joints=person.joints.astype(np.float32),
        parents=PARENTS.astype(np.int32),
        weights=rig.weights.astype(np.float32),
        faces=np.zeros((0, 3), np.int32),
        part=np.zeros(0, np.uint8),
        part_names=(),
        face_uv=np.zeros((0, 3, 2), np.float32),
        expression=units[:, moved].astype(np.float32),
        expression_vertices=moved.astype(np.int32),
        expression_names=tuple(rig.face_units),
        jaw_corrective=rig.jaw_corrective.astype(np.float32),
        jaw_direction=rig.jaw_direction.astype(np.float32),
        hand_mean=rig.hand_mean.astype(np.float32),
    )
