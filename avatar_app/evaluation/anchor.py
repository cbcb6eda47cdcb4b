"""Score an anchor against pictures of a motion that its training never saw: `launch.py bench anchors [NAME] [FOOTAGE]`.

Tables: what each preset reaches; more steps, guidance and overlap; the face pass and its sizes; other body networks.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from avatar_app.anchors import Anchor
from avatar_app.diffusion.face import FaceEnhancer, head_squares
from avatar_app.diffusion.generator import FrameGenerator
from avatar_app.diffusion.windows import native_windows
from avatar_app.evaluation.landmarks import landmark_distance
from avatar_app.evaluation.metrics import motion_error, psnr, seam, shimmer, ssim
from avatar_app.evaluation.truth import QUALITIES, Truth, encode
from avatar_app.trust.consent import require_consent

HANDS = ([20, *range(25, 40)], [21, *range(40, 55)])  # SMPL-X joints: wrist and fingers, left and right
HAND_PIXELS = 72  # of a 512 px picture
STEPS, GUIDANCE, OVERLAPS = (20, 4, 2, 1), 1.5, (4, 0)  # of the table of steps
COST = "CPU s per frame"  # with all that a few single frames have to load first
MOVEMENT = ("movement error", "flicker", "seams")  # what only consecutive pictures can tell
Row = dict[str, float]


@dataclass(frozen=True)
class Bench:
    """One anchor and its truth. features: see `evaluation.features`; None leaves those columns out."""

    anchor: Anchor
    truth: Truth
    features: object | None = None

    @property
    def vertices(self) -> np.ndarray:
        return self.anchor.vertices(self.truth.motion)

    def row(self, preset: str, **overrides: object) -> tuple[Row, np.ndarray]:
        """Numbers and frames of a preset with some of its settings replaced."""
        vertices = self.vertices
        began = time.process_time()
        made = make_frames(self.anchor, vertices, preset, overrides)
        spent = time.process_time() - began
        row = score(self.anchor, self.truth, made, self.anchor.preset(preset, overrides))
        if self.features is not None:
            heads = head_squares(self.anchor.body, vertices, self.anchor.camera)
            row |= self.features.compare(
                made, self.truth.pictures, crops(made, heads), crops(self.truth.pictures, heads)
            )
        return row | {COST: spent / len(made)}, made


def presets(bench: Bench, save: Path | None = None) -> dict[str, Row]:
    """A row for each preset; the folder `save` gets `save_pictures` of them all."""
    rows, pictures = {}, {"truth": bench.truth.pictures}
    for preset in bench.anchor.manifest.presets:
        rows[preset], pictures[preset] = bench.row(preset)
    if save:
        save_pictures(pictures, bench.truth.motion.fps, save)
    return rows


def save_pictures(pictures: dict[str, np.ndarray], fps: float, folder: Path) -> None:
    """A nearly lossless NAME.mp4 of each, uint8 RGB (N, h, w, 3), and sheet.png: four moments, all side by side."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, frames in pictures.items():
        encode(frames, fps, QUALITIES[0], folder / f"{name}.mp4")
    moments = np.linspace(0, len(frames) - 1, 4).astype(int)
    rows = [np.concatenate([frames[n] for frames in pictures.values()], 1) for n in moments]
    Image.fromarray(np.concatenate(rows)).save(folder / "sheet.png")


def steps(bench: Bench) -> dict[str, Row]:
    """Steps x guidance x overlap, without the face pass. Guidance only where the networks were trained for it."""
    guidances = (1.0, GUIDANCE) if bench.anchor.manifest.guided else (1.0,)
    rows = {}
    for count in STEPS:
        for guidance in guidances:
            for overlap in OVERLAPS:
                name = f"{count} steps, " + (f"guidance {guidance:g}" if guidance > 1 else "no guidance")
                options = {"steps": count, "guidance": guidance, "overlap": overlap, "face": False}
                rows[f"{name}, overlap {overlap}"] = bench.row("draft", **options)[0]
    return rows


def faces(bench: Bench, others: Sequence[Path] = ()) -> dict[str, Row]:
    """Without the face pass, with the anchor's own, and with face networks of other sizes (folders of training)."""
    rows = {"face off": bench.row("draft", face=False)[0]}
    if bench.anchor.has_face:
        rows[f"face {bench.anchor.manifest.face.resolution}"] = bench.row("draft", face=True)[0]
    for folder in others:
        size = json.loads((folder / "training.json").read_text())["size"]
        rows[f"face {size} ({shown(folder)})"] = _row_of(bench, "face", folder, face=True)
    return rows


def bodies(bench: Bench, others: Sequence[Path] = ()) -> dict[str, Row]:
    """The anchor's body networks and others that were trained on the same person, without the face pass."""
    rows = {"own": bench.row("draft", face=False)[0]}
    return rows | {shown(folder): _row_of(bench, "body", folder, face=False) for folder in others}


