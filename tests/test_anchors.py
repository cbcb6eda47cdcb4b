"""Anchor packages: what is accepted, what is refused and with which words."""

import hashlib
import json
import os
import shutil
import stat
import zipfile

import numpy as np
import pytest

from avatar_app import anchors, unpack
from avatar_app.anchors import export_anchor, import_anchor, list_anchors, load_anchor, verify_anchor
from talkshow_bridge.errors import InputError


@pytest.fixture
def copied(tiny_anchor, tmp_path):
    """A private copy of the tiny anchor's folder."""
    folder = tmp_path / "copies" / "tiny"
    shutil.copytree(tiny_anchor.folder, folder)
    return folder


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty folder of the user's, the only place where anchors are looked for."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("AVATAR_APP_ANCHORS", str(folder))
    monkeypatch.setattr(anchors, "BUNDLED", tmp_path / "bundled")
    return folder


def change_manifest(folder, **changes):
    path = folder / "anchor.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def write_zip(path, entries: dict, mode: int = 0):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            archive.writestr(info, data)
    return path


def test_a_sound_anchor_loads(tiny_anchor, tiny_camera, tiny_body):
    anchor = load_anchor(tiny_anchor.folder)
    assert anchor.id == "tiny" and anchor.has_face and anchor.manifest.fps == 25
    assert np.allclose(anchor.camera.position, tiny_camera.position)
    assert anchor.body.vertices.shape == tiny_body.vertices.shape
    assert anchor.background.shape == (64, 64, 3)
    assert anchor.preset("best").steps == 3 and anchor.preset("best", {"steps": 2}).steps == 2


def test_anchors_are_found_by_id(home, copied):
    shutil.copytree(copied, home / "tiny")
    assert [anchor.id for anchor in list_anchors()] == ["tiny"]
    assert load_anchor("tiny").folder == home / "tiny"
    with pytest.raises(InputError, match="Unknown anchor 'nobody'; known anchors: tiny"):
        load_anchor("nobody")
    with pytest.raises(InputError, match="Unknown anchor '../tiny'"):
        load_anchor("../tiny")


def test_a_damaged_manifest_does_not_hide_the_other_anchors(home, copied):
    shutil.copytree(copied, home / "tiny")
    (home / "broken").mkdir()
    (home / "broken" / "anchor.json").write_text("{")
    assert [anchor.id for anchor in list_anchors()] == ["tiny"]
    with pytest.raises(InputError, match="'anchor.json' is not readable"):
        load_anchor("broken")


def test_damage_is_noticed_and_named(copied):
    anchor = load_anchor(copied)
    path = copied / "body.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(1, 1))
    with pytest.raises(InputError, match="'body.safetensors' does not match its checksum"):
        load_anchor(copied)
    path.unlink()
    with pytest.raises(InputError, match="'body.safetensors' is missing"):
        verify_anchor(anchor)


def test_unchanged_files_are_hashed_once(copied, monkeypatch):
    load_anchor(copied)
    monkeypatch.setattr(anchors, "_sha256", lambda path: pytest.fail("hashed again"))
    load_anchor(copied)


@pytest.mark.parametrize(
    "changes,words",
    [
        ({"schema_version": 3}, "manifest version 3"),
        ({"fps": 0}, "'fps'"),
        ({"camera": {"focal": 3}}, "camera"),
        ({"camera": 3}, "'camera'"),
        ({"presets": {}}, "preset"),
        ({"files": {"../evil.json": {"sha256": "0" * 64, "size": 0}}}, "Unsafe file name"),
        ({"files": {"/evil.json": {"sha256": "0" * 64, "size": 0}}}, "Unsafe file name"),
        ({"files": {"evil.py": {"sha256": "0" * 64, "size": 0}}}, "not a kind of file"),
        ({"surprise": 1}, "'surprise'"),
        ({"id": "../x"}, "'id'"),
    ],
)
def test_wrong_manifests_are_refused(copied, changes, words):
    change_manifest(copied, **changes)
    with pytest.raises(InputError, match=words):
        load_anchor(copied)


def test_pickles_links_and_unlisted_weights_are_refused(copied, tmp_path):
    for name, words in [("body/x.bin", "pickle"), ("body/x.pt", "pickle"), ("body/more.safetensors", "not listed")]:
        (copied / name).write_bytes(b"x")
        with pytest.raises(InputError, match=words):
            load_anchor(copied)
        (copied / name).unlink()
    (copied / ".DS_Store").write_bytes(b"x")  # harmless litter
    load_anchor(copied)
    (copied / "link.json").symlink_to(tmp_path)
    with pytest.raises(InputError, match="link"):
        load_anchor(copied)


