"""Make the lip net's training corpus: aligned recordings + synthetic voices, augmented, as log-mels and controls.

    python -m talkshow_bridge.training.corpus --recordings DIR [--recordings DIR ...] --out work/lips/corpus.npz

Recordings (see recordings.py) are real speech with forced alignment first (English, then German), then what
synthesise.py made. Held-out utterances never enter the corpus, nor do their texts.
Needs espeak-ng, flite, festival with festvox-*, the Debian word lists, and pyworld.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr
from scipy.signal import butter, fftconvolve, sosfilt

from talkshow_bridge.features import SAMPLE_RATE, channel_mean, log_mel
from talkshow_bridge.lip_net import CONTROL_RATE
from talkshow_bridge.training.phones import Segment, control_curves, phone_class
from talkshow_bridge.training.recordings import aligned_segments, held_out, load_alignments
from talkshow_bridge.training.sentences import DICTIONARIES, SENTENCES, word_salad
from talkshow_bridge.training.voices import FESTIVAL, FESTIVAL_HELD_OUT, Espeak, Utterance, festival, flite, revoice

log = logging.getLogger(__name__)
ESPEAK_VARIANTS = [f"m{k}" for k in range(1, 9)] + [f"f{k}" for k in range(1, 6)]
ESPEAK_SHARES = {"en-us": 6, "de": 4, "es": 4, "it": 3, "pt-br": 3, "fr": 2}  # any other language: 1
AUGMENTED_COPIES = 2
REVOICED = 0.6  # share of the augmented copies of recordings that get another speaker's pitch and vocal tract
FLITE_VOICES = ("rms", "awb", "kal16", "rms", "awb", "slt", "kal")  # mostly men: the recordings are of two women


def recordings(folder: Path) -> Iterator[Utterance]:
    """The folder's training utterances."""
    for name, entry in load_alignments(folder).items():
        if not held_out(name):
            samples, rate = soundfile.read(entry["file"], dtype="float32")
            yield Utterance(samples, rate, aligned_segments(entry), folder.name)


def espeak_voices(minutes: float, texts: dict[str, list[str]], rng: np.random.Generator) -> Iterator[Utterance]:
    """Many voices, speeds and languages."""
    engine, seconds = Espeak(), 0.0
    languages = [language for language in texts for _ in range(ESPEAK_SHARES.get(language, 1))]
    while seconds < minutes * 60:
        language = str(rng.choice(languages))
        voice = f"{language}+{rng.choice(ESPEAK_VARIANTS)}"
        spoken = engine.speak(
            str(rng.choice(texts[language])), voice, int(rng.integers(120, 220)), int(rng.integers(10, 80)),
            int(rng.integers(20, 80)),
        )  # fmt: skip
        seconds += len(spoken.samples) / spoken.rate
        yield spoken


def flite_voices(minutes: float, texts: list[str], rng: np.random.Generator) -> Iterator[Utterance]:
    """Recorded voices of flite, mostly male."""
    seconds = 0.0
    while seconds < minutes * 60:
        spoken = flite(str(rng.choice(texts)), str(rng.choice(FLITE_VOICES)), float(rng.uniform(0.8, 1.25)))
        seconds += len(spoken.samples) / spoken.rate
        yield spoken


def festival_voices(minutes: float, texts: dict[str, list[str]], rng: np.random.Generator) -> Iterator[Utterance]:
    """Recorded diphone voices in six languages, mostly of men, some of Slavic, Finnic and Romance languages."""
    voices, seconds = [voice for voice in FESTIVAL if voice != FESTIVAL_HELD_OUT], 0.0
    while seconds < minutes * 60:
        voice = str(rng.choice(voices))
        lines = [str(line) for line in rng.choice(texts[FESTIVAL[voice]], 6)]
        for spoken in festival(lines, voice, float(rng.uniform(0.8, 1.25))):
            seconds += len(spoken.samples) / spoken.rate
            yield spoken


def augment(samples: np.ndarray, rng: np.random.Generator, revoiced: float = 0.0) -> tuple[np.ndarray, float]:
    """Another voice in another room through another microphone -> (samples, factor by which times stretch)."""
    stretch = float(rng.uniform(0.86, 1.3))  # above 1: slower, lower voice, longer vocal tract
    if rng.random() < revoiced:
        formants = rng.uniform(0.8, 1.2)
        samples = revoice(samples, SAMPLE_RATE, formants**2 * rng.uniform(0.7, 1.2), formants)
        stretch = float(rng.uniform(0.9, 1.12))
    x = soxr.resample(samples, SAMPLE_RATE, SAMPLE_RATE * stretch)
    for _ in range(rng.integers(0, 3)):
        centre, octaves = rng.uniform(150, 5000), rng.uniform(0.3, 1.2)
        band = [max(60, centre * 2**-octaves), min(7600, centre * 2**octaves)]
        x = x + rng.uniform(-0.7, 1.5) * sosfilt(butter(1, band, "band", fs=SAMPLE_RATE, output="sos"), x)
    if rng.random() < 0.35:
        x = sosfilt(butter(4, rng.uniform(3200, 7000), "low", fs=SAMPLE_RATE, output="sos"), x)
    if rng.random() < 0.5:
        x = fftconvolve(x, _room(rng))[: len(x)]
    if rng.random() < 0.75:
        noise = rng.standard_normal(len(x))
        if rng.random() < 0.5:
            noise = sosfilt(butter(1, rng.uniform(200, 2000), "low", fs=SAMPLE_RATE, output="sos"), noise)
        gain = np.sqrt(np.mean(x**2) / (np.mean(noise**2) + 1e-9)) * 10 ** (-rng.uniform(4, 40) / 20)
        x = x + gain * noise
    return x.astype(np.float32), stretch


