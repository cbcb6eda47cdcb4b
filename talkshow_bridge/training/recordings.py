"""Recordings with known phones: what training hears and what evaluation keeps back.

A folder holds audio files and `phones.json` or `phones_pocketsphinx.json` ({utterance: {"text", "dur", "phones":
[[start s, end s, ARPAbet or IPA], ...], "lang", "file"}}; text, lang and file may be missing).
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path

from talkshow_bridge.errors import InputError
from talkshow_bridge.training.phones import Segment, segments

PHONES_FILE = "phones.json"
ALIGNED_FILE = "phones_pocketsphinx.json"
SOUNDS = (".opus", ".flac", ".wav", ".mp3", ".ogg")


def held_out(name: str) -> bool:
    """The dev split: every Arctic 'b' prompt and a tenth of everything else."""
    return name.startswith("arctic_b") or (not name.startswith("arctic_") and zlib.crc32(name.encode()) % 10 == 0)


def load_alignments(folder: Path) -> dict[str, dict]:
    """The folder's utterances, each entry with its audio `file` resolved; entries without audio are left out."""
    index = next((folder / name for name in (PHONES_FILE, ALIGNED_FILE) if (folder / name).is_file()), None)
    if index is None:
        raise InputError(f"'{folder}' holds no {PHONES_FILE} or {ALIGNED_FILE}.")
    try:
        entries = json.loads(index.read_text(encoding="utf-8"))
        if not all(entry["phones"] and entry["dur"] > 0 for entry in entries.values()):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"'{index}' is no list of recordings with their phones and lengths.") from None
    files = {file.stem: file for file in folder.iterdir() if file.suffix in SOUNDS}
    found = {name: files.get(Path(entry.get("file", name)).stem) for name, entry in entries.items()}
    return {name: {**entries[name], "file": file} for name, file in found.items() if file}


def aligned_segments(entry: dict) -> list[Segment]:
    """[[start, end, phone], ...] of one alignment -> segments up to its end."""
    phones = [(start, phone) for start, _, phone in entry["phones"]]
    return segments([*phones, (entry["phones"][-1][1], "")], entry["dur"])
