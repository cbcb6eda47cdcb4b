"""Where the time of a render goes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class Stopwatch:
    """Seconds per stage. Stages may nest; the inner one's time is not counted to the outer one.

    Threads may share a stopwatch: stages that run at the same time each have their full time, so that all together
    may exceed "total".
    """

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._spent: dict[str, float] = {}
        self._thread = threading.local()  # mark: when it was booked last; stack: its stages, the inner one last

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        self._book()
        stack = self._thread.stack
        stack.append(stage)
        try:
            yield
        finally:
            self._book()
            stack.pop()

    def each(self, stage: str, items: Iterable) -> Iterator:
        """Iterates over ``items``, booking the time that each takes to come."""
        iterator = iter(items)
        while True:
            with self(stage):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def _book(self) -> None:
        now, own = time.perf_counter(), self._thread.__dict__
        if stack := own.setdefault("stack", []):
            self._spent[stack[-1]] = self._spent.get(stack[-1], 0.0) + now - own["mark"]
        own["mark"] = now

    def seconds(self) -> dict[str, float]:
        spent = {stage: round(seconds, 3) for stage, seconds in self._spent.items()}
        return {**spent, "total": round(time.perf_counter() - self._started, 3)}
