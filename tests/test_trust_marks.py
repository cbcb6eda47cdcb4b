"""The mark in the frames, the signature around the file, and what `verify` makes of both."""

import json
import shutil

import ffmpeg
import numpy as np
import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from scipy.ndimage import minimum_filter

from avatar_app import RenderSettings, doctor, render
from avatar_app.cli import main
from avatar_app.pipeline import presenter_for
from avatar_app.trust import bench, credentials, marks, verify, watermark
from avatar_app.trust.watermark import Watermark
from avatar_app.video import run_ffmpeg
from talkshow_bridge.errors import InputError

ID = "0123456789abcdef"
SIZE = 512


@pytest.fixture(scope="module")
def frames():
    """A second of a presenter-like scene: a dark gradient, soft shapes, a textured one that moves."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    scene = np.stack([20 + x / 16, 30 + y / 12, 60 + (x + y) / 16], -1)
    cloth = random.normal(0, 9, (SIZE, SIZE, 1)).astype(np.float32)
    film = []
    for moment in range(25):
        center = 256 + 40 * np.sin(moment / 4)
        body = 1 / (1 + np.exp((np.hypot((x - center) / 110, (y - 420) / 200) - 1) * 20))
        head = 1 / (1 + np.exp((np.hypot((x - center) / 50, (y - 150) / 70) - 1) * 30))
        shot = scene + (np.array([45, 45, 55]) + cloth - scene) * body[..., None]
        film.append(shot + (np.array([205, 160, 140]) + 12 * np.sin(y / 9)[..., None] - shot) * head[..., None])
    return np.clip(np.stack(film), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def marked(frames):
    return Watermark(ID).mark(frames)


@pytest.mark.parametrize("name", ["H.264 CRF 28", "half size", "crop 10 %", "crop 10 %, back to size", "30 fps"])
def test_the_mark_survives(name, frames, marked, tmp_path):
    found = bench._after(marked, 25, *bench.TRANSFORMS[name], tmp_path)
    assert found.valid and found.payload.hex() == ID


def test_the_mark_is_faint_and_always_the_same(frames, marked):
    assert min(bench._psnr(one, other) for one, other in zip(frames, marked, strict=True)) >= 42
    noisy = np.random.default_rng(1).integers(0, 256, (1, 96, 128, 3), np.uint8)
    assert bench._psnr(noisy, Watermark("anything").mark(noisy)) >= 42  # as strong as it ever gets
    assert np.array_equal(Watermark(bytes.fromhex(ID)).mark(frames[7:9]), marked[7:9])
    change = marked.astype(int) - frames
    assert np.abs(change[0] - change[-1])[:40, :40].mean() < 0.02  # nothing flickers where nothing moves
    flat = np.full((1, SIZE, SIZE, 3), 12, np.uint8)
    assert np.abs(Watermark(ID).mark(flat).astype(int) - flat).max() <= 2


def slowly_marked(frame: np.ndarray, id: str) -> np.ndarray:
    """What `Watermark.mark` makes of one frame, in the order of its description and without haste."""
    (height, width), block = frame.shape[:2], watermark.BLOCK
    red, green, blue = frame.astype(int).transpose(2, 0, 1)
    y, x = np.mgrid[:height:2, :width:2]
    aside = green[y, np.maximum(x - 2, 0)] + green[y, np.minimum(x + 2, width - 1)]
    upright = green[np.maximum(y - 2, 0), x] + green[np.minimum(y + 2, height - 1), x]
    bends = sum(np.minimum(abs(2 * green[y, x] - around), watermark.EDGE) / 2 for around in (aside, upright))
    light = (red[y, x] + 2 * green[y, x] + blue[y, x]) // 4
    rows, columns = -(-height // block), -(-width // block)
    busy, strength = np.zeros((rows, columns), np.float32), np.zeros((rows, columns), np.float32)
    for row, column in np.ndindex(rows, columns):
        inside = (y // block == row) & (x // block == column)
        busy[row, column] = bends[inside].mean()
        dark = min(light[inside].mean() / watermark.DARK, 1)
        strength[row, column] = watermark.DARKEST + (1 - float(watermark.DARKEST)) * dark
    calmest = minimum_filter(busy, 3, mode="nearest")
    strength *= np.minimum(watermark.FLAT + watermark.BUSY * calmest, watermark.STRONGEST)
    for axis, side in ((1, width), (0, height)):  # from the blocks' middles to the pixels between them
        place = np.clip((np.arange(side) + 0.5) / block - 0.5, 0, strength.shape[axis] - 1)
        first = place.astype(int)
        second = np.minimum(first + 1, strength.shape[axis] - 1)
        share = (place - first).astype(np.float32).reshape((-1, 1) if axis == 0 else (1, -1))
        low, high = strength.take(first, axis), strength.take(second, axis)
        strength = low + share * (high - low)
    side = round(min(height, width) * watermark.TILE / watermark.SHORT_SIDE)
    wave = watermark._pattern(watermark.payload_of(id), side)[np.ix_(np.arange(height) % side, np.arange(width) % side)]
    dither = watermark._DITHER[np.ix_(np.arange(height) % 64, np.arange(width) % 64)]
    return np.clip(frame + np.floor(strength * wave + dither)[..., None], 0, 255).astype(np.uint8)


@pytest.mark.parametrize("size", [(128, 128), (97, 131), (150, 90)])
def test_marked_in_haste_is_as_marked_slowly(frames, size):
    for frame in (frames[3, 200:, 180:], np.random.default_rng(2).integers(0, 256, (SIZE, SIZE, 3), np.uint8)):
        frame = frame[: size[0], : size[1]]
        assert np.array_equal(Watermark(ID).mark(frame[None])[0], slowly_marked(frame, ID))
    small = np.full((1, 16, 24, 3), 90, np.uint8)
    assert np.array_equal(Watermark(ID).mark(small), small)  # no room for a pattern


def test_nothing_is_found_where_nothing_is(frames):
    residue = watermark.mean_residual(list(frames[:3, :, :, 1]))
    scores = [watermark.search(residue, seed, watermark.SCALES[::6]).score for seed in range(1, 7)]
    assert max(scores) < watermark.THRESHOLD - 3
    assert not watermark.search(residue, scales=watermark.SCALES[::6]).valid


@pytest.fixture(scope="module")
def video(tiny_anchor, tiny_motion, tmp_path_factory):
    """A signed preview with its side-car; the tiny presenter is too small for the mark."""
    folder = tmp_path_factory.mktemp("signed")
    return render(None, tiny_anchor.folder, folder / "out.mp4", motion=tiny_motion[:12], preview=True).path


def test_what_is_signed(video, tiny_anchor):
    signed = credentials.read(video)
    assert signed.state == "trusted" and signed.own and signed.generated and signed.software.startswith("avatar_app ")
    told = json.loads(video.with_suffix(".json").read_text())["trust"]
    assert told.pop("signed") and signed.facts == told
    assert told["consent"]["id"] == tiny_anchor.manifest.consent.id and told["anchor"]["id"] == "tiny"
    key = credentials.key_folder() / "signing.pem"
    assert key.stat().st_mode & 0o777 == 0o600


def test_one_flipped_byte_breaks_the_signature(video, tmp_path, capsys):
    copy = tmp_path / "copy.mp4"
    content = video.read_bytes()
    assert main(["verify", str(video)]) == 0 and "not altered" in capsys.readouterr().out
    marked_out = (
        9,
        content.index(b"jumdc2pa") - 40,
        content.index(b"mdat") + 40,
        len(content) - 3,
    )  # ftyp, padding, ...
    for place in [*marked_out, *np.random.default_rng(0).integers(0, len(content), 40)]:
        copy.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        read = credentials.read(copy)
        assert read is None or read.state == "invalid", place
    assert main(["verify", str(copy)]) == 4 and "altered since" in capsys.readouterr().out
    assert main(["verify", str(copy), "--json"]) == 4
    assert json.loads(capsys.readouterr().out)["altered"] is True


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Two signed films of the same pictures, one with a low tone, one with a high one."""
    paths = [tmp_path_factory.mktemp("films") / f"{tone}.mp4" for tone in (220, 660)]
    for path in paths:
        sources = ["-f", "lavfi", "-i", "testsrc=d=1:s=128x128", "-f", "lavfi", "-i", f"sine={path.stem}:d=1"]
        bench._ffmpeg([*sources, "-pix_fmt", "yuv420p", str(path)])
        credentials.sign(path, {"id": path.stem})
        assert credentials.read(path).state == "trusted"
    return paths


