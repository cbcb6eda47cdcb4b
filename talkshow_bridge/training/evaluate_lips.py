"""Measure the lip net on recordings it never heard, beside the plain energy envelope.

    python -m talkshow_bridge.training.evaluate_lips --recordings DIR [--recordings DIR ...] [--weights DIR]

Each folder holds audio and `phones_pocketsphinx.json`; of folders used in training only the held-out part is taken.
Prints a Markdown table, one row per group of speakers. AUC: area under the ROC curve, over speech frames, of the
named control against the phone labels. r: Pearson correlation. Closed p/b/m: share of bilabials in which the driven
mouth really closes; closed vowels: share of vowels in which it wrongly does.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy.stats import rankdata

from talkshow_bridge.audio import load_speech
from talkshow_bridge.features import log_mel
from talkshow_bridge.lip_net import CONTROL_RATE, CONTROLS, LipNet
from talkshow_bridge.lips import closing
from talkshow_bridge.prosody import analyse
from talkshow_bridge.training.corpus import aligned_segments, held_out, load_alignments
from talkshow_bridge.training.phones import CLASS_OF, VOWELS, Segment, control_curves

Predictor = Callable[[np.ndarray], np.ndarray]
COLUMN = {name: k for k, name in enumerate(CONTROLS)}
LOW_BELOW = 155.0  # Hz median pitch: mostly men below, mostly women above
MOST = 60  # utterances per folder


@dataclass
class Tally:
    """Everything that the table's figures are computed from, over all utterances of a group."""

    bilabial: list = field(default_factory=list)  # (frame scores, labels)
    labiodental: list = field(default_factory=list)
    rounding: list = field(default_factory=list)  # (score, is rounded) per vowel
    openness: list = field(default_factory=list)  # (predicted, target) per vowel
    aperture: list = field(default_factory=list)  # (correlation, frames) per utterance
    closed_bilabials: list = field(default_factory=list)
    closed_vowels: list = field(default_factory=list)
    seconds: float = 0.0

    def add(self, controls: np.ndarray, parts: list[Segment], duration: float) -> None:
        """Compare (T, 16) controls with one utterance's phones."""
        times = np.arange(len(controls)) / CONTROL_RATE
        target = control_curves(parts, times)
        speech, bilabial, labiodental = (np.zeros(len(times), bool) for _ in range(3))
        closed = closing(controls[:, COLUMN["closure"]]) > 0.5
        for start, end, letter in parts:
            inside = (times >= start) & (times < end)
            if not letter:
                continue
            speech |= inside
            kind = CLASS_OF.get(letter)
            bilabial |= inside & (kind == "bilabial")
            labiodental |= inside & (kind == "labiodental")
            near = (times >= start - 0.03) & (times <= end + 0.03)
            core = np.abs(times - (start + end) / 2) <= 0.3 * (end - start) + 0.011
            if kind == "bilabial" and near.any():
                self.closed_bilabials.append(closed[near].any())
            if letter in VOWELS and end - start > 0.05 and core.any():
                self._add_vowel(controls[core], target[core], closed[core], VOWELS[letter][1])
        self.bilabial.append((controls[speech, COLUMN["closure"]], bilabial[speech]))
        self.labiodental.append((controls[speech, COLUMN["labiodental"]], labiodental[speech]))
        if speech.sum() > 30:
            pair = (controls[:, COLUMN["aperture"]], target[:, COLUMN["aperture"]])
            self.aperture.append((np.corrcoef(*pair)[0, 1], len(times)))
        self.seconds += duration

    def _add_vowel(self, controls: np.ndarray, target: np.ndarray, closed: np.ndarray, rounding: float) -> None:
        self.closed_vowels.append(closed.any())
        self.openness.append((controls[:, COLUMN["aperture"]].mean(), target[:, COLUMN["aperture"]].mean()))
        if rounding >= 0.6 or rounding == 0:
            mean = controls.mean(axis=0)
            score = mean[COLUMN["pucker"]] - 0.5 * mean[COLUMN["spread"]] - 0.5 * mean[COLUMN["width"]]
            self.rounding.append((score, rounding >= 0.6))

    def figures(self) -> list[str]:
        """The table's columns."""
        frames, weights = zip(*self.aperture, strict=True)
        return [
            f"{self.seconds:.0f}", str(len(self.closed_bilabials)), f"{_auc(*_joined(self.bilabial)):.3f}",
            f"{_auc(*_joined(self.labiodental)):.3f}", f"{_auc(*zip(*self.rounding, strict=True)):.3f}",
            f"{np.corrcoef(np.array(self.openness).T)[0, 1]:.2f}", f"{np.average(frames, weights=weights):.2f}",
            f"{np.mean(self.closed_bilabials):.2f}", f"{np.mean(self.closed_vowels):.3f}",
        ]  # fmt: skip


