"""The gesture measures: each says what it should about a motion made to show it."""

import json
import shutil
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from avatar_app.cli import main
from talkshow_bridge.audio import Speech, load_speech
from talkshow_bridge.curves import minimum_jerk
from talkshow_bridge.errors import InputError
from talkshow_bridge.evaluation import gestures as measures
from talkshow_bridge.evaluation import table
from talkshow_bridge.evaluation.gestures import FPS, GestureMetrics, frechet_distance, measure, pairwise_distance
from talkshow_bridge.evaluation.phone_alignment import align_folder
from talkshow_bridge.motion import Motion
from talkshow_bridge.prosody import Prosody
from talkshow_bridge.skeleton import LEFT, RIGHT, forward, index, joint_positions, reach
from tests.speech import write_speech

SECONDS = 20


def prosody_of(nuclei: np.ndarray, phrases=((0.0, SECONDS),)) -> Prosody:
    loud, strength = np.zeros(100 * SECONDS), np.where(np.arange(len(nuclei)) % 5 < 2, 0.0, -9.0)
    return Prosody(SECONDS, loud, np.array(phrases), nuclei, strength, np.zeros(len(nuclei)), 120.0)


def moving(left: np.ndarray, right: np.ndarray) -> Motion:
    """A motion whose wrists follow (N, 3) paths in rest coordinates."""
    motion = Motion.rest(len(left))
    for side, name, path in ((LEFT, "left", left), (RIGHT, "right", right)):
        ahead = np.tile([-side, 0.0, 0.0], (len(path), 1))
        hint = np.tile([0.28 * side, -1.0, -0.4], (len(path), 1))
        arm = reach(side, path, hint, ahead, np.zeros_like(path))
        for row, joint in enumerate(("shoulder", "elbow", "wrist")):
            motion.body[:, index(f"{name}_{joint}")] = arm[:, row]
    return motion


def at_rest(count: int = SECONDS * FPS) -> tuple[np.ndarray, np.ndarray]:
    return np.tile([0.2, -0.15, 0.25], (count, 1)), np.tile([-0.2, -0.15, 0.25], (count, 1))


def strokes_at(times: np.ndarray, size: float = 0.12) -> Motion:
    """The left hand drops by `size` in 0.25 s so as to end at each of `times`, and drifts back."""
    left, right = at_rest()
    frames = np.arange(len(left)) / FPS
    for time in times:
        left[:, 1] -= size * minimum_jerk((frames - time) / 0.25 + 1) * minimum_jerk(1 - (frames - time) / 1.2)
    return moving(left, right)


@pytest.fixture(scope="module")
def syllables() -> np.ndarray:
    return np.cumsum(np.random.default_rng(0).uniform(0.18, 0.5, 55))


def test_strokes_on_the_strong_syllables_score_high(syllables):
    prosody = prosody_of(syllables)
    strong = syllables[::5]
    on_time = measure(strokes_at(strong), prosody)
    assert on_time.stroke_z > 4 and abs(on_time.shuffled_z) < 1.5
    elsewhere = np.sort(np.random.default_rng(1).uniform(0, SECONDS - 1, len(strong)))
    assert measure(strokes_at(elsewhere), prosody).stroke_z < 2
    assert on_time.beats > measure(strokes_at(elsewhere), prosody).beats - 0.2


