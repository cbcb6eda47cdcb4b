"""Film a presenter: frames, plate and anchor rig for training.  Resumable: frames that exist are kept.

    python -m studio.script performed 300 7 work/performed.npz
    python -m studio.footage man OUT work/performed.npz --set train --every 41
    python -m studio.footage man OUT work/scripted.npz --set face --face 256 --every 12

Writes OUT/body.safetensors (condition mesh), OUT/camera.json, OUT/plate.png, OUT/stage.exr (the set) and OUT/<set>/:
motion.npz, index.json, frames 000123.png (the full picture) or, with --face, square head crops with their camera in
index.json.  Frames in which a hand would dip into the desk are left out.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from avatar_app.mesh.body import Body, Posed
from avatar_app.mesh.camera import Camera
from studio.people import film_body, person_of, presenter_of, shared_rig
from studio.script import unit_array
from talkshow_bridge.motion import Motion

HANDS = [20, 21, *range(25, 55)]
ABOVE_DESK = 0.018  # metres that finger joints keep from the desk


def head_box(points: np.ndarray, margin: float = 0.30) -> tuple[float, float, float]:
    """Square around projected head points (n, 2) -> left, top, side in pixels."""
    low, high = points.min(0), points.max(0)
    side = (high - low).max() * (1 + margin)
    left, top = (low + high - side) / 2
    return float(left), float(top), float(side)


def posed_frame(scene, body: Body, motion: Motion, number: int) -> Posed:
    """One frame as it is filmed: the presenter's resting face is added to the motion's."""
    frame = motion[number : number + 1]
    return body.pose(replace(frame, expression=frame.expression + unit_array(scene.presenter.resting, 1)))


def touches_desk(scene, posed: Posed) -> bool:
    return bool(scene.desk) and posed.joints[0, HANDS, 1].min() < scene.desk_height + ABOVE_DESK


def film(scene, body: Body, motion: Motion, frames: list[int], folder: Path, face: int | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    motion.save(folder / "motion.npz")
    listed = folder / "index.json"
    index = json.loads(listed.read_text()) if listed.exists() else {}
    index = {name: entry for name, entry in index.items() if (folder / name).exists()}  # of earlier runs
    for number in frames:
        posed = posed_frame(scene, body, motion, number)
        if not face and touches_desk(scene, posed):
            continue
        view, path = scene.camera, folder / f"{number:06d}.png"
        if face:
            rng = np.random.default_rng(number)
            left, top, side = head_box(scene.camera.project(posed.vertices[0][scene.head])[:, :2])
            shift = rng.uniform(-0.06, 0.06, 2) * side
            view = scene.camera.crop(left + shift[0], top + shift[1], side * rng.uniform(0.95, 1.12), face)
        index[path.name] = {"frame": number, "camera": view.to_dict()}
        if not path.exists():
            shoot(scene, view, posed, path, seed=number)
            print(f"{folder.name} {path.name}", flush=True)
        listed.write_text(json.dumps(index))


def shoot(scene, view: Camera, posed: Posed, path: Path, seed: int = 0) -> None:
    """Render one picture; it appears under its name only when it is complete."""
    scene.set_camera(view)
    scene.set_frame(posed.vertices[0].astype(float), posed.transforms[0].astype(float))
    unfinished = path.with_name(f"unfinished-{path.name}")
    scene.render(str(unfinished), seed=seed)
    unfinished.replace(path)


def open_studio(name: str, out: Path, size: int, samples: int):
    """The scene of a presenter and the body that poses it; the set's backdrop is kept in `out`."""
    from studio.presenter import PresenterScene, RenderQuality, presenter_camera

    out.mkdir(parents=True, exist_ok=True)
    presenter = presenter_of(name)
    body = film_body(person_of(name))
    camera = presenter_camera(body, presenter, size)
    return PresenterScene(presenter, body, camera, out / "stage.exr", RenderQuality(samples=samples)), body


def rig_of(name: str, scene, motion: Motion) -> Body:
    """The reduced body that the anchor ships; `motion` tells what of it the desk hides."""
    from studio.anchor_rig import anchor_body

    body = anchor_body(shared_rig(), person_of(name), scene.outfit, scene.scalp, scene.strands, scene.presenter.resting)
    return above_desk(body, scene.camera, scene.desk_edge, motion) if scene.desk else body


def above_desk(body: Body, camera: Camera, edge: np.ndarray, motion: Motion) -> Body:
    """Clothes cut off where the desk mostly hides them; `edge` (3,) is a point of its front edge."""
    line, chosen = camera.project(edge[None])[0, 1], np.linspace(0, len(motion) - 1, 40).astype(int)
    seen = [camera.project(body.pose(motion[n : n + 1]).vertices[0]) for n in chosen]
    row, depth = np.median(seen, 0)[:, 1:].T
    too_low = np.maximum(row - line, 0)
    vertices = body.vertices + np.outer(too_low * depth / camera.focal, (0, 1, 0)).astype(np.float32)
    kept = (too_low[body.faces] == 0).any(1)
    faces, part, face_uv = body.faces[kept], body.part[kept], body.face_uv[kept]
    return replace(body, vertices=vertices, faces=faces, part=part, face_uv=face_uv)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presenter", help="man, woman, or random:SEED for somebody else")
    parser.add_argument("out", type=Path)
    parser.add_argument("--set", default="train")
    parser.add_argument("motion", type=Path, help="Motion file, for example of studio.script")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--face", type=int, help="film head crops of this many pixels instead")
    parser.add_argument("--every", type=int, default=7, help="use every n-th frame of the motion")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--samples", type=int, default=8)
    arguments = parser.parse_args()

    out, motion = arguments.out, Motion.load(arguments.motion)
    scene, body = open_studio(arguments.presenter, out, arguments.size, arguments.samples)
    if not (out / "body.safetensors").exists():
        rig_of(arguments.presenter, scene, motion).save(out / "body.safetensors")
        (out / "camera.json").write_text(json.dumps(scene.camera.to_dict()))
    if not (out / "plate.png").exists():
        scene.set_camera(scene.camera)
        scene.set_person_visible(False)
        scene.render(str(out / "plate.png"))
        scene.set_person_visible(True)
    frames = list(range(arguments.first, len(motion), arguments.every))[: arguments.limit]
    film(scene, body, motion, frames, out / arguments.set, arguments.face)


if __name__ == "__main__":
    main()
