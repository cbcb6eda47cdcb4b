"""What an unfinished render keeps on the disk, so that another process can go on where it was broken off."""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import numpy as np

from avatar_app.files import unfinished, write_json
from talkshow_bridge.errors import InputError
from talkshow_bridge.motion import Motion

STATES_KEPT = 3  # of the observers, one a piece: the newest piece may not be complete yet


class WorkFolder:
    """render.json (ingredients, id, plan), motion.npz, the pieces of the video and what its observers had seen.

    ingredients: what decides the frames, as JSON. A folder that was begun with others is emptied.   id: of the video;
    None takes the one it was begun with, or a new one.
    Raises InputError for a folder that holds anything but a render.
    """

    def __init__(self, path: Path, ingredients: dict, id: str | None = None):
        self.path, self._table = path, path / "render.json"
        path.mkdir(parents=True, exist_ok=True)
        for stale in path.glob(".*.part"):
            stale.unlink(missing_ok=True)
        if not self._table.exists() and any(path.iterdir()):
            raise InputError(f"'{path}' holds other files; please name a new or an empty folder for the work.")
        self._begun = begun = _read(self._table)
        if begun.get("ingredients") != json.loads(json.dumps(ingredients)) or id not in (None, begun.get("id")):
            for entry in set(path.iterdir()) - {self._table}:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            self._begun = {}
            self._note(ingredients=ingredients, id=id or secrets.token_hex(16))
        self.id: str = self._begun["id"]

    def _note(self, **facts: object) -> None:
        self._begun |= facts
        write_json(self._table, self._begun)

    def plan(self, make: Callable[[], dict]) -> dict:
        """How much the first run computed at once: the pictures' last bits depend on it."""
        if "plan" not in self._begun:
            self._note(plan=make())
        return self._begun["plan"]

    def replan(self, part: str, plan: dict) -> None:
        """What a part of the plan, "body" or "face", has become since memory ran out."""
        if self._begun["plan"][part] != plan:
            self._note(plan=self._begun["plan"] | {part: plan})

    @property
    def planned(self) -> dict | None:
        """The kept plan, None where none was needed."""
        return self._begun.get("plan")

    def motion(self, make: Callable[[], Motion]) -> Motion:
        """The motion of the first run; `make` is called only there."""
        path = self.path / "motion.npz"
        if not path.exists():
            with unfinished(path) as temporary:
                make().save(temporary)
        return Motion.load(path)

    def keep(self, frames: int, state: dict) -> None:
        """What the observers have seen after so many frames; call it before the piece that ends there is complete.

        A power cut may cost it, and then the report is about the rest of the video; waiting for the disk costs more."""
        write_json(self.path / f"seen-{frames:09d}.json", state, durable=False)
        for old in sorted(self.path.glob("seen-*.json"))[:-STATES_KEPT]:
            old.unlink()

    def kept(self, frames: int) -> dict | None:
        """The state that was kept at this frame, or None."""
        return _read(self.path / f"seen-{frames:09d}.json") or None


def _read(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not there, or damaged
        return {}


@contextmanager
def folder_for(out: Path, work: Path | None) -> Iterator[Path]:
    """``work``, or a temporary folder beside ``out`` that is gone after the block."""
    if work is not None:
        yield Path(work).absolute()
        return
    with tempfile.TemporaryDirectory(prefix=f".{out.stem[:40]}.", suffix=".part", dir=out.parent) as folder:
        yield Path(folder)


def motion_digest(motion: Motion) -> str:
    """sha256 over all numbers of a motion."""
    digest = hashlib.sha256(str(motion.fps).encode())
    for part in fields(motion):
        value = getattr(motion, part.name)
        if isinstance(value, np.ndarray):
            digest.update(part.name.encode() + value.tobytes())
    return digest.hexdigest()
