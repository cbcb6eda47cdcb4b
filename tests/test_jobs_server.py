"""A real server process over real HTTP: many visitors, hostile ones, a kill in the middle of a render."""

import shutil
import socket
import time

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient

from avatar_app import RenderSettings, render
from avatar_app.jobs import Jobs, Limits
from avatar_app.web.server import Guard
from benchmarks.load import Visitor, crowd
from tests.server import SERVE, Server
from tests.speech import write_speech

SMALL_UPLOADS = "from avatar_app.web import server; server.MAX_UPLOAD = 2**20; " + SERVE
PROXY = "import os; os.environ |= {'http_proxy': 'http://127.0.0.1:9', 'no_proxy': ''}; "  # where nobody answers
MEGABYTE = bytes(2**20)


@pytest.fixture(scope="module")
def server(tmp_path_factory, tiny_anchor):
    home = tmp_path_factory.mktemp("home")
    shutil.copytree(tiny_anchor.folder, home / "anchors" / "tiny")
    server = Server(home, PROXY + SMALL_UPLOADS)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    return write_speech(tmp_path_factory.mktemp("speech") / "speech.wav", seconds=2.4)


def finished(visitor: Visitor, id: str, seconds: float = 300) -> dict:
    deadline = time.monotonic() + seconds
    while (job := visitor.call("job_status", id))["state"] in ("queued", "running"):
        assert time.monotonic() < deadline, job
        time.sleep(0.2)
    return job


def test_visitors_with_many_jobs_are_answered_at_once(server, speech):
    """Few of them; benchmarks/load.py brings more."""
    times = crowd(server.url, speech, "tiny", visitors=4, jobs=3, seconds=2)
    for what in ("page", "list_jobs", "job_status", "live.json"):
        assert len(times[what]) >= 4 and times[what][len(times[what]) // 2] < 1, (what, times[what])


@pytest.mark.slow
def test_a_killed_server_goes_on_with_the_same_frames(server, speech, tmp_path):
    settings = RenderSettings(anchor=str(server.home / "anchors" / "tiny"), watermark=False, credentials=False)
    whole = render(speech, out=tmp_path / "whole.mp4", settings=settings).path.read_bytes()
    visitor = Visitor(server.url)
    id = Jobs(server.home / "jobs").submit(speech, settings, visitor.cookie)
    while not visitor.call("job_status", id)["done"]:
        time.sleep(0.1)
    server.kill()
    server.start()
    assert finished(visitor, id)["error"] is None
    assert visitor.ask("video", "GET", f"/media/jobs/{id}/video.mp4").content == whole


def test_an_anchor_that_is_deleted_meanwhile(server, speech):
    gone = server.home / "anchors" / "gone"
    shutil.copytree(server.home / "anchors" / "tiny", gone)
    facts = gone / "anchor.json"
    facts.write_text(facts.read_text().replace('"id": "tiny"', '"id": "gone"'))
    visitor = Visitor(server.url)
    ids = [visitor.submit(speech, name) for name in ("tiny", "gone", "tiny")]
    shutil.rmtree(gone)
    states = [finished(visitor, id) for id in ids]
    assert [job["state"] for job in states] == ["done", "failed", "done"]
    assert states[1]["error"].startswith("Unknown anchor 'gone'") and "\n" not in states[1]["error"]
    assert visitor.client.get(f"/media/jobs/{ids[1]}/video.mp4").status_code == 404


UPLOAD = "POST /gradio_api/upload HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
BEGIN = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.wav"\r\n\r\n'


def send_raw(server, *parts: bytes) -> str:
    """The answer to a request written by hand; "" when the line is cut before it is read."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as line:
        try:
            for part in parts:
                line.sendall(part)
            return b"".join(iter(lambda: line.recv(4096), b"")).decode()
        except OSError:
            return ""


def test_uploads_beyond_the_limit_leave_nothing(server):
    announced = f"{UPLOAD}Connection: close\r\nContent-Length: {5 * 2**30}\r\n\r\n"
    answer = send_raw(server, announced.encode())
    assert answer.startswith("HTTP/1.1 413") and "maximum allowed size" in answer
    chunks = [b"%x\r\n%b\r\n" % (len(part), part) for part in (BEGIN, MEGABYTE, MEGABYTE)]
    answer = send_raw(server, f"{UPLOAD}Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n".encode(), *chunks)
    assert not answer or answer.startswith("HTTP/1.1 413")
    with socket.create_connection(("127.0.0.1", server.port)) as line:  # and one that stops in the middle
        line.sendall(f"{UPLOAD}Content-Length: 900000\r\n\r\n".encode() + BEGIN + bytes(500_000))
        time.sleep(0.5)
    deadline = time.monotonic() + 20
    while left := [path for path in (server.home / "gradio").glob("*") if path.is_file()]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/", {"host": "evil.example"}, 403),
        ("GET", "/gradio_api/info", {"host": "127.0.0.1.evil.example:7860"}, 403),
        ("GET", "/", {"host": "localhost:1"}, 200),
        ("POST", "/gradio_api/run/list_jobs", {"sec-fetch-site": "cross-site"}, 403),
        ("POST", "/gradio_api/upload", {"sec-fetch-site": "same-site"}, 403),
        ("GET", "/gradio_api/file=http://example.com/", {}, 404),
        ("GET", "/gradio_api/file/https://example.com/x.mp4", {}, 404),
        ("GET", "/gradio_api/proxy=https://x.hf.space/", {}, 404),
        ("POST", "/gradio_api/process_recording", {}, 404),
        ("POST", "/gradio_api/component_server", {}, 404),
        ("GET", "/gradio_api/deep_link?session_hash=x", {}, 404),
        ("GET", "/gradio_api/dev/reload", {}, 404),
        ("GET", "/gradio_api/token", {}, 404),
    ],
)
def test_doors_that_stay_shut(server, method, path, headers, status):
    assert httpx.request(method, server.url + path, headers=headers, timeout=60).status_code == status


def test_an_upload_that_the_disk_has_no_room_for(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    guard = Middleware(Guard, limits=Limits(free_gb=10**6))
    page = Starlette(routes=[Route("/{path:path}", lambda request: Response(), methods=["POST"])], middleware=[guard])
    answer = TestClient(page).post("/gradio_api/upload", content=b"x")
    assert answer.status_code == 507 and answer.text.startswith("The disk is full")
    assert TestClient(page).post("/gradio_api/run/list_jobs", content=b"x").status_code == 200


def test_files_are_not_fetched_from_addresses(server, speech):
    visitor = Visitor(server.url)
    with open(speech, "rb") as file:
        path = visitor.ask("upload", "POST", "/gradio_api/upload", files={"files": file}).json()[0]

    def queue(address: str) -> str:
        return visitor.queue(speech={"path": address, "meta": {"_type": "gradio.FileData"}}, anchor="tiny")

    assert visitor.call("stop_job", queue(f"{server.url}/gradio_api/file={path}"))["name"] == "speech"
    climbing = f"{path}/../../../jobs/jobs.db"
    for address in ("https://example.com/a.wav", *(f"http://x/gradio_api/file={p}" for p in ("/etc/passwd", climbing))):
        with pytest.raises(RuntimeError, match="addresses are not fetched"):
            queue(address)
