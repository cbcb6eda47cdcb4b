"""Before and after the face pass: of all frames the one on which it did most, as one picture of two halves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from avatar_app.files import unfinished
from talkshow_bridge.motion import Motion

STEP = 4  # pixels between two that are compared
CLEARLY = 1.1  # times more than the most so far, so that few pictures are written
PER_SECOND = 3  # frames that are looked at
BLINKING = 0.3  # of the lids' way down; nobody wants to be judged by such a picture
AROUND = 1.5  # side of what is kept, in sides of the square that changed
QUALITY = 90  # of the JPEG


class FaceComparison:
    """Looks at some frames of a render and goes on with what an earlier run of it has kept.

    path: of a JPEG: the square around the head, before on the left, after on the right.
    motion: of the whole video, one pose per frame; frames with lids half down are passed over.
    finish: what is done to frames (n, height, width, 3) before they are written.
    """

    def __init__(self, path: Path, motion: Motion, finish: Callable[[np.ndarray], np.ndarray]):
        self._path, self._finish, self._every = path, finish, max(1, round(motion.fps / PER_SECOND))
        self._eyes_open, self._most = _eyes_open(motion), 0
        if path.exists():
            with Image.open(path) as kept:
                self._most = int(kept.info["comment"])

    def look(self, first: int, before: np.ndarray, after: np.ndarray) -> None:
        """Frames from number `first` on without and with their faces repainted, (n, height, width, 3) uint8 RGB."""
        for frame in range(-first % self._every, len(before), self._every):
            if self._eyes_open[first + frame]:
                self._compare(before[frame], after[frame])

    def _compare(self, before: np.ndarray, after: np.ndarray) -> None:
        change = np.abs(before[::STEP, ::STEP].astype(np.int16) - after[::STEP, ::STEP]).max(axis=2)
        if (much := int(change.sum())) <= CLEARLY * self._most:
            return
        self._most = much
        rows, columns = _square(change > 0, before.shape[:2])
        both = self._finish(np.stack([before, after]))[:, rows, columns]
        with unfinished(self._path) as temporary:
            picture = Image.fromarray(np.concatenate(list(both), axis=1))
            picture.save(temporary, "jpeg", quality=QUALITY, comment=str(much))


def _eyes_open(motion: Motion) -> np.ndarray:
    """(N,) bool; always true for faces without named units."""
    if motion.expression_space != "arkit52":
        return np.ones(len(motion), bool)
    return np.maximum(motion.unit("eyeBlinkLeft"), motion.unit("eyeBlinkRight")) < BLINKING


def _square(changed: np.ndarray, size: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of the square around what changed, inside the picture. changed: every `STEP`th pixel."""
    places = [STEP * np.flatnonzero(changed.any(axis=axis)) for axis in (1, 0)]
    side = min(round(AROUND * max(np.ptp(place) + STEP for place in places)), *size)
    begins = [
        int(np.clip((place[0] + place[-1] + STEP - side) // 2, 0, length - side))
        for place, length in zip(places, size, strict=True)
    ]
    return slice(begins[0], begins[0] + side), slice(begins[1], begins[1] + side)
