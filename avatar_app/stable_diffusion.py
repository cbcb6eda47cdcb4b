"""Networks of Stable Diffusion's size in folders of diffusers: opened strictly, and written into an anchor package."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from avatar_app.diffusion.prompts import empty_text_tokens, picture_tokens
from avatar_app.weights import check_fit, find_weights, outline, place, read_config, read_weights
from talkshow_bridge.errors import InputError, shown

WEIGHTS = "diffusion_pytorch_model"
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@dataclass(frozen=True)
class PartSource:
    """What one part of a package, body or face, is made of. stage: folder with unet/ and controlnet/; base: Stable
    Diffusion folder that it was trained from; photo: RGB, its prompt; size: (width, height) of the pictures, pixels."""

    stage: Path
    base: Path
    photo: Image.Image
    size: tuple[int, int]


def write_parts(parts: dict[str, PartSource], clip: Path, folder: Path, dtype: torch.dtype) -> None:
    """Noise schedule, autoencoders, networks and prompts of a package. parts: "body" and perhaps "face"; clip: CLIP's
    picture encoder. Raises InputError for what does not fit together."""
    open_scheduler(parts["body"].base).save_pretrained(folder / "scheduler")
    vae = open_network(AutoencoderKL, parts["body"].base / "vae")
    write_network(vae, folder / "vae", dtype)
    for name, part in parts.items():
        if part.base != parts["body"].base:
            write_network(open_network(AutoencoderKL, part.base / "vae"), folder / name / "vae", dtype)
        networks = open_stage(part.stage, name, vae.config["latent_channels"])
        for kind, network in networks.items():
            write_network(network, folder / name / kind, dtype)
        unet = networks["unet"].config
        check_size(part.size, vae.config, unet)
        texts = part.base / "text_encoder"
        tokens = {"prompt": picture_tokens(clip, part.photo), "negative": empty_text_tokens(texts)}
        for origin, value in ((clip, tokens["prompt"]), (texts, tokens["negative"])):
            if value.shape[-1] != unet["cross_attention_dim"]:
                raise InputError(
                    f"'{place(origin)}' makes tokens {value.shape[-1]} wide, '{place(part.stage)}/unet' expects "
                    f"{unet['cross_attention_dim']}."
                )
        save_file({key: value.contiguous() for key, value in tokens.items()}, folder / name / "embeddings.safetensors")


def find_stages(checkpoint: Path) -> dict[str, Path]:
    """ "body" and perhaps "face" -> the folder that holds unet/ and controlnet/."""
    if not checkpoint.is_dir():
        raise InputError(f"There is no folder '{shown(checkpoint)}' with a Make-Your-Anchor checkpoint.")
    if _holds_networks(checkpoint):
        return {"body": _stage(checkpoint)}
    if not (checkpoint / "body").is_dir():
        raise InputError(
            f"'{shown(checkpoint)}' is no Make-Your-Anchor checkpoint; "
            "expected body/ and head/, or unet/ and controlnet/."
        )
    stages = {"body": _stage(checkpoint / "body")}
    names = ("head", "face")  # an anchor's own package calls it face
    head = next((checkpoint / name for name in names if (checkpoint / name).is_dir()), None)
    return stages | ({"face": _stage(head)} if head else {})


def _holds_networks(folder: Path) -> bool:
    return (folder / "unet").is_dir() or (folder / "controlnet").is_dir() or bool(_snapshots(folder))


def _snapshots(folder: Path) -> list[Path]:
    """checkpoint-N folders, the most trained last."""
    numbered = [(re.fullmatch(r"checkpoint-(\d{1,9})", path.name), path) for path in folder.iterdir() if path.is_dir()]
    return [path for _, path in sorted((int(match[1]), path) for match, path in numbered if match)]


def _stage(folder: Path) -> Path:
    if not (folder / "unet").is_dir() and (snapshots := _snapshots(folder)):
        folder = snapshots[-1]
    for name in ("unet", "controlnet"):
        if not (folder / name).is_dir():
            raise InputError(f"'{place(folder)}' has no folder '{name}'; expected unet/ and controlnet/.")
    return folder


def open_stage(stage: Path, part: str, latents: int) -> dict[str, nn.Module]:
    """ "unet" and "controlnet" of one stage, checked to fit each other and the part; latents: their channels."""
    configs, networks = {}, {}
    for name, network in (("unet", UNet2DConditionModel), ("controlnet", ControlNetModel)):
        path = stage / name / "config.json"
        config = read_config(path, f"a {network.__name__}")
        if config.get("_class_name") != network.__name__:
            raise InputError(f"'{place(path)}' describes a {config.get('_class_name')}; expected a {network.__name__}.")
        expected = {"in_channels": 2 * latents + 1 if (name, part) == ("unet", "face") else latents}
        if name == "controlnet":
            expected |= {"conditioning_channels": 3}
            expected |= {
                key: configs["unet"][key] for key in ("block_out_channels", "layers_per_block", "cross_attention_dim")
            }
        else:
            expected |= {"out_channels": latents}
        configs[name] = config = dict(outline(network, config, path).config)
        for key, wanted in expected.items():
            if config[key] != wanted:
                hint = " (a head network?)" if (key, config[key]) == ("in_channels", 2 * latents + 1) else ""
                raise InputError(f"'{place(path)}' has {key} {config[key]}{hint}; expected {wanted} for the {part}.")
        networks[name] = open_network(network, stage / name)
    return networks


def open_network(network: type, source: Path) -> nn.Module:
    """A network of diffusers from a folder, loaded strictly and without running code, in the file's precision."""
    path = source / "config.json"
    config = read_config(path, f"a {network.__name__}")
    model = outline(network, config, path)
    weights = find_weights(source, WEIGHTS)
    state = {_current_name(key): value for key, value in read_weights(weights).items() if ".norm_temp." not in key}
    check_fit(state, model.state_dict(), weights)
    model.load_state_dict(state, assign=True)
    return model


