"""Made-up weights that depend on a tensor's name and shape only; `data/talkshow` holds what was computed with them."""

import re
import zlib

import numpy as np

# first match counts: pattern of the name -> (scale, offset) of standard normal numbers
SCALES = (
    (r"running_mean$", (0.1, 0.0)),
    (r"weight_g$", (0.24, 2.4)),
    (r"class_cond_embedding\.weight$", (0.5, 0.0)),
    (r"vq_layer\.embeddings$", (0.3, 0.0)),
    (r"^embedding\.weight$", (1.0, 0.0)),
    (r"(^|[._])bias[^.]*$", (0.05, 0.0)),
)
LOUD_INPUT = "project.conv.weight"  # of the audio encoder, which gets decibels


def made_up(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """float32 weights for the tensor of that name in TalkSHOW's state dicts."""
    normal = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith("running_var"):
        return (1 + 0.25 * np.abs(normal)).astype(np.float32)
    for pattern, (scale, offset) in SCALES:
        if re.search(pattern, name):
            return (offset + scale * normal).astype(np.float32)
    if len(shape) < 2:
        scale, offset = (0.1, 1.0) if name.endswith("weight") else (0.5, 0.0)
        return (offset + scale * normal).astype(np.float32)
    inputs = float(np.prod(shape[1:]))
    return ((0.02 if name == LOUD_INPUT else 1.0) * normal / np.sqrt(inputs)).astype(np.float32)
