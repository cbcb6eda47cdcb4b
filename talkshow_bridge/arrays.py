"""Numpy files of strangers: every size is checked before memory is taken, and nothing is ever unpickled."""

from __future__ import annotations

import math
import os
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from talkshow_bridge.errors import InputError, shown

MAX_FRAMES = 1_000_000  # longest axis of any array: nine hours at 30 frames a second
ROOM = 256 << 20  # bytes an archive may always unfold to ...
MAX_RATIO = 100  # ... beyond that, at most so many times its own size

_DAMAGE = (
    OSError, ValueError, KeyError, EOFError, RuntimeError, NotImplementedError, MemoryError, zlib.error,
    zipfile.BadZipFile, zipfile.LargeZipFile,
)  # fmt: skip


class _Header(NamedTuple):
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype

    @property
    def size(self) -> int:
        """Bytes of numbers behind the header."""
        return math.prod(self.shape) * self.dtype.itemsize


def is_npz(path: str | os.PathLike[str]) -> bool:
    """Whether the file begins like a zip archive; False for one that cannot be read."""
    return _first_bytes(path, 4) == b"PK\x03\x04"


def is_npy(path: str | os.PathLike[str]) -> bool:
    """Whether the file begins like a numpy array; False for one that cannot be read."""
    return _first_bytes(path, 6) == b"\x93NUMPY"


def _first_bytes(path: str | os.PathLike[str], count: int) -> bytes:
    if not os.path.isfile(path):  # never open a pipe
        return b""
    try:
        with open(path, "rb") as stream:
            return stream.read(count)
    except OSError:
        return b""


def read_npz(path: str | os.PathLike[str], wanted: Collection[str]) -> dict[str, np.ndarray]:
    """The wanted arrays that a .npz holds; the others are not even looked at. Raises InputError in one sentence."""
    name = shown(Path(path))
    _check_file(path)
    try:
        room = max(ROOM, MAX_RATIO * os.path.getsize(path))
        with zipfile.ZipFile(path) as archive:
            members = {member: f"{member}.npy" for member in wanted if f"{member}.npy" in archive.NameToInfo}
            for member, entry in members.items():
                with archive.open(entry) as stream:
                    room -= _header(stream, f"'{member}' in '{name}'").size
            if room < 0:
                raise InputError(f"'{name}' would unfold to more memory than a motion of its size needs.")
            return {member: _read_member(archive, entry, member) for member, entry in members.items()}
    except InputError:
        raise
    except _DAMAGE:
        raise InputError(f"'{name}' is cut off, damaged or not a .npz file.") from None


def read_npy(path: str | os.PathLike[str]) -> np.ndarray:
    """The array of a .npy file. Raises InputError in one sentence."""
    name = shown(Path(path))
    _check_file(path)
    try:
        with open(path, "rb") as stream:
            size = _header(stream, f"'{name}'").size
            if os.path.getsize(path) - stream.tell() != size:
                raise InputError(f"'{name}' is cut off or damaged: its header announces {size} bytes of numbers.")
            stream.seek(0)
            return _read(stream, name)
    except InputError:
        raise
    except _DAMAGE:
        raise InputError(f"'{name}' is cut off, damaged or not a .npy file.") from None


def _read_member(archive: zipfile.ZipFile, entry: str, member: str) -> np.ndarray:
    with archive.open(entry) as stream:
        return _read(stream, member)


def _read(stream: BinaryIO, name: str) -> np.ndarray:
    header = _header(stream, name)
    content = stream.read(header.size)
    if len(content) != header.size or stream.read(1):  # the second read also makes zipfile compare its checksum
        raise EOFError
    return np.frombuffer(content, header.dtype).reshape(header.shape, order="F" if header.fortran else "C")


def _header(stream: BinaryIO, name: str) -> _Header:
    """Read and judge an array's header."""
    if np.lib.format.read_magic(stream) != (1, 0):  # later versions are for headers beyond 64 kB
        raise ValueError
    header = _Header(*np.lib.format.read_array_header_1_0(stream))
    if header.dtype.hasobject:
        raise InputError(f"{name} holds Python objects, which are never loaded.")
    if header.dtype.kind not in "fiubUS":
        raise InputError(f"{name} holds {header.dtype}, not numbers.")
    if any(side < 0 for side in header.shape):
        raise ValueError
    if max(header.shape, default=0) > MAX_FRAMES:
        raise InputError(f"{name} announces {max(header.shape)} rows; at most {MAX_FRAMES} are read.")
    return header


def _check_file(path: str | os.PathLike[str]) -> None:
    """Raise InputError unless there is a file with something in it; pipes and devices are not opened."""
    file = Path(path)
    if not os.path.exists(file):
        raise InputError(f"There is no file '{shown(file)}'.")
    if not os.path.isfile(file):
        raise InputError(f"'{shown(file)}' is not a file.")
    if not os.path.getsize(file):
        raise InputError(f"'{shown(file)}' is empty (0 bytes).")
