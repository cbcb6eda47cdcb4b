"""The quality report: every fault is found, in the check that is meant for it, and a good clip passes."""

import json
import re

import numpy as np
import pytest

from avatar_app.anchors import Anchor
from avatar_app.diffusion.windows import native_windows
from avatar_app.evaluation.marks import BodyMarks
from avatar_app.evaluation.observers import Correlation, Histogram
from avatar_app.evaluation.report import GOOD, LOOK, NOT_MEASURED, QualityReport, as_html, as_text, window_borders
from talkshow_bridge.audio import Speech
from talkshow_bridge.motion import Motion
from tests.conftest import FPS

COUNT, SCALE, WINDOW = 5 * FPS, 4, {"window": 16, "overlap": 4, "face": True}


def syllables(count: int, late: float = 0.0) -> np.ndarray:
    """How loud somebody speaks at `count` moments of the clip, 0..1; silent in the fourth second."""
    time = np.linspace(0, COUNT / FPS, count, endpoint=False) - late
    loud = np.abs(np.sin(13 * time + 2 * np.sin(3 * time)) * np.sin(5 * time + np.sin(7 * time)))
    return loud * ((time < 3) | (time > 4))


def spoken(late: float = 0.0) -> Speech:
    rng = np.random.default_rng(0)
    count = 16_000 * COUNT // FPS
    return Speech.from_samples(0.3 * syllables(count, late) * rng.normal(0, 0.3, count).clip(-1, 1))


class Clip:
    """A presenter drawn by code: a still room, a head, a mouth that opens as the mesh's does."""

    def __init__(self, tiny_anchor):
        camera = tiny_anchor.camera.scaled(SCALE)
        facts = {"camera": camera.to_dict(), "width": camera.width, "height": camera.height}
        manifest = tiny_anchor.manifest.model_copy(update=facts | {"cross_frame_attention": True})
        self.anchor = Anchor(tiny_anchor.folder, manifest)
        self.options = self.anchor.preset("best", WINDOW)
        motion = Motion.rest(COUNT, FPS)
        motion.body[:, 15, 2], motion.body[:, 16, 2] = -1.2, 1.2
        motion.body[:, 14, 1] = 0.1 * np.sin(2 * np.arange(COUNT) / FPS)
        motion.jaw[:, 0] = 0.35 * syllables(COUNT)
        self.vertices, self.speech = self.anchor.vertices(motion), spoken()
        self.frames = np.stack([self.draw(vertices) for vertices in self.vertices])

    def draw(self, vertices: np.ndarray) -> np.ndarray:
        marks = BodyMarks(self.anchor.body, self.anchor.camera)
        size = self.anchor.camera.width
        y, x = np.mgrid[:size, :size] + 0.5
        picture = np.stack([x / 4 + 40, y / 4 + 40, 100 + 0 * x], -1)
        place = marks.face(vertices)
        opening = (marks.aperture(vertices) - marks.aperture(self.anchor.body.vertices)) / 1000
        mouth, opening = marks.mouth(vertices, place), opening * place.size / marks.eye_distance
        for middle, radii, colour in (
            (place.middle + [0, 0.3 * place.size], (1.2 * place.size, 1.8 * place.size), (210, 170, 150)),
            (mouth, (0.4 * place.size, max(opening / 2, 0.2)), (60, 20, 20)),
        ):
            inside = np.clip(8 * (1 - np.hypot((x - middle[0]) / radii[0], (y - middle[1]) / radii[1])), 0, 1)[
                ..., None
            ]
            picture += inside * (np.array(colour) - picture)
        return picture.round().astype(np.uint8)

    def report(self, frames=None, vertices=None, speech=None, chunk=8) -> dict:
        frames, vertices = (
            own if given is None else given for own, given in ((self.frames, frames), (self.vertices, vertices))
        )
        report = QualityReport(self.anchor, self.options, speech or self.speech, len(frames))
        for start in range(0, len(frames), chunk):
            report.observe(frames[start : start + chunk], vertices[start : start + chunk])
        return report.finish()


@pytest.fixture(scope="module")
def clip(tiny_anchor):
    return Clip(tiny_anchor)


def faults(report: dict) -> set[str]:
    return {check["id"] for check in report["checks"] if check["verdict"] == LOOK}


def value(report: dict, check: str) -> float:
    return next(line["value"] for line in report["checks"] if line["id"] == check)


def test_a_good_clip_passes_every_check(clip):
    report = clip.report()
    assert {check["verdict"] for check in report["checks"]} == {GOOD}, as_text(report)
    assert report["verdict"] == GOOD and report["frames"] == COUNT
    assert json.loads(json.dumps(report)) == report


def test_sound_and_picture_apart(clip):
    early = clip.report(speech=spoken(late=5 / FPS))
    assert "av_offset" in faults(early) and abs(value(early, "av_offset") + 5) < 0.7
    late = clip.report(frames=np.concatenate([np.repeat(clip.frames[:1], 5, axis=0), clip.frames[:-5]]))
    assert "av_offset" in faults(late) and abs(value(late, "av_offset") - 5) < 0.7


def test_a_frozen_mouth(clip):
    closed = clip.vertices[np.argmin(syllables(COUNT))]
    still = np.repeat(closed[None], COUNT, axis=0)
    assert "lips_speech" in faults(clip.report(vertices=still))
    drawn_shut = np.repeat(clip.draw(closed)[None], COUNT, axis=0)
    assert faults(clip.report(frames=drawn_shut)) == {"lips_drawn"}


def test_a_mouth_that_moves_in_silence(clip):
    motion = Motion.rest(COUNT, FPS)
    motion.jaw[:, 0] = 0.15 + 0.15 * np.sin(15 * np.arange(COUNT) / FPS)
    assert "lips_silence" in faults(clip.report(vertices=clip.anchor.vertices(motion)))


