"""RenderSettings: the one validated object that the web page, the command line and Python build for a render."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from talkshow_bridge.errors import InputError

PRESETS = ("draft", "standard", "best")
STYLES = ("calm", "neutral", "lively")
LIPS = ("official", "bundled")
SAMPLER_FIELDS = ("steps", "guidance", "condition_scale", "window", "overlap", "face")

# name: (type, smallest, largest); None is always allowed where the field's default is None
_RANGES = {
    "seed": (int, 0, 2**32 - 1),
    "gesture_energy": (float, 0.0, 2.0),
    "steps": (int, 1, 1000),
    "guidance": (float, 0.0, 30.0),
    "condition_scale": (float, 0.0, 4.0),
    "window": (int, 1, 256),
    "overlap": (int, 0, 255),
    "crf": (int, 0, 40),
}


@dataclass(frozen=True)
class RenderSettings:
    """What decides how a video comes out, besides the speech. Raises InputError when a value makes no sense.

    anchor: id of an installed anchor or a folder with an anchor.json; None = the first bundled one.
    preset: "draft", "standard" or "best": the anchor's own sampler defaults.
    seed: same seed, same speech, same settings -> same motion and same frames.
    gesture_energy: 0 = still arms, 1 = natural, 2 = lively.   style: "calm", "neutral" or "lively"; with a
    motion_model of its own styles, one of those.
    motion_model: None = the bundled one; a folder with TalkSHOW weights, or "talkshow" for those once imported.
    lips: of a TalkSHOW motion model: "official", or "bundled" for anchors that only know our face units.
    steps, guidance, condition_scale, window, overlap, face: override the preset of the anchor; None = the preset's.
    crf: H.264 quality, 0 (lossless) to 40; 18 is visually transparent.
    commercial_safe: refuse parts whose licence is not known to allow commercial use (see LICENSES.md).
    watermark: an invisible mark in the frames.   label: "AI-generated" in a corner.   credentials: sign the file.
    """

    anchor: str | None = None
    preset: str = "standard"
    seed: int = 0
    gesture_energy: float = 1.0
    style: str = "neutral"
    motion_model: str | None = None
    lips: str = "official"
    steps: int | None = None
    guidance: float | None = None
    condition_scale: float | None = None
    window: int | None = None
    overlap: int | None = None
    face: bool | None = None
    crf: int = 18
    commercial_safe: bool = False
    watermark: bool = True
    label: bool = False
    credentials: bool = True

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise InputError(f"Unknown preset {self.preset!r}: please choose one of {', '.join(PRESETS)}.")
        for name in ("anchor", "motion_model", "style"):
            value = getattr(self, name)
            if not isinstance(value, str) and not (value is None and name in _OPTIONAL):
                raise InputError(f"Setting '{name}' must be a text, not {value!r}.")
        if self.motion_model is None and self.style not in STYLES:
            raise InputError(f"Unknown style {self.style!r}: please choose one of {', '.join(STYLES)}.")
        if self.lips not in LIPS:
            raise InputError(f"Unknown lips {self.lips!r}: please choose one of {', '.join(LIPS)}.")
        if self.face not in (None, True, False):
            raise InputError(f"Setting 'face' must be true, false or empty, not {self.face!r}.")
        for name in ("watermark", "label", "credentials"):
            if getattr(self, name) not in (True, False):
                raise InputError(f"Setting '{name}' must be true or false, not {getattr(self, name)!r}.")
        if self.commercial_safe not in (True, False):
            raise InputError(f"Setting 'commercial_safe' must be true or false, not {self.commercial_safe!r}.")
        for name, (kind, low, high) in _RANGES.items():
            object.__setattr__(self, name, _number(name, getattr(self, name), kind, low, high))
        if self.window is not None and self.overlap is not None and self.overlap >= self.window:
            raise InputError(f"The overlap ({self.overlap}) must be smaller than the window ({self.window}).")

    def sampler_overrides(self) -> dict:
        """The sampler settings that differ from the anchor's preset."""
        return {name: getattr(self, name) for name in SAMPLER_FIELDS if getattr(self, name) is not None}

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> RenderSettings:
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise InputError(f"Unknown setting {unknown[0]!r}; known are {', '.join(sorted(known))}.")
        return cls(**values)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> RenderSettings:
        """Reads settings from a JSON file: settings alone, or the side-car of a finished video."""
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"The settings file {str(path)!r} cannot be read: {error.strerror}.") from None
        except (ValueError, RecursionError):
            raise InputError(f"The settings file {str(path)!r} is not JSON.") from None
        if isinstance(values, dict):
            values = values.get("settings", values)
        if not isinstance(values, dict):
            raise InputError(f"The settings file {str(path)!r} holds no settings.")
        return cls.from_dict(values)


_OPTIONAL = {field.name for field in fields(RenderSettings) if field.default is None}


def _number(name: str, value: object, kind: type, low: float, high: float) -> int | float | None:
    if value is None and name in _OPTIONAL:
        return None
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not fits or not low <= value <= high or kind(value) != value:
        whole = "a whole number" if kind is int else "a number"
        raise InputError(f"Setting '{name}' must be {whole} from {low:g} to {high:g}, not {value!r}.")
    return kind(value)
