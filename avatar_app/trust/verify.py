"""What can be said about a video, ours or anybody's: who signed it, whether it was altered, what its mark says."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from avatar_app.trust import credentials, watermark
from avatar_app.trust.credentials import MissingLibrary, Statement
from avatar_app.video import VideoError
from talkshow_bridge.errors import InputError

AUTHENTIC, NOTHING_SIGNED, ALTERED = 0, 3, 4  # exit codes of `launch.py verify`

_REASONS = {
    "expired": "the signer's certificate had expired",
    "revoked": "the signer's certificate was revoked",
    "Hash.mismatch": "pictures or sound are not what was signed",
    "hashedURI.mismatch": "the signed statement was changed",
    "seal": "bytes beside pictures and sound were changed, added or cut off",
    "claimSignature": "the signature is not right",
    "signingCredential": "the signer's certificate is not one for videos",
}


@dataclass(frozen=True)
class Verdict:
    """signed: the credentials, None when there are none that could be read.   watermark: 16 hex digits or None.
    altered: True or False as the credentials tell, None without any.   synthetic: something says that it is generated.
    sentences: all of this for people, the verdict first.
    exit_code: 0 signed and unaltered, 3 not signed, 4 altered or contradictory.
    """

    signed: Statement | None
    watermark: str | None
    altered: bool | None
    synthetic: bool
    sentences: tuple[str, ...]
    exit_code: int

    def as_json(self) -> str:
        return json.dumps(asdict(self), indent=2, ensure_ascii=False)


def check(video: str | os.PathLike[str]) -> Verdict:
    """Looks at everything that a video file says about itself. Raises InputError when it is not a readable video."""
    if not Path(video).is_file():
        raise InputError(f"There is no file '{os.path.basename(video)}'.")
    try:
        found = watermark.find(video)
    except VideoError as error:
        raise InputError(str(error)) from None
    mark = found.payload.hex() if found.valid else None
    try:
        signed, missing = credentials.read(video), None
    except MissingLibrary as error:
        signed, missing = None, f"The credentials could not be checked: {error}"
    claimed = signed.facts.get("watermark") if signed else None
    contradictory = bool(mark and claimed and claimed != mark)
    altered = None if signed is None else signed.state == "invalid"
    code = NOTHING_SIGNED if signed is None else ALTERED if altered or contradictory else AUTHENTIC
    synthetic = bool(mark or (signed and signed.generated))
    details = [missing] if missing else _about_signature(signed)
    sentences = (_verdict(signed, code, synthetic), *details, _about_mark(mark, claimed, signed))
    return Verdict(signed, mark, altered, synthetic, sentences, code)


def _verdict(signed: Statement | None, code: int, synthetic: bool) -> str:
    """What somebody needs to know who reads one sentence only."""
    if code == NOTHING_SIGNED and synthetic:
        return "This video is AI-generated; nothing tells whether it was altered since."
    if code == NOTHING_SIGNED:
        return "Nothing tells where this video comes from: it may be real or AI-generated."
    if code == ALTERED and signed.state == "invalid":
        return "Do not rely on this video: it was altered since it was signed."
    if code == ALTERED:
        return "Do not rely on this video: its pictures and its signature are of different videos."
    who = "this installation" if signed.own else signed.signer if signed.state == "trusted" else "somebody unknown"
    if synthetic:
        return f"This video is AI-generated, and it was not altered since {who} signed it."
    return f"This video was not altered since {who} signed it; nothing says that it is AI-generated."


def _about_signature(signed: Statement | None) -> list[str]:
    if signed is None:
        return [
            "Nobody signed it, or the signature was lost, as it is when a video is converted or sent by a messenger."
        ]
    if signed.state == "invalid" and not signed.signer:
        return ["It holds the remains of a signature that cannot be read any more."]
    sure = f"by {signed.signer}" if signed.state == "trusted" else f"under the name '{signed.signer}'"
    who = "by this installation" if signed.own else sure
    when = f" on {signed.created[:16].replace('T', ' at ')} UTC" if signed.created else ""
    about = [f"Signed {who}{when}" + (f", made with {signed.software}." if signed.software else ".")]
    if signed.state == "invalid":
        reasons = dict.fromkeys(
            next((words for part, words in _REASONS.items() if part in problem), problem) for problem in signed.problems
        )
        about.append(f"What is wrong: {', '.join(reasons)}.")
    if signed.state == "valid":
        about.append("Whether that name is true could not be verified: nobody this computer trusts vouches for it.")
    anchor, consent = signed.facts.get("anchor"), signed.facts.get("consent")
    if isinstance(anchor, dict) and isinstance(consent, dict):
        about.append(f"It shows the presenter '{anchor.get('id')}'; who is shown: {consent.get('summary')}.")
    return about


def _about_mark(mark: str | None, claimed: str | None, signed: Statement | None) -> str:
    if mark is None and claimed:
        return "The invisible mark that it should carry was not found in the pictures; small or poor ones lose it."
    if mark is None:
        return "The pictures carry no invisible mark of avatar_app, or none that survived."
    if claimed == mark:
        return f"The pictures carry the invisible mark of this very video, {mark}."
    said = f"The pictures carry avatar_app's invisible mark {mark}"
    if claimed:
        return f"{said}, but the signature speaks of {claimed}."
    return f"{said}: avatar_app made them" + (", whatever the signature says." if signed else ".")
