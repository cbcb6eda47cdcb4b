"""The native networks on OpenVINO: on a CPU several times as fast as plain torch and equal to it within 1e-3.

Torch traces each network once; the graphs are kept on disk under a name made of all they depend on, so that later
starts need neither the tracing nor diffusers. Frames are encoded and decoded one by one, each on one core and as many
at a time as there are cores: cheaper than one frame on all cores, and no core waits for another.

AVATAR_APP_ENGINE chooses: "torch", "openvino", or "auto", the default: OpenVINO on a CPU where it is installed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from avatar_app.diffusion.compact import load_compact
from avatar_app.diffusion.denoise import seeded_noise
from avatar_app.diffusion.features import PART_GROUPS, UNKNOWN, WHOLE, Condition, condition_features
from avatar_app.estimate import cache_folder
from avatar_app.mesh.conditions import CHANNELS
from talkshow_bridge.errors import InputError

log = logging.getLogger(__name__)

LAYOUT = 2  # of the kept graphs; another number makes them anew
KEPT = 12  # sets of graphs that stay on disk
CHOICES = ("auto", "torch", "openvino")
GRAPHS = ("encoder", "unet", "decoder")
ROUNDED = ("encoder", "decoder")  # those that 8 bits suffice for
PAINTER = ".paint/"  # in the name of the convolution that writes the picture


def engine_version() -> str | None:
    """The installed OpenVINO, or None."""
    try:
        return version("openvino")
    except PackageNotFoundError:
        return None


def engine_wanted(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether native networks run on OpenVINO here. Raises InputError when it is asked for and cannot."""
    choice = os.environ.get("AVATAR_APP_ENGINE") or "auto"
    if choice not in CHOICES:
        raise InputError(f"AVATAR_APP_ENGINE must be one of {', '.join(CHOICES)}, not {choice!r}.")
    possible = engine_version() is not None and device.type == "cpu" and dtype == torch.float32
    if choice == "openvino" and not possible:
        raise InputError("AVATAR_APP_ENGINE asks for OpenVINO, which is not installed or does not serve this device.")
    return possible and choice != "torch"


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def workers() -> ThreadPoolExecutor:
    """One thread a core, for work on single frames that releases the GIL."""
    return ThreadPoolExecutor(cores(), "frames")


def each(work: Callable, *items: Iterable) -> list:
    """[work(...) for ... in zip(*items)], on all cores; the first error is raised when all are done."""
    futures = [workers().submit(work, *arguments) for arguments in zip(*items, strict=True)]
    errors = [future.exception() for future in futures]
    for error in filter(None, errors):
        raise error
    return [future.result() for future in futures]


