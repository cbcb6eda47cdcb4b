"""Workers: whatever happens to them, no job is lost, made twice or different."""

import errno
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from avatar_app import RenderSettings, render
from avatar_app.jobs import Jobs, Limits, Workers, worker
from avatar_app.jobs.store import NO_ROOM
from avatar_app.video import VideoError, probe
from tests.speech import write_speech


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("AVATAR_APP_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    return write_speech(tmp_path_factory.mktemp("speech") / "speech.wav", seconds=2.4)


@pytest.fixture
def settings(tiny_anchor):
    """Of videos that are the same to the byte whenever they are made."""
    return RenderSettings(anchor=str(tiny_anchor.folder), watermark=False, credentials=False)


@pytest.fixture
def jobs(tmp_path):
    return Jobs(tmp_path / "jobs", Limits(interruptions=100))


def finish(jobs, ids, seconds=1200):
    deadline = time.monotonic() + seconds
    while not all(jobs.get(id, "ann").over for id in ids):
        assert time.monotonic() < deadline, [jobs.get(id, "ann") for id in ids]
        time.sleep(0.2)
    return [jobs.get(id, "ann") for id in ids]


def kill_at_random(jobs, speech, settings, tmp_path, kills, count, seed):
    """Renders `count` jobs while the worker is killed `kills` times, the server once; returns how far it was then."""
    whole = render(speech, out=tmp_path / "whole.mp4", settings=settings).path.read_bytes()
    ids = [jobs.submit(speech, settings, "ann") for _ in range(count)]
    moments, far = random.Random(seed), []
    workers = Workers(jobs, ["cpu"]).start()
    try:
        while len(far) < kills and not all(jobs.get(id, "ann").over for id in ids):
            running = jobs.list("ann", state="running")
            slot = running and workers._slots[0]
            if not slot or slot.process is None:
                time.sleep(0.02)
                continue
            if moments.random() < 0.5 and running[0].stage != "frames":  # half of them not before the first pictures
                time.sleep(0.02)
                continue
            time.sleep(moments.uniform(0, 0.5))
            slot.process.kill()
            far.append((running[0].stage, running[0].done))
            if len(far) == kills // 2:
                workers.stop()
                workers = Workers(jobs, ["cpu"]).start()
            else:
                slot.process.wait()
                time.sleep(0.6)
        done = finish(jobs, ids)
    finally:
        workers.stop()
    assert [(job.state, job.error) for job in done] == [("done", None)] * count
    assert all(job.video.read_bytes() == whole for job in done)
    assert sorted(job.id for job in jobs.list("ann")) == sorted(ids)
    for job in done:
        assert not list(job.folder.glob(".*")) and probe(job.thumbnail).frames == 1
    return far


def test_two_kills(jobs, speech, settings, tmp_path):
    assert len(kill_at_random(jobs, speech, settings, tmp_path, kills=2, count=1, seed=1)) == 2


@pytest.mark.slow
def test_twenty_kills(jobs, speech, settings, tmp_path):
    far = kill_at_random(jobs, speech, settings, tmp_path, kills=20, count=8, seed=time.time_ns())
    assert len(far) == 20, far


def test_a_job_in_this_process_with_its_pieces(jobs, speech, settings):
    id = jobs.submit(speech, settings, "ann")
    jobs.claim("w")
    worker.do(jobs, id, "cpu", "w")
    job = jobs.get(id, "ann")
    facts = probe(job.video)
    assert (job.state, facts.frames, facts.audio_codec) == ("done", 60, "aac")
    assert job.sidecar.exists() and job.motion.exists() and job.thumbnail.exists()

    assert [probe(piece).frames for piece in job.segments] == [50, 10]

    take = jobs.submit(speech, settings, "ann", "motion", motion=job.motion)
    assert jobs.claim("w", "quick") == take
    worker.do(jobs, take, "cpu", "w")
    again = jobs.get(take, "ann")
    assert again.state == "done" and again.video is None and again.motion.stat().st_size == job.motion.stat().st_size


SERVER = """
import sys
from avatar_app.jobs import Jobs, Workers
with Workers(Jobs(sys.argv[1]), ["cpu"]):
    sys.stdin.read()
"""


def worker_parents(folder: Path) -> list[int]:
    """The parents of all worker processes of a jobs folder."""
    parents = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"avatar_app.jobs.worker\0{folder}\0video".encode() in (process / "cmdline").read_bytes():
                parents[int(process.name)] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # gone meanwhile
            continue
    return [parent for parent in parents.values() if parent not in parents]  # a worker's child is about to be ffmpeg


def wait_until(what, seconds=300):
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="counts processes in /proc")
def test_of_two_servers_one_works_and_the_other_takes_over_when_it_is_killed(jobs, speech, settings, tmp_path):
    whole = render(speech, out=tmp_path / "whole.mp4", settings=settings).path.read_bytes()
    ids = [jobs.submit(speech, settings, "ann") for _ in range(2)]
    command, root = [sys.executable, "-c", SERVER, str(jobs.folder)], Path(__file__).parents[1]
    servers = {process.pid: process for process in (subprocess.Popen(command, cwd=root, stdin=-1) for _ in range(2))}
    try:
        wait_until(lambda: jobs.get(ids[0], "ann").segments)
        (first,) = worker_parents(jobs.folder)
        servers[first].kill()
        (second,) = set(servers) - {first}
        wait_until(lambda: worker_parents(jobs.folder) == [second], 30)
        assert [job.state for job in finish(jobs, ids)] == ["done"] * 2
        assert worker_parents(jobs.folder) == [second]
        assert all(jobs.get(id, "ann").video.read_bytes() == whole for id in ids)
    finally:
        for server in servers.values():
            server.stdin.close()
            server.wait(20)
    assert worker_parents(jobs.folder) == []


