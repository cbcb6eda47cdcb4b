#!/usr/bin/env python3
"""Sets avatar_app up on its first start, then runs it: ``python3 launch.py [app|render|test|audit|doctor|...]``.

Needs nothing but Python: until the virtual environment beside this file exists, only the standard library is used.
Every later start compares one hash and goes straight on.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent
SUPPORTED = ((3, 10), (3, 13))  # first and last Python that every pinned package has a wheel for
CHILD_ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",  # idle OpenMP threads must not spin: decoder, numba and ffmpeg share the cores
    "OPENBLAS_NUM_THREADS": "1",  # nor those of numpy, whose matrices are too small to share
    "HF_HUB_OFFLINE": "1",  # all weights are local; nothing is fetched and nobody is told
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "TOKENIZERS_PARALLELISM": "false",
}


class SetupError(Exception):
    """Set-up cannot go on; the message says why and how to mend it."""


def say(text: str) -> None:
    """Prints to stderr, so that stdout stays the sub-command's own."""
    print(text, file=sys.stderr, flush=True)


def venv_python(root: Path) -> Path:
    return root / ".venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def supported(version: tuple[int, ...]) -> bool:
    return SUPPORTED[0] <= tuple(version[:2]) <= SUPPORTED[1]


def base_python() -> str:
    """The interpreter to build the environment from: this one if supported, else the newest supported one on PATH."""
    if supported(sys.version_info):
        return sys.executable
    for minor in range(SUPPORTED[1][1], SUPPORTED[0][1] - 1, -1):
        candidate = shutil.which(f"python3.{minor}")
        if candidate and subprocess.run([candidate, "-c", "import venv"], capture_output=True).returncode == 0:
            return candidate
    raise SetupError(
        f"Python {platform.python_version()} is not supported: please install Python 3.{SUPPORTED[0][1]} to "
        f"3.{SUPPORTED[1][1]} and run this command with it."
    )


@contextmanager
def locked(path: Path):
    """Holds an exclusive lock on ``path``, so that two first starts do not install over each other."""
    with open(path, "w") as handle:
        if os.name == "nt":
            import msvcrt

            while True:
                try:
                    msvcrt.locking(handle.fileno(), msvcrt.LK_LOCK, 1)
                    break
                except OSError:
                    continue
        else:
            import fcntl

            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say("Another start is setting up; waiting for it ...")
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def requirements_hash(files: list[Path]) -> str:
    """Changes when the requirements do; the environment's own Python is checked by its existence."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def installed(root: Path, files: list[Path]) -> bool:
    stamp = root / ".venv" / f"{files[-1].stem}.sha256"
    return stamp.is_file() and stamp.read_text() == requirements_hash(files) and venv_python(root).exists()


def create_venv(root: Path) -> None:
    folder, python = root / ".venv", base_python()
    if folder.exists():
        shutil.rmtree(folder)
    say(f"Creating {folder}")
    with_pip = subprocess.run([python, "-c", "import ensurepip"], capture_output=True).returncode == 0
    result = subprocess.run(
        [python, "-m", "venv", *([] if with_pip else ["--without-pip"]), str(folder)], capture_output=True, text=True
    )
    if result.returncode:
        shutil.rmtree(folder, ignore_errors=True)
        reason = (result.stderr or result.stdout).strip()[-400:]
        raise SetupError(f"The virtual environment could not be created: {reason}")


def pip_command(root: Path) -> list[str]:
    """pip of the environment, or, where Python came without ensurepip, the system's pip working on the environment."""
    python = str(venv_python(root))
    if subprocess.run([python, "-c", "import pip"], capture_output=True).returncode == 0:
        return [python, "-m", "pip"]
    if subprocess.run([sys.executable, "-c", "import pip"], capture_output=True).returncode == 0:
        return [sys.executable, "-m", "pip", "--python", python]
    raise SetupError(
        "This Python has neither ensurepip nor pip: please install them (Debian and Ubuntu: "
        "`sudo apt install python3-venv`) and start again."
    )


def pip_install(root: Path, arguments: list[str], log: Path) -> bool:
    """Runs pip, shows its downloads in short lines, keeps all it says in ``log``; True when it succeeded."""
    command = [*pip_command(root), "install", "--progress-bar", "off", "--no-compile", "--no-input",
               "--disable-pip-version-check", *arguments]  # fmt: skip
    with open(log, "a", encoding="utf-8") as output:
        output.write(f"$ {' '.join(command)}\n")
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace"
        )
        for line in process.stdout:
            output.write(line)
            line = line.strip()
            if line.startswith(("Downloading", "Processing")):
                say("  " + Path(line.split()[1]).name.split("-py")[0].split("-cp")[0])
            elif line.startswith("Installing collected"):
                say("  installing ...")
        return process.wait() == 0


def has_nvidia_gpu() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def torch_pin(requirements: Path) -> str:
    pins = [line.split(";")[0].strip() for line in requirements.read_text().splitlines() if line.startswith("torch==")]
    return pins[0] if pins else ""


