"""The page, served on a free port with workers and the tiny anchor, asked as programs would; its guard, its words."""

import asyncio
import re
import shlex
import time
from string import Formatter
from types import SimpleNamespace

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from avatar_app.anchors import import_anchor, load_anchor
from avatar_app.jobs import Jobs, Workers
from avatar_app.settings import RenderSettings
from avatar_app.subtitles import load_subtitles
from avatar_app.video import probe
from avatar_app.web import panels, server
from avatar_app.web.app import build, options, read_users, serve
from avatar_app.web.server import OWNER_COOKIE, Guard
from avatar_app.web.site import Site, checked_length
from avatar_app.web.texts import TEXTS, language_of, say, translated
from talkshow_bridge.audio import load_speech
from talkshow_bridge.errors import InputError
from tests.speech import write_speech

gradio_client = pytest.importorskip("gradio_client")
PERFORMANCE = {"anchor": "tiny", "preset": "draft", "style": "lively", "gesture_energy": 1.5, "seed": 4}


@pytest.fixture(scope="module")
def site(tmp_path_factory, tiny_anchor):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AVATAR_APP_ANCHORS", str(tiny_anchor.folder.parent))
        patch.setenv("AVATAR_APP_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        patch.setenv("GRADIO_ALLOWED_PATHS", "")
        yield Site(Jobs(tmp_path_factory.mktemp("jobs")))


@pytest.fixture(scope="module")
def url(site):
    page = build(site)
    with Workers(site.jobs, ["cpu"]):
        _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, **options(site))
        yield url.rstrip("/")
        page.close()


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    return write_speech(tmp_path_factory.mktemp("speech") / "héllo <b>.wav", 0.5)


def visitor(url, tmp_path):
    return gradio_client.Client(url, download_files=str(tmp_path), verbose=False, httpx_kwargs={"timeout": 120})


def test_speech_becomes_a_video(url, speech, tmp_path):
    (tmp_path / "words.srt").write_text("1\n00:00:00,000 --> 00:00:00,400\nHello\n")
    words = gradio_client.handle_file(str(tmp_path / "words.srt"))
    client = visitor(url, tmp_path)
    video = client.predict(
        gradio_client.handle_file(str(speech)), **PERFORMANCE, subtitles=words, api_name="/make_video"
    )
    facts = probe(video)
    assert (facts.frames, facts.width, facts.audio_codec) == (13, 64, "aac")
    id = client.predict("", "", api_name="/list_jobs")[0]["id"]
    told = httpx.get(f"{url}/media/jobs/{id}/subtitles.vtt", cookies=client.cookies)
    assert told.headers["content-type"].startswith("text/vtt") and "00:00:00.400\nHello" in told.text


def test_a_job_belongs_to_who_submitted_it(url, speech, tmp_path):
    mine, other = visitor(url, tmp_path), visitor(url, tmp_path)
    id = mine.predict(gradio_client.handle_file(str(speech)), "preview", **PERFORMANCE, api_name="/submit_job")
    while (status := mine.predict(id, api_name="/job_status"))["state"] in ("queued", "running"):
        time.sleep(0.3)
    assert (status["state"], status["settings"]["seed"], status["name"]) == ("done", 4, "héllo b"), status
    assert probe(mine.predict(id, api_name="/job_result")).frames == 13
    assert [job["id"] for job in mine.predict("", "", api_name="/list_jobs")] == [id]
    assert other.predict("", "", api_name="/list_jobs") == []
    for name in ("/job_status", "/job_result", "/stop_job"):
        with pytest.raises(Exception, match="no such job"):
            other.predict(id, api_name=name)
    files = ("video.mp4", "motion.npz", "motion.bvh", "video.gif", "settings.json", "live.json", "live/sound.mp4")
    for file in files:
        assert httpx.get(f"{url}/media/jobs/{id}/{file}", cookies=mine.cookies, timeout=60).status_code == 200, file
        for cookies in ({}, other.cookies):
            assert httpx.get(f"{url}/media/jobs/{id}/{file}", cookies=cookies).status_code == 404
    part = httpx.get(f"{url}/media/jobs/{id}/video.mp4", cookies=mine.cookies, headers={"range": "bytes=0-9"})
    assert part.status_code == 206 and len(part.content) == 10


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"anchor": "<i>nobody"}, "Unknown anchor '&lt;i&gt;nobody'"),
        ({"anchor": "../../etc"}, "Unknown anchor"),
        ({"gesture_energy": 7}, "gesture_energy|maximum"),
        ({"seed": -1}, "seed|minimum"),
        ({"preset": "ultra"}, "ultra"),
        ({"seed": "four"}, "not of its kind"),
        ({"gesture_energy": {"much": []}}, "not of its kind"),
        ({"anchor": {"id": ["tiny"]}}, "Unknown anchor|not of its kind"),
    ],
)
def test_wrong_choices_end_in_one_sentence(url, speech, tmp_path, changes, words):
    with pytest.raises(Exception) as caught:
        visitor(url, tmp_path).predict(
            gradio_client.handle_file(str(speech)), "video", **PERFORMANCE | changes, api_name="/submit_job"
        )
    assert re.search(words, str(caught.value)) and "Traceback" not in str(caught.value)


