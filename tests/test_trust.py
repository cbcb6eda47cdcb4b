"""Consent: what a record permits, in every door of the application."""

import json
import shutil
from datetime import date, timedelta

import pytest

from avatar_app import RenderSettings, anchors, render
from avatar_app.anchors import export_anchor, import_anchor, load_anchor, set_consent
from avatar_app.cli import main
from avatar_app.trust.consent import Consent, new_consent, require_consent
from talkshow_bridge.errors import InputError

TODAY = date(2026, 6, 15)


@pytest.fixture
def own(tiny_anchor, tmp_path, monkeypatch):
    """A private copy of the tiny anchor in an empty folder of the user's."""
    home = tmp_path / "home" / "anchors"
    shutil.copytree(tiny_anchor.folder, home / "tiny")
    monkeypatch.setenv("AVATAR_APP_ANCHORS", str(home))
    monkeypatch.setattr(anchors, "BUNDLED", tmp_path / "bundled")
    return load_anchor("tiny")


@pytest.mark.parametrize(
    ("record", "use", "words"),
    [
        ({"kind": "unstated", "note": "he nodded"}, "render", "is not recorded .*'he nodded'"),
        ({"kind": "synthetic", "revoked": date(2026, 6, 1)}, "render", "was revoked on 2026-06-01"),
        ({"kind": "self", "given": date(2025, 1, 1), "expires": date(2026, 6, 14)}, "render", "expired on 2026-06-14"),
        ({"kind": "self", "given": date(2026, 6, 16)}, "render", "only given from 2026-06-16 on"),
        ({"kind": "permission", "given": date(2026, 1, 1), "uses": ("render",)}, "train", "not permit training"),
        ({"kind": "synthetic", "uses": ("train", "render")}, "import", "use on other machines"),
    ],
)
def test_what_a_record_does_not_permit_is_said(record, use, words):
    with pytest.raises(InputError, match=f"^The consent .*{words}"):
        require_consent(Consent(**record), use, TODAY)


def test_what_a_record_permits():
    until_today = Consent(kind="permission", given=TODAY, expires=TODAY, clip_sha256="a" * 64)
    for use in ("train", "render", "import"):
        require_consent(until_today, use, TODAY)
    require_consent(until_today, "train", TODAY, clip_sha256="a" * 64)
    with pytest.raises(InputError, match="another training video"):
        require_consent(until_today, "train", TODAY, clip_sha256="b" * 64)
    with pytest.raises(InputError, match="does not name the training video"):
        require_consent(Consent(kind="self", given=TODAY), "train", TODAY, clip_sha256="b" * 64)
    require_consent(Consent(kind="synthetic"), "train", TODAY, clip_sha256="b" * 64)
    assert until_today.id == until_today.model_copy(update={"revoked": TODAY}).id != Consent(kind="synthetic").id


def test_nobody_agrees_unasked():
    with pytest.raises(InputError, match='--agree if this is true: "I am the person shown'):
        new_consent("self", agree=False)
    with pytest.raises(InputError, match="expires before it was given"):
        new_consent("self", agree=True, given=TODAY, expires=TODAY - timedelta(1))
    assert new_consent("self", agree=True).given == date.today()


def test_without_consent_nothing_is_rendered(own, tiny_motion, tmp_path):
    set_consent(own, Consent(kind="synthetic", revoked=TODAY))
    for preview in (False, True):
        with pytest.raises(InputError, match="'tiny' was revoked on 2026-06-15"):
            render(None, "tiny", tmp_path / "x.mp4", RenderSettings(), motion=tiny_motion[:4], preview=preview)
    assert not (tmp_path / "x.mp4").exists()


def test_old_packages_need_a_record(own, tmp_path, tiny_motion, capsys):
    path = own.folder / "anchor.json"
    old = json.loads(path.read_text()) | {"schema_version": 1, "consent": "She agreed."}
    path.write_text(json.dumps(old))
    with pytest.raises(InputError, match="'She agreed.'.*records it with `launch.py anchors consent tiny"):
        render(None, "tiny", tmp_path / "x.mp4", motion=tiny_motion[:4])
    package = export_anchor(load_anchor("tiny"), tmp_path / "tiny.zip")
    shutil.rmtree(own.folder)
    assert main(["anchors", "import", str(package)]) == 2 and "--consent synthetic|self" in capsys.readouterr().err
    assert main(["anchors", "import", str(package), "--consent", "permission"]) == 2
    assert "--agree" in capsys.readouterr().err and not own.folder.exists()
    given = ["--consent", "permission", "--agree", "--uses", "render,import"]
    assert main(["anchors", "import", str(package), *given]) == 0
    imported = load_anchor("tiny")
    assert imported.manifest.consent.uses == ("render", "import")
    set_consent(imported, imported.manifest.consent.model_copy(update={"uses": ("render",)}))
    again = export_anchor(load_anchor("tiny"), tmp_path / "new.zip")
    with pytest.raises(InputError, match="does not permit use on other machines"):
        import_anchor(again, replace=True)
    with pytest.raises(InputError, match="brings its own consent"):
        import_anchor(again, replace=True, consent=Consent(kind="synthetic"))


def test_consent_on_the_command_line(own, tmp_path, capsys):
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"film")
    given = ["--agree", "--expires", "2099-01-01", "--training-video", str(clip), "--note", "drawer 3"]
    assert main(["anchors", "consent", "tiny", "self", *given]) == 0
    said = capsys.readouterr().out
    assert "shows its maker, until 2099-01-01" in said and "drawer 3" in said and "I am the person shown" in said
    assert main(["anchors", "consent", "tiny", "revoke"]) == 0 and "was revoked on" in capsys.readouterr().out
    assert main(["anchors", "list"]) == 0 and "was revoked on" in capsys.readouterr().out
    assert main(["anchors", "consent", "tiny", "--agree"]) == 2 and "Please say what" in capsys.readouterr().err
    assert main(["anchors", "consent", "tiny", "self", "--training-video", "nowhere.mp4"]) == 2


def test_bundled_records_stay(own, monkeypatch):
    monkeypatch.setattr(anchors, "BUNDLED", own.folder.parent)
    with pytest.raises(InputError, match="bundled; its consent record cannot be changed"):
        set_consent(own, Consent(kind="synthetic"))
