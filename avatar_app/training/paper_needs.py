"""What a training step costs before any of it is run: memory and work, counted on tensors that have no memory.

The networks run once on the `meta` device. Every tensor that the backward pass will want is seen by autograd's hooks,
so the count is the architecture's own, with or without gradient checkpointing, and not a rule of thumb.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from avatar_app.diffusion.planner import free_memory
from talkshow_bridge.errors import InputError

USABLE = 0.92  # share of a device's free memory that a run may fill; the rest is lost between blocks
OVERHEAD = 2**30  # bytes of a GPU's context, its libraries' workspaces and the pictures of a sample sheet
EFFICIENCY = 0.4  # of a large matrix product's speed is what whole networks reach
Choice = TypeVar("Choice")
_STATES = 16  # bytes a trained number: itself, its gradient, AdamW's two means


@dataclass(frozen=True)
class StepCost:
    """One picture's forward pass. work: multiplications and additions. kept: bytes that stay until the backward pass;
    again: bytes of the largest block that is computed a second time (0 without gradient checkpointing)."""

    work: int
    kept: int
    again: int


@dataclass(frozen=True)
class Needs:
    """Bytes of a whole run on the device, and its work."""

    weights: int
    states: int
    activations: int
    work: int  # multiplications and additions of all steps

    @property
    def total(self) -> int:
        return self.weights + self.states + self.activations + OVERHEAD

    def __str__(self) -> str:
        names = ("weights", "states", "activations")
        parts = ", ".join(f"{getattr(self, name) / 2**30:.1f} GB {name}" for name in names)
        return f"{self.total / 2**30:.1f} GB of memory ({parts}), {self.work / 1e15:.3g} PFLOP"


def count_step(pair: nn.Module, inputs: tuple[Tensor, ...], checkpointing: bool, mixed: bool) -> StepCost:
    """The cost of `pair(*inputs)` for the pictures in `inputs`; everything must lie on the meta device.

    mixed: the networks compute in 16 bits but for their norms. Attention is counted as fused kernels do it, which never
    hold the scores."""
    size = 2 if mixed else 4
    kept, largest, norms = _Store(pair, size), 0, []

    def checkpointed(block: nn.Module, *arguments: object) -> object:
        nonlocal largest, kept
        for argument in arguments:
            kept.add(argument)
        outer, kept = kept, _Store(pair, size)
        result = block(*arguments)
        largest, kept = max(largest, kept.bytes), outer
        return result

    def counted(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        if mixed:  # a norm keeps its input in 32 bits besides
            kept.bytes += 4 * arguments[0].numel()

    flash = _Flash()
    for network in pair.children():
        network.train()
        network.set_attn_processor(flash)
        if checkpointing:
            network.enable_gradient_checkpointing(checkpointed)
        norms += [
            module.register_forward_pre_hook(counted)
            for module in network.modules()
            if isinstance(module, (nn.GroupNorm, nn.LayerNorm))
        ]
    watched = torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.add(tensor), lambda tensor: tensor)
    with FlopCounterMode(display=False) as flops, watched:
        pair(*inputs)
    for hook in norms:
        hook.remove()
    return StepCost(flops.get_total_flops() + flash.work, kept.bytes, largest)


class _Store:
    """Bytes of distinct tensors; the networks' own weights are not counted."""

    def __init__(self, pair: nn.Module, size: int):
        self.bytes, self._size, self._held = 0, size, []
        self._seen = {parameter.untyped_storage()._cdata for parameter in pair.parameters()}

    def add(self, tensor: object) -> object:
        if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage())._cdata not in self._seen:
            self._seen.add(storage._cdata)
            self._held.append(storage)  # or its number might be given away again
            self.bytes += storage.nbytes() // tensor.itemsize * (self._size if tensor.is_floating_point() else 8)
        return tensor


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(context, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        result = torch.empty_like(query)
        context.save_for_backward(query, key, value, result)
        return result


class _Flash:
    """Attention processor with the memory of a fused kernel."""

    def __init__(self) -> None:
        self.work = 0

    def __call__(self, attn, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **unused) -> Tensor:
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = attn.to_q(hidden_states), attn.to_k(source), attn.to_v(source)
        self.work += 4 * query.numel() * key.shape[1]
        return attn.to_out[1](attn.to_out[0](_Fused.apply(query, key, value)))


def run_needs(
    cost: StepCost, trained: int, frozen: int, batch: int, pictures: int, average: bool, mixed: bool
) -> Needs:
    """The needs of a run. trained, frozen: numbers in the networks; batch: pictures at a time; pictures: of all."""
    frozen_size = 2 if mixed else 4
    return Needs(
        weights=4 * trained + frozen_size * frozen + (2 * trained if mixed else 0),
        states=(_STATES - 4 + (4 if average else 0)) * trained,
        activations=batch * (cost.kept + 2 * cost.again),  # what is computed again and its gradients
        work=pictures * cost.work * (4 if cost.again else 3),
    )


def first_fitting(device: torch.device, options: list[tuple[Choice, Needs]]) -> tuple[Choice, Needs]:
    """Of choices with their needs, the best first, the first that fits. Raises InputError when none does."""
    free = free_memory(device)
    for choice, needs in options:
        if needs.total <= USABLE * free:
            return choice, needs
    raise InputError(
        f"Training needs at least {needs.total / 2**30:.1f} GB of memory and {device} has {free / 2**30:.1f} GB free; "
        "a LoRA or smaller pictures need less."
    )


def check_disk(folder: Path, needed: int, purpose: str) -> None:
    """Raises InputError when the disk under `folder` has less than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(f"{purpose} need {needed / 2**30:.1f} GB on disk; '{folder}' has {free / 2**30:.1f} GB free.")


def measure_speed(device: torch.device, dtype: torch.dtype) -> float:
    """Multiplications and additions a second that networks may reach here, from a timed matrix product."""
    side = 4096 if device.type != "cpu" else 512
    matrix = torch.randn(side, side, device=device, dtype=dtype)

    def timed(count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            result = matrix @ matrix
        result[0, 0].item()  # waits for the device
        return time.perf_counter() - start

    timed(2)
    return EFFICIENCY * 2 * side**3 * 8 / timed(8)
