"""From a data set to a finished anchor: check, prepare, train body and face, distil, measure, pack.

Every stage leaves its result in the work folder and is skipped when it is there, so a build that was stopped or killed
goes on where it was; networks in training lose two minutes at most.  The package appears when it is complete.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from avatar_app.anchors import MANIFEST, Anchor, load_anchor
from avatar_app.files import hold
from avatar_app.training.check import as_table, check_dataset
from avatar_app.training.delivery import VIDEOS
from avatar_app.training.package import package
from avatar_app.training.prepare import prepare
from avatar_app.trust.consent import Consent, require_consent
from avatar_app.trust.credentials import sha256
from talkshow_bridge.errors import InputError

log = logging.getLogger(__name__)
ROOT = Path(__file__).parents[2]
POLL = 2.0  # seconds between looks at how far the trainings are
Progress = Callable[[str, int, int], None]  # (stage, done, total), in seconds


@dataclass(frozen=True)
class Order:
    """What to build. out: folder of the package, its name is the anchor's id; work: everything on the way.

    facts: see `package`.  minutes: training time of each of the networks; distil_minutes: 0 leaves that stage out.
    start: anchor folder, or folder of `pretrain`, to begin from.  size, face: pixels, see `prepare`; face 0 = none.
    threads: of each training, None for an equal share of the cores.  sample: speech for the sample clip."""

    dataset: Path
    out: Path
    work: Path
    facts: dict
    minutes: float = 60.0
    distil_minutes: float = 0.0
    guidance: float = 1.0
    start: Path | None = None
    size: int | None = None
    face: int = 256
    device: str = "cpu"
    threads: int | None = None
    seed: int = 0
    sample: Path | None = None


def anchor_facts(dataset: Path, consent: Consent, name: str, licence: str, description: str = "") -> dict:
    """What `package` wants to know; the consent of a real person is bound to the training video.

    Raises InputError when the consent does not permit training, or was given for another video."""
    if video := training_video(dataset, consent):
        consent = consent.model_copy(update={"clip_sha256": consent.clip_sha256 or video})
    require_consent(consent, "train", clip_sha256=video)
    facts = {"name": name, "licence": licence, "description": description}
    return facts | {"consent": consent.model_dump(mode="json")}


def training_video(dataset: Path, consent: Consent) -> str | None:
    """sha256 of the video in a data set of a real person; None where it holds pictures."""
    if consent.kind == "synthetic":
        return None
    videos = [path for path in sorted((dataset / "train").glob("*")) if path.suffix.lower() in VIDEOS]
    return sha256(videos[0]) if videos else None


def check_consent(order: Order, dataset: Path | None = None) -> None:
    """Raises InputError unless those shown, in this very data set, and in the networks to start from agreed to it."""
    consent = Consent.model_validate(order.facts["consent"])
    require_consent(consent, "train", clip_sha256=dataset and training_video(dataset, consent))
    check_start(order.start)


def check_start(start: Path | None) -> None:
    """Raises InputError where training would begin from the networks of an anchor that must not be trained on."""
    if start is not None and (start / MANIFEST).exists():
        require_consent(load_anchor(start, verify=False), "train")


@contextmanager
def alone_in(work: Path) -> Iterator[None]:
    """Raises InputError while another training works in the folder."""
    work.mkdir(parents=True, exist_ok=True)
    file = work / "training.lock"
    lock = hold(file)
    if lock is None:
        raise InputError(f"Another training is at work in '{work}'.")
    try:
        with closing(lock):
            yield
    finally:
        if list(work.iterdir()) == [file]:  # refused before it began
            shutil.rmtree(work)


def build_anchor(order: Order, progress: Progress) -> Anchor:
    """Raises InputError for a data set that cannot be trained on, after saying everything that is wrong with it."""
    check_consent(order, order.dataset)
    footage = checked_footage(order.dataset, order.work, order.size, order.face)
    kinds = [kind for kind in (f"face{order.face}", "face") if order.face and (footage / kind).is_dir()][:1]
    kinds = ["body", *kinds]
    train_networks([footage], kinds, order, progress)
    trained = {kind: order.work / kind for kind in kinds}
    if order.distil_minutes:
        distil_networks(footage, kinds, order, progress)
        trained = {kind: order.work / f"{kind}-distilled" for kind in kinds}
    progress("measuring and packing", 0, 1)
    body, face = trained.pop("body"), next(iter(trained.values()), None)
    anchor = package(footage, body, face, order.out, order.facts, order.sample)
    progress("measuring and packing", 1, 1)
    return anchor


def checked_footage(dataset: Path, work: Path, size: int | None, face: int) -> Path:
    """Footage made of a data set that has no fatal fault; the table of all findings goes to stderr."""
    if (work / "footage").exists():
        return work / "footage"
    findings = check_dataset(dataset)
    if findings:
        print(as_table(findings), file=sys.stderr)
    if count := sum(finding.fatal for finding in findings):
        problems = f"the {count} problems" if count > 1 else "the problem"
        raise InputError(f"'{dataset.name}' cannot be trained on; please mend {problems} in the table above.")
    return prepare(dataset, work, size, face or 256)


def train_networks(folders: list[Path], kinds: list[str], order: Order, progress: Progress) -> None:
    """Body and face side by side, each in a process of its own."""
    commands = {}
    for kind in kinds:
        if finished(order.work / kind):
            continue
        command = ["avatar_app.training.train", *map(str, folders), kind, str(order.work / kind)]
        command += ["--minutes", str(order.minutes), *common_options(order, len(kinds))]
        if order.start:
            command += ["--from", str(networks_of(order.start, kind))]
        commands[kind] = command
    run_side_by_side(commands, order, {kind: order.work / kind for kind in kinds}, "training", progress)


def distil_networks(footage: Path, kinds: list[str], order: Order, progress: Progress) -> None:
    commands, folders = {}, {kind: order.work / f"{kind}-distilled" for kind in kinds}
    for kind, folder in folders.items():
        if finished(folder):
            continue
        command = ["avatar_app.training.distil", str(footage), kind, str(order.work / kind), str(folder)]
        command += ["--minutes", str(order.distil_minutes), "--guidance", str(order.guidance)]
        commands[kind] = command + common_options(order, len(kinds))
    run_side_by_side(commands, order, folders, "distilling", progress)


def common_options(order: Order, count: int) -> list[str]:
    threads = order.threads or max(1, (os.cpu_count() or 1) // count)
    return [
        "--device",
        order.device,
        "--seed",
        str(order.seed),
        "--threads",
        str(threads),
        "--parent",
        str(os.getpid()),
    ]


def networks_of(start: Path, kind: str) -> Path:
    """The folder of trained networks of a kind in an anchor or in the outcome of a pre-training. Raises InputError."""
    names = [kind, "face"] if kind.startswith("face") else [kind]
    for name in names:
        if (start / name / "unet").is_dir():
            return start / name
    raise InputError(f"'{start}' has no {kind} networks to start from.")


def finished(folder: Path) -> bool:
    path = folder / "training.json"
    return path.exists() and json.loads(path.read_text()).get("finished", False)


def run_side_by_side(
    commands: dict[str, list[str]], order: Order, folders: dict[str, Path], stage: str, progress: Progress
) -> None:
    """Modules as processes, together where there are cores for it, else one after the other."""
    together = order.device != "cpu" or (os.cpu_count() or 1) >= len(commands)
    groups = [list(commands)] if together else [[kind] for kind in commands]
    for group in groups:
        if group:
            name = f"{stage} {' and '.join(group)}"
            _run({kind: commands[kind] for kind in group}, {kind: folders[kind] for kind in group}, name, progress)


def _run(commands: dict[str, list[str]], folders: dict[str, Path], stage: str, progress: Progress) -> None:
    with ExitStack() as stack:
        processes = {}
        for kind, command in commands.items():
            folders[kind].mkdir(parents=True, exist_ok=True)
            output = stack.enter_context((folders[kind] / "log.txt").open("a"))
            environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
            processes[kind] = subprocess.Popen(
                [sys.executable, "-m", *command], cwd=ROOT, stdout=output, stderr=output, env=environment
            )
            stack.callback(_end, processes[kind])
        begun = _seconds(folders)[0]
        while None in (ends := [process.poll() for process in processes.values()]) and not any(ends):
            done, total = _seconds(folders)
            if total:
                progress(stage, round(done - begun), max(1, round(total - begun)))
            time.sleep(POLL)
        for kind, process in processes.items():
            if process.returncode:  # the others are ended, too
                last = (folders[kind] / "log.txt").read_text().strip().splitlines() or ["no output"]
                refusal = last[-1].split("InputError: ", 1)
                if len(refusal) == 2:
                    raise InputError(refusal[1])
                raise RuntimeError(f"{stage} failed, see {folders[kind] / 'log.txt'}: {last[-1]}")
        if not all(map(finished, folders.values())):  # somebody ended one; it has saved what it had
            raise KeyboardInterrupt


def _end(process: subprocess.Popen) -> None:
    """Let a training save what it has before it goes."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def _seconds(folders: dict[str, Path]) -> tuple[float, float]:
    """Trained so far and planned, in seconds, of the training that has the most to do; 0, 0 before it began."""
    states = []
    for folder in folders.values():
        path = folder / "progress.json"
        if path.exists():
            facts = json.loads(path.read_text())
            states.append((facts["seconds"], facts["of"]))
    return max(states, key=lambda state: state[1] - state[0], default=(0.0, 0.0))


def pretrain(datasets: list[Path], order: Order, progress: Progress) -> None:
    """Networks for `start`, taught on several people, in order.out: body/ and, when everybody has crops, face/.

    order.facts: the consent of everybody shown. Raises InputError as `build_anchor` does."""
    check_consent(order)
    names = [dataset.name for dataset in datasets]
    if len(set(names)) < len(names):
        raise InputError("The data sets need different folder names.")
    folders = [checked_footage(d, order.work / d.name, order.size, order.face) for d in datasets]
    sizes = {folder: json.loads((folder / "camera.json").read_text())["width"] for folder in folders}
    if len(set(sizes.values())) > 1:
        raise InputError("The people must be filmed at one size for a pre-training.")
    kinds = ["body"]
    for kind in (f"face{order.face}", "face"):
        if order.face and all((folder / kind).is_dir() for folder in folders):
            kinds.append(kind)
            break
    train_networks(folders, kinds, replace(order, work=order.out.resolve()), progress)
