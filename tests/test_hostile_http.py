"""Requests as broken clients and attackers write them: each gets its own answer, and none is a 500."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Iterator, Sequence
from http import HTTPStatus

import pytest

from scoremean.app import Service
from scoremean.model import Score
from scoremean.web.handlers import Handlers
from tests.support import LONG
from tests.test_http import exchange

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
# What stands for variables: UUIDs that are the end of another route, or hold what paths are made of; and a file.
TEXTS = ("a1-b1", "query", "é/..%2F", "page.css")
DAMAGE = ("%", "%4", "%zz", "%u0041", "%25", "%252F", "%00", "%ff", "%C3", "%ED%A0%80", "%2e%2e", "/", "/../", ";", ":", "?")
ROUTES = sorted({route.path for route in Handlers(*[None] * 6).routes()})

Answer = tuple[int, dict[str, str], bytes]


async def send(service: Service, raw: bytes) -> bytes:
    """Send `raw` and return all that comes back until the service closes the connection."""
    reader, writer = await asyncio.open_connection(*service.url.removeprefix("http://").split(":"))
    writer.write(raw)
    answer = await reader.read()
    writer.close()
    return answer


def request(method: str, target: str, *headers: str) -> bytes:
    """Return the bytes of a request without a body."""
    return "\r\n".join([f"{method} {target} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode("latin-1")


def answers(raw: bytes, methods: Sequence[str]) -> list[Answer]:
    """Return the answers to requests with these methods: status, headers by lower-case name, body."""
    found = []
    for method in methods:
        head, _, raw = raw.partition(b"\r\n\r\n")
        first, *lines = head.decode("ascii").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        size = 0 if method == "HEAD" else int(headers.get("content-length", 0))
        found.append((int(first.split()[1]), headers, raw[:size]))
        raw = raw[size:]
    assert raw == b""
    return found


async def ask(service: Service, method: str, targets: Sequence[str]) -> list[Answer]:
    """Return the answers to all `targets`, asked one behind the other on one connection."""
    raw = [request(method, target) for target in targets[:-1]] + [request(method, targets[-1], "Connection: close")]
    return answers(await send(service, b"".join(raw)), [method] * len(targets))


def with_one_more(path: str) -> Iterator[str]:
    """Yield a valid `path` with each byte encoded, with all behind it and with all before it; the digits in either case."""
    plain = [chr(byte) if byte in b"/.-_" or chr(byte).isalnum() and byte < 0x80 else f"%{byte:02X}" for byte in path.encode()]
    yield "".join(plain)
    yield "http://other:1" + "".join(plain)
    lower = [f"%{byte:02x}" for byte in path.encode()]
    for coded in (lower, [text.upper() for text in lower]):
        for at in range(1, len(plain)):  # the first slash makes it a path
            yield "".join([*plain[:at], coded[at], *plain[at + 1 :]])
            yield "".join([*plain[:at], *coded[at:]])
            yield "".join([plain[0], *coded[1:at], *plain[at:]])


def meaning(answer: Answer) -> tuple[object, ...]:
    """Return what of an answer does not repeat the path as it was written."""
    status, headers, body = answer
    if status in (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED) and body:
        problem = json.loads(body)
        body = problem["type"] + (problem["detail"] if problem["type"] == "urn:scoremean:unknown-uuid" else "")
    return status, headers["content-type"], headers.get("allow"), headers.get("etag"), body


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("route", ROUTES)
async def test_a_path_means_the_same_however_it_is_encoded(service, store, caplog, route, method):
    """Every byte of it, the slashes too, as in the path with nothing encoded that need not be."""
    if method != "DELETE":  # which would find a UUID only the first time
        store.commit([Score(text, 3) for text in TEXTS])
    if route in ("/events", "/stats", "/metrics") and method in ("GET", "HEAD"):
        pytest.skip("it has no end, or its answer changes; the other methods find the same route")
    fixed, variable, _ = route.partition("{")
    for text in TEXTS if variable else ("",):
        first, *others = await ask(service, method, list(with_one_more(fixed + text)))
        assert first[0] < 500
        assert {meaning(other) for other in others} == {meaning(first)}
    assert not caplog.records


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("route", ROUTES)
async def test_no_path_is_a_500(service, caplog, route, method):
    """With what no path should hold at each of its places; a refusal is an answer like any other."""
    path = route.replace("{", "").replace("}", "")
    targets = [path[:at] + text + path[at:] for at in range(1, len(path) + 1) for text in DAMAGE]
    targets = [target for target in targets if not target.startswith("/events?")]  # which has no end
    for status, headers, body in await ask(service, method, targets):
        assert status < 500
        assert status < 400 or headers["content-type"] == "application/problem+json"
        assert status < 400 or method == "HEAD" or json.loads(body)["status"] == status
    assert not caplog.records


LINES = (
    *("GET /means/a1-b1", "HEAD /means?limit=1", "POST /scores", "POST /scores?on_error=skip", "POST /means/query"),
    *("DELETE /scores/k", "DELETE /means/b", "OPTIONS *", "CONNECT localhost:80", "GET http://other/livez", "PUT /stats"),
    *("GET /means?after=%ff", "GET /means?limit=1&&limit=", "GET /docs?%00", "GET /means?after=" + "%F0%9F%98%80" * 70),
)
# What is read here or may be left alone, and what must end the connection.
HEADERS = (
    *("Content-Type: application/json", "Content-Type: application/x-ndjson", "Content-Type: application/msgpack"),
    *("Content-Type: application/json; charset=utf-8", "Content-Type:"),
    *("Content-Encoding: gzip", "Content-Encoding: identity", "Expect: 100-continue", "Expect: ,", "Expect:"),
    *("Connection: keep-alive, Upgrade", "Connection: Upgrade", "Upgrade: h2c", "Upgrade: websocket", "Upgrade: \xe9", "TE: x"),
    *("Range: bytes=0-1", "Range: bytes=-", "If-Range: *", 'If-None-Match: "3-1"', "If-None-Match: *", "If-None-Match: ,,W/,"),
    *("If-None-Match: \xff", "If-Match: x", "Idempotency-Key: k", 'Idempotency-Key: "', "Idempotency-Key: \xff"),
    *('Idempotency-Key: "\\"', "X-Request-Id: a b", "X-Request-Id: \xff", "Authorization: Bearer"),
    *("Accept: \xff", "Cookie: a=\xff"),
)
BAD_HEADERS = (
    *("Content-Length: 29", "Content-Length: -1", "Content-Length: 29, 29", "Content-Length: 99999999999999999999"),
    *("Content-Length: 1e2", "Transfer-Encoding: gzip, chunked", "Transfer-Encoding:", "Connection: close", "Host: localhost"),
    *("Host: [::1", "Sec-WebSocket-Key1: 1", "X: " + "x" * 9000, "X" * 9000 + ": x", " folded: x", "No colon", ": no name"),
    *("X\x00: x", "X: \x00"),
)
BODIES = (
    *(b"{}", b'{"UUID": "a1-b1", "score": 5}', b'[{"UUID": "a1-b1", "score": 5}]', b'["a1-b1"]', b"\x81\xa4UUID", b"\xff" * 29),
    *(b"[" * 980, b'{"UUID": ' + b"[" * 980 + b"]" * 980 + b"}"),
)
CHUNKS = (b'1d\r\n{"UUID": "a1-b1", "score": 5}\r\n0\r\n\r\n', b"0\r\nX: y\r\n\r\n", b"-1\r\n", b"fffffffffffffffff\r\n")
ANSWER = re.compile(rb"^HTTP/1\.1 (\d{3}) [A-Z][A-Za-z -]*\r\nServer: scoremean\r\n", re.MULTILINE)


def made_up(rng: random.Random) -> bytes:
    """Return a request that is odd, or broken."""
    version = rng.choice((" HTTP/1.1",) * 8 + (" HTTP/1.0", " HTTP/2.0", ""))
    lines = [rng.choice(LINES) + version, "Host: localhost", *rng.sample(HEADERS, rng.randrange(5))]
    if rng.random() < 0.2:
        lines += rng.sample(BAD_HEADERS, rng.randrange(1, 3))
    body, framing = b"", "X: no body"
    if rng.random() < 0.7:
        body, chunked = rng.choice(BODIES), rng.choice(CHUNKS)
        body, framing = rng.choice(((body, f"Content-Length: {len(body)}"), (chunked, "Transfer-Encoding: chunked")))
    raw = bytearray("\r\n".join([*lines, framing, "", ""]).encode("latin-1") + body)
    for _ in range(rng.choice((0, 0, 0, 0, 3))):
        at = rng.randrange(len(raw))
        raw[at : at + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
    return bytes(raw)


async def test_no_bytes_are_a_500(service, caplog):
    """Each connection sends up to three made-up requests and closes its side; what comes back are answers, whole ones."""
    rng = random.Random(12)
    for _ in range(20_000 if LONG else 2000):
        raw = b"".join(made_up(rng) for _ in range(rng.randrange(1, 4)))
        reader, writer = await asyncio.open_connection(*service.url.removeprefix("http://").split(":"))
        writer.write(raw)
        writer.write_eof()
        found = await reader.read()
        writer.close()
        statuses = [int(status) for status in ANSWER.findall(found)]
        assert not found or found.startswith(b"HTTP/1.1 "), raw
        assert all(status < 500 for status in statuses), raw
        assert not caplog.records, raw
    assert (await ask(service, "GET", ["/livez"]))[0][0] == 200


@pytest.mark.parametrize("query", [b"%ff", b"x=%ff", b"%c3", b"a=1&b=%80%81", b"\xff", b"%ed%a0%80"])
@pytest.mark.parametrize("target", [b"/means/a", b"/livez", b"/", b"/docs", b"/stats", b"/nowhere"])
async def test_a_query_that_is_no_utf8_is_refused_on_every_route(service, target, query):
    """Also where there are no parameters, and what follows a question mark means nothing."""
    status, _, problem = await exchange(service, b"GET %b?%b HTTP/1.1\r\nHost: localhost\r\n\r\n" % (target, query))
    assert (status, problem["type"]) == (400, "urn:scoremean:malformed-request")
