"""The program that reads PyTorch's files for pickles.py, in processes of their own and within limits.

It is started by its path, isolated: nothing of this project can be imported here, and it imports nothing of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from pathlib import Path

DEPTH, MOST_TENSORS = 6, 100_000
IDLE = 30  # s after which it ends
CODE, DAMAGE, LIMIT = 3, 4, 5  # exit codes


def _serve() -> None:
    """One JSON line with the arguments of `_child` in, one line with its exit code out. Importing torch takes a second
    or two, so that is done once; each file gets a process of its own, which ends with it."""
    import select

    import torch  # noqa: F401

    can_fork = hasattr(os, "fork") and sys.platform != "darwin"  # where forks of threaded programs break
    while not can_fork or select.select([sys.stdin], [], [], IDLE)[0]:
        line = sys.stdin.buffer.readline()
        if not line:
            return
        order = json.loads(line)
        if not can_fork:
            print(_child(*order), flush=True)
            return
        child = os.fork()
        if not child:
            try:
                os._exit(_child(*order))
            finally:
                os._exit(DAMAGE)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) % 256, flush=True)


def _child(source: str, out: str, memory: int, output: int, seconds: int, waiting: int) -> int:
    """Read one file; returns the exit code. Nothing of this project is importable here."""
    import pickle
    import zipfile

    import torch
    from safetensors.torch import save_file

    try:
        _limit_this_process(memory, output, seconds, waiting)
        packed = zipfile.is_zipfile(source)
        if packed:
            with zipfile.ZipFile(source) as archive:
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                    return DAMAGE  # PyTorch never compresses: a bomb
        stored = torch.load(source, map_location="cpu", weights_only=True, mmap=packed)
        tensors, others = _flatten(stored, torch.Tensor)
        unfolded = sum(value.nbytes for value in tensors.values())  # few bytes can be shown as a large tensor
        if len(tensors) + len(others) > MOST_TENSORS or unfolded > output:
            return LIMIT
        seen: set[int] = set()
        for name, value in tensors.items():
            start = value.untyped_storage().data_ptr()
            tensors[name] = value.clone(memory_format=torch.contiguous_format) if start in seen else value.contiguous()
            seen.add(start)
        Path(out).with_name("others.json").write_text(json.dumps(others), encoding="utf-8")
        save_file({name: value.detach() for name, value in tensors.items()}, out)
    except MemoryError:
        return LIMIT
    except (pickle.UnpicklingError, OSError, EOFError, RuntimeError, ValueError, TypeError, LookupError, AttributeError,
            RecursionError) as error:  # fmt: skip
        said = str(error).lower()
        return CODE if "unsupported" in said and "global" in said else LIMIT if "alloc" in said else DAMAGE
    return 0


def _flatten(stored: object, tensor: type) -> tuple[dict, list]:
    """Nested dicts with text keys -> {JSON list of keys: tensor}, and the places of everything else."""
    tensors, others, left = {}, [], [([], stored)]
    while left:
        place, value = left.pop()
        if isinstance(value, tensor):
            if value.is_sparse or value.is_quantized or value.is_complex():
                others.append(place)
            else:
                tensors[json.dumps(place)] = value
        elif isinstance(value, dict) and len(place) < DEPTH and all(isinstance(key, str) for key in value):
            left += [([*place, key], inner) for key, inner in reversed(value.items())]
        elif place:
            others.append(place)
    if not tensors:
        raise ValueError("no tensors")
    return tensors, others


def _limit_this_process(memory: int, output: int, seconds: int, waiting: int) -> None:
    """From here on, at most so many bytes more than now, seconds of work and seconds by the clock; where the system
    can do that: `pickles.missing_limits` says where not."""
    if hasattr(signal, "alarm"):
        signal.alarm(waiting)
    try:
        import resource
    except ImportError:
        return
    limits = {"RLIMIT_CPU": seconds, "RLIMIT_FSIZE": output, "RLIMIT_CORE": 0}
    if sys.platform == "linux":
        now = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        limits["RLIMIT_AS"] = now + memory
    for name, most in limits.items():
        kind = getattr(resource, name)
        _, hard = resource.getrlimit(kind)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        with contextlib.suppress(ValueError, OSError):  # a stricter one is in force
            resource.setrlimit(kind, (most, most))


if __name__ == "__main__":
    _serve()
