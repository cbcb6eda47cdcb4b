"""Where tensors lie. torch's "meta" device stands in for a GPU where there is none: it computes no numbers, but refuses
to mix its tensors with those of the CPU just as a GPU does."""

import numpy as np
import pytest
import torch

from avatar_app.anchors import Anchor
from avatar_app.diffusion.face import FaceEnhancer
from avatar_app.diffusion.generator import FrameGenerator
from avatar_app.diffusion.inpainting import FaceInpainter
from avatar_app.diffusion.planner import Plan
from talkshow_bridge.audio import load_speech
from talkshow_bridge.generator import MotionGenerator
from tests.originals import variant
from tests.speech import write_speech

META = torch.device("meta")


@pytest.fixture(autouse=True)
def numbers_come_back(monkeypatch):
    """What leaves the device is ones."""
    move = torch.nn.Module.to

    def moved(self, device, *how, **more):
        parameter = next(self.parameters())
        if parameter.is_meta and device == "cpu":
            self.to_empty(device="cpu")
        return move(self, device, *how, **more)

    monkeypatch.setattr(torch.nn.Module, "to", moved)
    monkeypatch.setattr(
        torch.Tensor, "cpu", lambda self: torch.ones(self.shape, dtype=self.dtype) if self.is_meta else self
    )


@pytest.fixture
def vertices(tiny_body, tiny_motion) -> np.ndarray:
    return tiny_body.pose(tiny_motion[:20]).vertices


def painted(anchor: Anchor, conditions: np.ndarray, **options: object) -> int:
    """How many frames the body's networks paint on the stand-in."""
    plan = Plan(windows=2, dtype=torch.float16)
    generator = FrameGenerator(anchor, anchor.preset("best", options), META, plan=plan)
    return sum(len(frames) for frames in generator.frames([conditions]))


@pytest.mark.parametrize("scheduler", ["ddim", "dpm++", "lcm"])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("together", [False, True])
def test_native_frames(tiny_anchor, vertices, together, steps, scheduler):
    anchor = variant(tiny_anchor, cross_frame_attention=together, guided=True)
    for guidance in (1.0, 1.5):
        assert painted(anchor, vertices, steps=steps, scheduler=scheduler, guidance=guidance) == 20


@pytest.mark.parametrize("scheduler", ["ddim", "dpm++", "lcm"])
@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_frames_of_stable_diffusion(original_anchor, mesh_pictures, guidance, scheduler):
    for windows in ("overlap", "shifted"):
        options = {"steps": 2, "guidance": guidance, "scheduler": scheduler, "windows": windows}
        assert painted(original_anchor, mesh_pictures[:9], **options) == 9


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("kind", ["native", "stable-diffusion"])
def test_faces(kind, offload, tiny_anchor, vertices, face_anchor, mesh_pictures_by_hand):
    plan = Plan(frames=2, offload=offload)
    if kind == "native":
        frames = np.zeros((4, tiny_anchor.manifest.height, tiny_anchor.manifest.width, 3), np.uint8)
        made = FaceEnhancer(tiny_anchor, tiny_anchor.preset("best"), META, plan=plan).enhance(frames, vertices[:4])
    else:
        body = face_anchor.body
        posed = np.repeat(body.vertices[None], 4, 0)
        size = face_anchor.manifest.height, face_anchor.manifest.width
        frames = np.zeros((4, *size, 3), np.uint8)
        made = FaceInpainter(face_anchor, face_anchor.preset("best"), META, plan=plan).enhance(frames, posed)
    assert made.shape == frames.shape


def test_motion(tmp_path):
    speech = load_speech(write_speech(tmp_path / "speech.wav", 1.0))
    assert len(MotionGenerator.from_pretrained(device="meta").generate(speech)) == 30
