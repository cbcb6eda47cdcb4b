"""`anchors train` and `anchors pretrain` with `--kind stable-diffusion`: their options, and what they start."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from talkshow_bridge.errors import InputError

if TYPE_CHECKING:
    from avatar_app.trust.consent import Consent


def add_paper_options(group: argparse._ActionsContainer) -> None:
    """`--kind` and what only networks of Stable Diffusion's size need."""
    group.add_argument("--kind", choices=("native", "stable-diffusion"), default="native", help="default: native")
    group.add_argument("--base", type=Path, metavar="FOLDER", help="your Stable Diffusion 1.5, in diffusers folders")
    group.add_argument("--inpainting-base", type=Path, metavar="FOLDER", help="its inpainting model, for the face")
    group.add_argument("--clip", type=Path, metavar="FOLDER", help="clip-vit-base-patch32, default: beside --base")
    group.add_argument("--steps", type=int, help="updates of each part, default: 60 times all pictures")
    group.add_argument("--batch", type=int, default=4, help="pictures an update, default %(default)s")
    group.add_argument("--rate", type=float, default=1e-5, help="learning rate, default %(default)s")
    group.add_argument("--lora", type=int, default=0, metavar="RANK", help="the UNet learns thin additions only")
    group.add_argument("--precision", choices=("no", "bf16", "fp16"), help="default: bf16 on a GPU")
    group.add_argument(
        "--condition",
        choices=("mesh-picture", "normal-picture"),
        default="mesh-picture",
        help="what the networks see: the mesh as published weights know it (default, needs OpenGL), or its normals",
    )


def train_paper_anchor(options: argparse.Namespace, out: Path, facts: dict) -> Path:
    """The second stage, one person, and the finished package -> its folder. facts: see `package_paper`."""
    from avatar_app.training.build import checked_footage
    from avatar_app.training.paper_package import package_paper
    from avatar_app.trust.consent import Consent

    consent, work = Consent.model_validate(facts["consent"]), options.work
    _check(options)
    footage = checked_footage(options.dataset.resolve(), work, options.size, options.face)
    trained = _train(options, [footage], work / "stable-diffusion", consent)
    return package_paper(footage, trained, _base(options), out, facts).folder


def pretrain_paper(options: argparse.Namespace, consent: Consent) -> Path:
    """The first stage, several people -> the folder that `--from` takes."""
    from avatar_app.training.build import checked_footage

    _check(options)
    folders = [path.resolve() for path in options.dataset]
    footage = [checked_footage(path, options.work / path.name, None, options.face) for path in folders]
    _train(options, footage, options.out, consent)
    return options.out


def _train(options: argparse.Namespace, footage: list[Path], run: Path, consent: Consent) -> dict:
    from avatar_app.training.paper import Recipe, train_paper

    logging.getLogger("avatar_app.training").setLevel(logging.INFO)  # what a run takes is said before it starts
    common = {name: getattr(options, name) for name in ("steps", "batch", "rate", "lora", "precision", "condition")}
    recipes = [Recipe("body", getattr(options, "size", None), seed=options.seed, **common)]
    if options.face:
        recipes.append(Recipe("head", options.face, seed=options.seed, **common))
    return train_paper(footage, run, _base(options), consent, recipes, options.start, options.device)


def _check(options: argparse.Namespace) -> None:
    if options.base is None:
        raise InputError("Training at Stable Diffusion's size needs --base, your folder of Stable Diffusion 1.5.")
    wrong = [
        name for name in ("steps", "batch", "rate") if (value := getattr(options, name)) is not None and value <= 0
    ]
    if wrong or options.lora < 0:
        raise InputError(f"--{(wrong or ['lora'])[0]} must be more than 0.")


def _base(options: argparse.Namespace):
    from avatar_app.training.paper import Base

    return Base(options.base, options.inpainting_base, options.clip)
