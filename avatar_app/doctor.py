"""`launch.py doctor`: what is there, what is missing, how to mend it. Standard library only: it runs before set-up."""

from __future__ import annotations

import ctypes.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from avatar_app.licences import components
from talkshow_bridge.errors import InputError

ROOT = Path(__file__).parents[1]
SET_UP = "any sub-command sets it up, e.g. `python3 launch.py anchors list`"
NEEDED_DISK, NEEDED_MEMORY = 4, 4  # GB: environment and temporary files; peak of a render
EXPIRES_SOON = 30  # days


@dataclass(frozen=True)
class Finding:
    """One line of the report. state: "ok", "missing" (has to be mended) or "optional" (absent, and that is fine)."""

    subject: str
    state: str
    fact: str
    mend: str = ""


def main(arguments: list[str] | None = None) -> int:
    """Prints the report; 0 when nothing that is needed is missing."""
    findings = list(examine())
    marks = {"ok": "ok  ", "missing": "MISS", "optional": " -  "}
    for finding in findings:
        print(f"{marks[finding.state]}  {finding.subject:22} {finding.fact}")
        if finding.mend and finding.state != "ok":
            print(f"{'':29}-> {finding.mend}")
    print("\nLicences (see LICENSES.md; * not for commercial work, or not known to be)")
    for part in components(_anchor_folders()):
        print(f"   {' ' if part.commercial else '*'}  {part.name:22} {part.licence}")
    missing = sum(finding.state == "missing" for finding in findings)
    print(f"\n{missing} to mend." if missing else "\nReady.")
    return 1 if missing else 0


def examine() -> Iterator[Finding]:
    yield _python()
    yield from _packages()
    yield _ffmpeg()
    yield _gpu()
    yield _engine()
    yield _gl()
    yield _memory()
    yield _disk()
    yield from _bundled()
    yield _signing()
    yield from _own()


def _anchor_folders() -> list[Path]:
    own = os.environ.get("AVATAR_APP_ANCHORS")
    return [ROOT / "checkpoints" / "anchors", *([Path(own).expanduser()] if own else [])]


def _python() -> Finding:
    good = (3, 10) <= sys.version_info[:2] <= (3, 13)
    place = "the environment" if sys.prefix != sys.base_prefix else "no environment yet"
    fact = f"{platform.python_version()} on {platform.system()} {platform.machine()}, {place}"
    return Finding("Python", "ok" if good else "missing", fact, "install Python 3.10 to 3.13 and start with it")


def _pins() -> dict[str, str]:
    """{package: version} of the requirement lines that hold for this Python and this machine."""
    line = re.compile(r'^([A-Za-z0-9_.-]+)==([^ ;]+)(?: *; *python_version (>=|<) "(\d+)\.(\d+)")?')
    pins = {}
    for text in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines():
        if "sys_platform" in text and not (f'"{sys.platform}"' in text and platform.machine() in text):
            continue
        if match := line.match(text):
            name, version, relation, major, minor = match.groups()
            newer = relation is not None and sys.version_info[:2] >= (int(major), int(minor))
            if relation is None or newer == (relation == ">="):
                pins[name] = version
    return pins


def _packages() -> Iterator[Finding]:
    if sys.prefix == sys.base_prefix:
        yield Finding("Packages", "missing", "not set up yet", SET_UP)
        return
    wrong, pins = [], _pins()
    for name, wanted in pins.items():
        found = _installed_version(name)
        if found != wanted:
            wrong.append(f"{name} {found} instead of {wanted}" if found else f"{name} absent")
    if wrong:
        yield Finding("Packages", "missing", "not as pinned: " + ", ".join(wrong), "remove .venv and start again")
    else:
        yield Finding("Packages", "ok", f"all {len(pins)} as pinned")


def _installed_version(package: str) -> str | None:
    try:
        return distribution(package).version.split("+")[0]
    except PackageNotFoundError:
        return None


