"""The user's subtitles: .srt or .vtt in, clean WebVTT out, for players and for a text track in the mp4."""

from __future__ import annotations

import codecs
import hashlib
import logging
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from talkshow_bridge.audio import ffmpeg_path
from talkshow_bridge.errors import InputError, shown

FORMATS = {".srt": "srt", ".vtt": "webvtt"}
MAX_BYTES = 2**20  # a book's worth
# fmt: off
ISO_639_2 = {
    "ar": "ara", "bn": "ben", "cs": "ces", "da": "dan", "de": "deu", "el": "ell", "en": "eng", "es": "spa", "fa": "fas",
    "fi": "fin", "fr": "fra", "he": "heb", "hi": "hin", "hu": "hun", "id": "ind", "it": "ita", "ja": "jpn", "ko": "kor",
    "nl": "nld", "no": "nor", "pl": "pol", "pt": "por", "ro": "ron", "ru": "rus", "sv": "swe", "th": "tha", "tr": "tur",
    "uk": "ukr", "vi": "vie", "zh": "zho",
}
# fmt: on
_CUE = re.compile(r"(?:(\d+):)?(\d\d):(\d\d\.\d{3}) --> (?:(\d+):)?(\d\d):(\d\d\.\d{3})\n(.+?)(?=\n\n|\Z)", re.DOTALL)
_TOLD_LANGUAGE = re.compile(r"^Language: *([A-Za-z]{2,3})\b", re.MULTILINE)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Subtitles:
    """cues: (begin s, end s, text), at least one.   language: two or three letters, "de" or "deu"; "" = unknown."""

    cues: tuple[tuple[float, float, str], ...]
    language: str = ""

    @property
    def language_code(self) -> str:
        """ISO 639-2 as mp4 wants it; "und" when unknown."""
        return ISO_639_2.get(self.language) or (self.language if len(self.language) == 3 else "und")

    def until(self, seconds: float) -> Subtitles:
        """What is shown before the end of a video. Raises InputError when that is nothing."""
        cues = tuple((begin, min(end, seconds), text) for begin, end, text in self.cues if begin < seconds)
        if not cues:
            raise InputError("All subtitles begin after the end of the speech; are they of another one?")
        if left_out := len(self.cues) - len(cues):
            log.warning("%d of %d subtitles begin after the end and are left out", left_out, len(self.cues))
        return Subtitles(cues, self.language)

    def facts(self) -> dict:
        """What the side-car of a video tells of them."""
        digest = hashlib.sha256(self.as_vtt().encode()).hexdigest()
        return {"language": self.language, "count": len(self.cues), "sha256": digest}

    def as_vtt(self) -> str:
        language = f"\nLanguage: {self.language}" if self.language else ""
        cues = "".join(f"\n\n{_clock(begin)} --> {_clock(end)}\n{text}" for begin, end, text in self.cues)
        return f"WEBVTT{language}{cues}\n"


def load_subtitles(path: str | os.PathLike[str]) -> Subtitles:
    """Reads an .srt or .vtt file, UTF-8 or UTF-16. Its language is what a .vtt says, else that of `talk.de.srt`.

    Raises InputError: not there, too large, not text, or without a single subtitle.
    """
    path = Path(path)
    name, kind = shown(path.name), FORMATS.get(path.suffix.lower())
    if kind is None:
        raise InputError(f"Subtitles are .srt or .vtt files, not '{name}'.")
    text = _text(path, name)
    command = [ffmpeg_path(), "-loglevel", "error", "-f", kind, "-i", "pipe:0", "-f", "webvtt", "pipe:1"]
    result = subprocess.run(command, input=text.encode(), capture_output=True)
    cues = [_cue(found) for found in _CUE.finditer(result.stdout.decode("utf-8", "replace"))]
    cues = sorted((cue for cue in cues if cue[1] > cue[0]), key=lambda cue: cue[:2])
    if result.returncode or not cues:
        raise InputError(f"'{name}' holds no subtitles that can be read.")
    return Subtitles(tuple(cues), _language(path, text))


def _text(path: Path, name: str) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"The subtitles '{name}' cannot be read: {error.strerror}.") from None
    if len(data) > MAX_BYTES:
        raise InputError(f"'{name}' is too large for subtitles.")
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise InputError(f"'{name}' is not UTF-8 text; please save it as such.")
    return text


def _language(path: Path, text: str) -> str:
    told = _TOLD_LANGUAGE.search(text.split("-->", 1)[0])
    word = told.group(1) if told else path.stem.rpartition(".")[2]
    word = word.lower()
    return word if word in ISO_639_2 or word in ISO_639_2.values() else ""


def _cue(found: re.Match) -> tuple[float, float, str]:
    numbers = [float(number or 0) for number in found.groups()[:6]]
    begin, end = (3600 * hours + 60 * minutes + seconds for hours, minutes, seconds in (numbers[:3], numbers[3:]))
    return begin, end, found.group(7).strip()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(1000 * seconds), 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest / 1000:06.3f}"
