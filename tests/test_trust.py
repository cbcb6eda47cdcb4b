"""Consent: what a record permits, in every door of the application."""

import json
import shutil
from dataclasses import replace
from datetime import date, timedelta

import pytest

from avatar_app import RenderSettings, anchors, render
from avatar_app.anchors import export_anchor, import_anchor, load_anchor, seal_anchor, set_consent
from avatar_app.cli import main
from avatar_app.evaluation.anchor import Bench, bench_anchor
from avatar_app.training.build import Order, anchor_facts, build_anchor, pretrain
from avatar_app.trust.consent import Consent, new_consent, require_consent
from avatar_app.trust.credentials import sha256
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


def test_an_old_copy_does_not_undo_a_revocation(own, tmp_path):
    package = export_anchor(own, tmp_path / "tiny.zip")
    set_consent(own, own.manifest.consent.model_copy(update={"revoked": TODAY}))
    with pytest.raises(InputError, match="'tiny' was revoked here on 2026-06-15"):
        import_anchor(package, replace=True)
    assert load_anchor("tiny").manifest.consent.revoked == TODAY
    kept = shutil.move(own.folder, tmp_path / "kept")
    with pytest.raises(InputError, match="'tiny' was revoked here on 2026-06-15"):
        import_anchor(package)
    shutil.move(kept, own.folder)
    renewed = set_consent(own, Consent(kind="synthetic", given=TODAY))
    import_anchor(export_anchor(renewed, tmp_path / "new.zip"), replace=True)


@pytest.mark.parametrize("change", [{"revoked": TODAY}, {"given": TODAY, "expires": TODAY}, {"uses": ("import",)}])
def test_no_door_shows_or_trains_whom_it_must_not(change, own, tiny_motion, tmp_path, capsys):
    own = set_consent(own, own.manifest.consent.model_copy(update=change))
    motion, out = tmp_path / "motion.npz", tmp_path / "out"
    tiny_motion[:4].save(motion)
    for end in (["--out", f"{out}.mp4"], ["--preview", f"{out}.mp4"], ["--motion-only", f"{out}.glb"]):
        assert main(["render", "--anchor", "tiny", "--motion", str(motion), *end]) == 2
    with pytest.raises(InputError):
        bench_anchor(Bench(own, None), ["presets"])
    (tmp_path / "data").mkdir()
    order = Order(tmp_path / "data", out, tmp_path / "work", {"consent": {"kind": "synthetic"}}, start=own.folder)
    for train in (build_anchor, lambda *given: pretrain([tmp_path / "data"], *given)):
        with pytest.raises(InputError, match="The consent for anchor 'tiny' "):
            train(order, print)
    assert capsys.readouterr().err.count("The consent for anchor 'tiny' ") == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "home", "motion.npz"]


def test_a_real_person_is_trained_on_the_video_they_agreed_to(tmp_path):
    video = tmp_path / "data" / "train" / "clip.mp4"
    video.parent.mkdir(parents=True)
    video.write_bytes(b"film")
    facts = anchor_facts(tmp_path / "data", new_consent("self", True), "Me", "own")
    assert facts["consent"]["clip_sha256"] == sha256(video)
    video.write_bytes(b"another")
    order = Order(tmp_path / "data", tmp_path / "out", tmp_path / "work", facts)
    for consent, words in ((facts["consent"], "another training video"), ({"kind": "unstated"}, "not recorded")):
        with pytest.raises(InputError, match=words):
            build_anchor(replace(order, facts={"consent": consent}), print)


def test_everybody_can_read_a_package(own):
    files = [path for path in own.folder.rglob("*") if path.is_file()]
    assert any(path.suffix == ".safetensors" for path in files)
    for path in files:
        path.chmod(0o600)
    sealed = seal_anchor(own.folder, own.manifest.model_dump(exclude={"files"}))
    assert {path.stat().st_mode & 0o777 for path in (sealed.folder / name for name in sealed.manifest.files)} == {0o644}


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
    set_consent(own, Consent(kind="synthetic"))  # one's own may lie beside them
    monkeypatch.setattr(anchors, "SHIPPED", ("tiny",))
    with pytest.raises(InputError, match="bundled; its consent record cannot be changed"):
        set_consent(own, Consent(kind="synthetic"))
