"""The mesh preview: a lit, anti-aliased picture of the posed body, without any model."""

import numba
import numpy as np

from avatar_app.mesh.camera import Camera
from avatar_app.mesh.conditions import CHANNELS, PART, draw_conditions

BACKGROUND = ((0.93, 0.94, 0.955), (0.74, 0.77, 0.81))  # top and bottom, sRGB 0..1
_COLOURS = {  # linear albedo, by a word in the part's name; the first match counts
    "lash": (0.03, 0.02, 0.02),
    "brow": (0.06, 0.04, 0.03),
    "hair": (0.06, 0.04, 0.03),
    "eye": (0.74, 0.72, 0.70),
    "teeth": (0.74, 0.70, 0.62),
    "tongue": (0.42, 0.13, 0.12),
    "clothes": (0.05, 0.06, 0.10),
    "mouth": (0.22, 0.05, 0.05),
    "lips": (0.55, 0.28, 0.23),
    "skin": (0.60, 0.37, 0.28),
    "body": (0.60, 0.37, 0.28),
    "shirt": (0.72, 0.74, 0.78),
    "collar": (0.72, 0.74, 0.78),
    "tie": (0.20, 0.02, 0.04),
    "lapel": (0.035, 0.045, 0.075),
    "jacket": (0.05, 0.06, 0.10),
    "suit": (0.05, 0.06, 0.10),
}
_OTHER = ((0.10, 0.22, 0.24), (0.28, 0.14, 0.20), (0.30, 0.25, 0.12), (0.12, 0.16, 0.30))
_IRIS, _PUPIL, _LIMBUS, _IRIS_DEPTH = 0.0062, 0.0026, 0.0007, 0.012  # metres
_IRIS_COLOUR = (0.16, 0.085, 0.04)
_LEOTARD, _BROW = (0.05, 0.13, 0.20), (0.09, 0.05, 0.035)
_BARE = ("skin", "body", "lips", "mouth", "eye", "teeth", "tongue", "lash", "brow")
_PLAIN, _SKIN, _EYE, _INNER = 0, 1, 2, 3  # kinds of surface
_LIGHTS = np.array(  # direction to the light in camera space (x right, y down, z into the scene), then its strength
    [(-0.45, -0.50, -0.74, 0.80), (0.80, -0.10, -0.55, 0.28), (0.35, -0.55, 0.75, 0.35)], np.float32
)
_AMBIENT = 0.20


def render_preview(body, vertices: np.ndarray, camera: Camera, background=BACKGROUND) -> np.ndarray:
    """Posed vertices (N, V, 3) m -> uint8 RGB pictures (N, height, width, 3), outlines smoothed.

    Parts are coloured by their names, a body without garments wears a painted leotard; `background` is a pair of sRGB
    colours (top, bottom) in 0..1. A body that ends inside the picture (a desk hides the rest) fades out there."""
    colours, kinds, fronts, marks = part_colours(body.part_names), *part_kinds(body), painted_marks(body)
    backdrop = np.linspace(*np.asarray(background, np.float32), camera.height, dtype=np.float32)
    shown = bust_fade(body, camera)
    faded = shown[:, 0, 0] < 1
    pictures = np.empty((len(vertices), camera.height, camera.width, 3), np.uint8)
    maps = np.zeros((camera.height, camera.width, CHANNELS), np.float32)
    for frame, picture in zip(vertices, pictures, strict=True):
        maps[..., PART] = 0  # the part decides what is background; stale numbers elsewhere are never looked at
        draw_conditions(body, frame, camera, maps)
        _shade(maps, camera.focal, camera.center, colours, kinds, fronts, marks, _LIGHTS, backdrop, picture)
        _smooth_outlines(maps, picture.copy(), picture)
        picture[faded] = 255 * (1 - shown[faded]) * backdrop[faded, None] + shown[faded] * picture[faded]
    return pictures


def bust_fade(body, camera: Camera) -> np.ndarray:
    """(height, 1, 1) in 0..1, how much of the person each row shows: all of it, down to a little above the lowest
    vertex of the rest pose."""
    end = camera.project(body.vertices)[:, 1].max()
    rows = np.arange(camera.height, dtype=np.float32)[:, None, None]
    return np.clip((end - 0.02 * camera.height - rows) / (0.07 * camera.height), 0, 1)


def part_colours(part_names: tuple[str, ...]) -> np.ndarray:
    """(P, 3) linear albedo of each part; names without a known word take turns in a small palette."""
    colours = []
    for index, name in enumerate(part_names):
        known = (colour for word, colour in _COLOURS.items() if word in name.lower())
        colours.append(next(known, _OTHER[index % len(_OTHER)]))
    return np.array(colours, np.float32)


