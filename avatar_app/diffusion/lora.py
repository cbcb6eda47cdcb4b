"""Low-rank additions (LoRA, LCM-LoRA) to a network's weights, merged once at loading: they cost nothing in a step.
`learn_lora` makes a network learn new ones.

A file holds, for some layers of the network, two thin matrices whose product is added to the layer's weight. Three
ways of naming them are known: lora_unet_<name_with_underscores>.lora_down.weight (as the published LCM-LoRA does, with
.alpha beside it), unet.<name>.lora_A.weight and unet.<name>.lora.down.weight.
"""

import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

from talkshow_bridge.errors import InputError

_KEY = re.compile(
    r"(?:unet\.|lora_unet_|base_model\.model\.)?(?P<layer>.+?)\."
    r"(?P<part>alpha|(?:lora_down|lora_up|lora_A|lora_B|lora\.down|lora\.up)(?:\.default)?\.weight)"
)
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")  # the layers that learn additions
_DOWN = ("lora_down", "lora_A", "lora.down")


def merge_lora(network: nn.Module, path: Path, strength: float = 1.0) -> int:
    """Adds `strength` times the file's additions to the weights of `network` and returns how many layers changed.

    Raises InputError for a file of which any part has no place in the network; nothing is changed then.
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"'{path.name}' is not a readable safetensors file ({error}).") from None
    layers = {
        spelling: module
        for name, module in network.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
        for spelling in (name, name.replace(".", "_"))
    }
    additions = {
        name: _addition(layers.get(name), parts, f"'{name}' in '{path.name}'")
        for name, parts in _by_layer(tensors, path).items()
    }
    with torch.no_grad():
        for name, addition in additions.items():
            weight = layers[name].weight
            weight += (strength * addition).to(weight)
    return len(additions)


def _by_layer(tensors: dict[str, Tensor], path: Path) -> dict[str, dict[str, Tensor]]:
    """layer name -> its "down", "up" and perhaps "alpha"."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None or key.startswith(("lora_te", "text_encoder")):
            raise InputError(f"'{path.name}' holds '{key}'; expected a LoRA of a UNet alone.")
        if not tensor.isfinite().all():
            raise InputError(f"'{key}' in '{path.name}' holds values that are not finite numbers.")
        part = match["part"]
        part = part if part == "alpha" else "down" if part.startswith(_DOWN) else "up"
        found.setdefault(match["layer"], {})[part] = tensor.float()
    if not found:
        raise InputError(f"'{path.name}' is empty; expected a LoRA of a UNet.")
    return found


def _addition(layer: nn.Linear | nn.Conv2d | None, parts: dict[str, Tensor], name: str) -> Tensor:
    if layer is None:
        raise InputError(f"{name} is no layer of this anchor's UNet; expected a LoRA for the same kind of network.")
    if not {"down", "up"} <= parts.keys():
        raise InputError(f"{name} is incomplete: expected a matrix down and one up.")
    down, up, shape = parts["down"], parts["up"], layer.weight.shape
    rank = len(down)
    fits = (
        up.numel() == shape[0] * rank and down.numel() == rank * shape[1:].numel() and up.shape[:2] == (shape[0], rank)
    )
    if not fits or parts.get("alpha", up.new_zeros(1)).numel() != 1:
        raise InputError(f"{name} does not fit its layer: expected an addition to a weight of shape {tuple(shape)}.")
    return (up.flatten(1) @ down.flatten(1)).reshape(shape) * (float(parts.get("alpha", rank)) / rank)


class LowRank(nn.Module):
    """Parametrisation of a layer's weight: the frozen one plus the product of two thin matrices, which alone learn."""

    def __init__(self, weight: Tensor, rank: int):
        super().__init__()
        self.down = nn.Parameter(torch.randn(rank, weight[0].numel(), device=weight.device) / rank)
        self.up = nn.Parameter(torch.zeros(len(weight), rank, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.up @ self.down).view_as(weight).to(weight.dtype)


def learn_lora(network: nn.Module, rank: int) -> None:
    """Freeze a network but for additions of this rank to its attention layers."""
    network.requires_grad_(False)
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Linear) and name.endswith(_ATTENTION):
            parametrize.register_parametrization(module, "weight", LowRank(module.weight, rank))


def learnt_lora(network: nn.Module) -> dict[str, Tensor]:
    """What a network has learnt since `learn_lora`, named as `merge_lora` reads it."""
    additions = {}
    for name, module in network.named_modules():
        if parametrize.is_parametrized(module, "weight"):
            low = module.parametrizations.weight[0]
            additions[f"unet.{name}.lora_A.weight"] = low.down.detach().cpu().contiguous()
            additions[f"unet.{name}.lora_B.weight"] = low.up.detach().cpu().contiguous()
    return additions


def frozen_state(network: nn.Module) -> dict[str, Tensor]:
    """The state dict that a network had before `learn_lora`."""
    return {
        key.replace(".parametrizations.weight.original", ".weight"): value
        for key, value in network.state_dict().items()
        if not key.endswith((".parametrizations.weight.0.down", ".parametrizations.weight.0.up"))
    }
