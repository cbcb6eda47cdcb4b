"""Sub-commands about trust: `anchors consent`, `verify`, `bench trust`, and the consent options that others share."""

from __future__ import annotations

import argparse
from datetime import date
from typing import TYPE_CHECKING

from avatar_app.trust.statements import KINDS, STATEMENTS, USES
from talkshow_bridge.errors import InputError

if TYPE_CHECKING:
    from avatar_app.trust.consent import Consent


def add_consent_options(parser: argparse._ActionsContainer, with_kind: bool = True) -> None:
    """Options that describe a consent record; `consent_from` reads them. with_kind: `--consent KIND` among them."""
    if with_kind:
        parser.add_argument("--consent", metavar="KIND", choices=KINDS, help=f"who is shown: {', '.join(KINDS)}")
    parser.add_argument("--agree", action="store_true", help="what the kind of consent states is true")
    parser.add_argument("--given", type=_day, metavar="DAY", help="when consent was given, default: today")
    parser.add_argument("--expires", type=_day, metavar="DAY", help="last day of the consent, as 2027-12-31")
    parser.add_argument("--uses", metavar="USE,USE", help=f"what it permits, default: {','.join(USES)}")
    parser.add_argument("--training-video", metavar="VIDEO", help="the training video that it was given for")
    parser.add_argument("--note", help="free words, such as where the written agreement is kept")


def consent_from(options: argparse.Namespace, kind: str | None = None) -> Consent | None:
    """The record that the options describe, None when they name no kind. Raises InputError."""
    from avatar_app.trust.consent import new_consent

    kind = kind or options.consent
    if kind is None:
        return None
    facts = {name: value for name in ("given", "expires", "note") if (value := getattr(options, name)) is not None}
    if options.uses is not None:
        facts["uses"] = tuple(word.strip() for word in options.uses.split(",") if word.strip())
    if options.training_video is not None:
        from avatar_app.trust.credentials import sha256

        facts["clip_sha256"] = sha256(options.training_video)
    return new_consent(kind, options.agree, **facts)


def add_consent_command(actions: argparse._SubParsersAction) -> None:
    action = actions.add_parser(
        "consent",
        help="show, record or revoke who agreed to be shown",
        description="Shows an anchor's consent record; with KIND a new one takes its place, `revoke` ends it.",
        epilog=" ".join(f'{kind}: "{text}"' for kind, text in STATEMENTS.items()),
    )
    action.add_argument("anchor")
    action.add_argument("change", nargs="?", choices=(*KINDS, "revoke"), help="new record, or its end")
    add_consent_options(action, with_kind=False)
    action.set_defaults(run=_consent)


def add_render_options(parser: argparse._ActionsContainer) -> None:
    """What a render does to make its video recognisable; None means: as in the settings."""
    for name, text in (
        ("watermark", "mark the frames invisibly (default) or not"),
        ("label", 'write "AI-generated" into a corner or not (default)'),
        ("credentials", "sign the file with content credentials (default) or not"),
    ):
        parser.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, default=None, help=text)


def add_verify_command(commands: argparse._SubParsersAction) -> None:
    verify = commands.add_parser(
        "verify",
        help="is a video signed, was it altered, what does its mark say",
        description="Exit codes: 0 signed and unaltered, 3 nothing signed, 4 altered, 2 not a video.",
    )
    verify.add_argument("video")
    verify.add_argument("--json", action="store_true", help="everything that was found, for programs")
    verify.set_defaults(run=_verify)


def _verify(options: argparse.Namespace) -> int:
    from avatar_app.trust.verify import check

    verdict = check(options.video)
    print(verdict.as_json() if options.json else "\n".join(verdict.sentences))
    return verdict.exit_code


def add_bench_options(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--keys", type=int, default=24, metavar="N", help="patterns to try chance on, default 24")


def bench(options: argparse.Namespace) -> None:
    from avatar_app.trust.bench import bench_trust

    if not 2 <= options.keys <= 10_000:
        raise InputError(f"Chance is tried on 2 to 10000 patterns, not {options.keys}.")
    bench_trust(options.anchor, min(options.seconds, 4.0), options.keys)


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a day such as 2027-12-31") from None


def _consent(options: argparse.Namespace) -> None:
    from avatar_app.anchors import load_anchor, set_consent

    anchor = load_anchor(options.anchor, verify=False)
    if options.change == "revoke":
        if anchor.manifest.consent.revoked is None:
            revoked = anchor.manifest.consent.model_copy(update={"revoked": date.today()})
            anchor = set_consent(anchor, revoked)
    elif options.change:
        anchor = set_consent(anchor, consent_from(options, options.change))
    elif options.agree or options.given or options.expires or options.uses or options.training_video or options.note:
        raise InputError(f"Please say what the new record is: {', '.join(KINDS)} (or revoke).")
    consent = anchor.manifest.consent
    print(f"{anchor.id}: {consent.summary()}  (record {consent.id})")
    if consent.kind in STATEMENTS:
        print(f'  "{STATEMENTS[consent.kind]}"')
    facts = {"given": consent.given, "training video": consent.clip_sha256, "note": consent.note}
    for name, value in facts.items():
        if value:
            print(f"  {name}: {value}")
