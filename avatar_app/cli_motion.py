"""The command line's part about motion files: `launch.py motion ...`, and what `render` does with them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from talkshow_bridge.errors import InputError, shown

if TYPE_CHECKING:
    from avatar_app.mesh.body import Body
    from talkshow_bridge.audio import Speech
    from talkshow_bridge.motion import Motion

SUFFIXES = (".npz", ".npy", ".bvh", ".glb")
KINDS = "motion file: ours, TalkSHOW .npy, AMASS or SMPL-X .npz, BEAT2 or EMAGE .npz"
MEASURED = 600.0  # s: of longer motions only the beginning is measured
BIG_STEP = 0.06  # m: a wrist that moves further in 1/30 s jumps


def add_motion_commands(motion: argparse.ArgumentParser, parser_class: type) -> None:
    actions = motion.add_subparsers(metavar="action", required=True, parser_class=parser_class)

    action = actions.add_parser("import", help="convert the official TalkSHOW weights once, for quick and safe loading")
    action.add_argument("source", help="folder with the three .pth files, at any depth")
    action.add_argument("--out", metavar="DIR", help="new folder, default: talkshow beside the anchors")
    action.set_defaults(run=_import)

    action = actions.add_parser("inspect", help="what is in a motion file")
    action.add_argument("file", help=KINDS)
    _add_reading_options(action)
    action.set_defaults(run=_inspect)

    action = actions.add_parser("convert", help="write a motion file in another format, by the suffix of its name")
    action.add_argument("file", help=KINDS)
    action.add_argument("out", help=f"new file: {', '.join(SUFFIXES)} (.npy is TalkSHOW's)")
    action.add_argument("--amass", action="store_true", help="make the .npz an AMASS / SMPL-X file")
    action.add_argument("--fps", type=float, help="frame rate of the new file, default: unchanged")
    action.add_argument("--anchor", help="whose body a .glb or .bvh gets, default: the open body")
    _add_reading_options(action)
    action.set_defaults(run=_convert)


def _add_reading_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sample", metavar="K/N", help="of N takes in one TalkSHOW file the K-th")
    parser.add_argument("--hands", choices=("relative", "absolute"), help="to the mean hand or not, default: by format")
    parser.add_argument("--up", choices=("y", "z"), help="axis, default: by format")


def add_bench_options(group) -> None:
    group.add_argument("--speech", nargs="+", metavar="FILE", help="speech to move to, default: the bundled samples")
    group.add_argument("--motion-model", metavar="DIR", help="TalkSHOW weights to measure too")
    group.add_argument("--talkshow-outputs", metavar="DIR", help=".npy files of TalkSHOW, each beside its audio")
    group.add_argument("--reference", metavar="DIR", help="real motion to compare with: files of any kind we read")
    group.add_argument("--lips", metavar="DIR", help="recordings with phones (.json), or transcripts and pocketsphinx")


def bench_motion(options: argparse.Namespace) -> None:
    """Print what lips and gestures measure, beside TalkSHOW's and a reference where the user has them."""
    from avatar_app.anchors import motion_model_folder
    from avatar_app.bench import sample_files
    from talkshow_bridge.audio import load_speech
    from talkshow_bridge.evaluation import table
    from talkshow_bridge.generator import MotionGenerator

    speeches = [load_speech(file) for file in options.speech or sample_files()]
    reference = table.reference_motions(options.reference) if options.reference else []
    others = [table.talkshow_outputs(options.talkshow_outputs)] if options.talkshow_outputs else []
    if reference:
        others.append(table.reference_column(reference))
    generator = MotionGenerator.from_pretrained()
    if options.lips:
        print(table.lip_table(options.lips, generator), end="\n\n", flush=True)
    if options.motion_model:
        official = MotionGenerator.from_pretrained(motion_model_folder(options.motion_model))
        others = table.generated(official, speeches, "TalkSHOW") + others
    print(table.gesture_table([*table.generated(generator, speeches), *others], reference))


def _import(options: argparse.Namespace) -> None:
    from avatar_app.anchors import motion_model_folder
    from talkshow_bridge.checkpoints import convert

    print(f"Wrote {convert(options.source, options.out or motion_model_folder('talkshow'))}")


def _inspect(options: argparse.Namespace) -> None:
    for line in describe(_read(options)):
        print(line)


def _convert(options: argparse.Namespace) -> None:
    from avatar_app.pipeline import choose_anchor

    out = check_motion_output(options.out, options.file)
    motion = _read(options)
    if options.fps is not None:
        if not 1 <= options.fps <= 240:
            raise InputError(f"The frame rate goes from 1 to 240, not {options.fps:g}.")
        motion = motion.resample(options.fps)
    write_motion(motion, out, lambda: choose_anchor(options.anchor).body if options.anchor else None, options.amass)


def _read(options: argparse.Namespace) -> Motion:
    from talkshow_bridge.exchange import load_motion

    return load_motion(options.file, _sample(options.sample), options.hands, options.up)


def _sample(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal()):
        raise InputError(f"A sample is written like 2/12, not {text!r}.")
    return int(number), int(count)


def check_motion_output(path: str | os.PathLike[str], source: str | None = None) -> Path:
    """The absolute path of a motion file to write, or InputError in one sentence. source: what it is made from."""
    from avatar_app.video import check_output

    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(
            f"The output file {Path(path).name!r} must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}."
        )
    out = check_output(path, suffix)
    if source and out.exists() and os.path.exists(source) and os.path.samefile(out, source):
        raise InputError(f"The output {out.name!r} would replace the motion that it is made from.")
    return out


