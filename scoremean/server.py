"""HTTP over aiohttp's low-level server: connections, routes, bodies, answers. It knows nothing of scores.

aiohttp parses, keeps connections alive and drains them at a stop. Its application layer (router, middlewares, signals, and a
Response that can stream, compress and set cookies) costs more than all the rest of a post, so what scoremean needs of it
stands here: routes with at most one variable, at their end, and answers that are complete when they are made.

Every error of a request leaves through `_Boundary` as application/problem+json (RFC 9457), also those that aiohttp finds
itself.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import unquote

import msgspec
from aiohttp import StreamReader, web

from scoremean.errors import (
    BodyTooLarge,
    ExpectationFailed,
    InvalidScore,
    MalformedRequest,
    MethodNotAllowed,
    RequestTimeout,
    ScoremeanError,
    Unavailable,
    UnknownRoute,
)
from scoremean.validation import JSON, MSGPACK, NDJSON

_log = logging.getLogger(__name__)

_encode_json = msgspec.json.Encoder().encode
_encoders: dict[str, Callable[[Any], bytes]] = {
    NDJSON: msgspec.json.Encoder().encode_lines,
    MSGPACK: msgspec.msgpack.Encoder().encode,
}


class Response:
    """A whole answer. It has what aiohttp's RequestHandler uses of a response: `prepare`, `write_eof` and `keep_alive`.

    Args:
        body: None for an answer that has none and tells no length, such as 304.
        headers: those beside the ones that every answer has. Their values are never a client's text.

    Attributes:
        keep_alive: whether the connection goes on after it; None for what the request asks for.
    """

    __slots__ = ("status", "content_type", "body", "headers", "keep_alive")

    def __init__(
        self, body: bytes | None, *, status: int = 200, content_type: str = JSON, headers: dict[str, str] | None = None
    ):
        self.body = body
        self.status = status
        self.content_type = content_type
        self.headers = headers or {}
        self.keep_alive: bool | None = None

    async def prepare(self, request: web.BaseRequest) -> None:
        """Send the answer to `request`; returns when it is in the hands of the kernel, or nearly so."""
        if self.keep_alive is None:
            self.keep_alive = request.keep_alive
        head = _head(self.status, None if self.body is None else self.content_type, int(time.time()))
        if self.headers:
            head += "".join(f"{name}: {value}\r\n" for name, value in self.headers.items()).encode("ascii")
        if not self.keep_alive:
            head += b"Connection: close\r\n"
        elif request.version < (1, 1):
            head += b"Connection: keep-alive\r\n"
        if self.body is None:
            head += b"\r\n"
        else:
            head += b"Content-Length: %d\r\n\r\n" % len(self.body)
        if self.body is not None and request.method != "HEAD":
            head += self.body
        transport = request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client is gone")
        transport.write(head)
        if request.protocol.writing_paused:
            await request.writer.drain()

    async def write_eof(self) -> None:
        """Do nothing: `prepare`, after which aiohttp calls this, has sent all of it."""


@lru_cache(maxsize=64)
def _head(status: int, content_type: str | None, second: int) -> bytes:
    """Return the lines that all answers of a kind share within a second, the Date among them.

    The Server header names the program, not its version.
    """
    head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nServer: scoremean\r\nDate: {formatdate(second, usegmt=True)}\r\n"
    if content_type is not None:
        head += f"Content-Type: {content_type}\r\n"
    return head.encode("ascii")


def respond(value: object, *, status: int = 200, content_type: str = JSON) -> Response:
    """Return a response with `value`, encoded as `content_type`."""
    return Response(_encoders.get(content_type, _encode_json)(value), status=status, content_type=content_type)


def describe(error: ScoremeanError) -> dict[str, Any]:
    """Return the members of the problem (RFC 9457) that `error` is."""
    members: dict[str, Any] = {
        "type": f"urn:scoremean:{error.slug}",
        "title": error.title,
        "status": error.status,
        # A path or a member's name that a client sent may hold what UTF-8 cannot encode.
        "detail": error.detail.encode(errors="backslashreplace").decode(),
    }
    if isinstance(error, InvalidScore) and error.faults:
        members["errors"] = [fault._asdict() for fault in error.faults]
    return members


def problem(error: ScoremeanError) -> Response:
    """Return `error` as application/problem+json (RFC 9457)."""
    response = respond(describe(error), status=error.status, content_type="application/problem+json")
    if isinstance(error, Unavailable):
        response.headers["Retry-After"] = str(error.retry_after_seconds)
    return response


async def read_body(request: web.BaseRequest, max_bytes: int, timeout_seconds: float) -> bytes:
    """Return the whole body of `request`.

    Raises:
        BodyTooLarge: it is longer than `max_bytes`.
        RequestTimeout: it did not arrive in time.
        web.RequestPayloadError: it ended early.
    """
    content = request.content
    if content.is_eof():  # it came with the headers, as nearly all do: no timer needed
        body = content.read_nowait()
    else:
        try:
            async with asyncio.timeout(timeout_seconds):
                body = await _read_to_end(content, max_bytes)
        except TimeoutError:
            raise RequestTimeout(f"the body did not arrive within {timeout_seconds} seconds") from None
    if len(body) > max_bytes:
        raise BodyTooLarge(f"the body is longer than body_max_bytes, {max_bytes} bytes")
    return body


async def _read_to_end(content: StreamReader, max_bytes: int) -> bytes:
    """Return the rest of a body, or the start of it once that is longer than `max_bytes`."""
    body = bytearray()
    while len(body) <= max_bytes and (chunk := await content.readany()):
        body += chunk
    return bytes(body)


Handler = Callable[[web.BaseRequest], Awaitable[Response]]


_NOTHING: dict[str, Handler] = {}


class Route(NamedTuple):
    """What answers a method on a path. A path may end in one `{variable}`, which stands for all the rest, slashes included."""

    method: str
    path: str
    handler: Handler


class Router:
    """Finds the handler of a request. GET routes answer HEAD too."""

    def __init__(self, routes: Iterable[Route]):
        self._exact: dict[str, dict[str, Handler]] = {}
        self._below: dict[str, dict[str, Handler]] = {}
        for method, path, handler in routes:
            fixed, variable, _ = path.partition("{")
            methods = (self._below if variable else self._exact).setdefault(fixed, {})
            methods |= dict.fromkeys(("GET", "HEAD") if method == "GET" else (method,), handler)

    def find(self, request: web.BaseRequest) -> Handler:
        """Return what answers `request`. Raises UnknownRoute, MethodNotAllowed."""
        path, method = request.rel_url.raw_path, request.method
        if (handler := self._exact.get(path, _NOTHING).get(method)) is not None:
            return handler
        exact, below = self._methods(path)
        if handler := exact.get(method) or below.get(method):
            return handler
        if not exact and not below:
            exact, below = self._methods(unquote(path, errors="replace"))
            if handler := exact.get(method) or below.get(method):
                return handler
        if allowed := ", ".join(sorted(exact | below)):
            raise MethodNotAllowed(f"{path} has no {method}; it has {allowed}", allowed)
        raise UnknownRoute(f"there is no {path}; docs/http.md lists the routes")

    def _methods(self, path: str) -> tuple[dict[str, Handler], dict[str, Handler]]:
        return self._exact.get(path, _NOTHING), self._below.get(path[: path.find("/", 1) + 1], _NOTHING)


class Server(web.Server):
    """aiohttp's server of connections, answering with what `router` finds."""

    def __init__(self, router: Router):
        super().__init__(_Boundary(router), request_factory=_make_request)

    def __call__(self) -> web.RequestHandler:
        # A body is read as it is, and refused if it has a Content-Encoding: no small body that unpacks to a huge one.
        return _Connection(self, loop=asyncio.get_running_loop(), access_log=None, auto_decompress=False)


