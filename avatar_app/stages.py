"""Work of a render that goes on at the same time: its stages, in order, and the single frames of a stage."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from queue import Full, Queue
from threading import Event, Thread
from typing import TypeVar

Item = TypeVar("Item")
PATIENCE = 0.1  # seconds between two looks whether anybody still wants the items


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def workers() -> ThreadPoolExecutor:
    """One thread a core, for work on single frames that releases the GIL."""
    return ThreadPoolExecutor(cores(), "frames")


def each(work: Callable, *items: Iterable) -> list:
    """[work(...) for ... in zip(*items)], on all cores; the first error is raised when all are done."""
    futures = [workers().submit(work, *arguments) for arguments in zip(*items, strict=True)]
    errors = [future.exception() for future in futures]
    for error in filter(None, errors):
        raise error
    return [future.result() for future in futures]


def begun(work: Callable[[], Item]) -> Callable[[], Item]:
    """Starts work() in a thread of its own; what is returned waits for its result or raises its error."""
    pool = ThreadPoolExecutor(1, "begun")
    future = pool.submit(work)
    pool.shutdown(wait=False)
    return future.result


def ahead(items: Iterable[Item], size: int) -> Iterator[Item]:
    """The same items, made by a thread of their own up to `size` ahead of their use.

    An error is raised where its item would have come. The thread starts with the first item that is asked for and has
    ended when the iterator is exhausted or closed; then `items` is closed too.
    """
    made: Queue = Queue(size)
    unwanted = Event()

    def put(item: Item | None, error: BaseException | None = None, last: bool = False) -> None:
        while not unwanted.is_set():
            try:
                return made.put((item, error, last), timeout=PATIENCE)
            except Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put(item)
                if unwanted.is_set():
                    break
            put(None, last=True)
        except BaseException as error:  # whatever it is, it belongs to who waits for the item
            put(None, error)
        finally:
            getattr(items, "close", lambda: None)()

    thread = Thread(target=work, name="ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, error, last = made.get()
            if error is not None:
                raise error
            if last:
                return
            yield item
    finally:
        unwanted.set()
        thread.join()
