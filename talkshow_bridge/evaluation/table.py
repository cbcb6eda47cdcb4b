"""`launch.py bench motion`: our model, TalkSHOW's outputs and reference motion side by side, as Markdown."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np

from talkshow_bridge.audio import Speech, load_speech
from talkshow_bridge.errors import InputError, shown
from talkshow_bridge.evaluation.gestures import GestureMetrics, frechet_distance, measure, pairwise_distance
from talkshow_bridge.exchange import load_motion
from talkshow_bridge.motion import Motion
from talkshow_bridge.prosody import Prosody, analyse

AUDIO = (".wav", ".flac", ".mp3", ".opus", ".ogg", ".m4a")
TAKES = 3  # of each speech and style
# what is measured: name in the table, what we want, how to show it, how clips are summed up
ROWS = {
    "stroke_z": ("strokes on strong syllables, z", ">= 2.5", "{:.1f}", np.nanmean),
    "shuffled_z": ("the same, syllables shuffled", "<= 1", "{:.1f}", np.nanmean),
    "beats": ("beat consistency (chance is high too)", "", "{:.2f}", np.nanmean),
    "wrist_mean": ("wrist speed, mean m/s", ".08-.20", "{:.3f}", np.nanmean),
    "wrist_p95": ("wrist speed, 95th percentile m/s", ".25-.60", "{:.3f}", np.nanmean),
    "jerk": ("wrist jerk, m/s^3", "15-70", "{:.0f}", np.nanmean),
    "still": ("hands still while speaking", ".1-.4", "{:.2f}", np.nanmean),
    "still_in_pauses": ("hands still in pauses over 2 s", ">= .6", "{:.2f}", np.nanmean),
    "head_speed": ("head speed, m/s", ".02-.06", "{:.3f}", np.nanmean),
    "blinks": ("blinks a minute", "10-25", "{:.0f}", np.nanmean),
    "autocorrelation": ("highest autocorrelation, lag > 1 s", "<= .7", "{:.2f}", np.nanmax),
    "repeated": ("longest repeated sequence, s", "<= 1", "{:.1f}", np.nanmax),
    "largest_step": ("largest wrist step, m per frame", "<= .06", "{:.3f}", np.nanmax),
    "limits": ("frames with a joint out of range", "0", "{:.4f}", np.nanmean),
    "torso": ("frames with an arm in the torso", "0", "{:.4f}", np.nanmean),
    "hands": ("frames with arms in each other", "0", "{:.4f}", np.nanmean),
}


@dataclass
class Column:
    """Motions of one origin: takes of each speech, the speech's prosody where it is known, seconds spent on making."""

    name: str
    takes: list[list[Motion]] = field(default_factory=list)
    prosodies: list[Prosody | None] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, takes: list[Motion], prosody: Prosody | None, seconds: float = 0.0) -> None:
        self.takes.append(takes)
        self.prosodies.append(prosody)
        self.seconds += seconds

    @property
    def motions(self) -> list[Motion]:
        return [motion for takes in self.takes for motion in takes]

    def cells(self, reference: Sequence[Motion]) -> list[str]:
        """The column's figures from top to bottom."""
        pairs = zip(self.takes, self.prosodies, strict=True)
        figures = [measure(motion, prosody) for takes, prosody in pairs for motion in takes]
        length = sum(motion.duration for motion in self.motions)
        shown_figures = [_summed(figures, name, *ROWS[name][2:]) for name in ROWS]
        apart = [distance for takes in self.takes if np.isfinite(distance := pairwise_distance(takes))]
        return [
            f"{len(figures)} / {length:.0f}", *shown_figures,
            f"{np.mean(apart):.3f}" if apart else "",
            _shown("{:.0f}", frechet_distance(self.motions, reference)) if reference else "",
            f"{length / self.seconds:.0f}" if self.seconds else "",
        ]  # fmt: skip


