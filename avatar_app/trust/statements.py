"""What people declare about who is shown; plain words, so that the command line's help needs no other package."""

from __future__ import annotations

from typing import Literal

Kind = Literal["synthetic", "self", "permission"]
Use = Literal["train", "render", "import"]
KINDS: tuple[Kind, ...] = ("synthetic", "self", "permission")
USES: tuple[Use, ...] = ("train", "render", "import")
STATEMENT_VERSION = 1
STATEMENTS: dict[Kind, str] = {
    "synthetic": "The person shown does not exist, and no real person's likeness was copied.",
    "self": "I am the person shown, and I agree to be shown in synthetic videos for the uses permitted here.",
    "permission": "The person shown has agreed in writing to be shown in synthetic videos for the uses permitted here, "
    "and I can produce that agreement.",
}
