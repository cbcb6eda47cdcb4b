"""What overlapped denoising costs and brings on a bundled anchor: `python benchmarks/overlap.py SPEECH [ANCHOR]`.

300 frames of one speech under several window lists, each in a process of its own. CPU seconds and peak memory of the
whole process; change: mean difference of neighbouring frames (0..255) where the body is; at the joins of windows over
elsewhere: 1 means that no seam shows; against overlap: mean difference to the first row's pictures.
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from avatar_app.anchors import Preset, load_anchor
from avatar_app.diffusion.generator import FrameGenerator
from avatar_app.diffusion.windows import native_windows
from avatar_app.mesh.conditions import look
from talkshow_bridge import MotionGenerator

FRAMES = 300
VARIANTS = {
    "overlap 16/4": {"window": 16, "overlap": 4},
    "no overlap 16/0": {"window": 16, "overlap": 0},
    "shifted 16": {"window": 16, "overlap": 0, "windows": "shifted"},
    "windows of 256": {"window": 256, "overlap": 0},
}
STEPS = 4  # with a single step there is nothing to average over


def make(name: str, speech: str, anchor_name: str, out: Path) -> None:
    """Render one variant and save pictures, masks and what it took."""
    anchor = load_anchor(anchor_name)
    options = Preset.from_options({"steps": STEPS, "face": False, **VARIANTS[name]})
    motion = MotionGenerator.from_pretrained().generate(speech, fps=anchor.manifest.fps)[:FRAMES]
    vertices = anchor.vertices(motion)
    masks = np.array([look(anchor.body, posed, anchor.camera).face >= 0 for posed in vertices])
    generator = FrameGenerator(anchor, options)
    generator.prepare()
    began = time.process_time()
    frames = np.concatenate(list(generator.frames(iter([vertices]))))
    spent = time.process_time() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    np.savez(out, frames=frames, masks=masks, spent=spent, peak=peak)


def main(speech: str, anchor: str = "adam") -> None:
    print("| windows | CPU s | peak MB | change | at joins / elsewhere | against overlap |\n|---|---|---|---|---|---|")
    first = None
    with tempfile.TemporaryDirectory() as folder:
        for name, options in VARIANTS.items():
            out = Path(folder) / "made.npz"
            subprocess.run([sys.executable, __file__, "--make", name, speech, anchor, str(out)], check=True)
            with np.load(out) as made:
                frames, masks = made["frames"].astype(np.int16), made["masks"]
                spent, peak = float(made["spent"]), float(made["peak"])
            first = frames if first is None else first
            body = masks[1:] & masks[:-1]
            change = np.array([np.abs(b - a)[m].mean() for a, b, m in zip(frames, frames[1:], body, strict=False)])
            starts = [w.start for w in native_windows(len(frames), options["window"], options["overlap"])][1:]
            joins = np.isin(np.arange(1, len(frames)), starts)
            ratio = change[joins].mean() / change[~joins].mean() if joins.any() else float("nan")
            apart, mean = np.abs(frames - first).mean(), change.mean()
            print(f"| {name} | {spent:.0f} | {peak:.0f} | {mean:.3f} | {ratio:.3f} | {apart:.4f} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--make"]:
        make(*sys.argv[2:5], Path(sys.argv[5]))
    else:
        main(*sys.argv[1:])
