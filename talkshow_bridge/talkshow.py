"""Speech -> whole-body motion with the user's own TalkSHOW weights (Yi et al., CVPR 2023): face net plus gesture nets.

The published program moves the figure on a clock of its own, freezes its last frames and writes the rotations of the
feet into neck and left collar. That is mended here; `compat=True` repeats it to the letter.
"""

from __future__ import annotations

import math
import os
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from talkshow_bridge import face_net
from talkshow_bridge.audio import Speech, load_speech, stream
from talkshow_bridge.checkpoints import BODY_SIZE, load_talkshow
from talkshow_bridge.errors import InputError
from talkshow_bridge.mfcc import FRAME_RATE as GESTURE_RATE
from talkshow_bridge.mfcc import mfcc_of_blocks
from talkshow_bridge.motion import Motion
from talkshow_bridge.planner import check_sampling, check_wish
from talkshow_bridge.vq_vae import FRAMES_PER_CODE

if TYPE_CHECKING:
    from talkshow_bridge.face_net import FaceGenerator
    from talkshow_bridge.gesture_model import GestureModel
    from talkshow_bridge.lip_net import LipNet

SPEAKERS = ("oliver", "chemistry", "seth", "conan")
POSTURES = ("sit", "stand", "only_face")
# fmt: off
JOINTS = (3, 6, 9, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21)  # SMPL-X joints that the 13 body rotations are written to
ROOT = (3.0747, -0.0158, -0.0152)  # radians, in TalkSHOW's y-down frame
SITTING = {
    1: (-1.1826512813568115, 0.23866955935955048, 0.15146760642528534),
    2: (-1.2604516744613647, -0.3160211145877838, -0.1603458970785141),
    4: (1.1654603481292725, 0.0, 0.0),
    5: (1.2521806955337524, 0.041598282754421234, -0.06312154978513718),
}  # hips and knees
# fmt: on
_NECK, _LEFT_COLLAR, _RIGHT_COLLAR = 12, 13, 14


