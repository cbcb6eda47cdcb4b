"""The page where videos are made: three choices on the left, the screen and takes of the motion on the right.

The page holds no work. It shows what the jobs on the server are doing, asks once a second while one of them is not
over, and not at all otherwise.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import gradio as gr

from avatar_app.anchors import list_anchors
from avatar_app.estimate import expected_memory, expected_seconds
from avatar_app.jobs import Job
from avatar_app.pipeline import best_device
from avatar_app.settings import PRESETS, STYLES, RenderSettings
from avatar_app.subtitles import FORMATS, load_subtitles
from avatar_app.web import panels
from avatar_app.web.site import (
    AUDIO_SUFFIXES,
    SAMPLES,
    Site,
    anchor_of,
    checked_length,
    language_of_request,
    owner,
    settings_of,
    toast,
)
from avatar_app.web.texts import lasting, say, word
from talkshow_bridge.errors import InputError

POLL = 1.0  # s
SHOWN_AGAIN = 3600.0  # s after its end for which a video is still on the screen when the page is opened anew
MAX_TAKES_SHOWN = 6
SEEDS = 2**32
QUIET = {"show_progress": "hidden", "api_visibility": "private"}
QUICK = QUIET | {"queue": False}


class CreatePage:
    """Components and handlers of the page; `show` puts a job of the history on its screen."""

    def __init__(self, site: Site):
        self.site = site
        anchors = list_anchors()
        first = anchors[0].id if anchors else None
        with gr.Row(equal_height=False, elem_id="create"):
            with gr.Column(scale=5, min_width=320):
                self._inputs(anchors, first)
            with gr.Column(scale=6, min_width=320, elem_id="stage"):
                self._screen()
        self.current = gr.State(None)  # id of the job on the screen
        self.picked = gr.State(None)  # id of the take whose motion is chosen
        self.seen = gr.State({})  # what the page shows, so that only changes are sent
        self.timer = gr.Timer(POLL, active=False)
        self._wire()

    def _inputs(self, anchors, first: str | None) -> None:
        _heading("speech")
        self.speech = gr.Audio(
            sources=["upload", "microphone"], type="filepath", label=word("speech_label"), buttons=["download"],
            elem_id="speech",
        )  # fmt: skip
        files = sorted(file for file in SAMPLES.glob("*") if file.suffix in AUDIO_SUFFIXES)
        with gr.Row(elem_id="samples", visible=bool(files)):
            gr.Markdown(word("samples"))
            self.samples = [(gr.Button(file.stem.capitalize(), size="sm", min_width=80), file) for file in files]
        with gr.Accordion(word("subtitles"), open=False, elem_id="subtitles"):
            looks = {"type": "filepath", "height": 90, "elem_classes": "small-file"}
            self.subtitles = gr.File(file_types=list(FORMATS), label=word("subtitles_label"), **looks)
        _heading("presenter")
        self.anchor = panels.anchor_picker(first, panels.picker_cards(anchors), elem_id="anchor")
        _heading("quality")
        self.preset = gr.Radio(
            [(word(name), name) for name in PRESETS], value="standard", label=word("preset_info"), elem_id="preset"
        )
        with gr.Accordion(word("performance"), open=False, elem_id="performance"):
            self.style = gr.Radio([(word(name), name) for name in STYLES], value="neutral", label=word("style"))
            self.energy = gr.Slider(0, 2, 1, step=0.1, label=word("energy"), info=word("energy_info"))
            with gr.Row():
                self.seed = gr.Number(
                    0, precision=0, minimum=0, maximum=SEEDS - 1, label=word("seed"), info=word("seed_info"),
                    min_width=120,
                )  # fmt: skip
                self.count = gr.Slider(1, 4, 2, step=1, label=word("takes"), min_width=120)
            self.label = gr.Checkbox(False, label=word("label"))

    def _screen(self) -> None:
        self.player = gr.HTML(panels.player(None, "en"), elem_id="player", padding=False)
        with gr.Row(elem_id="actions"):
            self.generate = gr.Button(word("generate"), variant="primary", scale=2, min_width=150, elem_id="generate")
            self.stop = gr.Button(word("stop"), variant="stop", scale=2, min_width=150, visible=False, elem_id="stop")
            self.preview = gr.Button(word("preview"), scale=1, min_width=130, elem_id="preview")
            self.new = gr.Button(word("new"), scale=1, min_width=130, visible=False, elem_id="new")
        self.status = panels.panel(elem_id="status")
        self.takes = panels.panel(elem_id="takes")
        self.results = panels.panel(elem_id="results")

    def _wire(self) -> None:
        performance = [self.preset, self.style, self.energy, self.seed, self.label]
        chosen = [self.speech, self.subtitles, self.anchor, *performance]
        self.view = [self.player, self.status, self.results, self.takes, self.generate, self.stop, self.new, self.timer]
        self.view += [self.current, self.picked, self.seen]
        memory = [self.current, self.picked, self.seen]

        self.generate.click(self._generate, [*chosen, *memory], self.view, **QUIET, concurrency_limit=4)
        inputs = [self.speech, self.anchor, *performance, self.count, *memory]
        self.preview.click(self._preview, inputs, self.view, **QUIET, concurrency_limit=4)
        self.stop.click(self._stop, memory, self.view, **QUICK)
        self.new.click(self._new, memory, self.view, **QUICK)
        self.timer.tick(self._refresh, memory, self.view, **QUICK)
        self.filled = chosen
        for panel in (self.status, self.results, self.takes):
            panel.act(self._act, memory, [*self.view, *self.filled], **QUIET)
        for button, file in self.samples:
            button.click(lambda file=str(file): file, None, self.speech, **QUICK)
        self.speech.change(self._new_speech, [self.speech, *memory], self.view, **QUICK)
        self.anchor.input(self._new_anchor, [self.anchor, *memory], self.view, **QUICK)
        for changed in (self.speech.change, self.anchor.input):
            asked = [self.speech, self.anchor, self.current, self.picked]
            changed(self._describe, asked, [self.preset, self.status], **QUIET)
        self.subtitles.upload(_check_subtitles, self.subtitles, None, **QUIET)
        for changed in (self.style.input, self.energy.release, self.seed.input):
            changed(self._unpick, memory, self.view, **QUICK)

    # What the buttons do

    def _generate(
        self, speech, subtitles, anchor, preset, style, energy, seed, label, current, picked, seen, request: gr.Request
    ):
        settings = _chosen(anchor, preset, style, energy, seed, label, language_of_request(request))
        take = self.site.find(picked, request)
        if take is None or take.motion is None:
            id = self.site.submit(request, speech, settings, subtitles=subtitles)
        else:
            settings = replace(
                settings,
                style=take.settings.style,
                gesture_energy=take.settings.gesture_energy,
                seed=take.settings.seed,
            )
            given = {"motion": take.motion, "name": take.name, "subtitles": subtitles}
            id = self.site.submit(request, take.speech, settings, **given)
        return self._view(id, picked, seen, request)

    def _preview(
        self, speech, anchor, preset, style, energy, seed, label, count, current, picked, seen, request: gr.Request
    ):
        settings = _chosen(anchor, preset, style, energy, seed, label, language_of_request(request))
        for number in range(int(count)):
            self.site.submit(request, speech, replace(settings, seed=(settings.seed + number) % SEEDS), kind="preview")
        return self._view(current, picked, seen, request)

    def _stop(self, current, picked, seen, request: gr.Request):
        if job := self.site.find(current, request):
            self.site.jobs.cancel(job.id, job.owner)
        return self._view(current, picked, seen, request)

    def _new(self, current, picked, seen, request: gr.Request):
        return self._view(None, picked, seen, request)

    def _new_speech(self, speech, current, picked, seen, request: gr.Request):
        """A take belongs to the speech that it was made of."""
        return self._view(current, None if speech else picked, seen, request)

    def _new_anchor(self, anchor, current, picked, seen, request: gr.Request):
        return self._view(current, picked, seen | {"anchor": anchor}, request)

    def _unpick(self, current, picked, seen, request: gr.Request):
        return self._view(current, None, seen, request)

    def _refresh(self, current, picked, seen, request: gr.Request):
        return self._view(current, picked, seen, request)

    def _act(self, current, picked, seen, event: gr.EventData, request: gr.Request):
        """A button inside a panel: the word says what to do with the job of that id."""
        asked, unchanged = event._data, [gr.skip()] * len(self.filled)
        job = self.site.find(str(asked.get("id")), request)
        if job is None:
            return *self._view(current, picked, seen, request), *unchanged
        match asked.get("do"):
            case "retry":
                self.site.retry(job, request)
            case "remove":
                self.site.jobs.delete(job.id, job.owner)
                picked = None if picked == job.id else picked
            case "pick":
                picked = None if picked == job.id else job.id
            case "again":
                return *self._view(None, None, seen, request), *self.fill(job)
        return *self._view(current, picked, seen, request), *unchanged

    def fill(self, job: Job) -> tuple:
        """The inputs as they were for a job."""
        settings = job.settings
        return (
            _copy_for_page(job.speech, job.name),
            _copy_for_page(job.subtitles, job.name),
            settings.anchor,
            settings.preset,
            settings.style,
            settings.gesture_energy,
            settings.seed,
            settings.label,
        )

    def show(self, id: str, seen: dict, request: gr.Request) -> tuple:
        """The page with this job on its screen."""
        return self._view(id, None, seen, request)

    def open(self, request: gr.Request) -> tuple:
        """The page as it is opened: with the job that is still running, or a video that has just ended."""
        recent = [job for job in self.site.jobs.list(owner(request)) if job.kind == "video"]
        going = next((job for job in reversed(recent) if not job.over), None)
        fresh = next((job for job in recent if job.over and time.time() - job.finished < SHOWN_AGAIN), None)
        job = going or fresh
        return self._view(job and job.id, None, {}, request)

    # What it shows

    def _view(self, current: str | None, picked: str | None, seen: dict, request: gr.Request) -> tuple:
        language, job, take = language_of_request(request), self.site.find(current, request), None
        mine = self.site.jobs.list(owner(request))
        takes = [one for one in mine if one.kind == "preview" and one.state != "cancelled"][:MAX_TAKES_SHOWN]
        take = next((one for one in takes if one.id == picked), None)
        running = job is not None and not job.over
        anchor = seen.get("anchor") or next((one.id for one in list_anchors()), "")
        now = {
            "player": panels.player(job, language, anchor),
            "status": panels.status(job, language) if job else panels.note(say(language, "hint")),
            "results": panels.results(job, language) if job else "",
            "takes": panels.takes(takes[::-1], take and take.id, language),
        }
        changed = [now[part] if seen.get(part) != now[part] else gr.skip() for part in now]
        buttons = [gr.Button(visible=not running), gr.Button(visible=running), gr.Button(visible=job is not None)]
        active = running or any(not one.over for one in takes)
        now |= {"anchor": anchor}
        return (*changed, *buttons, gr.Timer(active=active), job and job.id, take and take.id, now)

    def _describe(self, speech, anchor, current, picked, request: gr.Request):
        """Checks a new speech at once; tells the time and memory that each preset will take for it.

        That may take a while in which the visitor goes on, so it touches nothing else."""
        language, take = language_of_request(request), self.site.find(picked, request)
        seconds = checked_length(speech, language) if speech else take.duration if take else None
        status = gr.skip()
        if current is None and seconds is not None:
            status = panels.note(say(language, "ready", length=lasting(language, seconds)))
        return gr.Radio(choices=preset_choices(anchor, seconds, language)), status


def preset_choices(anchor: str | None, seconds: float | None, language: str) -> list[tuple[str, str]]:
    """(label, preset): each label tells the memory and, with a speech at hand, the time that it takes here."""
    presenter = anchor_of(anchor)
    if presenter is None:
        return [(say(language, name), name) for name in PRESETS]
    device, choices = best_device(), []
    for name in PRESETS:
        costs = f"{expected_memory(presenter, name) / 1e9:.1f}\N{NO-BREAK SPACE}GB"
        if seconds is not None:
            frames = round(seconds * presenter.manifest.fps)
            costs = f"{lasting(language, expected_seconds(presenter.id, name, frames, device))} · {costs}"
        choices.append((f"{say(language, name)}\n{costs}", name))
    return choices


def _heading(key: str) -> None:
    gr.Markdown("### " + word(key), elem_classes="heading")


def _chosen(anchor, preset, style, energy, seed, label, language: str) -> RenderSettings:
    if anchor_of(anchor) is None:
        sentence = f"Unknown anchor {str(anchor)[:80]!r}; please choose one of the presenters."
        raise toast(sentence, language)
    values = {"anchor": anchor, "preset": preset, "style": style, "gesture_energy": energy, "seed": seed}
    return settings_of(language, **values, label=bool(label))


def _check_subtitles(file: str, request: gr.Request) -> None:
    try:
        load_subtitles(file)
    except InputError as error:
        raise toast(str(error), language_of_request(request)) from None


def _copy_for_page(file: Path | None, name: str) -> str | None:
    """A file of a job where the page may read it, under its old name."""
    from gradio.processing_utils import save_bytes_to_cache
    from gradio.utils import get_upload_folder

    if file is None:
        return None
    stem = "".join(letter if letter.isalnum() else "-" for letter in name)[:60] or "speech"
    return save_bytes_to_cache(file.read_bytes(), f"{stem}{file.suffix}", get_upload_folder())
