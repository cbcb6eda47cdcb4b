"""Make the gesture model's training corpus: our own synthesiser moves to real and synthetic voices.

    python -m talkshow_bridge.training.gesture_corpus --recordings DIR [--recordings DIR] --out work/gestures/corpus.npz

A recordings folder holds audio files; held-out utterances (see training/corpus.py) never enter. Utterances are joined
with pauses to pieces of 25 to 45 s; each piece is played in two styles, at varied gesture energy. Takes three minutes.
"""

from __future__ import annotations

import argparse
import logging
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr

from talkshow_bridge.features import SAMPLE_RATE, log_mel
from talkshow_bridge.gesture_features import RATE, gesture_features, pack
from talkshow_bridge.planner import STYLES
from talkshow_bridge.presence import HEAD, NECK, SPINE
from talkshow_bridge.prosody import analyse
from talkshow_bridge.training.corpus import held_out
from talkshow_bridge.training.gestures import synthesize
from talkshow_bridge.training.sentences import SENTENCES

log = logging.getLogger(__name__)
AUDIO = (".opus", ".flac", ".wav", ".mp3", ".ogg")
PIECE = (25.0, 45.0)  # s
PAUSES = ((0.1, 0.25, 0.5, 1.2, 3.0, 6.0), (0.26, 0.32, 0.22, 0.12, 0.05, 0.03))  # s, and their odds
ENERGIES = ((0.0, 0.4, 0.7, 1.0, 1.4, 2.0), (0.05, 0.1, 0.15, 0.4, 0.15, 0.15))


def recordings(folder: Path) -> Iterator[np.ndarray]:
    """The folder's training utterances at 16 kHz."""
    for file in sorted(folder.iterdir()):
        if file.suffix in AUDIO and not held_out(file.stem):
            samples, rate = soundfile.read(file, dtype="float32")
            yield soxr.resample(samples, rate, SAMPLE_RATE) if rate != SAMPLE_RATE else samples


def espeak(minutes: float, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Sentences of many languages in many voices of espeak-ng, at 16 kHz."""
    seconds, languages = 0.0, list(SENTENCES)
    with tempfile.TemporaryDirectory() as folder:
        wave = Path(folder) / "spoken.wav"
        while seconds < minutes * 60:
            language = str(rng.choice(languages))
            text = " ".join(rng.choice(SENTENCES[language], 2))
            voice, pace = f"{language}+{rng.choice(['m1', 'm3', 'm5', 'm7', 'f2', 'f4'])}", str(rng.integers(120, 200))
            pitch = str(rng.integers(15, 75))
            subprocess.run(["espeak-ng", "-v", voice, "-s", pace, "-p", pitch, "-w", wave, "--", text], check=True)
            samples, rate = soundfile.read(wave, dtype="float32")
            seconds += len(samples) / rate
            yield soxr.resample(samples, rate, SAMPLE_RATE)


def pieces(utterances: list[np.ndarray], rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Utterances in random order, some faster and higher or slower and lower, joined with pauses and faint noise."""
    parts, length, wanted = [], 0.0, rng.uniform(*PIECE)
    for k in rng.permutation(len(utterances)):
        voice = utterances[k] * (0.5 / max(1e-3, float(np.abs(utterances[k]).max())))
        if rng.random() < 0.6:
            voice = soxr.resample(voice, SAMPLE_RATE, SAMPLE_RATE * rng.uniform(0.86, 1.3))
        pause = rng.choice(PAUSES[0], p=PAUSES[1]) * rng.uniform(0.8, 1.25)
        parts += [voice, np.zeros(int(SAMPLE_RATE * pause), np.float32)]
        length += len(voice) / SAMPLE_RATE + pause
        if length > wanted:
            piece = np.concatenate(parts)
            yield (piece + 10 ** rng.uniform(-4.5, -2.3) * rng.standard_normal(len(piece))).astype(np.float32)
            parts, length, wanted = [], 0.0, rng.uniform(*PIECE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recordings", type=Path, action="append", required=True, help="folder of recordings")
    parser.add_argument("--out", type=Path, default=Path("work/gestures/corpus.npz"))
    parser.add_argument("--espeak-minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    rng = np.random.default_rng(arguments.seed)
    utterances = [samples for folder in arguments.recordings for samples in recordings(folder)]
    utterances += list(espeak(arguments.espeak_minutes, rng))
    log.info("%d utterances, %.0f minutes", len(utterances), sum(map(len, utterances)) / SAMPLE_RATE / 60)
    tracks, features, styles = [], [], []
    for samples in pieces(utterances, rng):
        mels = log_mel(samples)
        prosody, count = analyse(samples, mels), int(len(samples) / SAMPLE_RATE * RATE)
        for style in rng.permutation(len(STYLES))[:2]:
            energy = float(rng.choice(ENERGIES[0], p=ENERGIES[1]))
            seed = int(rng.integers(1 << 31))
            moved = synthesize(prosody, count, RATE, seed, list(STYLES)[style], energy)
            moved.body[:, [*SPINE, NECK, HEAD]] = 0
            tracks.append(pack(moved.body, moved.left_hand, moved.right_hand).astype(np.float16))
            features.append(gesture_features(mels, moved.plan.curves(count)).astype(np.float16))
            styles.append(int(style))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    counts = np.array([len(track) for track in tracks])
    np.savez(
        arguments.out, tracks=np.concatenate(tracks), features=np.concatenate(features), counts=counts,
        styles=np.array(styles),
    )  # fmt: skip
    log.info("%d pieces, %.1f hours of motion", len(counts), counts.sum() / RATE / 3600)


if __name__ == "__main__":
    main()
