"""The bundled gesture model at work: prosody -> stroke plan -> codes -> arms and hands, and presence for the rest.

The planner decides when hands strike and how large; the networks decide the movement. The head nods to the syllables by
itself (`presence`): four frames to a code are too coarse for it, and training on it cost the wrists a centimetre.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter1d, maximum_filter1d

from talkshow_bridge.curves import drift
from talkshow_bridge.errors import InputError
from talkshow_bridge.gesture_features import IS_RIGHT, RATE, SMOOTHING, gesture_features, unpack
from talkshow_bridge.gesture_model import GestureModel
from talkshow_bridge.limits import bend_fingers, confine
from talkshow_bridge.planner import STYLES, check_wish, choose_style, plan_gestures
from talkshow_bridge.presence import HEAD, NECK, SPINE, hold_presence
from talkshow_bridge.prosody import Prosody
from talkshow_bridge.skeleton import LEFT, RIGHT
from talkshow_bridge.vq_vae import FRAMES_PER_CODE

BUNDLED = Path(__file__).resolve().parent.parent / "checkpoints" / "motion"
WEIGHTS = "gestures.safetensors"
PRESENCE_RATE = 60.0  # Hz
USUAL_TEMPERATURE = 0.8  # what a temperature of 1 means: at the training's own, codes flicker between strokes
SLOW = 0.4  # s: what is faster than this ...
EMPHASIS = (0.6, 1.45)  # ... gets these factors, between and around strokes: codes blur strokes and jitter at rest
WANDER = np.array([0.028, 0.016, 0.022])  # m outward, up, forward: how far the hands' usual place wanders
WANDER_PERIOD = 12.0  # s


@dataclass(frozen=True)
class Gestures:
    """Movement at the frames asked for. body: (N, 21, 3), left_hand, right_hand: (N, 15, 3), eyes: (N, 3) axis-angle.

    blink, brow: (N,) 0..1; smile: (N,) 0..~.3.
    """

    body: np.ndarray
    left_hand: np.ndarray
    right_hand: np.ndarray
    eyes: np.ndarray
    blink: np.ndarray
    brow: np.ndarray
    smile: np.ndarray


class BundledGestures:
    """Gestures from prosody and log-mels by the small networks of checkpoints/motion."""

    def __init__(self, model: GestureModel) -> None:
        self.model = model

    @classmethod
    def load(cls, folder: str | os.PathLike[str], device: str = "cpu") -> BundledGestures:
        """Read the weights of a folder; raises InputError when they are not whole or not for these styles."""
        model = GestureModel.load(Path(folder) / WEIGHTS, device)
        if model.speakers != len(STYLES):
            raise InputError(f"The gesture weights in '{folder}' know {model.speakers} styles, not {len(STYLES)}.")
        return cls(model)

    def move(
        self, prosody: Prosody, mels: np.ndarray, count: int, fps: float = 30.0, seed: int = 0,
        style: str = "neutral", energy: float = 1.0, temperature: float = 1.0, top_p: float = 1.0,
    ) -> Gestures:  # fmt: skip
        """`count` frames at `fps`; the same seed gives the same movement at any frame rate.

        style: a name of STYLES. energy: 0 (hands rest, a listening presenter) .. 2. temperature, top_p: of the codes.
        """
        check_wish(seed, energy)
        manner = choose_style(style)
        rng_plan, rng_wander, rng_presence = (np.random.default_rng([seed, k]) for k in range(3))
        codes = int(np.ceil(prosody.duration * RATE / FRAMES_PER_CODE)) + 1
        plan = plan_gestures(prosody, manner, energy, rng_plan).curves(codes * FRAMES_PER_CODE, RATE)
        features = gesture_features(mels, plan)
        speaker = list(STYLES).index(style)
        track = self.model.run(features, speaker, seed, plan, 1, USUAL_TEMPERATURE * temperature, top_p)[0]
        track = gaussian_filter1d(track, SMOOTHING, axis=0, mode="nearest", truncate=3.0)
        track = _emphasise(track, plan)
        body, left, right = unpack(track)
        wander = WANDER * drift(len(body), RATE, WANDER_PERIOD, rng_wander, 6).reshape(-1, 2, 3)
        body, left, right = confine(body, wander), bend_fingers(LEFT, left), bend_fingers(RIGHT, right)
        frames = np.arange(count) / fps
        times = np.arange(int(np.ceil(prosody.duration * PRESENCE_RATE)) + 2) / PRESENCE_RATE
        presence = hold_presence(prosody, times, PRESENCE_RATE, manner, energy, rng_presence)
        body = sample_at(frames, RATE, body)
        trunk = [*SPINE, NECK, HEAD]
        body[:, trunk] = sample_at(frames, PRESENCE_RATE, presence.body[:, trunk])
        face = sample_at(frames, PRESENCE_RATE, np.stack([presence.blink, presence.brow, presence.smile], 1))
        return Gestures(
            body, sample_at(frames, RATE, left), sample_at(frames, RATE, right),
            sample_at(frames, PRESENCE_RATE, presence.eyes), *np.clip(face, 0, 1).T,
        )  # fmt: skip


def _emphasise(track: np.ndarray, plan: np.ndarray) -> np.ndarray:
    """(N, 129) with the quick moves of each arm larger where the stroke plan (N, 4) has a stroke, smaller elsewhere."""
    near = maximum_filter1d(np.minimum(plan[:, :2] / 0.4, 1), round(0.4 * RATE), axis=0)
    near = gaussian_filter1d(near, 0.1 * RATE, axis=0, mode="nearest")
    gain = EMPHASIS[0] + (EMPHASIS[1] - EMPHASIS[0]) * near[:, IS_RIGHT.astype(int)]
    slow = gaussian_filter1d(track, SLOW * RATE, axis=0, mode="nearest")
    return slow + gain * (track - slow)


def sample_at(frames: np.ndarray, rate: float, values: np.ndarray) -> np.ndarray:
    """Values (T, ...) known at k / rate, read at the times `frames` (N,) s by cubic (Catmull-Rom) interpolation."""
    position = np.clip(frames * rate, 0, len(values) - 1)
    k = np.minimum(position.astype(int), max(len(values) - 2, 0))
    u = (position - k).reshape(-1, *[1] * (values.ndim - 1)).astype(values.dtype)
    p0, p1, p2, p3 = (values[np.clip(k + offset, 0, len(values) - 1)] for offset in (-1, 0, 1, 2))
    return p1 + 0.5 * u * (p2 - p0 + u * (2 * p0 - 5 * p1 + 4 * p2 - p3 + u * (3 * (p1 - p2) + p3 - p0)))
