"""Film a presenter: frames, plate and anchor rig for training.  Resumable: frames that exist are kept.

    python -m studio.script performed 300 7 work/performed.npz
    python -m studio.footage man OUT work/performed.npz --set train --every 41
    python -m studio.footage man OUT work/scripted.npz --set face --face 256 --every 12

Writes OUT/body.safetensors (condition mesh), OUT/camera.json, OUT/plate.png and OUT/<set>/: motion.npz, index.json,
frames 000123.png (the full picture) or, with --face, square head crops with their camera in index.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from avatar_app.mesh.body import Body
from avatar_app.mesh.camera import Camera
from studio.script import with_resting_face
from talkshow_bridge.motion import Motion


def presenter_camera(body: Body, size: int) -> Camera:
    """Head to belly, slightly from above, a portrait lens 2.3 m away."""
    height = float(body.joints[12][1]) - 0.122
    return Camera.look_at((0, height + 0.06, 2.3), (0, height, 0), size * 95 / 36, size, size)


def head_box(points: np.ndarray, margin: float = 0.30) -> tuple[float, float, float]:
    """Square around projected head points (n, 2) -> left, top, side in pixels."""
    low, high = points.min(0), points.max(0)
    side = (high - low).max() * (1 + margin)
    left, top = (low + high - side) / 2
    return float(left), float(top), float(side)


def film(scene, body: Body, motion: Motion, frames: list[int], folder: Path, camera: Camera, face: int | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    motion.save(folder / "motion.npz")
    index: dict[str, dict] = {}
    for number in frames:
        posed = body.pose(with_resting_face(motion[number : number + 1]))
        view, path = camera, folder / f"{number:06d}.png"
        if face:
            rng = np.random.default_rng(number)
            left, top, side = head_box(camera.project(posed.vertices[0][scene.head])[:, :2])
            shift = rng.uniform(-0.06, 0.06, 2) * side
            view = camera.crop(left + shift[0], top + shift[1], side * rng.uniform(0.95, 1.12), face)
        index[path.name] = {"frame": number, "camera": view.to_dict()}
        if not path.exists():
            scene.set_camera(view)
            scene.set_frame(posed.vertices[0].astype(float), posed.transforms[0].astype(float))
            scene.render(str(path), seed=number)
            print(f"{folder.name} {path.name}", flush=True)
        (folder / "index.json").write_text(json.dumps(index))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presenter")
    parser.add_argument("out", type=Path)
    parser.add_argument("--set", default="train")
    parser.add_argument("motion", type=Path, help="Motion file, for example of studio.script")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--face", type=int, help="film head crops of this many pixels instead")
    parser.add_argument("--every", type=int, default=7, help="use every n-th frame of the motion")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--samples", type=int, default=6)
    parser.add_argument("--prefilter", default="NONE", choices=("NONE", "FAST", "ACCURATE"))
    arguments = parser.parse_args()

    from studio.anchor_rig import anchor_body
    from studio.people import film_body, person_of, shared_rig
    from studio.presenter import PresenterScene, RenderQuality

    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    person = person_of(arguments.presenter)
    body = film_body(person)
    scene = PresenterScene(body, quality=RenderQuality(samples=arguments.samples))
    scene.scene.cycles.denoising_prefilter = arguments.prefilter
    camera = presenter_camera(body, arguments.size)
    if not (out / "body.safetensors").exists():
        anchor_body(shared_rig(), person, scene.outfit, scene.strands).save(out / "body.safetensors")
        (out / "camera.json").write_text(json.dumps(camera.to_dict()))
    if not (out / "plate.png").exists():
        scene.set_camera(camera)
        scene.set_person_visible(False)
        scene.render(str(out / "plate.png"))
        scene.set_person_visible(True)
    motion = Motion.load(arguments.motion)
    frames = list(range(arguments.first, len(motion), arguments.every))[: arguments.limit]
    film(scene, body, motion, frames, out / arguments.set, camera, arguments.face)


if __name__ == "__main__":
    main()
