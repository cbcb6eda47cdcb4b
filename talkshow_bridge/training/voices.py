"""Speech synthesisers with known phone times, for voice variety: espeak-ng (through ctypes), flite and Festival; and
`revoice`, which turns one speaker into another.

All are tools of the training machine only (apt-get install espeak-ng flite festival festvox-...; pip install pyworld);
nothing of theirs is shipped.
"""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from talkshow_bridge.training.phones import Segment, segments


@dataclass(frozen=True)
class Utterance:
    """samples: (S,) float32 at `rate` Hz; parts: its phones with times; voice: who spoke."""

    samples: np.ndarray
    rate: int
    parts: list[Segment]
    voice: str


class _EventId(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        *(
            (name, ctypes.c_int)
            for name in ("type", "identifier", "text_position", "length", "audio_position", "sample")
        ),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    ]


_SYNCHRONOUS, _PHONEME_EVENTS, _IPA, _PHONEME, _UTF8 = 2, 1, 2, 7, 1
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4


class Espeak:
    """libespeak-ng with phoneme events."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libespeak-ng.so.1")
        self.rate = self._library.espeak_Initialize(_SYNCHRONOUS, 500, None, _PHONEME_EVENTS | _IPA)
        callback_type = ctypes.CFUNCTYPE(
            ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
        )
        self._callback = callback_type(self._receive)  # kept alive as long as the library may call it
        self._library.espeak_SetSynthCallback(self._callback)
        self._waves: list[np.ndarray] = []
        self._phones: list[tuple[float, str]] = []

    def _receive(self, wave: ctypes.POINTER, count: int, events: ctypes.POINTER) -> int:
        if wave and count > 0:
            self._waves.append(np.ctypeslib.as_array(wave, (count,)).copy())
        position = 0
        while events[position].type:
            event = events[position]
            if event.type == _PHONEME:
                name = bytes(event.id.string).split(b"\0")[0].decode("utf-8", "replace")
                self._phones.append((event.sample / self.rate, name))
            position += 1
        return 0

    def speak(
        self, text: str, voice: str, words_per_minute: int = 170, pitch: int = 50, pitch_range: int = 50
    ) -> Utterance:
        """Synthesise text with an espeak-ng voice such as 'de+f3'; raises LookupError for an unknown voice."""
        self._waves, self._phones = [], []
        if self._library.espeak_SetVoiceByName(voice.encode()):
            raise LookupError(voice)
        for parameter, value in ((_RATE, words_per_minute), (_PITCH, pitch), (_RANGE, pitch_range), (_VOLUME, 100)):
            self._library.espeak_SetParameter(parameter, value, 0)
        data = text.encode() + b"\0"
        self._library.espeak_Synth(data, len(data), 0, 1, 0, _UTF8, None, None)
        self._library.espeak_Synchronize()
        samples = np.concatenate(self._waves or [np.zeros(1, np.int16)]).astype(np.float32) / 32768
        return Utterance(samples, self.rate, segments(self._phones, len(samples) / self.rate), voice)


def flite(text: str, voice: str, stretch: float = 1.0) -> Utterance:
    """Synthesise English with flite's slt, rms, awb, kal or kal16; stretch > 1 speaks slower."""
    with tempfile.TemporaryDirectory() as folder:
        wave = Path(folder) / "speech.wav"
        command = ["flite", "-psdur", "-voice", voice, "--setf", f"duration_stretch={stretch:.2f}", text, str(wave)]
        words = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        samples, rate = soundfile.read(wave, dtype="float32")
    phones, start = [], 0.0
    for word in words:
        name, end = word.rsplit(":", 1)
        phones.append((start, name.upper()))
        start = float(end)
    return Utterance(samples, rate, segments(phones, len(samples) / rate), f"flite-{voice}")


def revoice(samples: np.ndarray, rate: int, pitch: float, formants: float) -> np.ndarray:
    """The same words at the same times by someone else: WORLD analysis, pitch and vocal-tract factors, resynthesis."""
    import pyworld

    x = samples.astype(np.float64)
    f0, times = pyworld.dio(x, rate)
    f0 = pyworld.stonemask(x, f0, times, rate)
    envelope, noise = pyworld.cheaptrick(x, f0, times, rate), pyworld.d4c(x, f0, times, rate)
    bins = np.arange(envelope.shape[1])
    source = np.minimum(bins / formants, bins[-1])
    low = source.astype(int)
    high, share = np.minimum(low + 1, bins[-1]), source - low
    warped = np.exp((1 - share) * np.log(envelope[:, low]) + share * np.log(envelope[:, high]))
    return pyworld.synthesize(f0 * pitch, np.ascontiguousarray(warped), noise, rate)[: len(x)].astype(np.float32)


