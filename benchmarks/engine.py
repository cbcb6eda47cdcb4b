"""What the CPU engine saves, stage by stage: `python benchmarks/engine.py [ANCHOR] [--lean]`.

Prints CPU milliseconds a frame of everything that makes a frame of a native anchor, networks in plain torch, on
OpenVINO and there in 8 bits, in one run: medians of windows of 16 frames that alternate between the three. CPU time of
the whole process is taken, because other work on the machine changes it least: n idle cores need about an n-th of it.
The last line tells how much of the picture a decoder would have to paint that only works on the person's box.
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
from functools import partial
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from avatar_app.anchors import Anchor, list_anchors, load_anchor
from avatar_app.bench import sample_files
from avatar_app.diffusion.engine import EngineNetworks
from avatar_app.diffusion.features import Condition
from avatar_app.diffusion.frames import coarse_surroundings, composed, person_mask, to_bytes_range
from avatar_app.diffusion.networks import NativeNetworks
from avatar_app.diffusion.painters import typical_maps
from avatar_app.mesh.conditions import render_conditions
from avatar_app.pipeline import make_motion
from avatar_app.settings import RenderSettings
from talkshow_bridge.audio import load_speech

WINDOW, BATCH = 16, 4
KINDS = ("torch", "OpenVINO", "8 bits")
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
    for stage in ("skinning", "rasteriser"):
        print(f"{stage:10} {clock.median(stage):6.1f} ms")
    print(f"drawn      {clock.median('drawn'):6.1f} ms: rasteriser and condition in one, in 8 bits")
    for stage in ("condition", "unet", "decoder"):
        plain, *fast = (clock.median(f"{kind} {stage}") for kind in KINDS)
        ratios = ", ".join(f"{kind} {ms:.1f} ms ({plain / ms:.1f} x)" for kind, ms in zip(KINDS[1:], fast, strict=True))
        print(f"{stage:10} {plain:6.1f} ms in torch, {ratios}")


def measure(anchor: Anchor, folder: Path, clock: CpuClock, rounds: int) -> None:
    motion = make_motion(load_speech(sample_files()[0]), RenderSettings(), anchor.manifest.fps)
    networks = (
        PlainNetworks(NativeNetworks.load(folder).eval().to(memory_format=torch.channels_last)),
        EngineNetworks(folder, together=False),
        EngineNetworks(folder, False, partial(typical_maps, anchor)),
    )
    boxes = []
    for number in range(rounds):
        with clock("skinning"):
            vertices = anchor.vertices(motion[number * WINDOW : (number + 1) * WINDOW])
        with clock("rasteriser"):
            maps = render_conditions(anchor.body, vertices, anchor.camera)
        with clock("drawn"):
            for n in range(0, WINDOW, BATCH):
                networks[-1].draw(anchor.body, vertices[n : n + BATCH], anchor.camera)
        boxes += [box_share(seen) for seen in coarse_surroundings(torch.from_numpy(person_mask(maps))) > 0]
        for kind, network in zip(KINDS, networks, strict=True):
            window(network, np.split(maps, WINDOW // BATCH), partial(clock_stage, clock, kind))
    print(f"the person's box, soft surroundings included: {statistics.mean(boxes):.0%} of the picture")


@torch.inference_mode()
def window(networks, chunks: list[np.ndarray], clock) -> None:
    """One window of frames through all networks, frame by frame."""
    noise = torch.randn(BATCH, *networks.latent_shape(*chunks[0].shape[1:3]))
    with clock("condition"):
        conditions = [networks.condition(chunk) for chunk in chunks]
    with clock("unet"):
        latents = [networks.predict(noise, 999, condition.latent, 1) for condition in conditions]
    with clock("decoder"):
        for clean, condition in zip(latents, conditions, strict=True):
            networks.paint(clean, condition.detail, condition.base)


class PlainNetworks:
    """`NativeNetworks` with the calls of `EngineNetworks`."""

    def __init__(self, networks: NativeNetworks):
        self._networks, self.latent_shape = networks, networks.latent_shape

    def condition(self, maps: np.ndarray) -> Condition:
        return self._networks.condition(torch.from_numpy(maps).permute(0, 3, 1, 2))

    def predict(self, latents: torch.Tensor, timestep: int, condition: torch.Tensor, window: int) -> torch.Tensor:
        return self._networks.predict(latents, timestep, Condition(condition, None, None))

    def paint(self, latents: torch.Tensor, detail: torch.Tensor, base: torch.Tensor) -> np.ndarray:
        return composed(to_bytes_range(self._networks.decode(latents, Condition(None, detail, base))))


def clock_stage(clock: CpuClock, kind: str, stage: str):
    return clock(f"{kind} {stage}")


def box_share(seen: torch.Tensor) -> float:
    """Share of the picture in the box around all that is seen of the painted one."""
    rows, columns = (torch.nonzero(seen.any(dim=k)).flatten() for k in (1, 0))
    return float((rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)) / seen.numel()


if __name__ == "__main__":
    main()
