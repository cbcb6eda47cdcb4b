"""Signed content credentials (C2PA)."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from talkshow_bridge.errors import InputError


def sha256(path: str | os.PathLike[str]) -> str:
    """Of a file, 64 hex digits. Raises InputError when it cannot be read."""
    try:
        digest = hashlib.sha256()
        with Path(path).open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
        return digest.hexdigest()
    except OSError as error:
        raise InputError(f"'{path}' cannot be read: {error.strerror}.") from None