class TalkShow:
    """TalkSHOW's networks as a motion generator.

    lips: None for TalkSHOW's own face ("flame100"); our lip net for bodies that know ARKit units only ("arkit52"):
    official body motion with jaw, mouth, lids and gaze of our own.
    """

    def __init__(self, face: FaceGenerator, gestures: GestureModel, lips: LipNet | None = None) -> None:
        self.face, self.gestures, self.lips = face, gestures, lips

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], device: str = "cpu", lips: str = "official") -> TalkShow:
        """Load the three official .pth files or the set that `launch.py motion import` made of them.

        lips: "official" or "bundled" (see the class). Raises InputError when the weights are not whole or of others.
        """
        if lips not in ("official", "bundled"):
            raise InputError(f"Lips are 'official' or 'bundled', not '{lips}'.")
        face, gestures = load_talkshow(folder, device)
        if lips == "official":
            return cls(face, gestures)
        from talkshow_bridge.bundled import BUNDLED
        from talkshow_bridge.lip_net import LipNet

        return cls(face, gestures, LipNet.load(BUNDLED, device))

    @property
    def expression_space(self) -> str:
        return "flame100" if self.lips is None else "arkit52"

    @property
    def styles(self) -> tuple[str, ...]:
        """Names of the speakers whose manner the weights know."""
        more = range(len(SPEAKERS), self.face.speakers)
        return (*SPEAKERS, *(f"speaker{k}" for k in more))[: self.face.speakers]

    def generate(
        self, speech: Speech | str | os.PathLike[str], seed: int = 0, style: str | int = "neutral",
        energy: float = 1.0, fps: float = 30.0, **options,
    ) -> Motion:  # fmt: skip
        """One Motion; see `takes` for the options. The same seed gives the same Motion."""
        return self.takes(speech, 1, seed, style, energy, fps, **options)[0]

    def takes(
        self, speech: Speech | str | os.PathLike[str], count: int, seed: int = 0, style: str | int = "neutral",
        energy: float = 1.0, fps: float = 30.0, temperature: float = 1.0, top_p: float = 1.0,
        posture: str | None = None, face_style: bool = False, compat: bool = False,
    ) -> list[Motion]:  # fmt: skip
        """Several Motions for one speech: one face, other gestures. Frame k shows time k / fps, y up.

        style: a speaker of `styles` or its number; "neutral" means the first. energy: 0 (the mean pose) .. 2.
        temperature, top_p: of the sampled codes. posture: one of POSTURES; None sits, as TalkSHOW does, or stands with
        bundled lips. face_style: tell the face net the speaker too. compat: TalkSHOW's own frames (see `columns`).
        """
        speech = speech if isinstance(speech, Speech) else load_speech(speech)
        posture = posture or ("sit" if self.lips is None else "stand")
        _check(count, fps, posture)
        check_wish(seed, energy)
        check_sampling(temperature, top_p, least=0)
        seed, energy = int(seed), float(energy)
        speaker = self._speaker(style)
        sampling = {"seed": seed, "samples": count, "temperature": temperature, "top_p": top_p}
        if compat:
            clips = self.columns(speech, speaker, posture, face_style, energy, **sampling)
            motions = [Motion.from_talkshow(clip, face_net.FRAME_RATE).resample(fps) for clip in clips]
        else:
            clips = self._columns_on_time(speech, speaker, posture, face_style, energy, fps, **sampling)
            motions = [Motion.from_talkshow(clip, fps) for clip in clips]
        meta = {
            "generator": "TalkSHOW", "style": self.styles[speaker], "energy": energy, "posture": posture,
            "compat": compat, "audio_sha256": speech.sha256, "audio_duration": speech.duration, **sampling,
        }  # fmt: skip
        own_face = self._own_face(speech, len(motions[0]), fps, seed)
        return [replace(m, meta={**meta, "take": k}, **own_face) for k, m in enumerate(motions)]

    def columns(
        self, speech: Speech, speaker: int = 0, posture: str = "sit", face_style: bool = False, energy: float = 1.0,
        **sampling,
    ) -> np.ndarray:  # fmt: skip
        """What TalkSHOW's demo writes, for each sample: (samples, T, 265) float32 with T = N_16k * 30 // 16000.

        Quirks included: body played at 30 instead of 29.973 Hz, last frames frozen, feet in neck and left collar.
        sampling: seed, samples, temperature, top_p of `GestureModel.run`.
        """
        frames = len(speech.samples) * face_net.FRAME_RATE // face_net.SAMPLE_RATE
        face = self.face.run(speech.samples, frames, speaker if face_style else None, window=None)
        if posture == "only_face":
            return np.repeat(_assemble(face, None, posture)[None], sampling.get("samples", 1), axis=0)
        tracks = self.gestures.run(_features(speech), speaker, **sampling)
        if not tracks.shape[1]:
            raise InputError("TalkSHOW's own frames need a little more speech: 0.14 s at least.")
        shown = np.minimum(np.arange(frames), tracks.shape[1] - 1)
        return np.stack([_assemble(face, _with_energy(track, energy)[shown], posture) for track in tracks])

    def _columns_on_time(
        self, speech: Speech, speaker: int, posture: str, face_style: bool, energy: float, fps: float, **sampling
    ) -> np.ndarray:
        """(samples, frames, 265) with frame k at time k / fps for face and body, neck and collars at ease."""
        times = np.arange(speech.frame_count(fps)) / fps
        face = self._face_on_time(speech.samples, times, speaker if face_style else None)
        if posture == "only_face":
            return np.repeat(_assemble(face, None, posture)[None], sampling["samples"], axis=0)
        features = _features(speech)
        needed = FRAMES_PER_CODE * math.ceil((times[-1] * GESTURE_RATE + 2) / FRAMES_PER_CODE)
        features = np.pad(features, ((0, max(0, needed - len(features))), (0, 0)), mode="edge")
        tracks = self.gestures.run(features, speaker, **sampling)
        clips = []
        for track in tracks:
            track = _at(times, _with_energy(track, energy), GESTURE_RATE)
            clips.append(_assemble(face, track, posture))
            _ease_neck_and_collar(clips[-1])
        return np.stack(clips)

    def _face_on_time(self, samples: np.ndarray, times: np.ndarray, speaker: int | None) -> np.ndarray:
        """(N, 103) at `times`; zeros where the face will be our own."""
        if self.lips is not None:
            return np.zeros((len(times), self.face.outputs), np.float32)
        frames = math.ceil(len(samples) * face_net.FRAME_RATE / face_net.SAMPLE_RATE)
        whole = math.ceil(frames * face_net.SAMPLE_RATE / face_net.FRAME_RATE)  # so that no frame is stretched
        samples = np.pad(samples, (0, whole - len(samples)))
        return _at(times, self.face.run(samples, frames, speaker), face_net.FRAME_RATE)

    def _own_face(self, speech: Speech, count: int, fps: float, seed: int) -> dict:
        """Fields of Motion that the bundled lips replace: the mouth as heard, blinks and brows."""
        if self.lips is None:
            return {}
        from talkshow_bridge.features import log_mel
        from talkshow_bridge.lips import effort_of, mouth
        from talkshow_bridge.planner import STYLES
        from talkshow_bridge.presence import add_upper_face, hold_presence
        from talkshow_bridge.prosody import analyse

        mels = log_mel(speech.samples)
        jaw, expression = mouth(self.lips.run(mels), count, fps, effort_of(mels))
        times, random = np.arange(count) / fps, np.random.default_rng(seed)
        prosody = analyse(speech.samples, mels)
        presence = hold_presence(prosody, times, fps, STYLES["neutral"], 1.0, random)
        add_upper_face(expression, presence.blink, presence.brow, presence.smile)
        return {"jaw": jaw, "expression": expression, "expression_space": self.expression_space}

    def _speaker(self, style: str | int) -> int:
        if style == "neutral":
            return 0
        if style in self.styles:
            return self.styles.index(style)
        if isinstance(style, int) and 0 <= style < len(self.styles):
            return style
        raise InputError(f"These weights know the styles {', '.join(self.styles)}, not '{style}'.")