def test_silence_is_not_somebody_speaking(clip):
    still = np.repeat(clip.vertices[:1], COUNT, axis=0)
    hiss = np.random.default_rng(3).normal(0, 1e-4, clip.speech.samples.shape).astype(np.float32)
    for samples in (hiss, 0 * hiss):
        report = clip.report(vertices=still, speech=Speech.from_samples(samples))
        lips = next(check for check in report["checks"] if check["id"] == "lips_speech")
        assert lips["verdict"] == NOT_MEASURED, lips


def test_a_seam_at_every_window_border_and_a_single_jump(clip):
    frames = clip.frames.astype(np.int16)
    for number, window in enumerate(native_windows(COUNT, 16, 4)):
        frames[window.start :] += 3 if number % 2 else -3
    assert {"seams", "jumps"} <= faults(clip.report(frames=frames.clip(0, 255).astype(np.uint8)))
    frames = clip.frames.copy()
    frames[70:] += 4
    report = clip.report(frames=frames)
    assert faults(report) == {"jumps"}
    assert next(check["at"] for check in report["checks"] if check["id"] == "jumps") == [2.8]


def test_flicker(clip):
    noise = np.random.default_rng(1).normal(0, 4, clip.frames.shape)
    assert "flicker" in faults(clip.report(frames=(clip.frames + noise).clip(0, 255).astype(np.uint8)))


def test_trembling(clip):
    tremble = np.random.default_rng(2).normal(0, 0.002, (COUNT, 1, 3)).astype(np.float32)
    assert {"jitter_head", "jitter_hands"} <= faults(clip.report(vertices=clip.vertices + tremble))


def test_hands_and_face_outside_the_picture(clip):
    low = clip.vertices - np.float32([0, 0.3, 0])
    assert "hands" in faults(clip.report(vertices=low))
    assert {"hands", "face_pass"} <= faults(clip.report(vertices=clip.vertices + np.float32([0.6, 0, 0])))


def test_another_person_in_the_second_half(clip):
    frames = clip.frames.copy()
    frames[60:] = frames[60:, :, :, ::-1]
    assert "identity" in faults(clip.report(frames=frames))


def test_what_cannot_be_measured_says_why(clip):
    report = QualityReport(clip.anchor, None, None, 10)
    report.observe(clip.frames[:10], clip.vertices[:10])
    lines = {check["id"]: check for check in report.finish()["checks"]}
    for name in ("av_offset", "lips_speech", "lips_silence", "lips_drawn", "seams", "face_pass", "identity"):
        assert lines[name]["verdict"] == NOT_MEASURED and lines[name]["value"] is None and lines[name]["sentence"]


def test_resumed_and_rechunked_it_measures_the_same(clip):
    whole = clip.report()
    assert clip.report(chunk=7) == whole
    kept = {}
    first = QualityReport(clip.anchor, clip.options, clip.speech, COUNT, kept.__setitem__, every=50)
    first.observe(clip.frames[:53], clip.vertices[:53])
    assert list(kept) == [50]
    saved = json.dumps(kept[50])
    assert len(saved) < 300_000
    second = QualityReport(clip.anchor, clip.options, clip.speech, COUNT)
    second.restore(json.loads(saved))
    second.observe(clip.frames[50:], clip.vertices[50:])
    assert second.finish() == whole
    rest = QualityReport(clip.anchor, clip.options, clip.speech, COUNT)
    rest.resume(50, None)
    rest.observe(clip.frames[50:], clip.vertices[50:])
    assert rest.finish()["frames"] == COUNT - 50 and not faults(rest.finish())
    for wrong in ({}, {"version": 99}, json.loads(saved) | {"sound": {}}):
        with pytest.raises(ValueError):
            second.restore(wrong)


def test_shown_as_text_and_as_harmless_html(clip):
    report = clip.report(speech=spoken(late=5 / FPS))
    text = as_text(report)
    assert text.startswith("Quality: look here") and "LOOK  Picture and sound" in text
    assert len(text.splitlines()) == 1 + len(report["checks"])
    assert len(as_text(report, brief=True).splitlines()) == 1 + len(faults(report))
    report["checks"][0]["sentence"] = "<script>"
    page = as_html(report)
    assert "<script>" not in page and set(re.findall(r"<(\w+)", page)) == {"section", "h4", "table", "tr", "td"}


def test_lag_and_quantiles_are_those_of_the_whole_signal():
    rng = np.random.default_rng(3)
    signal = np.convolve(rng.normal(size=300), np.ones(4) / 4, "same")
    correlation = Correlation()
    for late, now in zip(np.roll(signal, 3), signal, strict=True):
        correlation.add(late, now)
    lag, agreement = correlation.best()
    assert abs(lag - 3) < 0.2 and agreement > 0.95
    plain = [np.corrcoef(np.roll(signal, 3)[k:], signal[: len(signal) - k])[0, 1] for k in (0, 3, 8)]
    assert np.allclose(correlation.values()[[12, 15, 20]], plain)
    values, histogram = rng.lognormal(0, 1, 2000), Histogram()
    for value in values:
        histogram.add(value)
    for share in (0.1, 0.5, 0.9):
        assert abs(histogram.quantile(share) / np.quantile(values, share) - 1) < 0.06
    assert Histogram().quantile(0.5) == 0


def test_borders_are_those_of_the_generator(clip):
    assert window_borders(clip.options, 40) == {12, 16, 24, 28}
    assert window_borders(clip.options.model_copy(update={"windows": "shifted"}), 40) > {16, 32}