def _ffmpeg() -> Finding:
    binary = os.environ.get("IMAGEIO_FFMPEG_EXE")
    if not binary:
        try:
            files = distribution("imageio-ffmpeg").files or []
            binary = next((str(file.locate()) for file in files if file.name.startswith("ffmpeg-")), None)
        except PackageNotFoundError:
            return Finding("ffmpeg", "missing", "comes with the packages", SET_UP)
    try:
        said = subprocess.run([str(binary), "-version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return Finding("ffmpeg", "missing", f"{binary} does not run", "set IMAGEIO_FFMPEG_EXE to a working ffmpeg")
    return Finding("ffmpeg", "ok", " ".join(said.split()[1:3]))


def _gpu() -> Finding:
    if tool := shutil.which("nvidia-smi"):
        query = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader"]
        said = subprocess.run(query, capture_output=True, text=True)
        if said.returncode == 0 and said.stdout.strip():
            return Finding("GPU", "ok", said.stdout.strip().splitlines()[0])
    return Finding("GPU", "optional", "no NVIDIA GPU: renders on the CPU")


def _engine() -> Finding:
    choice, found = os.environ.get("AVATAR_APP_ENGINE") or "auto", _installed_version("openvino")
    if found and choice != "torch":
        return Finding("CPU engine", "ok", f"OpenVINO {found}")
    fact = "OpenVINO switched off by AVATAR_APP_ENGINE" if found else "OpenVINO absent"
    return Finding("CPU engine", "optional", f"{fact}: CPUs run the networks in plain torch, several times slower")


def _gl() -> Finding:
    if ctypes.util.find_library("EGL"):
        return Finding("EGL (pyrender)", "ok", "present")
    fact = "absent: only anchors trained on pyrender pictures need it"
    return Finding("EGL (pyrender)", "optional", fact, "Debian, Ubuntu: `apt install libegl1 libgl1 libgl1-mesa-dri`")


def _memory() -> Finding:
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (AttributeError, ValueError, OSError):
        return Finding("Memory", "optional", "size unknown")
    state = "ok" if size >= NEEDED_MEMORY * 0.9 else "missing"
    return Finding("Memory", state, f"{size:.1f} GB", f"rendering needs about {NEEDED_MEMORY} GB")


def _disk() -> Finding:
    free = shutil.disk_usage(ROOT).free / 2**30
    set_up = (ROOT / ".venv").exists()
    state = "ok" if set_up or free >= NEEDED_DISK else "missing"
    return Finding("Disk", state, f"{free:.1f} GB free", f"set-up needs {NEEDED_DISK} GB")


def _bundled() -> Iterator[Finding]:
    mend = "restore the checkout, e.g. `git checkout -- checkpoints`"
    for subject, folder, pattern in (
        ("Speech-to-motion", ROOT / "checkpoints" / "motion", "*.safetensors"),
        ("Open body", ROOT / "checkpoints" / "body", "*.npz"),
    ):
        files = sorted(folder.rglob(pattern))
        fact = ", ".join(file.name for file in files) or f"nothing in {folder}"
        yield Finding(subject, "ok" if files else "missing", fact, mend)
    anchors = sorted((ROOT / "checkpoints" / "anchors").glob("*/anchor.json"))
    if not anchors:
        yield Finding("Anchors", "missing", "none installed", mend)
    for manifest in anchors:
        lost = [name for name in _manifest_files(manifest) if not (manifest.parent / name).is_file()]
        fact = f"{manifest.parent.name}: " + (f"{lost[0]} is missing" if lost else "complete")
        yield Finding("Anchor", "missing" if lost else "ok", fact, mend)


def _manifest_files(manifest: Path) -> list[str]:
    try:
        return list(json.loads(manifest.read_text(encoding="utf-8"))["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return [manifest.name + " (unreadable)"]


def _signing() -> Finding:
    """The certificate that videos are signed with; looking makes none."""
    if _installed_version("c2pa-python") is None:
        return Finding("Signing", "missing", "comes with the packages", SET_UP)
    from avatar_app.trust import credentials

    if not credentials.has_identity():
        return Finding("Signing", "ok", f"the first video makes a key of its own in {credentials.key_folder()}")
    try:
        credentials.check_ready()
        who = credentials.identity()
    except InputError as error:
        return Finding("Signing", "missing", str(error), "docs/trust.md tells what is needed")
    owner, end = ("local certificate" if who.local else who.leaf.subject.rfc4514_string()), who.leaf.not_valid_after_utc
    soon = end - datetime.now(timezone.utc) < timedelta(days=EXPIRES_SOON)
    return Finding("Signing", "optional" if soon else "ok", f"{owner}, valid until {end:%Y-%m-%d}", "renew it soon")


def _own() -> Iterator[Finding]:
    """Licensed or private files that the user may add."""
    licensed = sorted((ROOT / "checkpoints" / "body").glob("SMPLX_NEUTRAL_2020.npz"))
    fact = ", ".join(file.name for file in licensed) or "none (checkpoints/body/SMPLX_NEUTRAL_2020.npz would be used)"
    yield Finding("Own SMPL-X model", "ok" if licensed else "optional", fact)
    folder = os.environ.get("AVATAR_APP_ANCHORS")
    if folder:
        found = sorted(file.parent.name for file in Path(folder).expanduser().glob("*/anchor.json"))
        yield Finding("Own anchors", "ok" if found else "optional", ", ".join(found) or f"none in {folder}")
    else:
        yield Finding("Own anchors", "optional", "AVATAR_APP_ANCHORS is not set")
