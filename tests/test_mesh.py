"""Body, camera, rasteriser, condition maps and preview."""

import importlib.util
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from avatar_app.mesh.bodies import DEFAULT_DIRECTORY, LICENSED_FILE, OPEN_FILE, SmplxBody, load_body
from avatar_app.mesh.body import JAW, Body
from avatar_app.mesh.camera import Camera
from avatar_app.mesh.conditions import CHANNELS, INVERSE_DEPTH, NORMAL, PART, REST, UV, render_conditions
from avatar_app.mesh.preview import bust_fade, render_preview
from talkshow_bridge.errors import InputError
from talkshow_bridge.motion import ARKIT_52, Motion

SIZE = 96


@pytest.fixture(scope="module")
def body() -> Body:
    return load_body()


@pytest.fixture(scope="module")
def camera() -> Camera:
    return Camera.look_at((0.3, 0.2, 2.2), (0, 0.05, 0), focal=SIZE * 2.2, width=SIZE, height=SIZE)


@pytest.fixture(scope="module")
def speaking() -> Motion:
    """Four frames with arms down, an open mouth, turned eyes and some expression."""
    motion = Motion.rest(4)
    rng = np.random.default_rng(0)
    motion.body[:] = rng.normal(0, 0.1, motion.body.shape)
    motion.body[:, 15, 2], motion.body[:, 16, 2] = -1.2, 1.2
    motion.jaw[:, 0], motion.leye[:, 1], motion.transl[:, 0] = 0.2, 0.3, 0.05
    motion.expression[:] = rng.random(motion.expression.shape) * 0.3
    return motion


def square(depth: float, part: int = 0, size: float = 0.4):
    """A body-like thing for the renderers: one square facing +z at z = depth."""
    x = np.array([-1, 1, 1, -1]) * size
    y = np.array([-1, -1, 1, 1]) * size
    vertices = np.stack([x, y, np.full(4, depth)], axis=1).astype(np.float32)
    faces = np.array([[0, 1, 2], [0, 2, 3]], np.int32)
    corner_uv = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32)
    things = {"vertices": vertices, "faces": faces, "face_uv": corner_uv[faces]}
    return type("Square", (), things | {"part": np.full(2, part, np.uint8), "part_names": ("a", "b")})


def straight_camera(size: int = SIZE) -> Camera:
    return Camera.look_at((0, 0, 2), (0, 0, 0), focal=float(size), width=size, height=size)


def test_camera_axes_and_round_trip(camera):
    straight = straight_camera(100)
    right_up = straight.project(np.array([0.5, 0.25, 0.0]))
    np.testing.assert_allclose(right_up, [50 + 25, 50 - 12.5, 2.0], atol=1e-9)
    again = Camera.from_dict(camera.to_dict())
    points = np.random.default_rng(0).normal(0, 0.3, (50, 3))
    np.testing.assert_array_equal(again.project(points), camera.project(points))


def test_pixels_show_the_points_that_project_there(body, camera):
    vertices = body.pose(Motion.rest(1)).vertices
    maps = render_conditions(body, body.vertices[None], camera)[0]
    rows, columns = np.nonzero(maps[..., PART])
    rest = maps[
        rows, columns, REST
    ]  # posed = rest here, so every pixel must hold the point that projects to its middle
    projected = camera.project(rest)
    np.testing.assert_allclose(projected[:, 0], columns + 0.5, atol=1e-3)
    np.testing.assert_allclose(projected[:, 1], rows + 0.5, atol=1e-3)
    np.testing.assert_allclose(maps[rows, columns, INVERSE_DEPTH], 1 / projected[:, 2], rtol=1e-5)
    assert len(rows) > 1500 and vertices.shape == (1, len(body.vertices), 3)


def test_condition_channels(body, camera, speaking):
    maps = render_conditions(body, body.pose(speaking).vertices, camera)
    assert maps.shape == (4, SIZE, SIZE, CHANNELS) and maps.dtype == np.float32
    seen = maps[..., PART] > 0
    assert not maps[~seen].any()
    np.testing.assert_allclose(np.linalg.norm(maps[seen][:, NORMAL], axis=1), 1, atol=1e-5)
    assert maps[seen][:, UV].min() >= 0 and maps[seen][:, UV].max() <= 1
    assert set(np.unique(maps[seen][:, PART])) <= set(range(1, len(body.part_names) + 1))
    assert maps[seen][:, INVERSE_DEPTH].max() < 1 / 1.5


