"""Batch-overlapped temporal denoising (Make-Your-Anchor, Algorithm 1), whole and streaming.

At every sampling step each window of frames is predicted on its own, the predictions of a frame that lies in several
windows are averaged, and one scheduler step takes all frames to the next noise level. `overlapped_denoise` is that
sentence as code and the reference; `stream_denoise` gives the same numbers early and with bounded memory.
"""

import copy
from collections import deque
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

# (latents of a window (n, z, h, w), timestep, the frames of the window) -> model output (n, z, h, w)
Predict = Callable[[Tensor, Tensor, slice], Tensor]


def seeded_noise(shape: tuple[int, int, int], seed: int) -> Tensor:
    """One noise frame (1, z, h, w), float32, the same on every device."""
    return torch.randn((1, *shape), generator=torch.Generator("cpu").manual_seed(seed))


def guide(unconditional: Tensor, conditional: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance: 1 is the conditional prediction itself, more exaggerates the condition."""
    return unconditional + guidance * (conditional - unconditional)


def overlapped_denoise(predict: Predict, scheduler, noise: Tensor, windows: Iterable[range]) -> Tensor:
    """Denoise a whole video at once: the plain reference, whose memory grows with the length.

    noise (1, z, h, w) is repeated over the frames; `scheduler` is any diffusers scheduler after `set_timesteps`;
    `windows` must cover every frame in order. Returns the clean latents (frames, z, h, w).
    """
    windows, scheduler = list(windows), copy.deepcopy(scheduler)
    latents = noise.repeat(windows[-1].stop, 1, 1, 1) * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        model_input = scheduler.scale_model_input(latents, timestep)
        total = torch.zeros_like(latents)
        count = torch.zeros_like(latents[:, :1, :1, :1])
        for window in windows:
            frames = slice(window.start, window.stop)
            total[frames] += predict(model_input[frames], timestep, frames)
            count[frames] += 1
        latents = scheduler.step(total / count, timestep, latents).prev_sample
    return latents


def stream_denoise(
    predict: Predict, scheduler, noise: Tensor, windows: Iterable[range]
) -> Iterator[tuple[slice, Tensor]]:
    """Denoise a video of any length: yields (frames, clean latents (n, z, h, w)) in order, as early as possible.

    A wave-front over (window, step): a window may take its next step as soon as the later windows that share frames
    with it have taken the same number of steps. So about `steps` windows are in flight, whatever the length, and the
    first frames leave while the last do not exist yet. Equal to `overlapped_denoise`, bit for bit if `predict` is
    deterministic. `windows` may be lazy; their starts must increase.
    """
    in_flight: deque[_Segment] = deque()
    for segment in _segments(scheduler, noise, windows):
        in_flight.append(segment)
        progress = True
        while progress:
            progress = False
            for index in reversed(range(len(in_flight))):  # the newest first: it unblocks its elders
                touched = _touched(in_flight, index)
                if touched:
                    _predict_window(predict, touched)
                    progress = True
            while in_flight and in_flight[0].finished:
                done = in_flight.popleft()
                yield slice(done.frames.start, done.frames.stop), done.latents
    assert not in_flight, "windows must increase and leave no gap"


class _Segment:
    """The frames from one window's start to the next window's start.

    The window itself reaches further, but these frames lie in no later window: when the window has been predicted
    they are complete and take the scheduler step together. Each segment has its own copy of the scheduler, so that
    schedulers that remember earlier steps work too.
    """

    def __init__(self, window: range, stop: int, scheduler, noise: Tensor):
        self.window = window
        self.frames = range(window.start, stop)
        self.scheduler = copy.deepcopy(scheduler)
        self.steps = 0
        self.latents = noise.repeat(len(self.frames), 1, 1, 1) * scheduler.init_noise_sigma
        self._clear()

    def _clear(self) -> None:
        self.total = torch.zeros_like(self.latents)
        self.count = torch.zeros_like(self.latents[:, :1, :1, :1])

    @property
    def timestep(self) -> Tensor:
        return self.scheduler.timesteps[self.steps]

    @property
    def finished(self) -> bool:
        return self.steps == len(self.scheduler.timesteps)

    def model_input(self, window: range) -> Tensor:
        """The part of this segment that lies in `window`."""
        return self.scheduler.scale_model_input(self.latents, self.timestep)[: window.stop - self.frames.start]

    def add(self, window: range, prediction: Tensor) -> None:
        offset = self.frames.start - window.start
        part = prediction[offset : offset + len(self.frames)]
        self.total[: len(part)] += part
        self.count[: len(part)] += 1

    def step(self) -> None:
        output = self.total / self.count
        self.latents = self.scheduler.step(output, self.timestep, self.latents).prev_sample
        self.steps += 1
        self._clear()


def _segments(scheduler, noise: Tensor, windows: Iterable[range]) -> Iterator[_Segment]:
    previous: range | None = None
    for window in windows:
        if previous is not None:
            yield _Segment(previous, window.start, scheduler, noise)
        previous = window
    if previous is not None:
        yield _Segment(previous, previous.stop, scheduler, noise)


def _touched(in_flight: deque[_Segment], index: int) -> list[_Segment] | None:
    """The segments that window `index` covers, when it may be predicted now; None when it has to wait."""
    first = in_flight[index]
    if first.finished or (index > 0 and in_flight[index - 1].steps <= first.steps):
        return None
    touched = [s for s in list(in_flight)[index:] if s.frames.start < first.window.stop]
    complete = touched[-1].frames.stop >= first.window.stop
    return touched if complete and all(s.steps == first.steps for s in touched) else None


def _predict_window(predict: Predict, touched: list[_Segment]) -> None:
    first, window = touched[0], touched[0].window
    latents = torch.cat([segment.model_input(window) for segment in touched])
    prediction = predict(latents, first.timestep, slice(window.start, window.stop))
    for segment in touched:
        segment.add(window, prediction)
    first.step()