def test_speed_stillness_and_steps():
    count = SECONDS * FPS
    left, right = at_rest(count)
    left[: count // 2, 0] += 0.1 * np.sin(2 * np.pi * np.arange(count // 2) / FPS)
    half = prosody_of(np.array([1.0, 2.0, 3.0]), phrases=((0.0, SECONDS / 2),))
    figures = measure(moving(left, right), half)
    assert figures.wrist_mean == pytest.approx(0.4 / 4, rel=0.05)  # one hand of two, half of the time, 0.4 m/s
    assert figures.still < 0.15 and figures.still_in_pauses > 0.95
    assert figures.largest_step == pytest.approx(0.1 * 2 * np.pi / FPS, rel=0.05)
    left[100] += 0.1
    assert measure(moving(left, right)).largest_step > 0.08
    assert np.isnan(measure(moving(*at_rest())).stroke_z) and measure(moving(*at_rest())).still == 1


def test_head_and_blinks():
    motion = Motion.rest(60 * FPS)
    motion.body[:, index("neck"), 0] = 0.1 * np.sin(2 * np.pi * np.arange(60 * FPS) / FPS)
    motion.expression[:, 8] = np.arange(60 * FPS) % 100 == 50
    figures = measure(motion)
    assert figures.blinks == pytest.approx(18) and 0.02 < figures.head_speed < 0.06
    assert np.isnan(measure(Motion.rest(90, expression_space="flame100")).blinks)


def test_a_loop_is_found():
    rng = np.random.default_rng(2)
    steps = rng.normal(0, 1, (SECONDS * FPS, 3))
    wander = 0.03 * np.apply_along_axis(lambda x: np.convolve(x, np.hanning(20) / 3, "same"), 0, steps)
    left, right = at_rest()
    assert measure(moving(left + wander, right)).repeated < 1
    wander[300:345] = wander[100:145]
    assert measure(moving(left + wander, right)).repeated == pytest.approx(1.5, abs=0.15)
    wave = 0.08 * np.sin(2 * np.pi * np.arange(len(left)) / 45)[:, None]
    assert measure(moving(left + wave, right + wave)).autocorrelation > 0.9


def test_anatomy():
    figures = measure(moving(*at_rest()))
    assert figures.limits == figures.torso == figures.hands == 0
    left, right = at_rest(30)
    inside = moving(left * [0.2, 1, 0.1], right)
    assert measure(inside).torso == 1
    clasped = moving(left * [0.3, 1, 1.2], right * [0.3, 1, 1.2])
    assert measure(clasped).hands == 1
    backwards = Motion.rest(4)
    backwards.body[:, index("left_elbow"), 1] = 0.5
    assert measure_parts(backwards) and not measure_parts(Motion.rest(4))
    folded = Motion.rest(4)
    folded.right_hand[:, 0, 2] = 2.2
    assert measure_parts(folded)
    nodding = Motion.rest(4)
    nodding.body[:, index("head"), 0] = 1.0
    assert measure_parts(nodding)


def measure_parts(motion: Motion) -> bool:
    return bool(measures.out_of_range(motion, forward(motion.body)[1]).all())


def test_lower_body():
    motion = Motion.rest(30)
    motion.body[:, index("left_knee"), 0] = 0.4
    assert measures.lower_body_moves(motion) == pytest.approx(0, abs=1e-6)
    motion.body[3, index("left_knee"), 0] = 0.6
    assert measures.lower_body_moves(motion) == pytest.approx(0.2, abs=0.01)


def test_takes_differ_by_the_distance_of_the_wrists():
    left, right = at_rest(30)
    motions = [moving(left, right), moving(left + [0, 0.06, 0], right)]
    assert pairwise_distance(motions) == pytest.approx(0.03, abs=1e-3) and np.isnan(pairwise_distance(motions[:1]))


def test_frechet_distance_knows_its_own_kind():
    rng = np.random.default_rng(5)

    def clips(size: float) -> list[Motion]:
        found = []
        for _ in range(6):
            steps = rng.normal(0, 1, (10 * FPS, 6))
            path = np.apply_along_axis(lambda x: np.convolve(x, np.hanning(25) / 12, "same"), 0, steps)
            left, right = at_rest(10 * FPS)
            found.append(moving(left + size * path[:, :3], right + size * path[:, 3:]))
        return found

    reference, same, wilder = clips(0.02), clips(0.02), clips(0.06)
    assert 0 <= frechet_distance(same, reference) < 0.2 * frechet_distance(wilder, reference)
    assert np.isnan(frechet_distance(same[:1], reference))


def test_odd_motions_are_measured_too():
    for count in (1, 2, 5, 31):
        figures = measure(Motion.rest(count, 25.0))
        assert {field.name for field in fields(GestureMetrics)} >= {"jerk", "limits"}
        assert figures.limits == 0
    assert joint_positions(Motion.rest(1).body).shape == (1, 22, 3)


# ---- the table


class Dummy:
    """A generator whose motion is known."""

    styles = ("calm", "lively")

    def generate(self, speech: Speech, seed: int = 0, style: str = "calm") -> Motion:
        times = np.arange(1.0, speech.duration, 2.0) + 0.1 * seed
        return strokes_at(times, 0.15 if style == "lively" else 0.06)[: speech.frame_count(30)]


def rows_of(markdown: str) -> dict[str, list[str]]:
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines()]
    assert len({len(line) for line in lines}) == 1 and set(lines[1]) == {"---"}
    return {line[0]: line[1:] for line in [lines[0], *lines[2:]]}