def test_wrong_speech_ends_in_one_sentence(url, tmp_path):
    (tmp_path / "noise.wav").write_text("no sound")
    (tmp_path / "empty.wav").touch()
    write_speech(tmp_path / "short.wav", 0.02)
    client = visitor(url, tmp_path)
    for name, words in (
        (None, "upload a speech"),
        ("noise.wav", "noise.wav"),
        ("empty.wav", "0 bytes|empty"),
        ("short.wav", "0.1 s"),
    ):
        file = name and gradio_client.handle_file(str(tmp_path / name))
        with pytest.raises(Exception, match=words):
            client.predict(file, "video", **PERFORMANCE, api_name="/submit_job")


def test_a_long_speech_is_refused_before_it_is_decoded(monkeypatch, speech):
    monkeypatch.setattr("avatar_app.web.site.MAX_SECONDS", 0.1)
    with pytest.raises(Exception, match="longer than"):
        checked_length(speech, "en")


def test_no_file_of_the_server_is_given_away(url, site, speech, tmp_path):
    secret = site.jobs.folder / "jobs.sqlite"
    for path in (
        "/gradio_api/file=/etc/passwd",
        f"/gradio_api/file={secret}",
        "/gradio_api/file=file:///etc/passwd",
        "/gradio_api/file=../../../../etc/passwd",
        "/gradio_api/file=%2e%2e/%2e%2e/etc/passwd",
        "/media/jobs/../jobs.sqlite",
        "/media/jobs/%2e%2e/jobs.sqlite",
        "/media/jobs/..%2f..%2fjobs.sqlite/video.mp4",
        "/media/jobs/x/live/99999999999999999999.mp4",
        "/media/anchors/tiny/anchor.json",
        "/media/anchors/tiny/..%2fanchor.json",
        "/media/anchors/..%2f..%2fetc/package.zip",
        "/media/anchors/%00/thumbnail.jpg",
        "/media//etc/passwd",
        "/openapi.json",
        "/monitoring",
    ):
        answer = httpx.get(url + path, timeout=30)
        assert answer.status_code >= 400 and "root:" not in answer.text, path
    client = visitor(url, tmp_path)
    for path in ("/etc/passwd", str(secret), "file:///etc/passwd", "../../etc/passwd", "http://127.0.0.1:1/x.wav"):
        data = {"path": path, "meta": {"_type": "gradio.FileData"}}
        with pytest.raises(Exception) as caught:
            client.predict(data, "video", **PERFORMANCE, api_name="/submit_job")
        assert "root:" not in str(caught.value)


def test_answers_carry_security_headers_and_the_cookie_is_kept_from_scripts(url):
    answer = httpx.get(url)
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith(OWNER_COOKIE) and "HttpOnly" in cookie and "SameSite=Lax" in cookie
    assert "set-cookie" not in httpx.get(url, cookies=dict(answer.cookies)).headers
    assert "set-cookie" in httpx.get(url, cookies={OWNER_COOKIE: "../../x"}).headers


def test_nothing_on_the_page_comes_from_elsewhere(url):
    text = httpx.get(url).text
    remote = re.findall(r'(?:src|href)="(https?://[^"]+)"', text)
    assert not [address for address in remote if "127.0.0.1" not in address and "gradio.app" not in address]
    assert 'analytics_enabled":false' in text.replace(" ", "")


