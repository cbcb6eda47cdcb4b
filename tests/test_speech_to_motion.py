"""Speech to motion: the mouth follows the sounds, gestures land on strong syllables, everything is repeatable."""

from pathlib import Path

import numpy as np
import pytest
from scipy.signal import find_peaks

from talkshow_bridge import rotations
from talkshow_bridge.audio import SAMPLE_RATE, Speech, load_speech
from talkshow_bridge.errors import InputError
from talkshow_bridge.evaluation.gestures import (
    SPINE3,
    WRISTS,
    GestureMetrics,
    arm_clearance,
    measure,
    pairwise_distance,
    torso_clearance,
)
from talkshow_bridge.features import channel_mean, log_mel, normalise
from talkshow_bridge.generator import BUNDLED, MotionGenerator
from talkshow_bridge.gesture_features import FEATURES, gesture_features
from talkshow_bridge.limits import FLEXION, bend_fingers, confine
from talkshow_bridge.limits import WRISTS as ALLOWED
from talkshow_bridge.lip_net import CONTROL_RATE, CONTROLS, LipNet
from talkshow_bridge.lips import JAW_WIDEST, mouth
from talkshow_bridge.motion import ARKIT_52, Motion
from talkshow_bridge.planner import STYLES, plan_gestures
from talkshow_bridge.prosody import analyse
from talkshow_bridge.rig import RELAXED_HANDS
from talkshow_bridge.skeleton import JOINTS, LEFT, REST_JOINTS, RIGHT, forward, joint_positions, reach
from talkshow_bridge.training.gestures import synthesize

SAMPLES = Path(__file__).resolve().parent.parent / "samples"
NAMES = ("english", "spanish", "french")
PELVIS, CHIN = REST_JOINTS[0, 1], 0.20  # m


@pytest.fixture(scope="module")
def speeches():
    return {name: load_speech(SAMPLES / f"{name}.opus") for name in NAMES}


@pytest.fixture(scope="module")
def generator():
    return MotionGenerator.from_pretrained()


def control_track(**values) -> np.ndarray:
    """One second of constant controls of a speaking mouth."""
    controls = np.zeros((CONTROL_RATE, len(CONTROLS)), np.float32)
    for name, value in {"speech": 1.0, "width": 0.5, **values}.items():
        controls[:, CONTROLS.index(name)] = value
    return controls


def units(expression: np.ndarray, name: str) -> np.ndarray:
    return expression[:, ARKIT_52.index(name)]


# ---- one clock


@pytest.mark.parametrize("fps", [24, 25, 29.97, 30, 60])
def test_frames_cover_the_recording(generator, speeches, fps):
    speech = speeches["spanish"]
    motion = generator.generate(speech, fps=fps)
    assert len(motion) == int(np.ceil(speech.duration * fps - 1e-6)) and motion.fps == fps
    assert motion.expression_space == generator.expression_space == "arkit52"
    assert motion.meta["audio_sha256"] == speech.sha256


def test_other_frame_rates_show_the_same_movement(generator, speeches):
    slow, fast = (generator.generate(speeches["french"], seed=4, fps=fps) for fps in (25, 50))
    same = slice(0, 2 * len(slow) - 1, 2)
    assert np.allclose(joint_positions(slow.body), joint_positions(fast.body[same])[: len(slow)], atol=1e-4)


# ---- lips


@pytest.mark.parametrize("name", NAMES)
def test_mouth_opens_in_vowels_and_closes_in_silence(generator, speeches, name):
    speech = speeches[name]
    quiet = np.zeros(SAMPLE_RATE, np.float32)
    motion = generator.generate(Speech.from_samples(np.concatenate([quiet, speech.samples, quiet])))
    jaw, fps = motion.jaw[:, 0], motion.fps
    assert jaw[: int(0.7 * fps)].max() < 0.01 and jaw[-int(0.7 * fps) :].max() < 0.01
    prosody = analyse(speech.samples)
    loud = prosody.nuclei[prosody.strength > np.percentile(prosody.strength, 40)] + 1.0
    at_vowels = jaw[np.round(loud * fps).astype(int)]
    assert np.mean(at_vowels > 0.03) > 0.75 and np.mean(at_vowels) > 1.2 * jaw.mean()
    assert jaw.min() >= 0 and 0.08 < jaw.max() <= JAW_WIDEST
    assert motion.expression.min() >= 0 and motion.expression.max() <= 1
    assert not motion.unit("jawOpen").any()


