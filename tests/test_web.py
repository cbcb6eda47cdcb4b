"""The page, served on a free port and driven like a visitor's browser would, with the tiny anchor."""

import json
import re
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from avatar_app.pipeline import Cancelled
from avatar_app.video import probe
from avatar_app.web.jobs import Job
from tests.speech import write_speech

gradio_client = pytest.importorskip("gradio_client")


@pytest.fixture(scope="module")
def page_url(tmp_path_factory, tiny_anchor):
    from avatar_app.web.app import build

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AVATAR_APP_ANCHORS", str(tiny_anchor.folder.parent))
        patch.setenv("AVATAR_APP_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        page = build().queue()
        _, url, _ = page.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, ssr_mode=False)
        yield url
        page.close()


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    return write_speech(tmp_path_factory.mktemp("speech") / "héllo <b>.wav", 0.5)


def ask(url: str, speech: Path | None, tmp_path: Path, mode: str = "/video", **changes):
    client = gradio_client.Client(url, download_files=str(tmp_path), verbose=False, httpx_kwargs={"timeout": 120})
    answers = {"speech": speech and gradio_client.handle_file(str(speech)), "anchor": "tiny", "preset": "draft"}
    answers |= {"style": "lively", "energy": 1.5, "seed": 4} | changes
    return client.predict(*answers.values(), api_name=mode)


@pytest.mark.parametrize("mode", ["/video", "/preview"])
def test_speech_becomes_a_video_with_its_settings(page_url, speech, tmp_path, mode):
    status, video, download, settings = ask(page_url, speech, tmp_path, mode)
    assert "0.5 s of video in" in status
    path = video["video"] if isinstance(video, dict) else video
    facts = probe(path)
    assert (facts.frames, facts.width, facts.audio_codec) == (13, 64, "aac")
    told = json.loads(Path(settings["value"] if isinstance(settings, dict) else settings).read_text())
    assert told["settings"]["seed"] == 4 and told["preview"] is (mode == "/preview")
    assert not list(Path(tempfile.gettempdir()).glob("avatar-app-*"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"anchor": "<i>nobody"}, "Unknown anchor '&lt;i&gt;nobody'"),
        ({"energy": 7}, "gesture_energy|maximum"),
        ({"seed": -1}, "seed|minimum"),
        ({"preset": "ultra"}, "ultra"),
    ],
)
def test_wrong_choices_end_in_one_sentence(page_url, speech, tmp_path, changes, words):
    with pytest.raises(Exception) as caught:
        ask(page_url, speech, tmp_path, **changes)
    assert re.search(words, str(caught.value)) and "Traceback" not in str(caught.value)


def test_wrong_speech_ends_in_one_sentence(page_url, tmp_path):
    (tmp_path / "noise.wav").write_text("no sound")
    write_speech(tmp_path / "short.wav", 0.02)
    for speech, words in ((None, "choose a speech"), ("noise.wav", "noise.wav"), ("short.wav", "0.1 s")):
        with pytest.raises(Exception, match=words):
            ask(page_url, speech and tmp_path / speech, tmp_path)


def test_two_visitors_take_turns(page_url, speech, tmp_path):
    folders = [tmp_path / "one", tmp_path / "two"]
    with ThreadPoolExecutor() as pool:
        results = list(pool.map(lambda folder: ask(page_url, speech, folder, "/preview"), folders))
    assert all("0.5 s of video" in result[0] for result in results)


def test_a_job_stops_when_asked_and_when_nobody_watches(monkeypatch):
    def work(progress):
        for step in range(1000):
            time.sleep(0.01)
            progress("frames", step, 1000)

    job = Job(work)
    for _ in job.watch():
        break  # the visitor left
    job._thread.join(5)
    assert isinstance(job.error, Cancelled) and 0 < job.done < 900

    monkeypatch.setattr("avatar_app.web.jobs.LEASE", 0.1)
    forgotten = Job(work)
    forgotten._thread.join(5)
    assert isinstance(forgotten.error, Cancelled)


def test_nothing_on_the_page_comes_from_elsewhere(page_url):
    import httpx

    text = httpx.get(page_url).text
    remote = re.findall(r'(?:src|href)="(https?://[^"]+)"', text)
    assert not [address for address in remote if "127.0.0.1" not in address and "gradio.app" not in address]
    assert 'analytics_enabled":false' in text.replace(" ", "")
