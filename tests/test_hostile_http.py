"""Requests as broken clients and attackers write them: each gets its own answer, and none is a 500."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from http import HTTPStatus

import pytest

from scoremean.app import Service
from scoremean.handlers import Handlers
from scoremean.model import Score

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