def part_kinds(body) -> tuple[np.ndarray, np.ndarray]:
    """Kind of surface (P,) and, in the rest pose, the front (P, 3) of each part: middle in x and y, foremost z."""
    kinds = np.full(len(body.part_names), _PLAIN)
    fronts = np.zeros((len(body.part_names), 3), np.float32)
    words = {
        "lash": _PLAIN,
        "brow": _PLAIN,
        "eye": _EYE,
        "teeth": _INNER,
        "tongue": _INNER,
        "mouth": _INNER,
        "skin": _SKIN,
    }
    for index, name in enumerate(body.part_names):
        kinds[index] = next((kind for word, kind in words.items() if word in name.lower()), _PLAIN)
        corners = body.vertices[body.faces[body.part == index]].reshape(-1, 3)
        if len(corners):
            fronts[index] = (*(corners.min(axis=0) + corners.max(axis=0))[:2] / 2, corners[:, 2].max())
    return kinds, fronts


def painted_marks(body) -> np.ndarray:
    """(10,) float32, rest-pose metres, for what is painted on bare skin: height, half distance and depth of the eyes;
    then the leotard's neckline (top, front depth, back depth, half width), sleeve end, hem, and where its front begins.
    Without a leotard the sleeve ends at 0."""
    left_shoulder, left_elbow, hip, knee, neck, eye = body.joints[[16, 18, 1, 4, 12, 23]]
    bare = all(any(word in name.lower() for word in _BARE) for name in body.part_names)
    sleeve = left_shoulder[0] + 0.4 * (left_elbow[0] - left_shoulder[0]) if bare else 0.0
    hem = hip[1] + 0.3 * (knee[1] - hip[1])
    marks = (eye[1], eye[0], eye[2], neck[1] + 0.015, 0.105, 0.045, 0.085, sleeve, hem, neck[2] + 0.03)
    return np.array(marks, np.float32)


def face_paint(body) -> tuple[dict[str, tuple[float, float, float]], np.ndarray]:
    """The preview's colours for renderers that have none of their own, one to a triangle: materials {name: linear RGB}
    and each triangle's number among them, (F,). Leotard, brows, irises and pupils get materials besides the parts."""
    colours, (kinds, fronts), marks = part_colours(body.part_names), part_kinds(body), painted_marks(body)
    materials = {name: tuple(colour) for name, colour in zip(body.part_names, colours, strict=True)}
    materials |= {"leotard": _LEOTARD, "brows": _BROW, "iris": _IRIS_COLOUR, "pupil": (0.005, 0.004, 0.003)}
    numbers, paint = {name: k for k, name in enumerate(materials)}, body.part.astype(int)
    for face, (x, y, z) in enumerate(body.vertices[body.faces].mean(axis=1)):
        part = body.part[face]
        if kinds[part] == _SKIN and _under_leotard(x, y, z, marks):
            paint[face] = numbers["leotard"]
        elif kinds[part] == _SKIN and _brow(x, y, z, marks) > 0.1:
            paint[face] = numbers["brows"]
        elif kinds[part] == _EYE and fronts[part, 2] - z < _IRIS_DEPTH:
            radius = np.hypot(x - fronts[part, 0], y - fronts[part, 1])
            if radius < _IRIS:
                paint[face] = numbers["pupil" if radius < _PUPIL else "iris"]
    used, paint = np.unique(paint, return_inverse=True)
    return {list(materials)[k]: list(materials.values())[k] for k in used}, paint


@numba.njit(nogil=True, cache=True)
def _smooth_outlines(maps, sharp, picture):
    """Where parts or depths meet, mix a pixel with its four neighbours: a cheap stand-in for more samples."""
    height, width = picture.shape[:2]
    for y in range(1, height - 1):
        for x in range(1, width - 1):
            part, nearness = maps[y, x, 8], maps[y, x, 9]
            outline = False
            for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                other = maps[v, u, 8]
                if other != part or part > 0 and abs(maps[v, u, 9] - nearness) > 0.01 * nearness:
                    outline = True
            if outline:
                for k in range(3):
                    around = int(sharp[y - 1, x, k]) + sharp[y + 1, x, k] + sharp[y, x - 1, k] + sharp[y, x + 1, k]
                    picture[y, x, k] = (4 * int(sharp[y, x, k]) + around + 4) // 8


@numba.njit(nogil=True, cache=True)
def _shade(maps, focal, center, colours, kinds, fronts, marks, lights, backdrop, picture):
    height, width = picture.shape[:2]
    colour = np.empty(3, np.float32)
    for y in range(height):
        for x in range(width):
            pixel = maps[y, x]
            part = int(pixel[8]) - 1
            if part < 0:
                for k in range(3):
                    picture[y, x, k] = np.uint8(255 * backdrop[y, k] + np.float32(0.5))
                continue
            for k in range(3):
                colour[k] = colours[part, k]
            if kinds[part] == _INNER and _in_narrow_gap(maps, kinds, y, x, focal):
                pixel[5] -= np.float32(1)  # deep, hence dark: closed lips show no teeth
            gloss = _paint(pixel, kinds[part], fronts[part], marks, colour)
            ray_x, ray_y = np.float32((x + 0.5 - center[0]) / focal), np.float32((y + 0.5 - center[1]) / focal)
            _light(pixel, ray_x, ray_y, gloss, lights, colour)
            for k in range(3):
                picture[y, x, k] = np.uint8(255 * colour[k] + np.float32(0.5))