def _room(rng: np.random.Generator) -> np.ndarray:
    """A synthetic impulse response: decaying noise after the direct sound."""
    length = int(SAMPLE_RATE * rng.uniform(0.1, 0.7))
    tail = rng.standard_normal(length) * 10 ** (-3 * np.arange(length) / length)
    tail *= rng.uniform(0.1, 0.6) / np.sqrt(np.sum(tail**2))
    tail[0] = 1.0
    return tail


def _noise(rng: np.random.Generator) -> np.ndarray:
    """Four seconds in which nobody speaks: hiss, rumble, hum or digital silence."""
    length = 4 * SAMPLE_RATE
    kind = rng.integers(0, 4)
    x = rng.standard_normal(length)
    if kind == 1:
        x = sosfilt(butter(2, rng.uniform(80, 800), "low", fs=SAMPLE_RATE, output="sos"), x)
    if kind == 2:
        x = 0.1 * x + np.sin(2 * np.pi * rng.choice([50, 60, 100, 120]) * np.arange(length) / SAMPLE_RATE)
    return (x * 10 ** rng.uniform(-4, -1) * (kind != 3)).astype(np.float32)


class Corpus:
    """Grows utterance by utterance; saved as flat arrays with offsets."""

    def __init__(self) -> None:
        self.mels, self.means, self.controls, self.classes, self.sources = [], [], [], [], []

    def add(self, samples: np.ndarray, parts: list[Segment], source: str) -> None:
        """Append one utterance of 16 kHz samples; the two arrays keep the same clock (mel frame 2k = control k)."""
        mels = log_mel(samples)
        count = len(mels) // 2
        if count < CONTROL_RATE // 2:
            return
        times = np.arange(count) / CONTROL_RATE
        classes = np.zeros(count, np.int8)
        for start, end, letter in parts:
            classes[(times >= start) & (times < end)] = phone_class(letter)
        self.mels.append(mels[: 2 * count].astype(np.float16))
        self.means.append(channel_mean(mels))
        self.controls.append(control_curves(parts, times).astype(np.float16))
        self.classes.append(classes)
        self.sources.append(source)

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(
            path, mels=np.concatenate(self.mels), means=np.stack(self.means), controls=np.concatenate(self.controls),
            classes=np.concatenate(self.classes), counts=np.array([len(c) for c in self.classes]),
            sources=np.array(self.sources),
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recordings", type=Path, action="append", required=True, help="folder of aligned recordings")
    parser.add_argument("--out", type=Path, default=Path("work/lips/corpus.npz"))
    parser.add_argument("--espeak-minutes", type=float, default=36)
    parser.add_argument("--flite-minutes", type=float, default=12)
    parser.add_argument("--festival-minutes", type=float, default=18)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    rng = np.random.default_rng(arguments.seed)
    texts = {language: list(lines) for language, lines in SENTENCES.items()}
    for language in DICTIONARIES:
        texts[language] = texts.get(language, []) + word_salad(language, 150, rng)
    for folder, language in zip(arguments.recordings, ("en-us", "de"), strict=False):
        entries = load_alignments(folder)
        texts[language] = [e["text"] for name, e in entries.items() if not held_out(name) and e.get("text")]
    corpus = Corpus()
    for folder in arguments.recordings:
        _add_all(corpus, recordings(folder), folder.name, rng, REVOICED)
    _add_all(corpus, flite_voices(arguments.flite_minutes, texts["en-us"], rng), "flite", rng)
    _add_all(corpus, festival_voices(arguments.festival_minutes, texts, rng), "festival", rng)
    _add_all(corpus, espeak_voices(arguments.espeak_minutes, texts, rng), "espeak", rng)
    for _ in range(40):
        corpus.add(_noise(rng), [(0.0, 4.0, "")], "noise")
    corpus.save(arguments.out)


def _add_all(
    corpus: Corpus, utterances: Iterator[Utterance], source: str, rng: np.random.Generator, revoiced: float = 0.0
) -> None:
    """Every utterance as it is, and augmented copies."""
    before = len(corpus.classes)
    for spoken in utterances:
        x = spoken.samples
        x = soxr.resample(x, spoken.rate, SAMPLE_RATE) if spoken.rate != SAMPLE_RATE else x
        corpus.add(x, spoken.parts, source)
        for _ in range(AUGMENTED_COPIES):
            changed, stretch = augment(x, rng, revoiced)
            corpus.add(changed, [(a * stretch, b * stretch, c) for a, b, c in spoken.parts], source)
    frames = sum(map(len, corpus.classes[before:]))
    log.info("%s: %d utterances, %.1f minutes", source, len(corpus.classes) - before, frames / CONTROL_RATE / 60)


if __name__ == "__main__":
    main()
