"""The jobs of all visitors: a SQLite table, and a folder for the files of each.

    <folder>/jobs.db
             <id>/speech.wav  motion.npz  video.mp4  video.json  thumbnail.jpg  work/piece-00000.mp4 ...

Every change of state is one SQL transaction that names the state it starts from, so that however many servers and
workers share the folder, a job is claimed once and ends once. A worker that has lost its job (cancelled, deleted, given
to another) learns it from the answer to its next progress or heartbeat.

Owners take turns: a job enters the round after its owner's last waiting one, at the earliest the round that is being
served, and jobs start by round and, within one, as they came. Whoever queues thirty delays another's only job by one.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from avatar_app.files import write_json
from avatar_app.jobs.housekeeping import PIECES_KEPT, Limits, enough_room, orphans, outdated, size_of
from avatar_app.settings import RenderSettings
from avatar_app.subtitles import load_subtitles
from talkshow_bridge.audio import load_speech
from talkshow_bridge.errors import InputError
from talkshow_bridge.motion import Motion

Kind = Literal["video", "preview", "motion", "train"]
State = Literal["queued", "running", "done", "failed", "cancelled"]
KINDS: tuple[Kind, ...] = ("video", "preview", "motion")  # what is made of a speech
STATES: tuple[State, ...] = ("queued", "running", "done", "failed", "cancelled")
LANES: dict[str, tuple[Kind, ...]] = {"video": ("video",), "quick": ("preview", "motion"), "train": ("train",)}
PACED = ("frames", "training")  # stages that take most of the time, at an even pace

HOME = Path(__file__).parents[2] / "work" / "jobs"
WORK, VIDEO, SIDECAR, THUMBNAIL = "work", "video.mp4", "video.json", "thumbnail.jpg"
MOTION, GIVEN_MOTION = "motion.npz", "given-motion.npz"
SUBTITLES, COMPARISON, ORDER = "subtitles.vtt", "face.jpg", "order.json"
LEASE = 30.0  # s without a heartbeat after which a running job is given to another worker
BUSY = 30.0  # s to wait for another process's transaction
NO_ROOM = "The disk is full: please delete old videos or make room, then try again."
GIVEN_UP = "The render was broken off {} times at the same place; the memory of the machine may be too small for it."
SPEECH_SUFFIXES = {".aac", ".flac", ".m4a", ".mkv", ".mov", ".mp3", ".mp4", ".oga", ".ogg", ".opus", ".wav", ".webm"}

_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL, settings TEXT NOT NULL,
    speech TEXT, duration REAL NOT NULL, expected REAL NOT NULL, state TEXT NOT NULL, turn INTEGER NOT NULL,
    stage TEXT NOT NULL DEFAULT '', done INTEGER NOT NULL DEFAULT 0, total INTEGER NOT NULL DEFAULT 1,
    created REAL NOT NULL, started REAL, finished REAL, error TEXT,
    worker TEXT, heartbeat REAL, stage_started REAL, stage_first INTEGER,
    furthest INTEGER NOT NULL DEFAULT 0, interruptions INTEGER NOT NULL DEFAULT 0, round INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS by_owner ON jobs (owner, created);
CREATE INDEX IF NOT EXISTS by_state ON jobs (state, turn);
"""
_ADDED = "ALTER TABLE jobs ADD COLUMN round INTEGER NOT NULL DEFAULT 0"  # to tables of version 0.1.0


@dataclass(frozen=True)
class Job:
    """One job as it stood when it was asked for. Times are seconds since 1970.

    stage, done, total: where it is; stages are "speech", "anchor", "motion" and "frames"; of a training
    "checking", "training" and "packing".
    position: jobs that start before this queued one, 0 = the next; None when it is not queued.
    seconds_left: until its end, waiting included; None once it is over.   error: one sentence, of a failed job.
    duration: of the speech in s.   folder: of its files.   video, sidecar, thumbnail, motion: None while missing.
    comparison: the face before and after its pass, side by side.   subtitles: WebVTT.   None where there are none.
    segments: the finished pieces of the video, in order, each playable by itself.
    """

    id: str
    owner: str
    kind: Kind
    name: str
    state: State
    stage: str
    done: int
    total: int
    position: int | None
    seconds_left: float | None
    created: float
    started: float | None
    finished: float | None
    error: str | None
    settings: RenderSettings
    duration: float
    folder: Path
    speech: Path | None
    video: Path | None
    sidecar: Path | None
    thumbnail: Path | None
    motion: Path | None
    comparison: Path | None
    subtitles: Path | None
    segments: tuple[Path, ...]

    @property
    def over(self) -> bool:
        return self.state not in ("queued", "running")


