"""A render that was broken off anywhere goes on to the very file that an undisturbed one makes."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import make_tiny_motion

from avatar_app import Cancelled, RenderSettings, pipeline, render, video
from avatar_app.anchors import load_anchor, seal_anchor
from avatar_app.diffusion.painters import NativePainter
from avatar_app.diffusion.planner import Plan
from talkshow_bridge.errors import InputError

ROOT = Path(__file__).parents[1]
UNSIGNED = RenderSettings(credentials=False)  # no two signatures are equal


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch, tmp_path_factory):
    monkeypatch.setattr(video, "PIECE_SECONDS", 0.5)
    monkeypatch.setenv("AVATAR_APP_CACHE", str(tmp_path_factory.mktemp("cache")))


def variant(anchor, folder, options, **changes):
    """A copy of an anchor with other facts and the same sampler numbers in all presets."""
    shutil.copytree(anchor.folder, folder)
    facts = anchor.manifest.model_dump() | {"id": folder.name, **changes}
    preset = facts["presets"]["best"] | options
    return seal_anchor(folder, facts | {"presets": dict.fromkeys(("draft", "standard", "best"), preset)})


COUPLED = {"cross_frame_attention": True}
CASES = {  # name: (stable diffusion, options, facts, windows at once)
    "frames on their own, face": (False, {"face": True, "steps": 2}, {}, 1),
    "overlap": (False, {"steps": 2, "window": 4, "overlap": 1}, COUPLED, 1),
    "overlap, two at once": (False, {"steps": 2, "window": 4, "overlap": 1}, COUPLED, 2),
    "shifted, face": (False, {"steps": 2, "window": 4, "windows": "shifted", "face": True}, COUPLED, 1),
    "shifted, three at once": (False, {"steps": 2, "window": 4, "windows": "shifted"}, COUPLED, 3),
    "stable diffusion, face": (
        *(True, {"steps": 1, "window": 4, "overlap": 1, "guidance": 3.0, "face": True, "scheduler": "dpm++"}),
        *({"fps": 25, "condition": "normal-picture", "compat": False}, 1),
    ),
    "the original's windows": (
        *(True, {"steps": 2, "window": 4, "overlap": 1, "guidance": 2.0, "face": False}),
        *({"fps": 25, "condition": "normal-picture"}, 1),
    ),
}
SLOW = {
    "overlap",
    "shifted, face",
    "shifted, three at once",
    "stable diffusion, face",
}  # the others show the same in less time
COUNT = 38  # frames: three pieces of 12 and one of 2
DONE = {1: 12, 3: 36, 4: 38}  # pieces before the crash: frames in them


@pytest.mark.parametrize("case", [pytest.param(c, marks=pytest.mark.slow if c in SLOW else ()) for c in CASES])
def test_any_piece_may_be_the_last_before_a_crash(case, tiny_anchor, face_anchor, tmp_path, monkeypatch):
    diffusion, options, facts, at_once = CASES[case]
    anchor = variant(face_anchor if diffusion else tiny_anchor, tmp_path / "person", options, **facts)
    plan = pipeline.WorkFolder.plan

    def fixed_plan(folder, make):
        fixed = {"windows": at_once, "frames": 3, "group": at_once}
        return {part: values | fixed for part, values in plan(folder, make).items()}

    monkeypatch.setattr(pipeline.WorkFolder, "plan", fixed_plan)
    assert Plan.from_dict(Plan().to_dict()) == Plan()

    def make(work, **more):
        return render(None, anchor.folder, work.with_suffix(".mp4"), UNSIGNED, motion=motion, work=work, **more)

    motion = make_tiny_motion(COUNT)
    whole = make(tmp_path / "whole")
    pieces = sorted((tmp_path / "whole").glob("piece-*"))
    for done, frames in DONE.items() if case in SLOW else [(3, 36)]:
        work = tmp_path / f"broken-{done}"
        work.mkdir()
        for file in (tmp_path / "whole" / "render.json", *pieces[:done]):
            shutil.copy(file, work)
        begun = []
        again = make(work, progress=lambda stage, at, total, begun=begun: begun.append(at) if stage == "frames" else 0)
        assert begun[0] == json.loads(again.sidecar.read_text())["resumed_at_frame"] == frames
        for piece in pieces:
            assert (work / piece.name).read_bytes() == piece.read_bytes(), (done, piece.name)
        assert again.path.read_bytes() == whole.path.read_bytes() and again.id == whole.id


def test_a_plan_that_had_to_shrink_is_kept(tiny_anchor, tmp_path, monkeypatch):
    """Whoever goes on begins with as little as was left, and makes the same pictures."""
    options = {"steps": 2, "window": 4, "windows": "shifted", "face": True}
    anchor = variant(tiny_anchor, tmp_path / "person", options, **COUPLED)
    short, motion = [True], make_tiny_motion(COUNT)
    predict = NativePainter.predict

    def tight(painter, latents, *arguments):
        if short[0] and len(latents) > 4:
            raise MemoryError
        return predict(painter, latents, *arguments)

    plans = {part: Plan(4, 3, group=4).to_dict() for part in ("body", "face")}
    monkeypatch.setattr("avatar_app.diffusion.generator.plans_for", lambda *given: plans)
    monkeypatch.setattr(NativePainter, "predict", tight)
    monkeypatch.setenv("AVATAR_APP_ENGINE", "torch")

    def make(work):
        return render(None, anchor.folder, work.with_suffix(".mp4"), UNSIGNED, motion=motion, work=work)

    make(tmp_path / "whole")
    work = tmp_path / "broken"
    work.mkdir()
    pieces = sorted((tmp_path / "whole").glob("piece-*"))
    for file in (tmp_path / "whole" / "render.json", *pieces[:2]):
        shutil.copy(file, work)
    kept = json.loads((work / "render.json").read_text())["plan"]
    assert kept["body"]["windows"] == 1 and kept["body"]["group"] == 4 and kept["face"] == plans["face"]
    short[0] = False  # enough memory again: larger calls would round otherwise
    make(work)
    assert [(work / piece.name).read_bytes() for piece in pieces] == [piece.read_bytes() for piece in pieces]


def test_preview_and_speech_resume_with_the_motion_of_the_first_run(tiny_anchor, tmp_path, monkeypatch):
    from tests.speech import write_speech

    speech = write_speech(tmp_path / "speech.wav", 1.3)
    made = []
    make_motion = pipeline.make_motion
    monkeypatch.setattr(pipeline, "make_motion", lambda *given: made.append(0) or make_motion(*given))

    def make(out, **more):
        settings = RenderSettings(credentials=False)
        return render(speech, tiny_anchor.folder, tmp_path / out, settings, preview=True, **more)

    def stop(stage, done, total):
        if stage == "frames" and done >= 20:
            raise Cancelled

    work = tmp_path / "work"
    whole = make("whole.mp4", id="mine")
    with pytest.raises(Cancelled):
        make("a.mp4", work=work, progress=stop)
    assert not (tmp_path / "a.mp4").exists() and (work / "piece-00000.mp4").exists()
    again = make("a.mp4", work=work, id="mine")
    assert again.id == "mine" and len(made) == 3  # another id marks other frames: begun anew
    assert again.path.read_bytes() == whole.path.read_bytes()
    (work / "piece-00002.mp4").unlink()
    again = make("b.mp4", work=work)
    assert again.id == "mine" and len(made) == 3 and again.path.read_bytes() == whole.path.read_bytes()


DOOMED = """
import signal, os, sys
from avatar_app import RenderSettings, render, video
from talkshow_bridge.motion import Motion
video.PIECE_SECONDS = 0.5
folder, anchor, moment = sys.argv[1:]
def die(stage, done, total):
    if stage == "frames" and done >= int(moment):
        os.kill(os.getpid(), signal.SIGKILL)
