"""Batch-overlapped temporal denoising (Make-Your-Anchor, Algorithm 1), whole and streaming.

At every sampling step each window of frames is predicted on its own, the predictions of a frame that lies in several
windows are averaged, and one scheduler step takes all frames to the next noise level. `overlapped_denoise` is that
sentence as code and the reference; `stream_denoise` gives the same numbers early and with bounded memory.
"""

import copy
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import tee
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor

# The windows of frames, in order: one list for all steps, or step number -> list. Lists may be lazy; their starts must
# increase and they must leave no gap.
Windows = Iterable[range] | Callable[[int], Iterable[range]]
# (latents of a window (n, z, h, w), timestep (), the frames of the window) -> model output (n, z, h, w)
Predict = Callable[[Tensor, Tensor, slice], Tensor]
# the same for k windows of n frames: (latents (k, n, z, h, w), timesteps (k,), k slices) -> (k, n, z, h, w)
PredictBatch = Callable[[Tensor, Tensor, list[slice]], Tensor]
NATIVE_SCHEDULER = {
    "num_train_timesteps": 1000,
    "prediction_type": "sample",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "clip_sample": False,
}


def seeded_noise(shape: tuple[int, int, int], seed: int) -> Tensor:
    """One noise frame (1, z, h, w), float32, the same on every device."""
    return torch.randn((1, *shape), generator=torch.Generator("cpu").manual_seed(seed))


class OneStep:
    """What DDIM comes to where a network predicts clean latents from pure noise in a single step."""

    init_noise_sigma = 1.0
    timesteps = torch.tensor([999])

    def set_timesteps(self, steps: int) -> None:
        if steps != 1:
            raise ValueError(f"one step, not {steps}")

    def scale_model_input(self, sample: Tensor, timestep: Tensor) -> Tensor:
        return sample

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor) -> SimpleNamespace:
        return SimpleNamespace(prev_sample=model_output)


