"""How well a mouth follows what is said, on recordings with known phones, beside the plain energy envelope.

    python -m talkshow_bridge.evaluation.lips --recordings DIR [--recordings DIR ...] [--weights DIR]

Of folders used in training only the held-out part is taken. One row per group of speakers; men and women (by pitch)
are told apart where a folder has many speakers. AUC: area under the ROC curve, over speech frames, of the named control
against the phone labels. r: Pearson correlation. Closed p/b/m: bilabials in which the lips are made to meet. Closed
vowels: vowels in whose middle they wrongly are. Right closures: closures that touch a p, b, m, w or a pause. Shut in
silence: video frames of pauses in which the mouth is shut. Heard p/b/m: video frames in which the lips meet near those
that an independent recogniser hears (pip install hama; left out without it).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from scipy.stats import rankdata

from talkshow_bridge.audio import load_speech
from talkshow_bridge.errors import InputError
from talkshow_bridge.features import SAMPLE_RATE, log_mel
from talkshow_bridge.lip_net import CONTROL_RATE, CONTROLS
from talkshow_bridge.lips import closing, mouth
from talkshow_bridge.motion import ARKIT_52
from talkshow_bridge.prosody import analyse
from talkshow_bridge.training.phones import CLASS_OF, VOWELS, Segment, control_curves
from talkshow_bridge.training.recordings import aligned_segments, held_out, load_alignments

COLUMN = {name: k for k, name in enumerate(CONTROLS)}
FPS = 30
LOW_BELOW = 155.0  # Hz median pitch: mostly men below, mostly women above
MOST = 60  # utterances per folder
PRESSED, SHUT = 0.25, 0.02  # mouthPress from which lips meet; jaw (rad) below which a silent mouth is shut
PAUSE_EDGE = 0.1  # s at both ends of a pause in which the mouth may still move
NEAR = 0.03  # s around a bilabial in which its closure may lie
HEARD_LATE, HEARD_NEAR = 0.055, 0.06  # s: lag of the recogniser's spikes, tolerance around them
LIPS_MEET = ("bilabial", "bilabial_fricative", "labiovelar")


@dataclass(frozen=True)
class Row:
    """One group of speakers with one model; `figures` are in the order of HEADINGS, NaN where there is nothing."""

    group: str
    model: str
    seconds: float
    bilabials: int
    figures: tuple[float, ...]


HEADINGS = (
    "bilabial AUC", "F-V AUC", "rounding AUC", "vowel openness r", "aperture r", "closed p/b/m", "closed vowels",
    "right closures", "shut in silence", "heard p/b/m",
)  # fmt: skip


def evaluate(folders: Iterable[str | Path], generator) -> list[Row]:
    """Measure the generator's lip net (its `lips`) and the energy envelope on every folder of recordings."""
    tallies: dict[tuple[str, str], Tally] = {}
    for folder in folders:
        for group, file, parts, many in utterances(Path(folder)):
            speech = load_speech(file)
            if many:
                group += ", low voice" if analyse(speech.samples).pitch < LOW_BELOW else ", high voice"
            heard = heard_bilabials(speech.samples)
            for name, controls in (
                ("energy envelope", energy_envelope(speech.samples)),
                ("lip net", generator.lips.run(log_mel(speech.samples))),
            ):
                tallies.setdefault((group, name), Tally()).add(controls, parts, speech.duration, heard)
    return [tally.row(group, name) for (group, name), tally in tallies.items()]


def table(rows: Sequence[Row]) -> str:
    """Rows as a Markdown table."""
    headings = ("group", "model", "s", "p/b/m", *HEADINGS)
    lines = ["| " + " | ".join(headings) + " |", "|---" * len(headings) + "|"]
    for row in rows:
        figures = ["" if np.isnan(x) else f"{x:.3f}" for x in row.figures]
        lines.append(
            f"| {row.group} | {row.model} | {row.seconds:.0f} | {row.bilabials} | " + " | ".join(figures) + " |"
        )
    return "\n".join(lines)


