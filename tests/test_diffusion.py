"""Windows, denoising, the frame generator and the face pass of native anchors."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from torch.nn import functional

from avatar_app.anchors import Anchor
from avatar_app.diffusion import face as face_pass
from avatar_app.diffusion.denoise import guide, overlapped_denoise, seeded_noise, singly, stream_denoise
from avatar_app.diffusion.frames import coarse_surroundings, soft_surroundings
from avatar_app.diffusion.generator import ConditionBuffer, FrameGenerator, batches
from avatar_app.diffusion.windows import compat_windows, native_windows, shifted_windows
from avatar_app.mesh.conditions import render_conditions
from talkshow_bridge.errors import InputError

# (length, size, overlap) -> the (start, stop) list that the original Make-Your-Anchor code makes
ORIGINAL_WINDOWS = {
    (1, 16, 4): [(0, 1)],
    (3, 16, 4): [(0, 3)],
    (12, 16, 4): [(0, 12)],
    (13, 16, 4): [(0, 13), (12, 13)],
    (16, 16, 4): [(0, 16), (12, 16)],
    (17, 16, 4): [(0, 16), (12, 17)],
    (24, 16, 4): [(0, 16), (12, 24)],
    (25, 16, 4): [(0, 16), (12, 25), (24, 25)],
    (28, 16, 4): [(0, 16), (12, 28), (24, 28)],
    (29, 16, 4): [(0, 16), (12, 28), (24, 29)],
    (119, 16, 4): [(s, min(s + 16, 119)) for s in range(0, 119, 12)],
    (300, 16, 4): [(s, min(s + 16, 300)) for s in range(0, 300, 12)],
    (22, 8, 2): [(0, 8), (6, 14), (12, 20), (18, 22)],
    (24, 8, 2): [(0, 8), (6, 14), (12, 20), (18, 24)],
    (10, 8, 0): [(0, 8), (8, 10)],
    (30, 8, 7): [(s, min(s + 8, 30)) for s in range(30)],
}


def bounds(windows):
    return [(w.start, w.stop) for w in windows]


@pytest.mark.parametrize(("case", "expected"), ORIGINAL_WINDOWS.items())
def test_compat_windows_are_the_original_ones(case, expected):
    assert bounds(compat_windows(*case)) == expected


def test_native_windows_have_no_redundant_tail():
    assert bounds(native_windows(16, 16, 4)) == [(0, 16)]
    assert bounds(native_windows(17, 16, 4)) == [(0, 16), (1, 17)]
    assert bounds(native_windows(28, 16, 4)) == [(0, 16), (12, 28)]
    assert bounds(native_windows(30, 16, 4)) == [(0, 16), (12, 28), (14, 30)]
    assert bounds(native_windows(5, 16, 4)) == [(0, 5)]
    assert bounds(native_windows(0, 16, 4)) == []


@pytest.mark.parametrize("size,overlap", [(16, 4), (8, 2), (8, 7), (5, 0), (1, 0)])
def test_native_windows_cover_every_frame_with_equal_windows(size, overlap):
    for length in range(1, 60):
        windows = list(native_windows(length, size, overlap))
        assert sorted({f for w in windows for f in w}) == list(range(length))
        assert all(len(w) == min(size, length) for w in windows)
        assert all(0 < b.start - a.start <= size - overlap for a, b in pairwise(windows))


def test_windows_ask_for_the_length_only_as_far_as_needed():
    asked = []

    def endless(count):
        asked.append(count)
        return count

    windows = native_windows(endless, 8, 2)
    assert bounds(next(windows) for _ in range(3)) == [(0, 8), (6, 14), (12, 20)]
    assert max(asked) <= 20


def test_overlap_must_be_smaller_than_the_window():
    with pytest.raises(ValueError, match="overlap"):
        list(native_windows(10, 4, 4))


def ddim(**options):
    return DDIMScheduler(
        prediction_type="sample",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        **options,
    )


def coupled_prediction(latents, timestep, frames):
    """A stand-in network that depends on the window, the timestep and the position of every frame."""
    place = torch.arange(frames.start, frames.stop).reshape(-1, 1, 1, 1)
    return 0.5 * latents + 0.3 * latents.mean(0) + torch.sin(place * 0.7 + float(timestep) / 300)


SCHEDULERS = {
    "ddim": ddim,
    "dpm++": lambda: DPMSolverMultistepScheduler(timestep_spacing="trailing"),
    "euler": lambda: EulerDiscreteScheduler(),
}


LISTS = {
    "native": lambda length: native_windows(length, 8, 2),
    "compat": lambda length: compat_windows(length, 8, 2),
    "compat 16/4": lambda length: compat_windows(length, 16, 4),
    "apart": lambda length: compat_windows(length, 8, 0),
    "mostly shared": lambda length: native_windows(length, 8, 6),
    "all shared": lambda length: compat_windows(length, 4, 3),
    "shifted": lambda length: lambda step: shifted_windows(length, 8, step),
}


@pytest.mark.parametrize("scheduler_name", SCHEDULERS)
@pytest.mark.parametrize("list_name", LISTS)
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_streaming_equals_the_whole_sequence(scheduler_name, list_name, batch):
    """Also with one frame, less than a window, redundant tails and every remainder of the stride."""
    scheduler, windows = SCHEDULERS[scheduler_name](), LISTS[list_name]
    scheduler.set_timesteps(4)
    noise = seeded_noise((2, 3, 3), seed=3)
    largest = 0

    def predict(latents, timesteps, frames):
        nonlocal largest
        largest = max(largest, len(latents))
        assert len(latents) == len(timesteps) == len(frames) <= batch
        return singly(coupled_prediction)(latents, timesteps, frames)

    for length in (1, 5, 8, 9, 12, 13, 14, 15, 16, 22, 31, 53):
        expected = overlapped_denoise(coupled_prediction, scheduler, noise, windows(length))
        parts = list(stream_denoise(predict, scheduler, noise, windows(length), batch))
        assert [f.start for f, _ in parts] + [length] == [0] + [f.stop for f, _ in parts]
        assert torch.equal(torch.cat([latents for _, latents in parts]), expected)
    assert largest > 1 or batch == 1


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 16])
def test_shifted_windows_predict_every_frame_once_and_move(size):
    for length in range(70):
        lists = [bounds(shifted_windows(length, size, step)) for step in range(4)]
        for windows in lists:
            assert [start for start, _ in windows] + [length] == [0] + [stop for _, stop in windows]
            assert all(stop - start <= size for start, stop in windows)
            assert length <= size or all(stop - start >= size // 2 for start, stop in windows)
        if size >= 5 and length > 3 * size:
            assert len({windows[1] for windows in lists}) == 4


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("shifted", [False, True])
def test_stream_gives_frames_early_and_holds_few_windows(batch, shifted):
    """The first frames leave while later windows do not exist yet; the lag does not grow with the length."""
    scheduler = ddim()
    scheduler.set_timesteps(3)
    newest = 0

    def available(count):
        nonlocal newest
        newest = max(newest, min(count, 600))
        return min(count, 600)

    windows = (lambda step: shifted_windows(available, 16, step)) if shifted else native_windows(available, 16, 4)
    noise = seeded_noise((1, 2, 2), 0)
    parts = stream_denoise(singly(coupled_prediction), scheduler, noise, windows, batch)
    assert max(newest - frames.start for frames, _ in parts) <= 16 * (3 + 2 + batch)


def test_independent_windows_leave_at_once():
    scheduler = ddim()
    scheduler.set_timesteps(4)
    stream = stream_denoise(
        singly(coupled_prediction), scheduler, seeded_noise((1, 2, 2), 0), compat_windows(10**9, 4, 0)
    )
    assert next(stream)[0] == slice(0, 4)


def test_noise_is_seeded_and_guidance_of_one_is_the_conditional_prediction():
    assert torch.equal(seeded_noise((4, 2, 2), 7), seeded_noise((4, 2, 2), 7))
    assert not torch.equal(seeded_noise((4, 2, 2), 7), seeded_noise((4, 2, 2), 8))
    unconditional, conditional = torch.zeros(2), torch.ones(2)
    assert torch.equal(guide(unconditional, conditional, 1.0), conditional)
    assert torch.equal(guide(unconditional, conditional, 7.5), conditional * 7.5)


# ----------------------------------------------------------------------------- native anchors


@pytest.fixture(scope="module")
def posed(tiny_body, tiny_motion) -> np.ndarray:
    return tiny_body.pose(tiny_motion[:13]).vertices


@pytest.fixture(scope="module")
def maps(tiny_body, tiny_camera, posed) -> np.ndarray:
    return render_conditions(tiny_body, posed, tiny_camera)


def close(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal up to a rounding: convolutions of another batch size may add in another order."""
    return a.shape == b.shape and int(np.abs(a.astype(int) - b).max()) <= 1


