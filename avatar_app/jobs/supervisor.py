"""Keeps a worker process per device and lane alive while there is work for it."""

from __future__ import annotations

import logging
import os
import secrets
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from sqlite3 import Connection

from avatar_app.files import hold
from avatar_app.jobs.store import LANES, Jobs

ROOT = Path(__file__).parents[2]
POLL = 0.5  # s
SWEEP = 600.0  # s between two clean-ups
CALM = 2.0  # s before a worker that died is replaced
LOG_SIZE = 4 * 2**20  # bytes, beyond which a worker's log is put aside

LOCK = "workers.lock"  # in the folder of the jobs
DROPPED = 3  # exit code of a worker whose render did not stop by itself when its job was taken away

log = logging.getLogger(__name__)


@dataclass
class Slot:
    """One worker's place: what it does where, and the process that does so now."""

    lane: str
    device: str
    process: subprocess.Popen | None = None
    name: str = ""
    resting_until: float = 0.0


class Workers:
    """The workers of a server. Jobs that were running when the last server ended go on at once.

        with Workers(jobs): ...

    devices: torch devices, one worker for videos each; None takes every GPU, or the processor. Previews and motions
    have a worker of their own, so that they need not wait for a long video, and so have trainings.
    The processes start when there is work and end when there has been none for minutes, or with the server, however
    that ends; `<folder>/worker-*.log` keeps what they say. Of several servers on one folder one has workers; when it
    ends, the next one does.
    """

    def __init__(self, jobs: Jobs, devices: list[str] | None = None):
        self._jobs = jobs
        self._devices = devices
        self._slots: list[Slot] = []
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> Workers:
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="workers", daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        """Ends all workers at once. What they were at stays in the queue."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> Workers:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self) -> None:
        lock = self._turn()
        if lock is None:
            return
        swept = -SWEEP
        with closing(lock):
            while not self._stopping.is_set():
                try:
                    self._jobs.recover()
                    if not self._slots and any(map(self._jobs.waiting, LANES)):
                        self._slots = self._places()
                    for slot in self._slots:
                        self._look_after(slot)
                    if time.monotonic() - swept > SWEEP:
                        swept = time.monotonic()
                        self._jobs.sweep()
                except Exception:  # a full disk, a locked store: the next round may succeed
                    log.exception("looking after the jobs failed")
                self._stopping.wait(POLL)
            for slot in self._slots:
                self._end(slot)

    def _places(self) -> list[Slot]:
        devices = self._devices or all_devices()
        others = [lane for lane in LANES if lane != "video"]
        return [Slot("video", device) for device in devices] + [Slot(lane, devices[0]) for lane in others]

    def _turn(self) -> Connection | None:
        """Waits until no other server works on the folder; None when this one is stopped before."""
        lock = hold(self._jobs.folder / LOCK)
        if lock is None:
            log.info(
                "Another server works on the jobs in %s: this one shares its queue, and takes over when it ends.",
                self._jobs.folder,
            )
        while lock is None and not self._stopping.wait(POLL):
            lock = hold(self._jobs.folder / LOCK)
        return lock

    def _end(self, slot: Slot) -> None:
        if slot.process is not None:
            slot.process.kill()  # safe at any moment, and the quickest
            slot.process.wait()
            self._jobs.release(slot.name)
            slot.process = None

    def _look_after(self, slot: Slot) -> None:
        if slot.process is not None and slot.process.poll() is not None:
            crashed = slot.process.returncode not in (0, DROPPED)
            slot.process = None
            slot.resting_until = time.monotonic() + CALM * crashed
            self._jobs.release(slot.name, crashed)
        if slot.process is None and time.monotonic() > slot.resting_until and self._jobs.waiting(slot.lane):
            self._start(slot)

    def _start(self, slot: Slot) -> None:
        slot.name = f"{slot.lane}-{slot.device}-{secrets.token_hex(8)}"
        path = self._jobs.folder / f"worker-{slot.lane}-{slot.device.replace(':', '')}.log"
        if path.exists() and path.stat().st_size > LOG_SIZE:
            os.replace(path, path.with_suffix(".old.log"))
        module = [sys.executable, "-X", "faulthandler", "-m", "avatar_app.jobs.worker"]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        with open(path, "ab") as output:
            slot.process = subprocess.Popen(
                [*module, str(self._jobs.folder), slot.lane, slot.device, slot.name],
                stdin=subprocess.PIPE,  # closes when this process ends, and the worker with it
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,  # Ctrl-C is the server's to handle
            )


def all_devices() -> list[str]:
    """Every GPU as its torch device, or the processor."""
    import torch

    count = torch.cuda.device_count()
    return ["cuda"] if count == 1 else [f"cuda:{number}" for number in range(count)] or ["cpu"]