@pytest.mark.parametrize("name", NAMES)
def test_lips_close_as_often_as_people_do(generator, speeches, name):
    motion = generator.generate(speeches[name])
    closed = motion.unit("mouthPressLeft") > 0.4
    closures = np.flatnonzero(np.diff(closed.astype(int)) == 1)
    assert 0.4 < len(closures) / speeches[name].duration < 4  # p, b and m come one or two a second
    assert motion.jaw[closed, 0].max() < 0.05


def test_bilabial_closes_whatever_the_jaw_wants():
    jaw, expression = mouth(control_track(closure=0.95, jaw=0.5, aperture=0.3), 30, 30)
    assert jaw[:, 0].max() < 0.01
    assert units(expression, "mouthPressLeft").min() > 0.4 and units(expression, "mouthRollLower").min() > 0.2
    assert units(expression, "mouthLowerDownLeft").max() < 0.02


@pytest.mark.parametrize("fps", [24, 25, 30])
def test_a_short_closure_never_falls_between_frames(fps):
    for start in range(10, 30):
        controls = control_track(jaw=0.5, aperture=0.6)
        controls[start : start + 2, CONTROLS.index("closure")] = 1.0  # 40 ms
        jaw, expression = mouth(controls, fps, fps)
        assert units(expression, "mouthPressRight").max() > 0.45 and jaw[:, 0].min() < 0.01


def test_numbers_of_numpy_and_damaged_weights(generator, tmp_path):
    speech = Speech.from_samples(np.zeros(8000, np.float32))
    generator.generate(speech, np.int64(3), energy=np.float32(1), fps=np.float32(25)).save(tmp_path / "m.npz")
    for seed in (-1, 2**63, 0.5):
        with pytest.raises(InputError, match="A seed is"):
            generator.generate(speech, seed)
    for file in BUNDLED.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes()[: 5000 if file.suffix == ".safetensors" else None])
    with pytest.raises(InputError, match="cannot be read"):
        LipNet.load(tmp_path)


def test_other_lip_shapes():
    neutral = mouth(control_track(jaw=0.4, aperture=0.4), 10, 30)[1]
    rounded = mouth(control_track(jaw=0.3, aperture=0.2, pucker=0.9, funnel=0.4), 10, 30)[1]
    teeth = mouth(control_track(jaw=0.2, aperture=0.1, labiodental=0.9), 10, 30)
    wide = mouth(control_track(jaw=0.3, aperture=0.3, spread=0.8, width=0.9), 10, 30)[1]
    assert (units(rounded, "mouthPucker") + units(rounded, "mouthFunnel")).min() > 0.8
    assert units(teeth[1], "mouthRollLower").min() > 0.6 and units(teeth[1], "mouthUpperUpLeft").min() > 0.3
    assert teeth[0][:, 0].max() < 0.03
    assert units(wide, "mouthStretchLeft").min() > 0.25 + units(neutral, "mouthStretchLeft").max()


def test_chunks_equal_the_whole(generator, speeches):
    mels = log_mel(speeches["english"].samples)
    whole = generator.lips.run(mels, chunk=10**9)
    for chunk in (37, 200):
        assert np.abs(generator.lips.run(mels, chunk) - whole).max() < 1e-5


def test_log_mel_chunks_equal_the_whole(monkeypatch, speeches):
    samples = speeches["spanish"].samples
    whole = log_mel(samples)
    monkeypatch.setattr("talkshow_bridge.features.CHUNK_FRAMES", 100)
    assert np.allclose(log_mel(samples), whole, atol=1e-4)
    assert len(whole) == -(-len(samples) // 160)


def test_level_and_channel_do_not_matter(generator, speeches):
    samples = speeches["english"].samples
    loud, quiet = (generator.lips.run(log_mel(x)) for x in (samples, 0.03 * samples))
    assert np.abs(loud - quiet).mean() < 0.02
    assert channel_mean(log_mel(np.zeros(16_000, np.float32))).max() == pytest.approx(-8.0)


def test_weights_survive_saving(tmp_path, generator, speeches):
    generator.lips.save(tmp_path)
    again = LipNet.load(tmp_path)
    mels = log_mel(speeches["french"].samples)
    assert np.array_equal(again.run(mels), generator.lips.run(mels))
    (tmp_path / "lips.safetensors").unlink()
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError):
            MotionGenerator.from_pretrained(folder)


# ---- gestures


def takes(generator, speech: Speech, seeds=(0,), fps=30.0, **options) -> list[Motion]:
    return [generator.generate(speech, seed=seed, fps=fps, **options) for seed in seeds]


def wrist_paths(motion: Motion) -> np.ndarray:
    return joint_positions(motion.body)[:, WRISTS]


