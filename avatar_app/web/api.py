"""What programs call: the same jobs as the page's, over REST, `gradio_client` and MCP (see "Use via API").

Jobs belong to the caller's cookie, or to the user when the server asks for a password: `gradio_client` keeps both by
itself, others send the cookies of their first answer along.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
from pathlib import Path
from typing import Literal

import gradio as gr
from gradio.utils import get_upload_folder

from avatar_app.anchors import list_anchors
from avatar_app.estimate import expected_memory, expected_seconds
from avatar_app.jobs import Job
from avatar_app.pipeline import best_device
from avatar_app.settings import PRESETS, STYLES
from avatar_app.subtitles import FORMATS
from avatar_app.web import panels
from avatar_app.web.site import Site, anchor_of, owner, settings_of, toast

POLL = 0.5  # s
WAITING = 32  # callers that may wait for a video at the same time


def add(site: Site) -> None:
    """Adds the endpoints to the page that is being built. Their names, types and docstrings are the documentation."""

    async def make_video(
        speech, anchor, preset, style, gesture_energy, seed, subtitles=None, request: gr.Request = None
    ):
        """Turn recorded speech into a video of a talking presenter, and wait for it.

        Args:
            speech: audio file of up to ten minutes, in any language and format.
            anchor: id of the presenter, as told by list_presenters; empty for the first one.
            preset: quality, "draft", "standard" or "best".
            style: of the gestures, "calm", "neutral" or "lively".
            gesture_energy: 0 is still, 1 natural, 2 lively.
            seed: another whole number gives another performance of the same speech.
            subtitles: .srt or .vtt file that the video is to carry.

        Returns:
            The finished mp4 with the speech as its sound.
        """
        id = await asyncio.to_thread(
            submit_job, speech, "video", anchor, preset, style, gesture_energy, seed, subtitles, request
        )
        while not (job := await asyncio.to_thread(_own, site, id, request)).over:
            await asyncio.sleep(POLL)
        return await asyncio.to_thread(_result, job)

    def submit_job(
        speech, kind, anchor, preset, style, gesture_energy, seed, subtitles=None, request: gr.Request = None
    ):
        """Queue a job and return its id at once; see job_status and job_result.

        Args:
            speech: audio file of up to ten minutes, in any language and format.
            kind: "video", "preview" (the moving mesh, quick) or "motion" (the motion file only).
            anchor: id of the presenter, as told by list_presenters; empty for the first one.
            preset: quality, "draft", "standard" or "best".
            style: of the gestures, "calm", "neutral" or "lively".
            gesture_energy: 0 is still, 1 natural, 2 lively.
            seed: another whole number gives another performance of the same speech.
            subtitles: .srt or .vtt file that the video is to carry.

        Returns:
            The id of the job.
        """
        settings = settings_of(
            anchor=anchor or _first_anchor(), preset=preset, style=style, gesture_energy=gesture_energy, seed=seed
        )
        if anchor_of(settings.anchor) is None:
            raise toast(f"Unknown anchor {str(anchor)[:80]!r}; list_presenters tells which there are.")
        return site.submit(request, speech, settings, kind=kind, subtitles=subtitles)

    def job_result(job_id, request: gr.Request):
        """The file that a finished job made: mp4 for "video" and "preview", npz for "motion".

        Args:
            job_id: as returned by submit_job.

        Returns:
            The file.
        """
        return _result(_own(site, job_id, request))

    def job_status(job_id: str, request: gr.Request) -> dict:
        """Where a job is: state, stage, frames done and in all, position in the queue, seconds left, error.

        Args:
            job_id: as returned by submit_job.
        """
        return _facts(_own(site, job_id, request))

    def stop_job(job_id: str, request: gr.Request) -> dict:
        """Stop a queued or running job.

        Args:
            job_id: as returned by submit_job.
        """
        job = _own(site, job_id, request)
        site.jobs.cancel(job.id, job.owner)
        return _facts(_own(site, job_id, request))

    def list_jobs(
        text: str = "",
        state: Literal["", "queued", "running", "done", "failed", "cancelled"] = "",
        request: gr.Request = None,
    ) -> list[dict]:
        """The caller's jobs, newest first.

        Args:
            text: part of the name or of the presenter's id.
            state: only jobs in this state; empty for all.
        """
        return [_facts(job) for job in site.jobs.list(owner(request), text, state or None)]

    def list_presenters() -> list[dict]:
        """The installed presenters with their picture size, frame rate, licence and consent."""
        return [
            {
                "id": anchor.id, "name": anchor.manifest.name, "description": anchor.manifest.description,
                "width": anchor.manifest.width, "height": anchor.manifest.height, "fps": anchor.manifest.fps,
                "licence": anchor.manifest.licence, "consent": panels.consent_of(anchor),
            }
            for anchor in list_anchors()
        ]  # fmt: skip

    def estimate(
        seconds: float, anchor: str = "", preset: Literal["draft", "standard", "best"] = "standard"
    ) -> dict[str, float]:
        """How long a video takes on this machine and how much memory it needs.

        Args:
            seconds: length of the speech.
            anchor: id of the presenter; empty for the first one.
            preset: quality.
        """
        presenter = anchor_of(anchor or _first_anchor())
        number = isinstance(seconds, (int, float))
        if presenter is None or preset not in PRESETS or not (number and 0 < seconds < 1e6):
            raise toast("Please give a length in seconds, the id of a presenter and a preset.")
        frames = round(seconds * presenter.manifest.fps)
        return {
            "seconds": round(expected_seconds(presenter.id, preset, frames, best_device()), 1),
            "memory_gb": round(expected_memory(presenter, preset) / 1e9, 2),
        }

    speech = gr.Audio(type="filepath", label="speech", visible=False)
    performance = [
        gr.Textbox("", label="anchor", visible=False),
        gr.Dropdown(list(PRESETS), value="standard", label="preset", visible=False),
        gr.Dropdown(list(STYLES), value="neutral", label="style", visible=False),
        gr.Slider(0, 2, 1, step=0.01, label="gesture_energy", visible=False),
        gr.Number(0, precision=0, minimum=0, maximum=2**32 - 1, label="seed", visible=False),
        gr.File(file_types=list(FORMATS), type="filepath", label="subtitles", visible=False),
    ]
    kind = gr.Dropdown(["video", "preview", "motion"], value="video", label="kind", visible=False)
    id, file = gr.Textbox(label="job_id", visible=False), gr.File(label="file", visible=False)
    video = gr.File(label="video", visible=False)
    trigger = gr.Button(visible=False)
    trigger.click(make_video, [speech, *performance], video, api_name="make_video", concurrency_limit=WAITING)
    trigger.click(submit_job, [speech, kind, *performance], id, api_name="submit_job", concurrency_limit=4)
    trigger.click(job_result, id, file, api_name="job_result")
    for work in (job_status, stop_job, list_jobs, list_presenters, estimate):
        gr.api(work, api_name=work.__name__, queue=False)


def _first_anchor() -> str | None:
    return next((anchor.id for anchor in list_anchors()), None)


def _own(site: Site, id: object, request: gr.Request) -> Job:
    job = site.find(str(id), request)
    if job is None or job.kind == "train":
        raise toast("There is no such job.")
    return job


def _facts(job: Job) -> dict:
    return {
        "id": job.id, "name": job.name, "kind": job.kind, "state": job.state, "stage": job.stage, "done": job.done,
        "total": job.total, "position": job.position, "seconds_left": job.seconds_left, "error": job.error,
        "duration": job.duration, "settings": job.settings.to_dict(),
    }  # fmt: skip


def _result(job: Job) -> str:
    """The job's file as a copy that gradio may hand out, under a readable name."""
    if job.state != "done":
        raise toast(job.error or f"The job is {job.state}; its file exists once it is done.")
    source = job.motion if job.kind == "motion" else job.video
    folder = Path(get_upload_folder()) / secrets.token_urlsafe(18)  # who knows the name may read the file
    folder.mkdir(parents=True)
    return str(shutil.copyfile(source, folder / f"{panels.file_name(job)}{source.suffix}"))
