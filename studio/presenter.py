"""A synthetic presenter in Blender Cycles: skin, eyes, hair, suit and studio, all procedural.

The geometry comes from a `Body` that holds all MakeHuman vertices (CC0 data, posed by our own skinning); shaders,
cut of the clothes, hair and light are ours.  `PresenterScene.set_frame` takes posed vertices, so anything that can pose
the rig can be filmed.  Needs `bpy` (development time only, see `studio/README.md`).

Coordinates of the rig: metres, y up, z towards the camera.  Blender: z up, -y towards the camera.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import bpy
import mathutils
import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from scipy.spatial import cKDTree

from avatar_app.mesh.body import Body
from avatar_app.mesh.camera import Camera
from studio import makehuman
from studio.geometry import quad_normals, sample_surface, triangle_frames, triangulate
from studio.outfit import Outfit

Socket = bpy.types.NodeSocket


@dataclass(frozen=True)
class Look:
    """Colours (linear RGB) and hair dressing of one presenter."""

    skin: tuple[float, float, float] = (0.60, 0.365, 0.26)
    hair: tuple[float, float, float] = (0.018, 0.0105, 0.0065)
    lips: tuple[float, float, float] = (0.44, 0.185, 0.155)
    iris: tuple[tuple[float, float, float], tuple[float, float, float]] = ((0.045, 0.06, 0.07), (0.13, 0.17, 0.18))
    brow: tuple[tuple[float, float], ...] = (
        (0.0115, 0.0150),
        (0.020, 0.0178),
        (0.031, 0.0205),
        (0.042, 0.0196),
        (0.054, 0.0125),
    )
    brow_half_width: float = 0.0033
    beard_shadow: float = 0.7
    suit: tuple[float, float, float] = (0.017, 0.022, 0.038)
    shirt: tuple[float, float, float] = (0.72, 0.74, 0.78)
    tie: tuple[float, float, float] = (0.15, 0.012, 0.022)
    tie_stripe: tuple[float, float, float] = (0.03, 0.05, 0.12)
    strands: int = 11000


@dataclass
class RenderQuality:
    """Cycles settings; the defaults are the measured sweet spot on a CPU (about 7 s a frame at 512 px on two cores)."""

    samples: int = 6
    threads: int = 2
    max_bounces: int = 3


def to_blender(points: np.ndarray) -> np.ndarray:
    """(..., 3) rig coordinates -> Blender coordinates."""
    return np.stack([points[..., 0], -points[..., 2], points[..., 1]], -1)


AXES = np.array([[1, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]])


class Shader:
    """A material's node tree with one-line helpers; sockets and constants mix freely as inputs."""

    def __init__(self, name: str) -> None:
        self.material = bpy.data.materials.new(name)
        self.material.use_nodes = True
        self.tree = self.material.node_tree
        self.bsdf = next(n for n in self.tree.nodes if n.type == "BSDF_PRINCIPLED")

    def node(self, kind: str, inputs: dict | None = None, **attributes):
        node = self.tree.nodes.new(kind)
        for key, value in attributes.items():
            setattr(node, key, value)
        for key, value in (inputs or {}).items():
            self.plug(node.inputs[key], value)
        return node

    def plug(self, socket: Socket, value) -> None:
        if isinstance(value, Socket):
            self.tree.links.new(value, socket)
        elif (
            isinstance(value, tuple | list | np.ndarray)
            and len(value) == 3
            and len(getattr(socket, "default_value", ())) == 4
        ):
            socket.default_value = (*value, 1)
        else:
            socket.default_value = value

    def set(self, **inputs) -> None:
        """Plug values into the principled BSDF; underscores stand for spaces."""
        for key, value in inputs.items():
            self.plug(self.bsdf.inputs[key.replace("_", " ")], value)

    def math(self, operation: str, a, b=0.0) -> Socket:
        return self.node("ShaderNodeMath", {0: a, 1: b}, operation=operation).outputs[0]

    def mix(self, factor, a, b) -> Socket:
        node = self.tree.nodes.new("ShaderNodeMix")
        node.data_type = "RGBA"
        for index, value in ((0, factor), (6, a), (7, b)):
            self.plug(node.inputs[index], value)
        return node.outputs[2]

    def ramp(self, value, low: float, high: float, out: float = 1.0) -> Socket:
        return self.node("ShaderNodeMapRange", {0: value, 1: low, 2: high, 4: out}).outputs[0]

    def attribute(self, name: str, output: str = "Vector") -> Socket:
        return self.node("ShaderNodeAttribute", attribute_name=name).outputs[output]

    def noise(self, vector, scale: float, detail: float = 3.0, distortion: float = 0.0) -> Socket:
        inputs = {"Vector": vector, "Scale": scale, "Detail": detail, "Distortion": distortion}
        return self.node("ShaderNodeTexNoise", inputs).outputs[0]

    def separate(self, vector) -> tuple[Socket, Socket, Socket]:
        return tuple(self.node("ShaderNodeSeparateXYZ", {0: vector}).outputs)

    def picture(self, picture: np.ndarray | str, vector, extension: str = "EXTEND", colour: bool = False) -> Socket:
        """An image texture from an (H, W) or (H, W, 3) uint8 array or from a file."""
        space = "sRGB" if colour else "Non-Color"
        if isinstance(picture, str):
            image = bpy.data.images.load(picture)
            image.colorspace_settings.name = space
        else:
            picture = picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, 2)
            height, width = picture.shape[:2]
            image = bpy.data.images.new("picture", width, height)
            image.colorspace_settings.name = space  # before the pixels: changing it later clears them
            pixels = np.ones((height, width, 4), np.float32)
            pixels[..., :3] = picture / 255.0
            image.pixels.foreach_set(pixels[::-1].ravel())
            image.update()
        return self.node("ShaderNodeTexImage", {0: vector}, image=image, extension=extension).outputs[0]

    def planar(self, rest: Socket, origin: tuple[float, float], side: float) -> Socket:
        """Front projection of the rest position: a `side` metres square at `origin` (lower left) -> unit square."""
        moved = self.node("ShaderNodeVectorMath", {0: rest, 1: (*origin, 0)}, operation="SUBTRACT").outputs[0]
        return self.node("ShaderNodeVectorMath", {0: moved, 3: 1 / side}, operation="SCALE").outputs[0]