render(f"{folder}/speech.wav", anchor, f"{folder}/killed.mp4", RenderSettings(credentials=False), progress=die,
       motion=Motion.load(f"{folder}/motion.npz"), work=f"{folder}/work", id="0123456789abcdef")
"""


def test_a_killed_render_measures_what_an_undisturbed_one_does(tiny_anchor, tmp_path):
    from tests.speech import write_speech

    seconds = 3
    speech, motion = write_speech(tmp_path / "speech.wav", seconds), make_tiny_motion(25 * seconds)
    motion.save(tmp_path / "motion.npz")
    anchor = variant(tiny_anchor, tmp_path / "person", {"steps": 1, "window": 8, "overlap": 2, "face": True}, **COUPLED)
    whole = render(speech, anchor.folder, tmp_path / "whole.mp4", UNSIGNED, motion=motion, id="0123456789abcdef")
    assert {check["id"] for check in whole.report["checks"] if check["value"] is not None} > {"jitter_head", "seams"}
    for moment in (30, 52):  # in the third piece, and in the fifth
        command = [sys.executable, "-c", DOOMED, str(tmp_path), str(anchor.folder), str(moment)]
        killed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert not (tmp_path / "killed.mp4").exists()
    again = render(speech, anchor.folder, tmp_path / "killed.mp4", UNSIGNED, motion=motion, work=tmp_path / "work")
    told = json.loads(again.sidecar.read_text())
    assert told["resumed_at_frame"] >= 36
    assert again.report == told["quality"] == whole.report and again.path.read_bytes() == whole.path.read_bytes()


def test_a_folder_of_other_files_is_left_alone(tiny_anchor, tiny_motion, tmp_path):
    (tmp_path / "thesis").mkdir()
    with pytest.raises(InputError, match="holds other files"):
        render(None, tiny_anchor.folder, tmp_path / "out.mp4", motion=tiny_motion, work=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis"]


def test_a_work_folder_of_another_render_is_begun_anew(tiny_anchor, tiny_motion, tmp_path):
    def make(seed):
        settings = RenderSettings(preset="draft", seed=seed, credentials=False)
        return render(
            None,
            tiny_anchor.folder,
            tmp_path / "out.mp4",
            settings,
            motion=tiny_motion[:8],
            preview=True,
            work=tmp_path / "work",
        )

    one, two = make(1), make(2)
    assert one.id != two.id and load_anchor(tiny_anchor.folder)
    (tmp_path / "work" / "render.json").write_text("{ cut off")
    assert make(2).id != two.id