@dataclass
class Tally:
    """Everything that a row's figures are computed from, over all utterances of a group."""

    bilabial: list = field(default_factory=list)  # (frame scores, labels)
    labiodental: list = field(default_factory=list)
    rounding: list = field(default_factory=list)  # (score, is rounded) per vowel
    openness: list = field(default_factory=list)  # (predicted, target) per vowel
    aperture: list = field(default_factory=list)  # (correlation, frames) per utterance
    closed_bilabials: list = field(default_factory=list)
    closed_vowels: list = field(default_factory=list)
    right_closures: list = field(default_factory=list)
    shut: list = field(default_factory=list)  # per frame of silence
    heard: list = field(default_factory=list)
    seconds: float = 0.0

    def add(self, controls: np.ndarray, parts: list[Segment], duration: float, heard: Sequence[float] = ()) -> None:
        """Compare (T, 16) controls with one utterance's phones; heard: times of p, b, m from the recogniser."""
        self.seconds += duration
        self._add_controls(controls, parts)
        self._add_closures(controls, parts)
        self._add_video(controls, parts, duration, heard)

    def _add_controls(self, controls: np.ndarray, parts: list[Segment]) -> None:
        times = np.arange(len(controls)) / CONTROL_RATE
        target = control_curves(parts, times)
        kinds = np.full(len(times), "silence", dtype="<U20")
        for start, end, letter in parts:
            if letter:
                kinds[(times >= start) & (times < end)] = CLASS_OF.get(letter, "vowel")
            core = _core(times, start, end)
            if letter in VOWELS and end - start > 0.05 and core.any():
                self._add_vowel(controls[core], target[core], VOWELS[letter][1])
        speech = (kinds != "silence") & (
            kinds != "bilabial_fricative"
        )  # whose lips nearly meet: neither right nor wrong
        self.bilabial.append((controls[speech, COLUMN["closure"]], kinds[speech] == "bilabial"))
        self.labiodental.append((controls[speech, COLUMN["labiodental"]], kinds[speech] == "labiodental"))
        if speech.sum() > 30:
            pair = (controls[:, COLUMN["aperture"]], target[:, COLUMN["aperture"]])
            self.aperture.append((np.corrcoef(*pair)[0, 1], len(times)))

    def _add_vowel(self, controls: np.ndarray, target: np.ndarray, rounding: float) -> None:
        self.openness.append((controls[:, COLUMN["aperture"]].mean(), target[:, COLUMN["aperture"]].mean()))
        if rounding >= 0.6 or rounding == 0:
            mean = controls.mean(axis=0)
            score = mean[COLUMN["pucker"]] - 0.5 * mean[COLUMN["spread"]] - 0.5 * mean[COLUMN["width"]]
            self.rounding.append((score, rounding >= 0.6))

    def _add_closures(self, controls: np.ndarray, parts: list[Segment]) -> None:
        times = np.arange(len(controls)) / CONTROL_RATE
        closed = closing(controls[:, COLUMN["closure"]]) > 0.5
        meeting = np.zeros(len(times), bool)
        for start, end, letter in parts:
            near, core, kind = _near(times, start, end, NEAR), _core(times, start, end), CLASS_OF.get(letter)
            meeting |= near & (not letter or kind in LIPS_MEET)
            if kind == "bilabial" and near.any():
                self.closed_bilabials.append(closed[near].any())
            if letter in VOWELS and end - start > 0.05 and core.any():
                self.closed_vowels.append(closed[core].any())
        edges = np.diff(np.concatenate([[0], closed, [0]]).astype(int))
        bouts = zip(np.flatnonzero(edges == 1), np.flatnonzero(edges == -1), strict=True)
        self.right_closures += [meeting[first:last].any() for first, last in bouts]

    def _add_video(self, controls: np.ndarray, parts: list[Segment], duration: float, heard: Sequence[float]) -> None:
        jaw, expression = mouth(controls, int(np.ceil(duration * FPS)), FPS)
        pressed = expression[:, ARKIT_52.index("mouthPressLeft")] > PRESSED
        times = np.arange(len(pressed)) / FPS
        for start, end, letter in parts:
            if not letter:
                self.shut += list(jaw[_near(times, start, end, -PAUSE_EDGE), 0] < SHUT)
        self.heard += [pressed[_near(times, moment, moment, HEARD_NEAR)].any() for moment in heard]

    def row(self, group: str, model: str) -> Row:
        if not self.aperture or not self.rounding:
            raise InputError(f"The recordings of '{group}' are too few or too short to be measured.")
        correlations, weights = zip(*self.aperture, strict=True)
        figures = (
            _auc(*_joined(self.bilabial)), _auc(*_joined(self.labiodental)), _auc(*zip(*self.rounding, strict=True)),
            np.corrcoef(np.array(self.openness).T)[0, 1], np.average(correlations, weights=weights),
            *(
                np.mean(part) if part else np.nan
                for part in (self.closed_bilabials, self.closed_vowels, self.right_closures, self.shut, self.heard)
            ),
        )  # fmt: skip
        return Row(group, model, self.seconds, len(self.closed_bilabials), tuple(map(float, figures)))


