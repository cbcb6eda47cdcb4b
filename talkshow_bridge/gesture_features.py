"""What the bundled gesture model hears, and how its 129 numbers a frame map to joints. 30 frames a second.

The audio input of the three nets is log-mel bands pooled to 30 Hz plus the stroke plan; the output has TalkSHOW's order
of 39 body and 90 hand numbers, on the joints those were meant for (neck and left collar where TalkSHOW has feet).
Spine, neck and head stay 0: `presence` moves them, on the beat of the speech.
"""

from __future__ import annotations

import numpy as np

from talkshow_bridge.features import BANDS, HOP, SAMPLE_RATE, channel_mean, normalise
from talkshow_bridge.planner import PLAN_CHANNELS
from talkshow_bridge.skeleton import JOINTS

RATE = 30.0  # Hz
POOLED_BANDS = BANDS // 2
FEATURES = POOLED_BANDS + PLAN_CHANNELS
UPPER = (2, 5, 8, *range(11, 21))  # rows of Motion.body: spine 1-3, neck, collars, head, shoulders, elbows, wrists
BODY_SIZE = 3 * len(UPPER)
_RIGHT_ROWS = [JOINTS[row + 1].startswith("right") for row in UPPER]
IS_RIGHT = np.array([*np.repeat(_RIGHT_ROWS, 3), *45 * [False], *45 * [True]])  # whose arm each number moves
SMOOTHING = 0.8  # frames, deviation of the Gaussian that takes the code grid's jitter off a decoded track


def gesture_features(mels: np.ndarray, plan: np.ndarray) -> np.ndarray:
    """(M, 40) log-mels at 100 Hz and the stroke plan (N, 4) at 30 Hz -> (N, 24) float32, channel removed."""
    mel_rate = SAMPLE_RATE / HOP
    pooled = normalise(mels, channel_mean(mels)).reshape(len(mels), POOLED_BANDS, 2).mean(axis=2)
    total = np.concatenate([np.zeros((1, POOLED_BANDS)), np.cumsum(pooled, axis=0, dtype=np.float64)])
    edges = (np.arange(len(plan) + 1) - 0.5) * mel_rate / RATE
    low, high = (np.clip(np.round(e).astype(int), 0, len(mels)) for e in (edges[:-1], edges[1:]))
    means = (total[high] - total[low]) / np.maximum(high - low, 1)[:, None]
    means[high == low] = -2.0  # beyond the recording: silence
    return np.concatenate([means, plan], axis=1).astype(np.float32)


def pack(body: np.ndarray, left_hand: np.ndarray, right_hand: np.ndarray) -> np.ndarray:
    """(N, 21, 3), (N, 15, 3), (N, 15, 3) axis-angle -> (N, 129)."""
    return np.concatenate(
        [body[:, UPPER].reshape(-1, BODY_SIZE), *(h.reshape(-1, 45) for h in (left_hand, right_hand))], 1
    )


def unpack(track: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N, 129) -> body (N, 21, 3) with zero legs, left and right hand (N, 15, 3)."""
    body = np.zeros((len(track), 21, 3), track.dtype)
    body[:, UPPER] = track[:, :BODY_SIZE].reshape(-1, len(UPPER), 3)
    hands = track[:, BODY_SIZE:].reshape(-1, 2, 15, 3)
    return body, hands[:, 0], hands[:, 1]