class EngineNetworks:
    """Stands in for `NativeNetworks` where nothing is trained: the same calls, taking and giving torch tensors.

    folder: as `NativeNetworks.save` wrote it. together: the frames of a window see each other. typical: makes condition
    maps (n, H, W, 10) that are like those to come; with it encoder and decoder compute in 8 bits, for which 1e-3 does
    not hold any more.
    `Condition.detail` and `.base` are kept channels-last, (N, H, W, c). Raises InputError like `NativeNetworks.load`.
    """

    def __init__(self, folder: Path, together: bool, typical: Callable[[], np.ndarray] | None = None):
        self._together = together
        self.autoencoder = SimpleNamespace(config=SimpleNamespace(**_config(folder / "autoencoder")))
        encoder = _encoder_pictures(folder / "condition_encoder")
        self._texture, self._plate = (_channels_last(encoder[name]) for name in ("texture", "plate"))
        self._features = self._texture.shape[2] + 3 + len(PART_GROUPS) + 2
        self._kept = cache_folder() / "engines" / _fingerprint(folder, together)
        self._graphs = _graphs(folder, together, self._kept)
        self._backgrounds: dict[tuple[int, int], np.ndarray] = {}
        self._compiled: dict[tuple, object] = {}
        self._lock, self._local = threading.Lock(), threading.local()
        if typical is not None:
            self._compute_in_8_bits(typical)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        scale = self.autoencoder.config.downscale
        return self.autoencoder.config.latent_channels, height // scale, width // scale

    def condition(self, maps: np.ndarray, place: np.ndarray | None = None) -> Condition:
        """Condition maps (N, H, W, 10) float32, place (N, 2, H, W) or None -> what `predict` and `decode` need."""
        places = [WHOLE] * len(maps) if place is None else np.ascontiguousarray(place.transpose(0, 2, 3, 1))
        return Condition(*map(_stack, zip(*each(self._encode, maps, places), strict=True)))

    def _encode(self, maps: np.ndarray, place: np.ndarray) -> tuple[np.ndarray, ...]:
        height, width = maps.shape[:2]
        base = np.empty((height, width, 3), np.float32)
        encoder = self._graph("encoder", (1, height, width, self._features))
        empty = self._empty(height, width) if place is WHOLE else UNKNOWN
        condition_features(maps, place, self._texture, self._plate, empty, base, encoder.inputs[0][0])
        latent, detail = encoder.run()
        return latent[0], detail[0], base

    def _compute_in_8_bits(self, typical: Callable[[], np.ndarray]) -> None:
        """Replace encoder and decoder by their 8-bit graphs, from disk or, the first time, made from typical maps."""
        try:
            rounded = {name: _core().read_model(self._kept / f"{name}8.xml") for name in ROUNDED}
        except RuntimeError:
            rounded = self._rounded(typical())
            with contextlib.suppress(OSError):
                _keep({f"{name}8": model for name, model in rounded.items()}, self._kept)
        with self._lock:
            self._graphs |= rounded
            self._compiled.clear()
            self._local = threading.local()

    def _rounded(self, maps: np.ndarray) -> dict:
        """{name: openvino.Model} of the 8-bit graphs, with the ranges that values have in one step on these maps."""
        count, height, width = maps.shape[:3]
        features = np.empty((count, height, width, self._features), np.float32)
        base = np.empty((height, width, 3), np.float32)
        for picture, out in zip(maps, features, strict=True):
            condition_features(picture, WHOLE, self._texture, self._plate, UNKNOWN, base, out)
        condition = self.condition(maps)
        noise = seeded_noise(self.latent_shape(height, width), 0).expand(count, -1, -1, -1)
        latents = self.predict(noise, 999, condition, count)
        inputs = {
            "encoder": [[part[None]] for part in features],
            "decoder": [[z[None], d[None]] for z, d in zip(latents.numpy(), condition.detail.numpy(), strict=True)],
        }
        return {name: in_8_bits(self._graphs[name], inputs[name]) for name in ROUNDED}

    def _empty(self, height: int, width: int) -> np.ndarray:
        """The features of a whole picture without a person."""
        if (height, width) not in self._backgrounds:
            maps = np.zeros((height, width, CHANNELS), np.float32)
            base = np.empty((height, width, 3), np.float32)
            features = np.empty((height, width, self._features), np.float32)
            condition_features(maps, WHOLE, self._texture, self._plate, UNKNOWN, base, features)
            self._backgrounds[height, width] = features
        return self._backgrounds[height, width]

    def predict(self, latents: Tensor, timestep: Tensor | int, condition: Condition, window: int) -> Tensor:
        """Noisy latents (N, z, h, w) of windows of `window` frames at `timestep` (int or (N,)) -> clean latents."""
        steps = torch.as_tensor(timestep).to(torch.int64).expand(len(latents)).numpy()
        inputs, size = (latents.numpy(), steps, condition.latent.numpy()), window if self._together else 1
        parts = ([part[n : n + size] for n in range(0, len(part), size)] for part in inputs)
        return torch.from_numpy(np.concatenate(each(lambda *part: self._run("unet", *part)[0], *parts)))

    def decode(self, latents: Tensor, condition: Condition) -> Tensor:
        """Clean latents -> pictures (N, 3, H, W), about [-1, 1], channels-last in memory."""

        def work(latent: np.ndarray, detail: np.ndarray, base: np.ndarray) -> np.ndarray:
            return self._run("decoder", latent[None], detail[None])[0][0] + base

        pictures = each(work, latents.numpy(), condition.detail.numpy(), condition.base.numpy())
        return _stack(pictures).permute(0, 3, 1, 2)

    def _run(self, name: str, *inputs: np.ndarray) -> list[np.ndarray]:
        """One graph on arrays of any shapes that it can be compiled for."""
        graph = self._graph(name, *(value.shape for value in inputs))
        for place, value in zip(graph.inputs, inputs, strict=True):
            np.copyto(place, value)
        return graph.run()

    def _graph(self, name: str, *shapes: tuple[int, ...]) -> _Graph:
        """This thread's instance of a graph for inputs of fixed shapes."""
        mine, key = self._local.__dict__, (name, *shapes)
        if key not in mine:
            with self._lock:
                if key not in self._compiled:
                    self._compiled[key] = self._compile(key)
            mine[key] = _Graph(self._compiled[key])
        return mine[key]

    def _compile(self, key: tuple):
        """For fixed shapes. The UNet runs once a window, beside the frames' stages; these run on all cores at once."""
        name, *shapes = key
        model = self._graphs[name].clone()
        model.reshape(dict(enumerate(map(list, shapes))))
        streams = 1 if name == "unet" and self._together else cores()
        options = {
            "INFERENCE_PRECISION_HINT": "f32",
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": max(streams, cores() // 2),
            "ENABLE_CPU_PINNING": False,
        }
        return _core().compile_model(model, "CPU", options)


