"""The job store: who sees what, how states change, what is kept."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from avatar_app import InputError, RenderSettings
from avatar_app.jobs import Jobs, Limits, housekeeping, store
from tests.speech import write_speech


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("AVATAR_APP_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    return write_speech(tmp_path_factory.mktemp("speech") / "hello <b>wörld.wav", seconds=0.6)


@pytest.fixture
def settings(tiny_anchor):
    return RenderSettings(anchor=str(tiny_anchor.folder), preset="draft")


@pytest.fixture
def jobs(tmp_path):
    return Jobs(tmp_path / "jobs", Limits())


def test_a_job_from_submission_to_its_end(jobs, speech, settings):
    id = jobs.submit(speech, settings, "ann")
    job = jobs.get(id, "ann")
    assert len(id) >= 22 and job.settings == settings and job.name == "hello <b>wörld"
    assert (job.state, job.position, job.kind, job.error) == ("queued", 0, "video", None) and not job.over
    assert job.speech.parent == job.folder and job.speech.read_bytes() == speech.read_bytes()
    assert job.duration == pytest.approx(0.6) and job.seconds_left > 0 and job.video is None

    assert jobs.waiting() and not jobs.waiting("quick") and jobs.claim("w", "quick") is None
    assert jobs.claim("w") == id and jobs.claim("v") is None
    assert jobs.progress(id, "w", "frames", 5, 15) and not jobs.progress(id, "v", "frames", 9, 15)
    job = jobs.get(id, "ann")
    assert (job.state, job.stage, job.done, job.total, job.position) == ("running", "frames", 5, 15, None)
    assert not jobs.finish(id, "v") and jobs.finish(id, "w") and not jobs.finish(id, "w", "twice")
    job = jobs.get(id, "ann")
    assert (job.state, job.seconds_left) == ("done", None) and job.over and job.video.parent == job.folder


def test_others_see_nothing(jobs, speech, settings):
    id = jobs.submit(speech, settings, "ann")
    for strange in (id, "", "../" + id, "/etc", id + "%", "' OR 1=1 --"):
        for question in (jobs.get, jobs.cancel, jobs.retry, jobs.delete):
            with pytest.raises(InputError, match="^There is no such job.$"):
                question(strange, "bob")
    assert jobs.list("bob") == [] and jobs.get(id, "ann").state == "queued"


def test_the_list_is_newest_first_and_filtered(jobs, speech, settings):
    first, second = (jobs.submit(speech, settings, "ann", name=name) for name in ("Straße", "two"))
    jobs.cancel(first, "ann")
    assert [job.id for job in jobs.list("ann")] == [second, first]
    assert [job.id for job in jobs.list("ann", text="STRASSE")] == [first]
    assert [job.id for job in jobs.list("ann", text="tiny")] == [second, first]
    assert [job.id for job in jobs.list("ann", state="queued")] == [second]


def test_cancel_retry_delete(jobs, speech, settings):
    one, two = (jobs.submit(speech, settings, "ann") for _ in range(2))
    assert not jobs.retry(one, "ann")
    assert jobs.claim("w") == one and jobs.cancel(one, "ann") and not jobs.cancel(one, "ann")
    assert not jobs.heartbeat(one, "w") and not jobs.finish(one, "w")
    assert jobs.retry(one, "ann") and [jobs.get(id, "ann").position for id in (one, two)] == [1, 0]
    jobs.delete(two, "ann")
    assert not (jobs.folder / two).exists() and jobs.get(one, "ann").position == 0
    jobs.claim("w")
    jobs.finish(one, "w", "It is broken.")
    assert jobs.get(one, "ann").error == "It is broken." and jobs.retry(one, "ann")
    assert jobs.get(one, "ann").error is None


def test_jobs_of_lost_workers_come_back_but_not_for_ever(jobs, speech, settings, monkeypatch):
    id, other = (jobs.submit(speech, settings, "ann") for _ in range(2))
    jobs.claim("w")
    jobs.recover()
    assert jobs.get(id, "ann").state == "running"
    jobs.release("w")
    later = time.time() + 60
    for _ in range(jobs.limits.interruptions):
        assert jobs.claim("w") == id
        with monkeypatch.context() as patch:
            patch.setattr(store.time, "time", lambda: later)
            jobs.recover()
    assert jobs.claim("w") == id
    jobs.progress(id, "w", "frames", 10, 30)
    jobs.progress(id, "w", "frames", 20, 30)  # came further than ever: a new count
    jobs.release("w", crashed=True)
    for _ in range(jobs.limits.interruptions):
        assert jobs.claim("w") == id
        jobs.progress(id, "w", "frames", 10, 30)
        jobs.progress(id, "w", "frames", 20, 30)
        jobs.release("w", crashed=True)
    job = jobs.get(id, "ann")
    assert job.state == "failed" and "broken off 4 times" in job.error
    assert jobs.claim("w") == other


def test_owners_take_turns(jobs, speech, settings, monkeypatch):
    monkeypatch.setattr(store, "_expected", lambda *given: 10.0)
    ann = [jobs.submit(speech, settings, "ann") for _ in range(30)]
    assert jobs.claim("w") == ann[0]
    bob = jobs.submit(speech, settings, "bob")
    cid = [jobs.submit(speech, settings, "cid") for _ in range(3)]
    bob_again = jobs.submit(speech, settings, "bob")
    take = jobs.submit(speech, settings, "dan", "preview")  # the lanes do not mix
    assert [jobs.get(id, "cid").position for id in cid] == [1, 3, 6]
    assert jobs.get(take, "dan").position == 0 and jobs.get(ann[1], "ann").position == 2
    expected = [bob, cid[0], ann[1], cid[1], bob_again, ann[2], cid[2], *ann[3:5]]
    places = {job.id: job.position for owner in ("ann", "bob", "cid") for job in jobs.list(owner)}
    assert sorted(expected, key=places.get) == expected
    running = ann[0]
    for id in expected:
        jobs.finish(running, "w")
        running = jobs.claim("w")
        assert running == id
    late = jobs.submit(speech, settings, "bob")
    assert jobs.get(late, "bob").position == 0
    assert jobs.get(late, "bob").seconds_left == pytest.approx(20, abs=1)  # what runs, then itself
    jobs.cancel(late, "bob")
    assert jobs.retry(late, "bob") and jobs.get(late, "bob").position == 0


def test_a_table_of_an_older_version_is_taken_over(jobs, speech, settings):
    id = jobs.submit(speech, settings, "ann")
    jobs._connection.execute("ALTER TABLE jobs DROP COLUMN round")
    again = Jobs(jobs.folder)
    second = again.submit(speech, settings, "ann")
    assert [again.claim("w"), again.claim("w")] == [id, second]


def test_bad_submissions_leave_nothing(jobs, speech, settings, tmp_path):
    text = tmp_path / "notes.wav"
    text.write_text("no sound")
    cases = [
        (dict(speech=text), "could not be decoded"),
        (dict(speech=None), "choose a speech"),
        (dict(settings=replace(settings, anchor="nobody")), "Unknown anchor 'nobody'"),
        (dict(settings=replace(settings, guidance=7.0, window=4, overlap=3), kind="film"), "Unknown kind"),
        (dict(motion=text), "notes.wav"),
    ]
    for changes, words in cases:
        with pytest.raises(InputError, match=words):
            jobs.submit(**{"speech": speech, "settings": settings, "owner": "ann", **changes})
    full = Jobs(tmp_path / "full", Limits(free_gb=10**6))
    with pytest.raises(InputError, match="The disk is full"):
        full.submit(speech, settings, "ann")
    for folder in (jobs.folder, full.folder):
        assert [path for path in folder.iterdir() if path.is_dir()] == []
    assert jobs.list("ann") == []


def test_many_claims_at_once_share_no_job(jobs, speech, settings):
    ids = {jobs.submit(speech, settings, "ann") for _ in range(12)}
    with ThreadPoolExecutor(8) as pool:
        claims = list(pool.map(lambda number: Jobs(jobs.folder).claim(f"w{number}"), range(20)))
    assert sorted(filter(None, claims)) == sorted(ids)


def test_answers_stay_quick_under_load(jobs, speech, settings):
    ids = [jobs.submit(speech, settings, f"owner {number % 10}") for number in range(50)]
    slowest = 0.0
    for number, id in enumerate(ids):
        started = time.perf_counter()
        assert len(jobs.list(f"owner {number % 10}")) == 5
        assert jobs.get(id, f"owner {number % 10}").position == number
        slowest = max(slowest, time.perf_counter() - started)
    assert slowest < 0.5


def test_old_jobs_orphans_and_what_exceeds_the_quota_go(jobs, speech, settings, monkeypatch):
    ids = [jobs.submit(speech, settings, "ann") for _ in range(4)]
    for id in ids[:3]:
        jobs.claim("w")
        jobs.finish(id, "w")
        (jobs.folder / id / "work").mkdir()
        (jobs.folder / id / "video.mp4").write_bytes(bytes(10**6))
    orphan, young, foreign = (jobs.folder / name for name in ("o" * 24, "y" * 24, "photos"))
    for folder in (orphan, young, foreign):
        folder.mkdir()
    (jobs.folder / ".env").touch()
    for path in (orphan, foreign, jobs.folder / ".env"):
        os.utime(path, (1, 1))

    jobs.sweep()
    assert foreign.exists() and (jobs.folder / ".env").exists()
    assert young.exists() and not orphan.exists() and (jobs.folder / ids[0] / "work").exists()
    monkeypatch.setattr(jobs, "limits", Limits(quota_gb=2.5e6 / housekeeping.GIGABYTE))
    jobs.sweep()
    assert [job.id for job in jobs.list("ann")] == [ids[3], ids[2], ids[1]] and not (jobs.folder / ids[0]).exists()
    later = time.time() + 3600
    monkeypatch.setattr(store.time, "time", lambda: later)
    jobs.sweep()
    assert not (jobs.folder / ids[1] / "work").exists()
    much_later = later + 31 * 86400
    monkeypatch.setattr(store.time, "time", lambda: much_later)
    jobs.sweep()
    assert [job.id for job in jobs.list("ann")] == [ids[3]]


def test_limits_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("AVATAR_APP_JOBS_KEEP_DAYS", "1.5")
    assert Limits.from_environment() == Limits(keep_days=1.5)
    monkeypatch.setenv("AVATAR_APP_JOBS_QUOTA_GB", "plenty")
    with pytest.raises(InputError, match="AVATAR_APP_JOBS_QUOTA_GB must be a number"):
        Limits.from_environment()
