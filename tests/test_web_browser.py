"""The page in a real browser: Chromium driven by Playwright, with workers and the tiny anchor.

Needs `pip install playwright` and a Chromium of the system (or its path in CHROMIUM); skipped without them. The page
runs in a process of its own, as it does for users. AVATAR_APP_UI=FOLDER keeps a picture of every state.
"""

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from avatar_app.video import probe
from tests.server import Server
from tests.speech import write_speech

playwright = pytest.importorskip("playwright.sync_api", reason="needs `pip install playwright`")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="needs a Chromium: install it or name it in CHROMIUM"),
]
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
PATIENCE = 120_000  # ms: workers start, networks load, other people's work goes on


@pytest.fixture(scope="module")
def home(tmp_path_factory, tiny_anchor):
    folder = tmp_path_factory.mktemp("home")
    for name in ("tiny", "twin"):
        manifest = json.loads((tiny_anchor.folder / "anchor.json").read_text()) | {"id": name, "name": name.title()}
        shutil.copytree(tiny_anchor.folder, folder / "anchors" / name)
        (folder / "anchors" / name / "anchor.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="module")
def server(home):
    server = Server(home)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def chromium():
    arguments = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def visit(server, chromium):
    """visit(**options of the context): a new visitor on the opened page; its script errors fail the test."""
    errors, contexts = [], []

    def open_page(**options):
        context = chromium.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda line: errors.append(line.text) if "Content Security Policy" in line.text else None)
        page.goto(server.url)
        page.wait_for_selector("#preset label:has-text('GB')")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not errors


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    return write_speech(tmp_path_factory.mktemp("speech") / "My speech.wav", 5.0)


def picture(page, name: str, **options) -> None:
    """Keeps a picture of the page as a small JPEG when somebody wants to see it."""
    if folder := os.environ.get("AVATAR_APP_UI"):
        page.wait_for_timeout(800)
        page.screenshot(path=Path(folder) / f"{name}.jpg", type="jpeg", quality=70, **options)


def choose(page, speech, preset: str = "Draft", anchor: str = "Tiny") -> None:
    page.click(f"label.anchor:has-text('{anchor}')")
    page.set_input_files("#speech input[type=file]", str(speech))
    page.wait_for_selector("#status:has-text('ready')")
    page.click(f"#preset label:has-text('{preset}')")


def film(page) -> dict:
    """What the player on the screen is at."""
    return page.evaluate(
        """() => { const live = document.querySelector('live-video'), video = live.querySelector('video');
        return {pieces: +live.dataset.pieces || 0, time: video.currentTime, length: video.duration,
                source: video.src, error: video.error && video.error.message} }"""
    )


def test_a_video_plays_while_it_is_made_and_survives_a_reload(visit, speech, tmp_path):
    page = visit()
    choose(page, speech)
    page.click("#generate")
    page.wait_for_selector("#stop:visible")
    page.wait_for_selector(".stages")
    picture(page, "running")
    page.reload()
    page.wait_for_selector("live-video")  # the job is still on the screen
    page.wait_for_function(
        "document.querySelector('live-video')?.dataset.pieces >= 1 || document.querySelector('.results')"
    )
    page.wait_for_selector(".results")
    page.wait_for_selector("#generate:visible")
    page.wait_for_function("document.querySelector('live-video video').duration > 4.9")
    assert film(page)["error"] is None
    page.evaluate("document.querySelector('live-video video').play()")
    page.wait_for_function("document.querySelector('live-video video').currentTime > 0.5")
    with page.expect_download() as download:
        page.click("#results a[download$='.mp4']")
    saved = tmp_path / download.value.suggested_filename
    download.value.save_as(saved)
    facts = probe(saved)
    assert (facts.frames, facts.width, facts.audio_codec) == (125, 64, "aac")
    assert saved.name == "My-speech-tiny-draft.mp4"
    page.click("#results summary >> nth=-1")
    assert "--preset draft" in page.inner_text("#results pre >> nth=0")
    picture(page, "finished", full_page=True)
    page.click("#results [data-do=again]")
    page.wait_for_selector("#generate:visible")
    page.wait_for_selector("input[value=tiny]:checked")


