"""TalkSHOW's published weights: the three official .pth files, or the safetensors set that `convert` makes of them.

Networks are recognised by what they hold, not by file names; optimiser states and tensors that are never used stay
behind. Pickles are read in a process of their own, as weights only (see pickles.py).
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from talkshow_bridge.errors import InputError, shown
from talkshow_bridge.gesture_model import PARTS, GestureModel
from talkshow_bridge.mfcc import COEFFICIENTS
from talkshow_bridge.pickles import read_pickle

if TYPE_CHECKING:
    from talkshow_bridge.face_net import FaceGenerator

State = dict[str, Tensor]

NETWORKS = {
    "face": "face network",
    "body_vq": "body VQ-VAE",
    "hand_vq": "hand VQ-VAE",
    "pixelcnn": "PixelCNN",
    "encoder": "audio encoder",
}
BODY_SIZE, HAND_SIZE = 39, 90  # columns of the two motion tracks
_UNUSED = re.compile(r"audio_middle\.grus\.|audio_encoder\.masked_spec_embed$|vq_layer\.ema_|.*num_batches_tracked$")
_NEW_NAMES = (
    (re.compile(r"(^|\.)_"), r"\1"),
    (re.compile(r"^vq_layer\.embeddings$"), "codebook"),
    (re.compile(r"\.weight_g$"), ".parametrizations.weight.original0"),
    (re.compile(r"\.weight_v$"), ".parametrizations.weight.original1"),
)
_VERSION = 1


def holds_talkshow(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder looks as if TalkSHOW's weights were in it: converted, or .pth files at any depth."""
    return _is_converted(Path(folder)) or any(Path(folder).rglob("*.pth"))


def load_talkshow(folder: str | os.PathLike[str], device: str = "cpu") -> tuple[FaceGenerator, GestureModel]:
    """Both networks, ready to run, all sizes read from the tensors. Raises InputError in one sentence."""
    return _build(read_states(folder), shown(Path(folder)), device)


def convert(source: str | os.PathLike[str], folder: str | os.PathLike[str]) -> Path:
    """Write the networks in `source` as a new folder of safetensors and a config.json. Raises InputError."""
    from safetensors.torch import save_file

    target = Path(folder)
    if target.exists():
        raise InputError(f"'{shown(target)}' exists already; please remove it or choose another folder.")
    states = read_states(source)
    _build(states, shown(Path(source)))
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".import-", dir=target.parent) as temporary:
        part = Path(temporary) / "talkshow"
        part.mkdir()
        for name, state in states.items():
            tensors = {key: value.clone(memory_format=torch.contiguous_format) for key, value in state.items()}
            save_file(tensors, part / f"{name}.safetensors")
        (part / "config.json").write_text(json.dumps({"version": _VERSION, "talkshow": list(states)}, indent=2) + "\n")
        for file in part.iterdir():
            file.chmod(0o644)
        os.replace(part, target)
    return target


