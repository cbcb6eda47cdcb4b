"""Many renders from one list: every speech with every presenter.

    speech,anchor,preset,seed,out
    interviews/one.wav,adam|eve,standard,7,
    interviews/two.mp3,eve,draft,,two.mp4

`speech` is needed; every other column may be left out and every other cell empty: `anchor` (several with | between),
`out`, `subtitles` (.srt or .vtt), and whatever `RenderSettings` knows (preset, seed, style, gesture_energy, steps, crf
...). Paths are taken from the list's own folder. Comma, semicolon or tab separate the columns, as spreadsheets write
them.
"""

from __future__ import annotations

import csv
import json
import logging
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

from avatar_app.anchors import MANIFEST, Anchor
from avatar_app.estimate import expected_bytes, expected_seconds, in_words
from avatar_app.pipeline import Progress, presenter_for, render
from avatar_app.settings import RenderSettings
from avatar_app.sidecar import ingredients
from avatar_app.subtitles import Subtitles, load_subtitles
from avatar_app.video import VideoError, check_output
from talkshow_bridge.audio import Speech, load_speech
from talkshow_bridge.errors import InputError

SETTINGS = {field.name: field for field in fields(RenderSettings)}
COLUMNS = ("speech", "out", "subtitles", *SETTINGS)
BETWEEN_ANCHORS = "|"
DONE, SKIPPED, FAILED, STOPPED = "done", "was there", "failed", "not begun"
OUR_FAULT = "failed on our side; the log above tells why"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Item:
    """One video to make. row: line of the list. seconds, bytes: expected. finished: `out` is there already, made of the
    same speech, anchor, settings and subtitles."""

    row: int
    speech: Speech
    anchor: Anchor
    settings: RenderSettings
    subtitles: Subtitles | None
    out: Path
    frames: int
    seconds: float
    bytes: float
    finished: bool


@dataclass(frozen=True)
class Fault:
    """Something wrong in the list, in one sentence."""

    row: int
    column: str
    sentence: str


@dataclass(frozen=True)
class Outcome:
    """What became of an item: DONE, SKIPPED, FAILED (with a sentence) or STOPPED."""

    item: Item
    state: str
    seconds: float = 0.0
    sentence: str = ""


def read_list(
    path: Path, defaults: RenderSettings, folder: Path | None = None, device: str = "cpu"
) -> tuple[list[Item], list[Fault]]:
    """All videos of a list and all that is wrong in it; nothing should be rendered while there is a fault.

    defaults: for empty cells.   folder: of outputs that the list does not place, default the list's own.
    Raises InputError when there is no list to read.
    """
    items: list[Item] = []
    faults: list[Fault] = []
    heard: dict[Path, Speech | InputError] = {}
    known: dict[Path, Anchor] = {}  # one of each folder, with its body
    for number, cells in _rows(path, faults):
        anchors = cells.pop("anchor", "").split(BETWEEN_ANCHORS)
        for anchor in anchors:
            column = "speech"
            try:
                speech = _heard(heard, path.parent / cells["speech"])
                column = "subtitles"
                subtitles = load_subtitles(path.parent / cells["subtitles"]) if "subtitles" in cells else None
                subtitles = subtitles and subtitles.until(speech.duration)
                column = "settings"
                named = {"anchor": _beside(path, anchor.strip(), MANIFEST)}
                if cells.get("motion_model", "talkshow") != "talkshow":
                    named["motion_model"] = _beside(path, cells["motion_model"])
                settings = _settings(cells | named, defaults)
                column = "anchor"
                presenter = presenter_for(settings)
                presenter = known.setdefault(presenter.folder, presenter)
                column = "out"
                if "out" in cells:
                    out = path.parent / cells["out"]
                    out = out.with_stem(f"{out.stem}-{presenter.id}") if len(anchors) > 1 else out
                else:
                    seed = f"-{settings.seed}" if "seed" in cells else ""
                    out = (folder or path.parent) / f"{_plain(speech.path.stem)}-{presenter.id}{seed}.mp4"
                out = check_output(out)
                if any(item.out == out for item in items):
                    raise InputError(f"{out.name!r} is made by another line already; please name it in `out`.")
            except InputError as error:
                faults.append(Fault(number, column, str(error)))
            else:
                items.append(_item(number, speech, presenter, settings, subtitles, out, device))
    inputs = {(there.st_dev, there.st_ino) for there in (speech.stat() for speech in heard if speech.exists())}
    for item in items:
        if item.out.exists() and (item.out.stat().st_dev, item.out.stat().st_ino) in inputs:
            faults.append(Fault(item.row, "out", f"{item.out.name!r} would replace a speech of this list."))
    if not items and not faults:
        raise InputError(f"The list {path.name!r} names no speech.")
    return items, faults


