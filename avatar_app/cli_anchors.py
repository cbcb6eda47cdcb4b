"""The `anchors` sub-commands that make presenters: `train`, `pretrain`; and `bench anchors`."""

from __future__ import annotations

import argparse
from pathlib import Path

from avatar_app.cli_paper import add_paper_options, pretrain_paper, train_paper_anchor
from avatar_app.cli_trust import add_consent_options, consent_from
from talkshow_bridge.errors import InputError

BENCH_TABLES = ("presets", "steps", "face", "body")


def add_training_commands(actions: argparse._SubParsersAction) -> None:
    action = actions.add_parser(
        "train",
        help="make a presenter from footage and its tracked motion",
        description="Checks the data set, trains, measures and packs; the same command goes on after a stop. "
        "Watch WORK/body/sheet.png. docs/training.md describes data sets.",
    )
    action.add_argument("dataset", type=Path, help="footage folder")
    action.add_argument("--out", required=True, help="id of the new anchor, or the folder to write it to")
    action.add_argument("--name", help="display name, default: the id")
    action.add_argument("--description", default="", help="a sentence about the presenter")
    action.add_argument("--licence", default="all rights reserved", help="of the anchor")
    action.add_argument("--replace", action="store_true", help="replace an anchor of the same id when done")
    action.add_argument("--size", type=int, metavar="PIXELS", help="of the picture, default 512 or what there is")
    action.add_argument("--face", type=int, choices=(0, 256, 512), default=256, help="face networks; 0 = none")
    action.add_argument("--sample", help="speech for the sample clip, default: one of samples/")
    _add_common_options(action)
    action.add_argument("--distil-minutes", type=float, default=0.0, help="few-step distillation at the end")
    action.add_argument("--guidance", type=float, default=1.0, help="that distillation folds in")
    add_paper_options(action.add_argument_group("networks of Stable Diffusion's size"))
    add_consent_options(action.add_argument_group("consent"))
    action.set_defaults(run=_train)

    action = actions.add_parser(
        "pretrain",
        help="teach networks on several people, for `train --from`",
        description="UNet, encoder and autoencoder are shared, the texture and the set are each person's own.",
    )
    action.add_argument("dataset", type=Path, nargs="+", help="footage folders, one a person")
    action.add_argument("--out", required=True, type=Path, help="folder for the networks")
    action.add_argument("--face", type=int, choices=(0, 256, 512), default=256, help="face networks; 0 = none")
    _add_common_options(action)
    add_paper_options(action.add_argument_group("networks of Stable Diffusion's size"))
    add_consent_options(action.add_argument_group("consent of everybody shown"))
    action.set_defaults(run=_pretrain)


def _add_common_options(action: argparse.ArgumentParser) -> None:
    action.add_argument("--minutes", type=float, default=60.0, help="training time of each network, default 60")
    action.add_argument(
        "--from", dest="start", type=Path, metavar="START", help="anchor, or folder of a pre-training, to start from"
    )
    action.add_argument("--work", type=Path, help="folder for everything on the way, default work/NAME")
    action.add_argument("--device", help="torch device, default: the GPU, in mixed precision, when there is one")
    action.add_argument("--threads", type=int, help="of each training, default: the cores shared out")
    action.add_argument("--seed", type=int, default=0)


def add_bench_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--table", choices=(*BENCH_TABLES, "all"), default="presets", help="default: presets")
    group.add_argument("--faces", type=Path, nargs="*", default=[], help="other trained face networks to compare")
    group.add_argument("--bodies", type=Path, nargs="*", default=[], help="other trained body networks to compare")
    group.add_argument("--features", type=Path, help="transformers vision model for FID and identity, or FVD")
    group.add_argument("--save", type=Path, metavar="FOLDER", help="videos and a sheet of truth and presets")


