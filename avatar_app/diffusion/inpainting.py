"""The face pass of Make-Your-Anchor: the face in an aligned crop of the frame is painted again by inpainting networks.

The original finds five points with a detector and the face's outline with a parsing network. Both come from the posed
mesh here, so no frame is lost. The mask's polarity is the one the published weights know: 1 is kept, 0 painted again.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from avatar_app.anchors import Anchor, Preset
from avatar_app.diffusion.alignment import CROP, inverse, paste_square, resize, similarity, warp
from avatar_app.diffusion.denoise import overlapped_denoise, seeded_noise
from avatar_app.diffusion.face import Careful, HeadMask, feathered
from avatar_app.diffusion.frames import to_frames
from avatar_app.diffusion.generator import plan_for
from avatar_app.diffusion.painters import BATCH, StableDiffusionPainter
from avatar_app.diffusion.planner import Plan
from avatar_app.mesh.body import HEAD
from avatar_app.mesh.camera import Camera
from avatar_app.mesh.conditions import PART, REST, condition_renderer, render_conditions
from talkshow_bridge.errors import InputError

ORIGINAL_BATCH = 30  # the original draws the posterior's noise anew, from the same seed, for each so many frames
RIGHT_EYE, LEFT_EYE, NOSE, CORNERS = slice(19, 25), slice(25, 31), 13, [31, 37]  # of the 51 landmarks
BROWS, NOSE_BASE = slice(0, 10), slice(14, 19)
STEADY_SECONDS = 0.12  # time constant of the crop's smoothing where the anchor does not forbid it


class FaceInpainter:
    """Repaints the faces of one video, chunk after chunk in order: `FaceEnhancer` for anchors of the original's kind.

    Raises InputError when the anchor has no face networks or its body no landmarks.
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
        face, compat = anchor.manifest.face, anchor.manifest.compat
        if face is None:
            raise InputError(f"Anchor '{anchor.id}' has no face networks: switch the face enhancement off.")
        if anchor.body.landmarks is None:
            raise InputError(
                f"Anchor '{anchor.id}': its body has no facial landmarks; switch the face enhancement off."
            )
        self._body, self._camera = anchor.body, anchor.camera
        self._crop = FaceCropper(self._body, condition_renderer(anchor.manifest.condition), face.resolution)
        self._is_head = HeadMask(self._body)
        self._gain = 1 if compat.unsteady_face_crop else 1 - np.exp(-1 / (anchor.manifest.fps * STEADY_SECONDS))
        self._points: np.ndarray | None = None  # smoothed, (5, 2)
        numbers = {"guidance": face.guidance, "condition_scale": face.condition_scale}
        self._options = Preset.from_options(preset_options).model_copy(update=numbers)
        plan, device = plan or plan_for(anchor, self._options, device, dtype, "face"), torch.device(device)
        painter = StableDiffusionPainter(anchor, "face", self._options, device, dtype or plan.dtype, plan.offload)
        self._painter, self._careful = painter, Careful(painter, plan)
        self._square = compat.square_face_mask
        shape = painter.latent_shape(face.resolution, face.resolution)
        self._noise = seeded_noise(shape, seed).to(painter.device)
        self._posterior = posterior_noise(ORIGINAL_BATCH, shape) if compat.sampled_face_posterior else None
        self._done = 0  # frames

    def enhance(self, frames: np.ndarray, vertices: np.ndarray, before: bool = False) -> np.ndarray:
        """The next frames of the video, uint8 RGB (n, height, width, 3), and their posed vertices (n, V, 3) in metres.

        Returns frames of the same shape; with `before` twice as wide, the untouched frame on the left.
        """
        matrices = [similarity(self._follow(points)) for points in five_points(self._body, vertices, self._camera)]
        result = frames.copy()
        for start in range(0, len(frames), BATCH):
            batch = slice(start, start + BATCH)
            self._enhance_batch(result[batch], vertices[batch], matrices[batch])
        return np.concatenate([frames, result], axis=2) if before else result

    @property
    def plan(self) -> Plan:
        """How much is painted at once: what was given, or less since memory ran out."""
        return self._careful.plan

    def skip(self, vertices: np.ndarray) -> None:
        """Pass over frames that are painted already."""
        for points in five_points(self._body, vertices, self._camera):
            self._follow(points)
        self._done += len(vertices)

    def _enhance_batch(self, frames: np.ndarray, vertices: np.ndarray, matrices: list[np.ndarray]) -> None:
        """In place, as many frames as the networks take at a time."""
        crops = self._crop(frames, vertices, [self._camera] * len(frames), matrices)
        numbers = np.arange(self._done, self._done + len(frames))
        self._done += len(frames)
        faces = self._careful(self._paint, crops.pictures, crops.controls, crops.keep, numbers)
        for frame, face, matrix, conditions in zip(frames, faces, matrices, crops.maps, strict=True):
            if self._square:
                frame[:] = paste_square(frame, face, matrix)
            else:
                frame[:] = paste(frame, face, feathered(self._is_head(conditions)).numpy(), matrix)

    def _follow(self, points: np.ndarray) -> np.ndarray:
        """The next frame's five points, smoothed; conditions are made for the very crop, so lag costs no accuracy."""
        before = points if self._points is None else self._points
        self._points = before + self._gain * (points - before)
        return self._points

    @torch.inference_mode()
    def _paint(self, crops: np.ndarray, controls: np.ndarray, keep: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """Crops and mesh crops uint8 (n, size, size, 3), masks uint8 (n, size, size), frame numbers (n,) -> uint8
        pictures."""
        painter, scheduler = self._painter, self._painter.scheduler()
        scheduler.set_timesteps(self._options.steps)
        noise = None if self._posterior is None else self._posterior[numbers % ORIGINAL_BATCH]
        condition = (*painter.encode(controls), inpainting_channels(painter, crops, keep, noise))

        def predict(latents: Tensor, timestep: Tensor, frames: slice) -> Tensor:
            return painter.predict(latents, timestep, condition).to(latents.dtype)

        latents = overlapped_denoise(predict, scheduler, self._noise, [range(len(crops))])
        return to_frames(painter.decode(latents, condition).round())


class FaceCrops(NamedTuple):
    """Aligned crops: pictures and controls (mesh pictures) uint8 (n, size, size, 3); keep uint8 (n, size, size), 0
    where the face is painted again, else 255; maps, the crops' conditions (CROP, CROP, 10) each."""

    pictures: np.ndarray
    controls: np.ndarray
    keep: np.ndarray
    maps: list[np.ndarray]


class FaceCropper:
    """Cuts what the face networks see out of frames and of their mesh pictures. draw: see `condition_renderer`."""

    def __init__(self, body, draw: Callable, size: int):
        self._body, self._draw, self._size = body, draw, size
        self._is_face = FaceMask(body)

    def __call__(
        self, frames: np.ndarray, vertices: np.ndarray, cameras: list[Camera], matrices: list[np.ndarray]
    ) -> FaceCrops:
        crops = []
        for frame, posed, camera, matrix in zip(frames, vertices, cameras, matrices, strict=True):
            mesh = self._draw(self._body, posed[None], camera)[0]
            maps = render_conditions(self._body, posed[None], aligned_camera(camera, matrix))[0]
            picture, control = (warp(whole, matrix, CROP, CROP) for whole in (frame, mesh))
            small = (resize(crop, self._size) for crop in (picture, control, keep_mask(self._is_face(maps))))
            crops.append((*small, maps))
        pictures, controls, keep, maps = zip(*crops, strict=True)
        return FaceCrops(np.stack(pictures), np.stack(controls), np.stack(keep), list(maps))


class FaceMask:
    """Condition maps (..., 10) -> bool (...): the face without hair and neck.

    In the rest pose a face is three bands of one height: chin to base of the nose, to brows, to hairline."""

    def __init__(self, body):
        points = body.vertices[body.landmarks]
        nose, brows = points[NOSE_BASE, 1].mean(), points[BROWS, 1].mean()
        self._low, self._high, self._back = 2 * nose - brows, 2 * brows - nose, body.joints[HEAD, 2]

    def __call__(self, maps: np.ndarray) -> np.ndarray:
        _, height, depth = np.moveaxis(maps[..., REST], -1, 0)
        return (maps[..., PART] > 0) & (height > self._low) & (height < self._high) & (depth > self._back)


def keep_mask(face: np.ndarray) -> np.ndarray:
    """Bool (size, size) -> uint8 mask: 0 on the face and a rim of one pixel, 255 elsewhere."""
    return np.where(ndimage.binary_dilation(face, np.ones((3, 3))), 0, 255).astype(np.uint8)


def five_points(body, vertices: np.ndarray, camera: Camera) -> np.ndarray:
    """Posed vertices (n, V, 3) -> (n, 5, 2) pixel indices of the points of `TEMPLATE`."""
    marks = vertices[:, body.landmarks]
    eyes = [marks[:, eye].mean(axis=1) for eye in (RIGHT_EYE, LEFT_EYE)]
    points = np.stack([*eyes, marks[:, NOSE], *(marks[:, corner] for corner in CORNERS)], axis=1)
    return camera.project(points.astype(np.float64))[..., :2] - 0.5


def aligned_camera(camera: Camera, matrix: np.ndarray) -> Camera:
    """The camera that sees the crop: the same place, zoomed, shifted and rolled."""
    scale = np.hypot(*matrix[:, 0])
    roll = np.eye(3)
    roll[:2, :2] = matrix[:, :2] / scale
    center = matrix @ (camera.center[0] - 0.5, camera.center[1] - 0.5, 1) + 0.5
    return Camera(camera.focal * scale, tuple(center), CROP, CROP, camera.position, roll @ camera.rotation)


def posterior_noise(count: int, shape: tuple[int, int, int]) -> Tensor:
    """(count, *shape): what the original adds to the latents of the frames of a batch."""
    return torch.randn((count, *shape), generator=torch.Generator("cpu").manual_seed(0))


def inpainting_channels(
    painter: StableDiffusionPainter, crops: np.ndarray, keep: np.ndarray, noise: Tensor | None
) -> Tensor:
    """What the UNet sees besides the noisy latents (n, 1 + z, h, w): the mask and the latents of the masked picture.

    crops uint8 (n, size, size, 3); keep uint8 (n, size, size), 0 where the face goes; noise (n, z, h, w) samples the
    autoencoder's posterior, None takes its mean."""
    mask = (torch.from_numpy(keep)[:, None] >= 128).to(painter.device, painter.dtype)
    pictures = torch.from_numpy(crops).permute(0, 3, 1, 2).to(painter.device, painter.dtype) / 127.5 - 1
    painter.at_work(painter.autoencoder)
    posterior = painter.autoencoder.encode(pictures * mask).latent_dist
    latents = posterior.mean
    if noise is not None:
        latents = latents + posterior.std * noise.to(latents)
    latents = latents * painter.autoencoder.config.scaling_factor
    return torch.cat([functional.interpolate(mask, latents.shape[-2:]), latents], dim=1)


def paste(frame: np.ndarray, face: np.ndarray, share: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Blend a square uint8 face with its weight (CROP, CROP) in [0, 1] into a uint8 frame -> new frame, rounded."""
    height, width = frame.shape[:2]
    layer = np.dstack([resize(face, CROP), 255 * share]).astype(np.float32)
    zoom = 2 * (round(np.hypot(*matrix[:, 0])) // 2) + 1  # crop pixels under one of the frame, odd
    layer = warp(ndimage.uniform_filter(layer, (zoom, zoom, 0)), inverse(matrix), width, height)
    below = frame.astype(np.float32)
    return np.round(below + layer[..., 3:] / 255 * (layer[..., :3] - below)).astype(np.uint8)