def test_pictures_and_packages_of_anchors_are_served(url, tmp_path):
    assert httpx.get(f"{url}/media/anchors/tiny/thumbnail.jpg").content[:2] == b"\xff\xd8"
    assert httpx.get(f"{url}/media/anchors/tiny/package.zip").content[:2] == b"PK"


def test_the_api_is_documented_and_has_no_other_doors(url, tmp_path):
    told = visitor(url, tmp_path).view_api(return_format="dict")["named_endpoints"]
    names = {
        "make_video",
        "submit_job",
        "job_result",
        "job_status",
        "stop_job",
        "list_jobs",
        "list_presenters",
        "estimate",
    }
    assert set(told) == {f"/{name}" for name in names}
    assert all(endpoint["description"] for endpoint in told.values())
    client = visitor(url, tmp_path)
    assert "tiny" in {one["id"] for one in client.predict(api_name="/list_presenters")}
    assert client.predict(10, "tiny", "draft", api_name="/estimate")["memory_gb"] > 0
    with pytest.raises(Exception, match="a length in seconds"):
        client.predict("ten", "tiny", "draft", api_name="/estimate")


def test_mcp_clients_find_the_same_tools(url):
    mcp = pytest.importorskip("mcp")
    from mcp.client.streamable_http import streamable_http_client

    async def ask() -> tuple[set[str], str]:
        async with (
            streamable_http_client(f"{url}/gradio_api/mcp/") as (read, write, _),
            mcp.ClientSession(read, write) as session,
        ):
            await session.initialize()
            tools = (await session.list_tools()).tools
            answer = await session.call_tool("list_presenters", {})
            assert not (await session.call_tool("list_jobs", {"text": "", "state": ""})).isError
            return {tool.name for tool in tools}, str(answer.content)

    names, presenters = asyncio.run(ask())
    assert {"make_video", "submit_job", "job_status"} <= names and "tiny" in presenters


def guarded(app_state=None, limit=100):
    def who(request: Request):
        return PlainTextResponse(str(request.state.owner))

    async def length(request: Request):
        return PlainTextResponse(str(len(await request.body())))

    async def login(request: Request):
        return PlainTextResponse("", 200 if await request.body() == b"right" else 400)

    routes = [Route("/", who), Route("/post", length, methods=["POST"]), Route("/login", login, methods=["POST"])]
    app = Starlette(routes=routes, middleware=[Middleware(Guard)])
    for name, value in (app_state or {}).items():
        setattr(app, name, value)
    return TestClient(app)


def test_the_guard_bounds_requests(monkeypatch):
    monkeypatch.setattr(server, "MAX_REQUEST", 100)
    client = guarded()
    assert client.post("/post", content=b"x" * 100).text == "100"
    assert client.post("/post", content=b"x" * 101).status_code == 413
    assert client.post("/post", content=(b"x" * 60 for _ in range(2))).status_code == 413
    assert client.post("/post", content=b"x", headers={"content-length": "a lot"}).status_code == 413


def test_with_passwords_the_user_is_the_owner():
    client = guarded({"auth": {"ann": "secret"}, "cookie_id": "c", "tokens": {"t": "ann"}})
    assert client.get("/").text == "None"
    assert client.get("/gradio_api/mcp/").status_code == 401
    client.cookies.set("access-token-unsecure-c", "t")
    assert client.get("/").text == "user:ann"
    anonymous = guarded()
    assert len(anonymous.get("/").text) == 32 and anonymous.get("/").text == anonymous.get("/").text


def test_guessing_passwords_is_slow(monkeypatch):
    client = guarded({"auth": {"ann": "secret"}, "cookie_id": "c", "tokens": {}})

    def tries(word, count):
        return [client.post("/login", content=word).status_code for _ in range(count)]

    assert tries("right", server.TRIES + 1) == [200] * (server.TRIES + 1)
    assert tries("wrong", server.TRIES + 1) == [400] * server.TRIES + [429]
    assert tries("right", 1) == [429] and client.get("/").status_code == 200
    monkeypatch.setattr(server, "PENALTY", 0.0)
    assert tries("right", 1) == [200]


