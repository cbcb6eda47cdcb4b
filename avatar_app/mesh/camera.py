"""The pinhole camera that every renderer, crop and anchor shares."""

from dataclasses import dataclass

import numpy as np

MAX_SIDE = 8192  # pixels


@dataclass(frozen=True)
class Camera:
    """Pinhole camera. Camera space is x right, y down, z into the scene; pixel k is sampled at its middle, k + 0.5.

    focal: pixels.  center: (cx, cy) in pixels; the middle of the picture is (width/2, height/2).
    position: (3,) metres, world space.  rotation: (3, 3) world -> camera.
    """

    focal: float
    center: tuple[float, float]
    width: int
    height: int
    position: np.ndarray
    rotation: np.ndarray

    def __post_init__(self):
        object.__setattr__(self, "center", (float(self.center[0]), float(self.center[1])))
        object.__setattr__(self, "position", np.asarray(self.position, np.float64).reshape(3))
        object.__setattr__(self, "rotation", np.asarray(self.rotation, np.float64).reshape(3, 3))

    @classmethod
    def look_at(cls, position, target, focal: float, width: int, height: int) -> "Camera":
        """Upright camera at `position` whose optical axis passes through `target` (world space, y up, metres)."""
        position = np.asarray(position, np.float64)
        forward = np.asarray(target, np.float64) - position
        forward /= np.linalg.norm(forward)
        right = np.cross(forward, (0.0, 1.0, 0.0))
        right /= np.linalg.norm(right)
        rotation = np.stack([right, np.cross(forward, right), forward])
        return cls(focal, (width / 2, height / 2), width, height, position, rotation)

    def project(self, points: np.ndarray) -> np.ndarray:
        """World points (..., 3) in metres -> (..., 3): x and y in pixels, depth along the optical axis in metres."""
        local = (np.asarray(points) - self.position) @ self.rotation.T
        depth = local[..., 2:]
        return np.concatenate([local[..., :2] / depth * self.focal + np.asarray(self.center), depth], axis=-1)

    def crop(self, left: float, top: float, size: float, output: int) -> "Camera":
        """The square [left, left+size) x [top, top+size) of this picture, resampled to `output` x `output` pixels."""
        scale = output / size
        center = ((self.center[0] - left) * scale, (self.center[1] - top) * scale)
        return Camera(self.focal * scale, center, output, output, self.position, self.rotation)

    def scaled(self, factor: float) -> "Camera":
        """The same view with `factor` times as many pixels along each side."""
        center = (self.center[0] * factor, self.center[1] * factor)
        width, height = round(self.width * factor), round(self.height * factor)
        return Camera(self.focal * factor, center, width, height, self.position, self.rotation)

    def to_dict(self) -> dict:
        """JSON-ready form, inverse of `from_dict`."""
        return {
            "focal": float(self.focal),
            "center": list(self.center),
            "width": int(self.width),
            "height": int(self.height),
            "position": self.position.tolist(),
            "rotation": self.rotation.tolist(),
        }

    @classmethod
    def from_dict(cls, data: dict) -> "Camera":
        """Raises ValueError, TypeError or KeyError for anything but what `to_dict` writes."""
        camera = cls(**data)
        sizes = (camera.width, camera.height)
        if any(isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= MAX_SIDE for size in sizes):
            raise ValueError(f"width and height must be whole numbers from 1 to {MAX_SIDE}")
        if (
            isinstance(camera.focal, bool)
            or not isinstance(camera.focal, (int, float))
            or not 0 < camera.focal < np.inf
        ):
            raise ValueError("the focal length must be a number above 0")
        if not (np.isfinite(camera.center).all() and np.isfinite(camera.position).all()):
            raise ValueError("center and position must be finite numbers")
        if not np.allclose(camera.rotation @ camera.rotation.T, np.eye(3), atol=1e-3):
            raise ValueError("the rotation must be one")
        return camera