def energy_envelope(samples: np.ndarray) -> np.ndarray:
    """The usual stand-in for lip sync: the mouth opens with loudness -> (T, 16) controls."""
    hop = len(samples) * CONTROL_RATE // SAMPLE_RATE
    pieces = np.resize(samples, hop * 320).reshape(hop, 320)
    level = np.convolve(np.sqrt(np.mean(pieces**2, axis=1)), np.hanning(7)[1:-1] / 3, "same")
    opened = np.clip(level / max(np.percentile(level, 95), 1e-6), 0, 1) ** 0.7
    controls = np.zeros((hop, len(CONTROLS)), np.float32)
    for name, curve in (("jaw", opened), ("aperture", opened), ("closure", 1 - opened), ("labiodental", 1 - opened)):
        controls[:, COLUMN[name]] = curve
    controls[:, COLUMN["pucker"]], controls[:, COLUMN["speech"]] = 1 - opened, 1
    return controls


def utterances(folder: Path) -> list[tuple[str, Path, list[Segment], bool]]:
    """(group, audio file, segments, many speakers?) of the held-out recordings, spread over at most MOST of them."""
    entries = load_alignments(folder)
    trained_on = any(name.startswith(("arctic_", "de_rhasspy")) for name in entries)
    names = [name for name in entries if held_out(name) or not trained_on]
    names = names[:: max(1, len(names) // MOST)][:MOST]
    found = []
    for name in names:
        language = entries[name].get("lang", "de" if name.startswith("de_") else "en")
        parts = aligned_segments(entries[name])
        if language == "es":  # has no v: what the aligner calls one is the approximant b
            parts = [(start, end, "β" if letter == "v" else letter) for start, end, letter in parts]
        found.append((f"{folder.name} {language}", entries[name]["file"], parts, not trained_on))
    return found


def heard_bilabials(samples: np.ndarray) -> list[float]:
    """Times (s) of p, b and m by the hama recogniser, empty where it is not installed."""
    recogniser = _recogniser()
    if recogniser is None:
        return []
    spans = recogniser.phoneme_spans(recogniser(np.asarray(samples, np.float32), SAMPLE_RATE))
    return [span.start_ms / 1000 - HEARD_LATE for span in spans if span.phoneme in ("p", "b", "m")]


@lru_cache(maxsize=1)
def _recogniser():
    try:
        from hama.asr import ASRModel
    except ImportError:
        return None
    return ASRModel()


def _near(times: np.ndarray, start: float, end: float, margin: float) -> np.ndarray:
    return (times >= start - margin) & (times <= end + margin)


def _core(times: np.ndarray, start: float, end: float) -> np.ndarray:
    return np.abs(times - (start + end) / 2) <= 0.3 * (end - start) + 0.011


def _auc(scores: np.ndarray, labels: np.ndarray) -> float:
    scores, labels = np.asarray(scores), np.asarray(labels, bool)
    ranks, positive = rankdata(scores), labels.sum()
    pairs = positive * (~labels).sum()
    return float((ranks[labels].sum() - positive * (positive + 1) / 2) / pairs) if pairs else np.nan


def _joined(pairs: list) -> tuple[np.ndarray, np.ndarray]:
    scores, labels = zip(*pairs, strict=True)
    return np.concatenate(scores), np.concatenate(labels)


def main() -> None:
    from talkshow_bridge.generator import MotionGenerator

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recordings", type=Path, action="append", required=True)
    parser.add_argument("--weights", type=Path, help="default: the bundled weights")
    arguments = parser.parse_args()
    print(table(evaluate(arguments.recordings, MotionGenerator.from_pretrained(arguments.weights))))


if __name__ == "__main__":
    main()
