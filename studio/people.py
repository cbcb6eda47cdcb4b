"""The synthetic people we film: phenotype, colours, hair, clothes, set and framing.  None of them is a real person."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np

from avatar_app.mesh.body import Body
from studio.makehuman import Phenotype, load_base_mesh
from studio.smplx_rig import PARENTS, Person, Rig, build_rig

Colour = tuple[float, float, float]  # linear RGB

RESTING = {"eyeWide_": 0.12, "browDown_": 0.25, "mouthSmile_": 0.06}


@dataclass(frozen=True)
class Look:
    """Colours and fine drawing of one face."""

    skin: Colour = (0.52, 0.280, 0.178)
    hair: Colour = (0.011, 0.0062, 0.0038)
    hair_tips: Colour = (0.026, 0.0145, 0.0085)
    lips: Colour = (0.40, 0.145, 0.115)
    iris: tuple[Colour, Colour] = ((0.030, 0.016, 0.008), (0.115, 0.060, 0.024))
    # x from the middle of the face, height above the eyes, of the brow's middle line; metres
    brow: tuple[tuple[float, float], ...] = (
        (0.0110, 0.0122),
        (0.0200, 0.0156),
        (0.0310, 0.0186),
        (0.0420, 0.0189),
        (0.0560, 0.0128),
    )
    brow_half_width: float = 0.0031
    brow_hairs: int = 800
    lash_length: float = 0.8
    lid_line: float = 0.00028  # radius in metres of the dark line along the upper lashes
    beard: float = 0.7
    blush: float = 0.35


@dataclass(frozen=True)
class Wear:
    """Which cut (see `studio.outfit.CUTS`) and its colours."""

    cut: str
    jacket: Colour
    shirt: Colour
    tie: Colour = (0.0, 0.0, 0.0)
    stripe: Colour = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Framing:
    """The whole picture's camera. Metres from the neck joint: what the middle of the picture shows, where the camera
    stands; focal length in units of the picture's side."""

    middle: tuple[float, float] = (0.0, -0.122)
    rise: float = 0.06
    distance: float = 2.3
    focal: float = 95 / 36


@dataclass(frozen=True)
class Presenter:
    phenotype: Phenotype
    look: Look
    wear: Wear
    hair: str  # a style of studio.hair
    stage: str  # a set of studio.stages
    framing: Framing
    light: Colour = (1.0, 1.0, 1.0)  # what the lamps on the presenter are multiplied by
    # units of the face when nothing moves it: MakeHuman's neutral face looks tired and a little surprised
    resting: dict[str, float] = field(default_factory=lambda: dict(RESTING))


def both(name: str, weight: float) -> dict[str, float]:
    """A target of the left and of the right side; "eyes/_-eye-scale-incr" -> "eyes/l-eye-..." and "eyes/r-eye-..."."""
    return {name.replace("_", side): weight for side in "lr"}


