"""Footage as the trainer wants it, made of what a user delivers: square, of the anchor's size, with a held-out clip.

What is in that form already is used where it lies.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import binary_dilation

from avatar_app.diffusion.face import head_squares
from avatar_app.mesh.body import Body
from avatar_app.mesh.camera import Camera
from avatar_app.training.dataset import nearest_known
from avatar_app.training.delivery import SETS, Take, read_body, read_camera, read_picture, read_take, read_tracking
from talkshow_bridge import rotations
from talkshow_bridge.exchange import IN_A_ROOM
from talkshow_bridge.motion import Motion

log = logging.getLogger(__name__)
MAX_PICTURES = 600  # of a set, kept in memory while training
HELD_OUT_SHARE, HELD_OUT_SECONDS = 0.1, 10.0  # of a delivery without a held-out clip: a tenth, at most ten seconds
CLIP = 24  # pictures of the sets "clip" (one after the other) and "test" (spread out)
MARGIN = 1.3  # side of a face crop in sides of the head
SHARP = 0.75  # pixels per pixel that a face crop needs to teach anything
SHIFT, ZOOM = 0.06, (0.95, 1.12)  # how face crops vary: share of the side, factor of the size
WHOLE = 64  # sizes are multiples of this many pixels


@dataclass(frozen=True)
class Delivery:
    """Everything of a data set that training uses, by set; see docs/training.md."""

    folder: Path
    camera: Camera
    body: object
    tracked: bool  # the motion stands anywhere in a room; the body is not the person's own rig
    takes: dict[str, Take]


def read_delivery(dataset: Path) -> Delivery:
    """Raises InputError for the first thing that is wrong; `check_dataset` lists all."""
    camera, tracking = read_camera(dataset / "camera.json"), read_tracking(dataset)
    takes = {name: read_take(dataset / name, camera, tracking) for name in SETS if (dataset / name).is_dir()}
    body = read_body(dataset, tracking, takes["train"].motion)
    return Delivery(dataset, camera, body, not (dataset / "body.safetensors").exists(), takes)


def prepare(dataset: Path, work: Path, size: int | None = None, face: int = 256) -> Path:
    """The footage folder to train on: `dataset` itself if nothing has to be made, else work/footage (made once).

    size: pixels along a side of the anchor's picture, default 512 or what the pictures have; face: of a face crop."""
    made = work / "footage"
    if made.exists():
        return made
    delivery = read_delivery(dataset)
    size = size or max(WHOLE, min(512, delivery.camera.width, delivery.camera.height) // WHOLE * WHOLE)
    square = Square.of(delivery, size)
    heads = head_sides(delivery) if not {"face", "face512"} & set(delivery.takes) else None
    cut_faces = heads is not None and np.median(heads) * MARGIN >= SHARP * face
    if heads is not None and not cut_faces:
        log.info(
            "heads of %.0f pixels are too small to cut a face of %d from: body networks only", np.median(heads), face
        )
    if is_footage(delivery, size) and not cut_faces:
        return dataset
    part = work / "footage.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    write_footage(delivery, square, part, face if cut_faces else None)
    part.rename(made)
    return made


def is_footage(delivery: Delivery, size: int) -> bool:
    folder, camera = delivery.folder, delivery.camera
    own = not delivery.tracked and (folder / "train" / "index.json").exists()
    return own and {"test", "clip"} & set(delivery.takes) and (camera.width, camera.height) == (size, size)


@dataclass(frozen=True)
class Square:
    """The square part of the delivered pictures that the anchor shows, and its size there."""

    left: int
    top: int
    side: int
    size: int

    @classmethod
    def of(cls, delivery: Delivery, size: int) -> Square:
        """As large as fits; across around the head's usual place, from the top in upright pictures."""
        camera, take = delivery.camera, delivery.takes["train"]
        side = min(camera.width, camera.height)
        left = 0
        if camera.width > side:
            chosen = spread(len(take.frames), 20)
            middle = np.median([head_square(delivery.body, take, number)[0] for number in chosen])
            left = int(np.clip(middle - side / 2, 0, camera.width - side))
        return cls(left, 0, side, size)

    def view(self, camera: Camera) -> Camera:
        return camera.crop(self.left, self.top, self.side, self.size)

    def cut(self, picture: np.ndarray) -> np.ndarray:
        return cut(picture, self.left, self.top, self.side, self.size)


def write_footage(delivery: Delivery, square: Square, folder: Path, face: int | None) -> None:
    """All sets, the camera, the body and the picture of the empty set."""
    place = Placing.of(delivery) if delivery.tracked else None
    camera = square.view(delivery.camera)
    (folder / "camera.json").write_text(json.dumps((place.camera(camera) if place else camera).to_dict()))
    if isinstance(delivery.body, Body):
        delivery.body.save(folder / "body.safetensors")
    else:
        betas = delivery.takes["train"].motion.betas if delivery.tracked else ()
        betas = read_tracking(delivery.folder).get("betas", [float(beta) for beta in betas])
        (folder / "body.json").write_text(json.dumps({"model": "smplx", "betas": list(betas)}))
    for name, (take, chosen) in split(delivery).items():
        write_set(folder / name, take, chosen, place, None if name in ("face", "face512") else square)
        if name == "train" and face:
            write_faces(folder / "face", delivery, take, chosen, place, face)
    write_plate(delivery, square, folder / "plate.png")


def split(delivery: Delivery) -> dict[str, tuple[Take, list[int]]]:
    """Set -> the take it comes from and the chosen positions in it."""
    takes = delivery.takes
    sets = {name: (take, spread(len(take.frames), MAX_PICTURES)) for name, take in takes.items()}
    if "test" in takes or "clip" in takes:
        return sets
    train = takes["train"]
    first, last = train.frames[0], train.frames[-1]
    held = min(HELD_OUT_SHARE * (last - first + 1), HELD_OUT_SECONDS * train.motion.fps)
    until = sum(frame <= last - held for frame in train.frames)
    rest = range(until, len(train.frames))
    sets["train"] = train, spread(until, MAX_PICTURES)
    sets["test"] = train, [until + n for n in spread(len(rest), CLIP)]
    sets["clip"] = train, list(rest)[:CLIP]
    return sets


def spread(count: int, limit: int) -> list[int]:
    """At most `limit` numbers below `count`, evenly."""
    return sorted({int(n) for n in np.linspace(0, count - 1, min(count, limit))})


def write_set(folder: Path, take: Take, chosen: Sequence[int], place: Placing | None, square: Square | None) -> None:
    folder.mkdir()
    (place.motion(take.motion) if place else take.motion).save(folder / "motion.npz")
    index = {}
    for number, picture in zip(chosen, take.pictures(chosen), strict=True):
        camera, frame = take.cameras[number], take.frames[number]
        if square is not None:
            camera, picture = square.view(camera), square.cut(picture)
        camera = place.camera(camera) if place else camera
        name = file_name(frame, number, index)
        index[name] = {"frame": frame, "camera": camera.to_dict()}
        Image.fromarray(picture).save(folder / name, compress_level=1)
    (folder / "index.json").write_text(json.dumps(index))


def file_name(frame: int, number: int, taken: dict) -> str:
    """Several pictures may show one frame."""
    name = f"{frame:06d}.png"
    return f"{frame:06d}-{number}.png" if name in taken else name


def write_faces(
    folder: Path, delivery: Delivery, take: Take, chosen: Sequence[int], place: Placing | None, size: int
) -> None:
    """Crops around the head from the delivered pictures, each a little elsewhere, all within the pictures."""
    folder.mkdir()
    (place.motion(take.motion) if place else take.motion).save(folder / "motion.npz")
    index = {}
    for number, picture in zip(chosen, take.pictures(chosen), strict=True):
        rng, frame = np.random.default_rng(take.frames[number]), take.frames[number]
        x, y, side = head_square(delivery.body, take, number)
        side *= MARGIN * rng.uniform(*ZOOM)
        left, top = np.array([x, y]) - side / 2 + rng.uniform(-SHIFT, SHIFT, 2) * side
        height, width = picture.shape[:2]
        if side > min(width, height):
            continue
        left, top = np.clip((left, top), 0, (width - side, height - side))
        camera = take.cameras[number].crop(left, top, side, size)
        camera = place.camera(camera) if place else camera
        name = file_name(frame, number, index)
        index[name] = {"frame": frame, "camera": camera.to_dict()}
        Image.fromarray(cut(picture, left, top, side, size)).save(folder / name, compress_level=1)
    (folder / "index.json").write_text(json.dumps(index))


def write_plate(delivery: Delivery, square: Square, path: Path) -> None:
    """plate.png as delivered or, where masks tell the person from the set, the median of what is not the person."""
    if (delivery.folder / "plate.png").exists():
        Image.fromarray(square.cut(read_picture(delivery.folder / "plate.png"))).save(path)
        return
    take = delivery.takes["train"]
    chosen = [n for n in spread(len(take.frames), 60) if take.mask(n) is not None]
    if not chosen:
        return
    seen = np.stack([square.cut(picture) for picture in take.pictures(chosen)]).astype(np.float32)
    person = np.stack([square.cut(np.uint8(255) * take.mask(n)[..., None].repeat(3, 2))[..., 0] > 8 for n in chosen])
    person = binary_dilation(person, np.ones((1, 3, 3)), iterations=2)
    seen[person] = np.nan
    free = ~person.all(axis=0)
    plate = np.zeros(seen.shape[1:], np.float32)
    plate[free] = np.nanmedian(seen[:, free], axis=0)
    Image.fromarray(nearest_known(plate, free).round().astype(np.uint8)).save(path)


def cut(picture: np.ndarray, left: float, top: float, side: float, size: int) -> np.ndarray:
    """The square [left, left + side) x [top, top + side) of a picture, `size` pixels large."""
    if (left, top, side) == (int(left), int(top), size):
        return picture[int(top) : int(top) + size, int(left) : int(left) + size]
    box = (left, top, left + side, top + side)
    return np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.LANCZOS, box=box))


