"""Every parser of ours, fed with what hypothesis thinks of: it answers, or refuses with InputError, and nothing else.

The quick profile is part of the usual tests; `launch.py test -m slow -k fuzz` looks a hundred times longer, or at as
many examples as the environment variable FUZZ_EXAMPLES says.
"""

import io
import json
import os
import zipfile
from contextlib import redirect_stderr

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from avatar_app import anchors
from avatar_app.anchors import Preset, load_anchor
from avatar_app.cli import main
from avatar_app.evaluation.report import QualityReport
from avatar_app.import_original import read_figures
from avatar_app.mesh.body import Body
from avatar_app.mesh.camera import Camera
from avatar_app.mesh.gltf import write_glb
from avatar_app.settings import RenderSettings
from avatar_app.unpack import check_name, unpack
from avatar_app.weights import read_config, read_weights
from talkshow_bridge.bvh import write_bvh
from talkshow_bridge.errors import InputError
from talkshow_bridge.exchange import load_motion
from talkshow_bridge.motion import Motion

QUICK = settings(
    max_examples=25, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
LONG = settings(QUICK, max_examples=int(os.environ.get("FUZZ_EXAMPLES", "2500")), derandomize=False)

texts = st.text(max_size=30)
numbers = st.one_of(
    st.integers(), st.floats(), st.sampled_from([0, -1, 2**31, 2**64, 1e308, float("nan"), float("inf")])
)
leaves = st.one_of(st.none(), st.booleans(), numbers, texts)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=12
)
dtypes = st.sampled_from(["f4", "f8", "f2", "i4", "u1", "b1", "c8", "U5", "S3", "M8[s]"])
arrays = dtypes.flatmap(lambda kind: hnp.arrays(kind, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)))


def profiles(test):
    """The same test twice: quick, and long under the marker slow."""

    @pytest.mark.parametrize(
        "profile", [pytest.param(QUICK, id="quick"), pytest.param(LONG, id="long", marks=pytest.mark.slow)]
    )
    def run(profile, tmp_path, tiny_anchor, monkeypatch):
        monkeypatch.chdir(tmp_path)
        test(profile, tmp_path, tiny_anchor)

    run.__doc__ = test.__doc__
    return run


def refused(call, *arguments):
    """What the call answers; None where it refuses in one sentence."""
    try:
        return call(*arguments)
    except InputError as error:
        assert str(error) and "\n" not in str(error)
        return None


def changed(whole: dict, path: list[str], value: object) -> dict:
    """A deep copy with another value at some place."""
    copy = json.loads(json.dumps(whole))
    place = copy
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return copy


def places(tree: dict, prefix=()) -> list[list[str]]:
    """The keys that lead to every value of nested dicts."""
    found = []
    for key, value in tree.items():
        found.append([*prefix, key])
        if isinstance(value, dict):
            found += places(value, (*prefix, key))
    return found


@profiles
def test_fuzz_manifests(profile, tmp_path, tiny_anchor):
    whole = json.loads((tiny_anchor.folder / "anchor.json").read_text())
    folder = tmp_path / "tiny"
    folder.mkdir()

    @profile
    @given(st.sampled_from(places(whole)), values)
    def run(path, value):
        (folder / "anchor.json").write_text(json.dumps(changed(whole, path, value)))
        manifest = refused(anchors._read_manifest, folder / "anchor.json")
        if manifest is not None:
            Camera.from_dict(manifest.camera).project(np.zeros((1, 3)))
            Preset.from_options(manifest.presets["draft"])

    run()
    for text in (
        "[" * 100_000,
        '{"a":' * 100_000,
        "nul",
        "",
        "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
    ):
        (folder / "anchor.json").write_text(text, encoding="utf-8")
        with pytest.raises(InputError):
            load_anchor(folder)


@profiles
def test_fuzz_names_in_packages(profile, tmp_path, tiny_anchor):
    parts = st.one_of(texts, st.sampled_from(["..", ".", "", "C:", "con", "a", "é", "x.json", "~", "-rf"]))

    @profile
    @given(st.lists(parts, max_size=6), st.sampled_from(["", ".json", ".png", ".md", ".pt", "\0.md"]))
    def run(names, suffix):
        name = "/".join(names) + suffix
        try:
            check_name(name)
        except InputError:
            return
        inside = (tmp_path / name).resolve()
        assert inside.is_relative_to(tmp_path.resolve()) and inside != tmp_path.resolve() and len(name) <= 200

    run()


