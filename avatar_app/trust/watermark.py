"""An invisible mark in the frames that carries 64 bits, and its blind detection.

The mark is one faint pattern, the same in every frame, added to the brightness.  It is made of eleven patterns that
repeat every tile (half the frame's short side); each uses frequencies of its own, so that they do not disturb each
other.  The first tells where the tile begins.  Each of the others says one byte by how far it is shifted, in steps of a
sixteenth tile across and down: eight bytes of payload and two that check it.  Repetition in space and time survives
cropping, scaling, other frame rates and strong compression, because the detector looks for the tile at every scale and
place and adds up all it sees.

The pattern is public.  Whoever wants to remove or forge the mark can; it tells honest viewers, not forensic
examiners.  Rotation, mirroring, stretching and large crops lose it.  docs/trust.md has measured figures.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import zlib
from dataclasses import dataclass
from functools import lru_cache

import numba
import numpy as np

from talkshow_bridge.audio import ffmpeg_path

PAYLOAD_BYTES = 8
SYMBOLS = PAYLOAD_BYTES + 2  # the last two check the others
SHORT_SIDE = 512  # pixels of the frame that the numbers below are for; other frames scale them
TILE = 256  # pixels
STEPS = 16  # shifts along each side of a tile
BAND = (8, 24)  # frequencies in use, periods per tile: waves of 32 to 11 pixels
SEED = 0x7A1E  # of the pattern; another one makes a mark that others cannot read
BLOCK = 8  # pixels along a side over which visibility is judged, of which every second one is looked at
HALF = BLOCK // 2

FLAT, BUSY = np.float32(0.68), np.float32(0.18)  # amplitude in levels on flat ground; more per level that it bends
STRONGEST = np.float32(1.85)  # amplitude anywhere, which with the dither keeps every frame above 42 dB
EDGE = np.int16(24)  # bends count up to this, so that one outline does not make a block busy
DARK, DARKEST = np.float32(72), np.float32(0.5)  # below this brightness the amplitude sinks, to this share on black
SCALES = 0.992 ** np.arange(42)  # how much of the short side a crop may have left, 1 to 0.72
THRESHOLD = 43.0  # of the score; unmarked clips reach 35 to 40
LOOKS, LOOK_SECONDS, LOOK_RATE = 3, 4, 4  # parts of a video that are searched, their length, frames per second in them
LARGEST = 768  # pixels of the short side that the detector looks at


@lru_cache(maxsize=4)
def _layout(seed: int = SEED) -> tuple[np.ndarray, np.ndarray]:
    """Which pattern owns each frequency, and its phase, both (TILE, TILE // 2 + 1); -1 where nobody does."""
    across, down = np.arange(TILE // 2 + 1), np.fft.fftfreq(TILE, 1 / TILE)[:, None]
    radius = np.hypot(across, down)
    usable = (radius >= BAND[0]) & (radius <= BAND[1]) & (across > 0)
    random = np.random.Generator(np.random.PCG64(seed))
    owner = np.full(radius.shape, -1)
    # rings of equal size are dealt out in turn, so that every pattern gets its share of low and high frequencies
    order = np.lexsort((random.random(usable.sum()), np.round(radius[usable])))
    turns = np.concatenate([random.permutation(SYMBOLS + 1) for _ in range(len(order) // (SYMBOLS + 1) + 1)])
    dealt = np.empty(len(order), int)
    dealt[order] = turns[: len(order)]
    owner[usable] = dealt
    return owner, random.uniform(0, 2 * np.pi, radius.shape)


def _pattern(payload: bytes, side: int) -> np.ndarray:
    """One tile, (side, side) float32 with standard deviation 1, that says `payload`; all 0 where it is too small."""
    owner, phase = _layout()
    across, down = np.arange(TILE // 2 + 1), np.fft.fftfreq(TILE, 1 / TILE).astype(int)
    shifts = np.array([(0, 0), *(divmod(value, STEPS) for value in payload + _check(payload))])
    turns = across * shifts[owner, 1] + down[:, None] * shifts[owner, 0]
    spectrum = np.where(owner >= 0, np.exp(1j * phase) * np.exp(-2j * np.pi * turns / STEPS), 0)
    resized = np.zeros((side, side // 2 + 1), complex)
    rows, columns = down[np.abs(down) < side // 2], min(side // 2, TILE // 2 + 1)
    resized[rows, :columns] = spectrum[rows, :columns]
    tile = np.fft.irfft2(resized, (side, side))
    return (tile / max(tile.std(), 1e-9)).astype(np.float32)


def _check(payload: bytes) -> bytes:
    return (zlib.crc32(payload) & 0xFFFF).to_bytes(2, "big")


class Watermark:
    """Marks frames with 64 bits.

    id: 8 bytes, or a text: 16 hex digits are taken as they are, others by the first 64 bits of their SHA-256.
    The same id and frame give the same result, whatever came before.
    """

    def __init__(self, id: bytes | str):
        self.payload = payload_of(id)
        self._sheets: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}

    def mark(self, frames: np.ndarray) -> np.ndarray:
        """Marked copies of (n, height, width, 3) uint8 RGB frames."""
        size = height, width = frames.shape[1:3]
        if size not in self._sheets:
            pattern = _pattern(self.payload, max(2, round(min(size) * TILE / SHORT_SIDE)))
            self._sheets[size] = _sheet(pattern, width), _sheet(_DITHER, width)
        marked = np.empty(frames.shape, np.uint8)
        _mark(np.ascontiguousarray(frames), *self._sheets[size], marked)
        return marked

    @staticmethod
    def read(video: str | os.PathLike[str]) -> bytes | None:
        """The 8 bytes that a video carries, None when it carries no mark. Raises VideoError when it is no video."""
        found = find(video)
        return found.payload if found.valid else None


def payload_of(id: bytes | str) -> bytes:
    """The 8 bytes that stand for an id."""
    if isinstance(id, str):
        return bytes.fromhex(id) if re.fullmatch(r"[0-9a-f]{16}", id) else hashlib.sha256(id.encode()).digest()[:8]
    if len(id) != PAYLOAD_BYTES:
        raise ValueError(f"a mark holds {PAYLOAD_BYTES} bytes, not {len(id)}")
    return bytes(id)


_DITHER = np.random.Generator(np.random.PCG64(1)).random((64, 64), np.float32)


def _sheet(tile: np.ndarray, width: int) -> np.ndarray:
    """A tile (rows, columns) repeated over a frame's width, every value three times: (rows, 3 * width)."""
    return np.repeat(np.tile(tile, -(-width // tile.shape[1]))[:, :width], 3, axis=1)


@numba.njit(nogil=True, cache=True)
def _every_second(frame):
    """Every second pixel, int16: green (rows + 2, columns + 2) with its next around, brightness (rows, columns)."""
    height, width = frame.shape[:2]
    rows, columns = (height + 1) // 2, (width + 1) // 2
    green, brightness = np.empty((rows + 2, columns + 2), np.int16), np.empty((rows, columns), np.int16)
    for row in range(rows + 2):
        line = frame[min(max(2 * row - 2, 0), height - 1)]
        for column in range(columns):
            green[row, column + 1] = line[2 * column, 1]
        green[row, 0], green[row, columns + 1] = line[0, 1], line[width - 1, 1]
    for row in range(rows):
        line = frame[2 * row]
        for column in range(columns):
            red, blue = np.int16(line[2 * column, 0]), np.int16(line[2 * column, 2])
            brightness[row, column] = (red + 2 * green[row + 1, column + 1] + blue) // 4
    return green, brightness


@numba.njit(nogil=True, cache=True)
def _strength(frame):
    """Amplitude of the mark in the middle of each block, (rows, columns) float32: more where the picture is busy.

    Busy is what bends: mean second difference over every second pixel, so that smooth shading counts as flat.  Of a
    block and its neighbours the calmest one counts, which keeps the mark off the surroundings of outlines.
    """
    green, brightness = _every_second(frame)
    down, across = brightness.shape
    rows, columns = (down + HALF - 1) // HALF, (across + HALF - 1) // HALF
    busy, strength = np.empty((rows, columns), np.float32), np.empty((rows, columns), np.float32)
    bends, totals = np.empty(columns * HALF, np.int16), np.empty(columns * HALF, np.int16)
    for row in range(rows):
        bends[:], totals[:] = 0, 0
        first, last = row * HALF, min((row + 1) * HALF, down)
        for y in range(first, last):
            above, here, below = green[y], green[y + 1], green[y + 2]
            for x in range(across):
                twice = np.int16(2 * here[x + 1])
                aside = np.int16(abs(np.int16(twice - here[x] - here[x + 2])))
                upright = np.int16(abs(np.int16(twice - above[x + 1] - below[x + 1])))
                bends[x] += min(aside, EDGE) + min(upright, EDGE)
                totals[x] += brightness[y, x]
        for column in range(columns):
            block = slice(column * HALF, min((column + 1) * HALF, across))
            count = (last - first) * (block.stop - block.start)
            mean = np.float32(totals[block].sum()) / np.float32(count)
            strength[row, column] = DARKEST + (1 - DARKEST) * min(mean / DARK, 1)
            busy[row, column] = np.float32(bends[block].sum()) / np.float32(2 * count)
    for row in range(rows):
        for column in range(columns):
            calmest = busy[row, column]
            for y in range(max(row - 1, 0), min(row + 2, rows)):
                for x in range(max(column - 1, 0), min(column + 2, columns)):
                    calmest = min(calmest, busy[y, x])
            strength[row, column] *= min(FLAT + BUSY * calmest, STRONGEST)
    return strength


@numba.njit(nogil=True, cache=True)
def _between(place, count):
    """The two of `count` blocks around a pixel, and how much of the second to take."""
    position = min(max((np.float32(place) + np.float32(0.5)) / BLOCK - np.float32(0.5), 0), count - 1)
    first = np.int64(position)
    return first, min(first + 1, count - 1), np.float32(position - first)


@numba.njit(nogil=True, cache=True)
def _add(frame, strength, pattern, dither, marked):
    """marked = frame + strength * pattern, rounded by a fixed dither so that amplitudes below one level survive.

    A row holds the colours of all its pixels one after the other, which lets the compiler do sixteen at a time."""
    rows, columns = strength.shape
    height, width = frame.shape
    amplitude = np.empty((rows, width), np.float32)
    for x in range(width // 3):
        left, right, share = _between(x, columns)
        for row in range(rows):
            amplitude[row, 3 * x : 3 * x + 3] = strength[row, left] + share * (
                strength[row, right] - strength[row, left]
            )
    for y in range(height):
        above, below, share = _between(y, rows)
        high, low = amplitude[above], amplitude[below]
        source, target = frame[y], marked[y]
        wave, grain = pattern[y % len(pattern)], dither[y % len(dither)]
        for k in range(width):
            here = high[k] + share * (low[k] - high[k])
            value = np.float32(source[k]) + np.floor(here * wave[k] + grain[k])
            target[k] = np.uint8(min(max(value, np.float32(0)), np.float32(255)))


@numba.njit(nogil=True, cache=True)
def _mark(frames, pattern, dither, marked):
    count, height, width = frames.shape[:3]
    for n in range(count):
        source, target = frames[n].reshape(height, 3 * width), marked[n].reshape(height, 3 * width)
        _add(source, _strength(frames[n]), pattern, dither, target)


@dataclass(frozen=True)
class Found:
    """The best reading of a video. It is a mark only when `valid`: the score is high and the check bytes are right.

    score: sum of the patterns' peaks in standard deviations.   scale: share of the short side that cropping has left.
    """

    payload: bytes
    score: float
    scale: float
    valid: bool


def find(video: str | os.PathLike[str]) -> Found:
    """Searches the start of a video and, where that says nothing, its middle and its last third.

    Raises VideoError when nothing can be decoded."""
    from avatar_app.video import VideoError

    frames, length = sample(video)
    found = search(mean_residual(frames))
    for look in range(1, LOOKS):
        if found.valid or length < LOOK_SECONDS * LOOKS:
            break
        try:
            other = search(mean_residual(sample(video, start=length * look / LOOKS)[0]))
        except VideoError:  # the sound goes on, the pictures do not
            break
        found = max(found, other, key=lambda each: (each.valid, each.score))
    return found


def sample(video: str | os.PathLike[str], start: float = 0.0) -> tuple[list[np.ndarray], float]:
    """Some frames' brightness, (height, width) uint8, from `start` seconds on, and the video's length in seconds.

    Raises VideoError when nothing can be decoded."""
    from avatar_app.video import VideoError

    fitted = f"scale='if(gt(iw,ih),-2,min(iw,{LARGEST}))':'if(gt(iw,ih),min(ih,{LARGEST}),-2)'"
    source = ["-protocol_whitelist", "file,pipe", "-ss", str(start), "-t", str(LOOK_SECONDS)]
    source += ["-i", f"file:{os.path.abspath(video)}", "-map", "0:v:0", "-vf", f"fps={LOOK_RATE}:round=up,{fitted}"]
    result = subprocess.run(
        [
            ffmpeg_path(),
            "-nostdin",
            "-hide_banner",
            *source,
            "-f",
            "image2pipe",
            "-c:v",
            "pgm",
            "-pix_fmt",
            "gray",
            "-",
        ],
        capture_output=True,
    )
    said = result.stderr.decode("utf-8", "replace")
    if not result.stdout:
        raise VideoError(f"{os.path.basename(video)!r} holds no picture that could be decoded.")
    frames, data = [], result.stdout
    while header := re.match(rb"P5\s(\d+)\s(\d+)\s255\s", data):
        width, height = int(header[1]), int(header[2])
        frames.append(np.frombuffer(data, np.uint8, width * height, header.end()).reshape(height, width))
        data = data[header.end() + width * height :]
    length = re.search(r"Duration: (\d+):(\d+):([\d.]+)", said)
    hours, minutes, seconds = map(float, length.groups()) if length else (0, 0, 0)
    return frames, 3600 * hours + 60 * minutes + seconds


def mean_residual(frames: list[np.ndarray]) -> np.ndarray:
    """What frames have in common in their fine structure, (height, width) float32."""
    return np.mean([residual(frame) for frame in frames], axis=0)


def residual(frame: np.ndarray) -> np.ndarray:
    """Fine structure of a (height, width) brightness, each place divided by its own liveliness, -2..2."""
    from scipy.ndimage import uniform_filter

    scale = min(frame.shape) / SHORT_SIDE
    small, large = (max(3, 2 * round(side * scale / 2) + 1) for side in (17, 33))
    frame = frame.astype(np.float32)
    detail = frame - uniform_filter(uniform_filter(frame, small), small)
    spread = np.sqrt(np.maximum(uniform_filter(detail * detail, large), 0)) + 0.25
    return np.clip(detail / spread, -2, 2)


def search(residue: np.ndarray, seed: int = SEED, scales: np.ndarray = SCALES) -> Found:
    """The first valid reading of a mean residual (height, width) over all scales, or else the one with the best score.

    seed: of another pattern than ours, to see what chance makes of a picture."""
    from PIL import Image

    picture, best = Image.fromarray(residue), None
    for scale in scales:
        factor = SHORT_SIDE * scale / min(residue.shape)
        size = [max(1, round(side * factor)) for side in reversed(residue.shape)]
        score, symbols = _read_tile(_fold(np.asarray(picture.resize(size, Image.Resampling.BICUBIC))), seed)
        payload, check = symbols[:PAYLOAD_BYTES], symbols[PAYLOAD_BYTES:]
        found = Found(payload, score, float(scale), score >= THRESHOLD and check == _check(payload))
        if found.valid:
            return found
        best = found if best is None or score > best.score else best
    return best


def _fold(picture: np.ndarray) -> np.ndarray:
    """All tiles of a picture added up, (TILE, TILE)."""
    height, width = picture.shape
    rows, columns = -(-height // TILE), -(-width // TILE)
    padded = np.pad(picture, ((0, rows * TILE - height), (0, columns * TILE - width)))
    return padded.reshape(rows, TILE, columns, TILE).sum((0, 2))


def _read_tile(tile: np.ndarray, seed: int) -> tuple[float, bytes]:
    """Score and the ten symbols at the best place in a tile.

    Loud frequencies are muted, because they come from the picture.  For one fixed picture and a random pattern, each
    surface is a sum of waves with random phases, so its deviation is known exactly and the peaks need no training."""
    owner, phase = _layout(seed)
    spectrum = np.fft.rfft2(tile)
    spectrum = spectrum / np.maximum(np.abs(spectrum), 1e-9) ** 0.75 * np.exp(-1j * phase)
    power, step = np.abs(spectrum) ** 2, TILE // STEPS
    surfaces = np.empty((SYMBOLS + 1, STEPS, step, STEPS, step), np.float32)
    for symbol in range(SYMBOLS + 1):
        own = owner == symbol
        surface = np.fft.irfft2(np.where(own, spectrum, 0), (TILE, TILE)) * (TILE * TILE / 2)
        surfaces[symbol] = (surface / max(np.sqrt(power[own].sum() / 2), 1e-9)).reshape(surfaces.shape[1:])
    total = surfaces.max(axis=(1, 3)).sum(0)
    y, x = np.unravel_index(np.argmax(total), total.shape)
    shifts = np.stack(np.divmod(surfaces[:, :, y, :, x].reshape(SYMBOLS + 1, -1).argmax(1), STEPS))
    down, across = (shifts[:, 1:] - shifts[:, :1]) % STEPS
    return float(total[y, x]), bytes((down * STEPS + across).astype(np.uint8))
