"""The page of the presenters: what is installed, and how others come in and go."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import gradio as gr

from avatar_app.anchors import BUNDLED, import_anchor, list_anchors, load_anchor
from avatar_app.web import panels
from avatar_app.web.create import QUIET, CreatePage
from avatar_app.web.site import Site, anchor_of, language_of_request, toast
from avatar_app.web.texts import say, word
from talkshow_bridge.errors import InputError

log = logging.getLogger(__name__)


class PresentersPage:
    """Cards of all anchors; with `Site.manage` also import and deletion, with `Site.local` from this disk."""

    def __init__(self, site: Site, create: CreatePage, tab: gr.Tab):
        self.site = site
        self.status = gr.HTML(elem_id="anchors-status", padding=False)
        self.cards = panels.panel(elem_id="anchors-list")
        picker = [self.cards, create.anchor]
        tab.select(self._show, None, picker, **QUIET)
        self.cards.act(self._act, None, [self.status, *picker], **QUIET)
        if site.manage:
            with gr.Accordion(word("import"), open=False, elem_id="import"):
                package = gr.File(label=word("import_zip"), file_types=[".zip"], type="filepath", height=130)
                button = gr.Button(word("import_button"), variant="primary")
                button.click(self._import, package, [self.status, *picker], **QUIET)
                gr.Markdown(word("train_how"))
            if site.local:
                self._checkpoint_form(picker)
        else:
            gr.Markdown(word("not_here"))

    def _checkpoint_form(self, picker) -> None:
        from avatar_app.trust.consent import KINDS

        with gr.Accordion(word("checkpoint"), open=False, elem_id="checkpoint"):
            names = ("f_checkpoint", "f_base", "f_reference", "f_head", "f_camera")
            paths = [gr.Textbox(label=word(name)) for name in names]
            body = gr.Radio(["smplx", "open"], value="smplx", label=word("f_body"))
            kind = gr.Radio([(word(f"c_{kind}"), kind) for kind in KINDS], label=word("f_consent"))
            agree = gr.Checkbox(label=word("f_agree"))
            button = gr.Button(word("import_checkpoint"))
            button.click(self._import_checkpoint, [*paths, body, kind, agree], [self.status, *picker], **QUIET)

    def _show(self, request: gr.Request) -> tuple:
        language, anchors = language_of_request(request), list_anchors()
        cards = "".join(panels.anchor_card(anchor, language, self.site.manage) for anchor in anchors)
        return cards, gr.HTML(cards=panels.picker_cards(anchors))

    def _act(self, event: gr.EventData, request: gr.Request) -> tuple:
        language, anchor = language_of_request(request), anchor_of(str(event._data.get("id")))
        if anchor is None:
            return gr.skip(), *self._show(request)
        name, told = anchor.manifest.name, gr.skip()
        if event._data.get("do") == "verify":
            try:
                load_anchor(anchor.folder)
            except InputError as error:
                raise toast(str(error)) from None
            told = panels.note(say(language, "verified", name=name, count=len(anchor.manifest.files)), "good")
        elif event._data.get("do") == "delete" and self.site.manage and anchor.folder.parent != BUNDLED:
            shutil.rmtree(anchor.folder)
            told = panels.note(say(language, "deleted", name=name))
        return told, *self._show(request)

    def _import(self, package: str | None, request: gr.Request) -> tuple:
        language = language_of_request(request)
        if not package:
            raise toast(say(language, "need_package"))
        try:
            anchor = import_anchor(Path(package))
        except InputError as error:
            raise toast(str(error)) from None
        return panels.note(say(language, "imported", name=anchor.manifest.name), "good"), *self._show(request)

    def _import_checkpoint(self, checkpoint, base, reference, head, camera, body, kind, agree, request: gr.Request):
        from avatar_app.import_original import Original, import_original
        from avatar_app.trust.consent import new_consent

        language = language_of_request(request)
        paths = {"checkpoint": checkpoint, "base": base, "reference": reference, "camera": camera}
        if not all(paths.values()):
            raise toast(say(language, "need_paths"))
        if head:
            paths["head_reference"] = head
        try:
            consent = new_consent(kind, bool(agree))
            places = {name: Path(path).expanduser() for name, path in paths.items()}
            anchor = import_original(Original(**places, body=body, consent=consent))
        except (InputError, OSError) as error:
            raise toast(str(error)) from None
        return panels.note(say(language, "imported", name=anchor.manifest.name), "good"), *self._show(request)
