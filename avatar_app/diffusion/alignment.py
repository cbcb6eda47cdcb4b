"""Where Make-Your-Anchor's face networks look: the aligned 512 px crop, and the way back into the frame.

The original code leaves this to OpenCV. Its fixed-point arithmetic is repeated here, so that crops and blends are the
same to the bit whatever release of OpenCV is or is not installed. Points are pixel indices as OpenCV counts them: the
middle of the first pixel is 0, not 0.5. Matrices are (2, 3) and take points of the frame to points of the crop.
"""

import numpy as np
from scipy import ndimage

CROP = 512
# right eye, left eye, nose, right and left corner of the mouth (the person's right is left in the picture)
TEMPLATE = np.array(
    [
        (192.98138, 239.94708),
        (318.90277, 240.1936),
        (256.63416, 314.01935),
        (201.26117, 371.41043),
        (313.08905, 371.15118),
    ]
)
_WHITE, _SOLID = 255.0, 20  # the mask's square, and the value above which a resampled pixel counts as inside
_ERODE, _BLUR, _SIGMA = 40, 41, 6.5  # pixels of the frame, however large the face is


def similarity(points: np.ndarray) -> np.ndarray:
    """The turn, scale and shift that brings five points (5, 2) closest to `TEMPLATE` (least squares)."""
    here, there = (array - array.mean(axis=0) for array in (np.asarray(points, np.float64), TEMPLATE))
    a = (here * there).sum() / (here**2).sum()
    b = (here[:, 0] * there[:, 1] - here[:, 1] * there[:, 0]).sum() / (here**2).sum()
    turn = np.array([[a, -b], [b, a]])
    return np.column_stack([turn, TEMPLATE.mean(axis=0) - turn @ np.mean(points, axis=0)])


def inverse(matrix: np.ndarray) -> np.ndarray:
    """The matrix of the way back."""
    (a, b, c), (d, e, f) = matrix
    scale = 1 / (a * e - b * d)
    turn = np.array([[e * scale, -b * scale], [-d * scale, a * scale]])
    return np.column_stack([turn, -turn @ (c, f)])


def warp(picture: np.ndarray, matrix: np.ndarray, width: int, height: int) -> np.ndarray:
    """Bilinear `cv2.warpAffine`: uint8 or float (h, w[, c]) -> (height, width[, c]) of the same type, 0 outside.

    Source positions are rounded to 1/32 pixel."""
    (a, b, c), (d, e, f) = inverse(matrix)
    x, y = np.arange(width), np.arange(height)[:, None]
    column = (np.rint(a * x * 1024).astype(int) + np.rint((b * y + c) * 1024).astype(int) + 16) >> 5
    row = (np.rint(d * x * 1024).astype(int) + np.rint((e * y + f) * 1024).astype(int) + 16) >> 5
    padded = np.pad(picture, [(1, 1), (1, 1)] + [(0, 0)] * (picture.ndim - 2))
    whole = picture.dtype == np.uint8
    total = np.zeros((height, width, *picture.shape[2:]), np.int32 if whole else picture.dtype)
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
        share = (column & 31 if right else 32 - (column & 31)) * (row & 31 if down else 32 - (row & 31))
        share = share.reshape(share.shape + (1,) * (picture.ndim - 2))
        tap = padded[
            np.clip((row >> 5) + down, -1, picture.shape[0]) + 1,
            np.clip((column >> 5) + right, -1, picture.shape[1]) + 1,
        ]
        total += tap * share.astype(np.int32) if whole else tap * (share / 1024).astype(picture.dtype)
    return ((total + 512) >> 10).astype(np.uint8) if whole else total


def resize(picture: np.ndarray, size: int) -> np.ndarray:
    """Bilinear `cv2.resize` of a uint8 picture (h, w[, c]) to (size, size[, c])."""
    height, width, *rest = picture.shape
    if height == width == 2 * size:  # where OpenCV averages 2 x 2 pixels instead
        blocks = picture.reshape(size, 2, size, 2, *rest).sum(axis=(1, 3), dtype=int)
        return ((blocks + 2) >> 2).astype(np.uint8)
    (left, right, across), (above, below, down) = _taps(width, size), _taps(height, size)
    across, down = across.reshape(-1, *[1] * len(rest)), down.reshape(-1, 1, *[1] * len(rest))
    rows = picture[:, left] * (2048 - across) + picture[:, right] * across
    mixed = ((rows[above] >> 4) * (2048 - down) >> 16) + ((rows[below] >> 4) * down >> 16)
    return ((mixed + 2) >> 2).astype(np.uint8)


def _taps(side: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First and second source pixel of each target pixel, and the second's weight in 1/2048."""
    position = (np.arange(size) + 0.5) * (side / size) - 0.5
    first = np.floor(position).astype(int)
    weight = np.rint((position - first) * 2048).astype(int)
    return np.clip(first, 0, side - 1), np.clip(first + 1, 0, side - 1), weight


def square_mask(matrix: np.ndarray, width: int, height: int) -> np.ndarray:
    """The original's blending weight (height, width) float32 in [0, 1]: the crop's square, eroded and blurred."""
    square = warp(np.full((CROP, CROP), _WHITE), inverse(matrix), width, height)
    square[square > _SOLID] = _WHITE
    kernel = np.exp(-((np.arange(_BLUR) - _BLUR // 2) ** 2) / (2 * _SIGMA**2))
    for axis in (0, 1):
        square = ndimage.minimum_filter1d(square, _ERODE, axis, mode="constant", cval=np.inf)
    for axis in (1, 0):
        square = ndimage.correlate1d(square, kernel / kernel.sum(), axis, mode="mirror")
    return (square / _WHITE).astype(np.float32)


def paste_square(frame: np.ndarray, face: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """The original's blend: uint8 frame (height, width, 3) and square uint8 face -> new frame, fractions cut off."""
    height, width = frame.shape[:2]
    layer = warp(resize(face, CROP).astype(np.float32) / np.float32(255), inverse(matrix), width, height)
    share = square_mask(matrix, width, height)[..., None].astype(np.float64)
    return (share * (layer.astype(np.float64) * 255) + (1 - share) * frame).astype(np.uint8)
