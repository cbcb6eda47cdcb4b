"""launch.py in a checkout of its own, with one tiny local wheel as its only requirement."""

import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

import launch

ROOT = Path(launch.__file__).parent
CLI = "import sys, tinydep\ndef main(arguments):\n    print('ran', arguments, tinydep.VERSION)\n    return 7\n"


def build_wheel(folder: Path, version: str) -> None:
    info = f"tinydep-{version}.dist-info"
    with zipfile.ZipFile(folder / f"tinydep-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tinydep.py", f"VERSION = '{version}'\n")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: tinydep\nVersion: {version}\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A folder with launch.py, a stand-in for avatar_app and wheels of tinydep 1 and 2."""
    root = tmp_path_factory.mktemp("top") / "check out"  # a space in the path must not matter
    root.mkdir()
    shutil.copy(ROOT / "launch.py", root)
    (root / "avatar_app").mkdir()
    (root / "avatar_app" / "__init__.py").touch()
    (root / "avatar_app" / "cli.py").write_text(CLI)
    (root.parent / "wheels").mkdir()
    build_wheel(root.parent / "wheels", "1")
    build_wheel(root.parent / "wheels", "2")
    (root / "requirements.txt").write_text("--only-binary :all:\ntinydep==1\n")
    return root


def start(root: Path, *arguments: str, wait: bool = True) -> subprocess.Popen:
    environment = {**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(root.parent / "wheels")}
    process = subprocess.Popen(
        [getattr(sys, "_base_executable", sys.executable), str(root / "launch.py"), *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=root.parent,
    )  # fmt: skip
    if wait:
        process.out, process.err = process.communicate(timeout=120)
    return process


def test_first_starts_in_parallel_then_a_quick_one_then_an_update(checkout):
    both = [start(checkout, "render", "a b.wav", wait=False) for _ in range(2)]
    for process in both:
        process.out, process.err = process.communicate(timeout=120)
        assert process.returncode == 7, process.err
        assert process.out == "ran ['render', 'a b.wav'] 1\n"
    assert sum("Set up in" in process.err for process in both) == 1

    started = time.monotonic()
    again = start(checkout)
    assert time.monotonic() - started < 3
    assert (again.returncode, again.out, again.err) == (7, "ran [] 1\n", "")

    (checkout / "requirements.txt").write_text("--only-binary :all:\ntinydep==2\n")
    assert start(checkout).out == "ran [] 2\n"

    (checkout / "requirements.txt").write_text("--only-binary :all:\ntinydep==3\n")
    failed = start(checkout)
    assert failed.returncode == 1
    assert "Installing requirements.txt failed" in failed.err and "tinydep==3" in failed.err
    assert "Traceback" not in failed.err


def test_doctor_needs_no_environment(tmp_path):
    shutil.copy(ROOT / "launch.py", tmp_path)
    shutil.copy(ROOT / "requirements.txt", tmp_path)
    for name in ("avatar_app/__init__.py", "avatar_app/doctor.py", "avatar_app/licences.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "talkshow_bridge").mkdir()
    for name in ("__init__.py", "errors.py"):
        shutil.copy(ROOT / "talkshow_bridge" / name, tmp_path / "talkshow_bridge")
    report = start(tmp_path, "doctor")
    assert report.returncode == 1, report.err
    assert "not set up yet" in report.out and "to mend." in report.out
    assert not (tmp_path / ".venv").exists()


def test_help_needs_no_environment(tmp_path):
    shutil.copy(ROOT / "launch.py", tmp_path)
    parts = ("", "_anchors", "_batch", "_motion", "_paper", "_trust")
    names = [f"avatar_app/cli{part}.py" for part in parts] + ["avatar_app/__init__.py", "avatar_app/settings.py"]
    names.append("avatar_app/progress_line.py")
    for name in [*names, "avatar_app/trust/__init__.py", "avatar_app/trust/statements.py"]:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "talkshow_bridge").mkdir()
    for name in ("__init__.py", "errors.py"):
        shutil.copy(ROOT / "talkshow_bridge" / name, tmp_path / "talkshow_bridge")
    answer = start(tmp_path, "render", "--help")
    assert answer.returncode == 0 and "--preset" in answer.out, answer.err
    assert not (tmp_path / ".venv").exists()


def test_pins_hold_for_every_python():
    from avatar_app import doctor

    pins = doctor._pins()
    assert pins["torch"] == "2.13.0" and launch.torch_pin(ROOT / "requirements.txt") == "torch==2.13.0"
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and line[0].isalpha()]
    assert all("==" in line for line in lines)
    assert set(pins) == {line.split("==")[0] for line in lines}


def test_unsupported_python_is_named(monkeypatch):
    monkeypatch.setattr(launch.sys, "version_info", (3, 9, 1))
    monkeypatch.setattr(launch.shutil, "which", lambda name: None)
    with pytest.raises(launch.SetupError, match=r"install Python 3\.10 to 3\.13"):
        launch.base_python()


def test_an_audit_calls_nothing_sound_that_it_did_not_look_up(monkeypatch, capsys):
    """pip_audit ends with 0 when the index knows none of the packages, and says nothing when there is no index."""
    audited = {"name": "a", "version": "1", "vulns": []}
    flawed = {"name": "b", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3"]}]}
    skipped = {"name": "c", "skip_reason": "not found"}
    said = {}
    monkeypatch.setattr(launch, "pip_command", lambda root: ["pip"])
    monkeypatch.setattr(launch.subprocess, "call", lambda command, cwd: 0)
    monkeypatch.setattr(
        launch.subprocess, "run", lambda command, **options: subprocess.CompletedProcess(command, 0, said["out"], "")
    )
    for packages, code, words in (
        (None, 3, "NO package was looked up"),
        ([audited, skipped], 3, "does not tell about: c"),
        ([audited, skipped, flawed], 1, "b 2: PYSEC-1, mended in 3"),
        ([audited], 0, "1 of 1 packages looked up, 0 known flaws"),
    ):
        said["out"] = "" if packages is None else json.dumps({"dependencies": packages, "fixes": []})
        assert launch.run_audit(Path(sys.executable)) == code
        told = capsys.readouterr()
        assert words in told.out + told.err
