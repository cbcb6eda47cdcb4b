"""The page in a process of its own, as it is for users, with anchors, jobs and uploads of its own."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[1]
SERVE = "import sys; from avatar_app.web.app import serve; serve(port=int(sys.argv[1]))"


class Server:
    """May be stopped, killed and started again. home: has the folders anchors, datasets, jobs, cache and gradio."""

    def __init__(self, home: Path, script: str = SERVE):
        self.home, self.script, self.port, self.process = home, script, free_port(), None
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        places = ("anchors", "datasets", "jobs", "cache")
        environment = os.environ | {f"AVATAR_APP_{name.upper()}": str(self.home / name) for name in places}
        environment |= {"GRADIO_TEMP_DIR": str(self.home / "gradio"), "PYTHONPATH": str(ROOT)}
        with open(self.home / "server.log", "ab") as log:
            command = [sys.executable, "-c", self.script, str(self.port)]
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                return httpx.get(self.url, timeout=20).raise_for_status()
            except httpx.HTTPError:
                time.sleep(0.2)
        raise AssertionError((self.home / "server.log").read_text()[-2000:])

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
