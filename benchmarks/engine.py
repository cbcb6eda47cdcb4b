"""What the CPU engine saves, stage by stage: `python benchmarks/engine.py [ANCHOR] [--lean]`.

Prints CPU milliseconds a frame of everything that makes a frame of a native anchor, networks in plain torch and on
OpenVINO, in one run: medians of several windows of 16 frames, each alternating between the two. CPU time of the whole
process is taken, because other work on the machine hardly changes it: on n idle cores a video takes about an n-th.
--lean: random networks of the widths that new anchors are trained with, in place of the anchor's own.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from avatar_app.anchors import Anchor, list_anchors, load_anchor
from avatar_app.diffusion.engine import EngineNetworks
from avatar_app.diffusion.networks import NativeNetworks
from avatar_app.mesh.conditions import render_conditions
from avatar_app.pipeline import make_motion
from avatar_app.settings import RenderSettings
from talkshow_bridge.audio import load_speech

WINDOW, BATCH = 16, 4
LEAN = {
    "condition": {"texture_size": (384, 768), "width": 32, "detail_width": 16, "plate_size": (512, 512)},
    "autoencoder": {"decoder_widths": (16, 48, 64, 96), "detail_width": 16},
    "unet_widths": (48, 64, 96),
}


class CpuClock:
    """CPU milliseconds a frame of named stages, one number a round."""

    def __init__(self) -> None:
        self.spent: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        begin = time.process_time()
        yield
        self.spent[stage].append(1e3 * (time.process_time() - begin) / WINDOW)

    def median(self, stage: str) -> float:
        return statistics.median(self.spent[stage][1:])  # the first round compiles


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("anchor", nargs="?")
    parser.add_argument("--lean", action="store_true")
    parser.add_argument("--rounds", type=int, default=4)
    arguments = parser.parse_args()
    anchor = load_anchor(arguments.anchor) if arguments.anchor else list_anchors()[0]
    clock = CpuClock()
    with tempfile.TemporaryDirectory() as folder:
        networks = anchor.file("body")
        if arguments.lean:
            torch.manual_seed(0)
            NativeNetworks(**LEAN).save(networks := Path(folder) / "body")
        measure(anchor, networks, clock, arguments.rounds)
    for name in ("skinning", "rasteriser", "condition", "unet", "decoder"):
        torch_time, engine_time = (clock.median(f"{kind} {name}") for kind in ("torch", "openvino"))
        print(f"{name:10} torch {torch_time:6.1f} ms, OpenVINO {engine_time:6.1f} ms: {torch_time / engine_time:.1f} x")


def measure(anchor: Anchor, folder: Path, clock: CpuClock, rounds: int) -> None:
    motion = make_motion(load_speech(sample()), RenderSettings(), anchor.manifest.fps)
    plain = NativeNetworks.load(folder).eval().to(memory_format=torch.channels_last)
    engine = EngineNetworks(folder, together=False)
    noise = torch.randn(WINDOW, *plain.latent_shape(anchor.manifest.height, anchor.manifest.width))
    for number in range(rounds):
        part = motion[number * WINDOW : (number + 1) * WINDOW]
        for kind in ("torch", "openvino"):
            with clock(f"{kind} skinning"):
                vertices = anchor.vertices(part)
            with clock(f"{kind} rasteriser"):
                maps = render_conditions(anchor.body, vertices, anchor.camera)
            chunks = np.split(maps, WINDOW // BATCH)
            with torch.inference_mode():
                if kind == "torch":
                    with clock("torch condition"):
                        made = [plain.condition(torch.from_numpy(chunk).permute(0, 3, 1, 2)) for chunk in chunks]
                    with clock("torch unet"):
                        latents = torch.cat(
                            [plain.predict(z, 999, c) for z, c in zip(noise.split(BATCH), made, strict=True)]
                        )
                    network = plain
                else:
                    with clock("openvino condition"):
                        made = [engine.condition(chunk) for chunk in chunks]
                    with clock("openvino unet"):
                        latents = torch.cat(
                            [engine.predict(z, 999, c, BATCH) for z, c in zip(noise.split(BATCH), made, strict=True)]
                        )
                    network = engine
                with clock(f"{kind} decoder"):
                    for z, condition in zip(latents.split(BATCH), made, strict=True):
                        network.decode(z, condition)


def sample() -> Path:
    from avatar_app.bench import sample_files

    return sample_files()[0]


if __name__ == "__main__":
    main()
