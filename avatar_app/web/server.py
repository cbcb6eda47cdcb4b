"""What stands between the network and the page: who asks, what may come in, which files go out."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlsplit

from anyio import CapacityLimiter, to_thread
from gradio import processing_utils
from gradio.utils import get_upload_folder, is_in_or_equal
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request, cookie_parser
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from avatar_app.anchors import MANIFEST, Anchor, export_anchor, list_anchors
from avatar_app.jobs import Job, Jobs, Limits
from avatar_app.jobs.housekeeping import PACKAGE, enough_room
from avatar_app.jobs.store import NO_ROOM
from avatar_app.web import exports
from talkshow_bridge.errors import InputError

OWNER_COOKIE = "avatar_owner"
OWNER = re.compile(r"[A-Za-z0-9_-]{32}")
YEAR = 365 * 24 * 3600  # s
MAX_UPLOAD = 200 * 2**20  # bytes of one request that carries a file
MAX_REQUEST = 2 * 2**20  # bytes of any other
SECURITY_HEADERS = {
    # gradio's bundle compiles templates at run time, hence the two "unsafe" words; nothing comes from another server
    "content-security-policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' data: blob:; "
    "font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; object-src 'none'; "
    "base-uri 'self'; form-action 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "permissions-policy": "microphone=(self), camera=(), geolocation=()",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
ANCHOR_FILES = ("thumbnail.jpg", "sample.mp4", "card.md")
OWN_NAMES = {"localhost", "127.0.0.1", "::1"}
SHUT = re.compile(  # what gradio would do, but this page does not need
    r"(/gradio_api)?/(file=https?:|file/|proxy=|process_recording|component_server|custom_component|stream/|deep_link|dev/"
    r"|monitoring|profiling|run-history|token|(undo-)?vibe-)",
    re.IGNORECASE,
)
EXPORTS_AT_ONCE = 2
TRIES, PENALTY = 8, 60.0  # wrong passwords from one address within so many seconds


class Guard:
    """ASGI middleware: tells visitors apart, bounds what they send and adds security headers to every answer.

    ``request.state.owner`` is the name under which a visitor's jobs are kept: of the logged-in user when the server
    asks for a password (None before the login), otherwise a random word in a cookie that scripts cannot read.
    """

    def __init__(self, app: ASGIApp, local: bool = False, limits: Limits | None = None):
        """local: for this machine alone, so that another name in the address, while nobody is asked for a password,
        means that a stranger's page has had its own name lead here.   limits: what uploads must leave free."""
        self._app, self._local, self._limits = app, local, limits or Limits()
        self._tries: defaultdict[str, list[float]] = defaultdict(list)  # passwords not known to be right, by address

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        owner, fresh = _owner(scope["app"], cookie_parser(headers.get("cookie", "")))
        scope.setdefault("state", {})["owner"] = owner

        login = scope["method"] == "POST" and scope["path"].rstrip("/") == "/login"
        address, arrived = (scope.get("client") or ("",))[0], time.monotonic()

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                if login and message["status"] != 400:
                    with suppress(ValueError):  # refused before it counted
                        self._tries[address].remove(arrived)
                answer = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    answer.setdefault(name, value)
                if fresh:
                    secure = "; Secure" if scope["scheme"] == "https" else ""
                    cookie = f"{OWNER_COOKIE}={owner}; Path=/; Max-Age={YEAR}; HttpOnly; SameSite=Lax{secure}"
                    answer.append("set-cookie", cookie)
            await send(message)

        upload = scope["path"].rstrip("/").endswith("/upload")
        limit = MAX_UPLOAD if upload else MAX_REQUEST
        refusal = self._refusal(scope, headers, owner, limit) or (self._full(headers, limit) if upload else None)
        refusal = refusal or (self._guessed(address, arrived) if login else None)
        if refusal is not None:
            return await PlainTextResponse(refusal[1], status_code=refusal[0])(scope, receive, send_guarded)
        await self._app(scope, _bounded(receive, limit, upload), send_guarded)

    def _refusal(self, scope: Scope, headers: Headers, owner: str | None, limit: int) -> tuple[int, str] | None:
        """Status and sentence for a request that goes no further."""
        if self._local and getattr(scope["app"], "auth", None) is None and _name(headers) not in OWN_NAMES:
            return (
                403,
                "This page answers to 127.0.0.1 only; under other names it needs a password: --auth USER:PASSWORD.",
            )
        if scope["method"] not in ("GET", "HEAD") and headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            return 403, "Requests from other pages are refused."
        if SHUT.match(scope["path"]):
            return 404, "There is no such page."
        size = headers.get("content-length", "0")
        if not size.isdecimal() or int(size) > limit:
            return 413, _too_large(limit)
        if owner is None and "/mcp" in scope["path"]:  # the one door that gradio leaves open
            return 401, "Please log in first."
        return None

    def _guessed(self, address: str, now: float) -> tuple[int, str] | None:
        """Counts a password when it arrives, not when it is answered: many may be under way at once."""
        for other, times in list(self._tries.items()):
            times[:] = [time for time in times if now - time < PENALTY]
            if not times:
                del self._tries[other]
        if len(self._tries[address]) >= TRIES:
            return 429, "Too many wrong passwords; please wait a minute."
        self._tries[address].append(now)
        return None

    def _full(self, headers: Headers, limit: int) -> tuple[int, str] | None:
        folder = get_upload_folder()
        os.makedirs(folder, exist_ok=True)
        size = int(headers.get("content-length", limit))
        return None if enough_room(Path(folder), self._limits, size) else (507, NO_ROOM)