def write_network(network: nn.Module, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """A network of diffusers as a folder with safetensors."""
    folder.mkdir(parents=True)
    network.save_config(folder)
    state = {key: value.detach().to("cpu", dtype).contiguous() for key, value in network.state_dict().items()}
    save_file(state, folder / f"{WEIGHTS}.safetensors")


def _current_name(key: str) -> str:
    """Autoencoders of 2022 call the parts of their attention otherwise."""
    head, _, tail = key.rpartition(".")
    layer, _, name = head.rpartition(".")
    return f"{layer}.{_OLD_ATTENTION[name]}.{tail}" if ".attentions." in layer and name in _OLD_ATTENTION else key


def open_scheduler(base: Path) -> DDIMScheduler:
    """The noise schedule of a Stable Diffusion folder."""
    if not base.is_dir():
        raise InputError(f"There is no folder '{shown(base)}'; expected Stable Diffusion 1.5 in diffusers folders.")
    path = base / "scheduler" / "scheduler_config.json"
    config = read_config(path, "the noise schedule of Stable Diffusion 1.5")
    try:
        return DDIMScheduler.from_config(config)
    except (ValueError, TypeError, NotImplementedError, RuntimeError):
        raise InputError(f"'{place(path)}' does not describe a noise schedule.") from None


def check_size(size: tuple[int, int], vae: dict, unet: dict) -> None:
    """Raises InputError unless pictures of this (width, height) can be halved as often as the networks do it."""
    multiple = 2 ** (len(vae["block_out_channels"]) + len(unet["block_out_channels"]) - 2)
    if any(side < multiple or side % multiple for side in size):
        raise InputError(
            f"Pictures of {size[0]}x{size[1]} cannot be painted: each side must be a multiple of {multiple}."
        )
