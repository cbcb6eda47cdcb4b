"""`launch.py bench`: what a render costs on this machine, each in a process of its own, as a user would start it.

Stages work at the same time, so their shares may exceed 100 %. CPU time tells what an idle machine would need: about
its share of one core.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from avatar_app.settings import PRESETS
from talkshow_bridge.audio import ffmpeg_path
from talkshow_bridge.errors import InputError

ROOT = Path(__file__).parents[1]
SAMPLES = ROOT / "samples"


def bench(anchor: str | None, seconds: float, runs: list[str]) -> None:
    """Prints seconds, share of each stage and peak memory for each run ("preview" or a preset)."""
    unknown = [run for run in runs if run not in (*PRESETS, "preview")]
    if unknown:
        raise InputError(f"Unknown run {unknown[0]!r}: please choose from preview, {', '.join(PRESETS)}.")
    print(f"{seconds:g} s of speech on {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start")
    with tempfile.TemporaryDirectory() as folder:
        speech = Path(folder) / "speech.wav"
        sample_speech(speech, seconds)
        for run in runs:
            _measure(run, speech, seconds, anchor)


def sample_files() -> list[Path]:
    """The bundled recordings."""
    samples = sorted(file for file in SAMPLES.glob("*") if file.suffix in (".wav", ".mp3", ".flac", ".opus", ".ogg"))
    if not samples:
        raise InputError(f"There is no sample speech in {SAMPLES}.")
    return samples


def _measure(run: str, speech: Path, seconds: float, anchor: str | None) -> None:
    out = speech.with_name(f"{run}.mp4")
    command = [sys.executable, str(ROOT / "launch.py"), "render", str(speech)]
    command += ["--preview", str(out)] if run == "preview" else ["--preset", run, "--out", str(out)]
    command += ["--anchor", anchor] if anchor else []
    started, used = time.perf_counter(), _children_cpu()
    result = subprocess.run(command, capture_output=True, text=True)
    wall, used = time.perf_counter() - started, _children_cpu() - used
    if result.returncode == 2:
        raise InputError(result.stderr.strip().splitlines()[-1].removeprefix("avatar_app: "))
    if result.returncode:
        raise RuntimeError(result.stderr.strip())
    facts = json.loads(out.with_suffix(".json").read_text())
    stages = dict(facts["timings_s"])
    stages["start"] = max(0.0, wall - stages.pop("total"))
    shares = ", ".join(f"{name} {value:.1f} s ({value / wall:.0%})" for name, value in stages.items())
    print(
        f"{run:9} {wall:6.1f} s in all, {wall / seconds:.2f} s per second of video, {used:.1f} s of CPU time, "
        f"peak memory {facts['peak_memory_mb']} MB: {shares}",
        flush=True,
    )


def _children_cpu() -> float:
    """CPU seconds of all processes that this one has waited for."""
    times = os.times()
    return times.children_user + times.children_system


def sample_speech(path: Path, seconds: float) -> None:
    """The first bundled sample, repeated to the wanted length."""
    import ffmpeg

    source = ffmpeg.input(str(sample_files()[0]), stream_loop=-1, t=seconds)
    source.output(str(path), ar=16000, ac=1).run(cmd=ffmpeg_path(), quiet=True)