def guide(unconditional: Tensor, conditional: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance: 1 is the conditional prediction itself, more exaggerates the condition."""
    return unconditional + guidance * (conditional - unconditional)


def singly(predict: Predict) -> PredictBatch:
    """Predict the windows of a batch one after the other."""
    return lambda latents, timesteps, frames: torch.stack(
        [predict(*window) for window in zip(latents, timesteps, frames, strict=True)]
    )


def overlapped_denoise(predict: Predict, scheduler, noise: Tensor, windows: Windows) -> Tensor:
    """Denoise a whole video at once: the plain reference, whose memory grows with the length.

    noise (1, z, h, w) is repeated over the frames; `scheduler` is any diffusers scheduler after `set_timesteps`.
    Returns the clean latents (frames, z, h, w).
    """
    scheduler = copy.deepcopy(scheduler)
    lists = [list(windows) for windows in _each_step(windows, len(scheduler.timesteps))]
    latents = noise.repeat(lists[0][-1].stop, 1, 1, 1) * scheduler.init_noise_sigma
    for timestep, windows_now in zip(scheduler.timesteps, lists, strict=True):
        model_input = scheduler.scale_model_input(latents, timestep)
        total = torch.zeros_like(latents)
        count = torch.zeros_like(latents[:, :1, :1, :1])
        for window in windows_now:
            frames = slice(window.start, window.stop)
            total[frames] += predict(model_input[frames], timestep, frames)
            count[frames] += 1
        latents = scheduler.step(total / count, timestep, latents).prev_sample
    return latents


def stream_denoise(
    predict: PredictBatch, scheduler, noise: Tensor, windows: Windows, batch: int = 1
) -> Iterator[tuple[slice, Tensor]]:
    """Denoise a video of any length: yields (frames, clean latents (n, z, h, w)) in order, as early as possible.

    A wave-front over (window, step): a window may take its next step as soon as its neighbours have taken as many. So
    about `steps + batch` windows are in flight, whatever the length, and the first frames leave while the last do not
    exist yet. Up to `batch` ready windows of equal length, each with its own timestep, are predicted in one call.
    Equal to `overlapped_denoise`, bit for bit if `predict` does not depend on the batch.
    """
    steps = len(scheduler.timesteps)
    first, *lists = _each_step(windows, steps, also_first=True)
    waiting = [_Waiting(windows) for windows in lists]
    fresh = _segments(scheduler, noise, first)
    in_flight: deque[_Segment] = deque()
    while True:
        ready = _ready(waiting, in_flight, batch)
        while len(ready) < batch and (segment := next(fresh, None)):
            in_flight.append(segment)
            ready = _ready(waiting, in_flight, batch)
        if not ready:
            break
        _run(predict, _equally_long(ready), waiting)
        while in_flight and in_flight[0].steps == steps:
            done = in_flight.popleft()
            yield slice(done.frames.start, done.frames.stop), done.latents
    assert not in_flight, "windows must increase and leave no gap"


class _Segment:
    """Neighbouring frames that take their scheduler steps together: from one window's start to the next one's.

    Each segment has its own copy of the scheduler, so that schedulers that remember earlier steps work too.
    """

    def __init__(self, frames: range, scheduler, noise: Tensor):
        self.frames = frames
        self.scheduler = copy.deepcopy(scheduler)
        self.steps = 0
        self.latents = noise.repeat(len(frames), 1, 1, 1) * scheduler.init_noise_sigma
        self._clear()

    def _clear(self) -> None:
        self.total = torch.zeros_like(self.latents)
        self.count = torch.zeros_like(self.latents[:, :1, :1, :1])

    @property
    def timestep(self) -> Tensor:
        return self.scheduler.timesteps[self.steps]

    def _shared(self, window: range) -> slice:
        """The part of this segment that lies in `window`."""
        start = max(window.start, self.frames.start) - self.frames.start
        return slice(start, min(window.stop, self.frames.stop) - self.frames.start)

    def model_input(self, window: range) -> Tensor:
        return self.scheduler.scale_model_input(self.latents, self.timestep)[self._shared(window)]

    def add(self, window: range, prediction: Tensor) -> None:
        part = self._shared(window)
        offset = self.frames.start + part.start - window.start
        self.total[part] += prediction[offset : offset + part.stop - part.start]
        self.count[part] += 1

    def step(self) -> None:
        output = self.total / self.count
        self.latents = self.scheduler.step(output, self.timestep, self.latents).prev_sample
        self.steps += 1
        self._clear()


class _Waiting:
    """The windows of one step that have not been predicted yet, in order, read only as far as asked."""

    def __init__(self, windows: Iterable[range]):
        self._rest = iter(windows)
        self._read: deque[range] = deque()

    def peek(self, index: int) -> range | None:
        while len(self._read) <= index:
            window = next(self._rest, None)
            if window is None:
                return None
            self._read.append(window)
        return self._read[index]

    def pop(self) -> range:
        return self._read.popleft()


class _Job(NamedTuple):
    """A window that can be predicted now and the segments that it touches."""

    step: int
    window: range
    touched: list[_Segment]


def _each_step(windows: Windows, steps: int, also_first: bool = False) -> list[Iterable[range]]:
    """One iterable for every step; `also_first` puts another one of the first step before them."""
    if callable(windows):
        return [windows(step) for step in ([0] if also_first else []) + list(range(steps))]
    return list(tee(windows, steps + also_first))


def _segments(scheduler, noise: Tensor, windows: Iterable[range]) -> Iterator[_Segment]:
    previous: range | None = None
    for window in windows:
        if previous is not None:
            yield _Segment(range(previous.start, window.start), scheduler, noise)
        previous = window
    if previous is not None:
        yield _Segment(previous, scheduler, noise)


def _ready(waiting: list[_Waiting], in_flight: deque[_Segment], batch: int) -> list[_Job]:
    """Up to `batch` windows that can be predicted now, the eldest first.

    At each step windows are taken in their order, so that the sums come out the same as in the reference.
    """
    jobs: list[_Job] = []
    if not in_flight:
        return jobs
    for step in range(in_flight[0].steps, in_flight[-1].steps - 1, -1):
        index = 0
        while len(jobs) < batch and (window := waiting[step].peek(index)):
            touched = [s for s in in_flight if s.frames.start < window.stop and window.start < s.frames.stop]
            complete = bool(touched) and touched[-1].frames.stop >= window.stop
            if not complete or any(s.steps != step for s in touched):
                break
            jobs.append(_Job(step, window, touched))
            index += 1
    return jobs


def _equally_long(ready: list[_Job]) -> list[_Job]:
    """The first job and those as long as it, none of which overtakes another of its step."""
    jobs, held_up = [], set()
    for job in ready:
        if len(job.window) == len(ready[0].window) and job.step not in held_up:
            jobs.append(job)
        else:
            held_up.add(job.step)
    return jobs


def _run(predict: PredictBatch, jobs: list[_Job], waiting: list[_Waiting]) -> None:
    latents = torch.stack([torch.cat([s.model_input(job.window) for s in job.touched]) for job in jobs])
    timesteps = torch.stack([job.touched[0].timestep for job in jobs])
    predictions = predict(latents, timesteps, [slice(job.window.start, job.window.stop) for job in jobs])
    for job, prediction in zip(jobs, predictions, strict=True):
        waiting[job.step].pop()
        following = waiting[job.step].peek(0)
        for segment in job.touched:
            segment.add(job.window, prediction)
            if following is None or following.start >= segment.frames.stop:
                segment.step()
