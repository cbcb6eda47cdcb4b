"""How a video of any length is cut into windows of frames.

All lists are lazy and ask for the length only as far as they must: `available(n)` tells how many of the first `n`
frames exist, so a list can be walked while the frames are still being made. For a known length pass the number.
"""

from collections.abc import Callable, Iterator
from itertools import chain, count

Available = Callable[[int], int]  # n -> min(n, length of the video)
PHASES = (0, 2, 1, 3)  # quarters of a window by which `shifted_windows` move, step after step


def native_windows(length: int | Available, size: int, overlap: int) -> Iterator[range]:
    """Windows of exactly `size` frames, each sharing at least `overlap` frames with the one before.

    The last window is shifted back to [length - size, length), so no frame is ever predicted from a short window
    (unless the whole video is shorter than one) and no window is redundant.
    """
    available, stride = _as_available(length), _stride(size, overlap)
    start = stop = 0
    while available(stop + 1) > stop:
        stop = available(start + size)
        yield range(max(0, stop - size), stop)
        start += stride


def compat_windows(length: int | Available, size: int, overlap: int) -> Iterator[range]:
    """The window list of the original Make-Your-Anchor code: a start every `size - overlap` frames, cut at the end.

    It may end in a short window that lies wholly inside the one before it; kept for identical results.
    """
    available, stride = _as_available(length), _stride(size, overlap)
    start = 0
    while available(start + 1) > start:
        yield range(start, available(start + size))
        start += stride


def shifted_windows(length: int | Available, size: int, step: int) -> Iterator[range]:
    """The windows of one sampling step that share no frame; their bounds lie elsewhere at the next step.

    So every frame is predicted once a step, and neighbours that a bound parts now see each other a step later. At the
    ends two windows share what would leave one of them with less than half of `size`.
    """
    available = _as_available(length)
    whole, half = available(size + 1), size // 2
    if whole <= size:
        yield from [range(whole)] if whole else []
        return
    shift = PHASES[step % len(PHASES)] * size // len(PHASES)
    head = [(shift + size) // 2, shift + size] if 0 < shift < half else [shift or size]
    start = 0
    for bound in chain(head, count(head[-1] + size, size)):
        stop = available(bound)
        rest = available(stop + half) - stop
        if 0 < rest < half:
            end = stop + rest
            middle = (start + end + 1) // 2 if end - start > size else end
            yield from filter(len, (range(start, middle), range(middle, end)))
            return
        yield range(start, stop)
        if available(stop + 1) == stop:
            return
        start = stop


def _as_available(length: int | Available) -> Available:
    return length if callable(length) else lambda frames: min(frames, length)


def _stride(size: int, overlap: int) -> int:
    if not 0 <= overlap < size:
        raise ValueError(f"window overlap must be at least 0 and below the window size {size}, not {overlap}")
    return size - overlap
