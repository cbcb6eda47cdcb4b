"""Weights on disk: large tensors as 8-bit integers with one 16-bit scale a channel, the others as 16-bit floats."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

LARGE = 4096  # numbers from which on a tensor is kept in 8 bits
SCALE = ".scale"  # beside NAME, an int8 tensor, stands NAME.scale: value = integer x scale of its channel


def save_compact(weights: dict[str, Tensor], path: Path) -> None:
    """Write a state dict; what `load_compact` reads back differs by half a 127th of a channel's largest value."""
    kept = {}
    for name, value in weights.items():
        value = value.detach().float().cpu()
        if value.numel() < LARGE or value.ndim < 2:
            kept[name] = value.half().contiguous()
            continue
        scale = (_channels(value).abs().amax(1) / 127).half()
        step = scale.float().clamp(min=torch.finfo(torch.float16).smallest_normal)
        integers = (_channels(value) / step[:, None]).round().clamp(-127, 127)
        kept[name] = integers.view(value.shape).to(torch.int8).contiguous()
        kept[name + SCALE] = step.half()
    save_file(kept, path, metadata={"format": "pt"})


def load_compact(path: Path) -> dict[str, Tensor]:
    """The float32 state dict of a file by `save_compact`, or of plain floats. Raises OSError, ValueError."""
    try:
        kept = load_file(path)
    except SafetensorError as error:
        raise ValueError(str(error)) from None
    weights = {}
    for name, value in kept.items():
        if _is_integer(value):
            scale = kept.get(name + SCALE)
            if scale is None or scale.shape != (len(_channels(value)),):
                raise ValueError(f"'{name}' has no fitting scale")
            weights[name] = (_channels(value).float() * scale.float()[:, None]).view(value.shape)
        elif not (name.endswith(SCALE) and _is_integer(kept.get(name.removesuffix(SCALE)))):
            weights[name] = value.float()
    return weights


def _is_integer(value: Tensor | None) -> bool:
    return value is not None and value.dtype == torch.int8


def _channels(value: Tensor) -> Tensor:
    """(channels, rest): what shares a scale. A picture-like tensor, (1, c, h, w), has its channels second."""
    return value.flatten(0, 1).flatten(1) if value.ndim == 4 and len(value) == 1 else value.flatten(1)