@profiles
def test_fuzz_zips(profile, tmp_path, tiny_anchor):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("anchor.json", "background.png", "card.md"):
            archive.write(tiny_anchor.folder / name, f"tiny/{name}")
    whole = packed.getvalue()

    @profile
    @given(st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)), min_size=1, max_size=6), st.data())
    def run(changes, data):
        spoilt = bytearray(whole)
        for position, byte in changes:
            spoilt[-1 - position if data.draw(st.booleans()) else position] = byte
        (tmp_path / "p.zip").write_bytes(
            spoilt[: data.draw(st.integers(0, len(whole)))] if data.draw(st.booleans()) else spoilt
        )
        target = tmp_path / str(len(os.listdir(tmp_path)))
        refused(unpack, tmp_path / "p.zip", target)
        assert all(path.stat().st_size <= 1 << 20 for path in target.rglob("*"))

    run()


@profiles
def test_fuzz_motion_files(profile, tmp_path, tiny_anchor):
    names = [
        "header", "jaw", "leye", "reye", "global_orient", "body", "left_hand", "right_hand", "expression",
        "transl", "betas", "poses", "trans", "expressions", "mocap_frame_rate", "mocap_framerate", "gender",
    ]  # fmt: skip
    Motion.rest(3).save(tmp_path / "m.npz")
    with np.load(tmp_path / "m.npz") as stored:
        whole = dict(stored)
    amass = {"poses": np.zeros((3, 165)), "trans": np.zeros((3, 3)), "betas": np.zeros(10), "mocap_frame_rate": 30.0}

    @profile
    @given(
        st.sampled_from([whole, amass, {}]),
        st.dictionaries(st.sampled_from(names), arrays, max_size=3),
        arrays,
        st.data(),
    )
    def run(base, others, single, data):
        np.savez(tmp_path / "x.npz", **base | others)
        content = bytearray((tmp_path / "x.npz").read_bytes())
        if data.draw(st.booleans()):
            content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
            (tmp_path / "x.npz").write_bytes(content)
        np.save(tmp_path / "x.npy", single)
        for name in ("x.npz", "x.npy"):
            motion = refused(load_motion, tmp_path / name)
            if motion is not None:
                assert len(motion) and all(
                    np.isfinite(array).all() for array in (motion.body, motion.expression, motion.transl)
                )

    run()


@profiles
def test_fuzz_talkshow_columns(profile, tmp_path, tiny_anchor):
    floats = st.floats(width=32) | st.sampled_from([np.nan, np.inf, 1e38, -0.0])

    @profile
    @given(hnp.arrays("f4", st.tuples(st.integers(0, 4), st.sampled_from([264, 265, 266])), elements=floats))
    def run(columns):
        np.save(tmp_path / "t.npy", columns)
        motion = refused(load_motion, tmp_path / "t.npy")
        if motion is not None:
            assert motion.to_talkshow().shape == (len(motion), 265)

    run()


@profiles
def test_fuzz_bvh_and_glb(profile, tmp_path, tiny_anchor):
    """Any motion that is accepted can be written, with finite numbers."""
    big = st.floats(-1e4, 1e4, width=32) | st.sampled_from([0.0, np.pi, -np.pi, 2 * np.pi, 1e-20])

    @profile
    @given(st.integers(1, 3), big, big, st.floats(1, 240), st.integers(0, 20))
    def run(count, angle, shift, fps, joint):
        motion = Motion.rest(count, fps)
        motion.body[:, joint], motion.transl[:] = angle, shift
        write_bvh(motion, tmp_path / "m.bvh")
        text = (tmp_path / "m.bvh").read_text()
        assert "nan" not in text and "inf" not in text
        write_glb(tiny_anchor.body, motion, tmp_path / "m.glb")
        assert (tmp_path / "m.glb").read_bytes()[:4] == b"glTF"

    run()