def shown(folder: Path) -> str:
    """Short, and yet another for another training."""
    return "/".join(folder.parts[-2:])


def _row_of(bench: Bench, part: str, folder: Path, **overrides: object) -> Row:
    with tempfile.TemporaryDirectory() as temporary:
        anchor = with_networks(bench.anchor, part, folder, Path(temporary))
        return replace(bench, anchor=anchor).row("draft", **overrides)[0]


def with_networks(anchor: Anchor, part: str, networks: Path, folder: Path) -> Anchor:
    """The anchor with other networks as its "body" or "face", put together of links in an empty folder."""
    from avatar_app.anchors import FaceSpec
    from avatar_app.diffusion.networks import NativeNetworks

    NativeNetworks.load(networks)  # refuses what does not fit
    for path in anchor.folder.iterdir():
        if path.name != part:
            (folder / path.name).symlink_to(path.resolve())
    (folder / part).symlink_to(networks.resolve())
    manifest = anchor.manifest
    if part == "face":
        size = json.loads((networks / "training.json").read_text())["size"]
        face = (manifest.face or FaceSpec()).model_copy(update={"resolution": size})
        manifest = manifest.model_copy(update={"face": face})
    return Anchor(folder, manifest)


def make_frames(anchor: Anchor, vertices: np.ndarray, preset: str, overrides: dict | None = None) -> np.ndarray:
    """Posed vertices (N, V, 3) -> uint8 frames, exactly as a render makes them."""
    options = anchor.preset(preset, overrides)
    frames = np.concatenate(list(FrameGenerator(anchor, options).frames(np.split(vertices, len(vertices)))))
    return FaceEnhancer(anchor, options).enhance(frames, vertices) if options.face and anchor.has_face else frames


def crops(frames: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Equal squares (x, y, side) of the frames, kept inside the picture."""
    side = min(int(boxes[:, 2].max()), *frames.shape[1:3])
    low = np.clip((boxes[:, :2] - side / 2).round(), 0, np.array(frames.shape[2:0:-1]) - side).astype(int)
    return np.stack([frame[y : y + side, x : x + side] for frame, (x, y) in zip(frames, low, strict=True)])


def hand_boxes(anchor: Anchor, vertices: np.ndarray) -> list[np.ndarray]:
    """(N, 3) squares around the left and the right hand."""
    size = HAND_PIXELS * anchor.manifest.width / 512
    boxes = []
    for joints in HANDS:
        hand = anchor.body.weights[:, joints].sum(1) > 0.5
        middle = anchor.camera.project(vertices[:, hand])[..., :2].mean(1)
        boxes.append(np.column_stack([middle, np.full(len(middle), size)]))
    return boxes


def score(anchor: Anchor, truth: Truth, made: np.ndarray, options) -> Row:
    """All numbers that need no trained judge. What compares neighbouring frames needs a truth without gaps."""
    pictures, vertices = truth.pictures, anchor.vertices(truth.motion)
    head, hands = head_squares(anchor.body, vertices, anchor.camera), hand_boxes(anchor, vertices)
    row = {
        "PSNR": psnr(made, pictures),
        "SSIM": ssim(made, pictures),
        "head PSNR": psnr(crops(made, head), crops(pictures, head)),
        "head SSIM": ssim(crops(made, head), crops(pictures, head)),
        "hands PSNR": float(np.mean([psnr(crops(made, box), crops(pictures, box)) for box in hands])),
    }
    for group, (distance, found) in landmark_distance(anchor.body, anchor.camera, vertices, pictures, made).items():
        row |= {f"{group} px": distance, f"{group} found": found}
    if truth.consecutive:
        starts = [window.start for window in native_windows(len(made), options.window, options.overlap)][1:]
        flicker = shimmer(made, pictures) - shimmer(pictures, pictures)
        row |= dict(zip(MOVEMENT, (motion_error(made, pictures), flicker, seam(made, pictures, starts)), strict=True))
    return row


def as_table(rows: dict[str, Row], title: str) -> str:
    """Markdown."""
    columns = list(next(iter(rows.values())))
    lines = [f"| {title} | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, row in rows.items():
        lines.append(f"| {name} | " + " | ".join(_shown(row[column]) for column in columns) + " |")
    return "\n".join(lines)


def _shown(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.3f}" if abs(value) < 2 else f"{value:.2f}"


def bench_anchor(
    bench: Bench,
    tables: Sequence[str],
    other_faces: Sequence[Path] = (),
    other_bodies: Sequence[Path] = (),
    save: Path | None = None,
) -> dict[str, dict[str, Row]]:
    """Table -> its rows. Raises InputError when the anchor's consent does not permit rendering."""
    require_consent(bench.anchor, "render")
    make: dict[str, Callable[[], dict[str, Row]]] = {
        "presets": lambda: presets(bench, save),
        "steps": lambda: steps(bench),
        "face": lambda: faces(bench, other_faces),
        "body": lambda: bodies(bench, other_bodies),
    }
    return {name: make[name]() for name in tables}
