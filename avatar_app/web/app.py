"""The web page: speech in, presenter chosen, video out. Local; nothing is fetched from or told to anybody."""

from __future__ import annotations

import html
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
import gradio as gr

from avatar_app.anchors import Anchor, list_anchors
from avatar_app.estimate import expected_seconds, in_words
from avatar_app.pipeline import Cancelled, best_device, render
from avatar_app.settings import PRESETS, STYLES, RenderSettings
from avatar_app.web.jobs import Job
from talkshow_bridge.audio import load_speech
from talkshow_bridge.errors import InputError

SAMPLES = Path(__file__).parents[2] / "samples"
AUDIO_SUFFIXES = {".wav", ".mp3", ".flac", ".opus", ".ogg", ".m4a"}
MAX_UPLOAD = "200mb"
MAX_SECONDS = 600  # of speech in the page; the command line has no limit
KEEP_FILES = (3600, 24 * 3600)  # s: look every hour, remove results after a day
STAGES = {
    "speech": "Listening to the speech",
    "anchor": "Checking the presenter",
    "motion": "Planning face and gestures",
    "frames": "Drawing the frames",
}
CSS = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")
THEME = gr.themes.Base(
    primary_hue="teal",
    neutral_hue="slate",
    radius_size="lg",
    font=["system-ui", "sans-serif"],
    font_mono=["ui-monospace", "monospace"],
)

log = logging.getLogger(__name__)


def build() -> gr.Blocks:
    """The page, ready to be launched."""
    anchors, jobs = list_anchors(), {}
    with gr.Blocks(title="avatar_app", analytics_enabled=False, delete_cache=KEEP_FILES) as page:
        gr.HTML("<h1>Speech in, presenter out</h1><p>Everything is computed on this machine.</p>", elem_id="title")
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=320):
                gr.Markdown("### 1 &nbsp;Speech")
                speech = gr.Audio(
                    sources=["upload", "microphone"], type="filepath", label="Upload or record", buttons=["download"]
                )
                samples = _sample_buttons()
                gr.Markdown("### 2 &nbsp;Presenter")
                anchor = gr.Textbox(anchors[0].id if anchors else "", label="Anchor id", visible=False)
                gallery = gr.Gallery(
                    [(_thumbnail(one), one.manifest.name) for one in anchors],
                    columns=3, fit_columns=False, object_fit="cover", allow_preview=False, show_label=False,
                    selected_index=0 if anchors else None, buttons=[], interactive=False, elem_id="gallery",
                )  # fmt: skip
                gr.Markdown("### 3 &nbsp;Quality")
                preset = gr.Radio(
                    _presets(None, None), value="standard", label="Times: estimates for this machine", elem_id="preset"
                )
                with gr.Accordion("More", open=False):
                    style = gr.Radio([(name.capitalize(), name) for name in STYLES], value="neutral", label="Style")
                    energy = gr.Slider(0, 2, 1, step=0.1, label="Gestures", info="0 = still, 1 = natural, 2 = lively")
                    seed = gr.Number(0, precision=0, minimum=0, maximum=2**32 - 1, label="Seed",
                                     info="another number, another performance")  # fmt: skip
            with gr.Column(scale=6, min_width=320):
                gr.Markdown("### 4 &nbsp;Video")
                with gr.Row(elem_id="actions"):
                    generate = gr.Button("Generate", variant="primary", scale=2, min_width=120)
                    preview = gr.Button("Mesh preview", scale=1, min_width=150)
                    stop = gr.Button("Stop", variant="stop", scale=1, min_width=90, interactive=False)
                status = gr.HTML(_note("Choose a speech file, record one or take a sample."), elem_id="status")
                video = gr.Video(label="Result", interactive=False, buttons=[], elem_id="result")
                with gr.Row(elem_id="downloads"):
                    save_video = gr.DownloadButton("Download video", visible=False, min_width=120)
                    save_settings = gr.DownloadButton("Settings (.json)", visible=False, min_width=120)

        def run(mode: str):
            def handler(speech, anchor, preset, style, energy, seed, request: gr.Request):
                settings = _settings(anchor, preset, style, energy, seed)
                yield from _run(jobs, request.session_hash, mode, speech, settings)

            return handler

        def stop_job(request: gr.Request):
            if job := jobs.get(request.session_hash):
                job.stop()
            return _note("Stopped."), *_idle()

        def pick(chosen: gr.SelectData):
            return anchors[chosen.index].id

        buttons = [generate, preview, stop]
        outcome = [status, video, save_video, save_settings]
        running = []
        for button, mode in ((generate, "video"), (preview, "preview")):
            event = button.click(_busy, None, [status, *buttons], queue=False, show_progress="hidden", api_name=False)
            event = event.then(
                run(mode), [speech, anchor, preset, style, energy, seed], outcome, show_progress="hidden",
                concurrency_id="render", concurrency_limit=1, api_name=mode,
            )  # fmt: skip
            event.success(_idle, None, buttons, queue=False, show_progress="hidden", api_name=False)
            event.failure(_failed, None, [status, *buttons], queue=False, show_progress="hidden", api_name=False)
            running.append(event)
        stop.click(
            stop_job, None, [status, *buttons], cancels=running, queue=False, show_progress="hidden", api_name=False
        )

        for button, file in samples:
            button.click(lambda file=str(file): file, None, speech, show_progress="hidden", api_name=False)
        gallery.select(pick, None, anchor, show_progress="hidden", api_name=False)
        for changed in (speech.change, anchor.change):
            changed(_describe, [speech, anchor], [preset, status], show_progress="hidden", api_name=False)
    return page


