"""The page of all earlier and waiting jobs of a visitor."""

from __future__ import annotations

import gradio as gr

from avatar_app.anchors import list_anchors
from avatar_app.jobs.store import STATES
from avatar_app.web import panels
from avatar_app.web.create import POLL, QUICK, QUIET, CreatePage
from avatar_app.web.site import Site, anchor_of, language_of_request, owner
from avatar_app.web.texts import say, word

SHOWN = 40  # jobs at once
SLOWER = 3 * POLL  # s


class HistoryPage:
    """A searchable list; "open" and "again" lead to the create page."""

    def __init__(self, site: Site, create: CreatePage, tabs: gr.Tabs, create_tab: str, tab: gr.Tab):
        self.site, self.create, self.create_tab = site, create, create_tab
        with gr.Row(elem_id="history-filter"):
            self.text = gr.Textbox(label=word("search"), scale=3, min_width=200, elem_id="history-text")
            states = [(word("any"), ""), *((word(f"s_{state}"), state) for state in STATES)]
            self.state = gr.Dropdown(states, value="", label=word("state"), scale=1, min_width=140)
        self.list = panels.panel(elem_id="history-list")
        self.seen = gr.State("")
        self.timer = gr.Timer(SLOWER, active=False)
        inputs, outputs = [self.text, self.state, self.seen], [self.list, self.seen, self.timer]
        for changed in (tab.select, self.text.change, self.state.change, self.timer.tick):
            changed(self._show, inputs, outputs, **QUICK)
        leave = [tabs, *create.view, *create.filled]
        self.list.act(self._act, [*inputs, create.seen], [*outputs, *leave], **QUIET)

    def _show(self, text: str, state: str, seen: str, request: gr.Request) -> tuple:
        language, anchors = language_of_request(request), list_anchors()
        jobs = self.site.jobs.list(owner(request), text or "", state or None)
        cards = "".join(panels.history_card(job, anchors, language) for job in jobs[:SHOWN])
        if not jobs:
            cards = panels.note(say(language, "no_match" if text or state else "no_jobs"))
        if len(jobs) > SHOWN:
            cards += panels.note(say(language, "more", count=len(jobs) - SHOWN))
        active = any(not job.over for job in jobs)
        return gr.skip() if cards == seen else cards, cards, gr.Timer(active=active)

    def _act(self, text, state, seen, create_seen, event: gr.EventData, request: gr.Request) -> tuple:
        asked, job = event._data, None
        job, stay = self.site.find(str(asked.get("id")), request), (gr.skip(),) * len(self.create.filled)
        shown = None  # the job that the create page is to show
        if job is not None:
            match asked.get("do"):
                case "open" if job.kind == "video":
                    shown = job.id
                case "open":
                    shown = ""
                case "stop":
                    self.site.jobs.cancel(job.id, job.owner)
                case "retry":
                    self.site.retry(job, request)
                case "delete":
                    self.site.jobs.delete(job.id, job.owner)
                case "rerender":
                    shown = self._rerender(job, str(asked.get("choice")), request)
        here = self._show(text, state, seen, request)
        if shown is None:
            return *here, gr.skip(), *((gr.skip(),) * len(self.create.view)), *stay
        return *here, gr.Tabs(selected=self.create_tab), *self.create.show(shown, create_seen, request), *stay

    def _rerender(self, job, anchor: str, request: gr.Request) -> str | None:
        """The same speech, motion and subtitles with another presenter."""
        from dataclasses import replace

        if anchor_of(anchor) is None:
            return None
        settings = replace(job.settings, anchor=anchor)
        given = {"motion": job.motion, "name": job.name, "subtitles": job.subtitles}
        return self.site.submit(request, job.speech, settings, **given)