def write_motion(motion: Motion, out: Path, body: Callable[[], Body | None], amass: bool = False) -> None:
    """Write a motion in the format that the suffix names, wholly or not at all, and say so.

    body: gives the body for formats that contain one, None for the open body.
    """
    from talkshow_bridge.exchange import save_amass, save_talkshow

    if amass and out.suffix.lower() != ".npz":
        raise InputError(f"An AMASS file ends in .npz, unlike '{shown(out)}'.")
    temporary = out.with_name(f".{out.name}.part")
    try:
        match out.suffix.lower():
            case ".npy":
                motion = motion.resample(30.0)  # the format's only rate
                save_talkshow(motion, temporary)
            case ".npz":
                save_amass(motion, temporary) if amass else motion.save(temporary)
            case ".bvh":
                _write_bvh(motion, temporary, body())
            case ".glb":
                _write_glb(motion, temporary, body())
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
    print(f"{out}  ({len(motion)} frames at {motion.fps:g} per second)")


def _write_bvh(motion: Motion, path: Path, body: Body | None) -> None:
    from talkshow_bridge.bvh import write_bvh
    from talkshow_bridge.rig import REST_JOINTS

    write_bvh(motion, path, REST_JOINTS if body is None else body.joints)


def _write_glb(motion: Motion, path: Path, body: Body | None) -> None:
    from avatar_app.mesh.bodies import DEFAULT_DIRECTORY, OPEN_FILE
    from avatar_app.mesh.body import Body
    from avatar_app.mesh.gltf import write_glb
    from talkshow_bridge.exchange import with_face

    body = body or Body.from_smplx_npz(DEFAULT_DIRECTORY / OPEN_FILE)
    if not isinstance(body, Body):
        raise InputError("The licensed SMPL-X body is not written to files; choose an anchor with a body of its own.")
    if motion.expression_space != body.expression_space:
        _say("the face numbers mean nothing to this body: only its jaw and eyes move")
        motion = with_face(motion, body.expression_space)
    write_glb(body, motion, path)


def read_motion_for(path: str, expression_space: str, speech: Speech | None, seed: int = 0) -> Motion:
    """A motion file made fit for a presenter: on the spot, and with face numbers that the body understands.

    No face or one of another kind is made anew from the speech where there is one; otherwise only jaw and eyes move.
    """
    from talkshow_bridge.exchange import IN_A_ROOM, face_front, load_motion, with_face
    from talkshow_bridge.generator import MotionGenerator

    motion, name = load_motion(path), shown(Path(path))
    if motion.meta.get("placed") == IN_A_ROOM:
        motion = face_front(motion)
    known = motion.expression_space == expression_space
    if known and (speech is None or motion.expression.any() or motion.jaw.any()):
        return motion
    generator = MotionGenerator.from_pretrained()
    if speech is None or generator.expression_space != expression_space:
        _say(f"the face numbers of '{name}' mean nothing to this body: only jaw and eyes move")
        return with_face(motion, expression_space)
    reason = "has no moving face" if known else "has face numbers that mean nothing to this body"
    _say(f"'{name}' {reason}: the face follows the speech instead")
    return with_face(motion, expression_space, generator.generate(speech, seed, fps=min(motion.fps, 240)))


def _say(note: str) -> None:
    print(f"avatar_app: {note}.", file=sys.stderr)


def describe(motion: Motion) -> list[str]:
    """A few lines of facts about a motion."""
    from talkshow_bridge.evaluation.gestures import measure

    figures, meta = measure(motion[: int(MEASURED * motion.fps)]), motion.meta
    origin = [f"{name.replace('_', ' ')} {meta[name]}" for name in ("seed", "style", "energy") if name in meta]
    face = "moving" if motion.expression.any() else "neutral"
    lines = [
        f"{len(motion)} frames at {motion.fps:g} per second, {motion.duration:.2f} s",
        f"made by {', '.join([str(meta.get('generator', 'an unknown program')), *origin])}",
        f"face in {motion.expression_space}, {face}; {len(motion.betas)} shape numbers",
    ]
    if len(motion) > 1:
        lines.append(
            f"wrists {figures.wrist_mean:.3f} m/s on average, {figures.wrist_p95:.3f} at the 95th percentile, "
            f"resting {figures.still:.0%} of the time; head {figures.head_speed:.3f} m/s"
        )
    lines += [f"remark: {str(note)[:200]}" for note in meta.get("notes", [])[:9] if isinstance(meta.get("notes"), list)]
    return lines + [f"warning: {warning}" for warning in _warnings(motion, figures)]


def _warnings(motion: Motion, figures) -> list[str]:
    import numpy as np

    shares = ((figures.limits, "a joint is out of its range"), (figures.torso, "an arm is in the torso"))
    shares += ((figures.hands, "arms or hands are in each other"),)
    found = [f"{text} in {share:.1%} of the frames" for share, text in shares if share > 0]
    if figures.largest_step > BIG_STEP:
        found.append(f"a wrist jumps by {100 * figures.largest_step:.1f} cm within 1/30 s")
    if motion.expression_space == "arkit52" and not -0.01 <= motion.expression.min() <= motion.expression.max() <= 1.01:
        found.append("face units go beyond 0..1")
    if np.abs(motion.transl).max() > 0.5:
        found.append("the body is more than 0.5 m away from its place (`render` brings it back for AMASS and BEAT2)")
    return found
