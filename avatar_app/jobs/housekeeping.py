"""How long jobs are kept and how much room they may take."""

from __future__ import annotations

import math
import os
import re
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

from talkshow_bridge.errors import InputError

GIGABYTE = 2**30
PIECES_KEPT = 600.0  # s after the end for which a page that is playing the pieces may go on with them
JOB = re.compile(r"\.?[A-Za-z0-9_-]{24}")  # folder of a job; with a dot while it is deleted
PACKAGE = ".package-"  # zips of presenters, made for a download
ORPHAN_AGE = 600.0  # s before a folder without a job is nobody's: a submission is about to enter it otherwise


@dataclass(frozen=True)
class Limits:
    """Each may be set by an environment variable: AVATAR_APP_JOBS_KEEP_DAYS and so on. Raises InputError.

    keep_days: a job that ended longer ago is deleted.
    quota_gb: of all jobs together; beyond it the jobs that ended first are deleted.
    free_gb: what a render must leave free on the disk; it does not start or go on without.
    interruptions: how often a worker may die over a job, without having come further, before the job is given up.
    """

    keep_days: float = 30.0
    quota_gb: float = 20.0
    free_gb: float = 0.2
    interruptions: int = 3

    @classmethod
    def from_environment(cls) -> Limits:
        return cls(**{field.name: _from_environment(field.name, field.default) for field in fields(cls)})


def _from_environment(name: str, default: float) -> float:
    variable = f"AVATAR_APP_JOBS_{name.upper()}"
    text = os.environ.get(variable, "").strip()
    try:
        value = type(default)(text) if text else default
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise InputError(f"{variable} must be a number from 0 on, not {text!r}.")
    return value


def enough_room(folder: Path, limits: Limits, needed: int = 0) -> bool:
    """Whether the disk of ``folder`` has more free than must stay free, with ``needed`` bytes more on it."""
    return shutil.disk_usage(folder).free - needed > limits.free_gb * GIGABYTE


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder, which may change meanwhile."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except OSError:  # gone meanwhile
                continue
    return total


def outdated(ended: Iterable[tuple[str, float, Path]], total: int, limits: Limits, now: float) -> list[str]:
    """The ids to delete. ended: (id, time of its end, folder) of the jobs that are over; total: bytes of all jobs."""
    gone, room = [], limits.quota_gb * GIGABYTE
    for id, finished, folder in sorted(ended, key=lambda job: job[1]):
        old = now - finished > limits.keep_days * 86400
        if old or total > room:
            gone.append(id)
            total -= size_of(folder)
    return gone


def orphans(folder: Path, known: set[str]) -> list[Path]:
    """Folders of no job any more, and packages, that have not been touched for a while. Other files are not ours."""
    found = []
    for path in folder.iterdir():
        try:
            ours = JOB.fullmatch(path.name) if path.is_dir() else path.name.startswith((PACKAGE, "." + PACKAGE))
            if ours and path.name not in known and time.time() - path.stat().st_mtime > ORPHAN_AGE:
                found.append(path)
        except OSError:
            continue
    return found