PEOPLE = {
    "man": Presenter(
        Phenotype(
            gender=0.95,
            old=0.14,
            muscle=-0.25,
            proportions=0.5,
            race=(0.10, 0.15, 0.75),
            targets={
                "head/head-oval": 0.45,
                "chin/chin-width-incr": 0.1,
                "chin/chin-prominent-incr": 0.2,
                "nose/nose-scale-horiz-decr": 0.45,
                "nose/nose-point-up": 0.1,
                "nose/nose-nostrils-width-decr": 0.2,
                "mouth/mouth-scale-horiz-incr": 0.1,
                "mouth/mouth-angles-up": 0.3,
                "mouth/mouth-lowerlip-volume-incr": 0.4,
                "mouth/mouth-upperlip-volume-incr": 0.3,
                "neck/neck-scale-horiz-incr": 0.1,
                "head/head-scale-vert-incr": 0.15,
                "torso/measure-shoulder-dist-decr": 0.75,
                "hip/hip-scale-horiz-decr": 0.6,
                "torso/torso-scale-horiz-decr": 0.3,
                **both("eyes/_-eye-scale-incr", 0.55),
                **both("eyes/_-eye-height2-incr", 0.3),
                **both("arms/_-upperarm-shoulder-muscle-decr", 0.7),
                **both("arms/_-upperarm-fat-decr", 0.4),
                **both("hands/_-hand-scale-decr", 0.35),
            },
        ),
        Look(),
        Wear("suit", (0.011, 0.015, 0.030), (0.66, 0.69, 0.75), (0.120, 0.010, 0.018), (0.030, 0.045, 0.110)),
        hair="side part",
        stage="news desk",
        framing=Framing(middle=(0.0, -0.150), rise=0.13, distance=2.42),
    ),
    "woman": Presenter(
        Phenotype(
            gender=0.04,
            old=0.04,
            muscle=-0.1,
            weight=-0.1,
            proportions=0.7,
            race=(0.12, 0.18, 0.70),
            targets={
                "head/head-oval": 0.4,
                "chin/chin-width-decr": 0.2,
                "nose/nose-scale-horiz-decr": 0.35,
                "nose/nose-scale-vert-decr": 0.15,
                "nose/nose-point-up": 0.2,
                "mouth/mouth-angles-up": 0.35,
                "mouth/mouth-lowerlip-volume-incr": 0.5,
                "mouth/mouth-upperlip-volume-incr": 0.5,
                "breast/breast-volume-vert-down": 0.1,
                "neck/neck-scale-horiz-decr": 0.4,
                "hip/hip-scale-horiz-decr": 0.4,
                **both("eyes/_-eye-scale-incr", 0.5),
                **both("eyes/_-eye-height2-incr", 0.3),
                **both("hands/_-hand-scale-decr", 0.2),
            },
        ),
        Look(
            skin=(0.60, 0.345, 0.235),
            hair=(0.022, 0.0095, 0.0048),
            hair_tips=(0.070, 0.032, 0.0145),
            lips=(0.42, 0.085, 0.085),
            iris=((0.022, 0.035, 0.020), (0.085, 0.105, 0.050)),
            brow=((0.0105, 0.0138), (0.0200, 0.0173), (0.0310, 0.0207), (0.0420, 0.0206), (0.0545, 0.0138)),
            brow_half_width=0.0022,
            brow_hairs=560,
            lash_length=1.05,
            lid_line=0.00042,
            beard=0.0,
            blush=0.6,
        ),
        Wear("blazer", (0.010, 0.075, 0.085), (0.80, 0.77, 0.72)),
        hair="bob",
        stage="bright studio",
        framing=Framing(middle=(0.045, -0.130), rise=0.03, distance=2.35),
        resting={"eyeWide_": 0.08, "browDown_": 0.15, "mouthSmile_": 0.08},
    ),
}


SKINS = ((0.60, 0.345, 0.235), (0.52, 0.280, 0.178), (0.36, 0.185, 0.110), (0.21, 0.098, 0.056), (0.11, 0.050, 0.030))
HAIRS = ((0.010, 0.006, 0.004), (0.022, 0.0095, 0.0048), (0.075, 0.036, 0.014), (0.27, 0.16, 0.068), (0.24, 0.22, 0.20))
CLOTHES = (
    (0.011, 0.015, 0.030), (0.012, 0.012, 0.013), (0.060, 0.058, 0.060), (0.010, 0.075, 0.085), (0.10, 0.012, 0.018),
    (0.070, 0.045, 0.026), (0.030, 0.060, 0.025),
)  # fmt: skip
SHAPES = (
    "head/head-oval", "head/head-round", "head/head-square", "head/head-scale-vert-incr", "chin/chin-width-incr",
    "chin/chin-width-decr", "chin/chin-prominent-incr", "nose/nose-scale-horiz-incr", "nose/nose-scale-horiz-decr",
    "nose/nose-scale-vert-incr", "nose/nose-point-up", "nose/nose-point-down", "mouth/mouth-scale-horiz-incr",
    "mouth/mouth-lowerlip-volume-incr", "mouth/mouth-upperlip-volume-incr", "neck/neck-scale-horiz-incr",
    "torso/torso-scale-horiz-incr", "torso/torso-scale-horiz-decr",
)  # fmt: skip