def install_requirements(root: Path, files: list[Path]) -> None:
    """Installs the requirement files and stamps the environment with their hash.

    On Linux without an NVIDIA GPU, PyTorch's CPU build is tried first: it is ten times smaller than the default build.
    It is found where pip's own settings offer it (an extra index or a wheel folder); otherwise the default is taken.
    """
    log = root / ".venv" / "setup.log"
    pin = torch_pin(files[0])
    if pin and sys.platform == "linux" and platform.machine() == "x86_64" and not has_nvidia_gpu():
        arguments = ["--only-binary", ":all:", pin + "+cpu"]
        if not pip_install(root, arguments, log):
            say(
                "  no CPU build of PyTorch within pip's reach; taking the default build (about 3 GB). Setting "
                "PIP_EXTRA_INDEX_URL to PyTorch's CPU package index, as their installation page shows, avoids that."
            )
    for file in files:
        if not pip_install(root, ["-r", str(file)], log):
            tail = "\n".join(log.read_text(encoding="utf-8").strip().splitlines()[-6:])
            raise SetupError(f"Installing {file.name} failed (whole log in {log}):\n{tail}")
    for count in range(1, len(files) + 1):
        (root / ".venv" / f"{files[count - 1].stem}.sha256").write_text(requirements_hash(files[:count]))


def warm_up(root: Path) -> None:
    """Has the code compiled that every render needs. It only saves time later: a failure shows in the log, no more."""
    say("  compiling ...")
    with open(root / ".venv" / "setup.log", "a", encoding="utf-8") as output:
        command = [str(venv_python(root)), "-m", "avatar_app.warmup"]
        keep = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        subprocess.run(command, cwd=root, env=keep, stdout=output, stderr=subprocess.STDOUT)


def ensure_environment(root: Path, with_tests: bool = False) -> Path:
    """Makes the environment match the requirement files if it does not yet, and returns its interpreter."""
    files = [root / "requirements.txt"] + ([root / "requirements-dev.txt"] if with_tests else [])
    if installed(root, files):
        return venv_python(root)
    try:
        with locked(root / ".venv.lock"):
            if not installed(root, files):
                started = time.monotonic()
                say("Setting up (once; a few minutes) ...")
                works = venv_python(root).exists() and not subprocess.run([str(venv_python(root)), "-c", ""]).returncode
                if not works:
                    create_venv(root)
                install_requirements(root, files)
                warm_up(root)
                say(f"Set up in {time.monotonic() - started:.0f} s.")
    except OSError as error:
        raise SetupError(f"Setting up in {root} failed: {error}.") from error
    return venv_python(root)


def run_tests(python: Path, arguments: list[str]) -> int:
    """Lint, then the tests; ``arguments`` go to pytest. Slow and GPU tests run only when asked for with ``-m``."""
    lint = subprocess.call([str(python), "-m", "ruff", "check", "--quiet", "."], cwd=ROOT)
    marks = [] if "-m" in arguments else ["-m", "not slow and not gpu"]
    tests = subprocess.call([str(python), "-m", "pytest", *marks, *arguments], cwd=ROOT)
    return tests or lint


def run_audit(python: Path) -> int:
    """Whether the installed packages fit each other and, asking the package index, have known vulnerabilities.

    0: all were looked up and nothing is known; 1: something was found; 3: some could not be looked up, and no more is
    known."""
    unfit = subprocess.call([*pip_command(ROOT), "check"], cwd=ROOT)
    command = [str(python), "-m", "pip_audit", "--no-deps", "--disable-pip", "--progress-spinner", "off",
               "--format", "json", "--timeout", "10", "-r", str(ROOT / "requirements.txt")]  # fmt: skip
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
        packages = json.loads(told)["dependencies"]
    except (subprocess.TimeoutExpired, ValueError):
        say("audit: the package index cannot be asked; NO package was looked up.")
        return 1 if unfit else 3
    unknown = [package["name"] for package in packages if "skip_reason" in package]
    found = [(package, flaw) for package in packages for flaw in package.get("vulns", [])]
    for package, flaw in found:
        mended = f", mended in {flaw['fix_versions'][0]}" if flaw["fix_versions"] else ", not mended yet"
        print(f"{package['name']} {package['version']}: {flaw['id']}{mended}")
    say(f"audit: {len(packages) - len(unknown)} of {len(packages)} packages looked up, {len(found)} known flaws.")
    if unknown:
        say(f"audit: the package index does not know, or does not tell about: {', '.join(unknown)}.")
    return 1 if unfit or found else 3 if unknown else 0


def become(python: Path, arguments: list[str]) -> int:
    """Re-executes this file with ``python``; on POSIX in this very process, so that signals reach the sub-command."""
    command = [str(python), str(ROOT / "launch.py"), *arguments]
    if os.name == "nt":
        return subprocess.call(command)
    sys.stdout.flush()
    os.execv(command[0], command)


def main(arguments: list[str]) -> int:
    for name, value in CHILD_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    inside = Path(sys.prefix).resolve() == (ROOT / ".venv").resolve()
    command = arguments[0] if arguments else "app"
    try:
        if command == "test":
            return run_tests(ensure_environment(ROOT, with_tests=True), arguments[1:])
        if command == "audit":
            return run_audit(ensure_environment(ROOT, with_tests=True))
        if command == "doctor":  # never installs anything: it must work when set-up does not
            if not inside and venv_python(ROOT).exists():
                return become(venv_python(ROOT), arguments)
            from avatar_app.doctor import main as doctor

            return doctor(arguments[1:])
        if not {"-h", "--help"} & set(arguments):
            python = ensure_environment(ROOT)
            if not inside:
                return become(python, arguments)
    except SetupError as error:
        say(f"launch.py: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    from avatar_app.cli import main as cli

    return cli(arguments)


if __name__ == "__main__":
    gc.set_threshold(50_000)  # modules stay: looking through them again and again costs half a second while they load,
    status = main(sys.argv[1:])
    gc.freeze()  # and as much once more at the end
    sys.exit(status)
