"""`Guard`: the demo's front door.

Everything Gradio would serve that this demo does not need is shut, films and pictures are served by names nobody can
guess, and every page forbids the browser to ask another host for anything.

Invariants
1. Only the routes of `_OPEN` reach Gradio. Its file route serves no file at all: what the demo shows is served here.
2. A request body is bounded before Gradio reads it, and a file that it names is a path of an upload, never an address.
3. A page served to this machine alone answers only to this machine's names (DNS rebinding), and no page of another
   site can send anything here in a visitor's name (CSRF).
4. Uploads on their way are counted by their announced size, so that many at once do not fill the disk; the oldest
   untaken ones make room.
5. A film or a picture is found by its token only; no path ever comes from a request.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import mimetypes
import re
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from closeup.app.errors import BadInput
from closeup.app.sessions import Sessions
from closeup.app.uploads import Uploads

if TYPE_CHECKING:
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger(__name__)
API = "/gradio_api"
_OPEN = re.compile(
    r"/|/config/?|/theme\.css|/favicon\.ico|/manifest\.json|/robots\.txt|/(assets|static|svelte)/.*"
    rf"|{API}/(info/?|openapi\.json|startup-events|app_id/?|user/?|login_check/?|upload|upload_progress|cancel|reset/?"
    r"|queue/(join|data)|call/(v2/)?[a-z_]+(/[\w-]+)?|heartbeat/[\w-]+|theme\.css)"
)
MAX_BODY = 1 << 20
"""Bytes of a request that is no upload."""
_SLACK = 1 << 16  # of a multipart body, beside its file
_PICTURE = re.compile(r"data:image/jpeg;base64,([A-Za-z0-9+/=]+)")
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; font-src 'self' data:;"
    " style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; worker-src 'self' blob:;"
    " connect-src 'self'; object-src 'none'; base-uri 'self'; form-action 'self'"
)
"""Gradio builds its components with inline scripts and `Function`; no other host may be asked for anything."""


class PictureShelf:
    """JPEG pictures by the hash of their bytes, at most `max_bytes` of them; those put longest ago go first."""

    def __init__(self, max_bytes: int = 256 << 20) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def shelve(self, html: str) -> str:
        """`html` with every JPEG `data:` URL replaced by the address of a picture on the shelf.

        A page that is drawn again five times a second is then a few kilobytes, and the browser keeps its pictures.
        """
        return _PICTURE.sub(lambda match: f"closeup/picture/{self._put(match[1])}.jpg", html)

    def get(self, name: str) -> bytes | None:
        """The picture of this name (without its suffix), or None."""
        with self._lock:
            return self._kept.get(name)

    def _put(self, encoded: str) -> str:
        from base64 import b64decode

        name = hashlib.sha256(encoded.encode()).hexdigest()[:40]
        with self._lock:
            if name in self._kept:
                self._kept.move_to_end(name)
                return name
            picture = b64decode(encoded)
            self._kept[name] = picture
            self._bytes += len(picture)
            while self._bytes > self._max_bytes and len(self._kept) > 1:
                self._bytes -= len(self._kept.popitem(last=False)[1])
        return name


class Guard:
    """ASGI middleware; see the module's invariants.

    Args:
        local: only this machine may ask. max_upload: bytes of one upload.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        sessions: Sessions,
        shelf: PictureShelf,
        uploads: Uploads,
        local: bool,
        max_upload: int,
    ) -> None:
        self.app = app
        self.sessions, self.shelf, self.uploads = sessions, shelf, uploads
        self.local, self.max_upload = local, max_upload
        self._coming: list[int] = []  # announced bytes of uploads on their way; Guard lives in one event loop

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, answer it, or refuse it."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            else:  # Gradio 6 uses no web socket here
                await send({"type": "websocket.close", "code": 1008})
            return
        answer = await self._answer(scope)
        if answer is not None:
            await answer(scope, receive, _with_headers(send))
            return
        if scope["method"] in ("POST", "PUT", "PATCH"):
            await self._post(scope, receive, send)
            return
        await self.app(scope, receive, _with_headers(send))

    async def _answer(self, scope: Scope) -> Response | None:
        """The demo's own answer to a request, or None when it is Gradio's to answer."""
        path = scope["path"]
        if self.local and not _is_local(_header(scope, b"host")):
            return _refusal(421, "this demo is served to this machine only; open it as http://127.0.0.1:PORT")
        if path.startswith("/closeup/"):
            if scope["method"] not in ("GET", "HEAD"):
                return _refusal(405, "films and pictures are only read")
            return self._media(path)
        if scope["method"] not in ("GET", "HEAD", "OPTIONS") and not _same_site(scope):
            return _refusal(403, "another site's page asked for this; open the demo's own page")
        if not _OPEN.fullmatch(path):
            return _refusal(404, "this demo has no such page")
        return None

    def _media(self, path: str) -> Response:
        from starlette.responses import FileResponse, Response

        kind, _, name = path.removeprefix("/closeup/").partition("/")
        if kind == "alive" and not name:  # the page asks whether the server is still there
            return Response(status_code=204, headers={"Cache-Control": "no-store"})
        name = name.rpartition(".")[0] or name
        cached = {"Cache-Control": "private, max-age=86400, immutable"}
        if kind == "picture" and (picture := self.shelf.get(name)) is not None:
            return Response(picture, media_type="image/jpeg", headers=cached)
        film = self.sessions.film(name) if kind == "film" else None
        if film is not None and film.path.is_file():
            return FileResponse(
                film.path,
                media_type=_media_type(film.path.name),
                headers={"Cache-Control": "private, max-age=3600", "Content-Disposition": "inline"},
            )
        return _refusal(404, "there is no such film or picture (any more)")

    async def _post(self, scope: Scope, receive: Receive, send: Send) -> None:
        upload = scope["path"] == f"{API}/upload"
        limit = self.max_upload + _SLACK if upload else MAX_BODY
        too_large = _refusal(413, f"the request is larger than the {limit / 1e6:.3g} MB that are accepted here")
        length = _header(scope, b"content-length")
        if length and (not length.isdecimal() or int(length) > limit):
            await too_large(scope, receive, _with_headers(send))
            return
        if upload:
            await self._upload(scope, receive, send, int(length) if length else limit)
            return
        body = b""
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return
            body += message.get("body", b"")
            if len(body) > limit:
                await too_large(scope, receive, _with_headers(send))
                return
            if not message.get("more_body"):
                break
        if _names_an_address(body):
            refusal = _refusal(400, "a file is an upload of yours; addresses are not fetched")
            await refusal(scope, receive, _with_headers(send))
            return
        if scope["path"] == f"{API}/queue/join" and not _joins(scope, body):
            refusal = _refusal(400, "no such event: give a function of /config as fn_index, and a session_hash")
            await refusal(scope, receive, _with_headers(send))
            return
        sent = False

        async def again() -> Message:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, again, _with_headers(send))

    async def _upload(self, scope: Scope, receive: Receive, send: Send, need: int) -> None:
        """Let an upload through if it fits, and give its files names that no other visitor has."""
        coming = sum(self._coming)
        if self.uploads.room(coming) + _SLACK < need:
            await asyncio.to_thread(self.uploads.sweep, need - _SLACK, coming)
        if self.uploads.room(coming) + _SLACK < need:
            full = "the demo's disk space for uploads is full of videos in use; try again in a few minutes"
            await _refusal(507, full)(scope, receive, _with_headers(send))
            return
        started: Message = {}
        body = b""

        async def renamed(message: Message) -> None:
            nonlocal started, body
            if message["type"] == "http.response.start":
                started = message
                return
            body += message.get("body", b"")
            if message.get("more_body"):
                return
            answer = _refusal(started["status"], body.decode("utf-8", "replace").strip()[:400])
            if started["status"] == 200:
                answer = self._handed_out(body)
            await answer(scope, receive, _with_headers(send))

        self._coming.append(need)
        try:
            await self.app(scope, _counted(receive, need), renamed)
        finally:
            self._coming.remove(need)
            if not self._coming:
                self.uploads.tidy()

    def _handed_out(self, body: bytes) -> Response:
        from starlette.responses import JSONResponse

        try:
            return JSONResponse([self.uploads.hand_out(path) for path in json.loads(body)])
        except (BadInput, OSError, ValueError, TypeError):
            log.exception("an upload could not be handed out")
            return _refusal(500, "the upload could not be stored; upload the video again")


