"""PyTorch's own files, read in a process of their own: as weights only, within limits of memory, time and output.

The child turns the file into safetensors in a temporary folder and ends; this process never opens a pickle. What the
child could at worst do, it does to itself.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from talkshow_bridge import pickle_reader
from talkshow_bridge.errors import InputError, shown
from talkshow_bridge.pickle_reader import CODE, LIMIT

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)
MEMORY_TIMES, MEMORY_ROOM = 3, 1 << 30  # of the file's size; bytes on top
OUTPUT_ROOM = 64 << 20  # bytes beyond the file's size
SECONDS, BYTES_PER_SECOND = 120, 10 << 20  # processor time: a base, and more for large files
WAITING = 10  # times as long by the clock
_REASONS = {
    CODE: "holds more than weights and could run code: it was not opened",
    LIMIT: "needs more memory or time than a file of its size should: it was not read",
}
Tree = dict[str, "Tree | Tensor | None"]


def read_pickle(path: Path, name: str | None = None) -> Tree:
    """The nested dicts of tensors in a .pth or .bin file; whatever else is in it becomes None.
    name: of the file in messages.

    Raises InputError in one sentence: no file of weights, damaged, wants to run code, beyond the limits."""
    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory(prefix="weights-") as folder:
        out = Path(folder) / "weights.safetensors"
        status = _run_child(path, out)
        if status or not out.exists():
            killed = status > LIMIT  # by a limit
            reason = _REASONS.get(LIMIT if killed else status, "is cut off, damaged or no file of weights")
            raise InputError(f"'{name or shown(path)}' {reason}.")
        tensors = load_file(out)
        if os.name == "nt":  # a mapped file cannot be removed there
            tensors = {key: value.clone() for key, value in tensors.items()}
        others = json.loads((Path(folder) / "others.json").read_text(encoding="utf-8"))
        return _grow({**{json.dumps(place): None for place in others}, **tensors})


def _run_child(path: Path, out: Path) -> int:
    """The exit code of a child that has read `path` into `out` and others.json beside it."""
    size = path.stat().st_size if path.is_file() else 0
    seconds = SECONDS + size // BYTES_PER_SECOND
    order = [os.path.abspath(path), str(out), MEMORY_ROOM + MEMORY_TIMES * size, OUTPUT_ROOM + size, seconds]
    order.append(WAITING * seconds)
    with _lock:
        for attempt in (1, 2):
            server = _start_server()
            clock = threading.Timer(WAITING * seconds + 60, server.kill)  # where the child has no alarm of its own
            clock.start()
            try:
                server.stdin.write(json.dumps(order).encode() + b"\n")
                server.stdin.flush()
                answer = server.stdout.readline()
            except OSError:
                answer = b""
            late = not clock.is_alive()
            clock.cancel()
            if answer or late or attempt == 2:
                return int(answer or LIMIT)
            server.kill()  # it had just gone home, most likely
            server.wait()


def missing_limits() -> str:
    """What this system cannot limit for a single process, in words; "" where nothing is missing."""
    try:
        import resource  # noqa: F401
    except ImportError:
        return "memory, output and processor time"
    return "" if sys.platform == "linux" else "memory"


_lock = threading.Lock()
_server: subprocess.Popen | None = None


def _start_server() -> subprocess.Popen:
    """The process that forks the children, with nothing of this program's environment; it ends by itself."""
    global _server
    if _server is None and (lacking := missing_limits()):
        log.warning("On this system PyTorch's files are read in a process of its own without a limit of %s.", lacking)
    if _server is None or _server.poll() is not None:
        names = ("PATH", "SYSTEMROOT", "TEMP", "TMP", "TMPDIR")
        keep = {name: os.environ[name] for name in names if name in os.environ} | {"OMP_NUM_THREADS": "1"}
        _server = subprocess.Popen(
            [sys.executable, "-I", pickle_reader.__file__], env=keep, cwd=tempfile.gettempdir(),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    return _server


def _grow(flat: dict) -> Tree:
    """{JSON list of keys: value} -> nested dicts."""
    tree: Tree = {}
    for name, value in flat.items():
        *folders, last = json.loads(name)
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = value
    return tree
