"""Something like speech, made by code: a buzz whose loudness and vowel change four times a second."""

import wave
from pathlib import Path

import numpy as np


def speech_samples(seconds: float, rate: int = 16_000) -> np.ndarray:
    """(S,) float32 in [-1, 1]."""
    time = np.arange(round(seconds * rate)) / rate
    pitch = 120 + 20 * np.sin(2 * np.pi * 0.7 * time)
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    vowel = 500 + 300 * np.sin(2 * np.pi * 1.9 * time)
    buzz = sum(np.sin(k * phase) * np.exp(-(((k * pitch - vowel) / 400) ** 2)) for k in range(1, 16))
    syllables = np.clip(np.sin(2 * np.pi * 4 * time), 0, None) ** 0.5
    return (0.5 * buzz * syllables / np.abs(buzz).max()).astype(np.float32)


def write_speech(path: Path, seconds: float, rate: int = 16_000, channels: int = 1) -> Path:
    """A 16-bit wav file."""
    samples = np.repeat(speech_samples(seconds, rate)[:, None], channels, axis=1)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return path
