"""Couplings between the frames of a window, added to plain 2D diffusers models.

Frames are folded into the batch, frame-fastest: index = sample * frames + frame. The 2D weights stay as they are;
`FrameCoupling` makes chosen layers look at all frames of a sample together and takes everything off again.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import islice

from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor, nn
from torch.nn import functional


@dataclass
class WindowState:
    """What the couplings must know about the call in progress."""

    frames: int = 1  # frames per sample in the folded batch
    mid_residual: Tensor | None = None  # last ControlNet down residual, already scaled
    latent_size: tuple[int, int] | None = None  # (height, width), where keys are pooled
    half: int | None = None  # 0 and 1: guidance's two calls on the same latents; None: there is one call


class CrossFrameAttention:
    """Attention processor: the tokens of all frames of a sample form one sequence.

    With `first_and_last` the queries still come from every frame, keys and values only from the first and last frame.
    With `pooled_keys` keys and values are averages of 2x2 tokens: a quarter of the work.
    """

    def __init__(self, state: WindowState, first_and_last: bool = False, pooled_keys: bool = False):
        self.state = state
        self.first_and_last = first_and_last
        self.pooled_keys = pooled_keys
        self.attend = AttnProcessor2_0()

    def __call__(self, attn, hidden_states: Tensor, encoder_hidden_states=None, **unused) -> Tensor:
        video = hidden_states.unflatten(0, (-1, self.state.frames))  # (samples, frames, tokens, channels)
        source = video[:, [0, -1]] if self.first_and_last else video
        if self.pooled_keys:
            source = self._pool(source)
        source = None if source is video else source.flatten(1, 2)
        return self.attend(attn, video.flatten(1, 2), source).reshape(hidden_states.shape)

    def _pool(self, video: Tensor) -> Tensor:
        """Averages of hidden states are averages of keys and values, whose projections are linear."""
        height, width = self.state.latent_size
        shrink = round((height * width / video.shape[2]) ** 0.5)
        pictures = video.flatten(0, 1).transpose(1, 2).unflatten(2, (height // shrink, width // shrink))
        small = functional.avg_pool2d(pictures, 2, ceil_mode=True, count_include_pad=False)
        return small.flatten(2).transpose(1, 2).unflatten(0, video.shape[:2])


class SharedByHalves:
    """Attention processor of a network's first self-attention, which has not seen the prompt yet.

    The two calls of classifier-free guidance differ in the prompt alone, so the second gets the first one's result.
    """

    def __init__(self, state: WindowState, attend: Callable):
        self.state, self.attend = state, attend
        self._first: Tensor | None = None

    def __call__(self, attn, hidden_states: Tensor, *arguments, **options) -> Tensor:
        if self.state.half == 1:
            result, self._first = self._first, None
            return result
        result = self.attend(attn, hidden_states, *arguments, **options)
        self._first = result if self.state.half == 0 else None
        return result


class FrameCoupling:
    """Attaches the couplings of Make-Your-Anchor's video pass to a UNet and, if given, its ControlNet.

    cross_frame_attention: the UNet's self-attention sees all frames of a window (the paper's idea).
    pooled_keys: cheaper, approximate attention in the layers of the largest pictures; needs `state.latent_size`.
    shared_by_halves: guidance's two calls share what they can; needs `state.half`.
    pooled_norm: group norms outside the transformers take their statistics over all frames of a window, in both
        networks. residual_into_mid: the last ControlNet residual also enters the UNet's mid block.
        Both are accidents of the original code that its published weights are used with.

    Set `state.frames` before every call of a network; `state.mid_residual` too where `residual_into_mid` is used.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        controlnet: ControlNetModel | None = None,
        *,
        cross_frame_attention: bool = True,
        first_and_last: bool = False,
        pooled_keys: bool = False,
        shared_by_halves: bool = False,
        pooled_norm: bool = False,
        residual_into_mid: bool = False,
    ):
        self.state = WindowState()
        self._networks = [unet] if controlnet is None else [unet, controlnet]
        self._processors = [network.attn_processors for network in self._networks]
        self._hooks = []
        self._norms: list[nn.GroupNorm] = []
        processors = [dict(old) for old in self._processors]
        if cross_frame_attention:
            largest = largest_attention(processors[0]) if pooled_keys else set()
            for name in filter(_sees_itself, processors[0]):
                processors[0][name] = CrossFrameAttention(self.state, first_and_last, name in largest)
        if shared_by_halves:
            for new in processors:
                for name in islice(filter(_sees_itself, new), 1):
                    new[name] = SharedByHalves(self.state, new[name])
        for network, new in zip(self._networks, processors, strict=True):
            network.set_attn_processor(new)
        if pooled_norm:
            for network in self._networks:
                self._pool_norms(network)
        if residual_into_mid:
            self._hooks.append(unet.mid_block.register_forward_pre_hook(self._add_residual))

    def remove(self) -> None:
        """Give the networks back as they were."""
        for network, old in zip(self._networks, self._processors, strict=True):
            network.set_attn_processor(dict(old))
        for norm in self._norms:
            del norm.forward
        for hook in self._hooks:
            hook.remove()
        self._norms.clear()
        self._hooks.clear()

    def _pool_norms(self, network: nn.Module) -> None:
        for name, module in network.named_modules():
            if isinstance(module, nn.GroupNorm) and ".attentions." not in name:
                module.forward = partial(self._norm_window, module)
                self._norms.append(module)

    def _norm_window(self, norm: nn.GroupNorm, folded: Tensor) -> Tensor:
        """Frames below each other are one tall picture: a view of what channels_last keeps in memory."""
        tall = folded.permute(0, 2, 3, 1).unflatten(0, (-1, self.state.frames)).flatten(1, 2).permute(0, 3, 1, 2)
        tall = functional.group_norm(tall, norm.num_groups, norm.weight, norm.bias, norm.eps)
        return tall.permute(0, 2, 3, 1).reshape(len(folded), *folded.shape[2:], -1).permute(0, 3, 1, 2)

    def _add_residual(self, mid_block: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        residual = self.state.mid_residual
        return inputs if residual is None else (inputs[0] + residual, *inputs[1:])


def _sees_itself(name: str) -> bool:
    """Whether the attention processor of this name belongs to self-attention."""
    return ".attn1." in name


def largest_attention(processors: Iterable[str]) -> set[str]:
    """Of a UNet's attention processors those that see the largest pictures, on the way down and up."""
    level = {}  # name -> halvings of the picture; up_blocks.0 is at the lowest level
    blocks = 1 + max(int(match[2]) for name in processors if (match := re.match(r"(down|up)_blocks\.(\d+)\.", name)))
    for name in processors:
        if match := re.match(r"(down|up)_blocks\.(\d+)\.", name):
            level[name] = int(match[2]) if match[1] == "down" else blocks - 1 - int(match[2])
    return {name for name in level if level[name] == min(level.values())}
