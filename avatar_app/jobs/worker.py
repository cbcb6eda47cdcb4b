"""The process that does the jobs of one lane on one device: `python -m avatar_app.jobs.worker FOLDER LANE DEVICE NAME`.

It may be killed at any moment: what it held is queued again, and the next worker goes on after the last finished piece.
Beside the render a watchman beats the heart. When the job is taken away (cancelled, deleted, given to another worker)
the render stops at its next step, or the process with it after `PATIENCE`. The standard input is a pipe from the
server: it closes when that ends, and so does this process.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from avatar_app.jobs.housekeeping import Limits, enough_room
from avatar_app.jobs.store import (
    COMPARISON,
    GIVEN_MOTION,
    LANES,
    MOTION,
    NO_ROOM,
    THUMBNAIL,
    VIDEO,
    WORK,
    Job,
    Jobs,
    is_full,
)
from avatar_app.jobs.supervisor import DROPPED
from talkshow_bridge.errors import InputError

if TYPE_CHECKING:
    from talkshow_bridge.motion import Motion

BEAT = 0.5  # s between two signs of life
PATIENCE = 1.5  # s that a render gets to stop by itself
TRAINING_PATIENCE = 60.0  # s that a training gets; it saves what it has
IDLE = 300.0  # s without a job after which the process ends and gives its memory back
POLL = 0.3  # s between two looks into the queue
OUR_FAULT = "That failed on our side; the log of the server tells why."

log = logging.getLogger("avatar_app.jobs")


class Taken(Exception):
    """The job is this worker's no more."""


class Watchman:
    """Beats the heart for one job in a thread, and tells by `taken` or ends the process when it is taken away."""

    def __init__(self, jobs: Jobs, job: Job, name: str):
        self._jobs, self._id, self._name = jobs, job.id, name
        self._patience = TRAINING_PATIENCE if job.kind == "train" else PATIENCE
        self.taken = threading.Event()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Watchman:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(BEAT):
            if not self._alive():
                self.taken.set()
                if not self._over.wait(self._patience):
                    os._exit(DROPPED)

    def _alive(self) -> bool:
        try:
            return self._jobs.heartbeat(self._id, self._name)
        except Exception:  # a full disk or a long transaction of another's: the lease decides
            log.warning("the job store did not answer", exc_info=True)
            return True


class Progress:
    """The callback of a render: tells the store where it is, a few times a second at most."""

    def __init__(self, jobs: Jobs, job: Job, name: str, watchman: Watchman):
        self._jobs, self._job, self._name, self._watchman = jobs, job, name, watchman
        self._stage, self._told = "", 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        if self._watchman.taken.is_set():
            raise Taken
        now = time.monotonic()
        if stage == self._stage and done < total and now - self._told < BEAT:
            return
        self._stage, self._told = stage, now
        if not enough_room(self._job.folder, self._jobs.limits):
            raise OSError(errno.ENOSPC, NO_ROOM)
        if not self._jobs.progress(self._job.id, self._name, stage, done, total):
            raise Taken


def work(jobs: Jobs, lane: str, device: str | None, name: str) -> None:
    """Does one job after the other until none has come for `IDLE`."""
    since = time.monotonic()
    while time.monotonic() - since < IDLE:
        id = jobs.claim(name, lane)
        if id is None:
            time.sleep(POLL)
        else:
            do(jobs, id, device, name)
            since = time.monotonic()


def do(jobs: Jobs, id: str, device: str | None, name: str) -> None:
    """One job, to whatever end."""
    job = jobs.claimed(id, name)
    if job is None:
        return
    error = None
    with Watchman(jobs, job, name) as watchman:
        try:
            make(job, device, Progress(jobs, job, name, watchman))
        except Taken:
            return
        except InputError as problem:
            error = str(problem)
        except Exception as problem:
            if watchman.taken.is_set():
                return
            error = NO_ROOM if is_full(problem) else OUR_FAULT
            log.exception("job %s failed", id)
    if error == NO_ROOM:
        shutil.rmtree(job.folder / WORK, ignore_errors=True)  # so that the next one has room
    jobs.finish(id, name, error)


def make(job: Job, device: str | None, progress: Progress) -> None:
    """The files of a job. Raises what `render` raises."""
    from avatar_app.pipeline import render
    from avatar_app.video import write_thumbnail
    from talkshow_bridge.motion import Motion

    if job.kind == "train":
        from avatar_app.jobs.training import train

        return train(job, device, progress)
    given = Motion.load(path) if (path := job.folder / GIVEN_MOTION).exists() else None
    if job.kind == "motion":
        return make_motion_file(job, given, device, progress)
    result = render(
        job.speech,
        out=job.folder / VIDEO,
        settings=job.settings,
        progress=progress,
        motion=given,
        preview=job.kind == "preview",
        device=device,
        work=job.folder / WORK,
        subtitles=job.subtitles,
    )
    write_thumbnail(result.path, job.folder / THUMBNAIL, result.duration / 3)
    for name in (MOTION, COMPARISON):
        if (made := job.folder / WORK / name).exists():
            shutil.copyfile(made, job.folder / name)


def make_motion_file(job: Job, given: Motion | None, device: str | None, progress: Progress) -> None:
    from avatar_app.files import unfinished
    from avatar_app.pipeline import best_device, fit_motion, make_motion, presenter_for
    from talkshow_bridge.audio import load_speech

    progress("anchor", 0, 1)
    anchor = presenter_for(job.settings, given)
    progress("motion", 0, 1)
    speech, fps = job.speech and load_speech(job.speech), anchor.manifest.fps
    if given is None:
        motion = make_motion(speech, job.settings, fps, device or best_device())
    else:
        motion = fit_motion(given, speech, fps)
    with unfinished(job.folder / MOTION) as temporary:
        motion.save(temporary)
    progress("motion", 1, 1)


def end_with_server(jobs: Jobs, name: str) -> None:
    """Waits for the end of the standard input, then gives the job back and ends the process."""
    while os.read(0, 4096):  # without `sys.stdin`, whose lock a forked process would wait for
        pass
    try:
        jobs.release(name)
    finally:
        os._exit(0)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="avatar_app.jobs.worker", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("lane", choices=LANES)
    parser.add_argument("device", help="torch device, or auto")
    parser.add_argument("name", help="under which it claims jobs")
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    device = None if options.device == "auto" else options.device
    jobs = Jobs(options.folder, Limits.from_environment())
    threading.Thread(target=end_with_server, args=(jobs, options.name), daemon=True).start()
    work(jobs, options.lane, device, options.name)


if __name__ == "__main__":
    main()
