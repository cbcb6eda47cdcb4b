"""How quickly the page answers ten visitors with fifty videos queued: `python benchmarks/load.py SPEECH [ANCHOR]`.

The server runs in a process of its own with its real worker. Every visitor (a cookie each) uploads the speech, queues
five draft videos, and then asks once a second, for a minute, for all that an open page and a program ask for.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median, quantiles

import httpx

ROOT = Path(__file__).parents[1]
VISITORS, JOBS, SECONDS = 10, 5, 60.0


class Visitor:
    """A client with a cookie of its own. times: what it asked for -> seconds until each whole answer."""

    def __init__(self, url: str):
        self.times: dict[str, list[float]] = defaultdict(list)
        self.client = httpx.Client(base_url=url, timeout=120)
        self.cookie = self.client.get("/").cookies["avatar_owner"]

    def ask(self, what: str, method: str, path: str, **options) -> httpx.Response:
        started = time.perf_counter()
        answer = self.client.request(method, path, **options).raise_for_status()
        self.times[what].append(time.perf_counter() - started)
        return answer

    def call(self, name: str, *data: object) -> object:
        return self.ask(name, "POST", f"/gradio_api/run/{name}", json={"data": data}).json()["data"][0]

    def submit(self, speech: Path, anchor: str) -> str:
        """The id of a new draft video."""
        with open(speech, "rb") as file:
            path = self.ask("upload", "POST", "/gradio_api/upload", files={"files": file}).json()[0]
        return self.queue(speech={"path": path, "meta": {"_type": "gradio.FileData"}}, anchor=anchor, preset="draft")

    def queue(self, **order: object) -> str:
        event = self.ask("submit_job", "POST", "/gradio_api/call/v2/submit_job", json=order).json()["event_id"]
        said = self.ask("submit_job, its answer", "GET", f"/gradio_api/call/submit_job/{event}").text
        if "event: error" in said:
            raise RuntimeError(said)
        return json.loads(said.rpartition("data: ")[2])[0]

    def look(self, id: str) -> dict:
        """What an open page and a program ask for; the job as the server tells it."""
        self.ask("page", "GET", "/")
        self.ask("live.json", "GET", f"/media/jobs/{id}/live.json")
        self.call("list_jobs", "", "")
        return self.call("job_status", id)


def visit(url: str, speech: Path, anchor: str, jobs: int = JOBS, seconds: float = SECONDS) -> Visitor:
    visitor = Visitor(url)
    ids = [visitor.submit(speech, anchor) for _ in range(jobs)]
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        visitor.look(ids[0])
        time.sleep(1)
    for id in ids:
        visitor.call("stop_job", id)
    return visitor


def crowd(url: str, speech: Path, anchor: str, visitors: int = VISITORS, **options) -> dict[str, list[float]]:
    """The times of all visitors together."""
    with ThreadPoolExecutor(visitors) as pool:
        came = list(pool.map(lambda _: visit(url, speech, anchor, **options), range(visitors)))
    return {what: sorted(one for visitor in came for one in visitor.times[what]) for what in came[0].times}


def start(home: Path, port: int) -> subprocess.Popen:
    """A server with its own jobs, once it answers."""
    environment = os.environ | {"AVATAR_APP_JOBS": str(home / "jobs"), "GRADIO_TEMP_DIR": str(home / "uploads")}
    with open(home / "server.log", "wb") as log:
        command = [sys.executable, "-c", f"from avatar_app.web.app import serve; serve(port={port})"]
        server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
    while server.poll() is None:
        try:
            httpx.get(f"http://127.0.0.1:{port}", timeout=60).raise_for_status()
            return server
        except httpx.HTTPError:
            time.sleep(0.1)
    raise SystemExit((home / "server.log").read_text())


def main(speech: str, anchor: str = "adam") -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        server = start(Path(folder), port)
        try:
            times = crowd(f"http://127.0.0.1:{port}", Path(speech), anchor)
        finally:
            server.terminate()
            server.wait()
    print("| asked for | answers | median | 95 % | longest |\n|---|---|---|---|---|")
    for what, spent in times.items():
        row = (median(spent), quantiles(spent, n=20)[-1], spent[-1])
        print(f"| {what} | {len(spent)} | " + " | ".join(f"{1000 * seconds:.0f} ms" for seconds in row) + " |")


if __name__ == "__main__":
    main(*sys.argv[1:])