def test_same_seed_same_motion_other_seed_other_motion(generator, speeches):
    first, again, other = takes(generator, speeches["english"], (3, 3, 4))
    assert np.array_equal(first.body, again.body) and np.array_equal(first.expression, again.expression)
    assert pairwise_distance([first, other]) > 0.05
    assert np.array_equal(first.jaw, other.jaw)


@pytest.fixture(scope="module")
def measured(generator, speeches):
    """Per style: figures of every sample recording in two takes."""
    return {
        style: [
            measure(motion, analyse(speech.samples))
            for speech in speeches.values()
            for motion in takes(generator, speech, (0, 1), style=style)
        ]
        for style in STYLES
    }


def mean(figures: list[GestureMetrics], name: str) -> float:
    return float(np.nanmean([getattr(one, name) for one in figures]))


def test_strokes_end_on_strong_syllables(measured):
    everything = [one for figures in measured.values() for one in figures]
    assert mean(everything, "stroke_z") > 2.0
    assert mean(everything, "shuffled_z") < 1.0


@pytest.mark.parametrize("style", STYLES)
def test_movement_is_that_of_a_person(measured, style):
    figures = measured[style]
    assert 0.07 < mean(figures, "wrist_mean") < 0.20 and 0.22 < mean(figures, "wrist_p95") < 0.62
    assert 12 < mean(figures, "jerk") < 70
    assert 0.1 < mean(figures, "still") < 0.45
    assert 0.02 < mean(figures, "head_speed") < 0.06
    for one in figures:
        assert one.limits == one.torso == one.hands == 0
        assert one.largest_step < 0.06 and one.repeated < 1


def test_lively_moves_more_than_calm(measured):
    for name in ("wrist_mean", "head_speed"):
        assert mean(measured["lively"], name) > 1.15 * mean(measured["calm"], name)


@pytest.mark.parametrize("energy", [1.0, 2.0])
def test_hands_stay_in_the_picture(generator, speeches, energy):
    for style in STYLES:
        (motion,) = takes(generator, speeches["spanish"], (5,), 25, style=style, energy=energy)
        wrists = wrist_paths(motion)
        assert np.linalg.norm(np.diff(wrists, axis=0), axis=-1).max() < 0.06
        assert np.abs(wrists[..., 0]).max() <= 0.38
        assert wrists[..., 1].min() > PELVIS + 0.12 and wrists[..., 1].max() < CHIN - 0.05
        assert not motion.body[:, [0, 1, 3, 4, 6, 7, 9, 10]].any()  # hips, knees, ankles, feet


def test_energy_scales_movement_and_zero_rests(generator, speeches):
    travelled = [
        np.linalg.norm(np.diff(wrist_paths(*takes(generator, speeches["english"], (1,), energy=energy)), axis=0)).sum()
        for energy in (0.0, 0.5, 2.0)
    ]
    assert 2 * travelled[0] < travelled[2] and travelled[0] < travelled[1] < travelled[2]


def test_silence_makes_a_living_listener(generator):
    motion = generator.generate(Speech.from_samples(np.zeros(15 * SAMPLE_RATE, np.float32)), seed=2)
    assert not motion.jaw.any() and motion.unit("mouthPressLeft").max() == 0
    assert 0.003 < np.ptp(wrist_paths(motion), axis=0).max() < 0.12
    assert len(find_peaks(motion.unit("eyeBlinkLeft"), height=0.7)[0]) >= 2
    head = motion.body[:, JOINTS.index("head") - 1]
    assert np.ptp(head[:, 0]) > 0.02


def test_long_speech_is_computed_in_windows_without_joins(generator, speeches, monkeypatch):
    speech = Speech.from_samples(np.concatenate([s.samples for s in speeches.values()]))
    whole = generator.generate(speech, seed=6)
    run = generator.gestures.model.run
    monkeypatch.setattr(generator.gestures.model, "run", lambda *a, **k: run(*a, **k, window=29))
    monkeypatch.setattr("talkshow_bridge.limits.FRAMES", 100)
    pieces = generator.generate(speech, seed=6)
    assert np.abs(whole.body - pieces.body).max() < 1e-4 and np.abs(whole.left_hand - pieces.left_hand).max() < 1e-4


def test_stroke_plan_shows_strokes_and_activity(speeches):
    prosody = analyse(speeches["english"].samples)
    plan = plan_gestures(prosody, STYLES["neutral"], 1.0, np.random.default_rng(1))
    curves = plan.curves(speeches["english"].frame_count(30), 30)
    assert curves.min() >= 0 and curves[:, :2].max() <= 1.5 and curves[:, 2:].max() <= 1
    for stroke in plan.strokes:
        column = 0 if stroke.side == LEFT else 1
        apex = round(stroke.end * 30)
        assert curves[apex - 1 : apex + 2, column].max() > 0.8 * stroke.size / 0.10
        assert curves[apex, 2 + column] > 0.9
    assert not plan_gestures(prosody, STYLES["lively"], 0.0, np.random.default_rng(1)).curves(100).any()


