"""Speech synthesisers with known phone times, for voice variety: espeak-ng (through ctypes) and flite.

Both are tools of the training machine only (apt-get install espeak-ng flite); nothing of theirs is shipped.
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
