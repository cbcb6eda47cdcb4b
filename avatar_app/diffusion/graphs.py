"""The native networks as OpenVINO graphs: traced once, kept on disk, rounded to 8 bits.

They are kept under a name made of all they depend on, so that later starts need neither the tracing nor diffusers.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import tempfile
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from avatar_app.estimate import cache_folder

log = logging.getLogger(__name__)

LAYOUT = 4  # of the kept graphs; another number makes them anew
KEPT = 12  # sets of graphs that stay on disk
GRAPHS = ("encoder", "unet", "decoder")
PAINTER = ".paint/"  # in the name of the convolution that writes the picture
RGB_BY_PIXEL = [4 * color + corner for corner in range(4) for color in range(3)]  # the order of pixel shuffle, undone


def engine_version() -> str | None:
    """The installed OpenVINO, or None."""
    try:
        return version("openvino")
    except PackageNotFoundError:
        return None


@cache
def core():
    from openvino import Core

    return Core()


def graphs_folder(folder: Path, together: bool) -> Path:
    """Where the graphs of a folder of networks are kept. Its name depends on all files and all that makes graphs."""
    digest = hashlib.sha256(f"{LAYOUT} {engine_version()} {torch.__version__} {together}".encode())
    for file in sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".safetensors")):
        digest.update(file.relative_to(folder).as_posix().encode() + b"\0" + file.read_bytes())
    return cache_folder() / "engines" / digest.hexdigest()[:32]


def load_graphs(folder: Path, together: bool, kept: Path) -> dict:
    """{name: openvino.Model} of a folder of networks, from `kept` or, the first time, traced and put there.

    encoder: features (N, H, W, F) -> latent (N, c, h, w) and detail (N, H/2, W/2, d).
    unet: latents (N, z, h, w), timesteps (N,), encoded conditions (N, c, h, w) -> clean latents; together: the frames
    of a window see each other.   decoder: latents, detail -> correction of `features.compose_corrected`.
    Raises InputError like `NativeNetworks.load`.
    """
    try:
        models = read_graphs(kept, GRAPHS)
        with contextlib.suppress(OSError):
            os.utime(kept)  # the eldest by use go first
        return models
    except RuntimeError:
        log.info("Tracing the networks of %s", folder)
    models = _trace(folder, together)
    try:
        keep_graphs(models, kept)
    except OSError:
        log.info("%s cannot be written: the networks are traced at every start", kept.parent)
        return models
    return read_graphs(kept, GRAPHS)


def read_graphs(kept: Path, names: tuple[str, ...], suffix: str = "") -> dict:
    """Raises RuntimeError when one is missing."""
    return {name: core().read_model(kept / f"{name}{suffix}.xml") for name in names}


def keep_graphs(models: dict, folder: Path, suffix: str = "") -> None:
    """Write graphs into a folder, each complete before its name is there; the eldest folders go. Raises OSError."""
    from openvino import save_model

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        for name, model in models.items():
            save_model(model, Path(temporary) / f"{name}{suffix}.xml", compress_to_fp16=False)
        for ending in (".bin", ".xml"):  # whoever finds the second finds the first
            for name in models:
                os.replace(Path(temporary) / f"{name}{suffix}{ending}", folder / f"{name}{suffix}{ending}")
    others = sorted(folder.parent.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in others[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)


def in_8_bits(model, inputs: list[list[np.ndarray]]):
    """The model with its convolutions rounded to 8 bits; ranges are those of the float model on `inputs`.

    Weights get a scale a channel. A last convolution that writes the picture stays as it is. Raises ValueError where
    the model gives numbers that are not finite.
    """
    from openvino import Model, opset13

    model = model.clone()
    convolutions = [node for node in model.get_ordered_ops() if node.get_type_name() == "Convolution"]
    convolutions = [node for node in convolutions if PAINTER not in node.get_friendly_name()]
    sources = [node.input_value(0) for node in convolutions]
    probe = Model([opset13.result(source) for source in sources], model.get_parameters(), "ranges").clone()
    probe = core().compile_model(probe, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    seen = np.array([[(value.min(), value.max()) for value in probe(each).values()] for each in inputs])
    if not np.isfinite(seen).all():
        raise ValueError("The networks give numbers that are not finite.")
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
    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.detail, self.down = encoder.detail, encoder.down

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        detail = self.detail(features.permute(0, 3, 1, 2))
        return self.down(detail), detail.permute(0, 2, 3, 1)


class _UNet(nn.Module):
    def __init__(self, networks: nn.Module):
        super().__init__()
        self.unet, self.token = networks.unet, networks.token

    def forward(self, latents: Tensor, timestep: Tensor, condition: Tensor) -> Tensor:
        token = self.token.expand(latents.shape[0], -1, -1)
        return self.unet(torch.cat([latents, condition], 1), timestep, token, return_dict=False)[0]


class _Decoder(nn.Module):
    def __init__(self, autoencoder: nn.Module):
        super().__init__()
        self.autoencoder, self.paint = autoencoder, autoencoder.paint
        self.paint.weight.data, self.paint.bias.data = (part[RGB_BY_PIXEL] for part in self.paint.parameters())

    def forward(self, latents: Tensor, detail: Tensor) -> Tensor:
        parts = self.autoencoder
        half = parts.merge(torch.cat([parts.decoder(latents), functional.silu(detail.permute(0, 3, 1, 2))], 1))
        return self.paint(parts.finish(half)).permute(0, 2, 3, 1)
