"""`launch.py bench trust`: what the mark survives, how far it is from chance, and what marking and signing cost."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import numpy as np

from avatar_app.settings import RenderSettings
from avatar_app.trust import watermark
from avatar_app.trust.marks import marker
from talkshow_bridge.audio import ffmpeg_path

ID = "5eed5eed5eed5eed"
RENDERS = 5  # with and without marks by turns, of which medians are told
_COSTS = ("trust", "report", "total")
KEEP = "crop=trunc(iw*{0}/2)*2:trunc(ih*{0}/2)*2:{1}"
CORNER, MIDDLE = "0:0", "(iw-ow)/2:(ih-oh)/2"
TRANSFORMS = {  # name: (H.264 quality, ffmpeg filters)
    "as written": (18, "null"),
    "H.264 CRF 28": (28, "null"),
    "half size": (23, "scale=iw/2:-2"),
    "crop 10 %": (23, KEEP.format(0.9, MIDDLE)),
    "crop 10 %, back to size": (23, KEEP.format(0.9, CORNER) + ",scale=round(iw/1.8)*2:-2"),
    "25 fps": (23, "fps=25"),
    "30 fps": (23, "fps=30"),
    "blended to 25 fps": (23, "framerate=25"),
    "crop 10 %, 25 fps, CRF 28": (28, KEEP.format(0.9, CORNER) + ",fps=25"),
    "half size, CRF 28": (28, "scale=iw/2:-2"),
    "H.264 CRF 35": (35, "null"),
    "mirrored": (23, "hflip"),
}


def bench_trust(anchor: str | None, seconds: float, keys: int) -> None:
    """Prints Markdown. anchor: who is shown.   seconds: of video.   keys: foreign patterns to try chance on."""
    from avatar_app.bench import sample_speech
    from avatar_app.pipeline import render

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        speech = folder / "speech.wav"
        sample_speech(speech, seconds)
        plain = RenderSettings(anchor=anchor, preset="draft", crf=0, watermark=False, credentials=False)
        fps = render(speech, out=folder / "plain.mp4", settings=plain).fps
        frames = _decode(folder / "plain.mp4")
        marked = marker(RenderSettings(), ID)(frames)
        worst = min(_psnr(one, other) for one, other in zip(frames, marked, strict=True))
        print(f"{len(frames)} frames, {frames.shape[2]}x{frames.shape[1]}, {fps:g} fps")
        print(f"PSNR of the mark: {_psnr(frames, marked):.1f} dB, worst frame {worst:.1f} dB\n")
        print("| transform | found | bits right | score | score unmarked |\n|---|---|---|---|---|")
        for name, (crf, filters) in TRANSFORMS.items():
            found, without = (_after(pictures, fps, crf, filters, folder) for pictures in (marked, frames))
            bits = 64 - sum(bin(a ^ b).count("1") for a, b in zip(found.payload, bytes.fromhex(ID), strict=True))
            answer = "yes" if found.valid else "no"
            print(f"| {name} | {answer} | {bits}/64 | {found.score:.0f} | {without.score:.0f} |", flush=True)
        _print_chance(folder / "plain.mp4", keys)
        _print_cost(speech, anchor, folder)


def _after(frames: np.ndarray, fps: float, crf: int, filters: str, folder: Path) -> watermark.Found:
    """What the detector says of frames that were written as renders are, and then transformed."""
    height, width = frames.shape[1:3]
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-framerate", str(fps), "-i", "-"]
    written, changed = str(folder / "written.mp4"), str(folder / "changed.mp4")
    encode = ["-c:v", "libx264", "-pix_fmt", "yuv420p"]
    _ffmpeg([*raw, *encode, "-preset", "veryfast", "-crf", "18", written], frames.tobytes())
    _ffmpeg(["-i", written, "-vf", filters, *encode, "-crf", str(crf), changed])
    return watermark.find(changed)


def _print_chance(video: Path, keys: int) -> None:
    """The score that patterns nobody embedded reach, and how likely the threshold is among them.

    A pattern has random phases, so foreign patterns on one picture show the same chance as one pattern on many
    pictures.  The highest of many peaks follows Gumbel's law; its tail, times the chance that 16 check bits fit."""
    residue = watermark.mean_residual(watermark.sample(video)[0][:4])
    scores = np.array([watermark.search(residue, seed=seed).score for seed in range(1, keys + 1)])
    beta = scores.std(ddof=1) * np.sqrt(6) / np.pi
    tail = np.exp(-(watermark.THRESHOLD - (scores.mean() - 0.5772 * beta)) / beta)
    print(
        f"\nFalse positives: {keys} foreign patterns score {scores.mean():.1f} +- {scores.std(ddof=1):.1f}, at most "
        f"{scores.max():.1f}; reaching {watermark.THRESHOLD:g} has probability {tail:.0e}, with fitting check bytes "
        f"{tail / 2**16 * watermark.LOOKS:.0e} a video."
    )


def _print_cost(speech: Path, anchor: str | None, folder: Path) -> None:
    """Seconds inside marking and signing, of the whole render; and what the whole takes without: writing the file and
    drawing go on at the same time, so that the difference is smaller."""
    from avatar_app.pipeline import render

    for name, preview in (("draft", False), ("mesh preview", True)):
        taken: dict[bool, list[dict]] = {True: [], False: []}
        for number in range(1 + RENDERS):
            for on in taken:
                settings = RenderSettings(anchor=anchor, preset="draft", watermark=on, credentials=on)
                timings = render(speech, out=folder / "marked.mp4", settings=settings, preview=preview).timings
                taken[on] += [timings] if number else []  # the first ones load and compile
        own, report, total = (np.median([timings[part] for timings in taken[True]]) for part in _COSTS)
        without = np.median([timings["total"] for timings in taken[False]])
        print(
            f"Marking and signing, {name}: {own:.2f} s of {total:.1f} s ({own / total:.1%}), without {without:.1f} s; "
            f"the quality report: {report:.2f} s ({report / total:.1%})"
        )


def _decode(video: Path) -> np.ndarray:
    """All frames, (n, height, width, 3) uint8 RGB."""
    from avatar_app.video import probe

    facts = probe(video)
    data = _ffmpeg(["-i", str(video), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"])
    return np.frombuffer(data, np.uint8).reshape(-1, facts.height, facts.width, 3)


def _ffmpeg(arguments: list[str], data: bytes | None = None) -> bytes:
    source = ["-nostdin"] if data is None else []
    command = [ffmpeg_path(), *source, "-v", "error", "-y", *arguments]
    return subprocess.run(command, input=data, capture_output=True, check=True).stdout


def _psnr(one: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((one.astype(np.float32) - other) ** 2)))
