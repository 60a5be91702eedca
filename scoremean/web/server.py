"""HTTP over aiohttp's low-level server: routes, bodies, and who may ask. It knows nothing of scores.

aiohttp parses, keeps connections alive and drains them at a stop. Its application layer (router, middlewares, signals, and a
Response that can stream, compress and set cookies) costs more than all the rest of a post, so what scoremean needs of it
stands here and beside it: routes with at most one variable, and answers that are complete when they are made.

Every error of a request leaves through `Boundary` as application/problem+json (RFC 9457), also those that aiohttp finds
itself.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple
from urllib.parse import unquote

from aiohttp import StreamReader, hdrs, web
from multidict import MultiMapping, istr

from scoremean.counts import REQUESTS, STATUS_PLACES, STATUSES, request_cell
from scoremean.errors import (
    BodyTooLarge,
    ExpectationFailed,
    MalformedRequest,
    MethodNotAllowed,
    RequestTimeout,
    ScoremeanError,
    TooManyConnections,
    Unauthorized,
    UnknownRoute,
)
from scoremean.logs import log_access
from scoremean.web.access import Access, Right
from scoremean.web.answer import Response, Stream, end_with, problem

REQUEST_ID = istr("X-Request-Id")
# What of a client's own is repeated in the answer and in the log.
_REQUEST_ID = re.compile("[!-~]{1,128}").fullmatch
_ID_LINE = b"X-Request-Id: %b\r\n"

_log = logging.getLogger(__name__)

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


class Boundary:
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
        return response if request.content.is_eof() else end_with(response)

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
                return end_with(await self(request))
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
        return end_with(response)


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
            return end_with(problem(MalformedRequest("the body ended before it was complete")))
    fields = {"request_id": _id_in(id_line)}
    _log.error("a bug: %s %s failed", request.method, request.raw_path, exc_info=error, extra={"fields": fields})
    return problem(ScoremeanError("a bug in scoremean, its log says more; it is unknown whether anything was counted"))
