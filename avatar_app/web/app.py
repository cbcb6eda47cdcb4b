"""The web page: speech in, presenter chosen, video out. Local; nothing is fetched from or told to anybody."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from pathlib import Path

import gradio as gr
from starlette.middleware import Middleware

from avatar_app.jobs import Jobs, Workers
from avatar_app.web import api
from avatar_app.web.check import check_page
from avatar_app.web.create import QUICK, QUIET, CreatePage, preset_choices
from avatar_app.web.history import HistoryPage
from avatar_app.web.presenters import PresentersPage
from avatar_app.web.server import MAX_UPLOAD, Guard, fetch_nothing, media_routes
from avatar_app.web.site import SAMPLES, Site, language_of_request, toast
from avatar_app.web.texts import LABELS, word
from talkshow_bridge.errors import InputError

KEEP_FILES = (3600, 24 * 3600)  # s: look every hour, remove uploads after a day; jobs have copies of their own
CALM = 3.0  # s after the page is up, before anything heavy is imported: the first visitor comes first
HERE = Path(__file__).parent
CSS = (HERE / "style.css").read_text(encoding="utf-8")
HEAD = f"<script>{(HERE / 'player.js').read_text(encoding='utf-8')}</script>"
THEME = gr.themes.Base(
    primary_hue="teal",
    neutral_hue="slate",
    radius_size="lg",
    font=["system-ui", "Noto Sans CJK SC", "sans-serif"],
    font_mono=["ui-monospace", "monospace"],
).set(
    color_accent="*primary_700",
    body_background_fill="*neutral_50",
    body_background_fill_dark="*neutral_950",
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_400",
    block_info_text_color="*neutral_600",
    block_info_text_color_dark="*neutral_400",
    block_label_text_color="*neutral_700",
    block_label_text_color_dark="*neutral_300",
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_dark="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_hover_dark="*primary_800",
    button_cancel_background_fill="#b91c1c",
    button_cancel_background_fill_dark="#b91c1c",
    button_cancel_background_fill_hover="#991b1b",
    button_cancel_background_fill_hover_dark="#dc2626",
    button_cancel_text_color="white",
    button_cancel_text_color_dark="white",
    error_text_color="#b91c1c",
    error_text_color_dark="#fca5a5",
)

log = logging.getLogger(__name__)


class Page(gr.Blocks):
    """Says in a sentence what gradio says about its insides when a program sends it something odd."""

    async def preprocess_data(self, *arguments, **options) -> list:
        try:
            return await super().preprocess_data(*arguments, **options)
        except gr.Error:
            raise
        except InputError as error:
            raise toast(str(error)) from None
        except (ValueError, TypeError, AttributeError) as error:
            log.info("An odd value: %s", error)
            raise toast("One of the values is not of its kind; 'Use via API' tells what each is.") from None


def build(site: Site) -> gr.Blocks:
    """The pages, ready to be launched with `options`."""
    fetch_nothing()
    with Page(title="avatar_app", analytics_enabled=False, delete_cache=KEEP_FILES) as page:
        with gr.Row(elem_id="title"):
            gr.HTML("<h1>avatar_app</h1>", padding=False)
            gr.Markdown(word("lead"))
        with gr.Tabs(elem_id="pages") as tabs:
            with gr.Tab(word("create"), id="create"):
                create = CreatePage(site)
            with gr.Tab(word("history"), id="history") as tab:
                HistoryPage(site, create, tabs, "create", tab)
            with gr.Tab(word("anchors"), id="anchors") as tab:
                PresentersPage(site, create, tab)
            with gr.Tab(word("check"), id="check"):
                check_page()
        page.load(create.open, None, create.view, **QUICK)
        page.load(_presets, create.anchor, create.preset, **QUIET)
        api.add(site)
    return page.queue(max_size=100, default_concurrency_limit=8)


def _presets(anchor: str, request: gr.Request):
    return gr.Radio(choices=preset_choices(anchor, None, language_of_request(request)))


def options(site: Site) -> dict:
    """What `gr.Blocks.launch` is given for every server."""
    return {
        "theme": THEME, "css": CSS, "head": HEAD, "i18n": LABELS, "max_file_size": MAX_UPLOAD,
        "allowed_paths": [str(SAMPLES)], "footer_links": ["api"], "run_history": False, "ssr_mode": False,
        "enable_monitoring": False, "inbrowser": False, "show_error": True, "mcp_server": True,
        "_frontend": False,  # no test call of its own with a deadline of 3 s, which a busy machine does not meet
        "app_kwargs": {"middleware": [Middleware(Guard, local=site.local, limits=site.jobs.limits)],
                       "routes": media_routes(site.jobs), "docs_url": None, "redoc_url": None, "openapi_url": None},
    }  # fmt: skip


def serve(
    port: int | None = None,
    listen: bool = False,
    share: bool = False,
    auth: str | None = None,
    manage_anchors: bool = False,
) -> None:
    """Serves the page until Ctrl-C, with workers for its jobs. A busy port is exchanged for the next free one.

    auth: "USER:PASSWORD", several separated by commas, or "@FILE" with one a line; AVATAR_APP_AUTH when None. Whoever
    opens the page to others (listen, share) has to ask for one. manage_anchors: visitors may import and delete
    presenters also where there is a password.
    """
    users = read_users(auth or os.environ.get("AVATAR_APP_AUTH", ""))
    if (listen or share) and not users:
        raise InputError(
            "A page that others can reach needs a password: please add --auth USER:PASSWORD or --auth @FILE."
        )
    alone = not (listen or share or users)  # a password is for visitors, who may come through a proxy
    site = Site(Jobs(), manage=alone or manage_anchors, local=alone)
    with tempfile.TemporaryDirectory(prefix="avatar_app-", ignore_cleanup_errors=True) as uploads:  # the owner's alone
        os.environ.setdefault("GRADIO_TEMP_DIR", uploads)
        _serve(site, port, "0.0.0.0" if listen else "127.0.0.1", share, users)


def _serve(site: Site, port: int | None, host: str, share: bool, users: list[tuple[str, str]]) -> None:
    page = build(site)
    _no_proxy_to_oneself()
    launch = {"server_name": host, "share": share, "auth": users or None, "prevent_thread_lock": True, **options(site)}
    try:
        page.launch(server_port=port, **launch)
    except OSError:
        if port is None:
            raise InputError("No free port from 7860 on; please name one with --port.") from None
        log.warning("Port %s is busy; taking another one.", port)
        page.launch(server_port=None, **launch)
    with Workers(site.jobs):
        warm_up = threading.Timer(CALM, _warm_up)
        warm_up.daemon = True
        warm_up.start()
        page.block_thread()


def read_users(text: str) -> list[tuple[str, str]]:
    """("user", "password") pairs from "USER:PASSWORD,..." or "@FILE". Raises InputError."""
    if text.startswith("@"):
        try:
            lines = Path(text[1:]).expanduser().read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise InputError(f"The password file {text[1:]!r} cannot be read: {error.strerror}.") from None
    else:
        lines = text.split(",")
    pairs = [tuple(line.strip().partition(":")[::2]) for line in lines if line.strip()]
    if not all(user and password for user, password in pairs):
        raise InputError("Users are given as USER:PASSWORD.")
    return pairs


def _no_proxy_to_oneself() -> None:
    """gradio asks its own server a question when it starts, which a proxy of the environment could not pass on."""
    others = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    os.environ["no_proxy"] = ",".join(filter(None, [others, "127.0.0.1", "localhost"]))


def _warm_up() -> None:
    """Imports what the first visitor would wait for."""
    preset_choices(None, None, "en")
    from avatar_app.pipeline import best_device

    best_device()
