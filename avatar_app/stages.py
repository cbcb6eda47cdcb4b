"""Stages of a render that work at the same time, each in a thread of its own, in order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from queue import Full, Queue
from threading import Event, Thread
from typing import TypeVar

Item = TypeVar("Item")
PATIENCE = 0.1  # seconds between two looks whether anybody still wants the items


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
