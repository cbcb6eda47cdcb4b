"""Speech -> Motion on one clock: the lip net drives jaw and mouth, the gesture model arms and hands."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from talkshow_bridge.audio import Speech, load_speech
from talkshow_bridge.bundled import BUNDLED, BundledGestures
from talkshow_bridge.checkpoints import holds_talkshow
from talkshow_bridge.errors import InputError
from talkshow_bridge.features import log_mel
from talkshow_bridge.lip_net import LipNet
from talkshow_bridge.lips import effort_of, mouth
from talkshow_bridge.motion import Motion
from talkshow_bridge.planner import STYLES, check_sampling, check_wish
from talkshow_bridge.presence import add_upper_face
from talkshow_bridge.prosody import analyse

if TYPE_CHECKING:
    from talkshow_bridge.talkshow import TalkShow


class MotionGenerator:
    """Turns speech of any language and length into Motion for bodies with ARKit face units."""

    expression_space = "arkit52"
    styles = tuple(STYLES)

    def __init__(self, lips: LipNet, gestures: BundledGestures) -> None:
        self.lips, self.gestures = lips, gestures

    @classmethod
    def from_pretrained(
        cls, directory: str | os.PathLike[str] | None = None, device: str = "cpu", lips: str = "official"
    ) -> MotionGenerator | TalkShow:
        """Load the motion weights of a folder; without one, the bundled weights.

        A folder with TalkSHOW's weights gives a `TalkShow`, which generates in the same way; lips: see there.
        """
        if directory is not None and holds_talkshow(directory):
            from talkshow_bridge.talkshow import TalkShow

            return TalkShow.from_pretrained(directory, device, lips)
        folder = BUNDLED if directory is None else directory
        return cls(LipNet.load(folder, device), BundledGestures.load(folder, device))

    def generate(
        self, speech: Speech | str | os.PathLike[str], seed: int = 0, style: str = "neutral", energy: float = 1.0,
        fps: float = 30.0, temperature: float = 1.0, top_p: float = 1.0,
    ) -> Motion:  # fmt: skip
        """A Motion of round-up(duration x fps) frames; frame k shows time k / fps.

        speech: a Speech, or a path for load_speech. seed: any int >= 0; the same seed gives the same Motion.
        style: "calm", "neutral" or "lively". energy: 0 (resting hands) .. 2. Silence makes a listening presenter.
        temperature (0.1..2), top_p (0.1..1): below 1 for more usual gestures.
        """
        if not isinstance(speech, Speech):
            speech = load_speech(speech)
        if not 1 <= fps <= 240:
            raise InputError(f"The frame rate goes from 1 to 240, not {fps}.")
        check_wish(seed, energy)
        check_sampling(temperature, top_p)
        seed, energy = int(seed), float(energy)
        count = speech.frame_count(fps)
        mels = log_mel(speech.samples)
        prosody = analyse(speech.samples, mels)
        gestures = self.gestures.move(prosody, mels, count, fps, seed, style, energy, temperature, top_p)
        jaw, expression = mouth(self.lips.run(mels), count, fps, effort_of(mels))
        add_upper_face(expression, gestures.blink, gestures.brow, gestures.smile)
        meta = {
            "generator": "avatar_app gesture model, lip net", "seed": seed, "energy": energy, "style": style,
            "temperature": temperature, "top_p": top_p,
            "audio_sha256": speech.sha256, "audio_duration": speech.duration,
        }  # fmt: skip
        still = np.zeros((count, 3), np.float32)
        return Motion(
            fps, jaw, gestures.eyes, gestures.eyes, still, gestures.body, gestures.left_hand, gestures.right_hand,
            expression, still, self.expression_space, meta=meta,
        )  # fmt: skip
