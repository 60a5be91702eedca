"""HTTP over aiohttp's low-level server: connections, routes, bodies, answers. It knows nothing of scores.

aiohttp parses, keeps connections alive and drains them at a stop. Its application layer (router, middlewares, signals, and a
Response that can stream, compress and set cookies) costs more than all the rest of a post, so what scoremean needs of it
stands here: routes with at most one variable, at their end, and answers that are complete when they are made.

Every error of a request leaves through `_Boundary` as application/problem+json (RFC 9457), also those that aiohttp finds
itself.

What a connection may hold is bounded, in number and in time. There is no timer for a request or a connection: each connection
knows when it is overdue, and once a second the Server looks for those that are.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import re
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from email.utils import formatdate
from functools import lru_cache, partial
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import unquote

import msgspec
from aiohttp import StreamReader, hdrs, web
from multidict import MultiMapping, istr

from scoremean.counts import CONNECTIONS, REQUESTS, STATUS_PLACES, STATUSES, Counts, request_cell
from scoremean.errors import (
    BodyTooLarge,
    ExpectationFailed,
    InvalidScore,
    MalformedRequest,
    MethodNotAllowed,
    RequestTimeout,
    ScoremeanError,
    TooManyConnections,
    Unauthorized,
    Unavailable,
    UnknownRoute,
)
from scoremean.logs import log_access
from scoremean.settings import Settings
from scoremean.web.access import Access, Right
from scoremean.web.wire import JSON, MSGPACK, NDJSON

SWEEP_SECONDS = 1
# Connections past connections_max that are told so; past these too, a new one is closed without a word.
REFUSED_MAX = 64
# Once so many of connections_max are there, an idle one is closed after this time.
CROWDED_PART = 0.75
CROWDED_IDLE_SECONDS = 1
LINGERING_SECONDS = 1
# A client that reads an answer more slowly than this is cut off.
ANSWER_MIN_BYTES_PER_SECOND = 64 << 10

REQUEST_ID = istr("X-Request-Id")
# What of a client's own is repeated in the answer and in the log.
_REQUEST_ID = re.compile("[!-~]{1,128}").fullmatch
_ID_LINE = b"X-Request-Id: %b\r\n"

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
        id_line: the header that tells what the request is called, by the client or by this server.
    """

    __slots__ = ("status", "content_type", "body", "headers", "keep_alive", "id_line")

    def __init__(
        self, body: bytes | None, *, status: int = 200, content_type: str = JSON, headers: dict[str, str] | None = None
    ):
        self.body = body
        self.status = status
        self.content_type = None if body is None else content_type
        self.headers = {} if headers is None else headers
        self.keep_alive: bool | None = None
        self.id_line = b""

    async def prepare(self, request: web.BaseRequest) -> None:
        """Send the answer to `request`; returns when it is in the hands of the kernel, or nearly so."""
        body = self.body
        if self.keep_alive is None:
            self.keep_alive = request.keep_alive and not request.protocol.closing
        head = _head(self.status, self.content_type, int(time.time())) + self.id_line
        for name, value in self.headers.items():
            head += f"{name}: {value}\r\n".encode("ascii")
        if not self.keep_alive:
            head += b"Connection: close\r\n"
        elif request.version < (1, 1):
            head += b"Connection: keep-alive\r\n"
        if body is None:
            head += b"\r\n"
        elif request.method == "HEAD":
            head += b"Content-Length: %d\r\n\r\n" % len(body)
        else:
            head += b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        transport = request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client is gone")
        transport.write(head)
        if request.protocol.writing_paused:
            await request.writer.drain()

    async def write_eof(self) -> None:
        """Do nothing: `prepare`, after which aiohttp calls this, has sent all of it."""