def _check(count: int, fps: float, posture: str) -> None:
    if count < 1:
        raise InputError(f"At least one take is needed, not {count}.")
    if not 1 <= fps <= 240:
        raise InputError(f"The frame rate goes from 1 to 240, not {fps}.")
    if posture not in POSTURES:
        raise InputError(f"Unknown posture '{posture}'; there are {', '.join(POSTURES)}.")


def _features(speech: Speech) -> np.ndarray:
    """(T, 64) MFCCs of the recording as it lies in its file; of the 16 kHz samples when there is no file."""
    if speech.path is None:
        return mfcc_of_blocks([speech.samples[None]], speech.sample_rate)
    with stream(speech.path) as (blocks, rate):
        return mfcc_of_blocks(blocks, rate)


def _with_energy(track: np.ndarray, energy: float) -> np.ndarray:
    """Movement about the mean pose, scaled."""
    if energy == 1.0:
        return track
    mean = track.mean(axis=0)
    return mean + np.float32(energy) * (track - mean)


def _at(times: np.ndarray, track: np.ndarray, rate: float) -> np.ndarray:
    """A track (T, D) at `rate` Hz, read at times (N,) s: linear between frames, which are only 0.03 s apart."""
    at = np.clip(times * rate, 0, len(track) - 1)
    low = at.astype(np.int64)
    weight = (at - low).astype(np.float32)[:, None]
    return track[low] * (1 - weight) + track[np.minimum(low + 1, len(track) - 1)] * weight


def _assemble(face: np.ndarray, track: np.ndarray | None, posture: str) -> np.ndarray:
    """Face (N, 103) and body track (N, 129) -> TalkSHOW's 265 columns (specified in `Motion.to_talkshow`)."""
    count = len(face)
    body = np.zeros((count, 21, 3), np.float32)
    hands = np.zeros((count, 90), np.float32)
    if posture == "sit":
        for joint, rotation in SITTING.items():
            body[:, joint - 1] = rotation
    if track is not None:
        body[:, np.array(JOINTS) - 1] = track[:, :BODY_SIZE].reshape(count, -1, 3)
        hands = track[:, BODY_SIZE:]
    root = np.tile(np.float32(ROOT), (count, 1))
    eyes = np.zeros((count, 6), np.float32)
    return np.concatenate([face[:, :3], eyes, root, body.reshape(count, 63), hands, face[:, 3:]], axis=1)


def _ease_neck_and_collar(columns: np.ndarray) -> None:
    """In place: neck straight, left collar the mirror image of the right one's mean, instead of the feet."""
    body = columns[:, 12:75].reshape(-1, 21, 3)
    right = body[:, _RIGHT_COLLAR - 1].mean(axis=0)
    body[:, _NECK - 1] = 0
    body[:, _LEFT_COLLAR - 1] = right * (1, -1, -1)
    columns[:, 12:75] = body.reshape(-1, 63)
