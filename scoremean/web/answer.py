"""Answers: complete when they are made, or streams; what an error is answered with."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import Any

import msgspec
from aiohttp import web

from scoremean.errors import InvalidScore, ScoremeanError, Unavailable
from scoremean.web.wire import JSON, MSGPACK, NDJSON

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


def end_with(response: Response) -> Response:
    """Return `response` as the last one of its connection, of which the rest cannot be understood."""
    response.keep_alive = False
    return response