def _name(headers: Headers) -> str | None:
    """Of the server as the visitor calls it."""
    try:
        return urlsplit(f"//{headers.get('host', '')}").hostname
    except ValueError:
        return None


def _too_large(limit: int) -> str:
    return f"The maximum allowed size of a request is {limit // 2**20} MB."


def _owner(app, cookies: dict[str, str]) -> tuple[str | None, bool]:
    """The visitor's name and whether it has just been made up."""
    if getattr(app, "auth", None) is not None:
        token = cookies.get(f"access-token-{app.cookie_id}") or cookies.get(f"access-token-unsecure-{app.cookie_id}")
        user = app.tokens.get(token)
        return (f"user:{user}" if user else None), False
    word = cookies.get(OWNER_COOKIE, "")
    return (word, False) if OWNER.fullmatch(word) else (secrets.token_urlsafe(24), True)


def _bounded(receive: Receive, limit: int, upload: bool) -> Receive:
    """A body without an honest length is cut off at the limit, too. Of an upload that ends early nothing stays on the
    disk: gradio removes its file for one kind of error only."""
    taken = 0

    async def receive_bounded() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > limit:
            raise MultiPartException(_too_large(limit)) if upload else HTTPException(413, _too_large(limit))
        if upload and message["type"] == "http.disconnect":
            raise MultiPartException("The upload was broken off.")
        return message

    return receive_bounded


def fetch_nothing() -> None:
    """gradio downloads a file that is given as an address. This server asks no other: the address of an upload, as
    MCP clients give it, is taken for the file itself, and any other is refused."""

    async def uploaded(url: str, cache_dir: str) -> str:
        path = unquote(url).partition("/gradio_api/file=")[2]
        if path and is_in_or_equal(path, get_upload_folder()) and os.path.isfile(path):
            return path
        raise InputError("Please upload the file itself: addresses are not fetched.")

    processing_utils.async_ssrf_protected_download = uploaded


def media_routes(jobs: Jobs) -> list[Route]:
    """Files of a visitor's own jobs, and pictures of the anchors. No path in them ever comes from the request."""
    made = partial(to_thread.run_sync, limiter=CapacityLimiter(EXPORTS_AT_ONCE))
    packed = partial(to_thread.run_sync, limiter=CapacityLimiter(1))

    async def job_file(request: Request) -> Response:
        job = await to_thread.run_sync(_own_job, jobs, request)
        return _file(await made(_told, exports.export, job, request.path_params["file"]), private=True)

    def live_state(request: Request) -> Response:
        job = _own_job(jobs, request)
        facts = {"state": job.state, "pieces": len(job.segments), "seconds": job.duration, "sound": bool(job.speech)}
        return JSONResponse(facts, headers={"cache-control": "no-store"})

    def live_piece(request: Request) -> Response:
        return _file(exports.playable_piece(_own_job(jobs, request), request.path_params["number"]), private=True)

    def live_sound(request: Request) -> Response:
        return _file(exports.playable_sound(_own_job(jobs, request)), private=True)

    def anchor_file(request: Request) -> Response:
        _logged_in(request)
        anchor, name = _anchor(request.path_params["id"]), request.path_params["file"]
        return _file(anchor.folder / name if name in ANCHOR_FILES else None)

    async def anchor_package(request: Request) -> Response:
        _logged_in(request)
        anchor = await to_thread.run_sync(_anchor, request.path_params["id"])
        path = await packed(_told, _package, anchor, jobs)
        return FileResponse(path, filename=f"{anchor.id}.zip")

    return [
        Route("/media/jobs/{id}/live.json", live_state),
        Route("/media/jobs/{id}/live/sound.mp4", live_sound),
        Route("/media/jobs/{id}/live/{number:int}.mp4", live_piece),
        Route("/media/jobs/{id}/{file}", job_file),
        Route("/media/anchors/{id}/package.zip", anchor_package),
        Route("/media/anchors/{id}/{file}", anchor_file),
    ]


def _logged_in(request: Request) -> str:
    if request.state.owner is None:
        raise HTTPException(401, "Please log in first.")
    return request.state.owner


def _own_job(jobs: Jobs, request: Request) -> Job:
    return _told(jobs.get, request.path_params["id"], _logged_in(request), status=404)


def _anchor(id: str) -> Anchor:
    found = next((anchor for anchor in list_anchors() if anchor.id == id), None)
    if found is None:
        raise HTTPException(404, "There is no such anchor.")
    return found


def _package(anchor: Anchor, jobs: Jobs) -> Path:
    """The zip of an anchor as it is now; `Jobs.sweep` removes it when it has not been asked for in a while.

    Raises InputError where the disk has no room for it."""
    state = hashlib.sha256((anchor.folder / MANIFEST).read_bytes()).hexdigest()[:16]
    path = jobs.folder / f"{PACKAGE}{anchor.id}-{state}.zip"
    if path.exists():
        os.utime(path)
        return path
    if not enough_room(jobs.folder, jobs.limits, sum(file.size for file in anchor.manifest.files.values())):
        raise InputError(NO_ROOM)
    return export_anchor(anchor, path)


def _told(work: Callable, *arguments, status: int = 400):
    """work(*arguments), an InputError becoming an answer with its sentence."""
    try:
        return work(*arguments)
    except InputError as error:
        raise HTTPException(status, str(error)) from None


def _file(path: Path | None, private: bool = False) -> Response:
    if path is None or not path.is_file():
        raise HTTPException(404, "There is no such file.")
    return FileResponse(path, headers={"cache-control": "private, no-cache" if private else "no-cache"})
