"""Every part has a licence that is told, and commercial-safe refuses what commercial work may not use."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from avatar_app import InputError, RenderSettings, render
from avatar_app.anchors import Anchor, BodyModel
from avatar_app.doctor import main as doctor
from avatar_app.licences import PACKAGES, SWITCH, components, require_commercial

ROOT = Path(__file__).parents[1]
SAFE = RenderSettings(commercial_safe=True)


def pinned() -> set[str]:
    return set(re.findall(r"^([A-Za-z0-9_.-]+)==", (ROOT / "requirements.txt").read_text(), re.MULTILINE))


def test_every_pinned_package_is_in_the_table_and_in_the_document():
    document = (ROOT / "LICENSES.md").read_text().lower()
    assert pinned() <= set(PACKAGES)
    assert [name for name in pinned() if name.lower() not in document] == []


def test_the_doctor_tells_them_all(capsys):
    doctor()
    told = capsys.readouterr().out
    assert all(name in told for name in PACKAGES)
    assert re.search(r"\*  smplx +non-commercial", told) and re.search(r" {3}  anchor adam +CC0-1.0", told)
    assert [part.name for part in components([]) if not part.commercial] in (["smplx"], ["SMPL-X model", "smplx"])


def altered(anchor: Anchor, **facts) -> Anchor:
    return Anchor(anchor.folder, anchor.manifest.model_copy(update=facts))


def test_what_ours_is_made_of_passes(tiny_anchor, tiny_motion):
    require_commercial(SAFE, tiny_anchor)
    made = replace(tiny_motion, meta={"generator": "avatar_app gesture model, lip net"})
    require_commercial(SAFE, tiny_anchor, made)


@pytest.mark.parametrize("licence", ["CC-BY-NC-4.0", "unknown", "", "as the checkpoint and its base", "MIT-like"])
def test_anchors_of_other_licences_are_refused(tiny_anchor, licence):
    stranger = altered(tiny_anchor, licence=licence)
    require_commercial(RenderSettings(), stranger)
    with pytest.raises(InputError, match="licence of anchor 'tiny'"):
        require_commercial(SAFE, stranger)


def test_research_only_parts_are_refused(tiny_anchor, tiny_motion, tmp_path):
    with pytest.raises(InputError, match="SMPL-X model and the smplx package"):
        require_commercial(SAFE, altered(tiny_anchor, body=BodyModel(model="smplx", betas=[])))
    (tmp_path / "face.pth").touch()
    with pytest.raises(InputError, match="TalkSHOW's weights are for research only"):
        require_commercial(replace(SAFE, motion_model=str(tmp_path), style="oliver"), tiny_anchor)
    (tmp_path / "face.pth").unlink()
    with pytest.raises(InputError, match="states no licence"):
        require_commercial(replace(SAFE, motion_model=str(tmp_path), style="mine"), tiny_anchor)
    (tmp_path / "config.json").write_text('{"licence": "own"}')
    require_commercial(replace(SAFE, motion_model=str(tmp_path), style="mine"), tiny_anchor)
    with pytest.raises(InputError, match="made by the bundled model but by 'talkshow'"):
        require_commercial(SAFE, tiny_anchor, replace(tiny_motion, meta={"generator": "talkshow"}))


def test_a_server_can_insist(tiny_anchor, tiny_motion, tmp_path, monkeypatch):
    monkeypatch.setenv(SWITCH, "1")
    with pytest.raises(InputError, match="commercial-safe is on: the motion file"):
        render(None, tiny_anchor.folder, tmp_path / "out.mp4", motion=tiny_motion, preview=True)
    assert not list(tmp_path.iterdir())
