"""Make-Your-Anchor's prompts: a reference photo as CLIP's picture tokens, and the empty text of the same length."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel

from avatar_app.weights import check_fit, find_weights, place, read_config, read_weights
from talkshow_bridge.errors import InputError

TOKENS = 50  # one for the class and 7 x 7 patches of 32 pixels
_SIZE = 224
_MEAN, _SPREAD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_START, _END = 49406, 49407  # the empty text, padded with its end


class PictureEncoder:
    """The clip-vit-base-patch32 in `folder`: last hidden state, before the final norm."""

    def __init__(self, folder: Path, device: str | torch.device = "cpu"):
        self._model = _clip(folder, "vision", CLIPVisionConfig, CLIPVisionModel).to(device)
        config = self._model.config
        self.width = config.hidden_size
        tokens = (config.image_size // config.patch_size) ** 2 + 1
        if tokens != TOKENS:
            raise InputError(f"'{place(folder)}' makes {tokens} tokens; expected clip-vit-base-patch32 with {TOKENS}.")

    @torch.inference_mode()
    def __call__(self, photos: list[Image.Image]) -> Tensor:
        """(n, 50, width) float32."""
        pixels = torch.cat([picture_pixels(photo) for photo in photos]).to(self._model.device)
        return self._model(pixel_values=pixels).last_hidden_state


def picture_tokens(folder: Path, photo: Image.Image) -> Tensor:
    """(1, 50, width): one photo by the clip-vit-base-patch32 in `folder`."""
    return PictureEncoder(folder)([photo])


def empty_text_tokens(folder: Path) -> Tensor:
    """(1, 50, width): what the text encoder in `folder` makes of no words, after its final norm."""
    model = _clip(folder, "text", CLIPTextConfig, CLIPTextModel)
    with torch.inference_mode():
        return model(input_ids=torch.tensor([[_START] + [_END] * (TOKENS - 1)])).last_hidden_state


def picture_pixels(photo: Image.Image) -> Tensor:
    """(1, 3, 224, 224): shortest side to 224, bicubic, the middle cut out, normalised as CLIP was trained."""
    photo = photo.convert("RGB")
    shortest = min(photo.size)
    width, height = (int(_SIZE * side / shortest) for side in photo.size)
    left, top = (width - _SIZE) // 2, (height - _SIZE) // 2
    photo = photo.resize((width, height), Image.BICUBIC).crop((left, top, left + _SIZE, top + _SIZE))
    pixels = np.asarray(photo).astype(np.float64) * (1 / 255)
    pixels = (pixels.astype(np.float32) - np.float32(_MEAN)) / np.float32(_SPREAD)
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]


def _clip(folder: Path, part: str, config_class: type, model_class: type) -> nn.Module:
    """One half of CLIP from a folder with that half alone or with both."""
    kind = f"CLIP's {part} model"
    config = read_config(folder / "config.json", kind)
    config = config.get(f"{part}_config") or config
    known = config_class().to_dict().keys() - {"model_type", "architectures", "transformers_version", "dtype"}
    try:
        with torch.device("meta"):
            model = model_class(config_class(**{key: value for key, value in config.items() if key in known})).eval()
    except (ValueError, TypeError, KeyError, ArithmeticError, RuntimeError):
        raise InputError(f"'{place(folder)}/config.json' does not describe {kind}.") from None
    path = find_weights(folder, "model", "pytorch_model")
    found, prefix = read_weights(path), f"{part}_model."
    if not any(key.startswith(prefix) for key in found):
        prefix = ""  # newer releases of transformers write one half alone without it
    state = {
        key.removeprefix(prefix): value.float()
        for key, value in found.items()
        if key.startswith(prefix) and not key.endswith(".position_ids")
    }
    half = getattr(model, f"{part}_model", model)
    check_fit(state, half.state_dict(), path)
    half.load_state_dict(state, assign=True)
    embeddings = half.embeddings
    embeddings.position_ids = torch.arange(embeddings.position_embedding.num_embeddings)[None]
    return model