def read_states(folder: str | os.PathLike[str]) -> dict[str, State]:
    """The state dict of each of NETWORKS: float32, finite, keys as in our classes. Raises InputError."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"There is no folder '{shown(folder)}' with TalkSHOW's weights.")
    if _is_converted(folder):
        return {name: _read_converted(folder / f"{name}.safetensors") for name in NETWORKS}
    return _read_official(folder)


def _is_converted(folder: Path) -> bool:
    try:
        return "talkshow" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def _read_converted(path: Path) -> State:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.exists():
        raise InputError(f"The motion weights are not complete: '{shown(path)}' is missing.")
    try:
        return _checked(load_file(path), path)
    except (OSError, SafetensorError):
        raise InputError(f"'{shown(path)}' is cut off or damaged.") from None


def _read_official(folder: Path) -> dict[str, State]:
    found: dict[str, State] = {}
    origin: dict[str, Path] = {}
    complaints: list[str] = []
    paths = sorted(folder.rglob("*.pth"))
    for path in paths:
        try:
            networks = list(_networks(read_pickle(path)))
        except InputError as error:
            complaints.append(str(error).rstrip("."))
            continue
        for name, state in networks:
            if name in found:
                files = f"'{origin[name].relative_to(folder)}' and '{path.relative_to(folder)}'"
                raise InputError(f"TalkSHOW's {NETWORKS[name]} is in two files, {files}; please keep only one of them.")
            found[name], origin[name] = _checked(our_names(state), path), path
    if not paths or not (found or complaints):
        raise InputError(
            f"'{shown(folder)}' does not hold TalkSHOW's weights (the official .pth files of face, body-vq and "
            "body-pixel, or a folder made of them by `launch.py motion import`)."
        )
    missing = [title for name, title in NETWORKS.items() if name not in found]
    if missing:
        lacking = f"TalkSHOW's weights in '{shown(folder)}' are not complete, there is no {' and no '.join(missing)}"
        raise InputError("; ".join([lacking, *complaints]) + ".")
    return {name: found[name] for name in NETWORKS}


def _networks(stored: object, depth: int = 4) -> Iterator[tuple[str, State]]:
    """All of TalkSHOW's networks in nested dicts, as (name, state dict)."""
    if not isinstance(stored, dict) or not depth:
        return
    if stored and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in stored.items()):
        state = {key.removeprefix("module."): value for key, value in stored.items()}
        if name := _recognise(state):
            yield name, state
        return
    for key, value in stored.items():
        if not str(key).endswith("_optim"):
            yield from _networks(value, depth - 1)


def _recognise(state: State) -> str | None:
    if "audio_feature_map.weight" in state:
        return "face"
    if "fusion_v.weight" in state:
        return "pixelcnn"
    if "project.conv.weight" in state and "_enc_1.conv.weight" in state:
        return "encoder"
    if "vq_layer.embeddings" in state and "decoder.project.bias" in state:
        return {BODY_SIZE: "body_vq", HAND_SIZE: "hand_vq"}.get(state["decoder.project.bias"].numel())
    return None


def our_names(official: Mapping[str, Tensor]) -> State:
    """The tensors of one of TalkSHOW's networks that are used, in float32, under the names of our classes."""
    named = {}
    for key, value in official.items():
        if _UNUSED.match(key):
            continue
        for pattern, name in _NEW_NAMES:
            key = pattern.sub(name, key)
        named[key] = value.float()
    return named


def _checked(state: State, path: Path) -> State:
    for key, value in state.items():
        if not value.isfinite().all():
            raise InputError(f"'{shown(path)}' holds weights that are not finite numbers ('{key}').")
    return state


def _build(states: dict[str, State], folder: str, device: str = "cpu") -> tuple[FaceGenerator, GestureModel]:
    from talkshow_bridge.face_net import FaceGenerator

    nets = {}
    for name, kind in {"face": FaceGenerator, **PARTS}.items():
        try:
            nets[name] = kind.from_state_dict(states[name]).to(device)
        except (KeyError, RuntimeError, ValueError, TypeError, IndexError, ZeroDivisionError) as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise InputError(f"The {NETWORKS[name]} in '{folder}' is not TalkSHOW's ({reason}).") from None
    _check_that_they_fit(states, folder)
    return nets.pop("face"), GestureModel(**nets)


def _check_that_they_fit(states: dict[str, State], folder: str) -> None:
    heard = states["pixelcnn"]["embedding_aud.weight"].shape[1]
    codes = len(states["pixelcnn"]["embedding.weight"])
    sizes = {
        "jaw numbers": (len(states["face"]["final_out.0.bias"]), 3),
        "expression numbers": (len(states["face"]["final_out.1.bias"]), 100),
        "audio bands": (states["encoder"]["project.conv.weight"].shape[1], COEFFICIENTS),
        "audio channels": (len(states["encoder"]["enc_3.conv.bias"]), heard),
        "body codes": (len(states["body_vq"]["codebook"]), codes),
        "hand codes": (len(states["hand_vq"]["codebook"]), codes),
    }
    for what, (size, wanted) in sizes.items():
        if size != wanted:
            raise InputError(f"The networks in '{folder}' do not fit each other: {size} {what} instead of {wanted}.")