def _rows(path: Path, faults: list[Fault]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, non-empty cells) of every row that is not blank."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"The list {str(path)!r} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise InputError(f"The list {path.name!r} is not UTF-8 text.") from None
    lines = text.splitlines()
    delimiter = max(",;\t", key=(lines or [""])[0].count)
    reader = csv.DictReader(lines, delimiter=delimiter, restkey="too many", restval="", strict=True)
    try:
        names = [name.strip().lower() for name in reader.fieldnames or []]
    except csv.Error as error:
        raise InputError(f"The list {path.name!r} is not CSV: {error}.") from None
    if "speech" not in names:
        raise InputError(f"The list {path.name!r} needs a first line that names its columns, one of them `speech`.")
    for name in names:
        if name not in COLUMNS or names.count(name) > 1:
            what = "twice" if name in COLUMNS else f"unknown; known are {', '.join(COLUMNS)}"
            raise InputError(f"The column {name!r} of {path.name!r} is {what}.")
    reader.fieldnames = names
    try:
        for row in reader:
            cells = {name: text.strip() for name, text in row.items() if name != "too many" and text.strip()}
            if "too many" in row:
                faults.append(Fault(reader.line_num, "", "This line has more cells than the first one."))
            elif cells and "speech" not in cells:
                faults.append(Fault(reader.line_num, "speech", "No speech is named."))
            elif cells:
                yield reader.line_num, cells
    except csv.Error as error:
        raise InputError(f"The list {path.name!r} is not CSV: {error}.") from None


def _beside(path: Path, name: str, holding: str = ".") -> str:
    """The folder of this name beside the list, if there is one that holds such a file, else the name itself."""
    return str(path.parent / name) if name and (path.parent / name / holding).exists() else name


def _heard(heard: dict[Path, Speech | InputError], path: Path) -> Speech:
    """The speech of a file, decoded once; raises the same InputError each time."""
    if path not in heard:
        try:
            heard[path] = replace(load_speech(path), samples=None)  # a long list must not hold all sound
        except InputError as error:
            heard[path] = error
    if isinstance(heard[path], InputError):
        raise heard[path]
    return heard[path]


def _settings(cells: dict[str, str], defaults: RenderSettings) -> RenderSettings:
    given = {name: _value(name, text) for name, text in cells.items() if name in SETTINGS and text}
    return replace(defaults, **given)


def _value(name: str, text: str) -> object:
    """A cell as the setting's own type; what it cannot be is left as text, for `RenderSettings` to refuse."""
    kinds = SETTINGS[name].type
    if "bool" in kinds:
        return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}.get(text.lower(), text)
    try:
        return int(text) if "int" in kinds else float(text) if "float" in kinds else text
    except ValueError:
        return text


def _plain(stem: str) -> str:
    """A file's name without what shells and other systems stumble over."""
    return re.sub(r"[^\w.-]+", "-", stem).strip("-.") or "speech"


