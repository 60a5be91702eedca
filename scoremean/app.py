"""The one place that wires: Store, Writer, routes and HTTP server, and the order in which they start and stop.

    start   Store (opened by the caller) -> Writer -> routes -> listening socket
    stop    listening socket -> requests under way -> Writer -> (the caller closes the Store)

Every error of a request leaves through `_Boundary` as application/problem+json (RFC 9457), also those that aiohttp finds
itself. It wraps the whole application and is no aiohttp middleware, since a middleware never sees a failed Expect header or
bytes that are not HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import StreamReader, web

from scoremean.errors import (
    BodyTooLarge,
    ExpectationFailed,
    ListenError,
    MalformedRequest,
    MethodNotAllowed,
    RequestError,
    ScoremeanError,
    Unavailable,
    UnknownRoute,
)
from scoremean.handlers import Handlers, describe, respond
from scoremean.settings import Settings
from scoremean.store.base import Store
from scoremean.validation import ScoreDecoder
from scoremean.writer import Writer

_log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Service:
    """scoremean over HTTP: started, it listens at `url`; stopped, it has answered everything that it took.

    Args:
        settings: where to listen, and the limits.
        store: an open Store. The Service does not close it.
        version: what /stats tells.

    Attributes:
        url: the address that it listens on, once started; also after it was stopped.
    """

    def __init__(self, settings: Settings, store: Store, version: str):
        self._settings = settings
        self._store = store
        self._version = version
        self._writer: Writer
        self._runner: _Runner
        self.url = ""

    @property
    def failed(self) -> asyncio.Future[BaseException]:
        """Resolves when a commit has failed; the Service must then be stopped."""
        return self._writer.failed

    async def start(self) -> None:
        """Listen; when it returns, requests are answered.

        Raises:
            ListenError: the address cannot be listened on.
        """
        settings = self._settings
        self._writer = Writer(self._store, settings.queue_max_scores)
        handlers = Handlers(
            self._store,
            self._writer,
            ScoreDecoder(settings.score_min, settings.score_max, settings.batch_max_scores),
            self._version,
            settings.body_timeout_seconds,
            settings.batch_max_scores,
        )
        app = web.Application(client_max_size=settings.body_max_bytes)
        app.add_routes(handlers.routes())
        self._runner = _Runner(app, settings)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, settings.host, settings.port).start()
        except OSError as error:
            await self._runner.cleanup()
            raise ListenError(f"cannot listen on {settings.host} port {settings.port}: {os.strerror(error.errno)}") from error
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def stop(self) -> None:
        """Listen no more, answer what is under way, and return when every score taken is durable."""
        await self._runner.cleanup()
        await self._writer.close()


async def serve(settings: Settings, store: Store, version: str, announce: Callable[[str], None]) -> bool:
    """Serve until SIGTERM or SIGINT, or until a commit fails. Return whether it ended well: every score taken is durable.

    Args:
        announce: called with the address, once requests are answered.
    """
    service = Service(settings, store, version)
    await service.start()
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    service.failed.add_done_callback(lambda _: stop.set())
    announce(service.url)
    await stop.wait()
    _log.info("stopping: answering what is under way")
    await service.stop()
    return not service.failed.done()


def problem(error: ScoremeanError) -> web.Response:
    """Return `error` as application/problem+json (RFC 9457)."""
    response = respond(describe(error), status=error.status, content_type="application/problem+json")
    if isinstance(error, Unavailable):
        response.headers["Retry-After"] = str(error.retry_after_seconds)
    return response


class _Boundary:
    """The outermost handler: whatever a request leads to, an answer of one shape comes out."""

    def __init__(self, handler: Handler, body_max_bytes: int):
        self._handler = handler
        self._body_max_bytes = body_max_bytes

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        try:
            return await self._handler(request)
        except Exception as error:  # pylint: disable=broad-exception-caught  # a bug must not cost more than its own request
            response = self._refusal(error, request)
        # What is left of a body that was not read would be taken for the next request, or waited for.
        return response if request.content.is_eof() else _last(response)

    def _refusal(self, error: Exception, request: web.Request) -> web.Response:
        """Return the answer that `error` is."""
        match error:
            case ScoremeanError():
                return problem(error)
            case web.HTTPException():
                return self._translated(error, request)
            case web.RequestPayloadError() | ConnectionError():
                # Half a body. When the client is gone this answer is dropped; when it only stopped sending, it is read.
                return _last(problem(MalformedRequest("the body ended before it was complete")))
        _log.error("a bug: %s %s failed", request.method, request.path, exc_info=error)
        return problem(ScoremeanError("a bug in scoremean, its log says more; it is unknown whether anything was counted"))

    def _translated(self, error: web.HTTPException, request: web.Request) -> web.Response:
        """Return what aiohttp refuses by itself as a problem of ours."""
        match error:
            case web.HTTPMethodNotAllowed():
                allowed = ", ".join(sorted(error.allowed_methods))
                response = problem(MethodNotAllowed(f"{request.path} has no {error.method}; it has {allowed}"))
                response.headers["Allow"] = allowed
                return response
            case web.HTTPNotFound():
                return problem(UnknownRoute(f"there is no {request.path}; docs/http.md lists the routes"))
            case web.HTTPRequestEntityTooLarge():
                return problem(BodyTooLarge(f"the body is longer than body_max_bytes, {self._body_max_bytes} bytes"))
            case web.HTTPExpectationFailed():
                return problem(ExpectationFailed("the only Expect header answered is 100-continue"))
        return problem(RequestError(error.reason))


class _Runner(web.AppRunner):
    """An AppRunner whose application is inside `_Boundary` and whose connections are `_Connection`s.

    aiohttp has no public way to set either; `_make_server` is the one place that makes both.
    """

    def __init__(self, app: web.Application, settings: Settings):
        super().__init__(app, shutdown_timeout=settings.shutdown_timeout_seconds)
        self._body_max_bytes = settings.body_max_bytes

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        make_request = server.request_factory

        def make_request_of(message, payload, connection, *rest):
            connection.payload = payload
            return make_request(message, payload, connection, *rest)

        return _Server(_Boundary(server.request_handler, self._body_max_bytes), request_factory=make_request_of)


class _Server(web.Server):
    def __call__(self) -> web.RequestHandler:
        # A body is read as it is, and refused if it has a Content-Encoding: no small body that unpacks to a huge one.
        return _Connection(self, loop=asyncio.get_running_loop(), access_log=None, auto_decompress=False)


class _Connection(web.RequestHandler):
    """One connection, with three habits of aiohttp's changed.

    Attributes:
        payload: the body of the request that is being answered, or was answered last; None before the first.
    """

    __slots__ = ("payload",)

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.payload: StreamReader | None = None

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
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


def _last(response: web.Response) -> web.Response:
    """Return `response` as the last one of its connection, of which the rest cannot be understood."""
    response.force_close()
    return response
