"""How far a command is, on one line of the terminal."""

from __future__ import annotations

import sys
import time


class ProgressLine:
    """One line on stderr that rewrites itself on a terminal; in a log, a line at each stage and each tenth."""

    def __init__(self) -> None:
        self._stage, self._started, self._tenth = "", 0.0, 0
        self._terminal = sys.stderr.isatty()

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._started, self._tenth = stage, now, -1
        tenth = 10 * done // max(total, 1)
        if not self._terminal and tenth == self._tenth:
            return
        self._tenth = tenth
        text = f"{stage} {done}/{total}" if total > 1 else f"{stage} ..."
        if 0 < done < total:
            text += f", about {time_left(done, total, now - self._started)} left"
        finished = done == total and total > 1
        end = "\n" if finished or not self._terminal else ""
        print(f"\r\x1b[K{text}" if self._terminal else text, end=end, file=sys.stderr, flush=True)


def time_left(done: int, total: int, elapsed: float) -> str:
    """Remaining time at the pace so far, as people say it."""
    seconds = round(elapsed / done * (total - done))
    return f"{seconds} s" if seconds < 100 else f"{round(seconds / 60)} min"