@pytest.mark.parametrize("preset", ["draft", "best"])
def test_native_frames_do_not_depend_on_the_chunks(tiny_anchor, maps, preset):
    generator = FrameGenerator(tiny_anchor, tiny_anchor.preset(preset), seed=5)
    whole = np.concatenate(list(generator.frames(iter([maps]))))
    single = np.concatenate(list(generator.frames(maps[i : i + 1] for i in range(len(maps)))))
    assert whole.shape == (13, 64, 64, 3) and whole.dtype == np.uint8
    assert np.array_equal(whole, single)
    assert close(whole[:1], np.concatenate(list(generator.frames(iter([maps[:1]])))))
    other = FrameGenerator(tiny_anchor, tiny_anchor.preset(preset), seed=6)
    assert not np.array_equal(whole, np.concatenate(list(other.frames(iter([maps])))))


def test_native_frames_with_cross_frame_attention(tiny_anchor, maps):
    manifest = tiny_anchor.manifest.model_copy(update={"cross_frame_attention": True})
    generator = FrameGenerator(Anchor(tiny_anchor.folder, manifest), tiny_anchor.preset("best"))
    whole = np.concatenate(list(generator.frames(iter([maps]))))
    parts = np.concatenate(list(generator.frames(iter(np.split(maps, [2, 9])))))
    assert len(whole) == 13 and np.array_equal(whole, parts)


