"""The parts of the page that are drawn by the server: pure functions from jobs and anchors to HTML."""

from __future__ import annotations

import html
import json
import re
import shlex
import time
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import gradio as gr

from avatar_app.anchors import Anchor, is_bundled
from avatar_app.jobs import Job
from avatar_app.jobs.training import PARTS, scores, sheet
from avatar_app.settings import RenderSettings
from avatar_app.web.exports import GIF_SECONDS
from avatar_app.web.texts import TEXTS, lasting, say, translated

if TYPE_CHECKING:
    from avatar_app.training.check import Finding

STAGES = ("speech", "anchor", "motion", "frames")
TRAINING_STAGES = ("checking", "training", "packing")
_ACT = """
element.addEventListener('click', event => {
    const button = event.target.closest('[data-do]');
    if (!button || (button.dataset.sure && !confirm(button.dataset.sure))) return;
    const choice = button.parentElement.querySelector('select');
    trigger('act', {do: button.dataset.do, id: button.dataset.id || '', choice: choice ? choice.value : ''});
});
"""
_PICK = """
const show = () => element.querySelectorAll('input').forEach(one => { one.checked = one.value === props.value; });
show();
watch(['value', 'cards'], show);
element.addEventListener('change', event => { props.value = event.target.value; trigger('input'); });
const clip = (event, play) => {
    const video = event.target.closest && event.target.closest('label')?.querySelector('video');
    if (video) play ? video.play().catch(() => {}) : (video.pause(), video.load());
};
for (const [name, play] of [['mouseover', true], ['mouseout', false], ['focusin', true], ['focusout', false]])
    element.addEventListener(name, event => clip(event, play));
"""
_escape = html.escape


def panel(elem_id: str) -> gr.HTML:
    """HTML whose buttons with ``data-do`` trigger `act`, with that word, a job's or an anchor's id and a choice."""
    return gr.HTML(js_on_load=_ACT, padding=False, apply_default_css=False, elem_id=elem_id)


def anchor_picker(value: str | None, cards: str, elem_id: str) -> gr.HTML:
    """Pictures of the anchors, one of which is chosen; the value is its id. A group of radio buttons underneath."""
    template = "<div class='picker' role='radiogroup'>${cards}</div>"
    looks = {"padding": False, "apply_default_css": False}
    return gr.HTML(value, html_template=template, js_on_load=_PICK, cards=cards, elem_id=elem_id, **looks)


def picker_cards(anchors: list[Anchor]) -> str:
    cards = []
    for anchor in anchors:
        facts, media = anchor.manifest, f"/media/anchors/{anchor.id}"
        clip = (
            f"<video src='{media}/sample.mp4' muted loop playsinline preload='none' aria-hidden='true'></video>"
            if (anchor.folder / "sample.mp4").exists()
            else ""
        )
        cards.append(
            f"<label class='anchor' title='{_escape(facts.description, quote=True)}'>"
            f"<input type='radio' name='anchor' value='{anchor.id}'>"
            f"<span class='face'><img src='{media}/thumbnail.jpg' alt=''>{clip}</span>"
            f"<b>{_escape(facts.name)}</b><i class='badge'>{_escape(_short(facts.licence))}</i></label>"
        )
    return "".join(cards)


def note(text: str, kind: str = "") -> str:
    """A sentence that screen readers announce. kind: "", "good" or "bad"."""
    return f"<p class='note {kind}' role='{'alert' if kind == 'bad' else 'status'}'>{_escape(text)}</p>"


def player(job: Job | None, language: str, anchor: str = "") -> str:
    """The screen: what `player.js` makes a video of, or an empty stage."""
    if job is None:
        picture = f"<img src='/media/anchors/{_escape(anchor)}/thumbnail.jpg' alt=''>" if anchor else ""
        return f"<div class='screen empty'>{picture}<p>{say(language, 'nothing')}</p></div>"
    words = f"data-stalled='{say(language, 'stalled')}' data-offline='{say(language, 'offline')}'"
    if job.subtitles:
        words += f" data-subtitles='{say(language, 'subtitles')}'"
    poster = f"/media/anchors/{_escape(job.settings.anchor or '')}/thumbnail.jpg"
    return f"<live-video class='screen' src='/media/jobs/{job.id}' poster='{poster}' {words}></live-video>"


