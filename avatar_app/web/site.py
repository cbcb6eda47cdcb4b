"""What all pages of one server share: its jobs, its rules, and the checks that come before a job."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import gradio as gr

from avatar_app.anchors import Anchor, list_anchors
from avatar_app.jobs import Job, Jobs
from avatar_app.jobs.store import Kind
from avatar_app.settings import RenderSettings
from avatar_app.web.texts import language_of, lasting, say, translated
from talkshow_bridge.audio import stream
from talkshow_bridge.errors import InputError

SAMPLES = Path(__file__).parents[2] / "samples"
AUDIO_SUFFIXES = {".wav", ".mp3", ".flac", ".opus", ".ogg", ".m4a"}
MAX_SECONDS = 600  # of speech in the page; the command line has no limit
MAX_UNFINISHED = 20  # jobs of one visitor


@dataclass(frozen=True)
class Site:
    """manage: visitors may import and delete anchors.   local: they may also name files on the server's disk."""

    jobs: Jobs
    manage: bool = True
    local: bool = True

    def find(self, id: str | None, request: gr.Request) -> Job | None:
        """A visitor's job; None when there is none of that id (any more)."""
        try:
            return self.jobs.get(id, owner(request)) if id else None
        except InputError:
            return None

    def submit(self, request: gr.Request, speech, settings: RenderSettings, **options) -> str:
        """Queues a job for a visitor. Raises gr.Error with a sentence in the visitor's language where it is ours."""
        language, mine = language_of_request(request), owner(request)
        if speech is None and options.get("motion") is None:
            raise toast(say(language, "need_speech"), language)
        if speech is not None:
            checked_length(speech, language)
        self.check_room(request)
        try:
            return self.jobs.submit(speech, settings, owner=mine, **options)
        except InputError as error:
            raise toast(str(error), language) from None

    def check_room(self, request: gr.Request) -> None:
        """Raises gr.Error when a visitor has as many unfinished jobs, trainings among them, as one may have."""
        jobs = self.jobs.list(owner(request), kinds=get_args(Kind))
        if (count := sum(not job.over for job in jobs)) >= MAX_UNFINISHED:
            language = language_of_request(request)
            raise toast(say(language, "too_many", count=count), language)

    def retry(self, job: Job, request: gr.Request) -> None:
        """Queues a visitor's stopped or failed job again."""
        self.check_room(request)
        self.jobs.retry(job.id, job.owner)


def owner(request: gr.Request) -> str:
    """Whose jobs a request may see (see `server.Guard`)."""
    return request.state.owner


def language_of_request(request: gr.Request) -> str:
    return language_of(request.headers.get("accept-language"))


def toast(sentence: str, language: str = "en") -> gr.Error:
    """An error that the page shows as a sentence, in this language where the sentence is known."""
    shown = html.escape(translated(language, sentence), quote=False)
    return gr.Error(shown, title=say(language, "not_done"), print_exception=False)


def settings_of(language: str = "en", **values: object) -> RenderSettings:
    """RenderSettings from what a visitor chose; a wrong value becomes a sentence."""
    try:
        return RenderSettings(**values)
    except InputError as error:
        raise toast(str(error), language) from None


def checked_length(speech: str | Path, language: str) -> float:
    """Seconds of a usable speech file, decoding no more of it than the page takes."""
    seconds = 0.0
    try:
        with stream(speech) as (blocks, rate):
            for block in blocks:
                seconds += block.shape[1] / rate
                if seconds > MAX_SECONDS:
                    break
    except InputError as error:
        raise toast(str(error), language) from None
    if seconds > MAX_SECONDS:
        raise toast(say(language, "too_long", limit=lasting(language, MAX_SECONDS)), language)
    return seconds


def anchor_of(id: str | None) -> Anchor | None:
    return next((anchor for anchor in list_anchors() if anchor.id == id), None)