def test_generator_reads_no_further_than_it_must(tiny_anchor, maps):
    pulled = 0

    def endless():
        nonlocal pulled
        while True:
            pulled += 1
            yield maps[pulled % 13][None]

    frames = FrameGenerator(tiny_anchor, tiny_anchor.preset("draft")).frames(endless())
    made = 0
    for _ in range(10):
        made += len(next(frames))
        assert pulled <= made + 80
    assert torch.is_inference_mode_enabled() is False


def test_no_conditions_no_frames(tiny_anchor):
    assert list(FrameGenerator(tiny_anchor, tiny_anchor.preset("draft")).frames(iter([]))) == []


def test_static_background_is_kept_away_from_the_body(tiny_anchor, maps):
    manifest = tiny_anchor.manifest.model_copy(update={"static_background": True})
    frames = np.concatenate(
        list(FrameGenerator(Anchor(tiny_anchor.folder, manifest), tiny_anchor.preset("draft")).frames(iter([maps])))
    )
    free = np.concatenate(list(FrameGenerator(tiny_anchor, tiny_anchor.preset("draft")).frames(iter([maps]))))
    share = soft_surroundings(torch.from_numpy((maps[..., 8] > 0).astype(np.uint8))).numpy()[:, 0]
    assert share.min() == 0 and share[maps[..., 8] > 0].min() > 0.99
    plate = np.broadcast_to(tiny_anchor.background, frames.shape)
    assert (share == 0).any() and np.array_equal(frames[share == 0], plate[share == 0])
    assert close(frames[share == 1], free[share == 1])


def test_surroundings_are_pooled_masks():
    mask = torch.from_numpy((np.random.default_rng(0).random((2, 250, 130)) > 0.9995).astype(np.float32))
    coarse = functional.max_pool2d(mask[:, None], 4, ceil_mode=True)
    coarse = functional.max_pool2d(coarse, 9, 1, 4)  # margin 2, fade 1
    for _ in range(2):
        coarse = functional.avg_pool2d(functional.pad(coarse, (1, 1, 1, 1), mode="replicate"), 3, 1)
    assert 0.1 < coarse.mean() < 0.9
    torch.testing.assert_close(coarse_surroundings(mask), coarse[:, 0])


def test_options_that_make_no_sense_are_refused(tiny_anchor):
    with pytest.raises(InputError, match="guidance"):
        FrameGenerator(tiny_anchor, tiny_anchor.preset("draft", {"guidance": 7.5}))
    with pytest.raises(InputError, match="overlap"):
        tiny_anchor.preset("draft", {"window": 2})
    with pytest.raises(InputError, match="steps"):
        tiny_anchor.preset("draft", {"steps": 0})
    with pytest.raises(InputError, match="draft"):
        tiny_anchor.preset("superb")


def test_condition_buffer_forgets():
    buffer = ConditionBuffer(
        (np.full((3, 2, 2, 1), i, np.float32) for i in range(100)), lambda chunk: ((2, 2), (torch.from_numpy(chunk),))
    )
    assert buffer.available(5) == 5
    buffer.forget(4)
    assert buffer.take(slice(4, 6), slice(1))[0].mean() == 1 and len(buffer._kept) == 1
    assert buffer.available(8) == 8 and buffer.take(slice(5, 8), slice(1))[0][:, 0, 0, 0].tolist() == [1, 2, 2]
    assert [len(batch) for batch in batches([np.zeros((n, 1)) for n in (1, 9, 0, 3)], 4)] == [4, 4, 4, 1]
    assert buffer.available(10**6) == 300