FESTIVAL = {  # voice: language; recorded diphones of men except lp (Italian), dita (Czech), lj (Finnish), ona (Catalan)
    "kal_diphone": "en-us", "ked_diphone": "en-us", "pc_diphone": "it", "lp_diphone": "it", "czech_ph": "cs",
    "czech_machac": "cs", "czech_dita": "cs", "hy_fi_mv_diphone": "fi", "suo_fi_lj_diphone": "fi",
    "msu_ru_nsh_clunits": "ru", "upc_ca_ona_hts": "ca",
}  # fmt: skip
FESTIVAL_HELD_OUT = "ked_diphone"  # a man's voice kept for choosing thresholds
_FESTIVAL_IPA = {  # phone names that are neither IPA nor ARPAbet
    "it": {"E": "ɛ", "O": "ɔ", "S": "ʃ", "Z": "ʒ", "tS": "tʃ", "dZ": "dʒ", "J": "ɲ", "ng": "ŋ", "nf": "ɱ", "L": "ʎ"},
    "cs": {"c": "ts", "c~": "tʃ", "ch": "x", "d~": "ɟ", "h": "ɦ", "n*": "ŋ", "n~": "ɲ", "r~": "ʒ", "r~*": "ʃ",
           "s~": "ʃ", "t~": "c", "z~": "ʒ"},
    "fi": {"@": "æ", "7": "ø", "&": "ə", "N": "ŋ", "L": "l", "T": "θ", "D": "ð", "S": "ʃ", "Z": "ʒ", "v": "ʋ"},
    "ca": {"ax": "ə", "E": "ɛ", "O": "ɔ", "J": "ɲ", "L": "ʎ", "rr": "r", "S": "ʃ", "Z": "ʒ"},
    "ru": {"ii": "i", "yy": "ɨ", "uu": "u", "ee": "e", "oo": "o", "aa": "a", "ae": "ə", "ay": "ɪ", "ur": "ʊ",
           "y": "ɨ", "c": "ts", "ch": "tɕ", "sh": "ʂ", "sch": "ɕ", "zh": "ʐ", "h": "x", "hh": "x", "j": "j"},
}  # fmt: skip


def festival(texts: list[str], voice: str, stretch: float = 1.0) -> list[Utterance]:
    """Synthesise texts in the voice's own language (see FESTIVAL) in one go; stretch > 1 speaks slower.

    Needs the Debian packages festival and festvox-*.
    """
    language = FESTIVAL[voice]
    encoding = {"fi": "latin-1", "it": "latin-1", "cs": "iso-8859-2", "ca": "latin-1"}.get(language, "utf-8")
    with tempfile.TemporaryDirectory() as folder:
        lines = [f"(voice_{voice})", f"(Parameter.set 'Duration_Stretch {stretch:.2f})"]
        for k, text in enumerate(texts):
            quoted = text.replace("\\", " ").replace('"', " ")
            lines.append(f'(set! u (utt.synth (Utterance Text "{quoted}")))')
            lines.append(f'(utt.save.wave u "{folder}/{k}.wav" \'riff) (utt.save.segs u "{folder}/{k}.seg")')
        script = Path(folder) / "speak.scm"
        script.write_bytes("\n".join(lines).encode(encoding, "ignore"))
        subprocess.run(["festival", "-b", str(script)], check=True, capture_output=True)
        return [_festival_utterance(Path(folder) / str(k), language, voice) for k in range(len(texts))]


def _festival_utterance(stem: Path, language: str, voice: str) -> Utterance:
    samples, rate = soundfile.read(stem.with_suffix(".wav"), dtype="float32")
    phones, start = [], 0.0
    for line in stem.with_suffix(".seg").read_text("latin-1").splitlines():
        fields = line.split()
        if len(fields) == 3:
            phones.append((start, _festival_ipa(fields[2], language)))
            start = float(fields[0])
    return Utterance(samples, rate, segments(phones, len(samples) / rate), voice)


def _festival_ipa(name: str, language: str) -> str:
    if language == "en-us":
        return name.upper()
    if name in ("pau", "#", "##", "_"):
        return ""
    name = name.rstrip("1:")
    table = _FESTIVAL_IPA[language]
    if name not in table and len(name) == 2 and name[0] == name[1]:
        name = name[0]  # palatalised Russian consonants
    return table.get(name, name)
