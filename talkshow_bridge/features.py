"""Log-mel features of speech: the only thing the lip net hears. 40 bands at 100 Hz, level and channel removed."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

SAMPLE_RATE = 16_000
HOP = 160  # samples: 100 mel frames per second
WINDOW = 400
FFT = 512
BANDS = 40
LOW_HZ, HIGH_HZ = 60.0, 7600.0
CHUNK_FRAMES = 6000  # mel frames computed at a time (one minute)
ACTIVE_RANGE = 6.9  # natural log of power: 30 dB below the loud frames still counts as speech
QUIETEST_MEAN = -8.0  # a recording below this level is silence, not quiet speech


def mel_edges() -> np.ndarray:
    """(BANDS + 2,) Hz: edges and centres of the filters, equally spaced on the mel scale 2595 log10(1 + f/700)."""
    low, high = (2595.0 * np.log10(1.0 + hz / 700.0) for hz in (LOW_HZ, HIGH_HZ))
    return 700.0 * (10 ** (np.linspace(low, high, BANDS + 2) / 2595.0) - 1.0)


@lru_cache(maxsize=1)
def mel_bank() -> torch.Tensor:
    """(BANDS, FFT/2+1) triangular filters."""
    edges = mel_edges()
    bins = np.linspace(0, SAMPLE_RATE / 2, FFT // 2 + 1)
    rise = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    bank = np.clip(np.minimum(rise, fall), 0, None)
    return torch.from_numpy(bank / bank.sum(1, keepdims=True).clip(1e-3)).float()


def log_mel(samples: np.ndarray) -> np.ndarray:
    """(S,) float32 mono 16 kHz -> (ceil(S/160), 40) float32 log power; frame k is centred on sample 160 k.

    Works minute by minute, so memory does not grow with the FFT of a long recording. The level is set by the peak.
    """
    peak = float(np.abs(samples).max(initial=0.0))
    frames = -(-len(samples) // HOP)
    mels = np.empty((frames, BANDS), np.float32)
    window, bank = torch.hann_window(WINDOW), mel_bank()
    for first in range(0, frames, CHUNK_FRAMES):
        count = min(CHUNK_FRAMES, frames - first)
        start = first * HOP - FFT // 2
        piece = np.zeros((count - 1) * HOP + FFT, np.float32)
        low, high = max(0, start), min(len(samples), start + len(piece))
        piece[low - start : high - start] = samples[low:high] * (0.5 / max(peak, 0.01))
        spectrum = torch.stft(torch.from_numpy(piece), FFT, HOP, WINDOW, window, center=False, return_complex=True)
        mels[first : first + count] = torch.log(bank @ spectrum.abs().square() + 1e-6).T.numpy()
    return mels


def channel_mean(mels: np.ndarray) -> np.ndarray:
    """(40,) mean log spectrum of the frames that hold speech: microphone and voice colour to be taken away."""
    if not len(mels):
        return np.full(BANDS, QUIETEST_MEAN, np.float32)
    loudness = mels.max(axis=1)
    active = loudness > np.percentile(loudness, 95) - ACTIVE_RANGE
    return np.maximum(mels[active].mean(axis=0), QUIETEST_MEAN).astype(np.float32)


def normalise(mels: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Take the channel away and bring the values to about -3..2."""
    return np.clip((mels - mean) / 3.0, -3.0, 3.0)
