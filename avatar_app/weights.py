"""Network folders of strangers: configurations and weights are checked before they are used, pickles are
read elsewhere (talkshow_bridge/pickles.py)."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from talkshow_bridge.errors import InputError, shown
from talkshow_bridge.pickles import read_pickle

MAX_NUMBER, MAX_LAYERS, MAX_LIST = 100_000, 64, 16  # beyond every real configuration


def place(path: Path) -> str:
    """The end of a path as messages show it: what lies in the folder of the same name everywhere needs its parents."""
    return shown("/".join(path.parts[-3:]))


def read_config(path: Path, kind: str) -> dict:
    """A config.json. `kind` tells what was expected. Raises InputError when it is missing or absurd."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"'{place(path)}' is missing; expected {kind}.") from None
    except (OSError, ValueError, RecursionError):
        raise InputError(f"'{place(path)}' is not readable JSON; expected {kind}.") from None
    if not isinstance(config, dict):
        raise InputError(f"'{place(path)}' is not a JSON object; expected {kind}.")
    if wrong := _absurd(config):
        raise InputError(f"'{place(path)}' has an impossible '{wrong}'; expected {kind}.")
    return config


def _absurd(config: dict) -> str | None:
    """The first entry whose numbers no real network has."""
    for name, value in config.items():
        values = value if isinstance(value, list) else [value]
        if isinstance(value, dict):
            if _absurd(value):
                return name
            continue
        most = MAX_LAYERS if "layers" in name else MAX_NUMBER
        if len(values) > MAX_LIST or any(isinstance(number, (int, float)) and abs(number) > most for number in values):
            return name
    return None


def find_weights(folder: Path, *names: str) -> Path:
    """The weights in a folder, safetensors before pickles. Raises InputError when there are none."""
    for suffix in (".safetensors", ".fp16.safetensors", ".bin", ".fp16.bin"):
        for name in names:
            if (path := folder / f"{name}{suffix}").is_file():
                return path
    raise InputError(f"'{place(folder)}' holds no weights; expected '{names[0]}.safetensors' or '.bin'.")


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file or, as weights only, of a .bin. Raises InputError in one sentence."""
    if path.suffix != ".safetensors":
        state = read_pickle(path, place(path))
    else:
        try:
            state = load_file(path)
        except (SafetensorError, OSError, ValueError):
            raise InputError(f"'{place(path)}' is cut off, damaged or no file of weights.") from None
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise InputError(f"'{place(path)}' is not a plain table of weights.")
    return state


def outline(network: type, config: dict, path: Path) -> nn.Module:
    """A diffusers network without memory behind its tensors. Raises InputError when the configuration makes none."""
    try:
        with torch.device("meta"):
            return network.from_config({key: value for key, value in config.items() if not key.startswith("_")})
    except (ValueError, TypeError, KeyError, IndexError, ArithmeticError, RuntimeError, AttributeError, AssertionError):
        raise InputError(f"'{place(path)}' does not describe a {network.__name__}.") from None


def check_fit(state: dict[str, Tensor], expected: dict[str, Tensor], path: Path) -> None:
    """Raises InputError unless names, shapes and kinds of the tensors are exactly the expected ones."""
    for key in sorted(expected.keys() | state.keys()):
        if key not in state:
            raise InputError(f"'{place(path)}' does not fit its configuration: '{key}' is missing.")
        if key not in expected:
            raise InputError(f"'{place(path)}' does not fit its configuration: '{shown(key)}' is unknown.")
        found, wanted = tuple(state[key].shape), tuple(expected[key].shape)
        if found != wanted:
            raise InputError(f"'{place(path)}' does not fit: '{key}' has the shape {found}, expected {wanted}.")
        if not state[key].is_floating_point() or not state[key].isfinite().all():
            raise InputError(f"'{place(path)}' is damaged: '{key}' does not hold finite numbers.")