def serve(port: int | None = None, listen: bool = False, share: bool = False) -> None:
    """Serves the page until Ctrl-C. A busy port is exchanged for the next free one from 7860."""
    page = build().queue(max_size=20)
    options = {
        "server_name": "0.0.0.0" if listen else "127.0.0.1", "share": share, "max_file_size": MAX_UPLOAD,
        "allowed_paths": [str(SAMPLES)], "theme": THEME, "css": CSS, "footer_links": [], "run_history": False,
        "ssr_mode": False, "enable_monitoring": False, "inbrowser": False,
    }  # fmt: skip
    try:
        page.launch(server_port=port, **options)
    except OSError:
        if port is None:
            raise InputError("No free port from 7860 on; please name one with --port.") from None
        log.warning("Port %s is busy; taking another one.", port)
        page.launch(server_port=None, **options)


def _sample_buttons() -> list[tuple[gr.Button, Path]]:
    files = sorted(file for file in SAMPLES.glob("*") if file.suffix in AUDIO_SUFFIXES)
    with gr.Row(elem_id="samples", visible=bool(files)):
        return [(gr.Button(_label(file), size="sm", min_width=90), file) for file in files]


def _label(file: Path) -> str:
    return file.stem.replace("_", " ").replace("-", " ").capitalize()


def _thumbnail(anchor: Anchor):
    from PIL import Image

    path = anchor.folder / "thumbnail.jpg"
    if path.exists():
        return Image.open(path)
    return Image.new("RGB", (anchor.manifest.width, anchor.manifest.height), (120, 130, 140))


def _presets(anchor: str | None, frames: int | None) -> list[tuple[str, str]]:
    """Radio choices; with a speech at hand each tells about how long it will take here."""
    if anchor is None or frames is None:
        return [(name.capitalize(), name) for name in PRESETS]
    device = best_device()
    times = {name: in_words(expected_seconds(anchor, name, frames, device)) for name in PRESETS}
    return [(f"{name.capitalize()} · {times[name]}", name) for name in PRESETS]


def _describe(speech: str | None, anchor: str):
    """Checks a new speech at once and tells its length and the time that each preset will take."""
    if not speech:
        return gr.update(choices=_presets(None, None)), _note("Choose a speech file, record one or take a sample.")
    duration = _checked(speech)
    fps = next((one.manifest.fps for one in list_anchors() if one.id == anchor), 30)
    choices = _presets(anchor, round(duration * fps))
    return gr.update(choices=choices), _note(f"{duration:.1f} s of speech, ready to generate.")


