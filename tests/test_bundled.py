"""The anchor that ships: a real, short render of a bundled sample, and promises about the package."""

import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from avatar_app import RenderSettings, render
from avatar_app.anchors import list_anchors, load_anchor
from avatar_app.diffusion.face import head_squares
from avatar_app.evaluation.anchor import make_frames
from avatar_app.evaluation.metrics import luma, psnr
from avatar_app.video import probe
from talkshow_bridge.audio import ffmpeg_path
from talkshow_bridge.generator import MotionGenerator
from talkshow_bridge.motion import Motion

SAMPLE = Path(__file__).parent.parent / "samples" / "english.opus"
LIMIT = 30 * 2**20


@pytest.fixture(scope="module")
def anchor():
    bundled = list_anchors()
    assert bundled, "no anchor is bundled"
    return load_anchor(bundled[0].folder)


@pytest.fixture(scope="module")
def short_render(anchor, tmp_path_factory):
    """The loudest ten frames of a sample as a silent video at the standard preset: frames and their motion."""
    motion = MotionGenerator.from_pretrained().generate(SAMPLE, seed=1)
    middle = int(np.argmax(motion.jaw[:, 0]))
    part = motion[max(0, middle - 5) : middle + 5]
    out = tmp_path_factory.mktemp("bundled") / "out.mp4"
    render(None, anchor.folder, out, RenderSettings(preset="standard", crf=10), motion=part)
    return read_frames(out), part, out


def read_frames(path: Path) -> np.ndarray:
    facts = probe(path)
    command = [ffmpeg_path(), "-v", "error", "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, facts.height, facts.width, 3)


def test_package_is_small_and_complete(anchor):
    size = sum(path.stat().st_size for path in anchor.folder.rglob("*") if path.is_file())
    assert size <= LIMIT
    assert {"card.md", "thumbnail.jpg", "background.png", "body.safetensors"} <= set(anchor.manifest.files)
    assert anchor.has_face and anchor.manifest.fps == 30


def test_real_render(anchor, short_render):
    frames, motion, out = short_render
    facts = probe(out)
    assert (facts.width, facts.height, facts.fps, facts.frames) == (512, 512, 30, 10)
    corner = (slice(None), slice(0, 96), slice(0, 96))
    plate = np.broadcast_to(anchor.background, frames.shape)
    assert psnr(frames[corner], plate[corner]) > 35  # the set stands still
    assert psnr(frames, plate) < 25  # somebody is there
    square = head_squares(anchor.body, anchor.body.pose(motion[:1]).vertices, anchor.camera)[0]
    x, y, side = square
    cheek = frames[0, round(y + 0.05 * side) : round(y + 0.15 * side), round(x - 0.1 * side) : round(x + 0.1 * side)]
    red, green, blue = cheek.reshape(-1, 3).mean(0)
    assert red > green > blue and red > 90  # skin


def test_mouth_opens_with_the_jaw(anchor, short_render):
    """Only the mouth changes between an open and a closed jaw, and the open one shows its dark inside."""
    _, part, _ = short_render
    widest = part[part.jaw[:, 0].argmax() :][:1]
    closed = replace(widest, jaw=np.zeros_like(widest.jaw), expression=np.zeros_like(widest.expression))
    vertices = anchor.body.pose(Motion.concatenate([widest, closed])).vertices
    opened, shut = (luma(frame) for frame in make_frames(anchor, vertices, "draft"))
    teeth = np.isin(anchor.body.part, [anchor.body.part_names.index(name) for name in ("teeth_up", "teeth_low")])
    mouth = anchor.camera.project(vertices[0, anchor.body.faces[teeth].ravel()])[:, :2].mean(0).round().astype(int)
    inside = (slice(mouth[1] - 12, mouth[1] + 12), slice(mouth[0] - 12, mouth[0] + 12))
    assert opened[inside].min() < shut[inside].min() - 15
    assert np.abs(opened - shut)[:, :128].mean() < 0.5  # nothing happens far from the face