def bench_anchors(options: argparse.Namespace) -> None:
    """Markdown tables of one anchor, or of all, on a held-out clip."""
    from avatar_app.anchors import list_anchors, load_anchor
    from avatar_app.evaluation.anchor import Bench, as_table, bench_anchor
    from avatar_app.evaluation.truth import NUMBERS, held_out_truths

    judge = None
    if options.features:
        from avatar_app.evaluation.features import Judge

        judge = Judge(options.features)
    footage = Path(options.footage) if options.footage else None
    chosen = [load_anchor(options.name)] if options.name else [load_anchor(a.folder) for a in list_anchors()]
    if not options.name:
        chosen = [anchor for anchor in chosen if (anchor.folder / NUMBERS).exists()]
        if not chosen:
            raise InputError("No installed anchor brings a held-out clip; please name an anchor and a footage folder.")
    tables = BENCH_TABLES if options.table == "all" else (options.table,)
    for anchor in chosen:
        if anchor.manifest.kind != "native":
            raise InputError(f"Anchor '{anchor.id}' is not of our own kind, which alone is measured like this.")
        for held_out, truth in held_out_truths(anchor, footage).items():
            print(f"\n{anchor.id}: {len(truth.pictures)} pictures that training never saw ({held_out})\n")
            save = options.save and options.save / f"{anchor.id}-{held_out}"
            for name, rows in bench_anchor(
                Bench(anchor, truth, judge), tables, options.faces, options.bodies, save
            ).items():
                print(as_table(rows, name) + "\n", flush=True)


def _train(options: argparse.Namespace) -> None:
    from avatar_app.anchors import MANIFEST, anchor_folders
    from avatar_app.pipeline import checked_device
    from avatar_app.progress_line import ProgressLine
    from avatar_app.training.build import Order, alone_in, anchor_facts, build_anchor

    out = anchor_folders()[0] / options.out if Path(options.out).name == options.out else Path(options.out).resolve()
    if (out / MANIFEST).exists() and not options.replace:
        raise InputError(f"An anchor '{out.name}' exists already; remove it first or add --replace.")
    if out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).exists():
        raise InputError(f"'{out}' holds other files; please name a new folder for the anchor.")
    _check_id(out.name)
    _check_numbers(options)
    options.device = checked_device(options.device)
    consent = _consent(options)
    facts = anchor_facts(options.dataset, consent, options.name or out.name, options.licence, options.description)
    options.work = (options.work or Path("work") / out.name).resolve()
    with alone_in(options.work):
        if options.kind == "stable-diffusion":
            print(train_paper_anchor(options, out, facts))
            return
        order = Order(
            dataset=options.dataset.resolve(),
            out=out,
            facts=facts,
            distil_minutes=options.distil_minutes,
            guidance=options.guidance,
            size=options.size,
            sample=Path(options.sample) if options.sample else _sample(),
            **_common(options),
        )
        anchor = build_anchor(order, ProgressLine())
    size = sum(record.size for record in anchor.manifest.files.values()) / 1e6
    print(f"{anchor.folder}  ({size:.1f} MB)")


def _pretrain(options: argparse.Namespace) -> None:
    from avatar_app.pipeline import checked_device
    from avatar_app.progress_line import ProgressLine
    from avatar_app.training.build import Order, alone_in, pretrain

    _check_numbers(options)
    options.device = checked_device(options.device)
    consent = _consent(options)
    options.out = options.out.resolve()
    options.work = (options.work or Path("work") / f"{options.out.name}-footage").resolve()
    with alone_in(options.work):
        if options.kind == "stable-diffusion":
            print(pretrain_paper(options, consent))
            return
        people = [dataset.resolve() for dataset in options.dataset]
        facts = {"consent": consent.model_dump(mode="json")}
        order = Order(dataset=people[0], out=options.out, facts=facts, **_common(options))
        pretrain(people, order, ProgressLine())
    print(f"{options.out}: to be used with `anchors train DATASET --from {options.out}`")


def _common(options: argparse.Namespace) -> dict:
    names = ("minutes", "start", "face", "device", "threads", "seed", "work")
    return {name: getattr(options, name) for name in names}


def _start(name: Path) -> Path:
    """The folder of an anchor by its id, or that of a pre-training. Raises InputError."""
    from avatar_app.anchors import load_anchor

    return name.resolve() if name.is_dir() else load_anchor(str(name)).folder


def _check_numbers(options: argparse.Namespace) -> None:
    if not options.minutes > 0 or getattr(options, "distil_minutes", 0) < 0:
        raise InputError("Training takes more than 0 minutes.")
    if options.start is not None:
        options.start = _start(options.start)


def _check_id(name: str) -> None:
    from pydantic import TypeAdapter, ValidationError

    from avatar_app.anchors import Id

    try:
        TypeAdapter(Id).validate_python(name)
    except ValidationError:
        raise InputError(f"'{name}' is no id for an anchor: lower-case letters, digits, - and _, at most 64.") from None


def _consent(options: argparse.Namespace):
    consent = consent_from(options)
    if consent is None:
        raise InputError("Please say who is shown: --consent synthetic, self or permission (see --help).")
    return consent


def _sample() -> Path:
    from avatar_app.bench import sample_files

    return sample_files()[0]
