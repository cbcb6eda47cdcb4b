"""Is a data set fit to be trained on? All that is wrong with it, found at once and before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from avatar_app.mesh.body import HEAD, check_expression_space
from avatar_app.mesh.camera import Camera
from avatar_app.training.delivery import (
    SETS,
    Take,
    list_pictures,
    read_body,
    read_camera,
    read_motion,
    read_picture,
    read_tracking,
    read_video,
)
from avatar_app.video import probe
from talkshow_bridge.errors import InputError
from talkshow_bridge.motion import Motion

ENOUGH, GOOD = 32, 150  # pictures: below the first nothing can be learned, below the second not much
FPS_RANGE = (10.0, 120.0)
DARK, FLAT = 4.0, 2.0  # mean and deviation of luma, 0..255, of a picture that shows nothing
SAME, MOVED = 0.02, 0.004  # mean difference 0..255 of frozen pictures; metres that the body moved meanwhile
NEIGHBOURS = 0.5  # seconds within which two pictures are compared
IN_SIGHT = 0.95  # share of the frames in which the head must be in the picture
THUMBNAIL = 160  # pixels, width at which pictures are looked at
T = TypeVar("T")


@dataclass(frozen=True)
class Finding:
    """where: file or set; what: one sentence; fatal: training cannot start (otherwise it is a remark)."""

    where: str
    what: str
    fatal: bool = True


def check_dataset(dataset: Path) -> list[Finding]:
    """All findings. Reads every picture once; writes nothing. Raises InputError when there is no such folder."""
    if not dataset.is_dir():
        raise InputError(f"There is no folder '{dataset}'.")
    check = _Check(dataset)
    check.run()
    return check.findings


def as_table(findings: list[Finding]) -> str:
    """Rows of text: what is fatal first."""
    width = max(len(finding.where) for finding in findings)
    ordered = sorted(findings, key=lambda finding: not finding.fatal)
    return "\n".join(f"{'problem' if f.fatal else 'remark ':7}  {f.where:{width}}  {f.what}" for f in ordered)


class _Check:
    def __init__(self, dataset: Path) -> None:
        self.dataset, self.findings = dataset, []

    def run(self) -> None:
        camera = self.attempt("camera.json", lambda: read_camera(self.dataset / "camera.json"))
        self.attempt("plate.png", partial(self.check_plate, camera))
        tracking = self.attempt("tracking.json", lambda: read_tracking(self.dataset)) or {}
        sets = [name for name in SETS if (self.dataset / name).is_dir()]
        if "train" not in sets:
            self.add("train", "There is no folder 'train' with pictures and their motion.")
        if "test" not in sets and "clip" not in sets:
            self.add("test, clip", "No held-out clip; the last tenth of 'train' becomes one.", fatal=False)
        motions = {name: self.attempt(name, partial(read_motion, self.dataset / name, tracking)) for name in sets}
        rates = {motion.fps for motion in motions.values() if motion}
        if len(rates) > 1:
            self.add("motion", f"The sets differ in frames per second: {', '.join(f'{r:g}' for r in sorted(rates))}.")
        body = None
        if any(motions.values()):
            first = next(motion for motion in motions.values() if motion)
            body = self.attempt("body", partial(read_body, self.dataset, tracking, first))
        for name in sets:
            self.check_set(self.dataset / name, camera, motions[name], body)

    def check_plate(self, camera: Camera | None) -> None:
        if (self.dataset / "plate.png").exists():
            height, width, _ = read_picture(self.dataset / "plate.png").shape
            if camera is not None and (width, height) != (camera.width, camera.height):
                size = f"{camera.width}x{camera.height}"
                self.add("plate.png", f"The empty set is {width}x{height} pixels large, the camera's picture {size}.")

    def check_set(self, folder: Path, camera: Camera | None, motion: Motion | None, body) -> None:
        name = folder.name
        if motion is not None and not FPS_RANGE[0] <= motion.fps <= FPS_RANGE[1]:
            low, high = FPS_RANGE
            self.add(name, f"The motion has {motion.fps:g} frames per second; {low:g} to {high:g} make sense.")
        stand_in = camera or Camera(1, (0, 0), 0, 0, np.zeros(3), np.eye(3))
        listed = self.attempt(name, partial(list_pictures, folder, stand_in))
        if listed is None:
            return
        files, frames, cameras = listed
        take = Take(folder, motion or Motion.rest(0), tuple(frames), tuple(cameras), tuple(files))
        sound = self.check_counts(take, motion) and camera is not None
        vertices = None
        if sound and body is not None:
            vertices = self.attempt(name, partial(self.pose, body, motion, take.frames))
        if vertices is not None:
            self.check_view(name, take, body, vertices)
        self.check_pictures(take, vertices, motion, camera)

    def check_counts(self, take: Take, motion: Motion | None) -> bool:
        """Whether every picture is there and has its frame of motion."""
        name, count = take.folder.name, len(take.frames)
        if name == "train" and count < GOOD:
            self.add(name, f"{count} pictures; {GOOD} varied ones or more are better.", fatal=count < ENOUGH)
        missing = [file.name for file in take.files if not file.exists()]
        if missing:
            self.add(name, f"{len(missing)} of {count} listed pictures are missing, first {missing[0]}.")
        if not take.video and not (take.folder / "index.json").exists():
            gaps = np.diff(take.frames)
            if len(gaps) and (lost := int((gaps // np.median(gaps) - 1).clip(0).sum())):
                self.add(
                    name, f"{lost} pictures are missing between the others, first after {take.frames[gaps.argmax()]}."
                )
        if motion is None:
            return False
        beyond = sum(frame >= len(motion) for frame in take.frames)
        if take.video:
            fps = probe(take.video).fps
            if abs(fps - motion.fps) > 0.01 * motion.fps:
                self.add(name, f"The video has {fps:g} frames per second, the motion {motion.fps:g}.")
            if abs(count - len(motion)) > 1:
                self.add(name, f"The video has {count} frames, the motion {len(motion)}.")
        elif beyond:
            self.add(name, f"{beyond} pictures are of frames after the motion's last, {len(motion) - 1}.")
        return not missing and not beyond

    @staticmethod
    def pose(body, motion: Motion, frames: tuple[int, ...]) -> np.ndarray:
        """Vertices (n, V, 3) of some frames."""
        check_expression_space(body, motion)
        return np.concatenate([body.pose(motion[frame : frame + 1]).vertices for frame in frames])

    def check_view(self, name: str, take: Take, body, vertices: np.ndarray) -> None:
        head = body.weights[:, HEAD] > 0.5
        seen = 0
        for camera, points in zip(take.cameras, vertices, strict=True):
            x, y, depth = camera.project(points[head]).mean(axis=0)
            behind = ((points[head] - camera.position) @ camera.rotation[2]).min() < 0.05
            seen += not behind and 0 < x < camera.width and 0 < y < camera.height
        if seen < IN_SIGHT * len(vertices):
            lost = len(vertices) - seen
            self.add(
                name, f"The camera does not see the head in {lost} of {len(vertices)} frames: is it the right one?"
            )

    def check_pictures(self, take: Take, vertices: np.ndarray | None, motion: Motion | None, camera) -> None:
        name = take.folder.name
        there = [n for n in range(len(take.frames)) if take.video or take.files[n].exists()]
        reader = read_video(take.video, THUMBNAIL) if take.video else (read_picture(take.files[n]) for n in there)
        wrong_size, wrong_mask, dark, frozen, before = [], [], [], [], None
        for number, picture in zip(there, self.readable(name, reader), strict=False):
            size = picture.shape[1], picture.shape[0]
            view = take.cameras[number] if not take.video else None
            if view is not None and camera is not None and size != (view.width, view.height):
                wrong_size.append(number)
            small = picture[:: max(1, size[1] // THUMBNAIL), :: max(1, size[0] // THUMBNAIL)].astype(np.float32)
            if small.mean() < DARK or small.std() < FLAT:
                dark.append(number)
            elif self.is_frozen(take, number, before, small, vertices, motion):
                frozen.append(number)
            before = small
            if not self.has_sound_mask(take, number, camera):
                wrong_mask.append(number)
        if take.video and camera is not None:
            facts = probe(take.video)
            wrong_size = [0] if (facts.width, facts.height) != (camera.width, camera.height) else []
        for numbers, what in (
            (wrong_size, "of another size than their camera"),
            (wrong_mask, "with a mask that is unreadable or of another size than their camera"),
            (dark, "black or blank"),
            (frozen, "the same as the one before although the body moved"),
        ):
            if numbers:
                first = take.frames[numbers[0]]
                self.add(
                    name, f"{len(numbers)} of {len(take.frames)} pictures are {what}, first that of frame {first}."
                )

    def readable(self, name: str, pictures: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """The pictures up to the first that cannot be read, which becomes a finding."""
        try:
            yield from pictures
        except InputError as error:
            self.add(name, str(error))

    @staticmethod
    def has_sound_mask(take: Take, number: int, camera: Camera | None) -> bool:
        """Also where there is none."""
        try:
            mask = take.mask(number)
        except InputError:
            return False
        view = take.cameras[number] if camera is not None else None
        return mask is None or view is None or mask.shape == (view.height, view.width)

    @staticmethod
    def is_frozen(take: Take, number: int, before, now: np.ndarray, vertices, motion) -> bool:
        if before is None or vertices is None or before.shape != now.shape or number >= len(vertices):
            return False
        near = take.frames[number] - take.frames[number - 1] <= NEIGHBOURS * motion.fps
        moved = np.linalg.norm(vertices[number] - vertices[number - 1], axis=1).max() > MOVED
        return (
            near and moved and take.cameras[number] is take.cameras[number - 1] and np.abs(now - before).mean() < SAME
        )

    def attempt(self, where: str, read: Callable[[], T]) -> T | None:
        """What `read` returns; a refusal becomes a finding."""
        try:
            return read()
        except InputError as error:
            self.add(where, str(error))
        return None

    def add(self, where: str, what: str, fatal: bool = True) -> None:
        self.findings.append(Finding(where, what, fatal))