@profiles
def test_fuzz_settings_and_side_cars(profile, tmp_path, tiny_anchor):
    whole = RenderSettings().to_dict()

    @profile
    @given(st.dictionaries(st.sampled_from(sorted(whole)) | texts, values, max_size=4), st.booleans(), values)
    def run(changes, wrapped, other):
        for content in ({"settings": whole | changes} if wrapped else changes, other):
            (tmp_path / "s.json").write_text(json.dumps(content))
            loaded = refused(RenderSettings.load, tmp_path / "s.json")
            if loaded is not None:
                assert RenderSettings.from_dict(json.loads(json.dumps(loaded.to_dict()))) == loaded

    run()
    for content in (b"\xff\xfe", b"[" * 100_000, b""):
        (tmp_path / "s.json").write_bytes(content)
        with pytest.raises(InputError):
            RenderSettings.load(tmp_path / "s.json")


@profiles
def test_fuzz_camera_files(profile, tmp_path, tiny_anchor):
    names = st.sampled_from(["translation", "focal", "center", "width", "height", "global_orient", "transl", "betas"])

    @profile
    @given(st.dictionaries(names | texts, values, max_size=4), st.dictionaries(names, arrays, max_size=3))
    def run(table, stored):
        (tmp_path / "c.json").write_text(json.dumps(table))
        np.savez(tmp_path / "c.npz", **stored)
        for name in ("c.json", "c.npz"):
            figures = refused(read_figures, tmp_path / name)
            assert figures is None or all(np.isfinite(figure).all() for figure in figures.values())

    run()


@profiles
def test_fuzz_network_folders(profile, tmp_path, tiny_anchor):
    headers = st.dictionaries(texts, values, max_size=3)

    @profile
    @given(headers, st.binary(max_size=64), values, st.integers(-3, 3))
    def run(header, rest, config, off):
        text = json.dumps(header).encode()
        size = max(0, len(text) + off)
        (tmp_path / "w.safetensors").write_bytes(size.to_bytes(8, "little") + text + rest)
        refused(read_weights, tmp_path / "w.safetensors")
        (tmp_path / "config.json").write_text(json.dumps(config))
        refused(read_config, tmp_path / "config.json", "a network")

    run()


@profiles
def test_fuzz_body_rigs(profile, tmp_path, tiny_anchor):
    from safetensors.numpy import load_file, save_file

    path = tiny_anchor.folder / "body.safetensors"
    whole = load_file(path)
    length = int.from_bytes(path.read_bytes()[:8], "little")
    metadata = json.loads(path.read_bytes()[8 : 8 + length])["__metadata__"]
    plain = st.sampled_from(["f4", "i4", "u1", "u2", "i8"])
    tensors = plain.flatmap(
        lambda kind: hnp.arrays(kind, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    )

    @profile
    @given(
        st.sampled_from(sorted(whole)),
        tensors | st.integers(0, 255),
        st.sampled_from(["", "part_names", "expression_names"]),
        values,
    )
    def run(name, value, label, other):
        if isinstance(value, int):  # the same shape, other numbers
            value = np.full_like(whole[name], value)
        save_file(
            whole | {name: np.ascontiguousarray(value)},
            tmp_path / "b.safetensors",
            metadata | ({label: json.dumps(other)} if label else {}),
        )
        body = refused(Body.load, tmp_path / "b.safetensors")
        if body is not None:
            assert body.faces.min() >= 0 and body.faces.max() < len(body.vertices)
            body.pose(Motion.rest(1))

    run()


@profiles
def test_fuzz_states_of_a_report(profile, tmp_path, tiny_anchor):
    report = QualityReport(tiny_anchor, None, None, 5)
    whole = json.loads(json.dumps(report.state()))

    @profile
    @given(st.sampled_from(places(whole)), values)
    def run(path, value):
        try:
            report.restore(changed(whole, path, value))
        except ValueError:
            return

    run()


@profiles
def test_fuzz_numbers_on_the_command_line(profile, tmp_path, tiny_anchor):
    options = [
        "--seed", "--gesture-energy", "--steps", "--guidance", "--condition-scale", "--window", "--overlap",
        "--crf", "--takes", "--style", "--lips", "--preset", "--settings", "--motion-model",
    ]  # fmt: skip

    @profile
    @given(st.lists(st.tuples(st.sampled_from(options), numbers.map(str) | texts), min_size=1, max_size=3))
    def run(given_options):
        arguments = [f"{name}={value}" for name, value in given_options]
        said = io.StringIO()
        with redirect_stderr(said):
            try:
                code = main(["render", "missing.wav", *arguments])
            except SystemExit as stop:
                code = stop.code
        assert code == 2 and said.getvalue().splitlines()[-1].startswith("avatar_app: "), said.getvalue()

    run()