@numba.njit(nogil=True, cache=True)
def _in_narrow_gap(maps, kinds, v, u, focal):
    """Whether the inside of the mouth is less than about 1.5 mm high at this sample."""
    reach = max(2, int(np.float32(0.0015) * focal * maps[v, u, 9]))
    above, below = int(maps[max(v - reach, 0), u, 8]) - 1, int(maps[min(v + reach, maps.shape[0] - 1), u, 8]) - 1
    return above >= 0 and below >= 0 and kinds[above] != _INNER and kinds[below] != _INNER


@numba.njit(nogil=True, cache=True)
def _paint(pixel, kind, front, marks, colour):
    """Change the albedo in `colour` (and the normal) by the rest position; returns the strength of the highlight."""
    if kind == _SKIN:
        if _under_leotard(pixel[3], pixel[4], pixel[5], marks):
            colour[0], colour[1], colour[2] = _LEOTARD
            return np.float32(0.06)
        share = _brow(pixel[3], pixel[4], pixel[5], marks)
        for k in range(3):
            colour[k] += share * (np.float32(_BROW[k]) - colour[k])
        return np.float32(0.10)
    if kind == _EYE:
        radius = np.hypot(pixel[3] - front[0], pixel[4] - front[1])
        if front[2] - pixel[5] < _IRIS_DEPTH and radius < _IRIS:
            dark = np.float32(0.05 if radius < _PUPIL else (0.45 if radius > _IRIS - _LIMBUS else 1.0))
            for k in range(3):
                colour[k] = dark * np.float32(_IRIS_COLOUR[k])
        return np.float32(0.5)
    if kind == _INNER:  # little light gets into the mouth
        light = min(max(np.float32(1.05) - (front[2] - pixel[5]) / np.float32(0.05), np.float32(0.15)), np.float32(1))
        for k in range(3):
            colour[k] *= light
            pixel[k] *= np.float32(0.4)
        pixel[2] -= np.float32(0.6)  # and it comes from all around: flatten the shading
        return np.float32(0.15) * light
    return np.float32(0.08)


@numba.njit(nogil=True, cache=True)
def _brow(x, y, z, marks):
    """0..1: how much of an eyebrow there is at a rest position."""
    size = marks[1] / np.float32(0.029)
    across = abs(x) / size
    if z < marks[2] - np.float32(0.02) or across < np.float32(0.011) or across > np.float32(0.058):
        return np.float32(0)
    arch = np.float32(0.0215) - np.float32(14) * (across - np.float32(0.034)) ** 2
    half = np.float32(0.0034) * min(np.float32(1), (np.float32(0.062) - across) / np.float32(0.03))
    half *= min(np.float32(1), (across - np.float32(0.009)) / np.float32(0.007))
    inside = half - abs((y - marks[0]) / size - arch)
    return np.float32(0.65) * min(max(inside / np.float32(0.0022), np.float32(0)), np.float32(1))


@numba.njit(nogil=True, cache=True)
def _under_leotard(x, y, z, marks):
    if abs(x) > marks[7] or y > marks[3] or y < marks[8]:
        return False
    depth = marks[4] if z > marks[9] else marks[5]
    return (x / marks[6]) ** 2 + ((y - marks[3]) / depth) ** 2 > 1


@numba.njit(nogil=True, cache=True, fastmath=True)
def _light(pixel, ray_x, ray_y, gloss, lights, colour):
    """Albedo in `colour` -> the lit colour, sRGB 0..1, seen along the camera-space ray (ray_x, ray_y, 1)."""
    nx, ny, nz = pixel[0], pixel[1], pixel[2]
    length = np.float32(1) / np.sqrt(ray_x * ray_x + ray_y * ray_y + np.float32(1))
    ex, ey, ez = -ray_x * length, -ray_y * length, -length  # towards the eye
    diffuse = np.float32(_AMBIENT) * (np.float32(1) - np.float32(0.4) * ny)  # a little more from above
    shine = np.float32(0)
    for i in range(lights.shape[0]):
        lx, ly, lz, strength = lights[i, 0], lights[i, 1], lights[i, 2], lights[i, 3]
        facing = nx * lx + ny * ly + nz * lz
        wrapped = (facing + np.float32(0.25)) / np.float32(1.25)  # wrapped light stands in for soft shadows
        if wrapped > 0:
            diffuse += strength * wrapped
        hx, hy, hz = lx + ex, ly + ey, lz + ez
        half = (nx * hx + ny * hy + nz * hz) / np.sqrt(hx * hx + hy * hy + hz * hz)
        if half > 0 and facing > 0:
            power = half * half
            power *= power
            power *= power
            power *= power
            shine += strength * power * power  # half ** 32
    rim = np.float32(1) - max(np.float32(0), nx * ex + ny * ey + nz * ez)
    rim = rim * rim * rim * np.float32(0.12)
    for k in range(3):
        value = colour[k] * diffuse + gloss * shine * np.float32(0.5) + rim * (colour[k] + np.float32(0.1))
        value = min(max(value, np.float32(0)), np.float32(1))
        colour[k] = np.sqrt(value) * (np.float32(1.09) - np.float32(0.09) * (1 - value))  # close to the sRGB curve
        colour[k] = min(colour[k], np.float32(1))