class _Graph:
    """One thread's way to run a compiled model, with input arrays of its own."""

    def __init__(self, compiled):
        from openvino import Tensor as Memory

        self._request = compiled.create_infer_request()
        self.inputs = [np.empty(tuple(port.shape), port.element_type.to_dtype()) for port in compiled.inputs]
        self._memory = [Memory(array, shared_memory=True) for array in self.inputs]
        for number, memory in enumerate(self._memory):
            self._request.set_input_tensor(number, memory)
        self._outputs = range(len(compiled.outputs))

    def run(self) -> list[np.ndarray]:
        self._request.infer()
        return [self._request.get_output_tensor(number).data.copy() for number in self._outputs]


@cache
def _core():
    from openvino import Core

    return Core()


def _stack(arrays: Iterable[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(list(arrays)))


def _channels_last(picture: Tensor) -> np.ndarray:
    """(1, c, h, w) -> (h, w, c)."""
    return np.ascontiguousarray(picture[0].permute(1, 2, 0).numpy())


def _config(folder: Path) -> dict:
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise InputError(f"'{folder.parent.name}/{folder.name}' has no readable config.json.") from None


def _encoder_pictures(folder: Path) -> dict[str, Tensor]:
    try:
        weights = load_compact(folder / "diffusion_pytorch_model.safetensors")
        return {name: weights[name] for name in ("texture", "plate")}
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"The weights in '{folder.parent.name}/{folder.name}' cannot be used: {reason}") from None


# ----------------------------------------------------------------------------- graphs


def _graphs(folder: Path, together: bool, kept: Path) -> dict:
    """{name: openvino.Model} of a folder of networks, from `kept` or, the first time, traced and put there."""
    try:
        return {name: _core().read_model(kept / f"{name}.xml") for name in GRAPHS}
    except RuntimeError:
        log.info("Tracing the networks of %s", folder)
    models = _trace(folder, together)
    try:
        _keep(models, kept)
    except OSError:
        log.info("%s cannot be written: the networks are traced at every start", kept.parent)
        return models
    return {name: _core().read_model(kept / f"{name}.xml") for name in GRAPHS}


def _fingerprint(folder: Path, together: bool) -> str:
    """Of all files in a folder and of all that makes graphs from them."""
    digest = hashlib.sha256(f"{LAYOUT} {engine_version()} {torch.__version__} {together}".encode())
    for file in sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".safetensors")):
        digest.update(file.relative_to(folder).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:32]


