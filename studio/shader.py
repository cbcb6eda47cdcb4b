"""A material's node tree with one-line helpers; sockets and constants mix freely as inputs.  Needs `bpy`."""

from __future__ import annotations

import bpy
import numpy as np

Socket = bpy.types.NodeSocket


class Shader:
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

    def emit(self, colour, strength: float = 1.0) -> None:
        """Make the material a lamp: nothing but emission."""
        emission = self.node("ShaderNodeEmission", {0: colour, 1: strength})
        self.plug(self.tree.nodes["Material Output"].inputs[0], emission.outputs[0])

    def math(self, operation: str, a, b=0.0) -> Socket:
        return self.node("ShaderNodeMath", {0: a, 1: b}, operation=operation).outputs[0]

    def times(self, *factors) -> Socket:
        product = factors[0]
        for factor in factors[1:]:
            product = self.math("MULTIPLY", product, factor)
        return product

    def plus(self, *terms) -> Socket:
        total = terms[0]
        for term in terms[1:]:
            total = self.math("ADD", total, term)
        return total

    def near(self, value, centre: float, width: float) -> Socket:
        """A bell: 1 at the centre, 0.37 at `width` from it."""
        offset = self.math("DIVIDE", self.math("SUBTRACT", value, centre), width)
        return self.math("EXPONENT", self.times(offset, offset, -1.0))

    def within(self, value, low: float, high: float) -> Socket:
        return self.times(self.math("GREATER_THAN", value, low), self.math("LESS_THAN", value, high))

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

    def stretched(self, vector, scale: tuple[float, float, float]) -> Socket:
        return self.node("ShaderNodeVectorMath", {0: vector, 1: scale}, operation="MULTIPLY").outputs[0]

    def bump(self, height, strength: float, distance: float) -> Socket:
        return self.node("ShaderNodeBump", {"Height": height, "Strength": strength, "Distance": distance}).outputs[0]

    def picture(
        self, picture: np.ndarray | str, vector, extension: str = "EXTEND", colour: str = "Non-Color"
    ) -> Socket:
        """An image texture from an (H, W) or (H, W, 3) uint8 array or from a file."""
        if isinstance(picture, str):
            image = bpy.data.images.load(picture)
            image.colorspace_settings.name = colour
        else:
            picture = picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, 2)
            height, width = picture.shape[:2]
            image = bpy.data.images.new("picture", width, height)
            image.colorspace_settings.name = colour  # before the pixels: changing it later clears them
            pixels = np.ones((height, width, 4), np.float32)
            pixels[..., :3] = picture / 255.0
            image.pixels.foreach_set(pixels[::-1].ravel())
            image.update()
        return self.node("ShaderNodeTexImage", {0: vector}, image=image, extension=extension).outputs[0]

    def planar(self, rest: Socket, origin: tuple[float, float], side: float) -> Socket:
        """Front projection of the rest position: a `side` metres square at `origin` (lower left) -> unit square."""
        moved = self.node("ShaderNodeVectorMath", {0: rest, 1: (*origin, 0)}, operation="SUBTRACT").outputs[0]
        return self.node("ShaderNodeVectorMath", {0: moved, 3: 1 / side}, operation="SCALE").outputs[0]