def random_presenter(seed: int) -> Presenter:
    """Somebody who does not exist: build, face, colours, hair, clothes, set, framing and light drawn by chance.

    For pre-training on many identities; the same seed is the same person."""
    rng = np.random.default_rng(seed)
    base = PEOPLE["woman" if rng.random() < 0.5 else "man"]
    woman = base is PEOPLE["woman"]
    race = rng.dirichlet((0.7, 0.7, 0.7))
    targets = dict(base.phenotype.targets) | {
        name: float(rng.uniform(0.1, 0.5)) for name in rng.choice(SHAPES, 6, replace=False)
    }
    phenotype = Phenotype(
        gender=float(rng.uniform(0.0, 0.12) if woman else rng.uniform(0.88, 1.0)),
        old=float(rng.uniform(0.0, 0.4)),
        muscle=float(rng.uniform(-0.3, 0.2)),
        weight=float(rng.uniform(-0.25, 0.35)),
        height=float(rng.uniform(-0.2, 0.2)),
        proportions=float(rng.uniform(0.3, 0.7)),
        race=(float(race[0]), float(race[1]), float(race[2])),
        targets=targets,
    )
    tone = np.interp(
        race[0] + 0.25 * race[1] + rng.uniform(-0.1, 0.15), np.linspace(0, 1, len(SKINS)), range(len(SKINS))
    )
    skin = np.array([np.interp(tone, range(len(SKINS)), channel) for channel in zip(*SKINS, strict=True)])
    hair = np.array(HAIRS[rng.integers(2 if race[2] < 0.5 else len(HAIRS))]) * rng.uniform(0.8, 1.2)
    look = replace(
        base.look,
        skin=_colour(skin),
        hair=_colour(hair),
        hair_tips=_colour(hair * rng.uniform(1.5, 3.0)),
        lips=_colour(np.array(base.look.lips) * (0.35 + 0.65 * skin / np.array(SKINS[0]))),
        beard=0.0 if woman else float(rng.uniform(0.0, 1.0)),
        blush=float(rng.uniform(0.2, 0.7)),
    )
    jacket, tie = (np.array(CLOTHES[number]) for number in rng.choice(len(CLOTHES), 2, replace=False))
    wear = replace(
        base.wear,
        jacket=_colour(jacket * rng.uniform(0.7, 1.5)),
        shirt=_colour(np.clip(np.array((0.72, 0.72, 0.74)) * rng.uniform(0.6, 1.1, 3), 0, 0.85)),
        tie=_colour(tie),
        stripe=_colour(tie * rng.uniform(0.5, 4.0, 3)),
    )
    framing = replace(
        base.framing,
        middle=(float(rng.uniform(-0.05, 0.05)), base.framing.middle[1]),
        rise=float(rng.uniform(0.0, 0.15)),
        distance=base.framing.distance * float(rng.uniform(0.95, 1.08)),
    )
    light = rng.uniform(0.75, 1.25) * np.array((1 + rng.uniform(-0.12, 0.12), 1.0, 1 + rng.uniform(-0.12, 0.12)))
    stage = ("news desk", "bright studio")[rng.integers(2)]
    return Presenter(phenotype, look, wear, base.hair, stage, framing, _colour(light), base.resting)


def _colour(values) -> Colour:
    return float(values[0]), float(values[1]), float(values[2])


def presenter_of(name: str) -> Presenter:
    """One of PEOPLE, or "random:SEED". Raises ValueError for another name."""
    if name in PEOPLE:
        return PEOPLE[name]
    kind, _, seed = name.partition(":")
    if kind != "random" or not seed.isdigit():
        raise ValueError(f"unknown presenter {name!r}: {', '.join(PEOPLE)} or random:SEED")
    return random_presenter(int(seed))


@cache
def shared_rig() -> Rig:
    """Weights and face units common to everybody."""
    return build_rig(load_base_mesh())


def person_of(name: str) -> Person:
    """Rest mesh and joints of a presenter."""
    return shared_rig().person(presenter_of(name).phenotype)


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