def _keep(models: dict, folder: Path) -> None:
    """Write graphs into a folder, each complete before its name is there; the eldest folders go. Raises OSError."""
    from openvino import save_model

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        for name, model in models.items():
            save_model(model, Path(temporary) / f"{name}.xml", compress_to_fp16=False)
        for suffix in (".bin", ".xml"):  # whoever finds the second finds the first
            for name in models:
                os.replace(Path(temporary) / f"{name}{suffix}", folder / f"{name}{suffix}")
    others = sorted(folder.parent.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in others[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)


def in_8_bits(model, inputs: list[list[np.ndarray]]):
    """The model with its convolutions rounded to 8 bits; ranges are those of the float model on `inputs`.

    Weights get a scale a channel. A last convolution that writes the picture stays as it is.
    """
    from openvino import Model, opset13

    model = model.clone()
    convolutions = [node for node in model.get_ordered_ops() if node.get_type_name() == "Convolution"]
    convolutions = [node for node in convolutions if PAINTER not in node.get_friendly_name()]
    sources = [node.input_value(0) for node in convolutions]
    probe = Model([opset13.result(source) for source in sources], model.get_parameters(), "ranges").clone()
    probe = _core().compile_model(probe, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    seen = np.array([[(value.min(), value.max()) for value in probe(each).values()] for each in inputs])
    for node, source, low, high in zip(convolutions, sources, seen[..., 0].min(0), seen[..., 1].max(0), strict=True):
        if low < 0:
            low, high = -max(-low, high), max(-low, high) * 127 / 128
        weights = node.input_value(1).get_node().get_data()
        most = np.abs(weights).max(axis=(1, 2, 3), keepdims=True) + np.float32(1e-8)
        node.input(0).replace_source_output(_rounded_to(source, np.float32(low), np.float32(high), 256))
        node.input(1).replace_source_output(_rounded_to(opset13.constant(weights), -most, most, 255))
    model.validate_nodes_and_infer_types()
    return model


def _rounded_to(source, low: np.ndarray, high: np.ndarray, levels: int):
    from openvino import opset13

    ends = [opset13.constant(end) for end in (low, high, low, high)]
    return opset13.fake_quantize(source, *ends, levels).output(0)


@torch.inference_mode(False)
@torch.no_grad()
def _trace(folder: Path, together: bool) -> dict:
    """openvino.Model of encoder, UNet and decoder, all sizes free. Raises InputError like `NativeNetworks.load`.

    The frontend is called directly: the converter around it would report its use to the manufacturer.
    """
    from avatar_app.diffusion.networks import NativeNetworks

    networks = NativeNetworks.load(folder).eval().requires_grad_(False)
    encoder, autoencoder = networks.condition_encoder, networks.autoencoder
    if together:
        sees_itself = (name for name in networks.unet.attn_processors if ".attn1." in name)
        networks.unet.set_attn_processor(networks.unet.attn_processors | dict.fromkeys(sees_itself, _AllFrames()))
    side, count = 8 * autoencoder.config.downscale, 2
    latents = torch.zeros(count, *networks.latent_shape(side, side))
    condition = torch.zeros(count, encoder.config.latent_width, *latents.shape[2:])
    steps = torch.full((count,), 999)
    features = torch.zeros(1, side, side, encoder.detail.in_channels)
    detail = torch.zeros(1, side // 2, side // 2, encoder.config.detail_width)
    return {
        "encoder": _convert(_Encoder(encoder), features),
        "unet": _convert(_UNet(networks), latents, steps, condition),
        "decoder": _convert(_Decoder(autoencoder), latents[:1], detail),
    }


def _convert(network: nn.Module, *example: Tensor):
    import warnings

    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about sizes that the graph shall not depend on; tests compare several
        traced = TorchScriptPythonDecoder(
            network.eval(), example_input=example, shared_memory=False, trace_kwargs={"check_trace": False}
        )
        frontend = FrontEndManager().load_by_framework("pytorch")
        model = frontend.convert(frontend.load(traced))
    model.reshape({n: [-1] * value.ndim for n, value in enumerate(example)})
    return model


class _AllFrames:
    """Attention processor: the tokens of all frames form one sequence."""

    def __call__(self, attn, hidden_states: Tensor, encoder_hidden_states=None, **unused) -> Tensor:
        from diffusers.models.attention_processor import AttnProcessor2_0

        together = hidden_states.flatten(0, 1).unsqueeze(0)
        return AttnProcessor2_0()(attn, together).reshape(hidden_states.shape)


class _Encoder(nn.Module):
    """Features (N, H, W, F) -> latent (N, c, h, w) and detail (N, H/2, W/2, d)."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.detail, self.down = encoder.detail, encoder.down

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        detail = self.detail(features.permute(0, 3, 1, 2))
        return self.down(detail), detail.permute(0, 2, 3, 1)


class _UNet(nn.Module):
    """Latents (N, z, h, w), timesteps (N,), encoded conditions (N, c, h, w) -> clean latents."""

    def __init__(self, networks: nn.Module):
        super().__init__()
        self.unet, self.token = networks.unet, networks.token

    def forward(self, latents: Tensor, timestep: Tensor, condition: Tensor) -> Tensor:
        token = self.token.expand(latents.shape[0], -1, -1)
        return self.unet(torch.cat([latents, condition], 1), timestep, token, return_dict=False)[0]


class _Decoder(nn.Module):
    """Latents (N, z, h, w), detail (N, H/2, W/2, d) -> what the base picture lacks, (N, H, W, 3)."""

    def __init__(self, autoencoder: nn.Module):
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, latents: Tensor, detail: Tensor) -> Tensor:
        parts = self.autoencoder
        half = parts.merge(torch.cat([parts.decoder(latents), functional.silu(detail.permute(0, 3, 1, 2))], 1))
        return functional.pixel_shuffle(parts.paint(parts.finish(half)), 2).permute(0, 2, 3, 1)
