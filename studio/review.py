"""Stills to judge a presenter by: the whole picture, the face from three sides, mouth shapes, the hands.

python -m studio.review man work/review [--only whole,front] [--samples 16]
python -m studio.review man work/review --only whole,open,side --align
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from avatar_app.mesh.body import Body, Posed
from avatar_app.mesh.camera import Camera
from avatar_app.mesh.conditions import PART, render_conditions
from studio.footage import open_studio, posed_frame, rig_of, shoot
from studio.script import BODY_JOINTS, VISEMES, unit_array
from talkshow_bridge.motion import Motion

# joint -> axis-angle; forearms raised before the belly, as a presenter stands
READY = {
    "left_shoulder": (0.15, -0.25, -1.20),
    "left_elbow": (-0.45, -1.60, 0.2),
    "right_shoulder": (0.12, 0.20, 1.22),
    "right_elbow": (-0.40, 1.50, -0.2),
    "left_collar": (0, 0, -0.08),
    "right_collar": (0, 0, 0.08),
}
OPEN_ARMS = READY | {
    "left_shoulder": (0.25, -0.45, -1.05),
    "left_elbow": (-0.1, -1.9, 0.2),
    "right_shoulder": (0.05, 0.1, 1.1),
    "right_elbow": (-0.2, 1.2, -0.2),
}
# name -> (joints, face units, jaw, gaze (pitch, yaw), which crop)
STILLS: dict[str, tuple[dict, dict, float, tuple[float, float], str]] = {
    "whole": (READY, {"mouthSmile_": 0.25}, 0.0, (0, 0), "whole"),
    "open": (OPEN_ARMS | {"head": (0.05, 0.2, 0.05)}, VISEMES["eh"][1], 0.12, (0, -0.1), "whole"),
    "front": (READY, {"mouthSmile_": 0.15}, 0.0, (0, 0), "face"),
    "side": (READY | {"neck": (0, 0.25, 0), "head": (0.03, 0.4, 0.03)}, {"mouthSmile_": 0.2}, 0.0, (0, -0.3), "face"),
    "ee": (READY | {"head": (0, -0.15, 0)}, VISEMES["ee"][1], 0.07, (0, 0.1), "face"),
    "aa": (READY | {"head": (-0.05, 0.1, 0)}, VISEMES["aa"][1], 0.22, (0, -0.1), "face"),
    "blink": (READY, {"eyeBlink_": 1.0, "mouthPucker": 0.6}, 0.02, (0, 0), "face"),
    "hands": (OPEN_ARMS, {}, 0.0, (0, 0), "hands"),
    "collar": (READY, {}, 0.0, (0, 0), "collar"),
}


def still(joints: dict, units: dict, jaw: float, gaze: tuple[float, float]) -> Motion:
    """One frame of motion."""
    body, zero = np.zeros((1, 21, 3), np.float32), np.zeros((1, 3), np.float32)
    for name, value in joints.items():
        body[0, BODY_JOINTS.index(name)] = value
    eyes, hands = np.array([[*gaze, 0]], np.float32), np.zeros((1, 15, 3), np.float32)
    mouth = np.array([[jaw, 0, 0]], np.float32)
    return Motion(30.0, mouth, eyes, eyes, zero, body, hands, hands, unit_array(units, 1), zero)


def view(what: str, camera: Camera, points: np.ndarray, joints: np.ndarray, size: int, head: np.ndarray) -> Camera:
    if what == "whole":
        return camera.scaled(size / camera.width)
    if what == "face":
        box = camera.project(points[head])[:, :2]
        side = np.ptp(box, axis=0).max() * 1.25
        return camera.crop(*(box.min(0) + box.max(0) - side) / 2, side, size)
    middle = joints[[37, 52]].mean(0) if what == "hands" else joints[12] + (0, -0.03, 0)
    side = (0.5 if what == "hands" else 0.34) * camera.focal / camera.position[2]
    return camera.crop(*(camera.project(middle)[:2] - side / 2), side, size)


def silhouettes(scene, rig: Body, motion: Motion, posed: Posed, folder: Path, name: str) -> float:
    """Intersection over union of the rendered and the rasterised silhouette."""
    scene.set_frame(posed.vertices[0].astype(float), posed.transforms[0].astype(float))
    view = scene.camera
    scene.set_camera(view)
    scene.render_silhouette(str(folder / f"{name}-silhouette.png"))
    filmed = np.asarray(Image.open(folder / f"{name}-silhouette.png"))[..., 3] > 127
    drawn = render_conditions(rig, rig.pose(motion).vertices, view)[0, ..., PART] > 0
    both = np.stack([filmed, drawn, filmed & drawn], -1).astype(np.uint8) * 255
    Image.fromarray(both).save(folder / f"{name}-silhouette.png")
    return float((filmed & drawn).sum() / (filmed | drawn).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presenter", help="man, woman, or random:SEED for somebody else")
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", default=",".join(STILLS))
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--samples", type=int, default=12)
    parser.add_argument("--align", action="store_true", help="compare silhouettes of the scene and of the anchor's rig")
    arguments = parser.parse_args()

    scene, body = open_studio(arguments.presenter, arguments.out, 512, arguments.samples)
    for name in arguments.only.split(","):
        joints, units, jaw, gaze, what = STILLS[name]
        motion = still(joints, units, jaw, gaze)
        posed = posed_frame(scene, body, motion, 0)
        if arguments.align:
            rig = rig_of(arguments.presenter, scene, motion)
            print(name, "IoU", round(silhouettes(scene, rig, motion, posed, arguments.out, name), 4), flush=True)
            continue
        framed = view(what, scene.camera, posed.vertices[0], posed.joints[0], arguments.size, scene.head)
        shoot(scene, framed, posed, arguments.out / f"{name}.png")


if __name__ == "__main__":
    main()