def _make_request(message: Any, payload: StreamReader, connection: _Connection, writer: Any, task: Any) -> web.BaseRequest:
    connection.payload = payload
    return web.BaseRequest(message, payload, connection, writer, task, connection.loop)


class _Boundary:
    """The outermost handler: whatever a request leads to, an answer of one shape comes out."""

    def __init__(self, router: Router):
        self._router = router

    async def __call__(self, request: web.BaseRequest) -> Response:
        try:
            handler = self._router.find(request)
            if "Expect" in request.headers:
                await _expect(request)
            response = await handler(request)
        except Exception as error:  # pylint: disable=broad-exception-caught  # a bug must not cost more than its own request
            response = _refusal(error, request)
        # What is left of a body that was not read would be taken for the next request, or waited for.
        return response if request.content.is_eof() else _last(response)


async def _expect(request: web.BaseRequest) -> None:
    """Tell a client that waits for it to send its body (RFC 9110, 10.1.1)."""
    if request.headers["Expect"].lower() != "100-continue":
        raise ExpectationFailed("the only Expect header answered is 100-continue")
    if request.version >= (1, 1):
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")


def _refusal(error: Exception, request: web.BaseRequest) -> Response:
    """Return the answer that `error` is."""
    match error:
        case MethodNotAllowed():
            response = problem(error)
            response.headers["Allow"] = error.allowed
            return response
        case ScoremeanError():
            return problem(error)
        case web.RequestPayloadError() | ConnectionError():
            # Half a body. When the client is gone this answer is dropped; when it only stopped sending, it is read.
            return _last(problem(MalformedRequest("the body ended before it was complete")))
    _log.error("a bug: %s %s failed", request.method, request.path, exc_info=error)
    return problem(ScoremeanError("a bug in scoremean, its log says more; it is unknown whether anything was counted"))


class _Connection(web.RequestHandler):
    """One connection, with three habits of aiohttp's changed.

    Attributes:
        payload: the body of the request that is being answered, or was answered last; None before the first.
        loop: the event loop that it lives on.
    """

    __slots__ = ("loop", "payload")

    def __init__(self, manager: web.Server, *, loop: asyncio.AbstractEventLoop, **options: Any):
        super().__init__(manager, loop=loop, **options)
        self.loop = loop
        self.payload: StreamReader | None = None

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> Response:
        """Answer bytes that are not HTTP with a problem, and write nothing to the log: aiohttp writes a traceback."""
        reason = (message or "").partition("\n")[0].rstrip(":")
        return _last(problem(MalformedRequest(f"the request is not well-formed HTTP/1.1: {reason}")))

    def log_exception(self, *args: Any, **kwargs: Any) -> None:
        """Log what is a bug, and not that a body ended early: aiohttp reads on after an early answer, and trips over it."""
        if not isinstance(kwargs.get("exc_info"), web.RequestPayloadError):
            super().log_exception(*args, **kwargs)

    def eof_received(self) -> bool:
        """Answer a client that has sent all it will send: aiohttp hangs up instead, on scores that were counted."""
        payloads = [payload for _, payload in self._messages]
        if self.payload is not None and (self._waiter is None or self._waiter.done()):
            payloads.append(self.payload)
        if not payloads:
            return False  # nothing is being answered: hang up
        for payload in payloads:
            if not payload.is_eof():
                payload.set_exception(web.RequestPayloadError("the body ended before it was complete"))
                payload.feed_eof()  # or aiohttp goes on reading it after the answer
        self.close()  # after the answer that is under way
        return True


def _last(response: Response) -> Response:
    """Return `response` as the last one of its connection, of which the rest cannot be understood."""
    response.keep_alive = False
    return response
