"""Phones with times -> the articulatory control curves the lip net learns.

Each phone class has targets for some controls and a strength with which it holds them; neighbouring phones blend by
their dominance (Cohen and Massaro 1993), which is what gives co-articulation. Closures are then enforced.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from talkshow_bridge.lip_net import CONTROLS

Segment = tuple[float, float, str]  # start s, end s, one IPA letter ('' = silence)
INDEX = {name: k for k, name in enumerate(CONTROLS)}

# fmt: off
VOWELS: dict[str, tuple[float, float, float]] = {  # openness, rounding, spreading, all 0..1
    "i": (.20, 0, .8), "ɪ": (.30, 0, .45), "y": (.20, .9, 0), "ʏ": (.28, .8, 0), "ᵻ": (.3, 0, .4), "ɨ": (.25, 0, .35),
    "e": (.38, 0, .6), "ø": (.36, .75, 0), "ɛ": (.55, 0, .45), "œ": (.52, .6, 0), "æ": (.80, 0, .45), "a": (.92, 0, .2),
    "ä": (.92, 0, .2), "ɶ": (.9, .3, 0), "ɐ": (.62, 0, .1), "ə": (.36, .05, .1), "ᵊ": (.36, .05, .1),
    "ɚ": (.34, .25, 0), "ɝ": (.38, .30, 0), "ɜ": (.45, .15, .05), "ɞ": (.45, .15, .05), "ɘ": (.36, 0, .2),
    "ɵ": (.36, .5, 0), "ʌ": (.60, 0, .1), "ɯ": (.25, 0, .3), "ɤ": (.40, 0, .2), "u": (.20, 1., 0), "ʊ": (.28, .75, 0),
    "o": (.42, .85, 0), "ɔ": (.60, .6, 0), "ɑ": (.95, 0, .05), "ɒ": (.80, .4, 0), "ʉ": (.22, .85, 0),
}
CONSONANTS: dict[str, str] = {  # class: letters
    "bilabial": "pbmɓʙ", "bilabial_fricative": "βɸ", "labiodental": "fvʋɱ", "labiovelar": "wʍɥ", "dental": "θð",
    "postalveolar": "ʃʒɕʑʂʐ", "alveolar": "tdnlszɾrɬɮɗ", "retroflex": "ɹɻʈɖɳɭɽ", "velar": "kɡŋxɣqɢχʁɰ",
    "palatal": "jɲʎcɟçʝ", "glottal": "hɦʔʕħ",
}
CLASS_OF = {letter: name for name, letters in CONSONANTS.items() for letter in letters}
VOICED = set("bdɡɢvðzʒmnŋlɹrɾjwʋɓɗɣʁɲʎʐʑβʙɭɽɻɖɳɱʝɟɥɰ")
# class: {control: (target, strength)}; anything not named is (0, .05), the tongue (0, .6), jaw and aperture as below
SHAPES: dict[str, dict[str, tuple[float, float]]] = {
    "bilabial": dict(jaw=(.10, .8), aperture=(0, 3.5), closure=(1, 3), labiodental=(0, 1), pucker=(0, .15),
                     funnel=(0, .15), spread=(0, .15), upper_raise=(0, 2), lower_drop=(0, 2), width=(.5, .15)),
    "bilabial_fricative": dict(jaw=(.12, .8), aperture=(.08, 4), closure=(.4, 3)),
    "labiodental": dict(jaw=(.14, .9), aperture=(.10, 4), closure=(0, 1), labiodental=(1, 6), pucker=(0, .25),
                        spread=(0, .25), upper_raise=(.25, 2), lower_drop=(0, 2), width=(.5, .25)),
    "labiovelar": dict(jaw=(.15, .9), aperture=(.12, 2.5), closure=(0, .5), pucker=(1, 3), funnel=(.4, 2),
                       spread=(0, 2), width=(0, 3), tongue_back=(.6, .6)),
    "dental": dict(jaw=(.22, .7), aperture=(.28, .6), tongue_dental=(1, 2), tongue_tip=(.4, 2)),
    "postalveolar": dict(jaw=(.12, 1.2), aperture=(.30, .8), pucker=(.45, .8), funnel=(.7, 1.2), upper_raise=(.3, .05),
                         lower_drop=(.3, .05), tongue_tip=(.6, .6), width=(.25, .8)),
    "alveolar": dict(jaw=(.20, .7), aperture=(.24, .45), closure=(0, .6), labiodental=(0, .5), spread=(.1, .25),
                     tongue_tip=(1, 2), width=(.5, .1)),
    "sibilant": dict(jaw=(.14, 1.4), aperture=(.24, .45), closure=(0, .6), labiodental=(0, .5), spread=(.25, .25),
                     tongue_tip=(1, 2), width=(.5, .1)),
    "retroflex": dict(jaw=(.20, .6), aperture=(.22, .5), closure=(0, .5), pucker=(.4, .7), funnel=(.3, .5),
                      tongue_tip=(.5, .6), width=(.3, .5)),
    "velar": dict(jaw=(.28, .4), aperture=(.30, .3), closure=(0, .5), labiodental=(0, .5), tongue_back=(1, 2)),
    "palatal": dict(jaw=(.18, .6), aperture=(.25, .5), closure=(0, .5), spread=(.5, .6), tongue_tip=(.5, .6),
                    width=(.65, .5)),
    "glottal": dict(jaw=(.30, .1), aperture=(.30, .1), closure=(0, .3), labiodental=(0, .3)),
    "silence": dict(jaw=(.03, .6), aperture=(.04, .6), closure=(.25, .6), width=(.5, .6), **{
        name: (0, .6) for name in ("labiodental", "pucker", "funnel", "spread", "upper_raise", "lower_drop",
                                   "tongue_tip", "tongue_dental", "tongue_back")}),
}
ARPABET = {
    "AA": "ɑ", "AE": "æ", "AH": "ʌ", "AO": "ɔ", "AW": "aʊ", "AX": "ə", "AY": "aɪ", "B": "b", "CH": "tʃ", "D": "d",
    "DH": "ð", "EH": "ɛ", "ER": "ɝ", "EY": "eɪ", "F": "f", "G": "ɡ", "HH": "h", "IH": "ɪ", "IY": "i", "JH": "dʒ",
    "K": "k", "L": "l", "M": "m", "N": "n", "NG": "ŋ", "OW": "oʊ", "OY": "ɔɪ", "P": "p", "R": "ɹ", "S": "s",
    "SH": "ʃ", "T": "t", "TH": "θ", "UH": "ʊ", "UW": "u", "V": "v", "W": "w", "Y": "j", "Z": "z", "ZH": "ʒ",
    "SIL": "", "PAU": "", "+NSN+": "", "+SPN+": "",
}
# fmt: on
RADIUS = {  # seconds beyond the phone's core over which its dominance falls to 1/e, per control
    **dict.fromkeys(CONTROLS, 0.055),
    **dict.fromkeys(("pucker", "funnel", "spread", "width"), 0.085),
    **dict.fromkeys(("speech", "voiced", "vowel"), 0.012),
    "closure": 0.016,
    "labiodental": 0.028,
    "aperture": 0.038,
}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """What one phone asks for: targets (16,) and strengths (16,)."""

    target: np.ndarray
    strength: np.ndarray


def shape_of(letter: str) -> Shape:
    """The lip shape of one IPA letter, '' for silence."""
    target, strength = np.zeros(len(CONTROLS)), np.full(len(CONTROLS), 0.05)
    strength[[INDEX[n] for n in ("speech", "voiced", "vowel")]] = 1.0
    target[INDEX["width"]] = 0.5
    if letter in VOWELS:
        wanted = _vowel_shape(letter)
    else:
        name = CLASS_OF[letter] if letter else "silence"
        wanted = SHAPES["sibilant" if letter in ("s", "z") else name]
        strength[[INDEX[n] for n in ("tongue_tip", "tongue_dental", "tongue_back")]] = 0.6
    if letter:
        wanted = {**wanted, "speech": (1, 1), "voiced": (float(letter in VOWELS or letter in VOICED), 1)}
    for name, (value, weight) in wanted.items():
        target[INDEX[name]], strength[INDEX[name]] = value, weight
    return Shape(target, strength)


def _vowel_shape(letter: str) -> dict[str, tuple[float, float]]:
    openness, rounding, spread = VOWELS[letter]
    aperture = 0.08 + (0.92 * openness * (1 - 0.55 * rounding) if rounding < 0.5 else 0.45 * openness)
    return dict(
        jaw=(openness, 1), aperture=(aperture, 1), closure=(0, 0.6), labiodental=(0, 0.6),
        pucker=(rounding if openness < 0.5 else 0.6 * rounding, 1), funnel=(rounding * (0.4 + 0.6 * openness), 1),
        spread=(spread, 1), upper_raise=(0.25 * openness + 0.15 * spread, 1),
        lower_drop=(0.6 * openness * (1 - rounding) + 0.1, 1), width=(0.5 + 0.5 * spread - 0.5 * rounding, 1),
        tongue_tip=(0, 0.6), tongue_dental=(0, 0.6), tongue_back=(0.5 if letter in "uʊoɔɯɤ" else 0.1, 0.6),
        vowel=(1, 1),
    )  # fmt: skip


def phone_class(letter: str) -> int:
    """0 silence, 1..10 consonant places, 11..16 vowel families: the auxiliary training target."""
    if not letter:
        return 0
    if letter not in VOWELS:
        order = ("bilabial", "labiodental", "dental", "alveolar", "postalveolar", "velar", "retroflex", "glottal")
        name = CLASS_OF[letter].removesuffix("_fricative")
        return 1 + (*order, "palatal", "labiovelar").index(name)
    openness, rounding, _ = VOWELS[letter]
    if letter in "əɚɜɝɵɘɐᵊ":
        return 16
    if rounding >= 0.4:
        return 15 if openness < 0.35 else 14
    return 11 if openness >= 0.58 else 12 if openness >= 0.34 else 13


def segments(phones: Iterable[tuple[float, str]], duration: float) -> list[Segment]:
    """Engine phones (start s, ARPAbet or IPA string) -> one segment per IPA letter; stress and length marks merge."""
    timed = sorted((float(t), p) for t, p in phones)
    ends = [*(t for t, _ in timed[1:]), duration]
    result: list[list] = []
    stress_start = None
    for (start, phone), end in zip(timed, ends, strict=True):
        mark = phone.strip()
        if mark and all(c in "ˈˌ'`" for c in mark):
            stress_start = start if stress_start is None else stress_start
            continue
        if result and (mark in ("ː", "ˑ") or (phone == " " and end - start < 0.15)):
            result[-1][1] = end
            continue
        start, stress_start = (start if stress_start is None else stress_start), None
        letters = _letters(mark)
        if not letters:
            if result and not result[-1][2]:
                result[-1][1] = end
            else:
                result.append([start, end, ""])
            continue
        shares = np.cumsum([0.0] + [weight for _, weight in letters])
        cuts = start + shares / shares[-1] * (end - start)
        result += [[cuts[k], cuts[k + 1], letter] for k, (letter, _) in enumerate(letters)]
    if not result or result[0][0] > 0:
        result.insert(0, [0.0, result[0][0] if result else duration, ""])
    return [(a, b, c) for a, b, c in result if b > a]


def _letters(phone: str) -> list[tuple[str, float]]:
    """'AW' or 'aʊː' -> [(letter, relative duration), ...]; unknown marks are dropped."""
    text = ARPABET.get(phone, phone)
    letters: list[tuple[str, float]] = []
    for c in unicodedata.normalize("NFC", text.replace("g", "ɡ")):
        base = c if c in VOWELS or c in CLASS_OF else unicodedata.normalize("NFD", c)[0]
        if base in VOWELS or base in CLASS_OF:
            letters.append((base, 1.0))
        elif base in "ːˑ" and letters:
            letters[-1] = (letters[-1][0], 1.6)
    return letters


def control_curves(parts: Sequence[Segment], times: np.ndarray) -> np.ndarray:
    """Segments -> (T, 16) control curves 0..1 at the given times (s)."""
    weighted = np.zeros((len(times), len(CONTROLS)))
    total = np.full((len(times), len(CONTROLS)), 1e-6)
    radius = np.array([RADIUS[name] for name in CONTROLS])
    for start, end, letter in parts:
        shape = shape_of(letter)
        middle, half = (start + end) / 2, (end - start) / 2
        near = np.flatnonzero(np.abs(times - middle) < half + 0.5)
        beyond = np.maximum(0, np.abs(times[near] - middle) - 0.6 * half)[:, None] / radius
        dominance = shape.strength * np.exp(-(beyond**1.2))
        weighted[near] += dominance * shape.target
        total[near] += dominance
    curves = weighted / total
    for start, end, letter in parts:
        _enforce_contact(curves, times, start, end, letter)
    aperture, closure = INDEX["aperture"], INDEX["closure"]
    curves[:, aperture] = np.minimum(curves[:, aperture], 1 - 0.98 * curves[:, closure])
    return curves.astype(np.float32)


def _enforce_contact(curves: np.ndarray, times: np.ndarray, start: float, end: float, letter: str) -> None:
    """Lips meet in every p, b, m and lip meets teeth in every f, v, however short the phone."""
    kind = CLASS_OF.get(letter)
    if kind not in ("bilabial", "labiodental") or not len(times):
        return
    nearest = np.array([np.argmin(np.abs(times - (start + end) / 2))])
    if kind == "bilabial":
        inside = np.flatnonzero((times >= start) & (times <= end - 0.2 * (end - start)))
        frames = inside if len(inside) else nearest
        curves[frames, INDEX["closure"]] = np.maximum(curves[frames, INDEX["closure"]], 0.97)
        curves[frames, INDEX["aperture"]] = np.minimum(curves[frames, INDEX["aperture"]], 0.01)
    else:
        curves[nearest, INDEX["labiodental"]] = np.maximum(curves[nearest, INDEX["labiodental"]], 0.9)
        curves[nearest, INDEX["aperture"]] = np.minimum(curves[nearest, INDEX["aperture"]], 0.14)