HEADINGS = (
    "group", "model", "s", "p/b/m", "bilabial AUC", "F-V AUC", "rounding AUC", "vowel openness r", "aperture r",
    "closed p/b/m", "closed vowels",
)  # fmt: skip


def energy_envelope(samples: np.ndarray) -> np.ndarray:
    """The usual stand-in for lip sync: the mouth opens with loudness -> (T, 16) controls."""
    hop = len(samples) * CONTROL_RATE // 16_000
    pieces = np.resize(samples, hop * 320).reshape(hop, 320)
    level = np.convolve(np.sqrt(np.mean(pieces**2, axis=1)), np.hanning(7)[1:-1] / 3, "same")
    opened = np.clip(level / max(np.percentile(level, 95), 1e-6), 0, 1) ** 0.7
    controls = np.zeros((hop, len(CONTROLS)), np.float32)
    for name, curve in (("jaw", opened), ("aperture", opened), ("closure", 1 - opened), ("labiodental", 1 - opened)):
        controls[:, COLUMN[name]] = curve
    controls[:, COLUMN["pucker"]] = 1 - opened
    return controls


def utterances(folder: Path) -> list[tuple[str, Path, list[Segment], bool]]:
    """(group, audio file, segments, many speakers?) of the held-out recordings, spread over at most MOST of them."""
    entries = load_alignments(folder)
    trained_on = any(name.startswith(("arctic_", "de_")) for name in entries)
    names = [name for name in entries if held_out(name) or not trained_on]
    names = names[:: max(1, len(names) // MOST)][:MOST]
    language = "de" if any(name.startswith("de_") for name in names) else "en"
    found = []
    for name in names:
        entry = entries[name]
        group = f"{folder.name} {entry.get('lang', language)}".strip()
        found.append((group, entry["file"], aligned_segments(entry), not trained_on))
    return found


def _auc(scores: np.ndarray, labels: np.ndarray) -> float:
    scores, labels = np.asarray(scores), np.asarray(labels, bool)
    ranks, positive = rankdata(scores), labels.sum()
    return float((ranks[labels].sum() - positive * (positive + 1) / 2) / max(1, positive * (~labels).sum()))


def _joined(pairs: list) -> tuple[np.ndarray, np.ndarray]:
    scores, labels = zip(*pairs, strict=True)
    return np.concatenate(scores), np.concatenate(labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recordings", type=Path, action="append", required=True)
    parser.add_argument("--weights", type=Path, default=Path("checkpoints/motion"))
    arguments = parser.parse_args()
    net = LipNet.load(arguments.weights)
    models: dict[str, Predictor] = {"energy envelope": energy_envelope, "lip net": lambda x: net.run(log_mel(x))}
    tallies: dict[tuple[str, str], Tally] = {}
    for folder in arguments.recordings:
        for group, file, parts, many in utterances(folder):
            speech = load_speech(file)
            if many:
                group += ", low voice" if analyse(speech.samples).pitch < LOW_BELOW else ", high voice"
            for name, predict in models.items():
                controls = predict(speech.samples)
                tallies.setdefault((group, name), Tally()).add(controls, parts, speech.duration)
    print("| " + " | ".join(HEADINGS) + " |\n" + "|---" * len(HEADINGS) + "|")
    for (group, name), tally in tallies.items():
        print("| " + " | ".join([group, name, *tally.figures()]) + " |")


if __name__ == "__main__":
    main()
