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
    "expired": "the certificate had expired",
    "revoked": "the certificate was revoked",
    "Hash.mismatch": "the content is not what was signed",
    "hashedURI.mismatch": "the statement itself was changed",
    "seal": "bytes beside pictures, sound and statement were changed, added or cut off",
    "claimSignature": "the signature is not right",
    "signingCredential": "the certificate is not one for content credentials",
}


@dataclass(frozen=True)
class Verdict:
    """signed: the credentials, None when there are none that could be read.   watermark: 16 hex digits or None.
    altered: True or False as the credentials tell, None without any.   synthetic: something says that it is generated.
    sentences: all of this for people.   exit_code: 0 signed and unaltered, 3 not signed, 4 altered or contradictory.
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
    sentences = [missing] if missing else _about_signature(signed)
    sentences += _about_mark(mark, claimed, signed)
    code = NOTHING_SIGNED if signed is None else ALTERED if altered or contradictory else AUTHENTIC
    synthetic = bool(mark or (signed and signed.generated))
    return Verdict(signed, mark, altered, synthetic, tuple(sentences), code)


def _about_signature(signed: Statement | None) -> list[str]:
    if signed is None:
        return ["The file carries no content credentials: nobody signed it, or the signature was removed."]
    if signed.state == "invalid" and not signed.signer:
        return [f"The file carries content credentials that are damaged: {signed.problems[0]}"]
    who = "by this installation" if signed.own else f"by {signed.signer}"
    when = f" on {signed.created.replace('T', ' at ').removesuffix('Z')} UTC" if signed.created else ""
    with_what = f", made with {signed.software}" if signed.software else ""
    about = [f"Signed {who}{when}{with_what}."]
    if signed.state == "invalid":
        reasons = dict.fromkeys(
            next((words for part, words in _REASONS.items() if part in problem), problem) for problem in signed.problems
        )
        about.append(f"It was altered since, or the signature is not right: {', '.join(reasons)}.")
    else:
        about.append("It was not altered since.")
    if signed.state == "valid":
        about.append("Who that signer is could not be verified: the certificate is not among the trusted ones here.")
    if signed.generated:
        about.append("It says that it is a synthetic video.")
    anchor, consent = signed.facts.get("anchor"), signed.facts.get("consent")
    if isinstance(anchor, dict) and isinstance(consent, dict):
        about.append(f"It shows the anchor '{anchor.get('id')}'; consent: {consent.get('summary')}.")
    return about


def _about_mark(mark: str | None, claimed: str | None, signed: Statement | None) -> list[str]:
    if mark is None and claimed:
        return [f"The invisible mark {claimed} that it speaks of was not found in the pictures."]
    if mark is None:
        return ["The pictures carry no invisible mark of avatar_app, or none that survived."]
    said = f"The pictures carry avatar_app's invisible mark {mark}"
    if claimed == mark:
        return [f"{said}, as the signature says."]
    if claimed:
        return [f"{said}, but the signature speaks of {claimed}: pictures and signature are of different videos."]
    return [f"{said}: they were made with it" + (", whatever the signature says." if signed else ".")]
