"""The native networks on OpenVINO: on a CPU several times as fast as plain torch and equal to it within 1e-3.

Frames are drawn, encoded and painted one by one, each on one core and as many at a time as there are cores: cheaper
than one frame on all cores, and no core waits for another. Graphs read and write numpy arrays in place.

AVATAR_APP_ENGINE chooses: "openvino", "torch", "compiled" (torch.compile takes half a minute or more, which only long
videos on a GPU win back), or "auto", the default: OpenVINO on a CPU where it is installed, else torch.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from avatar_app.diffusion.compact import load_compact
from avatar_app.diffusion.denoise import seeded_noise
from avatar_app.diffusion.features import (
    PART_GROUPS,
    WHOLE,
    Condition,
    condition_features,
    draw_features,
)
from avatar_app.diffusion.frames import NO_PLATE, NO_SHARE, compose_corrected
from avatar_app.diffusion.graphs import (
    GRAPHS,
    core,
    engine_version,
    graphs_folder,
    in_8_bits,
    keep_graphs,
    load_graphs,
    read_graphs,
)
from avatar_app.mesh.camera import Camera
from avatar_app.mesh.conditions import CHANNELS, look
from avatar_app.stages import cores, each
from avatar_app.weights import read_config
from talkshow_bridge.errors import InputError

CHOICES = ("auto", "torch", "compiled", "openvino")
FAST_FLOATS = ("unet", "decoder")  # run in bfloat16 beside the 8 bits, where the CPU computes in it


def engine_choice() -> str:
    """One of `CHOICES`. Raises InputError for anything else in AVATAR_APP_ENGINE."""
    choice = os.environ.get("AVATAR_APP_ENGINE") or "auto"
    if choice not in CHOICES:
        raise InputError(f"AVATAR_APP_ENGINE must be one of {', '.join(CHOICES)}, not {choice!r}.")
    return choice


def engine_wanted(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether native networks run on OpenVINO here. Raises InputError when it is asked for and cannot."""
    choice = engine_choice()
    possible = engine_version() is not None and device.type == "cpu" and dtype == torch.float32
    if choice == "openvino" and not possible:
        raise InputError("AVATAR_APP_ENGINE asks for OpenVINO, which is not installed or does not serve this device.")
    return possible and choice in ("auto", "openvino")