# ----------------------------------------------------------------------------- the face pass


@pytest.mark.parametrize("cuts", [[], [1, 5], list(range(1, 13))])
def test_face_pass_does_not_depend_on_the_chunks(tiny_anchor, maps, posed, cuts):
    frames = np.random.default_rng(0).integers(0, 255, (13, 64, 64, 3), dtype=np.uint8)
    options = tiny_anchor.preset("standard")
    whole = face_pass.FaceEnhancer(tiny_anchor, options).enhance(frames, posed)
    enhancer = face_pass.FaceEnhancer(tiny_anchor, options)
    parts = [enhancer.enhance(f, v) for f, v in zip(np.split(frames, cuts), np.split(posed, cuts), strict=True)]
    assert close(np.concatenate(parts), whole)
    head = face_pass.head_squares(tiny_anchor.body, posed, tiny_anchor.camera)
    changed = np.argwhere((whole != frames).any(-1))
    assert len(changed)
    for frame, y, x in changed:
        assert max(abs(x + 0.5 - head[frame, 0]), abs(y + 0.5 - head[frame, 1])) <= head[frame, 2] / 2 + 2


def test_face_pass_shows_before_and_after(tiny_anchor, posed):
    frames = np.zeros((2, 64, 64, 3), np.uint8)
    both = face_pass.FaceEnhancer(tiny_anchor, tiny_anchor.preset("standard")).enhance(frames, posed[:2], before=True)
    assert both.shape == (2, 64, 128, 3) and not both[:, :, :64].any() and both[:, :, 64:].any()


def test_face_pass_needs_face_networks(tiny_anchor):
    bodily = Anchor(tiny_anchor.folder, tiny_anchor.manifest.model_copy(update={"face": None}))
    with pytest.raises(InputError, match="face"):
        face_pass.FaceEnhancer(bodily, bodily.preset("draft"))


def test_crops_hold_the_head_and_are_steady():
    rng = np.random.default_rng(1)
    center = np.cumsum(rng.normal(0, 1, (200, 2)), axis=0) + 100
    center[100:] += 40  # a jump
    squares = np.column_stack([center, 30 + rng.normal(0, 1, 200)])
    crops = face_pass.CropTrack(1.4, 25).follow(squares)
    for side in (0, 1):
        low = squares[:, side] - squares[:, 2] / 2
        assert (crops[:, side] <= low + 1).all()
        assert (crops[:, side] + crops[:, 2] >= low + squares[:, 2] - 1).all()
    assert np.abs(np.diff(crops[:, 2])).max() <= 3 < np.abs(np.diff(squares[:, 2])).max()
    track = face_pass.CropTrack(1.4, 25)
    assert np.array_equal(np.concatenate([track.follow(part) for part in np.split(squares, [1, 7, 150])]), crops)


def test_blend_of_the_crop_itself_changes_nothing():
    """Crop, resample and paste agree about where pixels lie: a smooth picture comes back."""
    y, x = np.mgrid[0:64, 0:64].astype(np.float32)
    frame = np.stack([2 * x + 20, 2 * y + 30, x + y], axis=-1).round().astype(np.uint8)
    left, top, size = 20, -5, 24
    fine_y, fine_x = (np.mgrid[0:64, 0:64] + 0.5) * size / 64 - 0.5
    fine_x, fine_y = fine_x + left, fine_y + top
    face = np.stack([2 * fine_x + 20, 2 * fine_y + 30, fine_x + fine_y], axis=-1).clip(0, 255).round().astype(np.uint8)
    pasted = frame.copy()
    mask = face_pass.feathered(np.ones((64, 64), bool))
    face_pass.blend(pasted, face, mask, left, top, size)
    assert np.abs(pasted.astype(int) - frame).max() <= 1
    face_pass.blend(pasted, face, mask, 500, 500, size)  # outside: nothing to do


def test_mask_fades_inside_the_head_and_at_the_border():
    shape = np.zeros((64, 64), bool)
    shape[20:, 20:44] = True
    mask = face_pass.feathered(shape)
    assert mask.shape == (64, 64) and mask[42, 32] == 1
    assert not mask[~torch.from_numpy(shape)].any() and mask[-1].max() < 0.2
