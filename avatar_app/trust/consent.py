"""Who agreed that an anchor shows them, to what, and until when: a record in the anchor's manifest.

`require_consent` is the one gate: renders, imports and training all pass through it, whoever asks.  The record is a
declaration of the person who makes the anchor; the program keeps it, binds it to every video's credentials and obeys
it, but cannot know whether it is true.
"""

from __future__ import annotations

import hashlib
import json
from datetime import date
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from avatar_app.trust.statements import KINDS, STATEMENT_VERSION, STATEMENTS, USES, Kind, Use
from talkshow_bridge.errors import InputError

_NAMES = {"synthetic": "synthetic person", "self": "shows its maker", "permission": "shown with written permission"}


class Consent(BaseModel):
    """The consent record of an anchor.

    kind: "synthetic" (nobody real is shown), "self" (its maker is shown) or "permission" (somebody else, in writing);
    "unstated" is what older packages become, which only had a sentence; it permits nothing.
    statement_version: which wording of `STATEMENTS` was agreed to.
    uses: what is permitted: "train" networks, "render" videos, "import" the package on other machines.
    given, expires, revoked: days; it is valid up to and including the day it expires.
    clip_sha256: of the video that the anchor was trained on.   note: free words, such as where the agreement is kept.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["synthetic", "self", "permission", "unstated"]
    statement_version: Literal[1] = STATEMENT_VERSION
    uses: tuple[Use, ...] = USES
    given: date | None = None
    expires: date | None = None
    revoked: date | None = None
    clip_sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    note: str = Field("", max_length=2000)

    @model_validator(mode="after")
    def _dates_make_sense(self) -> Consent:
        if self.kind in ("self", "permission") and self.given is None:
            raise ValueError("a real person's consent needs the day it was given")
        if self.given and self.expires and self.expires < self.given:
            raise ValueError("it expires before it was given")
        return self

    @property
    def id(self) -> str:
        """Short name of this very record, 16 hex digits; revoking does not change it."""
        facts = self.model_dump(mode="json", exclude={"revoked"})
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    def problem(self, use: Use = "render", today: date | None = None, clip_sha256: str | None = None) -> str | None:
        """Why this record does not allow `use`, as the end of the sentence "The consent ..."; None when it does.

        clip_sha256: of the video about to be trained on; a real person's record must name that very video.
        """
        today = today or date.today()
        if self.kind == "unstated":
            return "is not recorded" + (f" (an older package only says {self.note[:100]!r})" if self.note else "")
        if self.revoked is not None:
            return f"was revoked on {self.revoked}"
        if self.given is not None and self.given > today:
            return f"is only given from {self.given} on"
        if self.expires is not None and self.expires < today:
            return f"expired on {self.expires}"
        if use not in self.uses:
            return f"does not permit {_DOING[use]}"
        if clip_sha256 is not None and self.kind != "synthetic" and self.clip_sha256 != clip_sha256:
            return "was given for another training video" if self.clip_sha256 else "does not name the training video"
        return None

    def summary(self, today: date | None = None) -> str:
        """A few words for a card: "synthetic person", "shows its maker, until 2027-01-31", "consent expired on ..."."""
        if problem := self.problem(self.uses[0] if self.uses else "render", today):
            return f"consent {problem}"
        limits = "" if set(self.uses) == set(USES) else f", only to {' and '.join(self.uses)}"
        return _NAMES[self.kind] + limits + (f", until {self.expires}" if self.expires else "")


_DOING = {"train": "training", "render": "rendering videos", "import": "use on other machines"}


def require_consent(subject, use: Use = "render", today: date | None = None, clip_sha256: str | None = None) -> Consent:
    """The valid consent of an anchor or a manifest (anything with `id` and `consent`), or of a bare record.

    Raises InputError in one sentence when `use` ("render", "train" or "import") is not permitted today.
    """
    subject = getattr(subject, "manifest", subject)
    consent, name = getattr(subject, "consent", subject), getattr(subject, "id", None)
    whose = "The consent" if consent is subject else f"The consent for anchor '{name}'"
    if problem := consent.problem(use, today, clip_sha256):
        hint = ""
        if consent.kind == "unstated" and use == "import":
            hint = f"; who knows says it with `--consent {'|'.join(KINDS)}`"
        elif consent.kind == "unstated":
            hint = f"; who knows records it with `launch.py anchors consent {name or 'NAME'} {'|'.join(KINDS)}`"
        raise InputError(f"{whose} {problem}{hint}.")
    return consent


def new_consent(kind: Kind, agree: bool, **facts) -> Consent:
    """A record given today, or on `given`.  Raises InputError when a fact is wrong or the statement not agreed to."""
    if kind not in KINDS:
        raise InputError(f"Unknown kind of consent {kind!r}: please choose one of {', '.join(KINDS)}.")
    if not agree:
        raise InputError(f'Please repeat with --agree if this is true: "{STATEMENTS[kind]}"')
    try:
        return Consent.model_validate({"kind": kind, "given": date.today(), **facts})
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or kind
        raise InputError(f"The consent record is wrong: '{field}' ({first['msg']}).") from None


def migrate(manifest: dict) -> dict:
    """A version-1 manifest as version 2: its sentence about consent becomes a note, which permits nothing."""
    consent = {"kind": "unstated", "note": str(manifest.get("consent", ""))[:2000]}
    return manifest | {"schema_version": 2, "consent": consent}
