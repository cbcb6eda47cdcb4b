"""The command line. Exit codes: 0 done, 2 bad input (one sentence on stderr), 1 our fault, 130 stopped by the user."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from avatar_app import cli_anchors, cli_batch, cli_motion, cli_trust
from avatar_app.progress_line import ProgressLine
from avatar_app.settings import LIPS, PRESETS, STYLES, RenderSettings
from talkshow_bridge.errors import InputError

if TYPE_CHECKING:
    from avatar_app.anchors import Anchor
    from talkshow_bridge.motion import Motion

log = logging.getLogger(__name__)


def main(arguments: list[str] | None = None) -> int:
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that clean-up code runs
    options = _parser().parse_args(arguments)
    clear = "\r\x1b[K" if sys.stderr.isatty() else ""  # the progress line
    logging.basicConfig(format=f"{clear}avatar_app: %(message)s")
    logging.getLogger("avatar_app").setLevel(logging.INFO)
    try:
        return options.run(options) or 0
    except InputError as error:
        return _fail(str(error), 2)
    except KeyboardInterrupt:
        return _fail("stopped", 130)
    except Exception as error:
        from avatar_app.video import VideoError

        if isinstance(error, (VideoError, OSError)):
            return _fail(str(error), 1)
        raise


def _fail(sentence: str, code: int) -> int:
    print(f"avatar_app: {sentence}", file=sys.stderr)
    return code


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        self.exit(2, f"avatar_app: {message} (see `{self.prog} --help`)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="launch.py", description="Speech in, talking-presenter video out.")
    parser.set_defaults(run=_app, listen=False, share=False, port=None, auth=None, manage_anchors=False)
    commands = parser.add_subparsers(metavar="command", parser_class=_Parser)

    app = commands.add_parser("app", help="open the web page (the default)")
    app.add_argument("--port", type=int, help="default: the first free one from 7860")
    app.add_argument("--listen", action="store_true", help="accept connections from other machines")
    app.add_argument("--share", action="store_true", help="ask gradio for a public link")
    app.add_argument(
        "--auth",
        metavar="USER:PASSWORD",
        help="who may come in, several separated by commas, or @FILE with one a line; default: AVATAR_APP_AUTH",
    )
    app.add_argument(
        "--manage-anchors", action="store_true", help="visitors may change presenters in spite of a password"
    )
    app.set_defaults(run=_app)

    render = commands.add_parser("render", help="speech file -> video")
    render.add_argument("speech", nargs="?", help="any audio or video file")
    render.add_argument("--out", default=None, help="the video, default out.mp4")
    render.add_argument("--anchor", help="id or folder of the presenter; see `anchors list`")
    render.add_argument("--preset", choices=PRESETS)
    render.add_argument("--seed", type=int)
    render.add_argument("--gesture-energy", type=float, metavar="0..2")
    render.add_argument("--style", help=f"of the gestures: {', '.join(STYLES)}; a TalkSHOW model has speakers instead")
    render.add_argument("--motion-model", metavar="DIR", help="TalkSHOW weights; `talkshow` for those once imported")
    render.add_argument("--lips", choices=LIPS, help="with --motion-model: its own face, or ours for our anchors")
    for name, kind in (
        ("steps", int),
        ("guidance", float),
        ("condition-scale", float),
        ("window", int),
        ("overlap", int),
    ):
        render.add_argument(f"--{name}", type=kind, help="overrides the anchor's preset")
    render.add_argument("--face", action=argparse.BooleanOptionalAction, default=None, help="repaint the face or not")
    render.add_argument("--crf", type=int, help="H.264 quality, 0..40, default 18")
    cli_trust.add_render_options(render)
    render.add_argument("--commercial-safe", action="store_true", default=None, help="refuse non-commercial parts")
    render.add_argument("--settings", metavar="FILE.json", help="start from these settings or a video's side-car")
    render.add_argument("--device", help="torch device, default: the GPU when there is one")
    other = render.add_mutually_exclusive_group()
    other.add_argument(
        "--motion-only", metavar="MOTION", help=f"write the motion and stop: {', '.join(cli_motion.SUFFIXES)}"
    )
    other.add_argument("--preview", metavar="MESH.mp4", help="a quick video of the moving mesh only")
    render.add_argument("--motion", metavar="MOTION", help="render this motion file (speech is then optional)")
    render.add_argument("--subtitles", metavar="FILE", help=".srt or .vtt, to be a track of the video")
    render.add_argument("--work", metavar="DIR", help="keep finished pieces here, to go on after a crash")
    render.add_argument("--takes", type=int, default=1, metavar="N", help="N results: seed, seed+1, ... in NAME-1, ...")
    render.set_defaults(run=_render)

    cli_batch.add_batch_command(commands)

    anchors = commands.add_parser("anchors", help="list, import, export, verify or train presenters")
    actions = anchors.add_subparsers(metavar="action", required=True, parser_class=_Parser)
    actions.add_parser("list", help="what is installed").set_defaults(run=_anchors_list)
    action = actions.add_parser("import", help="install an anchor package or a Make-Your-Anchor checkpoint")
    action.add_argument("file", help="anchor .zip, or the folder of a Make-Your-Anchor person checkpoint")
    action.add_argument("--replace", action="store_true", help="replace an installed anchor of the same id")
    cli_trust.add_consent_options(action.add_argument_group("consent, where the package does not bring its own"))
    original = action.add_argument_group("for a checkpoint folder")
    for name, text in (
        ("base", "folder of Stable Diffusion 1.5 (vae, text_encoder, scheduler)"),
        ("reference", "photo of the presenter as in training"),
        ("camera", "JSON or npz: translation, betas, ... of the SMPL-X fit"),
        ("head-reference", "aligned photo of the head, for head networks"),
        ("inpainting-base", "folder of its inpainting model, default: BASE"),
        ("clip", "folder of clip-vit-base-patch32, default: beside BASE"),
        ("name", "display name, default: the id"),
        ("id", "default: from the folder's name"),
        ("licence", "of the result, default: the checkpoint's own terms"),
    ):
        original.add_argument(f"--{name}", help=text)
    original.add_argument(
        "--body", choices=("smplx", "open"), help="your licensed SMPL-X (default) or the bundled body"
    )
    original.add_argument("--face-size", type=int, metavar="PIXELS", help="of the head networks, default 256")
    original.add_argument("--half", action="store_true", help="keep the weights in 16 bits")
    action.set_defaults(run=_anchors_import)
    action = actions.add_parser("export", help="pack an anchor into a zip")
    action.add_argument("anchor")
    action.add_argument("file", nargs="?", help="default: ID.zip")
    action.set_defaults(run=_anchors_export)
    action = actions.add_parser("verify", help="check every file against its checksum")
    action.add_argument("anchor", nargs="*", help="default: all")
    action.set_defaults(run=_anchors_verify)
    cli_trust.add_consent_command(actions)
    cli_anchors.add_training_commands(actions)

    motion = commands.add_parser("motion", help="motion models and files")
    cli_motion.add_motion_commands(motion, _Parser)

    bench = commands.add_parser("bench", help="times and memory of renders, or the quality of motions, anchors, marks")
    bench.add_argument(
        "what", nargs="?", choices=("render", "motion", "anchors", "trust"), default="render", help="default: render"
    )
    bench.add_argument("name", nargs="?", help="anchors: which one, default: all that bring a held-out clip")
    bench.add_argument("footage", nargs="?", help="anchors: a footage folder, default: the clip in the package")
    render = bench.add_argument_group("render: times, shares and memory on this machine")
    render.add_argument("--anchor")
    render.add_argument("--seconds", type=float, default=10.0, help="length of the speech, default 10")
    render.add_argument("--runs", default="preview,draft,standard", help="comma-separated, default %(default)s")
    cli_motion.add_bench_options(bench.add_argument_group("motion: lips and gestures in numbers, as Markdown"))
    cli_anchors.add_bench_options(bench.add_argument_group("anchors: pictures against a held-out clip, as Markdown"))
    cli_trust.add_bench_options(bench.add_argument_group("trust: what the invisible mark survives, as Markdown"))
    bench.set_defaults(run=_bench)

    cli_trust.add_verify_command(commands)
    commands.add_parser("doctor", help="what is present or missing, how to mend it, licences").set_defaults(run=_doctor)
    commands.add_parser("test", help="run the tests")  # handled by launch.py, as is:
    commands.add_parser("audit", help="known vulnerabilities of the packages")
    return parser


def _app(options: argparse.Namespace) -> None:
    log.info("Starting the page ...")
    from avatar_app.web.app import serve

    serve(options.port, options.listen, options.share, options.auth, options.manage_anchors)


def _render(options: argparse.Namespace) -> None:
    if options.speech is None and options.motion is None:
        raise InputError("Please name a speech file (or a motion with --motion).")
    settings = RenderSettings.load(options.settings) if options.settings else RenderSettings()
    names = ("anchor", "preset", "seed", "gesture_energy", "style", "motion_model", "lips", "steps", "guidance")
    names += ("condition_scale", "window", "overlap", "face", "crf", "watermark", "label", "credentials")
    names += ("commercial_safe",)
    settings = replace(settings, **{name: value for name in names if (value := getattr(options, name)) is not None})
    if options.takes < 1:
        raise InputError(f"At least one take is needed, not {options.takes}.")
    if options.subtitles and options.motion_only:
        raise InputError("A motion file carries no subtitles; please leave out --subtitles.")
    if options.takes > 1 and options.motion:
        raise InputError("A motion file is one take; `--takes` is for motion made from speech.")
    for take in range(options.takes):
        taken = replace(settings, seed=settings.seed + take)
        suffix = f"-{take + 1}" if options.takes > 1 else ""
        if options.motion_only:
            _motion_only(options, taken, suffix)
        else:
            _video(options, taken, suffix)


def _video(options: argparse.Namespace, settings: RenderSettings, suffix: str) -> None:
    from avatar_app.evaluation.report import as_text
    from avatar_app.pipeline import render

    result = render(
        options.speech,
        out=_numbered(options.preview or options.out or "out.mp4", suffix),
        settings=settings,
        progress=ProgressLine(),
        motion=_motion_file(options, settings) if options.motion else None,
        preview=bool(options.preview),
        device=options.device,
        work=options.work and options.work + suffix,
        subtitles=options.subtitles,
    )
    print(f"{result.path}  ({result.duration:.1f} s of video in {result.timings['total']:.1f} s)")
    print(as_text(result.report, brief=True), file=sys.stderr)


def _motion_file(options: argparse.Namespace, settings: RenderSettings) -> Motion:
    from avatar_app.pipeline import choose_anchor
    from talkshow_bridge.audio import load_speech

    speech = load_speech(options.speech) if options.speech else None
    body = choose_anchor(settings.anchor).body
    return cli_motion.read_motion_for(options.motion, body.expression_space, speech, settings.seed)


def _motion_only(options: argparse.Namespace, settings: RenderSettings, suffix: str) -> None:
    from avatar_app.pipeline import checked_device, choose_anchor, make_motion
    from talkshow_bridge.audio import load_speech

    out = cli_motion.check_motion_output(_numbered(options.motion_only, suffix), options.motion)
    anchor = choose_anchor(settings.anchor)
    if options.motion:
        motion = _motion_file(options, settings).resample(anchor.manifest.fps)
    else:
        speech, device = load_speech(options.speech), checked_device(options.device)
        motion = make_motion(speech, settings, anchor.manifest.fps, device)
    cli_motion.write_motion(motion, out, lambda: anchor.body)


def _numbered(path: str, suffix: str) -> str:
    """NAME.mp4 -> NAME-1.mp4."""
    stem, kind = os.path.splitext(path)
    return f"{stem}{suffix}{kind}"


def _anchors_list(options: argparse.Namespace) -> None:
    from avatar_app.anchors import list_anchors

    for anchor in list_anchors():
        facts = anchor.manifest
        size = f"{facts.width}x{facts.height}, {facts.fps:g} fps"
        print(f"{anchor.id:20} {facts.name}, {size}, {facts.consent.summary()}  ({anchor.folder})")


def _anchors_import(options: argparse.Namespace) -> None:
    from avatar_app.anchors import import_anchor

    package = Path(options.file)
    if package.is_dir():
        anchor = _import_checkpoint(options)
    else:
        anchor = import_anchor(package, options.replace, cli_trust.consent_from(options))
    print(f"Installed {anchor.id} in {anchor.folder}")


def _import_checkpoint(options: argparse.Namespace) -> Anchor:
    for name in ("base", "reference", "camera", "consent"):
        if not getattr(options, name):
            raise InputError(f"A checkpoint folder needs --{name} (see `launch.py anchors import --help`).")
    from avatar_app.import_original import Original, import_original

    paths = ("base", "reference", "camera", "head_reference", "inpainting_base", "clip")
    given = {field.name: getattr(options, field.name, None) for field in fields(Original)} | {
        "checkpoint": options.file
    }
    given = {name: value for name, value in given.items() if value is not None}
    given = {name: Path(value) if name in (*paths, "checkpoint") else value for name, value in given.items()}
    given["consent"] = cli_trust.consent_from(options)
    return import_original(Original(**given), replace=options.replace)


def _anchors_export(options: argparse.Namespace) -> None:
    from avatar_app.anchors import export_anchor, load_anchor
    from avatar_app.video import check_output

    anchor = load_anchor(options.anchor)
    print(export_anchor(anchor, check_output(options.file or f"{anchor.id}.zip", ".zip")))


def _anchors_verify(options: argparse.Namespace) -> None:
    from avatar_app.anchors import list_anchors, load_anchor

    for name in options.anchor or [anchor.id for anchor in list_anchors()]:
        anchor = load_anchor(name)
        print(f"{anchor.id}: {len(anchor.manifest.files)} files are sound")


def _bench(options: argparse.Namespace) -> None:
    from avatar_app.bench import bench

    if options.name and options.what != "anchors":
        raise InputError(f"`bench {options.what}` takes options only, not {options.name!r}.")
    if options.what == "motion":
        return cli_motion.bench_motion(options)
    if options.what == "anchors":
        return cli_anchors.bench_anchors(options)
    if options.what == "trust":
        return cli_trust.bench(options)
    bench(options.anchor, options.seconds, options.runs.split(","))


def _doctor(options: argparse.Namespace) -> int:
    from avatar_app.doctor import main as doctor

    return doctor()