def test_many_guesses_at_once_are_no_faster():
    async def login(request: Request):
        await asyncio.sleep(0.2)
        return PlainTextResponse("", 400)

    async def guess():
        routes = [Route("/login", login, methods=["POST"])]
        page = httpx.ASGITransport(Starlette(routes=routes, middleware=[Middleware(Guard)]))
        async with httpx.AsyncClient(transport=page, base_url="http://localhost") as client:
            return await asyncio.gather(*(client.post("/login") for _ in range(20)))

    assert sum(answer.status_code == 400 for answer in asyncio.run(guess())) == server.TRIES


def test_a_page_for_others_needs_a_password(monkeypatch, tmp_path):
    monkeypatch.delenv("AVATAR_APP_AUTH", raising=False)
    for opened in ({"listen": True}, {"share": True}):
        with pytest.raises(InputError, match="--auth"):
            serve(**opened)
    with pytest.raises(InputError, match="USER:PASSWORD"):
        read_users("ann")
    (tmp_path / "users").write_text("ann:a:b\n\nbob:c\n")
    assert read_users(f"@{tmp_path / 'users'}") == [("ann", "a:b"), ("bob", "c")]
    with pytest.raises(InputError, match="cannot be read"):
        read_users("@/nowhere")


def test_texts_exist_in_both_languages_with_the_same_blanks():
    for key, (english, chinese) in TEXTS.items():
        blanks = [{name for _, name, _, _ in Formatter().parse(text) if name} for text in (english, chinese)]
        assert english and chinese and blanks[0] == blanks[1], key
    assert [language_of(text) for text in ("zh-CN,en;q=0.5", "de,en;q=0.7", None, "fr, ZH")] == ["zh", "en", "en", "zh"]
    assert "3" in say("zh", "waiting", count=3)


def test_refusals_from_below_are_told_in_chinese(tmp_path):
    (tmp_path / "empty.wav").touch()
    (tmp_path / "noise.wav").write_text("no sound")
    (tmp_path / "words.srt").write_text("no subtitles")
    (tmp_path / "late.srt").write_text("1\n00:01:00,000 --> 00:01:01,000\nLate\n")
    write_speech(tmp_path / "short.wav", 0.02)
    for ask, words in (
        (lambda: load_speech(tmp_path / "empty.wav"), "“empty.wav”是空文件"),
        (lambda: load_speech(tmp_path / "short.wav"), "0.020 秒音频"),
        (lambda: load_speech(tmp_path / "noise.wav"), "无法解码"),
        (lambda: load_subtitles(tmp_path / "words.srt"), "没有可读取的字幕"),
        (lambda: load_subtitles(tmp_path / "noise.wav"), "须为 .srt"),
        (lambda: load_subtitles(tmp_path / "late.srt").until(1.0), "语音结束之后"),
        (lambda: import_anchor(tmp_path / "noise.wav"), "不是可读取的 zip"),
        (lambda: load_anchor("nobody"), "没有名为“nobody”的主播"),
    ):
        with pytest.raises(InputError) as caught:
            ask()
        assert words in translated("zh", str(caught.value)) and translated("en", str(caught.value)) == str(caught.value)
    assert translated("zh", "Something else.") == "Something else."


def test_names_never_become_markup_or_commands(tmp_path):
    evil = "<img src=x onerror=alert(1)>'; rm -rf / #"
    job = SimpleNamespace(
        comparison=tmp_path, subtitles=tmp_path,
        id="i" * 24, name=evil, kind="video", state="failed", over=True, stage="", done=0, total=1, duration=1.0,
        created=0.0, started=0.0, finished=1.0, position=None, seconds_left=None, error=evil, thumbnail=None,
        video=None, motion=tmp_path / "motion.npz", speech=tmp_path / "speech.wav",
        settings=RenderSettings(anchor=evil, seed=3, face=False),
    )  # fmt: skip
    for language in ("en", "zh"):
        assert "<img src=x" not in panels.history_card(job, [], language) + panels.status(job, language)
    command = panels.as_command(job)
    assert "--no-face" in command and "--seed 3" in command
    assert shlex.split(command)[3].endswith(".wav") and evil in shlex.split(command)
    compile(panels.as_python(job), "snippet", "exec")
    assert re.fullmatch(r"[\w-]+", panels.file_name(job))