def test_features_pool_the_log_mels(speeches):
    mels = log_mel(speeches["french"].samples)
    plan = np.zeros((speeches["french"].frame_count(30) + 30, 4), np.float32)
    features = gesture_features(mels, plan)
    assert features.shape == (len(plan), FEATURES) and (features[-20:, :-4] == -2).all()
    expected = normalise(mels, channel_mean(mels)).reshape(len(mels), -1, 2).mean(axis=2)[32:35].mean(axis=0)
    assert np.allclose(features[10, :-4], expected, atol=1e-5)


def test_limits_bring_stray_arms_back_and_leave_others_alone(speeches):
    gestures = synthesize(analyse(speeches["french"].samples), 200, seed=1)
    kept = gestures.body.copy()
    kept[:, :11] = 0
    assert np.abs(joint_positions(confine(kept)) - joint_positions(kept)).max() < 0.02
    joints, world = forward(confine(kept, np.full((200, 2, 3), -0.12)))
    outward = (joints[:, WRISTS] - joints[:, [SPINE3]]) * [[[1, 1, 1], [-1, 1, 1]]]
    assert (outward > ALLOWED[0] - 1e-6).all() and (outward < ALLOWED[1] + [0.05, 0.1, 1e-6]).all()
    assert torso_clearance(joints, world).min() > 1 and arm_clearance(joints, world).min() > 0
    fist = bend_fingers(LEFT, np.full((5, 15, 3), -3.0))
    assert (-(fist + RELAXED_HANDS[0])[:, :12, 2] <= FLEXION[1] + 1e-6).all()


@pytest.mark.parametrize("style", STYLES)
def test_the_teacher_keeps_to_the_same_rules(speeches, style):
    prosody = analyse(speeches["spanish"].samples)
    for seed, energy in ((0, 1.0), (1, 2.0)):
        moved = synthesize(prosody, speeches["spanish"].frame_count(25), 25, seed, style, energy)
        joints, world = forward(moved.body)
        assert np.linalg.norm(np.diff(joints[:, WRISTS], axis=0), axis=-1).max() < 0.06
        assert torso_clearance(joints, world).min() > 1 and arm_clearance(joints, world).min() > 0


def test_arm_reaches_what_it_is_asked_for():
    rng = np.random.default_rng(0)
    for side, wrist_row in ((LEFT, WRISTS[0]), (RIGHT, WRISTS[1])):
        wanted = rng.uniform([0.12, -0.2, 0.2], [0.3, 0.05, 0.33], (50, 3)) * [side, 1, 1]
        collar = rng.normal(0, 0.05, (50, 3))
        arm = reach(side, wanted, np.tile([side * 0.3, -1, -0.4], (50, 1)), np.tile([-side, 0, 0], (50, 1)), collar)
        body = np.zeros((50, 21, 3))
        name = "left" if side == LEFT else "right"
        for row, joint in enumerate(("shoulder", "elbow", "wrist")):
            body[:, JOINTS.index(f"{name}_{joint}") - 1] = arm[:, row]
        body[:, JOINTS.index(f"{name}_collar") - 1] = collar
        assert np.abs(joint_positions(body)[:, wrist_row] - wanted).max() < 1e-6
        assert np.linalg.norm(rotations.matrix(body), axis=(-2, -1)) == pytest.approx(np.sqrt(3))


# ---- odd requests


def test_very_short_and_noisy_speech(generator):
    noise = np.random.default_rng(0).normal(0, 0.1, 1700).astype(np.float32)
    assert len(generator.generate(Speech.from_samples(noise))) == 4
    hiss = np.random.default_rng(1).normal(0, 0.01, 4 * SAMPLE_RATE).astype(np.float32)
    assert generator.generate(Speech.from_samples(hiss)).jaw[:, 0].mean() < 0.02


@pytest.mark.parametrize(
    "wrong",
    [
        {"style": "angry"},
        {"energy": -1},
        {"energy": 3},
        {"energy": float("nan")},
        {"seed": -1},
        {"seed": 1.5},
        {"fps": 0},
        {"temperature": 0},
        {"top_p": 2.0},
    ],
)
def test_settings_are_checked(generator, speeches, wrong):
    with pytest.raises(InputError):
        generator.generate(speeches["english"], **wrong)
