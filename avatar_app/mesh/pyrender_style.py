"""Mesh pictures as the published Make-Your-Anchor weights saw them in training: by pyrender, pale blue on black.

Optional: needs pyrender and the system's EGL. OpenGL contexts belong to the thread that made them and EGL's shut-down
is global, so one worker thread owns the only renderer of the process and everybody else waits in its queue.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np

from avatar_app.mesh.camera import Camera
from talkshow_bridge.errors import InputError

# Material and lights of SHOW, the fitting tool behind those weights' training pictures; the body stands at the origin.
BASE_COLOUR, METALLIC, ROUGHNESS, AMBIENT = (0.30, 0.50, 0.55, 1.0), 0.2, 0.6, 0.3
POINT_LIGHTS = ((0, -1, 1), (0, 1, 1), (1, 1, 2))
SPOT_LIGHTS = ((1, 2, 2), (-1, 2, 2))
_GL_AXES = np.diag([1.0, -1.0, -1.0])  # OpenGL cameras look along -z with y up


def render_mesh_pictures(body, vertices: np.ndarray, camera: Camera) -> np.ndarray:
    """Posed vertices (N, V, 3) m -> uint8 RGB (N, height, width, 3) on black, pixel-aligned with `render_conditions`.

    Safe to call from any thread. Raises InputError when pyrender or EGL is missing."""
    return _worker().submit(_render, np.asarray(body.faces), np.asarray(vertices), camera).result()


@cache
def _worker() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="pyrender")


@cache
def _pyrender():
    """The pyrender module, made to work with numpy 2 and without a display; only called on the worker thread."""
    os.environ.setdefault("PYOPENGL_PLATFORM", "egl")
    if not hasattr(np, "infty"):
        np.infty = np.inf  # pyrender 0.1.45 still asks for the name that numpy 2 dropped
    import pyrender

    return pyrender


@cache
def _renderer():
    try:
        return _pyrender().OffscreenRenderer(64, 64)
    except Exception as problem:  # PyOpenGL fails in many ways without a driver: ImportError, AttributeError, ...
        raise InputError(
            "This anchor's mesh pictures need pyrender with EGL, which does not start here; "
            "on Debian or Ubuntu: apt install libegl1 libgl1 libgl1-mesa-dri."
        ) from problem


def _render(faces: np.ndarray, vertices: np.ndarray, camera: Camera) -> np.ndarray:
    renderer, pyrender = _renderer(), _pyrender()
    renderer.viewport_width, renderer.viewport_height = camera.width, camera.height
    scene = _scene(pyrender, camera)
    material = pyrender.MetallicRoughnessMaterial(
        baseColorFactor=BASE_COLOUR, metallicFactor=METALLIC, roughnessFactor=ROUGHNESS, alphaMode="OPAQUE"
    )
    pictures = np.empty((len(vertices), camera.height, camera.width, 3), np.uint8)
    for frame, picture in zip(vertices, pictures, strict=True):
        primitive = pyrender.Primitive(
            positions=frame, normals=_vertex_normals(frame, faces), indices=faces, material=material, mode=4
        )
        node = scene.add(pyrender.Mesh([primitive]))
        picture[:] = renderer.render(scene)[0]
        scene.remove_node(node)
    return pictures


def _scene(pyrender, camera: Camera):
    scene = pyrender.Scene(bg_color=(0, 0, 0, 1), ambient_light=(AMBIENT,) * 3)
    pose = np.eye(4)
    pose[:3, :3] = camera.rotation.T @ _GL_AXES
    pose[:3, 3] = camera.position
    lens = {"fx": camera.focal, "fy": camera.focal, "cx": camera.center[0], "cy": camera.center[1]}
    scene.add(pyrender.IntrinsicsCamera(**lens, znear=0.05, zfar=100.0), pose=pose)
    for position in POINT_LIGHTS:
        scene.add(pyrender.PointLight(color=(0.2,) * 3, intensity=1.0), pose=_at(position))
    for position in SPOT_LIGHTS:
        light = pyrender.SpotLight(color=(1.0,) * 3, intensity=15.0, innerConeAngle=np.pi / 3, outerConeAngle=np.pi / 2)
        scene.add(light, pose=_at(position))
    return scene


def _at(position) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, 3] = position
    return pose


def _vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    from avatar_app.mesh.raster import vertex_normals

    return vertex_normals(np.ascontiguousarray(vertices, np.float32), faces)
