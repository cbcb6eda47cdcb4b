"""What stands between the network and the page: who asks, what may come in, which files go out."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from pathlib import Path

from starlette.background import BackgroundTask
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request, cookie_parser
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from avatar_app.anchors import Anchor, export_anchor, list_anchors
from avatar_app.jobs import Job, Jobs
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


class Guard:
    """ASGI middleware: tells visitors apart, bounds what they send and adds security headers to every answer.

    ``request.state.owner`` is the name under which a visitor's jobs are kept: of the logged-in user when the server
    asks for a password (None before the login), otherwise a random word in a cookie that scripts cannot read.
    """

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        cookies = cookie_parser(Headers(scope=scope).get("cookie", ""))
        owner, fresh = _owner(scope["app"], cookies)
        scope.setdefault("state", {})["owner"] = owner
        limit = MAX_UPLOAD if scope["path"].rstrip("/").endswith("/upload") else MAX_REQUEST
        size = Headers(scope=scope).get("content-length", "0")

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
                if fresh:
                    secure = "; Secure" if scope["scheme"] == "https" else ""
                    cookie = f"{OWNER_COOKIE}={owner}; Path=/; Max-Age={YEAR}; HttpOnly; SameSite=Lax{secure}"
                    headers.append("set-cookie", cookie)
            await send(message)

        refusal = None
        if not size.isdecimal() or int(size) > limit:
            refusal = PlainTextResponse(f"A request may bring {limit // 2**20} MB at most.", status_code=413)
        elif owner is None and "/mcp" in scope["path"]:  # the one door that gradio leaves open
            refusal = PlainTextResponse("Please log in first.", status_code=401)
        if refusal is not None:
            return await refusal(scope, receive, send_guarded)
        await self._app(scope, _bounded(receive, limit), send_guarded)


def _owner(app, cookies: dict[str, str]) -> tuple[str | None, bool]:
    """The visitor's name and whether it has just been made up."""
    if getattr(app, "auth", None) is not None:
        token = cookies.get(f"access-token-{app.cookie_id}") or cookies.get(f"access-token-unsecure-{app.cookie_id}")
        user = app.tokens.get(token)
        return (f"user:{user}" if user else None), False
    word = cookies.get(OWNER_COOKIE, "")
    return (word, False) if OWNER.fullmatch(word) else (secrets.token_urlsafe(24), True)


def _bounded(receive: Receive, limit: int) -> Receive:
    """A body without an honest length is cut off at the limit, too."""
    taken = 0

    async def receive_bounded() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > limit:
            raise HTTPException(413, f"A request may bring {limit // 2**20} MB at most.")
        return message

    return receive_bounded


def media_routes(jobs: Jobs) -> list[Route]:
    """Files of a visitor's own jobs, and pictures of the anchors. No path in them ever comes from the request."""

    def job_file(request: Request) -> Response:
        job = _own_job(jobs, request)
        return _file(_told(exports.export, job, request.path_params["file"]), private=True)

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

    def anchor_package(request: Request) -> Response:
        _logged_in(request)
        anchor = _anchor(request.path_params["id"])
        package = jobs.folder / f".package-{secrets.token_hex(8)}.zip"
        _told(export_anchor, anchor, package)
        return FileResponse(package, filename=f"{anchor.id}.zip", background=BackgroundTask(package.unlink))

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
