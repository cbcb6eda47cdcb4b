"""What a user brings to train an anchor from: pictures or a video, the tracked motion, the camera.

docs/training.md describes the folder. Everything here reads one part of it and raises InputError with one sentence;
`check.py` collects these sentences, `prepare.py` makes footage of what is sound.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from avatar_app.mesh.bodies import SmplxBody, load_body, with_native_parts
from avatar_app.mesh.body import Body
from avatar_app.mesh.camera import Camera
from avatar_app.video import VideoError, probe
from talkshow_bridge.audio import ffmpeg_path
from talkshow_bridge.errors import InputError
from talkshow_bridge.exchange import load_motion
from talkshow_bridge.motion import Motion

PICTURES, VIDEOS = (".png", ".jpg", ".jpeg"), (".mp4", ".mov", ".mkv", ".webm", ".avi")
SETS = ("train", "face", "face512", "test", "clip")  # folders of pictures, each with its motion
TRACKING = {"body", "betas", "hands", "up"}  # what tracking.json may say


@dataclass(frozen=True)
class Take:
    """One set of pictures. frames: number in the motion of each picture; cameras: of each picture; files: of each
    picture, or the video alone, whose pictures are its frames from the first on."""

    folder: Path
    motion: Motion
    frames: tuple[int, ...]
    cameras: tuple[Camera, ...]
    files: tuple[Path, ...]

    @property
    def video(self) -> Path | None:
        return self.files[0] if self.files and self.files[0].suffix.lower() in VIDEOS else None

    def pictures(self, chosen: Sequence[int]) -> Iterator[np.ndarray]:
        """The chosen pictures (ascending positions), uint8 RGB (height, width, 3), one at a time."""
        if self.video is None:
            yield from (read_picture(self.files[number]) for number in chosen)
            return
        wanted = set(chosen)
        yield from (picture for number, picture in enumerate(read_video(self.video)) if number in wanted)

    def mask(self, number: int) -> np.ndarray | None:
        """Where the person is, bool (height, width), from masks/000123.png; None without one."""
        path = self.folder / "masks" / f"{self.frames[number]:06d}.png"
        return read_picture(path, "L") > 127 if path.exists() else None


def read_take(folder: Path, camera: Camera, tracking: dict) -> Take:
    """One set, complete. Raises InputError for the first thing that is wrong with it."""
    motion = read_motion(folder, tracking)
    files, frames, cameras = list_pictures(folder, camera)
    if max(frames) >= len(motion):
        raise InputError(f"'{folder.name}' has a picture of frame {max(frames)}, but {len(motion)} frames of motion.")
    return Take(folder, motion, tuple(frames), tuple(cameras), tuple(files))


def read_tracking(dataset: Path) -> dict:
    """tracking.json, which is needed when there is no body.safetensors: {"body": "smplx" or "open", "betas": [...],
    "hands": "relative" or "absolute", "up": "y" or "z"}, all optional."""
    path = dataset / "tracking.json"
    if not path.exists():
        return {}
    try:
        facts = dict(json.loads(path.read_text(encoding="utf-8")))
        unknown = set(facts) - TRACKING
    except (OSError, ValueError, TypeError):
        raise InputError("tracking.json is not readable JSON.") from None
    if unknown:
        known = ", ".join(sorted(TRACKING))
        raise InputError(f"tracking.json has an unknown entry '{sorted(unknown)[0]}'; known are {known}.")
    return facts


def read_body(dataset: Path, tracking: dict, motion: Motion) -> Body | SmplxBody:
    """The person's own rig, or the open body or SMPL-X with the tracked shape (tracking.json's, else the motion's)."""
    if (dataset / "body.safetensors").exists():
        return Body.load(dataset / "body.safetensors")
    space = "open" if motion.expression_space == "arkit52" else "smplx"
    betas = np.asarray(tracking.get("betas", motion.betas), np.float32)
    return with_native_parts(load_body(betas=betas, model=tracking.get("body", space)))


def read_camera(path: Path) -> Camera:
    if not path.exists():
        raise InputError(f"'{path.name}' is missing.")
    try:
        return Camera.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"'{path.name}' is not a camera: {error}") from None


def read_motion(folder: Path, tracking: dict) -> Motion:
    """motion.npz or motion.npy of a set, of any kind that `load_motion` reads."""
    found = sorted(folder.glob("motion.np[yz]"))
    if len(found) != 1:
        raise InputError(f"'{folder.name}' needs one motion file, motion.npz or motion.npy; it has {len(found)}.")
    return load_motion(found[0], hands=tracking.get("hands"), up=tracking.get("up"))


def list_pictures(folder: Path, camera: Camera) -> tuple[list[Path], list[int], list[Camera]]:
    """Files, frame numbers in the motion and cameras of a set, by frame: what index.json lists, pictures that are named
    by their frame number, or the frames of one video."""
    if (folder / "index.json").exists():
        try:
            index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
            entries = sorted((int(entry["frame"]), file, entry) for file, entry in index.items())
            cameras = [Camera.from_dict(entry["camera"]) if "camera" in entry else camera for _, _, entry in entries]
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(
                f"'{folder.name}/index.json' is no list of pictures with frame and camera: {error}"
            ) from None
        if strays := [file for file in index if Path(file).is_absolute() or ".." in Path(file).parts]:
            raise InputError(f"'{folder.name}/index.json' names a picture outside of its folder, {strays[0]!r}.")
        files, frames = [folder / file for _, file, _ in entries], [frame for frame, _, _ in entries]
    elif videos := sorted(path for path in folder.glob("*") if path.suffix.lower() in VIDEOS):
        if len(videos) > 1:
            raise InputError(f"'{folder.name}' holds {len(videos)} videos; it should be one.")
        try:
            frames = list(range(probe(videos[0]).frames))
        except VideoError as error:
            raise InputError(str(error)) from None
        files, cameras = videos, [camera] * len(frames)
    else:
        named = [path for path in folder.glob("*") if path.suffix.lower() in PICTURES and path.stem.isdigit()]
        files = sorted(named, key=lambda path: int(path.stem))
        frames, cameras = [int(path.stem) for path in files], [camera] * len(files)
    if not frames:
        raise InputError(f"'{folder.name}' holds no pictures: a video, or pictures named by their frame number.")
    return files, frames, cameras


def read_picture(path: Path, mode: str = "RGB") -> np.ndarray:
    try:
        return np.asarray(Image.open(path).convert(mode))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise InputError(f"'{path.parent.name}/{path.name}' is not a readable picture.") from None


def read_video(path: Path, width: int | None = None) -> Iterator[np.ndarray]:
    """All frames of a video, uint8 RGB, one at a time; `width` (even) makes them smaller."""
    facts = probe(path)
    size = (facts.width, facts.height) if width is None else (width, max(2, facts.height * width // facts.width))
    only = ["-protocol_whitelist", "file", "-format_whitelist", "mov,matroska,webm,avi"]  # no lists of other files
    command = [ffmpeg_path(), "-nostdin", "-v", "error", *only, "-noautorotate", "-i", f"file:{path}", "-map", "0:v:0"]
    command += ["-vf", "scale={}:{}:flags=area".format(*size)] if width else []
    command += ["-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    count = size[0] * size[1] * 3
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            while len(data := process.stdout.read(count)) == count:
                yield np.frombuffer(data, np.uint8).reshape(size[1], size[0], 3)
        finally:
            process.kill()
