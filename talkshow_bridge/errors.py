"""The one exception that means "the user can fix this"."""

from __future__ import annotations

from pathlib import Path


class InputError(ValueError):
    """Bad input of the user's: the message is one clear sentence, shown without a traceback (exit code 2)."""


def shown(path: object) -> str:
    """A file's name as it may stand in a message: printable, on one line, not endless."""
    name = path.name if isinstance(path, Path) and path.name else str(path)
    name = "".join(c if c.isprintable() else "?" for c in name)
    return name if len(name) <= 120 else name[:117] + "..."