def test_subtitles_and_the_face_before_and_after(visit, tmp_path):
    page = visit()
    choose(page, write_speech(tmp_path / "short.wav", 1.6), "Standard")
    page.click("#subtitles button")
    (tmp_path / "wrong.srt").write_text("nothing of the kind")
    page.set_input_files("#subtitles input[type=file]", str(tmp_path / "wrong.srt"))
    page.wait_for_selector(".toast-body:has-text('holds no subtitles')")
    page.click("#subtitles button[aria-label*='lear'], #subtitles button[aria-label*='emove']")
    (tmp_path / "words.en.srt").write_text("1\n00:00:00,500 --> 00:00:04,500\nGood <i>evening</i>\n")
    page.set_input_files("#subtitles input[type=file]", str(tmp_path / "words.en.srt"))
    page.wait_for_selector("#subtitles :text('words.en')")
    page.click("#generate")
    page.wait_for_selector(".results")
    page.wait_for_function("document.querySelector('live-video video').textTracks[0]?.cues?.length == 1")
    page.evaluate("document.querySelector('live-video video').currentTime = 1")
    page.click("#results .faces summary")
    page.wait_for_function("document.querySelector('#results .compare img').naturalWidth > 30")
    page.focus("#results .compare input")
    page.keyboard.press("Home")
    assert page.evaluate("document.querySelector('.compare').style.getPropertyValue('--at')") == "0%"
    picture(page, "subtitles", full_page=True)
    job = page.get_attribute("live-video", "src")
    for name, begin in (
        ("video.gif", b"GIF8"), ("motion.npz", b"PK"), ("motion.bvh", b"HIERARCHY"), ("motion.glb", b"glTF"),
        ("subtitles.vtt", b"WEBVTT"), ("face.jpg", b"\xff\xd8"), ("settings.json", b"{"),
    ):  # fmt: skip
        assert page.context.request.get(f"{page.url.rstrip('/')}{job}/{name}").body().startswith(begin), name
    page.click("button[role=tab]:has-text('History')")
    page.wait_for_selector(".job .faces")


def test_a_presenter_is_trained_from_a_checked_data_set(visit, home, delivered):
    shutil.copytree(delivered, home / "datasets" / "sound")
    shutil.copytree(delivered, home / "datasets" / "faulty")
    (home / "datasets" / "faulty" / "camera.json").unlink()
    page = visit()

    def open_form():
        page.click("button[role=tab]:has-text('Presenters')")
        page.wait_for_selector(".anchor-card")
        page.click("#train button")

    def take(name):
        page.click("#dataset input")
        page.click(f"[role=option]:has-text('{name}')")

    open_form()
    take("faulty")
    page.wait_for_selector("#findings tr:has-text('camera.json')")
    assert page.is_disabled("#start-training")
    take("sound")
    page.wait_for_selector("#findings .note.good")
    page.get_by_label("Name of the presenter").fill("Dora")
    page.click("#start-training:enabled")
    page.wait_for_selector(".toast-body:has-text('who is shown')")
    page.click("#train label:has-text('nobody real')")
    page.click("#train label:has-text('This is true')")
    page.click("#start-training")
    page.wait_for_selector(".training.running")
    page.reload()
    page.wait_for_selector("#preset label:has-text('GB')")
    open_form()
    page.wait_for_selector(".training.running")
    picture(page, "training")
    page.click(".training [data-do=stop]")
    page.wait_for_selector(".training.cancelled [data-do=retry]")
    page.on("dialog", lambda dialog: dialog.accept())
    page.click(".training [data-do=remove]")
    page.wait_for_selector(".training", state="detached")
    assert not list((home / "jobs").glob("*/order.json"))


def test_takes_are_compared_and_one_becomes_the_video(visit, speech):
    page = visit()
    choose(page, speech)
    page.click("#performance button")
    page.click("#performance label:has-text('Lively')")
    page.click("#preview")
    page.wait_for_selector(".take .pick >> nth=1")
    page.click(".take .pick >> nth=1")
    page.wait_for_selector(".take.picked")
    picture(page, "takes", full_page=True)
    page.click("#samples button >> nth=0")  # another speech, which this take is not of
    page.wait_for_selector(".take.picked", state="detached")
    page.click(".take .pick >> nth=1")
    page.wait_for_selector(".take.picked")
    page.click("#generate")
    page.wait_for_selector(".results")
    assert "--motion" in page.text_content("#results pre >> nth=0")
    assert "--seed 1" in page.text_content("#results pre >> nth=0")


def test_stop_stops_and_continue_goes_on(visit, speech):
    page = visit()
    choose(page, speech, "Best")
    page.click("#generate")
    page.wait_for_selector("#stop:visible")
    page.click("#stop")
    page.wait_for_selector("#status [data-do=retry]", timeout=10_000)
    assert "Stopped" in page.inner_text("#status")
    picture(page, "stopped")
    page.click("#status [data-do=retry]")
    page.wait_for_selector("#stop:visible")
    page.click("#stop")
    page.wait_for_selector("#status [data-do=retry]")


