"""Nothing of strangers is unpickled here, and weights in PyTorch's own files are read by a process with limits."""

import ast
import json
import logging
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from avatar_app.mesh.bodies import DEFAULT_DIRECTORY, OPEN_FILE, without_objects
from talkshow_bridge import pickle_reader, pickles
from talkshow_bridge.errors import InputError
from talkshow_bridge.pickles import read_pickle

ROOT = Path(__file__).parents[1]
UNPICKLERS = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def sources() -> list[Path]:
    folders = ("avatar_app", "talkshow_bridge", "studio", "benchmarks")
    return [ROOT / "launch.py", *(path for folder in folders for path in sorted((ROOT / folder).rglob("*.py")))]


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def unsafe(source: str) -> list[str]:
    """What in a module could run a stranger's code, or start a shell."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found += [f"import {name}" for name in names if name.split(".")[0] in UNPICKLERS]
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        given = {word.arg: word.value.value for word in node.keywords if isinstance(word.value, ast.Constant)}
        if name.endswith("torch.load") and given.get("weights_only") is not True:
            found.append("torch.load without weights_only=True")
        if given.get("allow_pickle") or given.get("shell"):
            found.append(f"{name} with allow_pickle or shell")
        if name in ("eval", "exec", "os.system", "yaml.load"):
            found.append(name)
    return found


def test_no_source_unpickles_evaluates_or_opens_a_shell():
    found = {(str(path.relative_to(ROOT)), thing) for path in sources() for thing in unsafe(path.read_text("utf-8"))}
    assert found <= {("talkshow_bridge/pickle_reader.py", "import pickle")}  # the name of an exception


def test_the_search_finds_what_it_looks_for():
    for line in ("import pickle", "from joblib import load", "torch.load(p)", "torch.load(p, weights_only=False)",
                 "np.load(p, allow_pickle=True)", "subprocess.run(c, shell=True)", "eval(x)"):  # fmt: skip
        assert unsafe(line), line
    assert not unsafe("torch.load(p, weights_only=True); np.load(p); np.load(p, allow_pickle=False)")


class Program:
    def __reduce__(self):
        return os.system, ("touch RAN",)


def save(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def test_weights_come_back_as_they_were(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    tree = {
        "a": {"w": base, "shared": base[1:], "half": base.half(), "turned": base.T},
        "epoch": 7,
        "n": torch.tensor(3),
    }
    back = read_pickle(save(tmp_path / "w.pth", tree))
    assert back["epoch"] is None and back["n"].item() == 3
    assert all(torch.equal(back["a"][key], tree["a"][key]) for key in tree["a"])
    assert back["a"]["half"].dtype == torch.float16
    torch.save(tree, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(read_pickle(tmp_path / "old.pth")["a"]["w"], base)


def compressed(path: Path) -> Path:
    """PyTorch's archive, its numbers compressed: a few kilobytes that unfold to many megabytes."""
    save(path.with_suffix(".stored"), {"w": torch.zeros(8 << 20)})
    with (
        zipfile.ZipFile(path.with_suffix(".stored")) as archive,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out,
    ):
        for name in archive.namelist():
            out.writestr(name, archive.read(name))
    return path


@pytest.mark.parametrize(
    "make,words",
    [
        (lambda p: save(p, {"w": torch.zeros(2), "x": Program()}), "could run code: it was not opened"),
        (lambda p: p.write_bytes(pickle.dumps(Program(), protocol=2)), "could run code: it was not opened"),
        (lambda p: save(p, {"w": torch.zeros(1).expand(10**9)}), "more memory or time than a file of its size"),
        (compressed, "cut off, damaged or no file of weights"),
        (lambda p: p.write_bytes(b""), "cut off, damaged or no file of weights"),
        (lambda p: save(p, {"epoch": 3}), "cut off, damaged or no file of weights"),
        (lambda p: p.mkdir(), "cut off, damaged or no file of weights"),
    ],
)
def test_files_that_are_no_plain_weights_are_refused(make, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "w.pth")
    with pytest.raises(InputError, match=words) as refused:
        read_pickle(tmp_path / "w.pth")
    assert str(refused.value).startswith("'w.pth' ")
    assert not list(Path(tmp_path).rglob("RAN")) and not (Path(pickles.tempfile.gettempdir()) / "RAN").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit a process's memory")
