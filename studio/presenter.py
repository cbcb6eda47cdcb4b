"""A synthetic presenter in Blender Cycles: skin, eyes, hair, clothes and light, all procedural.

The geometry comes from a `Body` that holds all MakeHuman vertices (CC0 data, posed by our own skinning); shaders,
cut of the clothes, hair, set and light are ours.  `PresenterScene.set_frame` takes posed vertices, so anything that can
pose the rig can be filmed.  Needs `bpy` (development time only, see `studio/README.md`).

Coordinates of the rig: metres, y up, z towards the camera.  Blender: z up, -y towards the camera.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import bpy
import mathutils
import mathutils.bvhtree
import numpy as np

from avatar_app.mesh.body import Body
from avatar_app.mesh.camera import Camera
from studio import face, makehuman, stages
from studio.geometry import quad_normals
from studio.hair import Scalp, grow
from studio.outfit import Outfit
from studio.people import Presenter
from studio.shader import Shader, Socket

BACKDROP_ZOOM, BACKDROP_MARGIN = 2.0, 1.25  # pixels of the set per pixel of the picture; how much wider it is
BACKDROP_DISTANCE = 2.2  # metres behind the presenter
HAIR_RADIUS = {"side part": 0.00023, "bob": 0.00033}
AXES = np.array([[1, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]])


@dataclass
class RenderQuality:
    """Cycles settings; the defaults are the measured sweet spot on a CPU."""

    samples: int = 6
    threads: int = 2
    max_bounces: int = 3
    prefilter: str = "FAST"


def to_blender(points: np.ndarray) -> np.ndarray:
    """(..., 3) rig coordinates -> Blender coordinates."""
    return np.stack([points[..., 0], -points[..., 2], points[..., 1]], -1)


def presenter_camera(body: Body, presenter: Presenter, size: int) -> Camera:
    """The whole picture's camera."""
    frame, neck = presenter.framing, body.joints[12]
    x, y = frame.middle[0], float(neck[1]) + frame.middle[1]
    return Camera.look_at((x, y + frame.rise, frame.distance), (x, y, 0), size * frame.focal, size, size)


@dataclass
class _Skinned:
    """A mesh that takes the vertices `index` of the MakeHuman mesh or of what `shell` makes of the tights."""

    mesh: bpy.types.Mesh
    index: np.ndarray
    shell: Callable[[np.ndarray], np.ndarray] | None = None