def test_export_and_import_bring_the_same_anchor(home, tiny_anchor, tmp_path):
    package = export_anchor(tiny_anchor, tmp_path / "tiny.zip")
    anchor = import_anchor(package)
    assert anchor.folder == home / "tiny" and anchor.manifest == tiny_anchor.manifest
    assert sorted(p.name for p in home.iterdir()) == ["tiny"]
    with pytest.raises(InputError, match="exists already"):
        import_anchor(package)
    assert import_anchor(package, replace=True).id == "tiny"
    with zipfile.ZipFile(package) as archive:  # a zip of the folder's contents is welcome too
        flat = {name.removeprefix("tiny/"): archive.read(name) for name in archive.namelist()}
    assert import_anchor(write_zip(tmp_path / "flat.zip", flat), replace=True).id == "tiny"


@pytest.mark.parametrize(
    "entries,mode,words",
    [
        ({"../evil.json": "x"}, 0, "Unsafe"),
        ({"/etc/evil.json": "x"}, 0, "Unsafe"),
        ({"a/../../evil.json": "x"}, 0, "Unsafe"),
        ({"C:\\evil.json": "x"}, 0, "Unsafe"),
        ({"a/link.json": "/etc/passwd"}, stat.S_IFLNK | 0o777, "link"),
        ({"a/model.bin": "x"}, 0, "pickle"),
        ({"a/run.sh": "x"}, 0, "not a kind of file"),
        ({"a/x.json": "1", "a/X.json": "2"}, 0, "twice"),
        ({"a.json": "1", "a.json/b.json": "2"}, 0, "lies in a file"),
        ({"A/x.json": "1", "a/X.json": "2"}, 0, "twice"),
        ({"a/\u00e9.md": "1", "a/e\u0301.md": "2"}, 0, "twice"),
        ({"a/nul.json": "1"}, 0, "Unsafe"),
        ({"a./x.json": "1"}, 0, "Unsafe"),
        ({"a/" * 9 + "x.json": "1"}, 0, "Unsafe"),
        ({"a/big.json": " " * (5 << 20)}, 0, "too large for a file of its kind"),
        ({"a/card.md": "hello"}, 0, "no single anchor.json"),
        ({"a/anchor.json": "[]"}, 0, "not a JSON object"),
        ({f"a/{i}.json": "" for i in range(501)}, 0, "too large"),
    ],
)
def test_hostile_packages_are_refused_and_leave_nothing(home, tmp_path, entries, mode, words):
    with pytest.raises(InputError, match=words):
        import_anchor(write_zip(tmp_path / "evil.zip", entries, mode))
    assert list(home.iterdir()) == []
    assert not (tmp_path / "evil.json").exists()


def test_oversize_and_unreadable_packages_are_refused(home, tiny_anchor, tmp_path, monkeypatch):
    package = export_anchor(tiny_anchor, tmp_path / "tiny.zip")
    cut = tmp_path / "cut.zip"
    cut.write_bytes(package.read_bytes()[:-100])
    with pytest.raises(InputError, match="'cut.zip' is not a readable zip"):
        import_anchor(cut)
    with pytest.raises(InputError, match="no file"):
        import_anchor(tmp_path / "missing.zip")
    monkeypatch.setattr(unpack, "MAX_BYTES", 1000)
    with pytest.raises(InputError, match="too large"):
        import_anchor(package)
    assert list(home.iterdir()) == []


def test_zip_bombs_are_not_unpacked(home, tmp_path):
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/body.safetensors", bytes(64 << 20))
    with pytest.raises(InputError, match="unfolds to more than 200 times its size"):
        import_anchor(bomb)
    with zipfile.ZipFile(bomb, "w") as archive:
        archive.writestr("a/card.md", b"x" * 5000)
    packed = bytearray(bomb.read_bytes())
    position = packed.rindex(b"PK\1\2") + 20  # the compressed size in the directory
    packed[position : position + 4] = (1 << 20).to_bytes(4, "little")
    bomb.write_bytes(packed)
    with pytest.raises(InputError):
        import_anchor(bomb)
    assert list(home.iterdir()) == []


@pytest.mark.parametrize(
    "name,content,words",
    [
        ("background.png", b"\x89PNG\r\n\x1a\n", "'background.png' is not a readable picture"),
        ("thumbnail.jpg", b"GIF89a", "'thumbnail.jpg' is not a readable picture"),
        ("body/unet/diffusion_pytorch_model.safetensors", b"\xff" * 64, "is cut off or no safetensors"),
        ("body.safetensors", b"\xff" * 64, "'body.safetensors' is cut off"),
    ],
)
def test_damage_that_has_a_checksum_is_noticed_at_the_import(home, copied, tmp_path, name, content, words):
    (copied / name).write_bytes(content)
    manifest = json.loads((copied / "anchor.json").read_text())
    manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    change_manifest(copied, files=manifest["files"])
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        for path in copied.rglob("*.*"):
            archive.write(path, path.relative_to(copied))
    with pytest.raises(InputError, match=words):
        import_anchor(tmp_path / "p.zip")
    assert list(home.iterdir()) == []


def test_a_huge_picture_is_not_decoded(copied):
    from PIL import Image

    Image.new("1", (9000, 2)).save(copied / "background.png")
    with pytest.raises(InputError, match="larger than 8192 pixels"):
        _ = anchors.Anchor(copied, load_anchor(copied, verify=False).manifest).background