def test_the_child_is_limited(tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import talkshow_bridge.pickle_reader as p; "
        "p._limit_this_process(256 << 20, 1 << 20, 5, 60)\n"
        "try: bytearray(1 << 30)\nexcept MemoryError: print('memory')\n"
        "try: open(sys.argv[2], 'wb').write(bytes(2 << 20))\nexcept OSError: print('output')\n"
        "while True: pass"
    )
    limited = subprocess.run(
        [sys.executable, "-u", "-c", code, str(ROOT), str(tmp_path / "f")], capture_output=True, text=True
    )
    assert limited.stdout.split() == ["memory", "output"] and limited.returncode < 0


def test_a_system_without_limits_says_so_and_reads_on(tmp_path, monkeypatch, caplog):
    windows = tmp_path / "windows.py"  # has neither fork nor alarm nor the module resource
    windows.write_text(
        "import os, runpy, signal, sys\ndel os.fork, signal.alarm\nsys.modules['resource'] = None\n"
        f"runpy.run_path({pickle_reader.__file__!r}, run_name='__main__')\n"
    )
    weights = save(tmp_path / "w.pth", {"w": torch.ones(3)})
    with monkeypatch.context() as patch:
        patch.setattr(pickle_reader, "__file__", str(windows))
        patch.setattr(pickles, "_server", None)
        patch.setitem(sys.modules, "resource", None)
        for _ in range(2):  # a process for each file
            assert torch.equal(read_pickle(weights)["w"], torch.ones(3))
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1 and "without a limit of memory, output and processor time" in told[0]
    monkeypatch.setattr(sys, "platform", "darwin")
    assert pickles.missing_limits() == "memory"


def test_objects_in_a_body_file_are_left_out_not_unpickled(tmp_path):
    with zipfile.ZipFile(DEFAULT_DIRECTORY / OPEN_FILE) as archive, zipfile.ZipFile(tmp_path / "b.npz", "w") as out:
        for name in archive.namelist():
            out.writestr(name, archive.read(name))
        with out.open("joint2num.npy", "w") as stream:
            np.save(stream, np.array([Program()], object), allow_pickle=True)
    with without_objects(tmp_path / "b.npz") as plain, np.load(plain) as data:
        assert "joint2num" not in data and "v_template" in data and plain != tmp_path / "b.npz"
    assert not plain.exists()
    with without_objects(DEFAULT_DIRECTORY / OPEN_FILE) as same:
        assert same == DEFAULT_DIRECTORY / OPEN_FILE


def test_a_log_tells_no_names_places_or_words(tiny_anchor, tiny_motion, tmp_path, caplog, monkeypatch):
    from avatar_app import render

    monkeypatch.setenv("AVATAR_APP_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "Jane Doe" / "private"
    folder.mkdir(parents=True)
    with caplog.at_level(logging.DEBUG, logger="avatar_app"):
        render(None, tiny_anchor.folder, folder / "diagnosis.mp4", motion=tiny_motion[:8], preview=True)
    told = caplog.text
    assert "Jane" not in told and "diagnosis" not in told and str(tmp_path) not in told
    assert "Jane" not in json.dumps(json.loads((folder / "diagnosis.json").read_text()))


def test_openvino_tells_nobody():
    pytest.importorskip("openvino")
    from openvino.tools.ovc import convert_impl, telemetry_utils, utils

    assert all(module.tm.__name__.endswith("telemetry_stub") for module in (convert_impl, telemetry_utils, utils))
