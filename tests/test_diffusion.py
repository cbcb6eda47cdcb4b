"""Windows, denoising and the Make-Your-Anchor couplings."""

from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

from avatar_app.diffusion.denoise import guide, overlapped_denoise, seeded_noise, stream_denoise
from avatar_app.diffusion.windows import compat_windows, native_windows

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


@pytest.mark.parametrize("scheduler_name", SCHEDULERS)
@pytest.mark.parametrize("window_list", [native_windows, compat_windows])
@pytest.mark.parametrize("length", [1, 5, 8, 9, 13, 14, 15, 22, 31])
def test_streaming_equals_the_whole_sequence(scheduler_name, window_list, length):
    scheduler = SCHEDULERS[scheduler_name]()
    scheduler.set_timesteps(4)
    noise = seeded_noise((2, 3, 3), seed=3)
    for size, overlap in [(8, 2), (8, 0), (8, 6), (4, 3)]:
        expected = overlapped_denoise(coupled_prediction, scheduler, noise, window_list(length, size, overlap))
        parts = list(stream_denoise(coupled_prediction, scheduler, noise, window_list(length, size, overlap)))
        assert [f.start for f, _ in parts] + [length] == [0] + [f.stop for f, _ in parts]
        assert torch.equal(torch.cat([latents for _, latents in parts]), expected)


def test_stream_gives_frames_early_and_holds_few_windows():
    """The first frames leave while later windows do not exist yet; the lag does not grow with the length."""
    scheduler = ddim()
    scheduler.set_timesteps(3)
    newest = 0

    def watched(windows):
        nonlocal newest
        for window in windows:
            newest = window.stop
            yield window

    lags = [
        newest - frames.start
        for frames, _ in stream_denoise(
            coupled_prediction, scheduler, seeded_noise((1, 2, 2), 0), watched(native_windows(600, 16, 4))
        )
    ]
    assert max(lags) <= 16 * (3 + 2)


def test_independent_windows_leave_at_once():
    scheduler = ddim()
    scheduler.set_timesteps(4)
    stream = stream_denoise(coupled_prediction, scheduler, seeded_noise((1, 2, 2), 0), compat_windows(10**9, 4, 0))
    assert next(stream)[0] == slice(0, 4)


def test_noise_is_seeded_and_guidance_of_one_is_the_conditional_prediction():
    assert torch.equal(seeded_noise((4, 2, 2), 7), seeded_noise((4, 2, 2), 7))
    assert not torch.equal(seeded_noise((4, 2, 2), 7), seeded_noise((4, 2, 2), 8))
    unconditional, conditional = torch.zeros(2), torch.ones(2)
    assert torch.equal(guide(unconditional, conditional, 1.0), conditional)
    assert torch.equal(guide(unconditional, conditional, 7.5), conditional * 7.5)