HEADINGS = [
    ("clips / seconds", ""), *((text, wanted) for text, wanted, _, _ in ROWS.values()),
    ("wrists apart between takes, m", ">= .08"), ("Frechet distance from the reference, cm^2", ""),
    ("times faster than real time", ">= 10"),
]  # fmt: skip
assert set(ROWS) == {f.name for f in fields(GestureMetrics)} - {"seconds"}


def gesture_table(columns: Sequence[Column], reference: Sequence[Motion] = ()) -> str:
    """Markdown with one column for each origin of motion."""
    rows = [("gestures", "wanted", *(column.name for column in columns)), ("---",) * (2 + len(columns))]
    cells = [column.cells(reference) for column in columns]
    rows += [(*heading, *row) for heading, row in zip(HEADINGS, zip(*cells, strict=True), strict=True)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def generated(generator, speeches: Iterable[Speech], name: str = "ours") -> list[Column]:
    """TAKES of each speech in each of the generator's styles."""
    columns = [Column(f"{name}, {style}") for style in generator.styles]
    for speech in speeches:
        prosody = analyse(speech.samples)
        for column, style in zip(columns, generator.styles, strict=True):
            started = time.perf_counter()
            takes = [generator.generate(speech, seed=seed, style=style) for seed in range(TAKES)]
            column.add(takes, prosody, time.perf_counter() - started)
    return columns


def talkshow_outputs(folder: str | os.PathLike[str]) -> Column:
    """TalkSHOW's .npy files of a folder, with the audio of the same name beside them where it is there.

    A file that lasts several times as long as its audio holds that many takes."""
    column = Column("TalkSHOW outputs")
    for file in _files(folder, (".npy",)):
        motion = load_motion(file)
        audio = next((path for suffix in AUDIO if (path := file.with_suffix(suffix)).is_file()), None)
        if audio is None:
            column.add([motion], None)
            continue
        speech = load_speech(audio)
        count = max(1, round(motion.duration / speech.duration))
        length = len(motion) // count
        takes = [motion[k * length : (k + 1) * length] for k in range(count)]
        column.add(takes, analyse(speech.samples))
    return column


def reference_motions(folder: str | os.PathLike[str]) -> list[Motion]:
    """Every motion file of a folder, of any kind that can be read."""
    return [load_motion(file) for file in _files(folder, (".npz", ".npy"))]


def reference_column(motions: Sequence[Motion]) -> Column:
    column = Column("reference")
    for motion in motions:
        column.add([motion], None)
    return column


def lip_table(folder: str | os.PathLike[str], generator) -> str:
    """Markdown: lip net and energy envelope against the folder's phones, which pocketsphinx finds if need be."""
    from talkshow_bridge.evaluation import lips
    from talkshow_bridge.evaluation.phone_alignment import align_folder
    from talkshow_bridge.training.recordings import ALIGNED_FILE, PHONES_FILE

    folder = _folder(folder)
    if not any((folder / name).is_file() for name in (PHONES_FILE, ALIGNED_FILE)):
        align_folder(folder)
    return lips.table(lips.evaluate([folder], generator))


def _summed(figures: list[GestureMetrics], name: str, form: str, total) -> str:
    values = np.array([getattr(figure, name) for figure in figures], float)
    return _shown(form, total(values)) if np.isfinite(values).any() else ""


def _shown(form: str, value: float) -> str:
    return form.format(value) if np.isfinite(value) else ""


def _files(folder: str | os.PathLike[str], suffixes: tuple[str, ...]) -> list[Path]:
    files = sorted(file for file in _folder(folder).rglob("*") if file.suffix.lower() in suffixes and file.is_file())
    if not files:
        raise InputError(f"In '{shown(Path(folder))}' is no {' or '.join(suffixes)} file.")
    return files


def _folder(folder: str | os.PathLike[str]) -> Path:
    if not Path(folder).is_dir():
        raise InputError(f"There is no folder '{shown(Path(folder))}'.")
    return Path(folder)