def test_table_of_our_motion_talkshow_and_a_reference(tmp_path):
    speech = load_speech(write_speech(tmp_path / "clip.wav", 4.0))
    motion = Dummy().generate(speech)
    takes = [motion.to_talkshow(), Dummy().generate(speech, 1).to_talkshow()]
    np.save(tmp_path / "clip.npy", np.concatenate(takes))
    np.save(tmp_path / "silent.npy", takes[0])
    others = table.talkshow_outputs(tmp_path)
    assert [len(takes) for takes in others.takes] == [2, 1] and others.prosodies[1] is None
    reference = [strokes_at(np.arange(k + 1, 18)) for k in range(3)]
    columns = [*table.generated(Dummy(), [speech]), others, table.reference_column(reference)]
    rows = rows_of(table.gesture_table(columns, reference))
    assert rows["gestures"] == ["wanted", "ours, calm", "ours, lively", "TalkSHOW outputs", "reference"]
    assert rows["clips / seconds"][1:] == ["3 / 12", "3 / 12", "3 / 12", "3 / 60"]
    calm, lively = (float(cell) for cell in rows["wrist speed, mean m/s"][1:3])
    assert 0 < calm < lively
    assert rows["strokes on strong syllables, z"][-1] == "" and rows["times faster than real time"][-1] == ""
    assert float(rows["Frechet distance from the reference, cm^2"][-1]) == pytest.approx(0, abs=1)
    assert float(rows["wrists apart between takes, m"][3]) > 0


def test_bench_on_the_command_line(tmp_path, capsys):
    speech = write_speech(tmp_path / "clip.wav", 3.0)
    assert main(["bench", "motion", "--speech", str(speech)]) == 0
    rows = rows_of(capsys.readouterr().out.strip())
    assert rows["gestures"][:2] == ["wanted", "ours, calm"]
    for option in ("--talkshow-outputs", "--reference", "--lips"):
        assert main(["bench", "motion", "--speech", str(speech), option, str(tmp_path / "nowhere")]) == 2
        assert "nowhere" in capsys.readouterr().err


def test_phones_by_pocketsphinx(tmp_path):
    pytest.importorskip("pocketsphinx")
    text = (
        "Welcome to our Monday program about small ideas with a big future. My neighbor built a boat from five old "
        "doors, and believe me, people love it! We will show you how, step by step, before the movie begins."
    )
    shutil.copy(Path(__file__).parents[1] / "samples" / "english.opus", tmp_path)
    (tmp_path / "english.txt").write_text(text)
    entry = json.loads(align_folder(tmp_path).read_text())["english"]
    phones = [phone for _, _, phone in entry["phones"] if phone != "SIL"]
    assert phones[:7] == ["W", "EH", "L", "K", "AH", "M", "T"] and phones.count("B") == 9
    starts = [start for start, _, _ in entry["phones"]]
    assert starts == sorted(starts) and entry["phones"][-1][1] <= entry["dur"] + 0.1


def test_recordings_without_text_are_refused(tmp_path):
    write_speech(tmp_path / "clip.wav", 1.0)
    with pytest.raises(InputError, match="pocketsphinx|transcript"):
        align_folder(tmp_path)
