"""Where speech is strong: phrases, syllable nuclei and pitch accents, heard from log-mels and the waveform."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.signal import find_peaks

from talkshow_bridge.features import BANDS, HIGH_HZ, HOP, LOW_HZ, SAMPLE_RATE, log_mel

RATE = SAMPLE_RATE / HOP  # Hz of all tracks here
NUCLEUS_HZ = (300.0, 2500.0)  # where vowels carry their energy
SILENCE_DB = -28.0  # below the loud vowels
AUDIBLE = -9.0  # natural log of mel power; nothing in a recording below it is speech
PITCH_HZ = (70.0, 400.0)


@dataclass(frozen=True)
class Prosody:
    """loudness: (M,) dB relative to the loud vowels, at 100 Hz. phrases: (P, 2) start and end in s.

    nuclei: (K,) s, syllable centres. strength: (K,) dB, loudness plus pitch accent. accent: (K,) semitones above the
    speaker's usual pitch, 0 where unvoiced. pitch: Hz, that usual pitch (median; 0 when nothing is voiced).
    """

    duration: float
    loudness: np.ndarray
    phrases: np.ndarray
    nuclei: np.ndarray
    strength: np.ndarray
    accent: np.ndarray
    pitch: float


def analyse(samples: np.ndarray, mels: np.ndarray | None = None) -> Prosody:
    """(S,) mono 16 kHz (and its log-mels, if at hand) -> Prosody. Silence has no phrases and no nuclei."""
    mels = log_mel(samples) if mels is None else mels
    duration = len(samples) / SAMPLE_RATE
    loudness = _vowel_loudness(mels)
    if loudness is None:
        none = np.zeros(0)
        return Prosody(duration, np.full(len(mels), -80.0), np.zeros((0, 2)), none, none, none, 0.0)
    peaks, _ = find_peaks(loudness, height=-22, prominence=2.5, distance=9)
    accent, pitch = _pitch_accent(samples, peaks)
    strength = loudness[peaks] + 0.4 * np.clip(accent, -3, 6)
    return Prosody(duration, loudness, _phrases(loudness), peaks / RATE, strength, accent, pitch)


def _vowel_loudness(mels: np.ndarray) -> np.ndarray | None:
    """Smoothed level of the vowel band in dB below its own 98th percentile; None for silence."""
    top = 2595 * np.log10(1 + HIGH_HZ / 700)
    low = 2595 * np.log10(1 + LOW_HZ / 700)
    centres = 700 * (10 ** (np.linspace(low, top, BANDS + 2)[1:-1] / 2595) - 1)
    band = (centres > NUCLEUS_HZ[0]) & (centres < NUCLEUS_HZ[1])
    if not len(mels) or np.percentile(mels[:, band].max(axis=1), 98) < AUDIBLE:
        return None
    weight = np.gradient(centres)[band]  # wide bands hold more energy
    amplitude = np.sqrt(np.exp(mels[:, band]) @ weight)
    window = np.hanning(15) / np.hanning(15).sum()
    amplitude = np.convolve(np.pad(amplitude, 7, "edge"), window, "valid")
    return 20 * np.log10(amplitude / np.percentile(amplitude, 98) + 1e-4)


def _phrases(loudness: np.ndarray) -> np.ndarray:
    """Runs of speech of at least 0.25 s; gaps under 0.28 s do not separate."""
    speaking = np.flatnonzero(loudness > SILENCE_DB)
    if not len(speaking):
        return np.zeros((0, 2))
    cuts = np.flatnonzero(np.diff(speaking) > 0.28 * RATE)
    starts, ends = speaking[np.r_[0, cuts + 1]], speaking[np.r_[cuts, len(speaking) - 1]]
    phrases = np.stack([starts, ends], axis=1) / RATE
    return phrases[phrases[:, 1] - phrases[:, 0] > 0.25]


def _pitch_accent(samples: np.ndarray, frames: np.ndarray) -> tuple[np.ndarray, float]:
    """Semitones above the median pitch at the given 10 ms frames (autocorrelation; 0 if unvoiced), and the median."""
    span = 1024  # 64 ms
    padded = np.pad(samples, span // 2)
    shortest, longest = int(SAMPLE_RATE / PITCH_HZ[1]), int(SAMPLE_RATE / PITCH_HZ[0])
    pitch = np.full(len(frames), np.nan)
    for k, frame in enumerate(frames):
        piece = padded[frame * HOP : frame * HOP + span]
        spectrum = np.fft.rfft(piece * np.hanning(len(piece)), 2 * span)
        correlation = np.fft.irfft(spectrum * spectrum.conj())[: longest + 1]
        best = correlation[shortest:].max()
        if best > 0.35 * correlation[0]:
            first = shortest + int(np.argmax(correlation[shortest:] > 0.85 * best))  # not a multiple of the period
            pitch[k] = SAMPLE_RATE / (first + int(np.argmax(correlation[first : first + shortest])))
    if np.isnan(pitch).all():
        return np.zeros(len(frames)), 0.0
    usual = float(np.nanmedian(pitch))
    return np.nan_to_num(12 * np.log2(pitch / usual)), usual
