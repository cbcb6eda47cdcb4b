"""The page of the presenters: what is installed, how others come in, are trained, and go."""

from __future__ import annotations

import shutil
from pathlib import Path

import gradio as gr

from avatar_app.anchors import import_anchor, is_bundled, list_anchors, load_anchor
from avatar_app.jobs import Job
from avatar_app.web import panels
from avatar_app.web.create import POLL, QUIET, CreatePage
from avatar_app.web.site import Site, anchor_of, language_of_request, owner, toast
from avatar_app.web.texts import say, word
from avatar_app.web.training import TrainingForm
from talkshow_bridge.errors import InputError

SLOWER = 3 * POLL  # s


class PresentersPage:
    """Cards of all anchors; with `Site.manage` also import, training and deletion, with `Site.local` from this disk."""

    def __init__(self, site: Site, create: CreatePage, tab: gr.Tab):
        self.site = site
        self.status = gr.HTML(elem_id="anchors-status", padding=False)
        self.trainings = panels.panel(elem_id="trainings")
        self.cards = panels.panel(elem_id="anchors-list")
        self.seen = gr.State(("", ""))  # what both show, so that only changes are sent
        self.timer = gr.Timer(SLOWER, active=False)
        view = [self.trainings, self.cards, create.anchor, self.timer, self.seen]
        for changed in (tab.select, self.timer.tick):
            changed(self._show, self.seen, view, **QUIET)
        for panel in (self.trainings, self.cards):
            panel.act(self._act, self.seen, [self.status, *view], **QUIET)
        if site.manage:
            training = TrainingForm(site, self.status)
            tab.select(training.choices, None, [training.dataset, training.start], **QUIET)
            training.started(self._show, self.seen, view, **QUIET)
            with gr.Accordion(word("import"), open=False, elem_id="import"):
                package = gr.File(label=word("import_zip"), file_types=[".zip"], type="filepath", height=130)
                button = gr.Button(word("import_button"), variant="primary")
                button.click(self._import, [package, self.seen], [self.status, *view], **QUIET)
            if site.local:
                self._checkpoint_form(view)
        else:
            gr.Markdown(word("not_here"))

    def _checkpoint_form(self, view) -> None:
        from avatar_app.trust.consent import KINDS

        with gr.Accordion(word("checkpoint"), open=False, elem_id="checkpoint"):
            names = ("f_checkpoint", "f_base", "f_reference", "f_head", "f_camera")
            paths = [gr.Textbox(label=word(name)) for name in names]
            body = gr.Radio(["smplx", "open"], value="smplx", label=word("f_body"))
            kind = gr.Radio([(word(f"c_{kind}"), kind) for kind in KINDS], label=word("f_consent"))
            agree = gr.Checkbox(label=word("f_agree"))
            button = gr.Button(word("import_checkpoint"))
            inputs = [*paths, body, kind, agree, self.seen]
            button.click(self._import_checkpoint, inputs, [self.status, *view], **QUIET)

    def _show(self, seen: tuple[str, str], request: gr.Request) -> tuple:
        language, anchors = language_of_request(request), list_anchors()
        jobs = self.site.jobs.list(owner(request), kinds=("train",))
        trainings = "".join(panels.training_card(job, language) for job in jobs)
        cards = "".join(panels.anchor_card(anchor, language, self.site.manage) for anchor in anchors)
        changed = [now if now != before else gr.skip() for now, before in zip((trainings, cards), seen, strict=True)]
        picker = gr.HTML(cards=panels.picker_cards(anchors)) if cards != seen[1] else gr.skip()
        return *changed, picker, gr.Timer(active=any(not job.over for job in jobs)), (trainings, cards)

    def _act(self, seen, event: gr.EventData, request: gr.Request) -> tuple:
        if job := self.site.find(str(event._data.get("id")), request):
            self._act_on_training(job, event._data.get("do"), request)
            return "", *self._show(seen, request)
        language, anchor = language_of_request(request), anchor_of(str(event._data.get("id")))
        if anchor is None:
            return gr.skip(), *self._show(seen, request)
        name, told = anchor.manifest.name, gr.skip()
        if event._data.get("do") == "verify":
            try:
                load_anchor(anchor.folder)
            except InputError as error:
                raise toast(str(error), language) from None
            told = panels.note(say(language, "verified", name=name, count=len(anchor.manifest.files)), "good")
        elif event._data.get("do") == "delete" and self.site.manage and not is_bundled(anchor.folder):
            shutil.rmtree(anchor.folder)
            told = panels.note(say(language, "deleted", name=name))
        return told, *self._show(seen, request)

    def _act_on_training(self, job: Job, do: str, request: gr.Request) -> None:
        match do:
            case "stop":
                self.site.jobs.cancel(job.id, job.owner)
            case "retry":
                self.site.retry(job, request)
            case "remove":
                self.site.jobs.delete(job.id, job.owner)

    def _import(self, package: str | None, seen, request: gr.Request) -> tuple:
        language = language_of_request(request)
        if not package:
            raise toast(say(language, "need_package"), language)
        try:
            anchor = import_anchor(Path(package))
        except InputError as error:
            raise toast(str(error), language) from None
        return panels.note(say(language, "imported", name=anchor.manifest.name), "good"), *self._show(seen, request)

    def _import_checkpoint(
        self, checkpoint, base, reference, head, camera, body, kind, agree, seen, request: gr.Request
    ):
        from avatar_app.import_original import Original, import_original
        from avatar_app.trust.consent import new_consent

        language = language_of_request(request)
        paths = {"checkpoint": checkpoint, "base": base, "reference": reference, "camera": camera}
        if not all(paths.values()):
            raise toast(say(language, "need_paths"), language)
        if not (kind and agree):
            raise toast(say(language, "need_consent"), language)
        if head:
            paths["head_reference"] = head
        try:
            consent = new_consent(kind, True)
            places = {name: Path(path).expanduser() for name, path in paths.items()}
            anchor = import_original(Original(**places, body=body, consent=consent))
        except (InputError, OSError) as error:
            raise toast(str(error), language) from None
        return panels.note(say(language, "imported", name=anchor.manifest.name), "good"), *self._show(seen, request)
