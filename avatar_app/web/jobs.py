"""One render in a thread of its own, watched from outside."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

from avatar_app.pipeline import Cancelled, Progress, RenderResult

LEASE = 20.0  # s after which a job that nobody watches any more stops itself: the page was closed
POLL = 0.3  # s


class Job:
    """Runs ``work(progress)`` in a thread.

    stage, done, total: where it is.   result: the RenderResult at the end.   error: what it ended with instead.
    """

    def __init__(self, work: Callable[[Progress], RenderResult]):
        self.stage, self.done, self.total = "", 0, 1
        self.started = self.stage_started = time.monotonic()
        self.result: RenderResult | None = None
        self.error: BaseException | None = None
        self._stop = threading.Event()
        self._watched = time.monotonic()
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self._thread.start()

    def _run(self, work: Callable[[Progress], RenderResult]) -> None:
        try:
            self.result = work(self._progress)
        except BaseException as error:
            self.error = error

    def _progress(self, stage: str, done: int, total: int) -> None:
        if self._stop.is_set() or time.monotonic() - self._watched > LEASE:
            raise Cancelled
        if stage != self.stage:
            self.stage_started = time.monotonic()
        self.stage, self.done, self.total = stage, done, total

    def watch(self) -> Iterator[None]:
        """Yields a few times a second until the work is over. Leaving the loop early stops the work."""
        try:
            while self._thread.is_alive():
                self._thread.join(POLL)
                self._watched = time.monotonic()
                yield
        finally:
            self.stop()

    def stop(self) -> None:
        """Asks the work to end; it does so at its next step and cleans up behind itself."""
        self._stop.set()

    @property
    def seconds_left(self) -> float | None:
        """At the pace of the present stage; None while nothing is known."""
        if not 0 < self.done < self.total:
            return None
        return (time.monotonic() - self.stage_started) / self.done * (self.total - self.done)