def head_square(body, take: Take, number: int) -> np.ndarray:
    """Centre x, y and side in pixels of the head in a delivered picture."""
    frame = take.frames[number]
    vertices = body.pose(take.motion[frame : frame + 1]).vertices
    return head_squares(body, vertices, take.cameras[number])[0]


def head_sides(delivery: Delivery) -> np.ndarray:
    take = delivery.takes["train"]
    return np.array([head_square(delivery.body, take, number)[2] for number in spread(len(take.frames), 20)])


@dataclass(frozen=True)
class Placing:
    """Moves a tracked scene so that the person stands where generated motion has it: at rest at the origin, facing +z.

    turn (3, 3), shift (3,): the tracked root's average; pelvis (3,): its rest joint. The pictures stay as they are,
    because the camera moves along."""

    turn: np.ndarray
    shift: np.ndarray
    pelvis: np.ndarray

    @classmethod
    def of(cls, delivery: Delivery) -> Placing:
        take = delivery.takes["train"]
        frames = list(take.frames)
        roots = rotations.matrix(take.motion.global_orient[frames].astype(np.float64))
        left, _, right = np.linalg.svd(roots.mean(axis=0))
        turn = left @ np.diag([1, 1, np.linalg.det(left @ right)]) @ right
        return cls(turn, take.motion.transl[frames].astype(np.float64).mean(axis=0), delivery.body.joints[0])

    def motion(self, motion: Motion) -> Motion:
        roots = rotations.matrix(motion.global_orient.astype(np.float64))
        meta = {key: value for key, value in motion.meta.items() if (key, value) != ("placed", IN_A_ROOM)}
        return replace(
            motion,
            global_orient=rotations.axis_angle(self.turn.T @ roots),
            transl=(motion.transl.astype(np.float64) - self.shift) @ self.turn,
            meta=meta,
        )

    def camera(self, camera: Camera) -> Camera:
        position = self.pelvis + (camera.position - self.pelvis - self.shift) @ self.turn
        return replace(camera, position=position, rotation=camera.rotation @ self.turn)
