"""What TalkSHOW's gesture networks hear: 64 MFCCs of 22 kHz audio, one row per 734 samples.

Follows torchaudio's definitions (resampling, HTK mel bank, decibel floor, orthonormal DCT) in numbers, streaming: one
hour of audio needs memory for its mel spectrum (110 MB), not for its samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import chain

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from talkshow_bridge.errors import InputError

SAMPLE_RATE = 22_000  # Hz
HOP = 734
FRAME_RATE = SAMPLE_RATE / HOP  # 29.973 Hz: not quite the 30 that TalkSHOW takes it for
COEFFICIENTS = 64
BLOCK = 1 << 18  # samples looked at together
_FFT = 2048
_BANDS = 256
_DYNAMIC_RANGE = 80.0  # dB below the loudest moment of the clip at which quieter sound is levelled
_ZERO_CROSSINGS, _ROLL_OFF = 6, 0.99  # of the resampling filter
_LARGEST_FILTER = 4_000_000  # taps in all phases; odd rates such as 44,099 Hz would need a billion


def talkshow_mfcc(samples: np.ndarray, rate: int) -> np.ndarray:
    """(C, N) float32 in [-1, 1] at `rate` Hz -> (1 + floor(N_22k / 734), 64) float32, about -700..350, fed raw."""
    return mfcc_of_blocks((samples[:, first : first + BLOCK] for first in range(0, samples.shape[1], BLOCK)), rate)


def mfcc_of_blocks(blocks: Iterable[np.ndarray], rate: int) -> np.ndarray:
    """The same for a stream of (C, n) blocks. The decibel floor hangs on the whole clip: rows come out at the end."""
    decibels = _log_mel(resample(blocks, rate))
    np.maximum(decibels, decibels.max() - _DYNAMIC_RANGE, out=decibels)
    return decibels @ _cosines()


def resample(blocks: Iterable[np.ndarray], rate: int) -> Iterator[np.ndarray]:
    """Stream of (C, n) blocks at `rate` Hz -> stream of mono (m,) float32 blocks at 22 kHz, ceil(N * 22000 / rate)
    samples in all: Hann-windowed sinc, each channel on its own, then their mean."""
    divisor = math.gcd(rate, SAMPLE_RATE)
    old, new = rate // divisor, SAMPLE_RATE // divisor
    if old == new:
        return (block.mean(axis=0) for block in blocks)
    if old * new > _LARGEST_FILTER:
        return _resample_any(blocks, rate)
    return _resample_sinc(blocks, old, new)


def _resample_sinc(blocks: Iterable[np.ndarray], old: int, new: int) -> Iterator[np.ndarray]:
    kernel, width = _sinc_kernel(old, new)
    seen = given = 0
    held = None
    for block in chain(blocks, [None]):
        if held is None:
            held = np.zeros((len(block), width), np.float32)
        seen += 0 if block is None else block.shape[1]
        following = np.zeros((len(held), width + old), np.float32) if block is None else block
        held = np.concatenate([held, following], axis=1)
        steps = (held.shape[1] - kernel.shape[-1]) // old + 1
        if steps > 0:
            phases = F.conv1d(torch.from_numpy(held)[:, None], kernel, stride=old)  # [C, new, steps]
            mono = phases.transpose(1, 2).reshape(len(held), -1).mean(dim=0).numpy()
            held = held[:, steps * old :]
            mono = mono[: -(-new * seen // old) - given]
            given += len(mono)
            yield mono


def _sinc_kernel(old: int, new: int) -> tuple[Tensor, int]:
    """Filter of each output phase [new, 1, 2 * width + old] and its reach in input samples."""
    cutoff = _ROLL_OFF * min(old, new)
    width = math.ceil(_ZERO_CROSSINGS * old / cutoff)
    taps = np.arange(-width, width + old) / old - np.arange(new)[:, None] / new
    t = np.clip(taps * cutoff, -_ZERO_CROSSINGS, _ZERO_CROSSINGS)
    kernel = np.sinc(t) * np.cos(np.pi * t / (2 * _ZERO_CROSSINGS)) ** 2 * (cutoff / old)
    return torch.from_numpy(kernel.astype(np.float32))[:, None], width


def _resample_any(blocks: Iterable[np.ndarray], rate: int) -> Iterator[np.ndarray]:
    import soxr

    stream = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32")
    for block in blocks:
        yield stream.resample_chunk(block.mean(axis=0))
    yield stream.resample_chunk(np.zeros(0, np.float32), last=True)


def _log_mel(wave: Iterable[np.ndarray]) -> np.ndarray:
    """Stream of 22 kHz mono blocks -> (T, 256) mel powers in dB, windows centred on multiples of the hop."""
    rows, held = [], np.zeros(0, np.float32)
    for block in _mirrored(wave, _FFT // 2):
        held = np.concatenate([held, block])
        count = (len(held) - _FFT) // HOP + 1
        if count > 0:
            rows.append(_decibels(torch.from_numpy(held)))
            held = held[count * HOP :]
    return np.concatenate(rows)


def _mirrored(blocks: Iterable[np.ndarray], count: int) -> Iterator[np.ndarray]:
    """The stream with `count` samples mirrored about its first and its last sample."""
    start, tail = np.zeros(0, np.float32), None
    for block in blocks:
        if tail is None:
            start = np.concatenate([start, block])
            if len(start) <= count:
                continue
            block = tail = start
            yield start[count:0:-1]
        yield block
        tail = np.concatenate([tail, block])[-count - 1 :]
    if tail is None:
        raise InputError(f"Motion needs more than {count / SAMPLE_RATE:.2f} s of audio.")
    yield tail[-2::-1]


def _decibels(wave: Tensor) -> np.ndarray:
    windows = wave.unfold(0, _FFT, HOP) * torch.hann_window(_FFT)
    power = torch.fft.rfft(windows).abs().square()
    return (10 * torch.log10((power @ _mel_bank()).clamp_min(1e-10))).numpy()


@cache
def _mel_bank() -> Tensor:
    """[1025, 256] HTK triangles from 0 Hz to 11 kHz, peaks of 1."""
    highest = 2595 * math.log10(1 + SAMPLE_RATE / 2 / 700)
    corners = 700 * (10 ** (np.linspace(0, highest, _BANDS + 2) / 2595) - 1)
    frequencies = np.linspace(0, SAMPLE_RATE / 2, _FFT // 2 + 1)[:, None]
    rising = (frequencies - corners[:-2]) / np.diff(corners)[:-1]
    falling = (corners[2:] - frequencies) / np.diff(corners)[1:]
    return torch.from_numpy(np.maximum(0, np.minimum(rising, falling)).astype(np.float32))


@cache
def _cosines() -> np.ndarray:
    """(256, 64) orthonormal DCT-II."""
    angles = np.pi / _BANDS * (np.arange(_BANDS)[:, None] + 0.5) * np.arange(COEFFICIENTS)
    scale = np.full(COEFFICIENTS, math.sqrt(2 / _BANDS))
    scale[0] = math.sqrt(1 / _BANDS)
    return (np.cos(angles) * scale).astype(np.float32)