def status(job: Job, language: str) -> str:
    """Where a job is: its stages with progress and times, or how it ended and what can be done next."""
    if job.state == "done":
        took = lasting(language, (job.finished or 0) - (job.started or job.created))
        return note(say(language, "done", length=lasting(language, job.duration), time=took), "good")
    if job.state in ("failed", "cancelled"):
        failed = job.state == "failed"
        why = translated(language, job.error or "")
        text = say(language, "failed", why=why) if failed else say(language, "cancelled")
        word = say(language, "try_again" if failed else "continue")
        return note(text, "bad" if failed else "") + _button("retry", job.id, word)
    if job.state == "queued":
        text = say(language, "waiting", count=job.position) if job.position else say(language, "waiting_first")
        left = _left(job, language)
        return note(f"{text} {left[:1].upper()}{left[1:]}.")
    return _stages(job, language)


def _stages(job: Job, language: str) -> str:
    names = list(TRAINING_STAGES if job.kind == "train" else STAGES)
    names += [name for name in [job.stage] if name and name not in names]
    now = names.index(job.stage) if job.stage else 0
    rows = []
    for number, name in enumerate(names):
        state = "done" if number < now else "now" if number == now else "later"
        share = _share(job, language) if state == "now" and job.total > 1 else ""
        text = say(language, f"stage_{name}") if f"stage_{name}" in TEXTS else name
        current = " aria-current='step'" if state == "now" else ""
        rows.append(f"<li class='{state}'{current}>{_escape(text)}<span>{share}</span></li>")
    percent = 100 * job.done / max(job.total, 1) if job.total > 1 else 0
    bar = (
        f"<div class='bar' role='progressbar' aria-valuemin='0' aria-valuemax='100' aria-valuenow='{percent:.0f}' "
        f"aria-label='{_escape(say(language, 'stage_frames'))}'><i style='width:{percent:.1f}%'></i></div>"
    )
    elapsed = say(language, "elapsed", time=lasting(language, time.time() - (job.started or time.time())))
    return f"<ol class='stages'>{''.join(rows)}</ol>{bar}<p class='note'>{elapsed} · {_left(job, language)}</p>"


def _share(job: Job, language: str) -> str:
    """What is done of the stage, in frames, or of a training in time."""
    done, total = job.done, job.total
    if job.kind == "train":
        done, total = lasting(language, done), lasting(language, total)
    return say(language, "frames_of", done=done, total=total)


def _left(job: Job, language: str) -> str:
    starting = job.state == "running" and not job.done and (job.seconds_left or 0) < 2
    if job.seconds_left is None or starting:
        return say(language, "no_time")
    return say(language, "left", time=lasting(language, job.seconds_left))


def results(job: Job, language: str) -> str:
    """Everything about a finished video: files, quality, how to make it again."""
    if job.state != "done" or job.video is None:
        return ""
    return (
        f"<section class='results'><h3>{say(language, 'downloads')}</h3>{downloads(job, language)}"
        f"{_button('again', job.id, say(language, 'again'))}{comparison(job, language)}"
        f"{_report(job, language)}{_repeat(job, language)}</section>"
    )


def comparison(job: Job, language: str) -> str:
    """The face before and after its pass, to be compared with a slider; `player.js` moves it."""
    if job.comparison is None:
        return ""
    picture = f"<img src='/media/jobs/{job.id}/face.jpg' loading='lazy' alt=''>"
    return (
        f"<details class='faces'><summary>{say(language, 'compare')}</summary>"
        f"<figure class='compare'>{picture}{picture}"
        f"<span>{say(language, 'without_face')}</span><span>{say(language, 'with_face')}</span>"
        f"<input type='range' min='0' max='100' value='50' aria-label='{say(language, 'compare')}'></figure>"
        f"<p class='note'>{say(language, 'compare_how')}</p></details>"
    )


