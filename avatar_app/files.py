"""Files that are there whole or not at all, and files that lock a folder."""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def unfinished(path: Path, durable: bool = True) -> Iterator[Path]:
    """A temporary name beside ``path``; what lies there at the end of the block replaces it, on an error it is removed.

    durable: the bytes are on the disk before the name is, so that not even a power cut leaves half a file under it.
    """
    temporary = path.with_name(f".{path.stem[:40]}.{secrets.token_hex(6)}{path.suffix}.part")
    try:
        yield temporary
        if durable:
            with open(temporary, "r+b") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, facts: dict, indent: int | None = None, durable: bool = True) -> Path:
    with unfinished(path, durable) as temporary:
        temporary.write_text(json.dumps(facts, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def hold(path: Path) -> sqlite3.Connection | None:
    """A lock that is lost when it is closed or its process ends in whatever way; None while another holds it."""
    connection = sqlite3.connect(path, timeout=0, isolation_level=None)
    try:
        connection.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError:
        connection.close()
        return None
    return connection
