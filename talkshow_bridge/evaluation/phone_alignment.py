"""Phone times that owe nothing to our own models: English audio with transcripts, aligned by pocketsphinx.

Optional: `pip install pocketsphinx`, which brings its English model and dictionary along.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

from talkshow_bridge.audio import SAMPLE_RATE, load_speech
from talkshow_bridge.errors import InputError, shown
from talkshow_bridge.training.recordings import ALIGNED_FILE, SOUNDS

FRAME = 0.01  # s, the grid of pocketsphinx
Phones = list[tuple[float, float, str]]  # start and end in s, ARPAbet


def align_folder(folder: Path) -> Path:
    """Write the phones of every recording that has its words beside it in NAME.txt to the folder's ALIGNED_FILE.

    Recordings with words that the dictionary does not know, or that do not fit their text, are left out. Raises
    InputError when pocketsphinx is not installed or nothing can be aligned.
    """
    decoder, entries = _decoder(), {}
    for file in sorted(file for file in folder.iterdir() if file.suffix in SOUNDS):
        text = file.with_suffix(".txt")
        if not text.is_file():
            continue
        speech = load_speech(file)
        phones = align(decoder, speech.samples, text.read_text(encoding="utf-8", errors="replace"))
        if phones:
            entries[file.stem] = {"file": file.name, "lang": "en", "dur": speech.duration, "phones": phones}
    if not entries:
        raise InputError(f"In '{shown(folder)}' is no recording with an English transcript (NAME.txt) that fits it.")
    out = folder / ALIGNED_FILE
    out.write_text(json.dumps(entries), encoding="utf-8")
    return out


def align(decoder, samples: np.ndarray, text: str) -> Phones:
    """Phones of (S,) mono 16 kHz speech that says `text`; empty when that cannot be found out."""
    words = [word.strip("'") if decoder.lookup_word(word) is None else word for word in _words(text)]
    if not words or any(decoder.lookup_word(word) is None for word in words):
        return []
    pcm = (np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()
    decoder.set_align_text(" ".join(words))
    _decode(decoder, pcm)
    if decoder.hyp() is None:
        return []
    decoder.set_alignment()
    _decode(decoder, pcm)
    phones = [phone for word in decoder.get_alignment() for phone in word]
    times = [(phone.start, phone.start + phone.duration) for phone in phones]
    return [(round(a * FRAME, 2), round(b * FRAME, 2), p.name) for (a, b), p in zip(times, phones, strict=True)]


def _decoder():
    try:
        from pocketsphinx import Decoder
    except ImportError:
        raise InputError("Recordings without phone times need pocketsphinx: pip install pocketsphinx.") from None
    wide = {"beam": 1e-80, "wbeam": 1e-60, "pbeam": 1e-80}
    return Decoder(samprate=SAMPLE_RATE, bestpath=False, backtrace=False, loglevel="FATAL", **wide)


def _decode(decoder, pcm: bytes) -> None:
    decoder.start_utt()
    decoder.process_raw(pcm, no_search=False, full_utt=True)
    decoder.end_utt()


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower().replace("\u2019", "'").replace("-", " "))