def downloads(job: Job, language: str) -> str:
    files = {"video.mp4": "d_video", "video.gif": "d_gif", "settings.json": "d_settings"}
    if job.motion:
        files |= {"motion.npz": "d_npz", "motion.bvh": "d_bvh", "motion.glb": "d_glb"}
    if job.subtitles:
        files["subtitles.vtt"] = "d_vtt"
    links = []
    for file, text in files.items():
        name = f"{file_name(job)}{Path(file).suffix}"
        word = say(language, text, count=GIF_SECONDS)
        kind = "press main" if file == "video.mp4" else "press"
        links.append(f"<a class='{kind}' href='/media/jobs/{job.id}/{file}' download='{name}'>{word}</a>")
    return f"<p class='links'>{''.join(links)}</p>"


def _report(job: Job, language: str) -> str:
    try:
        from avatar_app.evaluation.report import as_html

        quality = json.loads(job.sidecar.read_text(encoding="utf-8")).get("quality")
    except (ImportError, OSError, ValueError, AttributeError):
        return ""
    return f"<details><summary>{say(language, 'report')}</summary>{as_html(quality)}</details>" if quality else ""


def _repeat(job: Job, language: str) -> str:
    return (
        f"<details><summary>{say(language, 'repeat')}</summary>"
        f"<h4>{say(language, 'command')}</h4><pre tabindex='0'>{_escape(as_command(job))}</pre>"
        f"<h4>{say(language, 'python')}</h4><pre tabindex='0'>{_escape(as_python(job))}</pre></details>"
    )


def as_command(job: Job) -> str:
    """The command line that makes a job's video again from its downloads."""
    speech, words = _speech_name(job), ["python3", "launch.py", "render"]
    if speech:
        words.append(speech)
    for name, value in _changed(job.settings).items():
        option = f"--{name.replace('_', '-')}"
        words += [option if value else f"--no-{option[2:]}"] if isinstance(value, bool) else [option, str(value)]
    if job.motion:
        words += ["--motion", f"{file_name(job)}.npz"]
    if job.subtitles:
        words += ["--subtitles", f"{file_name(job)}.vtt"]
    return shlex.join([*words, "--out", f"{file_name(job)}.mp4"])


def as_python(job: Job) -> str:
    """The same in Python."""
    options = ", ".join(f"{name}={value!r}" for name, value in _changed(job.settings).items())
    lines = ["from avatar_app import RenderSettings, render"]
    more = ""
    if job.motion:
        lines.append("from talkshow_bridge import Motion")
        more = f", motion=Motion.load({file_name(job) + '.npz'!r})"
    if job.subtitles:
        more += f", subtitles={file_name(job) + '.vtt'!r}"
    lines.append(f"\nsettings = RenderSettings({options})")
    lines.append(f"render({_speech_name(job)!r}, out={file_name(job) + '.mp4'!r}, settings=settings{more})")
    return "\n".join(lines)


def file_name(job: Job) -> str:
    """A name for downloads, without suffix: letters, digits, "-" and "_" only."""
    words = (job.name, job.settings.anchor or "", job.settings.preset if job.kind == "video" else job.kind)
    return "-".join(re.sub(r"[^\w]+", "-", word).strip("-")[:40] for word in words if word) or "video"


def _speech_name(job: Job) -> str | None:
    if job.speech is None:
        return None
    stem = re.sub(r"[^\w-]+", "-", job.name).strip("-")[:60] or "speech"
    return f"{stem}{job.speech.suffix}"


def _changed(settings: RenderSettings) -> dict:
    """What differs from the defaults, and always the anchor and the preset."""
    values = {field.name: getattr(settings, field.name) for field in fields(settings)}
    always = ("anchor", "preset")
    return {
        field.name: values[field.name]
        for field in fields(settings)
        if values[field.name] is not None and (field.name in always or values[field.name] != field.default)
    }


def takes(jobs: list[Job], picked: str | None, language: str) -> str:
    """Mesh previews side by side, each to be picked or removed."""
    if not jobs:
        return ""
    cards = "".join(_take(job, job.id == picked, language) for job in jobs)
    return (
        f"<section class='takes'><h3>{say(language, 'takes_title')}</h3>"
        f"<p class='note'>{say(language, 'takes_hint')}</p><div class='strip'>{cards}</div></section>"
    )


