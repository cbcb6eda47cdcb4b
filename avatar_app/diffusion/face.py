"""Face enhancement: the head is painted again, larger, by its own networks and blended into the frame.

Where the head is comes from the posed mesh, not from a detector: no frame is ever lost, and crop, conditions and mask
fit each other to the pixel.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from avatar_app.anchors import Anchor, Preset
from avatar_app.diffusion.denoise import overlapped_denoise, seeded_noise
from avatar_app.diffusion.generator import plan_for
from avatar_app.diffusion.painters import BATCH, NativePainter, typical_poses
from avatar_app.diffusion.planner import Plan, in_parts
from avatar_app.mesh.body import HEAD, JAW, LEFT_EYE, RIGHT_EYE, Body
from avatar_app.mesh.camera import Camera
from avatar_app.mesh.conditions import PART, REST, render_conditions
from avatar_app.stages import each
from talkshow_bridge.errors import InputError

NECK = 12  # SMPL-X joint number
CENTER_SECONDS, SIZE_SECONDS = 0.12, 0.6  # time constants of the crop's smoothing
FEATHER = 0.06  # width of the mask's soft rim inside the head, share of the crop's side


class FaceEnhancer:
    """Repaints the heads of one video, chunk after chunk in order; how it is cut changes no more than a rounding.

    Raises InputError when the anchor has no face networks.
    """

    def __init__(
        self,
        anchor: Anchor,
        preset_options: Preset | dict,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        seed: int = 0,
        plan: Plan | None = None,
    ):
        if not anchor.has_face or anchor.manifest.kind != "native":
            raise InputError(f"Anchor '{anchor.id}' has no face networks: switch the face enhancement off.")
        self._body, self._camera = anchor.body, anchor.camera
        self._resolution = anchor.manifest.face.resolution
        self._options = Preset.from_options(preset_options)
        plan = plan or plan_for(anchor, self._options, device, dtype, "face")
        where = torch.device(device), dtype or plan.dtype, plan.offload
        painter = NativePainter(anchor, "face", self._options, *where, partial(typical_heads, anchor))
        self._painter, self._careful = painter, Careful(painter, plan)
        noise = seeded_noise(self._painter.latent_shape(self._resolution, self._resolution), seed)
        self._noise = noise.to(self._painter.device)
        self._track = CropTrack(anchor.manifest.face.margin, anchor.manifest.fps)
        self._is_head = HeadMask(self._body)

    def enhance(self, frames: np.ndarray, vertices: np.ndarray, before: bool = False) -> np.ndarray:
        """The next frames of the video, uint8 RGB (n, height, width, 3), and their posed vertices (n, V, 3) in metres.

        Returns frames of the same shape; with `before` twice as wide, the untouched frame on the left.
        """
        crops = self._track.follow(head_squares(self._body, vertices, self._camera))
        result = frames.copy()
        for start in range(0, len(frames), BATCH):
            batch = slice(start, start + BATCH)
            maps, places = close_ups(self._body, vertices[batch], self._camera, crops[batch], self._resolution)
            faces = self._careful(self._paint, maps, places)

            def put_in(frame: np.ndarray, picture: np.ndarray, conditions: np.ndarray, crop: np.ndarray) -> None:
                blend(frame, picture, feathered(self._is_head(conditions)), *crop)

            each(put_in, result[batch], faces, maps, crops[batch])
        return np.concatenate([frames, result], axis=2) if before else result

    @property
    def plan(self) -> Plan:
        """How much is painted at once: what was given, or less since memory ran out."""
        return self._careful.plan

    def skip(self, vertices: np.ndarray) -> None:
        """Pass over frames that are painted already: their head's way is followed, so that the next ones fit on."""
        self._track.follow(head_squares(self._body, vertices, self._camera))

    @torch.inference_mode()
    def _paint(self, maps: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Condition maps of some crops -> uint8 RGB pictures, each painted on its own."""
        painter, scheduler = self._painter, self._painter.scheduler()
        scheduler.set_timesteps(self._options.steps)
        condition = painter.encode(maps, places)

        def predict(latents: Tensor, timestep: Tensor, frames: slice) -> Tensor:
            return painter.predict(latents, timestep, condition).to(latents.dtype)

        latents = overlapped_denoise(predict, scheduler, self._noise, [range(len(maps))])
        return painter.paint(latents, condition[painter.for_decoder])


class Careful:
    """Calls that paint pictures, as many at a time as the plan says and fewer from where memory runs out."""

    def __init__(self, painter, plan: Plan):
        self._painter, self.plan = painter, plan

    def __call__(self, paint: Callable, *inputs: np.ndarray) -> np.ndarray:
        """paint(*inputs), which has a picture for each row of the inputs."""

        def part(now: slice, plan: Plan) -> np.ndarray:
            self._painter.offload = plan.offload
            return paint(*(rows[now] for rows in inputs))

        done = []
        for pictures, plan in in_parts(part, len(inputs[0]), "frames", self.plan, self._painter.device):
            self.plan = plan
            done.append(pictures)
        return np.concatenate(done)


class HeadMask:
    """Condition maps (..., 10) -> bool (...): head parts, and whatever lies above the middle of the neck at rest."""

    def __init__(self, body: Body):
        self._parts, self._height = head_parts(body), neck_height(body)

    def __call__(self, maps: np.ndarray) -> np.ndarray:
        above = (maps[..., PART] > 0) & (maps[..., REST][..., 1] > self._height)
        return above | np.isin(maps[..., PART], self._parts)


class CropTrack:
    """Head squares -> steady whole-pixel crop squares, causal: each depends on the past alone.

    The centre and the side follow exponentially; the centre is pulled along where the head would leave the crop.
    Lag costs nothing in accuracy, because the conditions are rendered for the very crop that is used.
    """

    def __init__(self, margin: float, fps: float):
        self._margin = margin
        self._gain = 1 - np.exp(-1 / (fps * np.array([CENTER_SECONDS, CENTER_SECONDS, SIZE_SECONDS])))
        self._state: np.ndarray | None = None  # smoothed centre x, centre y, side of the head in pixels

    def follow(self, squares: np.ndarray) -> np.ndarray:
        """Head squares (n, 3) centre x, centre y, side in pixels -> crops (n, 3) int: left, top, size."""
        crops = np.empty((len(squares), 3), int)
        for square, crop in zip(squares.astype(np.float64), crops, strict=True):
            state = square if self._state is None else self._state + self._gain * (square - self._state)
            size = max(self._margin * state[2], square[2] + 2)
            slack = (size - square[2]) / 2
            state[:2] = np.clip(state[:2], square[:2] - slack, square[:2] + slack)
            self._state = state
            crop[2] = np.ceil(size)
            crop[:2] = np.round(state[:2] - crop[2] / 2)
        return crops


def head_vertices(body: Body) -> np.ndarray:
    """(V,) bool: the vertices that mostly follow the head, jaw and eyes, hair cap included."""
    return body.weights[:, [HEAD, JAW, LEFT_EYE, RIGHT_EYE]].sum(axis=1) > 0.5


def head_squares(body: Body, vertices: np.ndarray, camera: Camera) -> np.ndarray:
    """Posed vertices (n, V, 3) -> (n, 3): centre x, centre y and side in pixels of the square around the head."""
    points = camera.project(vertices[:, head_vertices(body)])[..., :2]
    low, high = points.min(axis=1), points.max(axis=1)
    return np.column_stack([(low + high) / 2, (high - low).max(axis=1)])


def close_ups(
    body: Body, vertices: np.ndarray, camera: Camera, crops: np.ndarray, output: int
) -> tuple[np.ndarray, np.ndarray]:
    """Condition maps (n, output, output, 10) of crops (n, 3) of the frames of posed vertices, and their places."""

    def draw(posed: np.ndarray, crop: list[int]) -> np.ndarray:
        return render_conditions(body, posed[None], camera.crop(*crop, output))

    places = np.stack([picture_places(*crop, output, camera) for crop in crops])
    return np.concatenate(each(draw, vertices, crops.tolist())), places


def typical_heads(anchor: Anchor) -> tuple[np.ndarray, np.ndarray]:
    """`close_ups` of the heads of `typical_poses`."""
    face, vertices = anchor.manifest.face, typical_poses(anchor)
    crops = CropTrack(face.margin, anchor.manifest.fps).follow(head_squares(anchor.body, vertices, anchor.camera))
    return close_ups(anchor.body, vertices, anchor.camera, crops, face.resolution)


def picture_places(left: int, top: int, size: int, output: int, camera: Camera) -> np.ndarray:
    """(2, output, output) float32: x and y in the whole picture, -1..1, of the pixels of a crop of it."""
    steps = (np.arange(output, dtype=np.float32) + 0.5) * size / output
    x, y = np.meshgrid((left + steps) * 2 / camera.width - 1, (top + steps) * 2 / camera.height - 1)
    return np.stack([x, y]).astype(np.float32)


def head_parts(body: Body) -> np.ndarray:
    """The part numbers of condition maps (index + 1) that belong to the head alone: eyes, teeth, hair cap."""
    on_head = head_vertices(body)[body.faces].all(axis=1)
    return np.array([k + 1 for k in range(len(body.part_names)) if on_head[body.part == k].all()])


def neck_height(body: Body) -> float:
    """Height in the rest pose, metres, above which everything is counted as head: the middle of the neck."""
    return float((body.joints[NECK, 1] + body.joints[HEAD, 1]) / 2)


def feathered(mask: np.ndarray) -> Tensor:
    """Bool (size, size) -> float32 in [0, 1]: 1 well inside, falling to 0 at the silhouette and the picture's edge."""
    radius = max(1, round(FEATHER * len(mask)))
    inside = mask.astype(np.float32)
    share = ndimage.uniform_filter(inside, 2 * radius + 1, mode="constant")  # 0.5 on a straight silhouette
    return torch.from_numpy(np.maximum(share * 2 - 1, 0) * inside)


def blend(frame: np.ndarray, face: np.ndarray, mask: Tensor, left: int, top: int, size: int) -> None:
    """Put a square face picture with its mask into the square [left, left + size) of a uint8 frame, in place."""
    layer = torch.cat([torch.from_numpy(face).permute(2, 0, 1).float(), mask[None]])
    layer = functional.interpolate(layer[None], size=(size, size), mode="bilinear", antialias=True)[0]
    height, width = frame.shape[:2]
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + size, width), min(top + size, height)
    if x0 >= x1 or y0 >= y1:
        return
    layer = layer[:, y0 - top : y1 - top, x0 - left : x1 - left].permute(1, 2, 0).numpy()
    below, share = frame[y0:y1, x0:x1].astype(np.float32), layer[..., 3:]
    frame[y0:y1, x0:x1] = np.round(below + share * (layer[..., :3] - below)).astype(np.uint8)