class Jobs:
    """The store. Cheap to make, safe to use from any thread and any number of processes.

    folder: default AVATAR_APP_JOBS or, without it, work/jobs in the checkout.   limits: default from the environment.
    Everything that takes an owner treats the jobs of others as if they did not exist.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None, limits: Limits | None = None):
        self.folder = Path(folder or os.environ.get("AVATAR_APP_JOBS") or HOME).expanduser().absolute()
        self.limits = limits or Limits.from_environment()
        self._local = threading.local()
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._connection.executescript(_SCHEMA)
            with suppress(sqlite3.OperationalError):  # it is there already
                self._connection.execute(_ADDED)
        except (OSError, sqlite3.Error) as error:
            raise InputError(f"Jobs cannot be kept in {str(self.folder)!r}: {error}.") from None

    # What visitors do

    def submit(
        self,
        speech: str | os.PathLike[str] | None,
        settings: RenderSettings,
        owner: str,
        kind: Kind = "video",
        motion: str | os.PathLike[str] | None = None,
        name: str = "",
        subtitles: str | os.PathLike[str] | None = None,
    ) -> str:
        """Checks everything, copies the files into a folder of the job's own and queues it; returns its id.

        kind: "video", "preview" (the moving mesh) or "motion" (the motion file alone).   motion: .npz to use instead of
        generating one, as of an earlier preview; with it speech may be None.   name: for people, default the file's.
        subtitles: .srt or .vtt, for the video to carry.
        Raises InputError: unusable speech, motion, subtitles, anchor or settings; no room.
        """
        from avatar_app.pipeline import presenter_for

        if kind not in KINDS:
            raise InputError(f"Unknown kind of job {kind!r}: please choose one of {', '.join(KINDS)}.")
        if not owner:
            raise ValueError("a job needs an owner")
        if speech is None and motion is None:
            raise InputError("Please choose a speech file first.")
        given = None if motion is None else Motion.load(motion)
        anchor = presenter_for(settings, given)
        duration = given.duration if speech is None else load_speech(speech).duration
        lines = None if subtitles is None else load_subtitles(subtitles).until(duration)
        id = secrets.token_urlsafe(18)
        copy = None if speech is None else "speech" + _safe_suffix(Path(speech))
        with self._new_folder(id) as folder:
            if copy:
                shutil.copyfile(speech, folder / copy)
            if motion is not None:
                shutil.copyfile(motion, folder / GIVEN_MOTION)
            if lines is not None:
                (folder / SUBTITLES).write_text(lines.as_vtt(), encoding="utf-8")
            self._enter(
                id=id,
                owner=owner,
                kind=kind,
                name=_readable(name or Path(speech or motion).stem),
                settings=json.dumps(settings.to_dict()),
                speech=copy,
                duration=duration,
                expected=_expected(kind, settings, anchor, duration),
            )
        return id

    def submit_training(self, order: dict, owner: str, name: str, anchor: str, seconds: float) -> str:
        """Queues the training of a presenter; returns the job's id.

        order: what `avatar_app.jobs.training` is to do, as JSON.   name, anchor: of the presenter and its id.
        seconds: that it will take.   Raises InputError when there is no room.
        """
        id = secrets.token_urlsafe(18)
        with self._new_folder(id) as folder:
            write_json(folder / ORDER, order)
            settings = json.dumps(RenderSettings(anchor=anchor).to_dict())
            facts = {"id": id, "owner": owner, "kind": "train", "name": _readable(name), "settings": settings}
            self._enter(**facts, duration=seconds, expected=seconds)
        return id

    def get(self, id: str, owner: str) -> Job:
        """Raises InputError "There is no such job." for unknown ids and for other owners' alike."""
        return self._job(self._row(id, owner), self._waiting())

    def list(
        self, owner: str, text: str = "", state: State | None = None, kinds: tuple[Kind, ...] = KINDS
    ) -> list[Job]:
        """The owner's jobs, newest first. text: part of the name or of the anchor's id, in any case."""
        rows = self._connection.execute(
            "SELECT * FROM jobs WHERE owner = ? AND (? IS NULL OR state = ?) ORDER BY created DESC, turn DESC",
            (owner, state, state),
        ).fetchall()
        waiting, wanted = self._waiting(), text.casefold().strip()
        jobs = (self._job(row, waiting) for row in rows if row["kind"] in kinds)
        return [job for job in jobs if wanted in f"{job.name}\n{job.settings.anchor or ''}".casefold()]

    def cancel(self, id: str, owner: str) -> bool:
        """Takes a queued or running job out; a worker stops within 3 s. False when it was over already."""
        self._row(id, owner)
        return self._change(
            "UPDATE jobs SET state = 'cancelled', finished = ?, worker = NULL"
            " WHERE id = ? AND state IN ('queued', 'running')",
            (time.time(), id),
        )

    def retry(self, id: str, owner: str) -> bool:
        """Queues a failed or cancelled job again, as if it came now; it goes on where it stopped. False for others."""
        kind = self._row(id, owner)["kind"]
        with self._transaction():
            return self._change(
                "UPDATE jobs SET state = 'queued', turn = (SELECT max(turn) + 1 FROM jobs), round = ?, error = NULL,"
                " finished = NULL, started = NULL, stage = '', worker = NULL, interruptions = 0"
                " WHERE id = ? AND state IN ('failed', 'cancelled')",
                (_next_round(owner, _lane(kind, self._waiting())), id),
            )

    def delete(self, id: str, owner: str) -> None:
        """Removes a job in whatever state, with all its files."""
        self._row(id, owner)
        self._remove(id)

    # What the server and its workers do

    def claim(self, worker: str, lane: str = "video") -> str | None:
        """The id of the next queued job of a lane, now running and this worker's; None when there is none."""
        if not self.waiting(lane):  # no lock for nothing
            return None
        now, kinds = time.time(), LANES[lane]
        with self._transaction() as connection:
            row = connection.execute(
                f"SELECT id FROM jobs WHERE state = 'queued' AND kind IN ({_marks(kinds)})"
                " ORDER BY round, turn LIMIT 1",
                kinds,
            ).fetchone()
            if row is None:
                return None
            connection.execute(
                "UPDATE jobs SET state = 'running', worker = ?, heartbeat = ?, started = coalesce(started, ?),"
                " stage = '', stage_started = ? WHERE id = ?",
                (worker, now, now, now, row["id"]),
            )
        return row["id"]

    def claimed(self, id: str, worker: str) -> Job | None:
        """The job that a worker holds; None when it holds it no more."""
        row = self._connection.execute(f"SELECT * FROM jobs WHERE {_HELD}", (id, worker)).fetchone()
        return row and self._job(row, [])

    def heartbeat(self, id: str, worker: str) -> bool:
        """A worker's sign of life; False when the job is its no more."""
        return self._change(f"UPDATE jobs SET heartbeat = ? WHERE {_HELD}", (time.time(), id, worker))

    def progress(self, id: str, worker: str, stage: str, done: int, total: int) -> bool:
        """Where a running job is; False when it is this worker's no more."""
        now = time.time()
        return self._change(
            "UPDATE jobs SET heartbeat = :now, done = :done, total = :total,"
            " interruptions = CASE WHEN :paced AND :done > furthest THEN 0 ELSE interruptions END,"
            " furthest = CASE WHEN :paced THEN max(furthest, :done) ELSE furthest END,"
            " stage_started = CASE WHEN stage = :stage THEN stage_started ELSE :now END,"
            " stage_first = CASE WHEN stage = :stage THEN stage_first ELSE :done END, stage = :stage"
            " WHERE id = :id AND worker = :worker AND state = 'running'",
            {
                "now": now,
                "done": done,
                "total": total,
                "stage": stage,
                "paced": stage in PACED,
                "id": id,
                "worker": worker,
            },
        )

    def finish(self, id: str, worker: str, error: str | None = None) -> bool:
        """Ends a running job: done, or failed with a sentence. False when it was this worker's no more."""
        state = "done" if error is None else "failed"
        return self._change(
            f"UPDATE jobs SET state = ?, error = ?, finished = ?, worker = NULL WHERE {_HELD}",
            (state, error, time.time(), id, worker),
        )

    def release(self, worker: str, crashed: bool = False) -> None:
        """Queues what a worker still holds again, at its old place. crashed: count it as an interruption."""
        self._requeue("worker = ?", (worker,), crashed)

    def recover(self) -> None:
        """Queues the jobs whose workers have not been heard of for `LEASE` again, at their old places."""
        self._requeue("heartbeat < ?", (time.time() - LEASE,), crashed=True)

    def waiting(self, lane: str = "video") -> bool:
        """Whether a lane has a queued job."""
        kinds = LANES[lane]
        query = f"SELECT 1 FROM jobs WHERE state = 'queued' AND kind IN ({_marks(kinds)}) LIMIT 1"
        return self._connection.execute(query, kinds).fetchone() is not None

    def sweep(self) -> None:
        """Deletes what is too old or beyond the quota, pieces of videos that are whole, and folders of no job."""
        now = time.time()
        rows = self._connection.execute("SELECT id, state, finished FROM jobs").fetchall()
        for row in rows:
            if row["state"] == "done" and now - row["finished"] > PIECES_KEPT:
                shutil.rmtree(self.folder / row["id"] / WORK, ignore_errors=True)
        ended = [(row["id"], row["finished"], self.folder / row["id"]) for row in rows if row["finished"]]
        for id in outdated(ended, sum(size_of(self.folder / row["id"]) for row in rows), self.limits, now):
            self._remove(id)
        for stray in orphans(self.folder, {row["id"] for row in rows}):
            shutil.rmtree(stray, ignore_errors=True) if stray.is_dir() else stray.unlink(missing_ok=True)

    # How

    @property
    def _connection(self) -> sqlite3.Connection:
        connection = getattr(self._local, "connection", None)
        if connection is None or self._local.process != os.getpid():
            connection = sqlite3.connect(self.folder / "jobs.db", timeout=BUSY, isolation_level=None)
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")  # what was answered survives a power cut
            self._local.connection, self._local.process = connection, os.getpid()
        return connection

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        connection = self._connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")

    def _change(self, statement: str, values: tuple | dict) -> bool:
        return self._connection.execute(statement, values).rowcount > 0

    @contextmanager
    def _new_folder(self, id: str) -> Iterator[Path]:
        """A folder that is gone again when the block fails; a full disk becomes an InputError."""
        if not enough_room(self.folder, self.limits):
            raise InputError(NO_ROOM)
        folder = self.folder / id
        try:
            folder.mkdir(mode=0o700)
            yield folder
        except BaseException as error:
            shutil.rmtree(folder, ignore_errors=True)
            if is_full(error):
                raise InputError(NO_ROOM) from None
            raise

    def _enter(self, **columns: object) -> None:
        columns |= {"state": "queued", "created": time.time()}
        with self._transaction() as connection:
            columns["round"] = _next_round(columns["owner"], _lane(columns["kind"], self._waiting()))
            connection.execute(
                f"INSERT INTO jobs ({', '.join(columns)}, turn)"
                f" VALUES ({_marks(columns)}, (SELECT coalesce(max(turn), 0) + 1 FROM jobs))",
                tuple(columns.values()),
            )

    def _row(self, id: str, owner: str) -> sqlite3.Row:
        row = self._connection.execute("SELECT * FROM jobs WHERE id = ? AND owner = ?", (id, owner)).fetchone()
        if row is None:
            raise InputError("There is no such job.")
        return row

    def _waiting(self) -> list[sqlite3.Row]:
        """All jobs that are not over, as they take their turns."""
        return self._connection.execute(
            "SELECT * FROM jobs WHERE state IN ('running', 'queued') ORDER BY state = 'queued', round, turn"
        ).fetchall()

    def _requeue(self, which: str, values: tuple, crashed: bool) -> None:
        with self._transaction() as connection:
            connection.execute(
                "UPDATE jobs SET state = 'queued', worker = NULL, interruptions = interruptions + ?"
                f" WHERE state = 'running' AND {which}",
                (int(crashed), *values),
            )
            connection.execute(
                "UPDATE jobs SET state = 'failed', finished = ?, error = ?"
                " WHERE state = 'queued' AND interruptions > ?",
                (time.time(), GIVEN_UP.format(self.limits.interruptions + 1), self.limits.interruptions),
            )

    def _remove(self, id: str) -> None:
        self._change("DELETE FROM jobs WHERE id = ?", (id,))
        folder, waste = self.folder / id, self.folder / f".{id}"
        try:
            os.replace(folder, waste)  # a worker that is still writing finds nothing to write to
        except OSError:
            waste = folder
        shutil.rmtree(waste, ignore_errors=True)

    def _job(self, row: sqlite3.Row, waiting: list[sqlite3.Row]) -> Job:
        folder, state = self.folder / row["id"], row["state"]
        ahead = _ahead(row, waiting) if state == "queued" else []
        left = None
        if state in ("queued", "running"):
            workers = max(1, sum(job["state"] == "running" for job in ahead))
            left = _seconds_left(row) + sum(map(_seconds_left, ahead)) / workers
        motion, given, thumbnail, comparison, subtitles = (
            path if (path := folder / name).exists() else None
            for name in (MOTION, GIVEN_MOTION, THUMBNAIL, COMPARISON, SUBTITLES)
        )
        done = state == "done" and row["kind"] in ("video", "preview")
        return Job(
            **{name: row[name] for name in _PLAIN},
            position=sum(job["state"] == "queued" for job in ahead) if state == "queued" else None,
            seconds_left=left,
            settings=RenderSettings.from_dict(json.loads(row["settings"])),
            folder=folder,
            speech=folder / row["speech"] if row["speech"] else None,
            video=folder / VIDEO if done else None,
            sidecar=folder / SIDECAR if done else None,
            thumbnail=thumbnail,
            motion=motion or given,
            comparison=comparison,
            subtitles=subtitles,
            segments=tuple(sorted((folder / WORK).glob("piece-*.mp4"))),
        )


