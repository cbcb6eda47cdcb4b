"""The lip evaluation gives full marks to a mouth that does what the phones say, and none to its opposite."""

import json

import numpy as np
import pytest
import soundfile

from talkshow_bridge.errors import InputError
from talkshow_bridge.evaluation.lips import HEADINGS, evaluate, table
from talkshow_bridge.lip_net import CONTROL_RATE
from talkshow_bridge.lips import closing
from talkshow_bridge.training.phones import control_curves, segments

PHONES = ["", "p", "ɑ", "b", "u", "f", "i", "", "m", "æ", "t", "o", "v", "ɛ", "k", "u", "p", "i", ""]
LENGTH = 0.12  # s each
PARTS = [(k * LENGTH, (k + 1) * LENGTH, phone) for k, phone in enumerate(PHONES)]
DURATION = len(PHONES) * LENGTH


class Speaker:
    """A generator whose lip net knows the phones beforehand."""

    def __init__(self, wrong: bool = False) -> None:
        self.lips, self.wrong = self, wrong

    def run(self, mels: np.ndarray) -> np.ndarray:
        curves = control_curves(PARTS, np.arange(len(mels) // 2) / CONTROL_RATE)
        return 1 - curves if self.wrong else curves


@pytest.fixture
def recordings(tmp_path):
    sound = np.random.default_rng(0).normal(0, 0.1, int(16_000 * DURATION))
    soundfile.write(tmp_path / "clip.flac", sound, 16_000)
    (tmp_path / "phones.json").write_text(json.dumps({"clip": {"dur": DURATION, "phones": PARTS, "lang": "en"}}))
    return tmp_path


def figures(rows) -> dict[str, float]:
    return next(dict(zip(HEADINGS, row.figures, strict=True)) for row in rows if row.model == "lip net")


def test_evaluation_tells_right_from_wrong(recordings):
    rows = evaluate([recordings], Speaker())
    right, wrong = figures(rows), figures(evaluate([recordings], Speaker(wrong=True)))
    assert [row.model for row in rows] == ["energy envelope", "lip net"] and rows[0].bilabials == 4
    for name in ("bilabial AUC", "F-V AUC", "rounding AUC", "vowel openness r", "aperture r"):
        assert right[name] > 0.97 > 0.3 > wrong[name]
    assert right["closed p/b/m"] == right["right closures"] == 1 and right["closed vowels"] == 0
    assert table(rows).count("\n") == 3


def test_folder_without_phones_is_refused(tmp_path):
    with pytest.raises(InputError):
        evaluate([tmp_path], Speaker())


def test_lips_close_around_a_peak_only():
    closure = np.full(60, 0.02)
    closure[10:13] = 0.15, 0.4, 0.15  # a short, unsure p
    closure[30:40] = 0.9  # a long m
    closure[40:46] = np.linspace(0.6, 0.1, 6)  # and the vowel after it
    closed = closing(closure)
    assert closed[11] > 0.9 and closed[[8, 9, 13, 14]].max() < 0.1
    assert closed[31:39].min() > 0.9 and closed[41:].max() < 0.1
    assert not closing(np.zeros(5)).any() and len(closing(np.zeros(0))) == 0


def test_espeak_r_is_not_the_english_one():
    assert [letter for _, _, letter in segments([(0, "p"), (0.1, "r"), (0.2, "R"), (0.3, "AY")], 0.5)] == list("prɹaɪ")