def test_the_history_finds_renders_again_and_deletes(visit, speech):
    page = visit()
    choose(page, speech)
    page.click("#generate")
    page.wait_for_selector(".results")
    page.click("button[role=tab]:has-text('History')")
    page.wait_for_selector(".job.done")
    picture(page, "history")
    page.fill("#history-text :is(input, textarea)", "no such name")
    page.wait_for_selector("#history-list:has-text('Nothing fits')")
    page.fill("#history-text :is(input, textarea)", "my SPEECH")
    page.wait_for_selector(".job.done")
    page.select_option(".job select", "twin")
    page.click(".job [data-do=rerender]")
    page.wait_for_selector(".results:visible a[download='My-speech-twin-draft.mp4']")
    page.click("button[role=tab]:has-text('History')")
    page.wait_for_function("document.querySelectorAll('.job.done').length == 2")
    page.on("dialog", lambda dialog: dialog.accept())
    page.click(".job [data-do=delete] >> nth=0")
    page.wait_for_function("document.querySelectorAll('.job').length == 1")


def test_two_visitors_see_only_their_own(visit, speech):
    one, other = visit(), visit()
    choose(one, speech)
    one.click("#preview")
    one.wait_for_selector(".take")
    other.click("button[role=tab]:has-text('History')")
    other.wait_for_selector("#history-list:has-text('Nothing here yet')")
    assert other.query_selector(".take, .job") is None


def test_wrong_files_and_nothing_end_in_sentences(visit, tmp_path):
    page = visit()
    page.click("#generate")
    page.wait_for_selector(".toast-body:has-text('record one or take a sample')")
    wrong = tmp_path / "song.wav"
    wrong.write_text("no sound at all")
    page.set_input_files("#speech input[type=file]", str(wrong))
    page.wait_for_selector(".toast-body:has-text('song.wav')")
    picture(page, "wrong-file")
    assert "Traceback" not in page.inner_text("body")


def test_the_microphone_is_a_speech(visit):
    page = visit()
    page.click("label.anchor:has-text('Tiny')")
    page.click("#speech button[aria-label*='ecord']")
    page.click("#speech button.record-button")
    page.wait_for_timeout(1500)
    page.click("#speech button.stop-button")
    page.wait_for_selector("#status:has-text('ready')")


def test_a_server_that_comes_back_goes_on(visit, server, speech):
    page = visit()
    choose(page, speech, "Best")
    page.click("#generate")
    page.wait_for_selector("#stop:visible")
    server.stop()
    server.start()
    page.goto(server.url)
    page.wait_for_selector(".results")


def test_presenters_come_and_go(visit, home):
    page = visit()
    page.click("button[role=tab]:has-text('Presenters')")
    page.wait_for_selector(".anchor-card:has-text('Twin')")
    picture(page, "presenters")
    with page.expect_download() as download:
        page.click(".anchor-card:has-text('Twin') a[download]")
    package = home / "twin.zip"
    download.value.save_as(package)
    page.click(".anchor-card:has-text('Twin') [data-do=verify]")
    page.wait_for_selector("#anchors-status:has-text('sound')")
    page.on("dialog", lambda dialog: dialog.accept())
    page.click(".anchor-card:has-text('Twin') [data-do=delete]")
    page.wait_for_selector("#anchors-status:has-text('deleted')")
    page.click("#import button")
    page.set_input_files("#import input[type=file]", str(package))
    page.wait_for_selector("#import :text('twin.zip')")
    page.click("button:has-text('Import the package')")
    page.wait_for_selector("#anchors-status:has-text('installed')")
    page.wait_for_selector(".anchor-card:has-text('Twin')")


def test_phone_dark_and_chinese(visit):
    phone = visit(**PHONE)
    assert phone.evaluate("document.documentElement.scrollWidth <= innerWidth")
    picture(phone, "phone", full_page=True)
    dark = visit(locale="zh-CN", color_scheme="dark")
    assert re.search("生成视频", dark.inner_text("#generate"))
    assert "选择语音" in dark.inner_text("#status")
    dark.click("#generate")
    dark.wait_for_selector(".toast-body:has-text('请先上传')")
    picture(dark, "dark-chinese")


def test_the_keyboard_reaches_the_presenters_and_everything_has_a_name(visit):
    page = visit()
    page.focus("input[name=anchor][value=tiny]")
    page.keyboard.press("ArrowRight")
    assert page.is_checked("input[name=anchor][value=twin]")
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('button, input, select, a[href], video')].filter(one =>
        one.offsetParent && !(one.innerText || one.ariaLabel || one.title || one.labels?.length || one.placeholder
        || one.closest('label') || one.querySelector('img[alt], svg[aria-label]') || one.tagName == 'VIDEO')
        ).map(one => one.outerHTML.slice(0, 120))"""
    )
    assert not nameless