def _checked(speech: str | None) -> float:
    """Duration in seconds of a usable speech file; a toast says what is wrong with another."""
    if not speech:
        raise _toast("Please choose a speech file, record one or take a sample first.")
    try:
        duration = load_speech(speech).duration
    except InputError as error:
        raise _toast(str(error)) from None
    if duration > MAX_SECONDS:
        raise _toast(f"The speech lasts {in_words(duration)}; the page takes up to {in_words(MAX_SECONDS)}.")
    return duration


def _settings(anchor: str, preset: str, style: str, energy: float, seed: float) -> RenderSettings:
    try:
        return RenderSettings(anchor=anchor or None, preset=preset, style=style, gesture_energy=energy, seed=seed)
    except InputError as error:
        raise _toast(str(error)) from None


def _run(jobs: dict, session: str, mode: str, speech: str | None, settings: RenderSettings) -> Iterator[tuple]:
    """Renders for one visitor, yielding (status, video, download, settings) as it goes."""
    _checked(speech)
    hidden = gr.update(visible=False)
    with tempfile.TemporaryDirectory(prefix="avatar-app-") as folder:
        name = re.sub(r"[^\w-]+", "-", Path(speech).stem).strip("-")[:60] or "speech"
        out = Path(folder) / f"{name}-{settings.preset if mode == 'video' else 'mesh'}.mp4"
        job = jobs[session] = Job(
            lambda progress: render(speech, out=out, settings=settings, progress=progress, preview=mode == "preview")
        )
        try:
            for _ in job.watch():
                yield _progress(job), None, hidden, hidden
        finally:
            jobs.pop(session, None)
        if isinstance(job.error, Cancelled):
            yield _note("Stopped."), None, hidden, hidden
        elif isinstance(job.error, InputError):
            raise _toast(str(job.error))
        elif job.error is not None:
            log.error("a render failed", exc_info=job.error)
            raise _toast("The render failed on our side; the log of the server tells why.")
        else:
            done = job.result
            text = f"{done.duration:.1f} s of video in {in_words(done.timings['total'])}."
            yield (
                _note(text),
                str(done.path),
                gr.update(value=str(done.path), visible=True),
                gr.update(value=str(done.sidecar), visible=True),
            )


def _toast(sentence: str) -> gr.Error:
    return gr.Error(html.escape(sentence, quote=False), print_exception=False)


def _busy() -> tuple:
    return (
        _note("Waiting for its turn ..."),
        gr.update(interactive=False),
        gr.update(interactive=False),
        gr.update(interactive=True),
    )


def _idle() -> tuple:
    return gr.update(interactive=True), gr.update(interactive=True), gr.update(interactive=False)


def _failed() -> tuple:
    return _note("No video was made."), *_idle()


def _note(text: str) -> str:
    return f"<p class='note' role='status'>{html.escape(text)}</p>"


def _progress(job: Job) -> str:
    """The stages as a list, the present one with its share and time left."""
    names = list(STAGES)
    now = names.index(job.stage) if job.stage in STAGES else 0
    rows = []
    for number, (stage, text) in enumerate(STAGES.items()):
        state = "done" if number < now else "now" if number == now else "later"
        share = f"{job.done} of {job.total}" if stage == job.stage == "frames" else ""
        rows.append(f"<li class='{state}'>{text}<span>{share}</span></li>")
    percent = 100 * job.done / job.total if job.stage == "frames" else 0
    left = f"about {in_words(job.seconds_left)} left" if job.seconds_left is not None else "&nbsp;"
    bar = (
        f"<div class='bar' role='progressbar' aria-valuenow='{percent:.0f}'><i style='width:{percent:.1f}%'></i></div>"
    )
    return f"<ol class='stages'>{''.join(rows)}</ol>{bar}<p class='note'>{left}</p>"
