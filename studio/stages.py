"""The sets: a news desk at night and a bright studio, built of boxes and lamps and rendered once as a backdrop.

A set is rendered without the presenter, through the presenter's own camera with a wider frame, as a linear EXR.
`PresenterScene` hangs that picture behind the presenter, so that every crop shows the same pixels.  Needs `bpy`.
Coordinates here are Blender's: x to the presenter's left (the picture's right), -y towards the camera, z up, measured
from the presenter's neck joint on the floor plan (x, y) and in height.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import bpy
import mathutils
import numpy as np

from studio.shader import Shader

DESK_HEIGHT = -0.508  # top of the news desk, below the neck joint
DESK_EDGE = 0.150  # how far before the neck joint the desk begins


@dataclass(frozen=True)
class Lamp:
    """A soft area light on the presenter: place, side in metres, watts, colour."""

    place: tuple[float, float, float]
    size: float
    power: float
    colour: tuple[float, float, float]


@dataclass(frozen=True)
class Stage:
    """build: adds the objects of the set; lamps: those that light the presenter; world: ambient colour and strength."""

    build: Callable[[], None]
    lamps: tuple[Lamp, ...]
    world: tuple[tuple[float, float, float], float]
    desk: bool
    exposure: float = 0.0


class Kit:
    """Boxes, panels and lamps at a place relative to the neck joint."""

    def __init__(self, neck: tuple[float, float, float]) -> None:
        self.neck = np.array(neck)
        self._materials: dict[str, bpy.types.Material] = {}

    def paint(self, name: str, colour, roughness: float = 0.6, metallic: float = 0.0, grain: float = 0.0):
        """A plain material; grain 0..1 adds wood grain along z."""
        if name not in self._materials:
            shader = Shader(f"stage {name}")
            tone = np.array(colour)
            if grain:
                place = shader.node("ShaderNodeTexCoord").outputs["Object"]
                fibres = shader.noise(shader.stretched(place, (38.0, 38.0, 1.6)), 1.0, 5, 0.6)
                tone = shader.mix(shader.ramp(fibres, 0.3, 0.7), tone * (1 - grain), tone * (1 + 0.5 * grain))
            shader.set(Base_Color=tone, Roughness=roughness, Metallic=metallic)
            self._materials[name] = shader.material
        return self._materials[name]

    def glow(self, name: str, colour, strength: float):
        if name not in self._materials:
            shader = Shader(f"stage {name}")
            shader.emit(colour, strength)
            self._materials[name] = shader.material
        return self._materials[name]

    def screen(self, name: str, picture: np.ndarray, strength: float):
        shader = Shader(f"stage {name}")
        place = shader.node("ShaderNodeTexCoord").outputs["UV"]
        shader.emit(shader.picture(picture, place, colour="sRGB"), strength)
        return shader.material

    def box(self, centre, size, material, bevel: float = 0.004):
        bpy.ops.mesh.primitive_cube_add(size=1, location=tuple(self.neck + centre))
        thing = bpy.context.object
        thing.scale = size
        thing.data.materials.append(material)
        bpy.ops.object.transform_apply(location=False, rotation=False, scale=True)
        if bevel:
            thing.modifiers.new("bevel", "BEVEL").width = bevel
        return thing

    def panel(self, centre, width: float, height: float, material, turn: float = 0.0):
        """An upright picture facing the camera, turned about the vertical by `turn` radians."""
        bpy.ops.mesh.primitive_plane_add(size=1, location=tuple(self.neck + centre), rotation=(math.pi / 2, 0, turn))
        thing = bpy.context.object
        thing.scale = (width, height, 1)
        thing.data.materials.append(material)
        return thing

    def light(self, place, target, size: float, power: float, colour) -> bpy.types.Object:
        lamp = bpy.data.lights.new("area", "AREA")
        lamp.size, lamp.energy, lamp.color = size, power, colour
        thing = bpy.data.objects.new("area", lamp)
        thing.location = tuple(self.neck + place)
        way = mathutils.Vector(tuple(np.array(target) - np.array(place)))
        thing.rotation_euler = way.to_track_quat("-Z", "Y").to_euler()
        thing.visible_camera = False
        bpy.context.scene.collection.objects.link(thing)
        return thing


def desk(kit: Kit) -> list[bpy.types.Object]:
    """The desk before the presenter: dark lacquer with a metal edge."""
    top = kit.paint("desk", (0.030, 0.020, 0.016), roughness=0.34, grain=0.5)
    edge = kit.paint("desk edge", (0.45, 0.42, 0.38), roughness=0.25, metallic=1.0)
    deep = 0.75
    return [
        kit.box((0, -DESK_EDGE - deep / 2, DESK_HEIGHT - 0.02), (2.6, deep, 0.04), top, 0.006),
        kit.box((0, -DESK_EDGE + 0.003, DESK_HEIGHT - 0.018), (2.6, 0.006, 0.022), edge, 0.002),
    ]


def _news(kit: Kit) -> None:
    wall = kit.paint("wall", (0.030, 0.050, 0.090), roughness=0.55)
    slat = kit.paint("slat", (0.110, 0.055, 0.026), roughness=0.45, grain=0.5)
    dark = kit.paint("dark", (0.010, 0.012, 0.018), roughness=0.4)
    steel = kit.paint("steel", (0.22, 0.25, 0.30), roughness=0.3, metallic=1.0)
    blue, warm = kit.glow("blue line", (0.10, 0.38, 1.0), 7.0), kit.glow("warm line", (1.0, 0.56, 0.24), 6.0)
    kit.box((0, 2.30, 0.2), (6.0, 0.06, 4.0), wall, 0)
    for k in range(15):  # slats at the picture's left
        kit.box((-1.32 + 0.055 * k, 2.16, 0.2), (0.030, 0.05, 3.0), slat, 0.004)
    kit.box((-1.40, 2.15, 0.2), (0.016, 0.03, 3.0), warm, 0)
    kit.box((-0.50, 2.15, 0.2), (0.016, 0.03, 3.0), warm, 0)
    kit.box((0.72, 2.10, 0.20), (1.62, 0.06, 0.98), dark, 0.01)  # the screen and its frame
    kit.panel((0.72, 2.06, 0.20), 1.56, 0.92, kit.screen("screen", world_screen(), 1.6))
    kit.box((0, 2.12, -0.50), (6.0, 0.10, 0.035), steel, 0.004)
    kit.box((0, 2.08, -0.535), (6.0, 0.02, 0.012), blue, 0)
    kit.box((0, 2.10, -0.80), (6.0, 0.12, 0.50), dark, 0)
    for x in (-0.40, 1.62):
        kit.box((x, 2.20, 0.2), (0.05, 0.10, 3.0), steel, 0.004)
    kit.light((-0.9, 1.5, 1.5), (-0.9, 2.2, 0), 0.5, 34, (1.0, 0.72, 0.48))
    kit.light((0.3, 1.4, 1.8), (0.5, 2.3, 0.2), 0.8, 34, (0.55, 0.72, 1.0))


def _bright(kit: Kit) -> None:
    wall = kit.paint("plaster", (0.62, 0.60, 0.57), roughness=0.8)
    wood = kit.paint("oak", (0.36, 0.22, 0.12), roughness=0.5, grain=0.35)
    shelf = kit.paint("shelf", (0.70, 0.68, 0.64), roughness=0.5)
    leaf = kit.paint("leaf", (0.045, 0.120, 0.040), roughness=0.5)
    pot = kit.paint("pot", (0.50, 0.30, 0.20), roughness=0.7)
    frame = kit.paint("frame", (0.05, 0.05, 0.055), roughness=0.4)
    lamp = kit.glow("lamp", (1.0, 0.80, 0.58), 5.0)
    books = [
        kit.paint(f"book {k}", c, 0.7)
        for k, c in enumerate(((0.30, 0.07, 0.05), (0.05, 0.13, 0.20), (0.55, 0.44, 0.22), (0.10, 0.17, 0.12)))
    ]  # noqa: E501
    rng = np.random.default_rng(4)
    kit.box((0, 2.30, 0.2), (6.0, 0.06, 4.0), wall, 0)
    kit.box((0.85, 2.22, 0.10), (1.30, 0.04, 0.86), frame, 0.01)
    kit.panel((0.85, 2.19, 0.10), 1.24, 0.80, kit.screen("screen", city_screen(), 1.15))
    for k in range(9):  # oak fins at the picture's left
        kit.box((-1.30 + 0.075 * k, 2.18, 0.2), (0.038, 0.10, 4.0), wood, 0.004)
    kit.box((-0.55, 2.20, 0.2), (0.02, 0.03, 4.0), lamp, 0)
    for height in (-0.16, 0.30):  # two shelves with books between fins and screen
        kit.box((-0.22, 2.12, height), (0.56, 0.26, 0.025), shelf, 0.004)
        x = -0.46
        while x < -0.10:
            thick, tall = rng.uniform(0.018, 0.045), rng.uniform(0.17, 0.25)
            kit.box(
                (x + thick / 2, 2.12, height + 0.0125 + tall / 2), (thick, 0.17, tall), books[rng.integers(4)], 0.002
            )
            x += thick + 0.002
    bpy.ops.mesh.primitive_uv_sphere_add(radius=0.075, location=tuple(kit.neck + (-0.01, 2.10, 0.39)))
    bpy.context.object.data.materials.append(lamp)
    bpy.ops.object.shade_smooth()
    kit.box((1.75, 1.9, -0.62), (0.30, 0.30, 0.30), pot, 0.02)
    for _ in range(70):  # a plant
        angle, rise = rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 0.9)
        place = kit.neck + (1.75 + 0.28 * rise * np.cos(angle), 1.9 + 0.28 * rise * np.sin(angle), -0.45 + 0.75 * rise)
        bpy.ops.mesh.primitive_uv_sphere_add(segments=10, ring_count=6, radius=1, location=tuple(place))
        thing = bpy.context.object
        thing.scale = (0.03, 0.010, 0.085)
        thing.rotation_euler = tuple(rng.uniform(-0.9, 0.9, 3) + (0, 0, angle))
        thing.data.materials.append(leaf)
    kit.light((0, 0.9, 2.2), (0.2, 2.3, 0.0), 1.6, 85, (1.0, 0.97, 0.93))
    kit.light((-1.4, 1.2, 1.2), (-0.8, 2.3, 0.0), 0.6, 10, (1.0, 0.88, 0.72))


def world_screen(width: int = 768, height: int = 448) -> np.ndarray:
    """A made-up map of dots -> (H, W, 3) uint8."""
    rng = np.random.default_rng(21)
    y, x = np.mgrid[0:height, 0:width]
    u, v = x / width, y / height
    field = sum(
        np.cos(2 * np.pi * (fx * u + fy * v) + p) / np.hypot(fx, fy)
        for fx, fy, p in zip(rng.uniform(-4, 4, 14), rng.uniform(-4, 4, 14), rng.uniform(0, 6.3, 14), strict=True)
    )
    land = 1 / (1 + np.exp(-(field + 0.05) * 9))
    dots = np.exp(-((((x % 10) - 4.5) ** 2 + ((y % 10) - 4.5) ** 2) / 5.0))
    picture = np.array([14, 42, 96]) * (1.25 - 0.6 * v)[..., None] + (land * dots)[..., None] * np.array(
        [110, 175, 220]
    )
    return np.clip(picture, 0, 255).astype(np.uint8)


def city_screen(width: int = 640, height: int = 416) -> np.ndarray:
    """A pale morning skyline behind soft haze -> (H, W, 3) uint8."""
    rng = np.random.default_rng(5)
    v = np.linspace(0, 1, height)[:, None, None]
    picture = np.broadcast_to((1 - v) * [150, 190, 225] + v * [250, 226, 200], (height, width, 3)).copy()
    for layer, haze in enumerate((0.72, 0.50, 0.28)):
        x = 0
        while x < width:
            wide = int(rng.uniform(14, 46))
            top = int(height * (rng.uniform(0.30, 0.62) + 0.09 * layer))
            tone = haze * np.array([205, 212, 222]) + (1 - haze) * np.array([70, 92, 122])
            picture[top:, x : x + wide] = tone
            for row in range(top + 6, height - 6, 11):
                lit = rng.random(max(1, wide // 7)) < 0.3
                for k in np.flatnonzero(lit):
                    picture[row : row + 4, x + 3 + 7 * k : x + 6 + 7 * k] += (1 - haze) * np.array([60, 50, 25])
            x += wide + int(rng.uniform(0, 6))
    return np.clip(picture, 0, 255).astype(np.uint8)


STAGES = {
    "news desk": Stage(
        _news,
        (
            Lamp((-1.25, -1.55, 1.15), 1.0, 52, (1.0, 0.955, 0.90)),  # key
            Lamp((1.6, -1.5, 0.45), 1.5, 15, (0.86, 0.93, 1.0)),  # fill
            Lamp((1.05, 1.0, 0.95), 0.6, 15, (0.72, 0.86, 1.0)),  # rim
            Lamp((-1.05, 1.0, 0.85), 0.5, 11, (1.0, 0.86, 0.70)),  # rim
            Lamp((0.1, -2.1, -0.25), 0.6, 4, (1.0, 0.96, 0.92)),  # from below the lens
        ),
        ((0.45, 0.58, 0.80), 0.16),
        desk=True,
        exposure=0.7,
    ),
    "bright studio": Stage(
        _bright,
        (
            Lamp((1.2, -1.6, 1.0), 1.3, 50, (1.0, 0.97, 0.94)),
            Lamp((-1.6, -1.4, 0.4), 1.7, 14, (0.95, 0.97, 1.0)),
            Lamp((-1.0, 1.0, 1.0), 0.8, 10, (1.0, 0.95, 0.88)),
            Lamp((1.0, 1.1, 0.9), 0.8, 7, (1.0, 0.97, 0.93)),
        ),
        ((0.85, 0.90, 1.0), 0.38),
        desk=False,
        exposure=0.5,
    ),
}
