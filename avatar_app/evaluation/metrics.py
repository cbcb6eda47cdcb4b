"""Picture metrics on uint8 RGB frames (N, H, W, 3); every function returns one float per call."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter


def psnr(made: np.ndarray, truth: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB over all frames together; infinite when equal."""
    error = np.mean((made.astype(np.float64) - truth) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def ssim(made: np.ndarray, truth: np.ndarray) -> float:
    """Mean structural similarity of the luma (Wang et al. 2004: Gaussian window of sigma 1.5, K = 0.01, 0.03)."""
    return float(np.mean([_ssim_of_frame(luma(a), luma(b)) for a, b in zip(made, truth, strict=True)]))


def _ssim_of_frame(a: np.ndarray, b: np.ndarray) -> float:
    def blur(x: np.ndarray) -> np.ndarray:
        return gaussian_filter(x, 1.5, truncate=3.5)

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    both = blur(a * b) - mean_a * mean_b
    score = (2 * mean_a * mean_b + c1) * (2 * both + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return float(score.mean())


def luma(frame: np.ndarray) -> np.ndarray:
    """(..., 3) RGB -> float64 luma (BT.601)."""
    return frame.astype(np.float64) @ (0.299, 0.587, 0.114)


def motion_error(made: np.ndarray, truth: np.ndarray) -> float:
    """Mean |change between neighbouring frames - the truth's change| in 0..255: wrong movement and flicker."""
    change, wanted = (np.diff(frames.astype(np.float32), axis=0) for frames in (made, truth))
    return float(np.abs(change - wanted).mean())


def shimmer(made: np.ndarray, truth: np.ndarray, still: float = 1.0) -> float:
    """Mean change between neighbouring frames in 0..255 where the truth changes by at most `still`: pure flicker."""
    change, wanted = (np.abs(np.diff(frames.astype(np.float32), axis=0)).mean(-1) for frames in (made, truth))
    quiet = wanted <= still
    return float(change[quiet].mean()) if quiet.any() else 0.0


def seam(made: np.ndarray, truth: np.ndarray, starts: list[int]) -> float:
    """How much more the error changes from one frame to the next where windows begin than elsewhere, as a ratio; 1 is
    seamless. NaN when there is a single window."""
    jumps = np.abs(np.diff(made.astype(np.float32) - truth, axis=0)).mean((1, 2, 3))
    at = np.isin(np.arange(1, len(made)), starts)
    return float(jumps[at].mean() / max(jumps[~at].mean(), 1e-9)) if at.any() and not at.all() else float("nan")