def _item(
    row: int,
    speech: Speech,
    anchor: Anchor,
    settings: RenderSettings,
    subtitles: Subtitles | None,
    out: Path,
    device: str,
) -> Item:
    facts = anchor.manifest
    frames = speech.frame_count(facts.fps)
    return Item(
        row=row,
        speech=speech,
        anchor=anchor,
        settings=settings,
        subtitles=subtitles,
        out=out,
        frames=frames,
        seconds=expected_seconds(anchor.id, settings.preset, frames, device),
        bytes=expected_bytes(frames, facts.width, facts.height, speech.duration, settings.crf),
        finished=_finished(out, ingredients(settings, anchor, speech, preview=False), subtitles),
    )


def _finished(out: Path, made_of: dict, subtitles: Subtitles | None) -> bool:
    """Whether a video is there with a side-car that tells of the same speech, anchor, settings and subtitles."""
    try:
        told = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
        same = all(told[name] == made_of[name] for name in ("settings", "speech", "anchor", "preview"))
        same &= told.get("subtitles") == (subtitles and subtitles.facts())
        return same and out.stat().st_size > 0
    except (OSError, ValueError, KeyError, TypeError):
        return False


def run(items: list[Item], progress: Callable[[Item], Progress], device: str | None = None) -> list[Outcome]:
    """Renders what is not finished, one after the other; a failure stops none of the others but a full disk.

    A killed run goes on where it was: the pieces of a video wait beside it in a hidden folder until it is whole.
    """
    outcomes: list[Outcome] = []
    for number, item in enumerate(items):
        if item.finished:
            outcomes.append(Outcome(item, SKIPPED))
            continue
        started = time.monotonic()
        work = item.out.with_name(f".{item.out.stem}.work")
        sentence = ""
        try:
            options = {"device": device, "work": work, "subtitles": item.subtitles}
            render(item.speech.path, None, item.out, item.settings, progress(item), **options)
            shutil.rmtree(work, ignore_errors=True)
        except (InputError, VideoError, OSError) as error:
            sentence = str(error)
        except Exception:
            log.exception("line %d", item.row)
            sentence = OUR_FAULT
        outcomes.append(Outcome(item, FAILED if sentence else DONE, time.monotonic() - started, sentence))
        if sentence and shutil.disk_usage(item.out.parent).free < item.bytes:
            return outcomes + [Outcome(rest, STOPPED, 0.0, "the disk is full") for rest in items[number + 1 :]]
    return outcomes


def plan_table(items: list[Item]) -> str:
    """What will be made, with the time and the room that it will take."""
    rows = [("line", "speech", "anchor", "preset", "length", "time", "size", "output")]
    for item in items:
        time_there = DONE if item.finished else in_words(item.seconds)
        rows.append(
            (
                *(str(item.row), item.speech.path.name, item.anchor.id, item.settings.preset),
                *(f"{item.speech.duration:.1f} s", time_there, f"{item.bytes / 1e6:.1f} MB", str(item.out)),
            )
        )
    left = [item for item in items if not item.finished]
    total = in_words(sum(item.seconds for item in left)) if left else "no time"
    room = sum(item.bytes for item in left) + max((item.bytes for item in left), default=0)  # and one in pieces
    disks = {shutil.disk_usage(item.out.parent).free for item in left}
    free = f", {min(disks) / 1e6:.0f} MB are free" if disks else ""
    return f"{_table(rows)}\n{len(left)} of {len(items)} to make: about {total}, {room / 1e6:.1f} MB on the disk{free}."


def fault_table(faults: list[Fault]) -> str:
    return _table([("line", "column", "what is wrong")] + [(str(f.row), f.column, f.sentence) for f in faults])


def summary(outcomes: list[Outcome]) -> str:
    """One line a video, and the numbers of each outcome."""
    rows = [("line", "output", "", "time", "")]
    for outcome in outcomes:
        spent = in_words(outcome.seconds) if outcome.seconds else ""
        rows.append((str(outcome.item.row), outcome.item.out.name, outcome.state, spent, outcome.sentence))
    counts = {state: sum(o.state == state for o in outcomes) for state in (DONE, SKIPPED, FAILED, STOPPED)}
    return f"{_table(rows)}\n{', '.join(f'{count} {state}' for state, count in counts.items() if count)}."


def _table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