_HELD = "id = ? AND worker = ? AND state = 'running'"
_PLAIN = ("id", "owner", "kind", "name", "state", "stage", "done", "total", "created", "started", "finished")
_PLAIN += ("error", "duration")


def is_full(error: BaseException) -> bool:
    """Whether an error means that the disk is full."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    words = ("no space left", "disk is full", "disk quota exceeded")
    return any(word in str(error).lower() for word in words)


def _marks(values) -> str:
    return ", ".join("?" * len(values))


def _expected(kind: Kind, settings: RenderSettings, anchor, duration: float) -> float:
    from avatar_app.estimate import expected_motion_seconds, expected_seconds
    from avatar_app.pipeline import best_device

    if kind == "motion":
        return expected_motion_seconds(duration)
    mode = settings.preset if kind == "video" else "preview"
    return expected_seconds(anchor.id, mode, round(duration * anchor.manifest.fps), best_device())


def _safe_suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    return suffix if suffix in SPEECH_SUFFIXES else ""


def _readable(name: str) -> str:
    name = " ".join("".join(c if c.isprintable() else " " for c in name).split())
    return name[:120] or "speech"


def _lane(kind: Kind, jobs: list[sqlite3.Row]) -> list[sqlite3.Row]:
    """Those that are done by the same workers as jobs of this kind."""
    kinds = next(kinds for kinds in LANES.values() if kind in kinds)
    return [job for job in jobs if job["kind"] in kinds]


def _next_round(owner: str, lane: list[sqlite3.Row]) -> int:
    """The round of a job that its owner adds to a lane of jobs that are not over."""
    waiting = [job["round"] for job in lane if job["state"] == "queued"]
    served = max((job["round"] for job in lane if job["state"] == "running"), default=min(waiting, default=0))
    return max([served, *(job["round"] + 1 for job in lane if job["owner"] == owner)])


def _ahead(row: sqlite3.Row, waiting: list[sqlite3.Row]) -> list[sqlite3.Row]:
    """The jobs of a queued one's lane that run or come before it."""
    place = (row["round"], row["turn"])
    lane = _lane(row["kind"], waiting)
    return [job for job in lane if job["state"] == "running" or (job["round"], job["turn"]) < place]


def _seconds_left(row: sqlite3.Row) -> float:
    """At the pace of its frames so far; before there is one, what was expected at the start."""
    if row["state"] == "queued":
        return row["expected"]
    now = time.time()
    made = row["done"] - (row["stage_first"] or 0)
    if row["stage"] in PACED and made > 0:
        return max(0.0, (row["heartbeat"] - row["stage_started"]) / made * (row["total"] - row["done"]))
    return max(1.0, row["expected"] - (now - row["started"]))
