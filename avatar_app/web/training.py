"""The part of the presenters' page where new ones are trained: a checked data set, who is shown, and how long."""

from __future__ import annotations

import os
from datetime import date
from pathlib import Path

import gradio as gr

from avatar_app.jobs.training import (
    MINUTES,
    beginnings,
    datasets,
    datasets_folder,
    import_dataset,
    submit_training,
)
from avatar_app.trust.statements import KINDS
from avatar_app.web import panels
from avatar_app.web.create import QUIET
from avatar_app.web.site import Site, language_of_request, owner, toast
from avatar_app.web.texts import say, word
from talkshow_bridge.errors import InputError

LICENCE = "all rights reserved"
USUAL_MINUTES = 60
NOBODY = "–"  # to begin with


class TrainingForm:
    """Draws the form; `started` is an event of trainings that have been queued."""

    def __init__(self, site: Site, status: gr.HTML):
        self.site = site
        with gr.Accordion(word("train"), open=False, elem_id="train"):
            gr.Markdown(word("train_how"))
            with gr.Row():
                place = f"{datasets_folder()}{os.sep}" if site.local else None
                self.dataset = gr.Dropdown(
                    [], label=word("f_dataset"), info=place, scale=2, min_width=260, elem_id="dataset"
                )
                package = gr.File(
                    label=word("f_dataset_zip"),
                    file_types=[".zip"],
                    type="filepath",
                    height=90,
                    min_width=260,
                    elem_classes="small-file",
                )
            findings = gr.HTML(elem_id="findings", padding=False)
            with gr.Row():
                name = gr.Textbox(label=word("f_name"), max_length=200, min_width=180)
                licence = gr.Textbox(LICENCE, label=word("f_licence"), max_length=200, min_width=180)
                low, high = MINUTES
                minutes = gr.Number(
                    USUAL_MINUTES, label=word("f_minutes"), minimum=low, maximum=high, precision=0, min_width=180
                )
                self.start = gr.Dropdown([], label=word("f_start"), info=word("f_start_info"), min_width=180)
            with gr.Row():
                kind = gr.Radio(
                    [(word(f"c_{kind}"), kind) for kind in KINDS], label=word("f_consent"), scale=2, min_width=260
                )
                expires = gr.Textbox(label=word("f_expires"), placeholder="2027-12-31", max_length=10, min_width=180)
            agree = gr.Checkbox(label=word("f_agree"))
            button = gr.Button(word("start_training"), variant="primary", interactive=False, elem_id="start-training")
        checked = gr.State(None)  # the data set that no fatal fault was found in
        check = {"fn": _check, "inputs": self.dataset, "outputs": [findings, checked, button]}
        self.dataset.select(**check, **QUIET | {"show_progress": "full"}, concurrency_limit=1)
        package.upload(self._take_in, package, [package, self.dataset], **QUIET).success(**check, **QUIET)
        inputs = [checked, name, licence, minutes, self.start, kind, expires, agree]
        self.started = button.click(self._start, inputs, status, **QUIET).success

    def choices(self) -> tuple[gr.Dropdown, gr.Dropdown]:
        """The data sets, and the presenters to begin with, that are there now: for `dataset` and `start`."""
        known = [(anchor.manifest.name, anchor.id) for anchor in beginnings()]
        first = known[0][1] if known else NOBODY
        return gr.Dropdown(choices=list(datasets())), gr.Dropdown(choices=[*known, (NOBODY, NOBODY)], value=first)

    def _take_in(self, package: str, request: gr.Request) -> tuple:
        try:
            name = import_dataset(Path(package))
        except InputError as error:
            raise toast(str(error), language_of_request(request)) from None
        return None, gr.Dropdown(choices=list(datasets()), value=name)

    def _start(self, checked, name, licence, minutes, start, kind, expires, agree, request: gr.Request) -> str:
        from avatar_app.trust.consent import new_consent

        language, place = language_of_request(request), datasets().get(checked)
        if place is None:
            raise toast(say(language, "need_dataset"), language)
        if not (kind and agree):
            raise toast(say(language, "need_consent"), language)
        try:
            last = {"expires": date.fromisoformat(expires.strip())} if expires.strip() else {}
        except ValueError:
            raise toast(say(language, "need_day"), language) from None
        self.site.check_room(request)
        try:
            consent = new_consent(kind, True, **last)
            start = None if start == NOBODY else start
            submit_training(self.site.jobs, owner(request), place, name, consent, minutes or 0, licence, start)
        except InputError as error:
            raise toast(str(error), language) from None
        return panels.note(say(language, "training_queued", name=name.strip()), "good")


def _check(name: str | None, request: gr.Request) -> tuple:
    """The table of what is wrong with a data set; only one without fatal faults may be trained on."""
    from avatar_app.training.check import check_dataset

    place = datasets().get(name)
    if place is None:
        return "", None, gr.Button(interactive=False)
    findings = check_dataset(place)
    sound = not any(finding.fatal for finding in findings)
    table = panels.findings_table(findings, language_of_request(request))
    return table, name if sound else None, gr.Button(interactive=sound)
