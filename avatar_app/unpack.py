"""Packages of strangers: what may be in one, and how its zip is opened without trusting a word of it.

An anchor holds JSON, safetensors, pictures, video and text under plain relative names, a data set motions as well.
Names, kinds, counts, sizes and ratios are judged from the zip's directory before a byte is written; unpacking takes
what the directory promised and not a byte more.
"""

from __future__ import annotations

import errno
import shutil
import stat
import unicodedata
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from talkshow_bridge.errors import InputError, shown

ALLOWED_SUFFIXES = {".json", ".safetensors", ".png", ".jpg", ".jpeg", ".mp4", ".md", ".txt"}
PICKLE_SUFFIXES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".npy", ".npz"}
MAX_BYTES = 16 * 2**30  # of all files: the largest anchors hold two Stable-Diffusion-sized pairs of networks
MAX_FILES = 500
DATA_SET_SUFFIXES = ALLOWED_SUFFIXES | {".npz", ".npy", ".mov", ".mkv", ".webm", ".avi"}  # read without pickles
DATA_SET_FILES = 20_000
MAX_SIZES = {".json": 4 << 20, ".md": 1 << 20, ".txt": 1 << 20, ".png": 64 << 20, ".jpg": 64 << 20, ".jpeg": 64 << 20}
MAX_RATIO, FREE_RATIO_BYTES = 200, 1 << 20  # unpacked to packed, of files beyond a size
MAX_NAME, MAX_DEPTH = 200, 8
BLOCK = 1 << 20
_UNREADABLE = (
    *(zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, UnicodeError, ValueError),
    *(IsADirectoryError, NotADirectoryError, FileExistsError),
)
_DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}


def check_name(name: str, suffixes: set[str] = ALLOWED_SUFFIXES) -> None:
    """Refuse everything but a plain relative path, the same on every system, to a kind of file that may be there."""
    path = PurePosixPath(name)
    plain = name.isprintable() and not set(name) & set('\\:*?"<>|') and len(name) <= MAX_NAME
    if not plain or path.is_absolute() or not path.parts or len(path.parts) > MAX_DEPTH:
        raise InputError(f"Unsafe file name '{shown(name)}' in the package.")
    for part in name.split("/"):
        if part in ("", ".", "..") or part[-1] in ". " or part.split(".")[0].lower() in _DEVICES:
            raise InputError(f"Unsafe file name '{shown(name)}' in the package.")
    if path.suffix.lower() in PICKLE_SUFFIXES - suffixes:
        raise InputError(f"'{name}' may hold a pickle; anchors keep weights in safetensors only.")
    if path.suffix.lower() not in suffixes:
        raise InputError(f"'{name}' is not a kind of file that such a package may hold.")


def unpack(path: Path, folder: Path, suffixes: set[str] = ALLOWED_SUFFIXES, files: int = MAX_FILES) -> None:
    """Unpack a zip of at most so many files of these kinds into a new folder.

    Raises InputError; what was written until then is the caller's to remove."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            if len(entries) > files or sum(entry.file_size for entry in entries) > MAX_BYTES:
                raise InputError("The package is too large to be one.")
            _check_entries(entries, path.stat().st_size, suffixes)
            folder.mkdir(parents=True)
            if sum(entry.file_size for entry in entries) > shutil.disk_usage(folder).free:
                raise InputError("There is not enough room on the disk to unpack the package.")
            for entry in entries:
                target = folder / entry.filename
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(entry) as source, target.open("xb") as copy:
                    _copy_exactly(source, copy, entry)
    except FileNotFoundError:
        raise InputError(f"There is no file '{path}'.") from None
    except InputError:
        raise
    except (*_UNREADABLE, OSError) as error:
        if isinstance(error, _UNREADABLE) or error.errno == errno.EINVAL:  # it points outside of itself
            raise InputError(f"'{path.name}' is not a readable zip file.") from None
        raise


def _check_entries(entries: list[zipfile.ZipInfo], size: int, suffixes: set[str]) -> None:
    for entry in entries:
        check_name(entry.filename, suffixes)
        mode = entry.external_attr >> 16
        if mode and stat.S_IFMT(mode) not in (0, stat.S_IFREG):
            raise InputError(f"'{entry.filename}' in the package is a link or a special file.")
        _check_size(entry)
    if sum(entry.compress_size for entry in entries) > size:
        raise InputError("Files in the package overlap.")
    _check_collisions(PurePosixPath(entry.filename) for entry in entries)


def _check_size(entry: zipfile.ZipInfo) -> None:
    if entry.file_size > MAX_SIZES.get(PurePosixPath(entry.filename).suffix.lower(), MAX_BYTES):
        raise InputError(f"'{entry.filename}' in the package is too large for a file of its kind.")
    if entry.file_size > max(FREE_RATIO_BYTES, MAX_RATIO * entry.compress_size):
        raise InputError(f"'{entry.filename}' in the package unfolds to more than {MAX_RATIO} times its size.")


def _check_collisions(paths) -> None:
    """No two names may be one on a system that ignores case or accents' spelling, and no file also a folder."""
    files, folders = set(), set()
    for path in paths:
        key = unicodedata.normalize("NFKC", str(path)).casefold()
        if key in files or key in folders:
            raise InputError(f"The package holds the file name '{path}' twice.")
        files.add(key)
        folders.update(key.rsplit("/", depth)[0] for depth in range(1, key.count("/") + 1))
        if files & folders:
            raise InputError(f"'{path}' in the package lies in a file, not in a folder.")


def _copy_exactly(source: BinaryIO, copy: BinaryIO, entry: zipfile.ZipInfo) -> None:
    """Copy what the directory of the zip promised and not a byte more."""
    left = entry.file_size
    while block := source.read(BLOCK):
        left -= len(block)
        if left < 0:
            raise InputError(f"'{entry.filename}' in the package is larger than it says.")
        copy.write(block)