def _same_site(scope: Scope) -> bool:
    """Whether this demo's own page, or no page at all, sends a request.

    Browsers say so themselves (Sec-Fetch-Site) where the page came by HTTPS or from loopback; elsewhere the page's
    Origin must be the host that was asked, as the visitor or a proxy before the demo names it.
    """
    said = _header(scope, b"sec-fetch-site")
    if said:
        return said in ("same-origin", "none")
    origin = _header(scope, b"origin")
    if not origin:
        return True
    named = (_header(scope, b"host"), _header(scope, b"x-forwarded-host"))
    return origin.partition("://")[2] in {name for name in named if name}


def _joins(scope: Scope, body: bytes) -> bool:
    """Whether a body for Gradio's queue names a function and a session; Gradio itself would fail with a traceback."""
    try:
        event = json.loads(body)
    except (ValueError, RecursionError):
        return False
    if not isinstance(event, dict) or not isinstance(event.get("data"), list):
        return False
    number, session = event.get("fn_index"), event.get("session_hash")
    known = isinstance(number, int) and number in scope["app"].get_blocks().fns
    return known and isinstance(session, str) and bool(session)


def _counted(receive: Receive, limit: int) -> Receive:
    """`receive` that ends the connection of an upload that goes on for ever."""
    seen = 0

    async def counted() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        return {"type": "http.disconnect"} if seen > limit else message

    return counted


def _names_an_address(body: bytes) -> bool:
    """Whether a JSON body holds a file object whose path is no plain path."""
    try:
        value = json.loads(body or b"null")
    except (ValueError, RecursionError):
        return False  # Gradio refuses it
    todo: list[Any] = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, dict):
            path = item.get("path")
            if isinstance(path, str) and (re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", path.strip()) or "//" in path[:2]):
                return True
            todo += item.values()
        elif isinstance(item, list):
            todo += item
    return False


def _with_headers(send: Send) -> Send:
    extra = [
        (b"content-security-policy", POLICY.encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
        (b"permissions-policy", b"camera=(), microphone=(), geolocation=()"),
    ]

    async def with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), *extra]}
        await send(message)

    return with_headers


def _refusal(status: int, sentence: str) -> Response:
    from starlette.responses import PlainTextResponse

    return PlainTextResponse(sentence + "\n", status_code=status)


def _header(scope: Scope, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")


def _is_local(host: str) -> bool:
    name = host.rpartition(":")[0] if re.search(r":\d+$", host) else host
    return name in ("localhost", "[::1]") or re.fullmatch(r"127(\.\d{1,3}){3}", name) is not None


def _media_type(name: str) -> str:
    kind = mimetypes.guess_type(name)[0] or ""
    return kind if kind.startswith("video/") else "video/mp4"
