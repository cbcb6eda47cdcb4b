"""A seal over every single byte of a signed mp4.

C2PA's own hash leaves out what does not change the film: the boxes `ftyp` and `free`, further boxes of its own, and
the padding of its manifest.  So every file gets a key of its own.  The public half stands in the signed statement; the
private half signs the finished file, in a last box that players skip, and is forgotten at once.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import BinaryIO

SIGNATURE = 64  # bytes
HEAD = (24 + SIGNATURE).to_bytes(4, "big") + b"free" + b"avatar_app.seal\0"


class Seal:
    """For one file: put `public` (64 hex digits) into what is signed, then `close` the file."""

    def __init__(self) -> None:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        self._key = Ed25519PrivateKey.generate()
        self.public = self._key.public_key().public_bytes_raw().hex()

    def close(self, file: BinaryIO) -> None:
        """Append the seal to a file that is open for reading and writing."""
        file.seek(0)
        signature = self._key.sign(_digest(file))
        file.seek(0, 2)
        file.write(HEAD + signature)


def is_whole(path: Path, public: str) -> bool:
    """Whether a file ends in the seal that belongs to this key, and is byte for byte what was sealed."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    length = path.stat().st_size - len(HEAD) - SIGNATURE
    with path.open("rb") as file:
        digest = _digest(file, max(length, 0))
        box = file.read()
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(box[len(HEAD) :], digest)
    except (InvalidSignature, ValueError):
        return False
    return box.startswith(HEAD)


def _digest(file: BinaryIO, length: int | None = None) -> bytes:
    """SHA-256 of the next `length` bytes; None: of all."""
    digest = hashlib.sha256()
    while block := file.read(2**20 if length is None else min(length, 2**20)):
        digest.update(block)
        length = None if length is None else length - len(block)
    return digest.digest()