class Stream(Response):
    """An answer of which more comes as time goes by; the connection ends with it.

    Args:
        pieces: what it is made of. It is closed when the client is gone, which is noticed at the next piece.

    Attributes:
        allowed: whether who asked may still have it; asked before each piece.
    """

    __slots__ = ("_pieces", "allowed")

    def __init__(self, pieces: AsyncGenerator[bytes], *, content_type: str):
        super().__init__(None, headers={"Cache-Control": "no-store"})
        self.content_type = content_type
        self.keep_alive = False
        self._pieces = pieces
        self.allowed: Callable[[], bool] = lambda: True

    async def prepare(self, request: web.BaseRequest) -> None:
        """Send the answer to `request`; returns when there are no more pieces. Raises ConnectionResetError."""
        async with aclosing(self._pieces) as pieces:
            await super().prepare(request)
            if request.method == "HEAD":
                return
            async for piece in pieces:
                if not self.allowed():
                    return
                await _write(request, piece)


async def _write(request: web.BaseRequest, data: bytes) -> None:
    """Send `data`; returns when it is in the hands of the kernel, or nearly so. Raises ConnectionResetError."""
    transport = request.transport
    if transport is None or transport.is_closing():
        raise ConnectionResetError("the client is gone")
    transport.write(data)
    if request.protocol.writing_paused:
        await request.writer.drain()


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
    """Return a response with `value`, encoded as `content_type`; JSON ends its line, as a terminal wants it."""
    if encode := _encoders.get(content_type):
        return Response(encode(value), status=status, content_type=content_type)
    return Response(_encode_json(value) + b"\n", status=status, content_type=content_type)


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
    """Return the whole body of `request`; ask for it first if the client waits for that (RFC 9110, 10.1.1).

    Raises:
        BodyTooLarge: it is longer than `max_bytes`, or says so before it comes.
        RequestTimeout: it did not arrive in time.
        web.RequestPayloadError: it ended early.
    """
    content = request.content
    if content.is_eof():  # it came with the headers, as nearly all do: no timer needed
        body = content.read_nowait()
    else:
        if (request.content_length or 0) > max_bytes:
            raise _too_large(max_bytes)
        if hdrs.EXPECT in request.headers and request.version >= (1, 1):
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        try:
            async with asyncio.timeout(timeout_seconds):
                body = await _read_to_end(content, max_bytes)
        except TimeoutError:
            raise RequestTimeout(f"the body did not arrive within {timeout_seconds} seconds") from None
    if len(body) > max_bytes:
        raise _too_large(max_bytes)
    return body


