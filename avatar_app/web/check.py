"""The page that tells what a video says about its origin."""

from __future__ import annotations

import gradio as gr

from avatar_app.trust.verify import check
from avatar_app.web import panels
from avatar_app.web.site import language_of_request, toast
from avatar_app.web.texts import say, word
from talkshow_bridge.errors import InputError

QUIET = {"show_progress": "minimal", "api_visibility": "private"}


def check_page() -> None:
    """A file, a button, and the sentences of the verdict."""
    gr.Markdown(word("check_lead"))
    video = gr.File(label=word("check_file"), file_types=["video"], type="filepath", height=150, elem_id="check-file")
    button = gr.Button(word("check_button"), variant="primary", elem_id="check-button")
    verdict = gr.HTML(padding=False, elem_id="verdict")
    button.click(_verdict, video, verdict, concurrency_limit=2, **QUIET)
    video.clear(lambda: "", None, verdict, queue=False, **QUIET)


def _verdict(video: str | None, request: gr.Request) -> str:
    language = language_of_request(request)
    if not video:
        raise toast(say(language, "need_video"), language)
    try:
        found = check(video)
    except InputError as error:
        raise toast(str(error), language) from None
    kind = {0: "good", 4: "bad"}.get(found.exit_code, "")
    return panels.note(found.sentences[0], kind) + "".join(map(panels.note, found.sentences[1:]))