def _take(job: Job, picked: bool, language: str) -> str:
    title = say(language, "take", seed=job.settings.seed)
    facts = f"{say(language, job.settings.style)} · {job.settings.gesture_energy:g} · {_escape(job.name)}"
    if job.state == "done":
        screen = f"<video src='/media/jobs/{job.id}/video.mp4' controls playsinline preload='metadata'></video>"
        word = say(language, "picked" if picked else "pick")
        pick = (
            f"<button type='button' class='press pick' aria-pressed='{str(picked).lower()}' data-do='pick' "
            f"data-id='{job.id}'>{'✓ ' if picked else ''}{word}</button>"
        )
    else:
        screen, pick = f"<div class='waiting'>{status(job, language)}</div>", ""
    remove = _button("remove", job.id, say(language, "remove"))
    return (
        f"<article class='take{' picked' if picked else ''}' aria-label='{title}'>{screen}"
        f"<b>{title}</b><small>{facts}</small><p class='links'>{pick}{remove}</p></article>"
    )


def history_card(job: Job, anchors: list[Anchor], language: str) -> str:
    """One job of the history with everything that can be done to it."""
    state, kind = say(language, f"s_{job.state}"), say(language, f"k_{job.kind}")
    made = time.strftime("%Y-%m-%d %H:%M", time.localtime(job.created))
    style = say(language, job.settings.style) if job.settings.style in TEXTS else _escape(job.settings.style)
    facts = f"{_escape(job.settings.anchor or '')} · {say(language, job.settings.preset)} · {style}"
    facts += f" · {lasting(language, job.duration)}"
    picture = (
        f"<img src='/media/jobs/{job.id}/thumbnail.jpg' alt='' loading='lazy'>"
        if job.thumbnail
        else f"<img class='faint' src='/media/anchors/{_escape(job.settings.anchor or '')}/thumbnail.jpg' alt=''>"
    )
    progress = ""
    if job.state == "running" and job.total > 1:
        progress = f"<div class='bar'><i style='width:{100 * job.done / job.total:.0f}%'></i></div>"
    if job.state == "failed":
        progress = note(translated(language, job.error or ""), "bad")
    buttons = [_button("open", job.id, say(language, "open"))]
    if job.state == "done":
        file, text = ("motion.npz", "d_npz") if job.kind == "motion" else ("video.mp4", "d_video")
        name = f"{file_name(job)}{Path(file).suffix}"
        href = f"/media/jobs/{job.id}/{file}"
        buttons.append(f"<a class='press' href='{href}' download='{name}'>{say(language, text)}</a>")
    elif job.over:
        buttons.append(_button("retry", job.id, say(language, "continue" if job.state == "cancelled" else "try_again")))
    else:
        buttons.append(_button("stop", job.id, say(language, "stop")))
    buttons.append(_button("delete", job.id, say(language, "delete"), say(language, "delete_sure")))
    return (
        f"<article class='job {job.state}'>{picture}<div><h3>{_escape(job.name)}</h3>"
        f"<p class='note'><i class='badge'>{state}</i> {kind} · {facts}<br>{made}</p>{progress}"
        f"<p class='links'>{''.join(buttons)}</p>{_rerender(job, anchors, language)}"
        f"{comparison(job, language)}</div></article>"
    )


def _rerender(job: Job, anchors: list[Anchor], language: str) -> str:
    others = [anchor for anchor in anchors if anchor.id != job.settings.anchor]
    if job.state != "done" or job.kind != "video" or not others:
        return ""
    word = say(language, "render_with")
    choices = "".join(f"<option value='{anchor.id}'>{_escape(anchor.manifest.name)}</option>" for anchor in others)
    select = f"<select class='press' aria-label='{word}'>{choices}</select>"
    return f"<p class='links'>{_button('rerender', job.id, word)}{select}</p>"