@dataclass
class _Skinned:
    mesh: bpy.types.Mesh
    index: np.ndarray
    shell: Callable[[np.ndarray], np.ndarray] | None = None


@dataclass
class PresenterScene:
    """Everything in front of the camera.  Build once, then `set_frame` + `render` per frame."""

    film_body: Body  # with all 19158 MakeHuman vertices
    look: Look = field(default_factory=Look)
    quality: RenderQuality = field(default_factory=RenderQuality)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(1)
        base = makehuman.load_base_mesh()
        self.uv, self.groups = base.uv, base.groups
        self.rest, self.joints = self.film_body.vertices.astype(np.float64), self.film_body.joints
        self.weights = self.film_body.weights
        self.outfit = Outfit(self.film_body)
        self.skinned: list[_Skinned] = []
        self._measure_head()
        self._reset_blender()
        self._skin()
        self._mouth()
        self._eyes()
        self._clothes()
        self._hair()
        self._brows()
        self._lashes()
        self._studio()

    # -- set-up
    def _reset_blender(self) -> None:
        for thing in list(bpy.data.objects):
            bpy.data.objects.remove(thing)
        scene = self.scene = bpy.context.scene
        scene.render.engine = "CYCLES"
        cycles = scene.cycles
        cycles.device, cycles.samples = "CPU", self.quality.samples
        cycles.use_denoising, cycles.denoiser = True, "OPENIMAGEDENOISE"
        cycles.denoising_input_passes, cycles.denoising_prefilter = "RGB_ALBEDO_NORMAL", "NONE"
        cycles.denoising_quality = "BALANCED"
        cycles.use_adaptive_sampling, cycles.adaptive_threshold = True, 0.03
        cycles.max_bounces, cycles.diffuse_bounces, cycles.glossy_bounces = self.quality.max_bounces, 2, 2
        cycles.transparent_max_bounces, cycles.sample_clamp_indirect, cycles.filter_width = 12, 4, 1.3
        cycles.caustics_reflective = cycles.caustics_refractive = False
        scene.render.use_persistent_data = True
        scene.render.threads_mode, scene.render.threads = "FIXED", self.quality.threads
        scene.render.resolution_percentage = 100
        scene.view_settings.view_transform, scene.view_settings.exposure = "AgX", 0.3
        scene.view_settings.look = "AgX - Medium High Contrast"
        scene.cycles_curves.shape, scene.cycles_curves.subdivisions = "RIBBONS", 2

    def _measure_head(self) -> None:
        body = self.verts("body")
        self.eye_y, self.neck = self.joints[23][1], self.joints[12]
        self.head = body[self.weights[body][:, [15, 22]].sum(1) > 0.7]
        self.head_centre = np.array([0, self.eye_y + 0.025, self.rest[self.head, 2].mean() * 0.5])
        rolls = self._unit("mouthRollLower") + self._unit("mouthRollUpper")
        self.mouth = self.rest[body[np.linalg.norm(rolls[body], axis=1) > 0.003]].mean(0)
        self.head_width = np.abs(self.rest[self.head, 0]).max()

    def _unit(self, name: str) -> np.ndarray:
        offsets = np.zeros_like(self.rest)
        body = self.film_body
        offsets[body.expression_vertices] = body.expression[body.expression_names.index(name)]
        return offsets

    def verts(self, group: str) -> np.ndarray:
        return np.unique(self.groups[group][..., 0])

    def _add_mesh(self, name, quads, material, uv=None, subdivide=0, shell=None, attributes=None):
        index, inverse = np.unique(quads, return_inverse=True)
        mesh = bpy.data.meshes.new(name)
        mesh.from_pydata(to_blender(self.rest[index]).tolist(), [], inverse.reshape(quads.shape).tolist())
        mesh.attributes.new("rest", "FLOAT_VECTOR", "POINT").data.foreach_set(
            "vector", self.rest[index].astype(np.float32).ravel()
        )
        for key, values in (attributes or {}).items():
            mesh.attributes.new(key, "FLOAT", "POINT").data.foreach_set("value", values[index].astype(np.float32))
        if uv is not None:
            mesh.uv_layers.new(name="UV").data.foreach_set("uv", self.uv[uv].astype(np.float32).ravel())
        mesh.shade_smooth()
        mesh.materials.append(material)
        thing = bpy.data.objects.new(name, mesh)
        self.scene.collection.objects.link(thing)
        if subdivide:
            modifier = thing.modifiers.new("subdivision", "SUBSURF")
            modifier.levels = modifier.render_levels = subdivide
        self.skinned.append(_Skinned(mesh, index, shell))
        return thing

    def _add_curves(self, name: str, points: np.ndarray, radius: np.ndarray, material):
        """(n, k, 3) Blender coordinates and (k,) radii -> hair curves object."""
        count, length = points.shape[:2]
        curves = bpy.data.hair_curves.new(name)
        curves.add_curves([length] * count)
        curves.position_data.foreach_set("vector", points.astype(np.float32).ravel())
        radii = curves.attributes.get("radius") or curves.attributes.new("radius", "FLOAT", "POINT")
        radii.data.foreach_set("value", np.broadcast_to(radius, (count, length)).astype(np.float32).ravel())
        curves.materials.append(material)
        thing = bpy.data.objects.new(name, curves)
        self.scene.collection.objects.link(thing)
        return thing

    # -- skin
    def _hairline(self, points: np.ndarray) -> np.ndarray:
        """Height above (positive) or below the hairline."""
        x, y, z = points[:, 0], points[:, 1], points[:, 2]
        front, back = self.rest[self.head, 2].max() - 0.025, self.rest[self.head, 2].min()
        depth = (z - back) / (front - back)
        knots = [-0.01, 0.25, 0.42, 0.55, 0.66, 0.76, 0.86, 1.05]
        line = np.interp(depth, knots, [-0.085, -0.07, -0.05, -0.012, 0.012, 0.040, 0.056, 0.062])
        temple = 0.006 * np.exp(-(((np.abs(x) - 0.043) / 0.014) ** 2)) * (depth > 0.7)
        ripple = 0.0025 * np.sin(x * 210 + 1) * (depth > 0.7)
        return y - self.eye_y - line - temple - ripple

    def _on_ear(self, points: np.ndarray) -> np.ndarray:
        beside = np.abs(points[:, 0]) > self.head_width - 0.0165
        return beside & (np.abs(points[:, 1] - self.eye_y + 0.012) < 0.045) & (points[:, 2] < 0.085)

    def _face_paint(self) -> tuple[np.ndarray, tuple[float, float]]:
        """Masks on a 0.24 m front projection: redness, beard, brow base, eye socket -> (S, S, 4) uint8, origin."""
        size, origin = 1024, (-0.12, self.eye_y - 0.14)
        scale = size / 0.24

        def at(x, y):
            return (x - origin[0]) * scale, size - (y - origin[1]) * scale

        def layer(blur, paint):
            image = Image.new("L", (size, size))
            paint(ImageDraw.Draw(image))
            return np.array(image.filter(ImageFilter.GaussianBlur(blur)))

        eye, mouth = self.eye_y, self.mouth[1]

        def redness(draw):
            spots = ((0.042, eye - 0.042, 0.026, 0.02, 150), (-0.042, eye - 0.042, 0.026, 0.02, 150))
            for x, y, rx, ry, value in (
                *spots,
                (0, eye - 0.036, 0.014, 0.018, 150),
                (0, mouth - 0.035, 0.018, 0.01, 70),
            ):
                draw.ellipse([*at(x - rx, y + ry), *at(x + rx, y - ry)], fill=value)

        def beard(draw):
            side = [(0.08, eye - 0.02), (0.062, eye - 0.055), (0.036, mouth + 0.012), (0.018, mouth + 0.022)]
            outline = [(-x, y) for x, y in side] + side[::-1] + [(0.09, eye - 0.14), (-0.09, eye - 0.14)]
            draw.polygon([at(x, y) for x, y in outline], fill=200)
            draw.ellipse([*at(-0.027, mouth + 0.010), *at(0.027, mouth - 0.014)], fill=30)

        def brows(draw):
            for side in (-1, 1):
                line = [at(side * x, eye + y) for x, y in self.look.brow]
                draw.line(line, fill=120, width=int(0.0048 * scale))

        def sockets(draw):
            x = abs(self.joints[23][0])
            for side in (-1, 1):
                draw.ellipse([*at(side * x - 0.019, eye + 0.013), *at(side * x + 0.019, eye - 0.015)], fill=90)

        layers = [layer(38, redness), layer(22, beard), layer(9, brows), layer(12, sockets)]
        return np.stack(layers, -1), origin

    def _skin(self) -> None:
        look, shader = self.look, Shader("skin")
        tone = np.array(look.skin)
        paint, origin = self._face_paint()
        rest = shader.attribute("rest")
        projected = shader.planar(rest, origin, 0.24)
        first = shader.node("ShaderNodeSeparateColor", {0: shader.picture(paint[..., :3], projected, "CLIP")}).outputs
        socket = shader.picture(paint[..., 3], projected, "CLIP")
        _, _, depth = shader.separate(rest)
        front = shader.ramp(depth, self.joints[15][2] + 0.012, self.joints[15][2] + 0.055)
        blotch, fine = shader.noise(rest, 28, 5), shader.noise(rest, 320, 3)
        pores = shader.node("ShaderNodeTexVoronoi", {"Vector": rest, "Scale": 1100.0}).outputs[0]

        def on_front(mask, amount):
            return shader.math("MULTIPLY", shader.math("MULTIPLY", mask, front), amount)

        colour = shader.mix(shader.ramp(blotch, 0.35, 0.7), tone * (0.9, 0.84, 0.8), tone * (1.07, 1.04, 1.03))
        colour = shader.mix(shader.math("MULTIPLY", fine, 0.5), colour, tone * (0.72, 0.6, 0.55))
        colour = shader.mix(on_front(first[0], 0.5), colour, tone * (1.05, 0.62, 0.58))
        colour = shader.mix(on_front(first[1], look.beard_shadow), colour, tone * (0.42, 0.45, 0.52))
        colour = shader.mix(on_front(socket, 0.55), colour, tone * (0.62, 0.45, 0.42))
        colour = shader.mix(on_front(first[2], 0.8), colour, np.array(look.hair) * 1.6)
        uv = shader.node("ShaderNodeUVMap", uv_map="UV").outputs[0]

        def mask(name):
            return shader.picture(str(makehuman.data_root() / "mpfb2/textures" / name), uv)

        lips = mask("mpfb_lips.jpg")
        colour = shader.mix(shader.math("MULTIPLY", lips, 0.75), colour, look.lips)
        colour = shader.mix(shader.math("MULTIPLY", mask("mpfb_ears.jpg"), 0.35), colour, tone * (1.0, 0.6, 0.55))
        colour = shader.mix(mask("mpfb_inside-mouth.jpg"), colour, (0.22, 0.05, 0.045))
        colour = shader.mix(shader.math("MULTIPLY", mask("mpfb_fingernails.jpg"), 0.6), colour, (0.75, 0.5, 0.45))
        colour = shader.mix(
            shader.math("MULTIPLY", shader.attribute("scalp", "Fac"), 0.9), colour, np.array(look.hair) * 1.3
        )
        roughness = shader.math("ADD", shader.math("MULTIPLY", fine, 0.25), 0.33)
        roughness = shader.math("SUBTRACT", roughness, shader.math("MULTIPLY", lips, 0.16))
        height = shader.math("ADD", shader.math("MULTIPLY", pores, 0.6), fine)
        bump = shader.node("ShaderNodeBump", {"Height": height, "Strength": 0.35, "Distance": 0.0008}).outputs[0]
        shader.set(Base_Color=colour, Subsurface_Weight=0.22, Subsurface_Radius=(1, 0.32, 0.18), Subsurface_Scale=0.008)
        shader.set(IOR=1.42, Specular_IOR_Level=0.45, Roughness=roughness, Normal=bump)

        scalp = np.zeros(len(self.rest))
        scalp[self.head] = np.clip(self._hairline(self.rest[self.head]) / 0.012 + 0.4, 0, 1)
        scalp[self.head[self._on_ear(self.rest[self.head])]] = 0
        quads, quad_uv = self.groups["body"][..., 0], self.groups["body"][..., 1]
        visible = self.outfit.visible_skin(quads)
        self._add_mesh("skin", quads[visible], shader.material, quad_uv[visible], 1, attributes={"scalp": scalp})

    # -- mouth and eyes
    def _mouth(self) -> None:
        shader = Shader("teeth")
        x, _, _ = shader.separate(shader.attribute("rest"))
        wave = shader.math("ABSOLUTE", shader.math("SINE", shader.math("MULTIPLY", x, math.pi / 0.0082)))
        shader.set(Base_Color=shader.mix(shader.ramp(wave, 0.0, 0.3), (0.50, 0.38, 0.30), (0.92, 0.88, 0.80)))
        shader.set(Roughness=0.22, Subsurface_Weight=0.15, Subsurface_Scale=0.003)
        for group in ("helper-upper-teeth", "helper-lower-teeth"):
            self._add_mesh(group, self.groups[group][..., 0], shader.material, subdivide=2)
        shader = Shader("tongue")
        shader.set(Base_Color=(0.42, 0.12, 0.11), Roughness=0.35)
        self._add_mesh("tongue", self.groups["helper-tongue"][..., 0], shader.material, subdivide=1)

    def _eyes(self) -> None:
        shader, ring = Shader("eye"), 0.47
        local = shader.node("ShaderNodeTexCoord").outputs["Object"]
        x, y, z = shader.separate(local)
        flat = shader.node("ShaderNodeCombineXYZ", {0: x, 1: z}).outputs[0]
        radius = shader.node("ShaderNodeVectorMath", {0: flat}, operation="LENGTH").outputs[1]
        angle = shader.math("ARCTAN2", z, x)
        spokes = {0: shader.math("MULTIPLY", angle, 9.0), 1: shader.math("MULTIPLY", radius, 3.0)}
        fibre = shader.noise(shader.node("ShaderNodeCombineXYZ", spokes).outputs[0], 2.2, 4)
        iris = shader.mix(shader.ramp(fibre, 0.35, 0.65), *self.look.iris)
        iris = shader.mix(shader.ramp(radius, ring * 0.8, ring), iris, (0.02, 0.02, 0.025))
        iris = shader.mix(shader.ramp(radius, ring * 0.40, ring * 0.46), (0.002, 0.002, 0.002), iris)
        veins = shader.ramp(shader.noise(local, 7, 5, 2.0), 0.52, 0.75, 0.4)
        white = shader.mix(veins, (0.74, 0.70, 0.66), (0.62, 0.33, 0.27))
        white = shader.mix(shader.ramp(radius, 0.55, 0.95, 0.6), white, (0.6, 0.42, 0.36))
        shader.set(Base_Color=shader.mix(shader.ramp(radius, ring * 0.97, ring * 1.05), iris, white), Roughness=0.3)
        shader.set(Coat_Weight=1.0, Coat_Roughness=0.03, Subsurface_Weight=0.1, Subsurface_Scale=0.002)
        self.eyes = []
        for group, joint in (("helper-l-eye", 23), ("helper-r-eye", 24)):
            points = self.rest[self.verts(group)]
            solved = np.linalg.lstsq(np.c_[2 * points, np.ones(len(points))], (points**2).sum(1), rcond=None)[0]
            centre, size = solved[:3], math.sqrt(solved[3] + solved[:3] @ solved[:3]) * 0.995
            bpy.ops.mesh.primitive_uv_sphere_add(segments=48, ring_count=32, radius=1)
            ball = bpy.context.object
            ball.data.shade_smooth()
            ball.data.materials.append(shader.material)
            points = np.array([vertex.co[:] for vertex in ball.data.vertices])
            off_axis = np.hypot(points[:, 0], points[:, 2])
            cornea = (points[:, 1] < 0) & (off_axis < 0.52)
            points[cornea, 1] -= 0.10 * (1 - (off_axis[cornea] / 0.52) ** 2)
            ball.data.vertices.foreach_set("co", points.astype(np.float32).ravel())
            self.eyes.append((ball, joint, centre, size))

    # -- clothes
    def _clothes(self) -> None:
        look, outfit = self.look, self.outfit
        darker = tuple(np.array(look.suit) * 1.12)
        cloths = (
            ("shirt", look.shirt, dict(roughness=0.75, sheen=0.1, weave=1400.0, folds=0.10)),
            ("collar", look.shirt, dict(roughness=0.7, sheen=0.1, weave=1400.0, folds=0.02)),
            ("tie", look.tie, dict(roughness=0.45, sheen=0.2, weave=700.0, folds=0.04, stripe=look.tie_stripe)),
            ("jacket", look.suit, dict(roughness=0.85, sheen=0.35, weave=800.0, folds=0.55)),
            ("lapel", darker, dict(roughness=0.85, sheen=0.35, weave=800.0, folds=0.05)),
        )
        for name, colour, kind in cloths:
            material = self._cloth(name, colour, **kind)
            self._add_mesh(name, outfit.layer_quads(name), material, subdivide=2, shell=outfit.layer_shape(name))

    def _cloth(self, name, colour, roughness, sheen, weave, folds, stripe=None):
        shader, outfit = Shader(name), self.outfit
        rest = shader.attribute("rest")
        x, y, z = shader.separate(rest)
        projected = shader.planar(rest, outfit.origin, outfit.side)
        front, back = (shader.picture(mask, projected) for mask in outfit.masks[name])
        facing = shader.math("GREATER_THAN", z, outfit.split_depth)
        alpha = shader.math("GREATER_THAN", shader.mix(facing, back, front), 0.5)
        reach = shader.math("ABSOLUTE", x)
        inside = shader.math("LESS_THAN", reach, outfit.sleeve_end[name])
        if name == "shirt":
            near, far = outfit.shirt_sleeve
            shown = shader.math("ADD", shader.math("LESS_THAN", reach, near), shader.math("GREATER_THAN", reach, far))
            inside = shader.math("MULTIPLY", inside, shown)
        thread = shader.noise(rest, weave, 2)
        tint = shader.mix(thread, tuple(np.array(colour) * 0.7), tuple(np.array(colour) * 1.3))
        if stripe:
            diagonal = shader.math("MULTIPLY", shader.math("ADD", x, y), 260.0)
            tint = shader.mix(shader.math("GREATER_THAN", shader.math("SINE", diagonal), 0.55), tint, stripe)
        if name == "jacket":
            tint = self._jacket_details(shader, x, y, tint)
        height = shader.math("MULTIPLY", shader.noise(rest, 9, 3, 0.6), 0.25)
        height = shader.math("ADD", height, shader.math("MULTIPLY", self._folds(shader, rest, x, y), folds))
        height = shader.math("ADD", height, shader.math("MULTIPLY", thread, 0.012))
        bump = shader.node("ShaderNodeBump", {"Height": height, "Strength": 0.5, "Distance": 0.02}).outputs[0]
        shader.set(Base_Color=tint, Alpha=shader.math("MULTIPLY", alpha, inside), Roughness=roughness)
        shader.set(Sheen_Weight=sheen, Specular_IOR_Level=0.25, Normal=bump)
        return shader.material

    def _folds(self, shader: Shader, rest, x, y) -> Socket:
        """Creases across the sleeve near elbow and armpit and from the button outwards, as a height."""
        elbow, shoulder = abs(self.joints[18][0]), abs(self.joints[16][0])
        along = shader.math("ABSOLUTE", x)
        warp = shader.math("MULTIPLY", shader.noise(rest, 14, 2), 9.0)
        ridge = shader.math("SINE", shader.math("ADD", shader.math("MULTIPLY", along, 150.0), warp))

        def near(value, centre, width):
            offset = shader.math("DIVIDE", shader.math("SUBTRACT", value, centre), width)
            return shader.math("EXPONENT", shader.math("MULTIPLY", shader.math("MULTIPLY", offset, offset), -1.0))

        sleeve = shader.math(
            "ADD", near(along, elbow, 0.075), shader.math("MULTIPLY", near(along, shoulder - 0.02, 0.05), 0.6)
        )
        button = self.neck[1] + self.outfit.button_y
        drag = shader.math(
            "SINE",
            shader.math(
                "ADD", shader.math("MULTIPLY", shader.math("ADD", shader.math("MULTIPLY", y, 1.6), along), 75.0), warp
            ),
        )
        torso = shader.math("MULTIPLY", near(y, button, 0.07), near(along, 0.08, 0.07))
        return shader.math(
            "ADD",
            shader.math("MULTIPLY", ridge, sleeve),
            shader.math("MULTIPLY", drag, shader.math("MULTIPLY", torso, 0.5)),
        )

    def _jacket_details(self, shader: Shader, x, y, tint) -> Socket:
        """Closing edge, two buttons and a breast pocket with a white square, painted in rest space."""
        neck, button = self.neck[1], self.neck[1] + self.outfit.button_y

        def inside(value, low, high):
            return shader.math(
                "MULTIPLY", shader.math("GREATER_THAN", value, low), shader.math("LESS_THAN", value, high)
            )

        _, _, z = shader.separate(shader.attribute("rest"))
        front = shader.math("GREATER_THAN", z, self.outfit.split_depth)
        edge = shader.math("MULTIPLY", inside(x, 0.0015, 0.0045), shader.math("LESS_THAN", y, button))
        tint = shader.mix(
            shader.math("MULTIPLY", shader.math("MULTIPLY", edge, front), 0.85), tint, (0.004, 0.005, 0.008)
        )
        for drop in (0.028, 0.128):
            dx, dy = shader.math("SUBTRACT", x, -0.012), shader.math("SUBTRACT", y, button - drop)
            r2 = shader.math("ADD", shader.math("MULTIPLY", dx, dx), shader.math("MULTIPLY", dy, dy))
            disc = shader.math("MULTIPLY", shader.math("LESS_THAN", r2, 0.0085**2), front)
            tint = shader.mix(disc, tint, (0.006, 0.007, 0.010))
        top = neck - 0.175
        slant = shader.math("ADD", y, shader.math("MULTIPLY", x, -0.12))
        pocket = shader.math("MULTIPLY", inside(x, 0.088, 0.150), inside(slant, top - 0.016, top))
        tint = shader.mix(
            shader.math("MULTIPLY", shader.math("MULTIPLY", pocket, front), 0.6),
            tint,
            tuple(np.array(self.look.suit) * 0.45),
        )
        square = shader.math("MULTIPLY", inside(x, 0.095, 0.143), inside(slant, top, top + 0.013))
        return shader.mix(shader.math("MULTIPLY", square, front), tint, self.look.shirt)

    # -- hair
    def _hair(self) -> None:
        shader = Shader("hair")
        strand = shader.tree.nodes.new("ShaderNodeBsdfHairPrincipled")
        strand.parametrization = "COLOR"
        strand.inputs["Color"].default_value = (*self.look.hair, 1)
        strand.inputs["Roughness"].default_value, strand.inputs["Radial Roughness"].default_value = 0.34, 0.5
        shader.tree.links.new(strand.outputs[0], shader.tree.nodes["Material Output"].inputs[0])
        self.strands = self._grow_hair()
        radius = 0.00017 * np.r_[np.ones(self.strands.shape[1] - 2), 0.7, 0.25]
        self.hair = self._add_curves("hair", to_blender(self.strands), radius, shader.material)

    def _grow_hair(self) -> np.ndarray:
        """Short hair brushed back and a little to one side -> (strands, 8, 3) rest coordinates."""
        rng, rest, count, steps = self.rng, self.rest, self.look.strands, 8
        quads = self.groups["body"][..., 0]
        triangles = triangulate(quads[self.weights[quads][:, :, 15].mean(1) > 0.6])
        centre = rest[triangles].mean(1)
        outer = np.linalg.norm(centre - self.head_centre, axis=1) > 0.06
        scalp = triangles[
            (self._hairline(centre) > -0.012) & ~self._on_ear(centre) & outer & (centre[:, 1] > self.eye_y - 0.1)
        ]
        _, _, root = sample_surface(count * 3, scalp, rest, rng)
        root = root[self._hairline(root) + rng.normal(0, 0.0025, len(root)) > 0][:count]
        _, _, skull = sample_surface(60000, triangles, rest, rng)
        skull_normal = quad_normals(rest, quads)[self.head][cKDTree(rest[self.head]).query(skull)[1]]
        skull_tree = cKDTree(skull)
        normal = skull_normal[skull_tree.query(root)[1]]

        x = root[:, 0]
        top = np.clip((root[:, 1] - (self.eye_y + 0.05)) / 0.03, 0, 1)
        front = np.clip((root[:, 2] - 0.03) / 0.07, 0, 1)
        clump = cKDTree(root[rng.choice(len(root), len(root) // 30)]).query(root)[1]
        clump_noise, own_noise = rng.normal(0, 1, (len(root), 3))[clump], rng.normal(0, 1, (len(root), 3))
        swept = np.stack(
            [-0.38 - 0.15 * front + 0.9 * x / 0.08 * (1 - front) * 0.3, 0.15 * front, -0.85 + 0.1 * front], 1
        )
        down = np.stack([np.zeros_like(x), -np.ones_like(x), -0.55 - 0.3 * (root[:, 2] > 0.03)], 1)
        direction = swept * top[:, None] + down * (1 - top[:, None]) + 0.14 * clump_noise + 0.07 * own_noise
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        length = 0.010 + 0.036 * top + 0.014 * front * top - 0.003 * (root[:, 1] < self.eye_y - 0.02)
        length *= 1 + 0.085 * rng.normal(0, 1, len(x)) + 0.1 * clump_noise[:, 0]
        lift = 0.0025 + top * (0.007 + 0.009 * front)

        points = np.zeros((len(root), steps, 3))
        points[:, 0], current = root - normal * 0.0008, root.copy()
        for step in range(1, steps):
            fraction = step / (steps - 1)
            current = current + direction * (length / (steps - 1))[:, None]
            nearest = skull_tree.query(current)[1]
            n = skull_normal[nearest]
            height = ((current - skull[nearest]) * n).sum(1)
            target = lift * np.sin(np.pi * min(1, 0.15 + 0.72 * fraction))
            current = current + n * (target - height)[:, None]
            direction = direction - n * (direction * n).sum(1)[:, None] * 0.8
            direction /= np.linalg.norm(direction, axis=1, keepdims=True)
            points[:, step] = current + (0.0010 * own_noise + 0.0014 * clump_noise) * fraction
        return points

    def _brows(self) -> None:
        """Brow hairs bound to skin triangles, so that they follow raises and frowns."""
        rng, rest, eye = self.rng, self.rest, self.eye_y
        quads = self.groups["body"][..., 0]
        triangles = triangulate(quads[self.weights[quads][:, :, 15].mean(1) > 0.6])
        centre = rest[triangles].mean(1)
        triangles = triangles[(centre[:, 2] > 0.04) & (np.abs(centre[:, 1] - eye - 0.022) < 0.02)]
        chosen, bary, root = sample_surface(30000, triangles, rest, rng)
        line = np.array(self.look.brow)
        x = np.abs(root[:, 0])
        along = np.clip((x - line[0, 0]) / (line[-1, 0] - line[0, 0]), 0, 1)
        height = np.interp(x, line[:, 0], line[:, 1])
        width = self.look.brow_half_width * np.interp(along, [0, 0.12, 0.3, 0.65, 1], [0.4, 0.8, 1, 0.7, 0.12])
        width = width * (1 + 0.25 * rng.normal(size=len(along)))
        inside = (x > line[0, 0]) & (x < line[-1, 0]) & (np.abs(root[:, 1] - eye - height) < width)
        keep = np.where(inside)[0][:1200]
        triangle, bary, root, along = triangles[chosen[keep]], bary[keep], root[keep], along[keep]
        across = eye + height[keep] - root[:, 1]
        flow = np.stack(
            [
                np.sign(root[:, 0]) * (0.5 + 0.5 * along),
                0.6 * (1 - along) - 0.25 * along + across * 60,
                -0.35 * along - 0.05,
            ],
            1,
        )
        flow += rng.normal(0, 0.12, flow.shape)
        flow /= np.linalg.norm(flow, axis=1, keepdims=True)
        normal = quad_normals(rest, quads)[triangle[:, 0]]
        length = 0.0060 * (1 - 0.4 * along) * (1 + 0.2 * rng.normal(size=len(along)))
        t = np.linspace(0, 1, 4)
        points = root[:, None] + flow[:, None] * (t[None, :, None] * length[:, None, None])
        points += normal[:, None] * (0.0009 * np.sin(t * 2.2))[None, :, None]
        origin, frame = triangle_frames(triangle, bary, rest)
        offsets = np.einsum("nac,nka->nkc", frame, points - origin[:, None])
        self._brow_binding = triangle, bary, offsets
        shader = self._dark_hair("brow")
        self.brow_curves = self._add_curves(
            "brow", to_blender(points), 0.00010 * np.r_[1, 1, 0.8, 0.3], shader.material
        )

    def _brow_points(self, vertices: np.ndarray) -> np.ndarray:
        triangle, bary, offsets = self._brow_binding
        origin, frame = triangle_frames(triangle, bary, vertices)
        return origin[:, None] + np.einsum("nac,nkc->nka", frame, offsets)

    def _lashes(self) -> None:
        """Lashes span the eyelash strips of the base mesh from the lid to the outer edge."""
        rng, rest, spans = self.rng, self.rest, []
        for group in ("helper-l-eyelashes-1", "helper-r-eyelashes-1", "helper-l-eyelashes-2", "helper-r-eyelashes-2"):
            strip = self.verts(group)
            centre = self.eyes[0 if "-l-" in group else 1][2]
            distance = np.linalg.norm(rest[strip] - centre, axis=1)
            upper = rest[strip, 1].mean() > centre[1]
            inner, outer = strip[distance < np.percentile(distance, 45)], strip[distance > np.percentile(distance, 70)]
            for _ in range(120 if upper else 70):
                first = rng.choice(inner)
                second = rng.choice(inner[np.argsort(np.linalg.norm(rest[inner] - rest[first], axis=1))[:3]])
                ends = [outer[np.argmin(np.linalg.norm(rest[outer] - rest[i], axis=1))] for i in (first, second)]
                spans.append((first, second, *ends, rng.random(), (0.75 + 0.35 * rng.random() if upper else 0.5) * 0.8))
        self._lash_index = np.array([span[:4] for span in spans], int)
        self._lash_blend, self._lash_length = (np.array([span[k] for span in spans])[:, None] for k in (4, 5))
        points = to_blender(self._lash_points(rest))
        self.lash_curves = self._add_curves(
            "lash", points, 0.00017 * np.r_[1, 0.9, 0.6, 0.2], self._dark_hair("lash").material
        )

    def _lash_points(self, vertices: np.ndarray) -> np.ndarray:
        a, b, c, d = (vertices[self._lash_index[:, k]] for k in range(4))
        root = a * (1 - self._lash_blend) + b * self._lash_blend
        tip = c * (1 - self._lash_blend) + d * self._lash_blend
        tip = root + (tip - root) * self._lash_length
        t = np.linspace(0, 1, 4)[None, :, None]
        return root[:, None] * (1 - t) + tip[:, None] * t

    def _dark_hair(self, name: str) -> Shader:
        shader = Shader(name)
        shader.set(Base_Color=(0.010, 0.007, 0.005), Roughness=0.6)
        return shader

    # -- studio
    def _studio(self) -> None:
        shader = Shader("backdrop")
        shader.tree.nodes.remove(shader.bsdf)
        emission = shader.node("ShaderNodeEmission", {1: 1.0})
        coordinates = shader.node("ShaderNodeTexCoord").outputs["UV"]
        shader.plug(emission.inputs[0], shader.picture(backdrop_picture(), coordinates, colour=True))
        shader.plug(shader.tree.nodes["Material Output"].inputs[0], emission.outputs[0])
        bpy.ops.mesh.primitive_plane_add(size=3.2, location=(0, 1.6, self.neck[1] - 0.1), rotation=(math.pi / 2, 0, 0))
        backdrop = bpy.context.object
        backdrop.data.materials.append(shader.material)
        backdrop.visible_shadow = False
        world = bpy.data.worlds.new("world")
        self.scene.world = world
        world.use_nodes = True
        world.node_tree.nodes["Background"].inputs[0].default_value = (0.55, 0.62, 0.75, 1)
        world.node_tree.nodes["Background"].inputs[1].default_value = 0.28
        face = (0, 0, self.eye_y - 0.05)
        for place, size, power, colour in (
            ((-1.1, -1.6, 1.15), 0.9, 40, (1, 0.95, 0.89)),  # key
            ((1.5, -1.4, 0.5), 1.4, 16, (0.88, 0.94, 1)),  # fill
            ((1.0, 1.1, 1.1), 0.5, 17, (0.85, 0.92, 1)),  # rim
            ((-1.1, 1.0, 0.9), 0.5, 11, (1, 0.93, 0.85)),  # rim
            ((0, -2.2, 0.15), 0.5, 6, (1, 0.97, 0.93)),  # front
        ):
            lamp = bpy.data.lights.new("area", "AREA")
            lamp.size, lamp.energy, lamp.color = size, power, colour
            thing = bpy.data.objects.new("area", lamp)
            thing.location = place
            thing.rotation_euler = (
                (mathutils.Vector(face) - mathutils.Vector(place)).to_track_quat("-Z", "Y").to_euler()
            )
            self.scene.collection.objects.link(thing)
        data = bpy.data.cameras.new("camera")
        self.camera = bpy.data.objects.new("camera", data)
        self.scene.collection.objects.link(self.camera)
        self.scene.camera = self.camera

    # -- use
    def set_frame(self, vertices: np.ndarray, transforms: np.ndarray) -> None:
        """Pose everything: `vertices` (19158, 3) posed MakeHuman vertices, `transforms` (55, 4, 4) rest -> posed."""
        for part in self.skinned:
            if part.shell:
                tights = self.outfit.index
                points = part.shell(vertices[tights])[np.searchsorted(tights, part.index)]
            else:
                points = vertices[part.index]
            part.mesh.vertices.foreach_set("co", to_blender(points).astype(np.float32).ravel())
            part.mesh.update()
        for ball, joint, centre, size in self.eyes:
            place = np.eye(4)
            place[:3, 3] = centre
            matrix = AXES @ transforms[joint] @ place @ np.linalg.inv(AXES) @ np.diag([size, size, size, 1])
            ball.matrix_world = mathutils.Matrix(matrix.tolist())
        self.hair.matrix_world = mathutils.Matrix((AXES @ transforms[15] @ np.linalg.inv(AXES)).tolist())
        for curves, points in (
            (self.brow_curves, self._brow_points(vertices)),
            (self.lash_curves, self._lash_points(vertices)),
        ):
            curves.data.position_data.foreach_set("vector", to_blender(points).astype(np.float32).ravel())
            curves.data.update_tag()

    def set_person_visible(self, visible: bool) -> None:
        """Hide or show the presenter; hidden, `render` gives the static background plate."""
        for thing in self.scene.objects:
            if thing.type in {"MESH", "CURVES"} and not any(
                m and m.name.startswith("backdrop") for m in thing.data.materials
            ):
                thing.hide_render = not visible

    def set_camera(self, camera: Camera) -> None:
        """Point Blender's camera exactly like `camera` (square pixels, any principal point)."""
        data, size = self.camera.data, max(camera.width, camera.height)
        data.sensor_width = data.sensor_height = 36.0
        data.lens = camera.focal * 36.0 / size
        data.shift_x = (camera.width / 2 - camera.center[0]) / size
        data.shift_y = (camera.center[1] - camera.height / 2) / size
        right, down, forward = np.asarray(camera.rotation, float)
        place = np.eye(4)
        place[:3, 0], place[:3, 1], place[:3, 2] = right, -down, -forward
        place[:3, 3] = camera.position
        self.camera.matrix_world = mathutils.Matrix((AXES @ place).tolist())
        self.scene.render.resolution_x, self.scene.render.resolution_y = camera.width, camera.height

    def render(self, path: str, seed: int = 0) -> None:
        """Render the current frame to a PNG file."""
        self.scene.cycles.seed = seed
        self.scene.render.filepath = path
        bpy.ops.render.render(write_still=True)


def backdrop_picture(size: int = 1024) -> np.ndarray:
    """A defocused studio wall: blue panels, two warm lamps, a dim light strip -> (S, S, 3) uint8 sRGB."""
    y, x = np.mgrid[0:size, 0:size] / size
    glow = np.exp(-(((x - 0.5) / 0.30) ** 2) - (((y - 0.40) / 0.30) ** 2))
    wall = np.array([27, 37, 55]) * (1.15 - 0.5 * y)[..., None] + glow[..., None] * np.array([34, 50, 74])
    panel = np.abs(((x - 0.5) / 0.125 + 0.5) % 1 - 0.5)
    wall = wall * (1 - 0.30 * np.exp(-((panel / 0.035) ** 2)))[..., None]
    for side in (-1, 1):
        lamp = np.exp(-(((x - 0.5 - side * 0.185) / 0.012) ** 2)) * (np.abs(y - 0.45) < 0.16)
        wall = wall + lamp[..., None] * np.array([225, 170, 110])
        wall = wall + np.exp(-(((x - 0.5 - side * 0.185) / 0.05) ** 2) - (((y - 0.45) / 0.17) ** 2))[
            ..., None
        ] * np.array([46, 34, 22])
    strip = np.exp(-(((y - 0.632) / 0.005) ** 2))
    wall = wall + strip[..., None] * np.array([50, 95, 150])
    picture = Image.fromarray(np.clip(wall, 0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(size / 150))
    return np.array(picture)