class EngineNetworks:
    """Stands in for `NativeNetworks` where nothing is trained, taking and giving torch tensors.

    folder: as `NativeNetworks.save` wrote it. together: the frames of a window see each other. typical: makes what
    `condition` takes, maps and places that are like those to come; with it the networks compute in 8 bits, for which
    1e-3 does not hold any more.
    `Condition.detail` and `.base` are kept channels-last, (N, H, W, c). Raises InputError like `NativeNetworks.load`.
    """

    def __init__(self, folder: Path, together: bool, typical: Callable[[], tuple] | None = None):
        self._together, self._rounded = together, False
        self._autoencoder = read_config(folder / "autoencoder" / "config.json", "an Autoencoder")
        encoder = _encoder_pictures(folder / "condition_encoder")
        self._texture, self._plate = (_channels_last(encoder[name]) for name in ("texture", "plate"))
        self._features = self._texture.shape[2] + 3 + len(PART_GROUPS) + 2
        self._compiled: dict[tuple, object] = {}
        self._lock, self._local = threading.Lock(), threading.local()
        kept = graphs_folder(folder, together)
        self._graphs = load_graphs(folder, together, kept)
        if typical is not None:
            self._graphs, self._rounded = self._graphs_in_8_bits(typical, kept), True

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        scale = self._autoencoder["downscale"]
        return self._autoencoder["latent_channels"], height // scale, width // scale

    def condition(self, maps: np.ndarray, place: np.ndarray | None = None) -> Condition:
        """Condition maps (N, H, W, 10) float32, place (N, 2, H, W) or None -> what `predict` and `paint` need."""
        places = _places(maps, place)

        def see(n: int, base: np.ndarray) -> np.ndarray:
            features = self._mine("features", maps.shape[1:3], self._blank)
            condition_features(maps[n], places[n], self._texture, self._plate, base, features)
            return features

        return self._encode(len(maps), maps.shape[1:3], see)

    def draw(self, body, vertices: np.ndarray, camera: Camera) -> tuple[Condition, np.ndarray]:
        """`condition` of the maps that `render_conditions` draws of posed vertices (N, V, 3), without drawing them.

        Also coarse (N, ceil(H / 4), ceil(W / 4)) float32: 1 where pixels show the body, else 0.
        """
        size = camera.height, camera.width
        empty, empty_base = self._shared("empty", size, self._empty)
        coarse = np.empty((len(vertices), -(-size[0] // 4), -(-size[1] // 4)), np.float32)

        def see(n: int, base: np.ndarray) -> np.ndarray:
            features, touched = self._mine("drawn", size, lambda size: (empty.copy(), np.zeros(size, bool)))
            np.copyto(base, empty_base)
            seen = *look(body, vertices[n], camera), body.faces, body.face_uv, body.part
            draw_features(*seen, self._texture, empty, touched, base, coarse[n], features)
            return features

        return self._encode(len(vertices), size, see), coarse

    def _encode(self, count: int, size: tuple[int, int], see: Callable[[int, np.ndarray], np.ndarray]) -> Condition:
        """see(frame, base) fills the base and returns the features, which are free again at the next call."""
        outputs = self._program("encoder", (1, *size, self._features)).outputs
        latent, detail = (np.empty((count, *port.shape[1:]), np.float32) for port in outputs)
        base = np.empty((count, *size, 3), np.float32)

        def work(n: int) -> None:
            self._run("encoder", [see(n, base[n])[None]], [latent[n : n + 1], detail[n : n + 1]])

        each(work, range(count))
        return Condition(*map(torch.from_numpy, (latent, detail, base)))

    def predict(self, latents: Tensor, timestep: Tensor | int, condition: Tensor, window: int) -> Tensor:
        """Noisy latents (N, z, h, w) of windows of `window` frames at `timestep` (int or (N,)) -> clean latents.

        condition: `Condition.latent` of these frames."""
        steps = torch.as_tensor(timestep).to(torch.int64).expand(len(latents)).contiguous()
        inputs = [value.contiguous().numpy() for value in (latents, steps, condition)]
        clean, size = np.empty_like(inputs[0]), window if self._together else 1

        def work(start: int) -> None:
            now = slice(start, start + size)
            self._run("unet", [value[now] for value in inputs], [clean[now]])

        each(work, range(0, len(clean), size))
        return torch.from_numpy(clean)

    def paint(
        self,
        latents: Tensor,
        detail: Tensor,
        base: Tensor,
        plate: np.ndarray = NO_PLATE,
        shares: np.ndarray | None = None,
    ) -> np.ndarray:
        """Clean latents and the condition's other parts -> uint8 frames (N, H, W, 3), over a plate as in `compose`."""
        frames = np.empty(base.shape, np.uint8)
        halves = (1, frames.shape[1] // 2, frames.shape[2] // 2, 12)

        def work(latent: np.ndarray, detail: np.ndarray, base: np.ndarray, share: np.ndarray, out: np.ndarray) -> None:
            correction = self._mine("correction", halves, lambda shape: np.empty(shape, np.float32))
            self._run("decoder", [latent[None], detail[None]], [correction])
            compose_corrected(correction[0], base, plate, share, out)

        shares = [NO_SHARE] * len(frames) if shares is None else shares
        each(work, latents.contiguous().numpy(), detail.numpy(), base.numpy(), shares, frames)
        return frames

    def _blank(self, size: tuple[int, int]) -> np.ndarray:
        return np.empty((*size, self._features), np.float32)

    def _empty(self, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Features and base of a whole picture without a person."""
        features, base = self._blank(size), np.empty((*size, 3), np.float32)
        maps = np.zeros((*size, CHANNELS), np.float32)
        condition_features(maps, WHOLE, self._texture, self._plate, base, features)
        return features, base

    def _graphs_in_8_bits(self, typical: Callable[[], tuple], kept: Path) -> dict:
        """The 8-bit graphs, from disk or, the first time, made from typical maps."""
        try:
            return read_graphs(kept, GRAPHS, "8")
        except RuntimeError:
            rounded = self._rounded_graphs(*typical())
        with contextlib.suppress(OSError):
            keep_graphs(rounded, kept, "8")
        self._compiled.clear()
        self._local = threading.local()
        return rounded

    def _rounded_graphs(self, maps: np.ndarray, place: np.ndarray | None) -> dict:
        """With the ranges that values have on these maps, at the first and at the last step."""
        features, base = [self._blank(maps.shape[1:3]) for _ in maps], np.empty((*maps.shape[1:3], 3), np.float32)
        for *seen, out in zip(maps, _places(maps, place), features, strict=True):
            condition_features(*seen, self._texture, self._plate, base, out)
        condition, count = self.condition(maps, place), len(maps)
        noise = seeded_noise(self.latent_shape(*maps.shape[1:3]), 0).repeat(count, 1, 1, 1)
        clean = self.predict(noise, 999, condition.latent, count)
        steps = ((noise, 999), (clean, 0))
        inputs = {
            "encoder": [[part[None]] for part in features],
            "unet": [[x.numpy(), np.full(count, step), condition.latent.numpy()] for x, step in steps],
            "decoder": [[z[None], d[None]] for z, d in zip(clean.numpy(), condition.detail.numpy(), strict=True)],
        }
        return {name: in_8_bits(self._graphs[name], inputs[name]) for name in GRAPHS}

    def _run(self, name: str, inputs: list[np.ndarray], outputs: list[np.ndarray]) -> None:
        """One graph on contiguous arrays of any shapes that it can be compiled for, into contiguous arrays."""
        from openvino import Tensor as Memory

        shapes = [value.shape for value in inputs]
        request = self._mine("request", (name, *shapes), lambda key: self._program(*key).create_infer_request())
        for number, value in enumerate(inputs):
            request.set_input_tensor(number, Memory(value, shared_memory=True))
        for number, value in enumerate(outputs):
            request.set_output_tensor(number, Memory(value, shared_memory=True))
        request.infer()

    def _mine(self, kind: str, key: tuple, make: Callable[[tuple], object]):
        """What this thread alone uses, made at its first use."""
        mine = self._local.__dict__
        if (kind, key) not in mine:
            mine[kind, key] = make(key)
        return mine[kind, key]

    def _shared(self, kind: str, key: tuple, make: Callable[[tuple], object]):
        """What all threads use, made at its first use."""
        with self._lock:
            if (kind, key) not in self._compiled:
                self._compiled[kind, key] = make(key)
            return self._compiled[kind, key]

    def _program(self, name: str, *shapes: tuple[int, ...]):
        """A graph compiled for inputs of fixed shapes."""
        return self._shared(name, shapes, partial(self._compile, name))

    def _compile(self, name: str, shapes: tuple[tuple[int, ...], ...]):
        """The UNet runs once a window, beside the frames' stages; these run on all cores at once."""
        model = self._graphs[name].clone()
        model.reshape(dict(enumerate(map(list, shapes))))
        streams = 1 if name == "unet" and self._together else cores()
        short = self._rounded and name in FAST_FLOATS and "BF16" in _capabilities()
        options = {
            "INFERENCE_PRECISION_HINT": "bf16" if short else "f32",
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": max(streams, cores() // 2),
            "ENABLE_CPU_PINNING": False,
        }
        return core().compile_model(model, "CPU", options)


@cache
def _capabilities() -> tuple[str, ...]:
    """What the CPU computes in by itself, as OpenVINO names it."""
    return tuple(core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


def _places(maps: np.ndarray, place: np.ndarray | None) -> np.ndarray | list[np.ndarray]:
    """For each of the maps what `condition_features` calls place."""
    return [WHOLE] * len(maps) if place is None else np.ascontiguousarray(place.transpose(0, 2, 3, 1))


def _channels_last(picture: Tensor) -> np.ndarray:
    """(1, c, h, w) -> (h, w, c)."""
    return np.ascontiguousarray(picture[0].permute(1, 2, 0).numpy())


def _encoder_pictures(folder: Path) -> dict[str, Tensor]:
    try:
        weights = load_compact(folder / "diffusion_pytorch_model.safetensors")
        return {name: weights[name] for name in ("texture", "plate")}
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"The weights in '{folder.parent.name}/{folder.name}' cannot be used: {reason}") from None
