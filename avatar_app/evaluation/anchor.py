"""Score an anchor against rendered truth that it has never seen.

    python -m avatar_app.evaluation.anchor ANCHOR FOOTAGE [--set test] [--sheet sheet.png]

Prints one row per preset: PSNR and SSIM of the whole picture, of the head and of the hands, movement error, shimmer.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from avatar_app.anchors import Anchor, load_anchor
from avatar_app.diffusion.face import FaceEnhancer, head_squares
from avatar_app.diffusion.generator import FrameGenerator
from avatar_app.evaluation.metrics import motion_error, psnr, shimmer, ssim
from avatar_app.mesh.conditions import render_conditions
from avatar_app.training.dataset import Footage

HANDS = ([20, *range(25, 40)], [21, *range(40, 55)])  # SMPL-X joints: wrist and fingers, left and right
HAND_PIXELS = 72  # of a 512 px picture


def make_frames(anchor: Anchor, vertices: np.ndarray, preset: str, overrides: dict | None = None) -> np.ndarray:
    """Posed vertices (N, V, 3) -> uint8 frames, exactly as a render makes them."""
    options = anchor.preset(preset, overrides)
    conditions = (render_conditions(anchor.body, vertices[[n]], anchor.camera) for n in range(len(vertices)))
    frames = np.concatenate(list(FrameGenerator(anchor, options).frames(conditions)))
    return FaceEnhancer(anchor, options).enhance(frames, vertices) if options.face and anchor.has_face else frames


def crops(frames: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Equal squares (x, y, side) of the frames, kept inside the picture."""
    side = int(boxes[:, 2].max())
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


def score(anchor: Anchor, footage: Footage, made: np.ndarray) -> dict[str, float]:
    truth, vertices = footage.pictures, footage.vertices
    head = head_squares(anchor.body, vertices, anchor.camera)
    hands = hand_boxes(anchor, vertices)
    return {
        "PSNR": psnr(made, truth),
        "SSIM": ssim(made, truth),
        "head PSNR": psnr(crops(made, head), crops(truth, head)),
        "head SSIM": ssim(crops(made, head), crops(truth, head)),
        "hands PSNR": float(np.mean([psnr(crops(made, box), crops(truth, box)) for box in hands])),
        "movement error": motion_error(made, truth),
        "shimmer": shimmer(made, truth),
        "shimmer of the truth": shimmer(truth, truth),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("anchor")
    parser.add_argument("footage", type=Path)
    parser.add_argument("--set", default="test")
    parser.add_argument("--sheet", type=Path, help="save truth, draft and best side by side")
    arguments = parser.parse_args()
    anchor, footage = load_anchor(arguments.anchor), Footage(arguments.footage, arguments.set)
    results, pictures = {}, {"truth": footage.pictures}
    for preset in anchor.manifest.presets:
        pictures[preset] = make_frames(anchor, footage.vertices, preset)
        results[preset] = score(anchor, footage, pictures[preset])
    print("| preset | " + " | ".join(results["draft"]) + " |")
    print("|---" * (len(results["draft"]) + 1) + "|")
    for preset, row in results.items():
        print(
            f"| {preset} | "
            + " | ".join(f"{value:.3f}" if value < 2 else f"{value:.2f}" for value in row.values())
            + " |"
        )
    if arguments.sheet:
        chosen = np.linspace(0, len(footage) - 1, 4).astype(int)
        rows = [np.concatenate([pictures[k][n] for k in ("truth", "draft", "best")], 1) for n in chosen]
        Image.fromarray(np.concatenate(rows)).save(arguments.sheet)


if __name__ == "__main__":
    main()
