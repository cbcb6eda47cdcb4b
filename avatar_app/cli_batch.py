"""`launch.py batch`: many renders from one list."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from avatar_app.settings import RenderSettings
from talkshow_bridge.errors import InputError


def add_batch_command(commands) -> None:
    batch = commands.add_parser(
        "batch",
        help="many videos from a CSV list",
        description="Columns: speech, and optionally anchor (several with | between), out, preset, seed, style, "
        "gesture_energy and every other setting. Videos that are there already, made of the same, are skipped. "
        "Exit code 0: all are there; 2: something in the list is wrong and nothing was made; 1: some failed.",
    )
    batch.add_argument("list", metavar="LIST.csv", type=Path)
    batch.add_argument("--dry-run", action="store_true", help="only tell what would be made, in what time and room")
    batch.add_argument(
        "--out-dir", metavar="DIR", type=Path, help="for videos without `out`, default: the list's folder"
    )
    batch.add_argument("--settings", metavar="FILE.json", help="what empty cells mean: settings or a video's side-car")
    batch.add_argument("--device", help="torch device, default: the GPU when there is one")
    batch.set_defaults(run=run_batch)


def run_batch(options: argparse.Namespace) -> int:
    from avatar_app import batch
    from avatar_app.pipeline import checked_device
    from avatar_app.progress_line import ProgressLine

    defaults = RenderSettings.load(options.settings) if options.settings else RenderSettings()
    device = checked_device(options.device)
    if options.out_dir and not options.out_dir.is_dir():
        raise InputError(f"The folder {str(options.out_dir)!r} does not exist.")
    items, faults = batch.read_list(options.list.absolute(), defaults, options.out_dir, device)
    if faults:
        print(batch.fault_table(faults), file=sys.stderr)
        raise InputError(f"{options.list.name} has {len(faults)} fault(s); nothing was made.")
    print(batch.plan_table(items), flush=True)
    if options.dry_run:
        return 0

    def progress(item: batch.Item):
        print(f"line {item.row}: {item.out.name}", file=sys.stderr)
        return ProgressLine()

    outcomes = batch.run(items, progress, device)
    print(batch.summary(outcomes))
    return int(any(outcome.state in (batch.FAILED, batch.STOPPED) for outcome in outcomes))