def test_uv_and_rest_are_perspective_correct():
    board, camera = square(0.0), straight_camera()
    tilted = board.vertices.copy()
    tilted[[2, 3], 2] = -1.0  # lean the upper edge back
    maps = render_conditions(board, tilted[None], camera)[0]
    rows, columns = np.nonzero(maps[..., PART])
    u, v = maps[rows, columns, UV].T
    points = np.stack([-0.4 + 0.8 * u, -0.4 + 0.8 * v, -v], axis=1)  # where the board's texture says we are
    np.testing.assert_allclose(camera.project(points)[:, :2], np.stack([columns, rows], 1) + 0.5, atol=1e-3)
    np.testing.assert_allclose(maps[rows, columns, REST][:, 1], -0.4 + 0.8 * v, atol=1e-5)


def test_normals_face_the_camera_and_back_faces_are_culled():
    board, camera = square(0.0, part=1), straight_camera()
    front = render_conditions(board, board.vertices[None], camera)[0]
    middle = front[SIZE // 2, SIZE // 2]
    np.testing.assert_allclose(middle[NORMAL], [0, 0, -1], atol=1e-6)
    assert middle[PART] == 2 and middle[INVERSE_DEPTH] == pytest.approx(0.5)
    board.faces = board.faces[:, ::-1].copy()
    assert not render_conditions(board, board.vertices[None], camera).any()


def test_nearer_surface_wins_and_nothing_leaks_between_triangles():
    far, near, camera = square(-0.5, size=1.5), square(0.2), straight_camera()
    both = far
    both.vertices = np.concatenate([far.vertices, near.vertices])
    both.faces = np.concatenate([near.faces + 4, far.faces]).astype(np.int32)
    both.face_uv = np.concatenate([near.face_uv, far.face_uv])
    both.part = np.array([1, 1, 0, 0], np.uint8)
    part = render_conditions(both, both.vertices[None], camera)[0, ..., PART]
    half = SIZE // 2
    assert part[half, half] == 2 and part[0, 0] == 1 and (part > 0).all()
    assert (part == 2).sum() == pytest.approx((2 * 0.4 * SIZE / 1.8) ** 2, rel=0.05)


@pytest.mark.parametrize(("gap", "inside", "seen"), [(3, True, 2), (3, False, 0), (8, True, 0)])
def test_slits_show_the_inside_and_gaps_the_set(gap, inside, seen):
    camera = straight_camera()
    left, back = square(0.0), square(-0.1)
    half = gap / SIZE  # metres at the board: a pixel is 2 / SIZE wide there
    left.vertices[:, 0] = [-0.4, -half, -half, -0.4]
    right = left.vertices * [-1, 1, 1]
    faces = [left.faces, left.faces[:, ::-1] + 4] + [back.faces[:, ::-1] + 8] * inside
    board = left
    board.vertices = np.concatenate([left.vertices, right, back.vertices]).astype(np.float32)
    board.face_uv = np.concatenate([back.face_uv] * len(faces))
    board.part = np.repeat(np.array([0, 0, 1], np.uint8)[: len(faces)], 2)
    board.faces = np.concatenate(faces).astype(np.int32)
    part = render_conditions(board, board.vertices[None], camera)[0, SIZE // 2, :, PART]
    assert part[SIZE // 2] == seen and part[SIZE // 2 - gap] == 1


def test_triangles_behind_the_camera_are_dropped():
    board = square(0.0)
    assert not render_conditions(board, board.vertices[None] + [0, 0, 5.0], straight_camera()).any()


def test_crop_camera_equals_crop_of_the_full_picture(body, camera, speaking):
    vertices = body.pose(speaking[:1]).vertices
    whole = render_conditions(body, vertices, camera)[0]
    part = render_conditions(body, vertices, camera.crop(left=20, top=8, size=48, output=48))[0]
    np.testing.assert_allclose(part, whole[8:56, 20:68], atol=1e-5)
    twice = camera.crop(left=20, top=8, size=48, output=96)
    points = np.random.default_rng(1).normal(0, 0.2, (20, 3))
    expected = (camera.project(points)[:, :2] - (20, 8)) * 2
    np.testing.assert_allclose(twice.project(points)[:, :2], expected, atol=1e-9)


def test_same_picture_from_every_thread(body, camera, speaking):
    vertices = body.pose(speaking).vertices
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: render_conditions(body, vertices, camera), range(6)))
    assert all(np.array_equal(result, results[0]) for result in results)


def test_posing_moves_what_it_should(body):
    motion = Motion.rest(2)
    motion.jaw[1, 0] = 0.3
    lower, upper = (body.part_names.index(f"teeth_{which}") for which in ("lower", "upper"))
    posed = body.pose(motion)
    drop = (posed.vertices[1] - posed.vertices[0])[:, 1]
    assert drop[np.unique(body.faces[body.part == lower])].mean() < -0.012
    assert np.abs(drop[np.unique(body.faces[body.part == upper])]).max() < 1e-6
    np.testing.assert_allclose(
        posed.transforms[1, JAW, :3, :3] @ posed.transforms[1, JAW, :3, :3].T, np.eye(3), atol=1e-6
    )
    np.testing.assert_allclose(posed.joints[0, :25], body.joints[:25], atol=1e-6)


def test_face_units_are_found_by_name(body):
    motion = Motion.rest(2)
    motion.expression[1, ARKIT_52.index("eyeBlinkLeft")] = 1
    move = np.linalg.norm(np.diff(body.pose(motion).vertices, axis=0)[0], axis=1)
    assert move.max() > 0.005
    assert body.vertices[move.argmax(), 0] > 0.02  # the body's left lid


def test_rig_file_round_trip(body, speaking, tmp_path):
    path = tmp_path / "body.safetensors"
    body.save(path)
    assert path.stat().st_size < 2.5e6
    again = Body.load(path)
    assert again.part_names == body.part_names and again.expression_names == body.expression_names
    np.testing.assert_array_equal(again.faces, body.faces)
    np.testing.assert_allclose(again.face_uv, body.face_uv, atol=1e-4)
    np.testing.assert_allclose(again.pose(speaking).vertices, body.pose(speaking).vertices, atol=1e-4)


def test_bad_files_and_faces_are_refused_in_one_sentence(body, tmp_path):
    (tmp_path / "body.safetensors").write_bytes(b"nonsense")
    with pytest.raises(InputError, match="not a readable body rig"):
        Body.load(tmp_path / "body.safetensors")
    (tmp_path / OPEN_FILE).write_bytes(b"nonsense")
    with pytest.raises(InputError, match="not a readable body file"):
        load_body(tmp_path)
    with pytest.raises(InputError, match="There is no body"):
        load_body(tmp_path / "empty")
    with pytest.raises(InputError, match="flame100"):
        body.pose(Motion.rest(1, expression_space="flame100"))


@pytest.mark.skipif(importlib.util.find_spec("smplx") is None, reason="the smplx package is not installed")
def test_own_skinning_equals_smplx(tmp_path):
    rng = np.random.default_rng(0)
    betas = rng.normal(0, 1, 10).astype(np.float32)
    shutil.copy(DEFAULT_DIRECTORY / OPEN_FILE, tmp_path / LICENSED_FILE)  # the open body in the licensed model's place
    theirs, ours = load_body(tmp_path, betas), load_body(betas=betas)
    assert isinstance(theirs, SmplxBody) and isinstance(ours, Body)
    pose = rng.normal(0, 0.3, (3, 55, 3)).astype(np.float32)
    pose[0] = 0
    expression = rng.normal(0, 0.5, (3, len(ours.expression_names))).astype(np.float32)
    transl = rng.normal(0, 1, (3, 3)).astype(np.float32)
    with_mean = pose.copy()
    with_mean[:, 25:] += ours.hand_mean.reshape(30, 3)
    expected = theirs.pose_parameters(pose, expression, transl)
    actual = ours.pose_parameters(with_mean, expression, transl)
    np.testing.assert_allclose(actual.vertices, expected.vertices, atol=1e-5)
    np.testing.assert_allclose(actual.joints, expected.joints, atol=1e-5)
    np.testing.assert_allclose(actual.transforms, expected.transforms, atol=1e-5)
    np.testing.assert_allclose(theirs.vertices, ours.vertices, atol=1e-5)
    with pytest.raises(InputError, match="arkit52"):
        theirs.pose(Motion.rest(1))
    assert theirs.pose(Motion.rest(1, expression_space="flame100")).vertices.shape == (1, *theirs.vertices.shape)


def test_preview_is_lit_dressed_and_deterministic(body, camera, speaking):
    vertices = body.pose(speaking[:2]).vertices
    pictures = render_preview(body, vertices, camera)
    assert pictures.shape == (2, SIZE, SIZE, 3) and pictures.dtype == np.uint8
    assert np.array_equal(pictures, render_preview(body, vertices, camera))
    seen = render_conditions(body, vertices, camera)[..., PART] > 0
    bluish = pictures[..., 2] > pictures[..., 0].astype(int) + 20
    assert 0.2 < bluish[seen].mean() < 0.9  # a leotard, and skin besides
    garment = replace(body, part_names=("shirt", *body.part_names[1:]))
    assert not np.array_equal(render_preview(garment, vertices, camera), pictures)


def test_preview_of_a_bust_fades_out_above_its_torn_edge(body, speaking):
    ahead = Camera.look_at((0, 0.05, 2.2), (0, 0.05, 0), focal=SIZE * 2.2, width=SIZE, height=SIZE)
    assert (bust_fade(body, ahead) == 1).all()  # legs leave the picture: nothing to hide
    high = (body.vertices[body.faces][..., 1] > -0.1).all(1)
    cut = {name: getattr(body, name)[high] for name in ("faces", "part", "face_uv")}
    bust = replace(body, vertices=np.maximum(body.vertices, (-9, -0.1, -9)).astype(np.float32), **cut)
    pose = bust.pose(speaking[:1]).vertices
    end = int(ahead.project(bust.vertices)[:, 1].max())
    picture, backdrop = render_preview(bust, pose, ahead)[0], render_preview(bust, pose + 100, ahead)[0]
    assert np.array_equal(picture[end - 1 :], backdrop[end - 1 :])
    assert not np.array_equal(picture[int(end * 0.8)], backdrop[int(end * 0.8)])


def test_pyrender_pictures_line_up_with_the_condition_maps(body, camera, speaking):
    from avatar_app.mesh.pyrender_style import render_mesh_pictures

    vertices = body.pose(speaking[:2]).vertices
    try:
        pictures = render_mesh_pictures(body, vertices, camera)
    except InputError as problem:
        pytest.skip(str(problem))
    seen = render_conditions(body, vertices, camera)[..., PART] > 0
    drawn = pictures.max(axis=-1) > 60  # less is the half-covered outline
    assert (seen ^ drawn).sum() < 0.06 * seen.sum()
    for ours, theirs in zip(seen, drawn, strict=True):
        np.testing.assert_allclose(np.argwhere(ours).mean(axis=0), np.argwhere(theirs).mean(axis=0), atol=0.25)
    with ThreadPoolExecutor(3) as pool:
        again = list(pool.map(lambda _: render_mesh_pictures(body, vertices, camera), range(3)))
    assert all(np.array_equal(result, pictures) for result in again)


def test_missing_gl_is_one_clear_sentence(body, camera, monkeypatch):
    from avatar_app.mesh import pyrender_style

    def broken():
        raise AttributeError("'NoneType' object has no attribute 'eglQueryString'")

    monkeypatch.setattr(pyrender_style, "_pyrender", broken)
    pyrender_style._renderer.cache_clear()
    with pytest.raises(InputError, match="apt install libegl1"):
        pyrender_style.render_mesh_pictures(body, body.vertices[None], camera)
    pyrender_style._renderer.cache_clear()