@dataclass
class PresenterScene:
    """Everything in front of the camera.  Build once, then `set_frame` + `render` per frame.

    backdrop: an EXR of the set; rendered first when it does not exist."""

    presenter: Presenter
    film_body: Body  # with all 19158 MakeHuman vertices
    camera: Camera
    backdrop: Path
    quality: RenderQuality = field(default_factory=RenderQuality)

    def __post_init__(self) -> None:
        self.look, self.stage = self.presenter.look, stages.STAGES[self.presenter.stage]
        base = makehuman.load_base_mesh()
        self.uv, self.groups = base.uv, base.groups
        self.rest, self.joints = self.film_body.vertices.astype(np.float64), self.film_body.joints
        self.scalp = Scalp(self.film_body)
        self.head = self.scalp.head
        hidden = stages.DESK_HEIGHT - 0.035 if self.stage.desk else -0.75
        self.outfit = Outfit(self.film_body, self.presenter.wear.cut, hidden)
        self.skinned: list[_Skinned] = []
        if not self.backdrop.exists():
            self._reset_blender()
            self._film_backdrop()
        self._reset_blender()
        self._skin()
        self._mouth()
        self._eyes()
        self._clothes()
        self._hair()
        self._face_hair()
        self.person = list(self.scene.objects)
        self._set()

    # -- set-up
    def _reset_blender(self) -> None:
        bpy.ops.wm.read_factory_settings(use_empty=True)
        scene = self.scene = bpy.context.scene
        scene.render.engine = "CYCLES"
        cycles = scene.cycles
        cycles.device, cycles.samples = "CPU", self.quality.samples
        cycles.use_denoising, cycles.denoiser = True, "OPENIMAGEDENOISE"
        cycles.denoising_input_passes, cycles.denoising_prefilter = "RGB_ALBEDO_NORMAL", self.quality.prefilter
        cycles.denoising_quality = "BALANCED"
        cycles.use_adaptive_sampling, cycles.adaptive_threshold = True, 0.03
        cycles.max_bounces, cycles.diffuse_bounces, cycles.glossy_bounces = self.quality.max_bounces, 2, 2
        cycles.transparent_max_bounces, cycles.filter_width = 12, 1.4
        cycles.sample_clamp_direct, cycles.sample_clamp_indirect = 5, 3
        cycles.caustics_reflective = cycles.caustics_refractive = False
        scene.render.use_persistent_data = True
        scene.render.threads_mode, scene.render.threads = "FIXED", self.quality.threads
        scene.render.resolution_percentage = 100
        scene.view_settings.view_transform, scene.view_settings.exposure = "AgX", self.stage.exposure
        scene.view_settings.look = "AgX - Punchy"
        scene.cycles_curves.shape, scene.cycles_curves.subdivisions = "RIBBONS", 2
        world = bpy.data.worlds.new("world")
        scene.world = world
        world.use_nodes = True
        colour, strength = self.stage.world
        world.node_tree.nodes["Background"].inputs[0].default_value = (*colour, 1)
        world.node_tree.nodes["Background"].inputs[1].default_value = strength
        data = bpy.data.cameras.new("camera")
        self.camera_object = bpy.data.objects.new("camera", data)
        scene.collection.objects.link(self.camera_object)
        scene.camera = self.camera_object

    def _add(self, name: str, data) -> bpy.types.Object:
        thing = bpy.data.objects.new(name, data)
        self.scene.collection.objects.link(thing)
        return thing

    def _add_mesh(self, name, points, quads, material, uv=None, subdivide=0, attributes=None):
        """A mesh of rest points (n, 3) and quads (Q, 4); attributes: name -> (n,)."""
        mesh = bpy.data.meshes.new(name)
        mesh.from_pydata(to_blender(points).tolist(), [], quads.tolist())
        rest = mesh.attributes.new("rest", "FLOAT_VECTOR", "POINT")
        rest.data.foreach_set("vector", points.astype(np.float32).ravel())
        for key, values in (attributes or {}).items():
            mesh.attributes.new(key, "FLOAT", "POINT").data.foreach_set("value", values.astype(np.float32))
        if uv is not None:
            mesh.uv_layers.new(name="UV").data.foreach_set("uv", self.uv[uv].astype(np.float32).ravel())
        mesh.shade_smooth()
        mesh.materials.append(material)
        thing = self._add(name, mesh)
        if subdivide:
            modifier = thing.modifiers.new("subdivision", "SUBSURF")
            modifier.levels = modifier.render_levels = subdivide
            modifier.boundary_smooth = "PRESERVE_CORNERS"
        return mesh

    def _add_skinned(self, name, quads, material, uv=None, subdivide=0, attributes=None):
        """Quads of the MakeHuman mesh that follow its vertices."""
        index, inverse = np.unique(quads, return_inverse=True)
        attributes = {key: values[index] for key, values in (attributes or {}).items()}
        quads = inverse.reshape(quads.shape)
        mesh = self._add_mesh(name, self.rest[index], quads, material, uv, subdivide, attributes)
        self.skinned.append(_Skinned(mesh, index))

    def _add_layer(self, name, material):
        """One layer of the outfit."""
        index, inverse = np.unique(self.outfit.layer_quads(name), return_inverse=True)
        local = np.searchsorted(self.outfit.index, index)
        quads = inverse.reshape(-1, 4)
        mesh = self._add_mesh(name, self.outfit.layer_rest(name)[local], quads, material, subdivide=2)
        self.skinned.append(_Skinned(mesh, local, self.outfit.layer_shape(name)))

    def _add_curves(self, name: str, points: np.ndarray, radius: np.ndarray, material):
        """(n, k, 3) rest points and (k,) radii -> hair curves object."""
        count, length = points.shape[:2]
        curves = bpy.data.hair_curves.new(name)
        curves.add_curves([length] * count)
        curves.position_data.foreach_set("vector", to_blender(points).astype(np.float32).ravel())
        radii = curves.attributes.get("radius") or curves.attributes.new("radius", "FLOAT", "POINT")
        radii.data.foreach_set("value", np.broadcast_to(radius, (count, length)).astype(np.float32).ravel())
        curves.materials.append(material)
        return self._add(name, curves)

    # -- skin
    def _skin(self) -> None:
        look, shader = self.look, Shader("skin")
        tone, rest = np.array(look.skin), shader.attribute("rest")
        rolls = self._unit("mouthRollLower") + self._unit("mouthRollUpper")
        body = np.unique(self.groups["body"][..., 0])
        mouth_y = self.rest[body[np.linalg.norm(rolls[body], axis=1) > 0.003], 1].mean()
        drawn, origin = face.paint(look, (abs(float(self.joints[23][0])), self.scalp.eye_y), mouth_y)
        projected = shader.planar(rest, origin, face.PAINT_SIDE)
        first = shader.node("ShaderNodeSeparateColor", {0: shader.picture(drawn[..., :3], projected, "CLIP")}).outputs
        socket = shader.picture(drawn[..., 3], projected, "CLIP")
        _, _, depth = shader.separate(rest)
        front = shader.ramp(depth, self.joints[15][2] + 0.012, self.joints[15][2] + 0.055)
        blotch, fine, spots = shader.noise(rest, 28, 5), shader.noise(rest, 320, 3), shader.noise(rest, 150, 2)
        pores = shader.node("ShaderNodeTexVoronoi", {"Vector": rest, "Scale": 1100.0}).outputs[0]
        stubble = shader.node("ShaderNodeTexVoronoi", {"Vector": rest, "Scale": 820.0}).outputs[0]

        colour = shader.mix(shader.ramp(blotch, 0.35, 0.7), tone * (0.93, 0.87, 0.84), tone * (1.06, 1.03, 1.02))
        colour = shader.mix(shader.times(fine, 0.35), colour, tone * (0.76, 0.64, 0.58))
        colour = shader.mix(shader.times(shader.ramp(spots, 0.66, 0.78), 0.35), colour, tone * (0.62, 0.45, 0.36))
        colour = shader.mix(shader.times(first[0], front, look.blush), colour, tone * (1.02, 0.56, 0.50))
        if look.beard:
            grain = shader.plus(shader.ramp(stubble, 0.45, 0.15, 0.7), 0.3)
            colour = shader.mix(shader.times(first[1], front, grain, look.beard), colour, tone * (0.36, 0.36, 0.40))
        colour = shader.mix(shader.times(socket, front, 0.5), colour, tone * (0.66, 0.47, 0.42))
        colour = shader.mix(shader.times(first[2], front, 0.55), colour, np.array(look.hair) * 2.2)
        colour = shader.mix(shader.times(shader.attribute("cavity", "Fac"), 0.9), colour, tone * (0.16, 0.06, 0.045))
        uv = shader.node("ShaderNodeUVMap", uv_map="UV").outputs[0]

        def mask(name):
            return shader.picture(str(makehuman.texture(name)), uv)

        lips = mask("mpfb_lips.jpg")
        colour = shader.mix(shader.times(lips, 0.8), colour, look.lips)
        colour = shader.mix(shader.times(mask("mpfb_ears.jpg"), 0.3), colour, tone * (1.0, 0.6, 0.55))
        colour = shader.mix(mask("mpfb_inside-mouth.jpg"), colour, (0.16, 0.035, 0.030))
        colour = shader.mix(shader.times(mask("mpfb_fingernails.jpg"), 0.55), colour, tone * (1.15, 0.98, 0.98))
        colour = shader.mix(shader.times(shader.attribute("scalp", "Fac"), 0.9), colour, np.array(look.hair) * 1.2)
        roughness = shader.plus(shader.times(fine, 0.2), 0.36, shader.times(lips, -0.16), shader.times(first[0], -0.05))
        height = shader.plus(shader.times(pores, 0.6), fine)
        shader.set(Base_Color=colour, Subsurface_Weight=0.25, Subsurface_Radius=(1, 0.32, 0.18), Subsurface_Scale=0.007)
        shader.set(IOR=1.42, Specular_IOR_Level=0.5, Roughness=roughness, Normal=shader.bump(height, 0.3, 0.0008))
        quads, quad_uv = self.groups["body"][..., 0], self.groups["body"][..., 1]
        visible = self.outfit.visible_skin(quads)
        drawn = {"scalp": self.scalp.shade(), "cavity": self._cavities(quads)}
        self._add_skinned("skin", quads[visible], shader.material, quad_uv[visible], 1, attributes=drawn)

    def _cavities(self, quads: np.ndarray, reach: float = 0.014, rays: int = 48) -> np.ndarray:
        """How closed in each vertex of the head is (nostrils, ears, lid folds), 0..1: at 8 samples a pixel light leaks
        into such places and washes them out."""
        tree = mathutils.bvhtree.BVHTree.FromPolygons(self.rest.tolist(), quads.tolist())
        normals = quad_normals(self.rest, quads)
        ways = np.random.default_rng(2).normal(size=(rays, 3))
        ways /= np.linalg.norm(ways, axis=1, keepdims=True)
        closed = np.zeros(len(self.rest))
        for vertex in self.head:
            normal, start = normals[vertex], self.rest[vertex] + 0.0006 * normals[vertex]
            facing = ways * np.sign(ways @ normal)[:, None]
            hits = [tree.ray_cast(start, way, reach)[3] for way in facing]
            weight = facing @ normal
            shade = [0.0 if hit is None else 1 - 0.5 * hit / reach for hit in hits]
            closed[vertex] = weight @ shade / weight.sum()
        face_only = np.clip((self.rest[:, 2] - self.joints[15][2]) / 0.03, 0.35, 1)
        return np.clip((closed - 0.22) / 0.5, 0, 1) * face_only

    def _unit(self, name: str) -> np.ndarray:
        offsets, body = np.zeros_like(self.rest), self.film_body
        offsets[body.expression_vertices] = body.expression[body.expression_names.index(name)]
        return offsets

    # -- mouth and eyes
    def _mouth(self) -> None:
        shader = Shader("teeth")
        x, _, _ = shader.separate(shader.attribute("rest"))
        wave = shader.math("ABSOLUTE", shader.math("SINE", shader.times(x, math.pi / 0.0082)))
        shader.set(Base_Color=shader.mix(shader.ramp(wave, 0.0, 0.25), (0.72, 0.63, 0.54), (0.90, 0.86, 0.78)))
        shader.set(Roughness=0.2, Subsurface_Weight=0.15, Subsurface_Scale=0.003)
        for group in ("helper-upper-teeth", "helper-lower-teeth"):
            self._add_skinned(group, self.groups[group][..., 0], shader.material, subdivide=2)
        shader = Shader("tongue")
        shader.set(Base_Color=(0.38, 0.10, 0.09), Roughness=0.33)
        self._add_skinned("tongue", self.groups["helper-tongue"][..., 0], shader.material, subdivide=1)

    def _eyes(self) -> None:
        shader, ring = Shader("eye"), 0.475
        local = shader.node("ShaderNodeTexCoord").outputs["Object"]
        x, y, z = shader.separate(local)
        flat = shader.node("ShaderNodeCombineXYZ", {0: x, 1: z}).outputs[0]
        radius = shader.node("ShaderNodeVectorMath", {0: flat}, operation="LENGTH").outputs[1]
        angle = shader.math("ARCTAN2", z, x)
        spokes = {0: shader.times(angle, 9.0), 1: shader.times(radius, 3.0)}
        fibre = shader.noise(shader.node("ShaderNodeCombineXYZ", spokes).outputs[0], 2.2, 4)
        outer, inner = (np.array(colour) for colour in self.look.iris)
        iris = shader.mix(shader.ramp(radius, ring * 0.42, ring * 0.80), inner * 1.25, outer * 1.6)
        iris = shader.mix(shader.ramp(fibre, 0.38, 0.62, 0.75), iris, outer)
        iris = shader.mix(shader.ramp(z, 0.02, 0.42, 0.55), iris, (0.004, 0.003, 0.003))  # under the upper lid
        iris = shader.mix(shader.ramp(radius, ring * 0.74, ring * 0.98), iris, (0.006, 0.005, 0.006))
        iris = shader.mix(shader.ramp(radius, ring * 0.36, ring * 0.42), (0.001, 0.001, 0.001), iris)
        veins = shader.ramp(shader.noise(local, 7, 5, 2.0), 0.54, 0.78, 0.3)
        white = shader.mix(veins, (0.66, 0.62, 0.59), (0.58, 0.33, 0.28))
        white = shader.mix(shader.ramp(radius, 0.58, 0.98, 0.7), white, (0.52, 0.34, 0.29))
        white = shader.mix(shader.ramp(z, 0.15, 0.62, 0.6), white, (0.20, 0.13, 0.11))
        shader.set(Base_Color=shader.mix(shader.ramp(radius, ring * 0.95, ring * 1.06), iris, white), Roughness=0.35)
        shader.set(Specular_IOR_Level=0.3, Coat_Weight=1.0, Coat_Roughness=0.02, Coat_IOR=1.45)
        self.eyes = []
        for side, joint in face.EYES.items():
            points = self.rest[np.unique(self.groups[f"helper-{side}-eye"][..., 0])]
            solved = np.linalg.lstsq(np.c_[2 * points, np.ones(len(points))], (points**2).sum(1), rcond=None)[0]
            centre, size = solved[:3], math.sqrt(solved[3] + solved[:3] @ solved[:3]) * 0.995
            bpy.ops.mesh.primitive_uv_sphere_add(segments=48, ring_count=32, radius=1)
            ball = bpy.context.object
            ball.data.shade_smooth()
            ball.data.materials.append(shader.material)
            points = np.array([vertex.co[:] for vertex in ball.data.vertices])
            off_axis = np.hypot(points[:, 0], points[:, 2])
            cornea = (points[:, 1] < 0) & (off_axis < 0.56)
            points[cornea, 1] -= 0.10 * (1 - (off_axis[cornea] / 0.56) ** 2)
            ball.data.vertices.foreach_set("co", points.astype(np.float32).ravel())
            self.eyes.append((ball, joint, centre, size))

    # -- clothes
    def _clothes(self) -> None:
        wear, outfit = self.presenter.wear, self.outfit
        lapel = tuple(np.array(wear.jacket) * 1.1)
        cloths = {
            "shirt": (wear.shirt, dict(roughness=0.75, sheen=0.05, weave=1400.0, folds=0.12)),
            "tie": (wear.tie, dict(roughness=0.42, sheen=0.1, weave=700.0, folds=0.04, stripe=wear.stripe)),
            "jacket": (wear.jacket, dict(roughness=0.82, sheen=0.06, weave=800.0, folds=0.65)),
            "lapel": (lapel, dict(roughness=0.82, sheen=0.06, weave=800.0, folds=0.10)),
        }
        for name in outfit.layers:
            colour, kind = cloths[name]
            self._add_layer(name, self._cloth(name, colour, cut=True, **kind))
        self.collar = []
        if outfit.collar:
            shirt = self._cloth("collar", wear.shirt, cut=False, **(cloths["shirt"][1] | {"folds": 0.03}))
            tie = self._cloth("knot", wear.tie, cut=False, **cloths["tie"][1])
            for name, quads in outfit.collar.quads.items():
                index, inverse = np.unique(quads, return_inverse=True)
                material = tie if name == "knot" else shirt
                mesh = self._add_mesh(
                    name, outfit.collar.points[index], inverse.reshape(quads.shape), material, subdivide=1
                )
                self.collar.append((mesh, index))

    def _cloth(self, name, colour, cut, roughness, sheen, weave, folds, stripe=None):
        """Woven cloth; `cut`: shaped by the outfit's masks of that name."""
        shader, outfit = Shader(name), self.outfit
        rest = shader.attribute("rest")
        x, y, z = shader.separate(rest)
        thread = shader.noise(rest, weave, 2)
        tint = shader.mix(thread, tuple(np.array(colour) * 0.75), tuple(np.array(colour) * 1.25))
        if stripe:
            diagonal = shader.times(shader.plus(x, y), 230.0)
            tint = shader.mix(shader.math("GREATER_THAN", shader.math("SINE", diagonal), 0.6), tint, stripe)
        if name == "jacket":
            tint = self._jacket_details(shader, x, y, z, tint)
        height = shader.plus(
            shader.times(shader.noise(shader.stretched(rest, (1, 0.45, 1)), 11, 3, 0.8), 0.30),
            shader.times(self._folds(shader, rest, x, y), folds),
            shader.times(thread, 0.012),
        )
        if cut:
            projected = shader.planar(rest, outfit.origin, outfit.side)
            front, back = (shader.picture(mask, projected) for mask in outfit.masks[name])
            facing = shader.math("GREATER_THAN", z, outfit.split_depth)
            alpha = shader.math("GREATER_THAN", shader.mix(facing, back, front), 0.5)
            reach = shader.math("ABSOLUTE", x)
            inside = shader.math("LESS_THAN", reach, outfit.sleeve_end[name])
            if name == "shirt":
                near, far = outfit.shirt_sleeve
                inside = shader.times(
                    inside,
                    shader.plus(shader.math("LESS_THAN", reach, near), shader.math("GREATER_THAN", reach, far)),
                )
            shader.set(Alpha=shader.times(alpha, inside))
        shader.set(Base_Color=tint, Roughness=roughness, Sheen_Weight=sheen, Sheen_Roughness=0.4)
        shader.set(Specular_IOR_Level=0.25, Normal=shader.bump(height, 0.5, 0.02))
        return shader.material

    def _folds(self, shader: Shader, rest, x, y) -> Socket:
        """Creases across the sleeve at elbow, armpit and cuff and from the button outwards, as a height."""
        elbow, shoulder, wrist = (abs(float(self.joints[joint][0])) for joint in (18, 16, 20))
        along = shader.math("ABSOLUTE", x)
        warp = shader.times(shader.noise(rest, 7, 2), 5.0)

        def crease(phase):
            wave = shader.math("ABSOLUTE", shader.math("SINE", shader.plus(phase, warp)))
            return shader.math("POWER", shader.math("SUBTRACT", 1.0, wave), 1.6)

        sleeve = shader.times(
            crease(shader.plus(shader.times(along, 46.0), shader.times(y, 75.0))),
            shader.plus(
                shader.times(shader.near(along, elbow, 0.085), 0.55),
                shader.times(shader.near(along, shoulder + 0.03, 0.055), 0.40),
                shader.times(shader.near(along, wrist - 0.07, 0.05), 0.30),
                0.06,
            ),
        )
        button = self.neck_y + self.outfit.cut.button
        drag = crease(shader.times(shader.plus(shader.times(y, 1.5), along), 34.0))
        torso = shader.times(drag, shader.near(y, button, 0.085), shader.near(along, 0.09, 0.07), 0.35)
        return shader.plus(sleeve, torso)

    @property
    def neck_y(self) -> float:
        return float(self.joints[12][1])

    def _jacket_details(self, shader: Shader, x, y, z, tint) -> Socket:
        """Closing edge, buttons and, on a suit, a breast pocket with a white square, painted in rest space."""
        neck, button = self.neck_y, self.neck_y + self.outfit.cut.button
        dark = tuple(np.array(self.presenter.wear.jacket) * 0.35)
        front = shader.math("GREATER_THAN", z, self.outfit.split_depth)
        edge = shader.times(shader.within(x, 0.0015, 0.0045), shader.math("LESS_THAN", y, button))
        tint = shader.mix(shader.times(edge, front, 0.85), tint, dark)
        for drop in (0.028, 0.128):
            dx, dy = shader.math("SUBTRACT", x, -0.012), shader.math("SUBTRACT", y, button - drop)
            r2 = shader.plus(shader.times(dx, dx), shader.times(dy, dy))
            tint = shader.mix(shader.times(shader.math("LESS_THAN", r2, 0.0085**2), front), tint, dark)
        if self.presenter.wear.cut != "suit":
            return tint
        top = neck - 0.175
        slant = shader.plus(y, shader.times(x, -0.12))
        pocket = shader.times(shader.within(x, 0.088, 0.150), shader.within(slant, top - 0.016, top), front)
        tint = shader.mix(shader.times(pocket, 0.6), tint, dark)
        square = shader.times(shader.within(x, 0.095, 0.143), shader.within(slant, top, top + 0.011), front)
        return shader.mix(square, tint, self.presenter.wear.shirt)

    # -- hair
    def _hair(self) -> None:
        self.strands = grow(self.scalp, self.presenter.hair)
        radius = HAIR_RADIUS[self.presenter.hair] * np.r_[np.ones(self.strands.shape[1] - 2), 0.75, 0.3]
        self.hair = self._add_curves("hair", self.strands, radius, self._strand_shader("hair", 1.0).material)

    def _strand_shader(self, name: str, tone: float) -> Shader:
        """Darker roots, lighter tips, every strand a little different."""
        shader = Shader(name)
        info = shader.node("ShaderNodeHairInfo").outputs
        dark, light = np.array(self.look.hair) * tone, np.array(self.look.hair_tips) * tone
        colour = shader.mix(shader.ramp(info["Intercept"], 0.1, 0.9), dark, light)
        colour = shader.mix(shader.times(info["Random"], 0.55), colour, dark * 0.7)
        strand = shader.tree.nodes.new("ShaderNodeBsdfHairPrincipled")
        strand.parametrization = "COLOR"
        shader.plug(strand.inputs["Color"], colour)
        strand.inputs["Roughness"].default_value, strand.inputs["Radial Roughness"].default_value = 0.46, 0.6
        shader.tree.links.new(strand.outputs[0], shader.tree.nodes["Material Output"].inputs[0])
        return shader

    def _face_hair(self) -> None:
        """Brows, lashes and lid lines: list of (curves, function from posed vertices to their points)."""
        look = self.look
        brow = face.brows(self.scalp, look)
        centres = dict(zip(face.EYES, (centre for _, _, centre, _ in self.eyes), strict=True))
        lashes = face.Lashes(self.scalp, centres, look)
        dark, wet = Shader("dark"), Shader("wet")
        dark.set(Base_Color=(0.012, 0.008, 0.006), Roughness=0.6)
        wet.set(Base_Color=(0.60, 0.30, 0.25), Roughness=0.12, Coat_Weight=1.0, Coat_Roughness=0.03)
        ends = np.sin(np.linspace(0.15, np.pi - 0.15, 12)) ** 0.5
        parts = (
            ("brow", brow.points, face.BROW_RADIUS * np.r_[1, 1, 0.8, 0.3], self._strand_shader("brow", 0.8)),
            ("lash", lashes.points, face.LASH_RADIUS * np.r_[1, 0.9, 0.6, 0.2], dark),
            ("lid line", lambda v: lashes.rim(v, True), look.lid_line * ends, dark),
            ("wet line", lambda v: lashes.rim(v, False), face.WET_RADIUS * ends, wet),
        )
        self.face_curves = [
            (self._add_curves(name, points(self.rest), radius, shader.material), points)
            for name, points, radius, shader in parts
        ]

    # -- set and light
    def _kit(self) -> stages.Kit:
        return stages.Kit(tuple(to_blender(self.joints[12].astype(float))))

    def _light(self, kit: stages.Kit) -> None:
        target = (0, 0, self.scalp.eye_y - 0.05 - self.neck_y)
        for lamp in self.stage.lamps:
            colour = tuple(np.multiply(lamp.colour, self.presenter.light))
            kit.light(lamp.place, target, lamp.size, lamp.power, colour)

    def _wide_camera(self) -> Camera:
        whole = self.camera.scaled(BACKDROP_ZOOM)
        margin = whole.width * (BACKDROP_MARGIN - 1) / 2
        side = round(whole.width * BACKDROP_MARGIN)
        centre = (whole.center[0] + margin, whole.center[1] + margin)
        return replace(whole, width=side, height=side, center=centre)

    def _film_backdrop(self, samples: int = 64) -> None:
        kit = self._kit()
        self.stage.build(kit)
        self._light(kit)
        self.set_camera(self._wide_camera())
        lens = self.camera_object.data
        lens.dof.use_dof, lens.dof.focus_distance, lens.dof.aperture_fstop = True, self.camera.position[2], 4.0
        self.scene.cycles.samples, self.scene.cycles.max_bounces = samples, 6
        self.scene.render.image_settings.file_format = "OPEN_EXR"
        self.render(str(self.backdrop))

    def _set(self) -> None:
        wide = self._wide_camera()
        right, down, forward = wide.rotation
        distance = self.camera.position[2] + BACKDROP_DISTANCE
        u, v = (np.array([0, wide.width]) - wide.center[0], np.array([0, wide.height]) - wide.center[1])
        corners = [
            wide.position + distance * (forward + (right * x + down * y) / wide.focal)
            for x, y in ((u[0], v[1]), (u[1], v[1]), (u[1], v[0]), (u[0], v[0]))
        ]
        mesh = bpy.data.meshes.new("backdrop")
        mesh.from_pydata(to_blender(np.array(corners)).tolist(), [], [[0, 1, 2, 3]])
        mesh.uv_layers.new(name="UV").data.foreach_set("uv", np.float32([0, 0, 1, 0, 1, 1, 0, 1]))
        shader = Shader("backdrop")
        shader.emit(
            shader.picture(
                str(self.backdrop.resolve()),
                shader.node("ShaderNodeTexCoord").outputs["UV"],
                colour="Linear Rec.709",
            )
        )
        mesh.materials.append(shader.material)
        self.wall = self._add("backdrop", mesh)
        self.wall.visible_shadow = self.wall.visible_diffuse = False
        self.wall.visible_glossy = self.stage.desk  # lacquer mirrors the set; in hair it would only glitter
        kit = self._kit()
        self.desk = stages.desk(kit) if self.stage.desk else []
        self.desk_height = self.neck_y + stages.DESK_HEIGHT
        self.desk_edge = self.joints[12] + (0, stages.DESK_HEIGHT, stages.DESK_EDGE)
        self._light(kit)

    # -- use
    def set_frame(self, vertices: np.ndarray, transforms: np.ndarray) -> None:
        """Pose everything: `vertices` (19158, 3) posed MakeHuman vertices, `transforms` (55, 4, 4) rest -> posed."""
        for part in self.skinned:
            source = part.shell(vertices[self.outfit.index]) if part.shell else vertices
            _move(part.mesh, source[part.index])
        if self.outfit.collar:
            points = self.outfit.collar.pose(transforms)
            for mesh, index in self.collar:
                _move(mesh, points[index])
        for ball, joint, centre, size in self.eyes:
            place = np.eye(4)
            place[:3, 3] = centre
            matrix = AXES @ transforms[joint] @ place @ np.linalg.inv(AXES) @ np.diag([size, size, size, 1])
            ball.matrix_world = mathutils.Matrix(matrix.tolist())
        self.hair.matrix_world = mathutils.Matrix((AXES @ transforms[15] @ np.linalg.inv(AXES)).tolist())
        for curves, points in self.face_curves:
            curves.data.position_data.foreach_set("vector", to_blender(points(vertices)).astype(np.float32).ravel())
            curves.data.update_tag()

    def set_person_visible(self, visible: bool) -> None:
        """Hide or show the presenter; hidden, `render` gives the static background plate."""
        for thing in self.person:
            thing.hide_render = not visible

    def set_camera(self, camera: Camera) -> None:
        """Point Blender's camera exactly like `camera` (square pixels, any principal point)."""
        data, size = self.camera_object.data, max(camera.width, camera.height)
        data.sensor_width = data.sensor_height = 36.0
        data.lens = camera.focal * 36.0 / size
        data.shift_x = (camera.width / 2 - camera.center[0]) / size
        data.shift_y = (camera.center[1] - camera.height / 2) / size
        right, down, forward = np.asarray(camera.rotation, float)
        place = np.eye(4)
        place[:3, 0], place[:3, 1], place[:3, 2] = right, -down, -forward
        place[:3, 3] = camera.position
        self.camera_object.matrix_world = mathutils.Matrix((AXES @ place).tolist())
        self.scene.render.resolution_x, self.scene.render.resolution_y = camera.width, camera.height

    def render(self, path: str, seed: int = 0) -> None:
        """Render the current frame to a file."""
        self.scene.cycles.seed = seed
        self.scene.render.filepath = path
        bpy.ops.render.render(write_still=True)

    def render_silhouette(self, path: str) -> None:
        """The person alone, white where nothing stands before it (alpha of a PNG)."""
        self.wall.hide_render = self.scene.render.film_transparent = True
        for thing in self.desk:
            thing.is_holdout = True
        samples, self.scene.cycles.samples = self.scene.cycles.samples, 4
        self.scene.cycles.use_denoising = False
        self.render(path)
        self.scene.cycles.samples, self.scene.cycles.use_denoising = samples, True
        self.wall.hide_render = self.scene.render.film_transparent = False
        for thing in self.desk:
            thing.is_holdout = False


def _move(mesh: bpy.types.Mesh, points: np.ndarray) -> None:
    mesh.vertices.foreach_set("co", to_blender(points).astype(np.float32).ravel())
    mesh.update()