def boxes(path) -> dict[bytes, bytes]:
    """The parts of an mp4 by their names; the seal is the second "free"."""
    content, found = path.read_bytes(), {}
    while content:
        size, name = int.from_bytes(content[:4], "big"), content[4:8]
        found[name + b"2" if name in found else name] = content[:size]
        content = content[size:]
    return found


def test_parts_of_two_films_make_no_valid_one(films, tmp_path):
    low, high = map(boxes, films)
    whole, copy = b"".join(low.values()), tmp_path / "copy.mp4"
    assert whole == films[0].read_bytes()
    forged = {
        "cut off": whole[:-200], "cut in two": whole[: len(whole) // 2], "seal cut off": whole[: -len(low[b"free2"])],
        "a byte more": whole + b"\0", "an empty box more": whole + b"\0\0\0\x08free",
        "the other's statement": b"".join((low | {b"uuid": high[b"uuid"]}).values()),
        "the other's sound": b"".join((low | {name: high[name] for name in (b"moov", b"mdat")}).values()),
        "the other's seal": b"".join((low | {b"free2": high[b"free2"]}).values()),
        "another brand": b"".join((low | {b"ftyp": low[b"ftyp"].replace(b"isom", b"iso4")}).values()),
    }  # fmt: skip
    for name, content in forged.items():
        copy.write_bytes(content)
        assert credentials.read(copy).state == "invalid", name
    sound = ["-i", str(films[0]), "-i", str(films[1]), "-map", "0:v", "-map", "1:a", "-c", "copy"]
    bench._ffmpeg([*sound, str(copy)])
    assert credentials.read(copy) is None  # whoever writes the file anew loses the signature


def test_strangers_may_sign_anything(films, tmp_path, monkeypatch):
    odd = [
        {"label": credentials.FACTS_LABEL, "data": ["no", "table"]},
        {"label": credentials.SEAL_LABEL, "data": {"key": ["none"]}},
    ]
    usual = credentials._manifest
    monkeypatch.setattr(credentials, "_manifest", lambda *given: usual(*given) | {"assertions": odd})
    copy = shutil.copy(films[0], tmp_path / "copy.mp4")
    credentials.sign(copy, {})
    verdict = verify.check(copy)
    assert verdict.exit_code == 4 and verdict.signed.facts == {}


def test_signed_by_others(video, tmp_path, monkeypatch):
    monkeypatch.setenv("AVATAR_APP_KEYS", str(tmp_path / "other"))
    verdict = verify.check(video)
    assert verdict.signed.state == "valid" and not verdict.signed.own and verdict.exit_code == 0
    assert any("could not be verified" in sentence for sentence in verdict.sentences)
    assert not (tmp_path / "other").exists()  # looking makes no key


def test_a_certificate_of_our_number_is_not_ours(films, tmp_path, monkeypatch):
    number = credentials.identity().leaf.serial_number
    with monkeypatch.context() as forger:
        forger.setattr(x509, "random_serial_number", lambda: number)
        forger.setenv("AVATAR_APP_KEYS", str(tmp_path / "forger"))
        copy = shutil.copy(films[0], tmp_path / "copy.mp4")
        credentials.sign(copy, {})
        assert credentials.read(copy).own
    signed = credentials.read(copy)
    assert signed.state == "valid" and not signed.own
    assert "somebody unknown" in verify.check(copy).sentences[0]


def test_not_signed_or_not_a_video(frames, marked, tmp_path, capsys):
    path = tmp_path / "written.mp4"
    bench._after(marked[:8], 25, 20, "null", tmp_path)
    verdict = verify.check(path)
    assert (verdict.watermark, verdict.altered, verdict.synthetic, verdict.exit_code) == (ID, None, True, 3)
    claims = {"watermark": "f" * 16, "anchor": {"id": "a"}}
    credentials.sign(path, claims)
    contradiction = verify.check(path)
    assert contradiction.exit_code == 4 and "different videos" in contradiction.sentences[0]
    long = tmp_path / "long.mp4"  # its sound goes on without pictures
    pictures = ffmpeg.input("testsrc=s=64x64:r=5:d=2", format="lavfi")
    sound = ffmpeg.input("anullsrc=r=8000:cl=mono", format="lavfi", t=60)
    run_ffmpeg(ffmpeg.output(pictures, sound, str(long)))
    assert main(["verify", str(long)]) == 3
    for name, content in (("x.mp4", b""), ("y.mp4", b"no video" * 99)):
        (tmp_path / name).write_bytes(content)
        assert main(["verify", str(tmp_path / name)]) == 2
    assert main(["verify", str(tmp_path / "nowhere.mp4")]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 3


def test_no_silent_unsigned_video(tiny_anchor, tiny_motion, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("AVATAR_APP_KEYS", str(tmp_path / "file"))
    out = tmp_path / "out.mp4"
    with pytest.raises(InputError, match="signing key cannot be kept .*--no-credentials"):
        render(None, tiny_anchor.folder, out, motion=tiny_motion[:4], preview=True)
    assert not out.exists()
    plain = RenderSettings(credentials=False, watermark=False)
    rendered = render(None, tiny_anchor.folder, out, plain, motion=tiny_motion[:4], preview=True)
    assert credentials.read(rendered.path) is None


def test_a_certificate_of_ones_own(video, tmp_path, monkeypatch):
    pem = tmp_path / "mine.pem"
    pem.write_bytes(credentials._make_certificates())
    monkeypatch.setenv("AVATAR_APP_CERTIFICATE", str(pem))
    with pytest.raises(InputError, match="given together"):
        credentials.identity()
    monkeypatch.setenv("AVATAR_APP_CERTIFICATE_KEY", str(pem))
    copy = shutil.copy(video, tmp_path / "copy.mp4")
    credentials.sign(copy, {"id": "again"})
    signed = credentials.read(copy)
    assert signed.own and signed.state == "trusted" and signed.facts == {"id": "again"}
    monkeypatch.delenv("AVATAR_APP_CERTIFICATE")
    monkeypatch.delenv("AVATAR_APP_CERTIFICATE_KEY")
    assert credentials.read(copy).state == "valid" and not credentials.read(copy).own
    monkeypatch.setenv("AVATAR_APP_TRUSTED", str(pem))
    assert credentials.read(copy).state == "trusted" and not credentials.read(copy).own
    monkeypatch.setenv("AVATAR_APP_CERTIFICATE", str(pem))
    monkeypatch.setenv("AVATAR_APP_CERTIFICATE_KEY", str(credentials.key_folder() / "signing.pem"))
    with pytest.raises(InputError, match="does not belong to the key"):
        credentials.check_ready()


def make_expired(path, monkeypatch):
    monkeypatch.setattr(credentials, "YEARS", 0)  # it ended an hour ago, when it began
    path.write_bytes(credentials._make_certificates())


def make_one_for_web_servers(path, monkeypatch):
    monkeypatch.setattr(ExtendedKeyUsageOID, "EMAIL_PROTECTION", ExtendedKeyUsageOID.SERVER_AUTH)
    path.write_bytes(credentials._make_certificates())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (make_expired, "expired on 20.*"),
        (make_one_for_web_servers, "Nothing can be signed with this certificate .* C2PA wants .*"),
        (lambda path, _: path.write_text("-----BEGIN"), "is not readable PEM.*"),
        (lambda path, _: path.mkdir(), r"cannot be .* \(?Is a directory.*"),
    ],
)
def test_a_certificate_that_will_not_do_is_told_before_the_render(make, words, tiny_anchor, tmp_path, monkeypatch):
    keys = tmp_path / "keys"
    keys.mkdir()
    monkeypatch.setenv("AVATAR_APP_KEYS", str(keys))
    assert doctor._signing().fact.startswith("the first video makes a key") and not list(keys.iterdir())
    make(keys / "signing.pem", monkeypatch)
    configured = {"AVATAR_APP_CERTIFICATE": str(keys / "signing.pem")}
    for environment in ({}, configured | {"AVATAR_APP_CERTIFICATE_KEY": str(keys / "signing.pem")}):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(InputError, match=words) as told:
            presenter_for(RenderSettings(anchor=str(tiny_anchor.folder)))
        assert str(told.value).count(". ") == 0
        finding = doctor._signing()
        assert finding.state == "missing" and finding.fact == str(told.value)


def test_the_doctor_tells_who_signs(monkeypatch, tmp_path):
    monkeypatch.setenv("AVATAR_APP_KEYS", str(tmp_path))
    credentials.identity()
    finding = doctor._signing()
    assert finding.state == "ok" and finding.fact.startswith("local certificate, valid until 20")
    monkeypatch.setattr(doctor, "EXPIRES_SOON", 366 * credentials.YEARS)
    assert doctor._signing().state == "optional"


def test_the_label_is_seen(frames):
    labelled = marks.labelled(frames[:2])
    change = np.abs(labelled.astype(int) - frames[:2]).max((0, 3)) > 0
    rows, columns = np.flatnonzero(change.any(1)), np.flatnonzero(change.any(0))
    assert rows.min() > 0.9 * SIZE and 80 < columns.max() < SIZE / 3 and labelled[0, rows.min() :].max() > 200