def training_card(job: Job, language: str) -> str:
    """A training: how far it is, pictures that it never saw as they come out now, what can be done with it."""
    where = note(say(language, "trained", name=job.name), "good") if job.state == "done" else status(job, language)
    buttons = "" if job.over else _button("stop", job.id, say(language, "stop"))
    buttons += _button("remove", job.id, say(language, "remove"), say(language, "training_sure"))
    pictures = [(part, path) for part in PARTS if (path := sheet(job, part))]
    sheets = "".join(
        f"<img src='/media/jobs/{job.id}/{part}.png?{path.stat().st_mtime_ns}' alt='{say(language, 'sheet')}'>"
        for part, path in pictures
    )
    told = say(language, "sheet") if sheets else "" if job.over else say(language, "sheet_soon")
    if known := [score for _, score in scores(job)]:
        told += f" {' → '.join(dict.fromkeys(f'{score:.1f}' for score in (known[0], max(known))))} dB."
    return (
        f"<article class='training {job.state}'><div><h3>{say(language, 'training_of', name=_escape(job.name))} "
        f"<i class='badge'>{say(language, f's_{job.state}')}</i></h3>{where}<p class='links'>{buttons}</p></div>"
        f"<figure>{sheets}<figcaption class='note'>{told}</figcaption></figure></article>"
    )


def findings_table(findings: list[Finding], language: str) -> str:
    """All that was found in a data set, what is fatal first; a sentence when that is nothing."""
    if not findings:
        return note(say(language, "no_findings"), "good")
    fatal = sum(finding.fatal for finding in findings)
    rows = "".join(
        f"<tr class='{'look-here' if one.fatal else ''}'><td>{say(language, 'problem' if one.fatal else 'remark')}</td>"
        f"<td>{_escape(one.where)}</td><td>{_escape(one.what)}</td></tr>"
        for one in sorted(findings, key=lambda one: not one.fatal)
    )
    verdict = note(say(language, "findings" if fatal else "only_remarks", count=fatal), "bad" if fatal else "good")
    return f"<div class='quality'><table>{rows}</table></div>{verdict}"


def anchor_card(anchor: Anchor, language: str, manage: bool) -> str:
    """One presenter: picture or clip, numbers, licence and consent, what can be done with it."""
    facts, media, bundled = anchor.manifest, f"/media/anchors/{anchor.id}", is_bundled(anchor.folder)
    picture = f"<img src='{media}/thumbnail.jpg' alt=''>"
    if (anchor.folder / "sample.mp4").exists():
        picture = f"<video src='{media}/sample.mp4' poster='{media}/thumbnail.jpg' controls loop playsinline></video>"
    megabytes = sum(record.size for record in facts.files.values()) / 1e6
    rows = [
        ("size", f"{facts.width}×{facts.height}, {facts.fps:g} fps, {megabytes:.0f} MB, {facts.kind}"),
        ("licence", facts.licence),
        ("consent", consent_of(anchor)),
    ]
    table = "".join(f"<dt>{say(language, key)}</dt><dd>{_escape(str(value))}</dd>" for key, value in rows)
    buttons = f"<a class='press' href='{media}/package.zip' download='{anchor.id}.zip'>{say(language, 'export')}</a>"
    buttons += _button("verify", anchor.id, say(language, "verify"))
    if manage and not bundled:
        buttons += _button("delete", anchor.id, say(language, "delete"), say(language, "anchor_sure"))
    origin = say(language, "bundled" if bundled else "own")
    return (
        f"<article class='anchor-card'>{picture}<div><h3>{_escape(facts.name)} <i class='badge'>{origin}</i></h3>"
        f"<p>{_escape(facts.description)}</p><dl>{table}</dl><p class='links'>{buttons}</p></div></article>"
    )


def consent_of(anchor: Anchor) -> str:
    """A few words about who agreed to be shown."""
    return anchor.manifest.consent.summary()


def _short(licence: str) -> str:
    return licence if len(licence) <= 14 else f"{licence[:12]}…"


def _button(do: str, id: str, word: str, sure: str = "") -> str:
    asked = f" data-sure='{_escape(sure, quote=True)}'" if sure else ""
    what = f"data-do='{do}' data-id='{_escape(id, quote=True)}'{asked}"
    return f"<button type='button' class='press' {what}>{_escape(word)}</button>"
