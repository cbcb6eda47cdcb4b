"""How a video of any length is cut into overlapping windows of frames.

Both lists are lazy and ask for the length only as far as they must: `available(n)` tells how many of the first `n`
frames exist, so a list can be walked while the frames are still being made. For a known length pass the number.
"""

from collections.abc import Callable, Iterator

Available = Callable[[int], int]  # n -> min(n, length of the video)


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


def _as_available(length: int | Available) -> Available:
    return length if callable(length) else lambda count: min(count, length)


def _stride(size: int, overlap: int) -> int:
    if not 0 <= overlap < size:
        raise ValueError(f"window overlap must be at least 0 and below the window size {size}, not {overlap}")
    return size - overlap
