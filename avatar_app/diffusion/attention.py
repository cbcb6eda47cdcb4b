"""Couplings between the frames of a window, added to plain 2D diffusers models.

Frames are folded into the batch, frame-fastest: index = sample * frames + frame. The 2D weights stay as they are;
`FrameCoupling` makes chosen layers look at all frames of a sample together and takes everything off again.
"""

from dataclasses import dataclass

from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor, nn


@dataclass
class WindowState:
    """What the couplings must know about the call in progress."""

    frames: int = 1  # frames per sample in the folded batch
    mid_residual: Tensor | None = None  # last ControlNet down residual, already scaled


class CrossFrameAttention:
    """Attention processor: the tokens of all frames of a sample form one sequence.

    With `first_and_last` the queries still come from every frame, keys and values only from the first and last frame.
    """

    def __init__(self, state: WindowState, first_and_last: bool = False):
        self.state = state
        self.first_and_last = first_and_last
        self.attend = AttnProcessor2_0()

    def __call__(self, attn, hidden_states: Tensor, encoder_hidden_states=None, **unused) -> Tensor:
        batch, tokens, channels = hidden_states.shape
        frames = self.state.frames
        video = hidden_states.reshape(batch // frames, frames, tokens, channels)
        source = video[:, [0, frames - 1]].flatten(1, 2) if self.first_and_last else None
        return self.attend(attn, video.flatten(1, 2), source).reshape(batch, tokens, -1)


class FrameCoupling:
    """Attaches the couplings of Make-Your-Anchor's video pass to a UNet and, if given, its ControlNet.

    cross_frame_attention: the UNet's self-attention sees all frames of a window (the paper's idea).
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
        pooled_norm: bool = False,
        residual_into_mid: bool = False,
    ):
        self.state = WindowState()
        self._unet = unet
        self._processors = unet.attn_processors
        self._hooks = []
        if cross_frame_attention:
            attention = CrossFrameAttention(self.state, first_and_last)
            unet.set_attn_processor(
                {name: attention if ".attn1." in name else old for name, old in self._processors.items()}
            )
        if pooled_norm:
            for network in filter(None, (unet, controlnet)):
                self._pool_norms(network)
        if residual_into_mid:
            self._hooks.append(unet.mid_block.register_forward_pre_hook(self._add_residual))

    def remove(self) -> None:
        """Give the networks back as they were."""
        self._unet.set_attn_processor(dict(self._processors))
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _pool_norms(self, network: nn.Module) -> None:
        for name, module in network.named_modules():
            if isinstance(module, nn.GroupNorm) and ".attentions." not in name:
                self._hooks.append(module.register_forward_pre_hook(self._unfold))
                self._hooks.append(module.register_forward_hook(self._fold))

    def _unfold(self, norm: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        folded = inputs[0]  # (samples * frames, channels, h, w) -> (samples, channels, frames, h, w)
        return folded.unflatten(0, (-1, self.state.frames)).transpose(1, 2)

    def _fold(self, norm: nn.Module, inputs: tuple[Tensor], video: Tensor) -> Tensor:
        return video.transpose(1, 2).flatten(0, 1)

    def _add_residual(self, mid_block: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        residual = self.state.mid_residual
        return inputs if residual is None else (inputs[0] + residual, *inputs[1:])