def _too_large(max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is longer than body_max_bytes, {max_bytes} bytes")


async def _read_to_end(content: StreamReader, max_bytes: int) -> bytes:
    """Return the rest of a body, or the start of it once that is longer than `max_bytes`."""
    body = bytearray()
    while len(body) <= max_bytes and (chunk := await content.readany()):
        body += chunk
    return bytes(body)


Handler = Callable[[web.BaseRequest], Awaitable[Response]]


class Route(NamedTuple):
    """What answers a method on a path. Behind its first segment there may be one `{variable}`, which stands for all the rest,
    slashes included, or for all but the last segment.

    Attributes:
        vital: it tells whether the service is up, and is answered also on a connection that is one too many: whoever asks
            restarts a service that does not answer, and a flood is no reason to.
        first_cell: of those in the counts that are its own; the Router's to set.
    """

    method: str
    path: str
    handler: Handler
    right: Right = Right.WRITE
    vital: bool = False
    first_cell: int = 0


_NOTHING: dict[str, Route] = {}


def decoded_path(request: web.BaseRequest) -> str:
    """Return the path of `request`, percent-decoded as a whole: in this text alone a route is found, and what its variable is.

    Bytes that are not UTF-8 stand in it as lone surrogates.
    """
    path = request.rel_url.raw_path or "/"  # the absolute form may have none (RFC 9112, 3.2.2)
    return unquote(path, errors="surrogateescape") if "%" in path else path


def _require_utf8(query: str) -> None:
    """Raise MalformedRequest for a query that is not percent-encoded UTF-8, also on a route that has no parameters."""
    try:
        unquote(query, errors="strict").encode()
    except UnicodeError:
        raise MalformedRequest("the query is not percent-encoded UTF-8") from None


class Router:
    """Finds the route of a request. GET routes answer HEAD too.

    Args:
        routes: in an order that stays: by their numbers, which begin at 1, their requests are counted.
    """

    def __init__(self, routes: Iterable[Route]):
        self._exact: dict[str, dict[str, Route]] = {}
        self._below: dict[str, dict[str, Route]] = {}
        self._around: dict[str, dict[str, Route]] = {}
        for number, plain in enumerate(routes, 1):
            route = plain._replace(first_cell=request_cell(number, STATUSES[0]))
            fixed, variable, rest = route.path.partition("{")
            last = rest.partition("}")[2]
            methods = (self._around if last else self._below if variable else self._exact).setdefault(fixed + last, {})
            methods |= dict.fromkeys(("GET", "HEAD") if route.method == "GET" else (route.method,), route)

    def find(self, request: web.BaseRequest) -> Route:
        """Return what answers `request`. Raises MalformedRequest, UnknownRoute, MethodNotAllowed."""
        if "#" in request.raw_path:  # aiohttp would cut off what follows, and another UUID would be read, or forgotten
            raise MalformedRequest("a # must be percent-encoded: %23")
        if "?" in request.raw_path:
            _require_utf8(request.raw_path.partition("?")[2])
        path, method = decoded_path(request), request.method
        exact = self._exact.get(path, _NOTHING)
        if (route := exact.get(method)) is not None:
            return route
        below = self._below.get(path[: path.find("/", 1) + 1], _NOTHING)
        if (route := below.get(method)) is not None:
            return route
        first, last = path.find("/", 1) + 1, path.rfind("/")
        around = self._around.get(path[:first] + path[last:], _NOTHING) if first <= last else _NOTHING
        if (route := around.get(method)) is not None:
            return route
        path = request.rel_url.raw_path
        if allowed := ", ".join(sorted(exact | below | around)):
            raise MethodNotAllowed(f"{path} has no {method}; it has {allowed}", allowed)
        raise UnknownRoute(f"there is no {path}; /docs lists the routes")


class Server(web.Server):
    """aiohttp's server of connections, answering with what `router` finds, to whom `access` lets in.

    Args:
        settings: of which connections_max, the timeouts and access_log_every are used.
        counts: where requests and connections are counted.

    Attributes:
        refuse: answers on a connection that is one too many.
    """

    def __init__(self, router: Router, access: Access, settings: Settings, counts: Counts):
        boundary = _Boundary(router, access, settings.access_log_every, counts.cells)
        self._cells = counts.cells
        self._access = access
        # A client that goes away does not cancel what it asked for: a score that is being counted has no way back.
        super().__init__(boundary, request_factory=_make_request, handler_cancellation=False)
        self.refuse = boundary.refuse
        self._malformed = boundary.malformed
        self._settings = settings
        self._sweeping = self._loop.call_later(SWEEP_SECONDS, self._sweep_again)

    def __call__(self) -> web.RequestHandler:
        return _Connection(
            self,
            loop=self._loop,
            malformed=self._malformed,
            header_timeout_seconds=self._settings.header_timeout_seconds,
            answer_timeout_seconds=self._settings.body_timeout_seconds,
            keepalive_timeout=self._settings.keepalive_timeout_seconds,
            lingering_time=LINGERING_SECONDS,
            access_log=None,
            # A body is read as it is, and refused if it has a Content-Encoding: no small body that unpacks to a huge one.
            auto_decompress=False,
        )

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        """Take a connection; or refuse it, if it is one too many."""
        super().connection_made(handler, transport)
        excess = len(self._connections) - self._settings.connections_max
        if excess > REFUSED_MAX:
            self._loop.call_soon(transport.abort)  # not within the call that makes the connection: aiohttp is not done with it
        elif excess > 0:
            handler.refuse_with(self.refuse)

    def sweep(self, now: float) -> None:
        """Close the connections that are overdue at `now`, a time of the event loop, without a word: nobody listens."""
        crowded = len(self._connections) > self._settings.connections_max * CROWDED_PART
        for connection, transport in list(self._connections.items()):
            if connection.is_overdue(now, transport):
                transport.abort()
            elif crowded and connection.idle_seconds(now) > CROWDED_IDLE_SECONDS:
                connection.force_close()
            elif not self._access.still_trusts(transport):
                connection.end()

    def _sweep_again(self) -> None:
        self._sweeping = self._loop.call_later(SWEEP_SECONDS, self._sweep_again)
        self._cells[CONNECTIONS] = len(self._connections)
        self.sweep(self._loop.time())

    async def shutdown(self, timeout: float | None = None) -> None:
        """Close every connection once it is answered, or after `timeout` seconds."""
        await super().shutdown(timeout)
        self._sweeping.cancel()


def _make_request(message: Any, payload: StreamReader, connection: _Connection, writer: Any, task: Any) -> web.BaseRequest:
    connection.payload = payload
    connection.header_due = math.inf
    if message.upgrade:  # aiohttp drops what came with it, as of a protocol that was switched to: no answer may follow this one
        connection.close()
    return web.BaseRequest(message, payload, connection, writer, task, connection.loop)


class _Boundary:
    """The outermost handler: whatever a request leads to, an answer of one shape comes out.

    It asks who a request is from before anything of the request is acted on.
    """

    def __init__(self, router: Router, access: Access, access_log_every: int, cells: memoryview):
        self._router = router
        self._access = access
        self._hosts = access.hosts
        self._tokens = access.tokens
        self._cells = cells
        self._access_log_every = access_log_every
        # What this process calls requests: by chance once, and then by number.
        self._id_lines = map(_ID_LINE.replace(b"%b", secrets.token_hex(6).encode() + b"-%d").__mod__, itertools.count(1))
        self._answered = 0

    async def __call__(self, request: web.BaseRequest) -> Response:
        headers = request.headers
        given = headers.get(REQUEST_ID)
        id_line = _ID_LINE % given.encode() if given is not None and _REQUEST_ID(given) else next(self._id_lines)
        started = self._access_log_every and time.perf_counter()
        first_cell = REQUESTS  # those of no route
        try:
            if self._hosts is not None and (host := headers.get(hdrs.HOST)) not in self._hosts.known:
                self._hosts.require(host)
            route = self._router.find(request)
            first_cell = route.first_cell
            if self._tokens is not None:
                self._tokens.require(_authorization(headers), route.right)
            if hdrs.EXPECT in headers:
                _require_continue(headers.getall(hdrs.EXPECT))
            response = await route.handler(request)
            if isinstance(response, Stream):
                response.allowed = partial(
                    self._access.still_allows, request.transport, _authorization(headers), route.right
                )
        except Exception as error:  # pylint: disable=broad-exception-caught  # a bug must not cost more than its own request
            response = _refusal(error, request, id_line)
        response.id_line = id_line
        self._cells[first_cell + STATUS_PLACES[response.status]] += 1
        if started:
            self._log_access(request, response, started)
        # What is left of a body that was not read would be taken for the next request, or waited for.
        return response if request.content.is_eof() else _last(response)

    def _log_access(self, request: web.BaseRequest, response: Response, started: float) -> None:
        """Log one of so many requests as it is answered; of a stream, as it begins."""
        self._answered += 1
        if self._answered % self._access_log_every == 0:
            seconds = time.perf_counter() - started
            log_access(request.method, request.raw_path, response.status, seconds, _id_in(response.id_line))

    async def refuse(self, request: web.BaseRequest) -> Response:
        """Answer on a connection that is one too many, and end it: 503, but for the vital routes."""
        try:
            if self._router.find(request).vital:
                return _last(await self(request))
        except ScoremeanError:
            pass
        response = problem(TooManyConnections("there are connections_max connections already; nothing was done"))
        return self._name_and_count(response)

    def malformed(self, reason: str) -> Response:
        """Return the answer to bytes that are not HTTP, which end their connection."""
        response = problem(MalformedRequest(f"the request is not well-formed HTTP/1.1: {reason}"))
        return self._name_and_count(response)

    def _name_and_count(self, response: Response) -> Response:
        """Return the answer to what is no request of a route."""
        response.id_line = next(self._id_lines)
        self._cells[request_cell(0, response.status)] += 1
        return _last(response)


def _authorization(headers: MultiMapping[str]) -> str:
    """Return the header, empty if there is none; of several all, with commas between (RFC 9110, 5.3), which is no token."""
    return ", ".join(headers.getall(hdrs.AUTHORIZATION, ()))


def _id_in(id_line: bytes) -> str:
    """Return what the header `id_line` calls a request."""
    return id_line.split()[1].decode()


def _require_continue(expectations: Sequence[str]) -> None:
    """Raise ExpectationFailed unless all that is expected is to be asked for the body."""
    if any(one.lower() != "100-continue" for one in expectations):
        raise ExpectationFailed("the only Expect header answered is 100-continue")


def _refusal(error: Exception, request: web.BaseRequest, id_line: bytes) -> Response:
    """Return the answer that `error` is."""
    match error:
        case MethodNotAllowed():
            response = problem(error)
            response.headers["Allow"] = error.allowed
            return response
        case Unauthorized():
            response = problem(error)
            response.headers["WWW-Authenticate"] = "Bearer"
            return response
        case ScoremeanError():
            return problem(error)
        case web.RequestPayloadError() | ConnectionError():
            # Half a body. When the client is gone this answer is dropped; when it only stopped sending, it is read.
            return _last(problem(MalformedRequest("the body ended before it was complete")))
    fields = {"request_id": _id_in(id_line)}
    _log.error("a bug: %s %s failed", request.method, request.raw_path, exc_info=error, extra={"fields": fields})
    return problem(ScoremeanError("a bug in scoremean, its log says more; it is unknown whether anything was counted"))


_receive = web.RequestHandler.data_received


class _Connection(web.RequestHandler):
    """One connection, with some habits of aiohttp's changed, and clocks on what aiohttp has none for.

    Args:
        malformed: returns the answer to bytes that are not HTTP, given the reason.
        header_timeout_seconds: for the head of a request, from the opening or from its first byte.
        answer_timeout_seconds: for an answer that the client does not read; more for a long one.

    Attributes:
        payload: the body of the request that is being answered, or was answered last; None before the first.
        loop: the event loop that it lives on.
        header_due: when the head of a request must be whole of which a part is here; at first, that of the first request.
            Infinite between requests.
    """

    __slots__ = (
        "loop",
        "payload",
        "header_due",
        "_malformed",
        "_header_timeout",
        "_answer_timeout",
        "_answer_due",
        "_closing_due",
        "_ended",
    )

    def __init__(
        self,
        manager: web.Server,
        *,
        loop: asyncio.AbstractEventLoop,
        malformed: Callable[[str], Response],
        header_timeout_seconds: float,
        answer_timeout_seconds: float,
        **options: Any,
    ):
        super().__init__(manager, loop=loop, **options)
        self.loop = loop
        self._malformed = malformed
        self.payload: StreamReader | None = None
        self._header_timeout = header_timeout_seconds
        self._answer_timeout = answer_timeout_seconds
        self.header_due = loop.time() + header_timeout_seconds
        self._answer_due = self._closing_due = math.inf
        self._ended = False

    @property
    def closing(self) -> bool:
        """Whether the next answer is the last one: the service stops, or the client asks for nothing more."""
        return self._close or (self._ended and not self._messages)

    def refuse_with(self, handler: Handler) -> None:
        """Have `handler` answer on this connection."""
        self._request_handler = handler

    def data_received(self, data: bytes) -> None:
        """Take what the client sent, and start the clock if it is part of a head and no more."""
        _receive(self, data)
        if self._messages or self._request_in_progress:  # nearly always: the head is whole, or what came is a body
            return
        if data and self.header_due == math.inf and (self.payload is None or self.payload.is_eof()):
            self.header_due = self.loop.time() + self._header_timeout

    def pause_writing(self) -> None:
        """Begin to wait for a client that reads more slowly than it is written to."""
        super().pause_writing()
        size_bytes = self.transport.get_write_buffer_size()
        self._answer_due = self.loop.time() + self._answer_timeout + size_bytes / ANSWER_MIN_BYTES_PER_SECOND

    def resume_writing(self) -> None:
        """End the wait."""
        super().resume_writing()
        self._answer_due = math.inf

    def is_overdue(self, now: float, transport: asyncio.Transport) -> bool:
        """Return whether the head of a request, the reading of an answer or the closing has taken too long."""
        if transport.is_closing() and self._closing_due == math.inf:  # it waits until what is written is read
            self._closing_due = now + self._answer_timeout
        return now >= min(self._answer_due, self._closing_due) or (self._waits() and now >= self.header_due)

    def idle_seconds(self, now: float) -> float:
        """Return for how long nothing has been asked since the last answer; 0 if that is not what it waits for."""
        if not self._waits() or self.header_due != math.inf:
            return 0
        return now - (self._next_keepalive_close_time - self._keepalive_timeout)

    def end(self) -> None:
        """Close, after the request under way if there is one."""
        if self._waits():
            self.force_close()
        else:
            self.close()

    def _waits(self) -> bool:
        """Return whether no request is under way."""
        return self._waiter is not None and not self._waiter.done()

    def close(self) -> None:
        """Close after the requests under way, of which one may have a body that still comes: aiohttp drops the rest of it."""
        coming = [payload for payload in self._payloads() if not payload.is_eof()]
        if coming:
            coming[0].on_eof(super().close)
        else:
            super().close()

    async def shutdown(self, timeout: float | None = 15.0) -> None:
        """Close after the requests under way, or after `timeout` seconds."""
        ends = self.loop.time() + timeout
        if self._task_handler is not None and not all(payload.is_eof() for payload in self._payloads()):
            await asyncio.wait([self._task_handler], timeout=timeout)
        await super().shutdown(max(ends - self.loop.time(), 0.01))  # aiohttp takes 0 for no limit

    def _payloads(self) -> list[StreamReader]:
        """Return the bodies of the requests under way, whole or not."""
        payloads = [payload for _, payload in self._messages]
        if self.payload is not None and not self._waits():
            payloads.append(self.payload)
        return payloads

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> Response:
        """Answer bytes that are not HTTP with a problem, and write nothing to the log: aiohttp writes a traceback."""
        reason = (message or "").partition("\n")[0].rstrip(":")
        return self._malformed(reason)

    def log_exception(self, *args: Any, **kwargs: Any) -> None:
        """Log what is a bug, and not that a body ended early: aiohttp reads on after an early answer, and trips over it."""
        if not isinstance(kwargs.get("exc_info"), web.RequestPayloadError):
            super().log_exception(*args, **kwargs)

    def eof_received(self) -> bool:
        """Answer a client that has sent all it will send: aiohttp hangs up instead, on scores that were counted.

        Over TLS that is not to be had: the event loop closes both directions together.
        """
        if self.ssl_context is not None:
            return False
        payloads = self._payloads()
        if not payloads:
            return False  # nothing is being answered: hang up
        for payload in payloads:
            if not payload.is_eof():
                payload.set_exception(web.RequestPayloadError("the body ended before it was complete"))
                payload.feed_eof()  # or aiohttp goes on reading it after the answer
        self._ended = True
        if not self._messages:
            self.close()  # after the answer that is under way; aiohttp would not give those that wait behind it
        return True


def _last(response: Response) -> Response:
    """Return `response` as the last one of its connection, of which the rest cannot be understood."""
    response.keep_alive = False
    return response
