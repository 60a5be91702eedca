"""Connections: the one module that reaches into what aiohttp keeps to itself, which is why aiohttp has an upper bound.

What a connection may hold is bounded, in number and in time. There is no timer for a request or a connection: each connection
knows when it is overdue, and once a second the Server looks for those that are.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any

from aiohttp import StreamReader, web

from scoremean.counts import CONNECTIONS, Counts
from scoremean.settings import Settings
from scoremean.web.access import Access
from scoremean.web.answer import Response
from scoremean.web.server import Boundary, Handler, Router

SWEEP_SECONDS = 1
# Connections past connections_max that are told so; past these too, a new one is closed without a word.
REFUSED_MAX = 64
# Once so many of connections_max are there, an idle one is closed after this time.
CROWDED_PART = 0.75
CROWDED_IDLE_SECONDS = 1
LINGERING_SECONDS = 1
# A client that reads an answer more slowly than this is cut off.
ANSWER_MIN_BYTES_PER_SECOND = 64 << 10


class Server(web.Server):
    """aiohttp's server of connections, answering with what `router` finds, to whom `access` lets in.

    Args:
        settings: of which connections_max, the timeouts and access_log_every are used.
        counts: where requests and connections are counted.

    Attributes:
        refuse: answers on a connection that is one too many.
    """

    def __init__(self, router: Router, access: Access, settings: Settings, counts: Counts):
        boundary = Boundary(router, access, settings.access_log_every, counts.cells)
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