def endless(job, device, progress):
    while True:
        progress("frames", 1, 9)
        time.sleep(0.05)


def test_a_cancelled_render_stops_within_three_seconds(jobs, speech, settings, monkeypatch):
    id = jobs.submit(speech, settings, "ann")
    jobs.claim("w")
    monkeypatch.setattr(worker, "make", endless)
    thread = threading.Thread(target=worker.do, args=(jobs, id, "cpu", "w"))
    thread.start()
    time.sleep(0.3)
    started = time.monotonic()
    assert jobs.cancel(id, "ann")
    thread.join(3)
    assert not thread.is_alive() and time.monotonic() - started < 3
    assert jobs.get(id, "ann").state == "cancelled"


def test_a_render_that_does_not_listen_goes_with_its_process(jobs, speech, settings, monkeypatch):
    id = jobs.submit(speech, settings, "ann")
    jobs.claim("w")
    left, deaf = [], threading.Event()
    monkeypatch.setattr(worker.os, "_exit", lambda code: (left.append((code, time.monotonic())), deaf.set()))
    monkeypatch.setattr(worker, "make", lambda *given: deaf.wait(10))
    thread = threading.Thread(target=worker.do, args=(jobs, id, "cpu", "w"))
    thread.start()
    time.sleep(0.2)
    started = time.monotonic()
    jobs.delete(id, "ann")
    thread.join(5)
    assert left[0][0] == worker.DROPPED and left[0][1] - started < 3


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left"), VideoError("ffmpeg said: av_write: No space left on device")]
)
def test_a_full_disk_is_told_and_the_next_job_goes_on(jobs, speech, settings, monkeypatch, error):
    first, second = (jobs.submit(speech, settings, "ann") for _ in range(2))

    def full(job, device, progress):
        (job.folder / "work").mkdir()
        (job.folder / "work" / "piece-00000.mp4").write_bytes(b"much")
        raise error

    monkeypatch.setattr(worker, "make", full)
    assert jobs.claim("w") == first
    worker.do(jobs, first, "cpu", "w")
    job = jobs.get(first, "ann")
    assert (job.state, job.error, job.video, job.segments) == ("failed", NO_ROOM, None, ())
    assert jobs.claim("w") == second


def test_other_failures_are_one_sentence(jobs, speech, settings, monkeypatch, tiny_anchor, tmp_path, caplog):
    shutil.copytree(tiny_anchor.folder, tmp_path / "people" / "gone")
    monkeypatch.setenv("AVATAR_APP_ANCHORS", str(tmp_path / "people"))
    id = jobs.submit(speech, RenderSettings(anchor=str(tmp_path / "people" / "gone")), "ann")
    shutil.rmtree(tmp_path / "people" / "gone")
    jobs.claim("w")
    worker.do(jobs, id, "cpu", "w")
    job = jobs.get(id, "ann")
    assert job.state == "failed" and job.error.startswith("Unknown anchor") and "\n" not in job.error

    def broken(*given):
        raise KeyError("ours")

    monkeypatch.setattr(worker, "make", broken)
    id = jobs.submit(speech, settings, "ann")
    jobs.claim("w")
    worker.do(jobs, id, "cpu", "w")
    assert jobs.get(id, "ann").error == worker.OUR_FAULT and "KeyError" in caplog.text


@pytest.mark.slow
def test_a_disk_that_is_really_full(tmp_path, speech, settings):
    place = tmp_path / "small"
    place.mkdir()
    if os.name == "nt" or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", place]).returncode:
        pytest.skip("needs the right to mount")
    try:
        jobs = Jobs(place / "jobs", Limits(free_gb=0))
        ids = [jobs.submit(speech, settings, "ann") for _ in range(2)]
        filler = place / "filler"
        filler.write_bytes(bytes(shutil.disk_usage(place).free - 180_000))
        assert jobs.claim("w") == ids[0]
        worker.do(jobs, ids[0], "cpu", "w")
        job = jobs.get(ids[0], "ann")
        assert (job.state, job.error, job.video) == ("failed", NO_ROOM, None)
        assert not list(job.folder.glob("**/*.mp4*"))
        filler.unlink()
        assert jobs.claim("w") == ids[1]
        worker.do(jobs, ids[1], "cpu", "w")
        assert jobs.get(ids[1], "ann").state == "done"
    finally:
        subprocess.run(["umount", "-l", place], check=True)
