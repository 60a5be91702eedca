"""The HTTP contract: the examples, every route, every refusal. Real sockets throughout."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import Future

import msgspec
import pytest
from aiohttp import ClientSession

from scoremean.app import Service
from scoremean.errors import StoreFull
from scoremean.model import Score, Tally
from scoremean.store.embedded import store as lmdb_module
from tests.support import post

OK_BODY = b'{"UUID": "a1-b1", "score": 5}'
JSON = {"Content-Type": "application/json"}


async def test_the_three_scores_of_the_readme(client):
    """5, 3, 4 give 5.0, 4.0, 4.0, in exactly two members."""
    for score, mean in ((5, 5.0), (3, 4.0), (4, 4.0)):
        async with client.post("/scores", json={"UUID": "a1-b1", "score": score}) as response:
            assert response.status == 200
            assert response.headers["Content-Type"] == "application/json"
            assert await response.json() == {"UUID": "a1-b1", "mean": mean}
    async with client.get("/means/a1-b1") as response:
        assert await response.json() == {"UUID": "a1-b1", "mean": 4.0, "sum": 12, "count": 3}


@pytest.mark.parametrize(
    ("uuid", "path"),
    [
        ("a/b", "a/b"),
        ("a/b", "a%2Fb"),
        ("a/b", "a%2fb"),
        ("é ü", "%C3%A9%20%C3%BC"),
        ("100%", "100%25"),
        ("a?b#c", "a%3Fb%23c"),
        ("a+b", "a+b"),
        ("..", ".."),
        ("./a/../b", "./a/../b"),
        ("/", "%2F"),
        ("a//b/", "a//b/"),
        ("%2F", "%252F"),
    ],
)
async def test_a_uuid_in_the_path_is_percent_encoded(client, service, uuid, path):
    """Slashes and dots as they are or encoded, anything else encoded; nothing is normalised away."""
    await post(client, uuid, 3)
    status, _, body = await exchange(service, raw_request(f"GET /means/{path}?x=1"))
    assert (status, body) == (200, {"UUID": uuid, "mean": 3.0, "sum": 3, "count": 1})


@pytest.mark.parametrize("target", ["http://x/means/dup", "/me%61ns/dup"])
async def test_a_path_may_be_written_otherwise(client, service, target):
    """In absolute form (RFC 9112, 3.2.2), or with more encoded than need be."""
    await post(client, "dup", 3)
    status, _, body = await exchange(service, raw_request(f"GET {target}"))
    assert (status, body["UUID"]) == (200, "dup")


async def test_http_1_0_keeps_a_connection_that_asks_for_it(service):
    """And is told so; another one is closed after its answer."""
    reader, writer = await asyncio.open_connection(*service.url.removeprefix("http://").split(":"))
    for asked, told in (("keep-alive", "keep-alive"), ("x", "close")):
        writer.write(f"GET /livez HTTP/1.0\r\nConnection: {asked}\r\n\r\n".encode())
        status, headers, _ = await read_response(reader)
        assert (status, headers["connection"]) == (200, told)
    assert await reader.read() == b""
    writer.close()


async def test_a_body_that_waits_to_be_asked_for(service):
    """Expect: 100-continue is answered first; a client of HTTP/1.0 does not know it and is not told."""
    for version, interim in (("1.1", b"HTTP/1.1 100 Continue\r\n\r\n"), ("1.0", b"")):
        reader, writer = await asyncio.open_connection(*service.url.removeprefix("http://").split(":"))
        raw = raw_post("Expect: 100-Continue", body=b"", length=len(OK_BODY))
        writer.write(raw.replace(b"HTTP/1.1", f"HTTP/{version}".encode()))
        assert await reader.readexactly(len(interim)) == interim
        writer.write(OK_BODY)
        assert (await read_response(reader))[0] == 200
        writer.close()


async def test_a_client_that_reads_slowly_gets_all_of_a_long_answer(client, service):
    """It is sent as fast as it is read, and others are answered meanwhile."""
    uuids = [f"{n:0200}" for n in range(1000)]
    service._writer._store.commit([Score(uuid, 1) for uuid in uuids])  # pylint: disable=protected-access
    reader, writer = await asyncio.open_connection(*service.url.removeprefix("http://").split(":"), limit=1 << 12)
    writer.write(raw_request("GET /means?limit=1000") * 60)  # more than the kernel takes at once
    for _ in range(20):
        assert await post(client, "other", 3) == 3.0
    for _ in range(60):
        status, _, means = await read_response(reader)
        assert (status, [mean["UUID"] for mean in means]) == (200, uuids)
    writer.close()


async def test_a_refusal_before_the_body_ends_the_connection(service, caplog):
    """The rest of the body is not taken for a request, and its end is not logged."""
    early = {404: raw_request("POST /nothing", length=100, body=b"{"), 415: raw_request("POST /scores", length=100)}
    for status, raw in early.items():
        reader, writer = await asyncio.open_connection(*service.url.removeprefix("http://").split(":"))
        writer.write(raw)
        found, headers, _ = await read_response(reader)
        assert (found, headers["connection"]) == (status, "close")
        writer.close()
        await reader.read()
    assert not caplog.records


async def test_an_unknown_uuid_is_404(client):
    """Not a mean of 0."""
    await assert_problem(client.get("/means/nobody"), 404, "unknown-uuid")


@pytest.mark.parametrize(
    ("path", "status", "slug"),
    [
        ("", 422, "invalid-uuid"),
        ("a%0Ab", 422, "invalid-uuid"),
        ("x" * 257, 422, "invalid-uuid"),
        ("%ED%A0%80", 400, "malformed-request"),
        ("%FF", 400, "malformed-request"),
        ("\udcff", 400, "malformed-request"),
    ],
)
async def test_an_invalid_uuid_in_the_path_is_refused(service, path, status, slug):
    """Empty, a control character, too long, and bytes that are not UTF-8, encoded or raw."""
    raw = f"GET /means/{path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(errors="surrogateescape")
    found, _, problem = await exchange(service, raw)
    assert (found, problem["type"]) == (status, f"urn:scoremean:{slug}")


async def test_stats_tell_what_the_store_holds(client):
    """And the version of the service."""
    for uuid in ("a", "b", "a"):
        await post(client, uuid, 1)
    async with client.get("/stats") as response:
        stats = await response.json()
    assert stats.pop("store_size_bytes") > 0
    assert stats == {"version": "1.2.3", "uuids": 2, "scores": 3, "ids": 0, "store_size_max_bytes": 64 << 30}


async def test_live_and_ready(client):
    """Both, and HEAD as GET without the body."""
    for path in ("/livez", "/readyz"):
        async with client.get(path) as response:
            assert response.status == 200
        async with client.head(path) as response:
            assert (response.status, await response.read()) == (200, b"")


# The table of docs/http.md, row by row: test_docs holds the two equal.
BAD_INPUT = {
    "not JSON": (b'{"UUID": "a1-b1", "score": 5', 400, "malformed-request", None),
    "not UTF-8": (b'{"UUID": "a1-b1\xff", "score": 5}', 400, "malformed-request", None),
    "empty": (b"", 400, "malformed-request", None),
    "string where an object is meant": (b'"a1-b1"', 422, "invalid-score", ""),
    "number in a batch": (b"[5]", 422, "invalid-batch", "/0"),
    "batch with one bad score": (
        b'[{"UUID": "a1-b1", "score": 5}, {"UUID": "a1-b1", "score": 6}]',
        422,
        "invalid-batch",
        "/1/score",
    ),
    "batch cut off": (b'[{"UUID": "a1-b1", "score": 5}, {"UUID"', 400, "malformed-request", None),
    "batch of more than `batch_max_scores`": (b"[%s]" % b",".join([OK_BODY] * 11), 413, "body-too-large", None),
    "missing member": (b'{"UUID": "a1-b1"}', 422, "invalid-score", "/score"),
    "unknown member": (b'{"UUID": "a1-b1", "score": 5, "scoer": 5}', 422, "invalid-score", "/scoer"),
    "score 6": (b'{"UUID": "a1-b1", "score": 6}', 422, "invalid-score", "/score"),
    "score -1": (b'{"UUID": "a1-b1", "score": -1}', 422, "invalid-score", "/score"),
    "score 5.0": (b'{"UUID": "a1-b1", "score": 5.0}', 422, "invalid-score", "/score"),
    'score "5"': (b'{"UUID": "a1-b1", "score": "5"}', 422, "invalid-score", "/score"),
    "score true": (b'{"UUID": "a1-b1", "score": true}', 422, "invalid-score", "/score"),
    "score null": (b'{"UUID": "a1-b1", "score": null}', 422, "invalid-score", "/score"),
    "score NaN": (b'{"UUID": "a1-b1", "score": NaN}', 422, "invalid-score", "/score"),
    "score 1e400": (b'{"UUID": "a1-b1", "score": 1e400}', 422, "invalid-score", "/score"),
    "score of 30 digits": (b'{"UUID": "a1-b1", "score": %s}' % (b"1" * 30), 422, "invalid-score", "/score"),
    "UUID empty": (b'{"UUID": "", "score": 5}', 422, "invalid-score", "/UUID"),
    "UUID of 257 bytes": (b'{"UUID": "%s", "score": 5}' % (b"x" * 257), 422, "invalid-score", "/UUID"),
    "UUID with a control character": (b'{"UUID": "a\\u0000", "score": 5}', 422, "invalid-score", "/UUID"),
    "UUID with a lone surrogate": (b'{"UUID": "\\ud800", "score": 5}', 422, "invalid-score", "/UUID"),
    "id empty": (b'{"UUID": "a1-b1", "score": 5, "id": ""}', 422, "invalid-score", "/id"),
    "id null": (b'{"UUID": "a1-b1", "score": 5, "id": null}', 422, "invalid-score", "/id"),
    "id of 257 bytes": (b'{"UUID": "a1-b1", "score": 5, "id": "%s"}' % (b"x" * 257), 422, "invalid-score", "/id"),
    "UUID a number": (b'{"UUID": 7, "score": 5}', 422, "invalid-score", "/UUID"),
}


@pytest.mark.parametrize("name", BAD_INPUT)
async def test_a_bad_body_is_refused_with_the_member_named(client, store, name):
    """And the tallies do not change."""
    body, status, slug, pointer = BAD_INPUT[name]
    await post(client, "a1-b1", 5)
    problem = await assert_problem(client.post("/scores", data=body, headers=JSON), status, slug)
    assert [error["pointer"] for error in problem.get("errors", [])] == ([] if pointer is None else [pointer])
    assert all(error["detail"] in problem["detail"] for error in problem.get("errors", [])[:1])
    assert store.get(["a1-b1"]) == [Tally(5, 1)]
    assert store.stats().scores == 1


def raw_request(line: str, *headers: str, body: bytes = b"", length: int | None = None) -> bytes:
    """Return the bytes of a request, whose Content-Length may be a lie."""
    if length is None and body:
        length = len(body)
    lines = [f"{line} HTTP/1.1", "Host: localhost", *headers]
    if length is not None:
        lines.append(f"Content-Length: {length}")
    return "\r\n".join([*lines, "", ""]).encode(errors="surrogateescape") + body


def raw_post(*headers: str, body: bytes = OK_BODY, length: int | None = None) -> bytes:
    """Return the bytes of a post of JSON."""
    return raw_request("POST /scores", "Content-Type: application/json", *headers, body=body, length=length)


def raw_json(line: str, body: bytes) -> bytes:
    """Return the bytes of a request with a body of JSON."""
    return raw_request(line, "Content-Type: application/json", body=body, length=len(body))


HALF_POST = raw_post(length=40)
CHUNKED = b"POST /scores HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"

BAD_REQUESTS = {
    "no Content-Type": (raw_request("POST /scores", body=OK_BODY), 415, "unsupported-media-type"),
    "Content-Type text/plain": (
        raw_request("POST /scores", "Content-Type: text/plain", body=OK_BODY),
        415,
        "unsupported-media-type",
    ),
    "charset latin-1": (
        raw_request("POST /scores", "Content-Type: application/json; charset=latin-1", body=OK_BODY),
        415,
        "unsupported-media-type",
    ),
    "Content-Encoding gzip": (raw_post("Content-Encoding: gzip"), 415, "unsupported-media-type"),
    "Idempotency-Key empty": (raw_post('Idempotency-Key: ""'), 422, "invalid-id"),
    "Idempotency-Key not UTF-8": (raw_post("Idempotency-Key: \udcff"), 422, "invalid-id"),
    "Idempotency-Key other than the member id": (
        raw_post("Idempotency-Key: k", body=b'{"UUID": "a1-b1", "score": 5, "id": "x"}'),
        422,
        "invalid-id",
    ),
    "Idempotency-Key on a batch": (raw_post("Idempotency-Key: k", body=b"[]"), 422, "invalid-id"),
    "two headers Idempotency-Key": (raw_post("Idempotency-Key: k", "Idempotency-Key: k"), 422, "invalid-id"),
    "two keys in one Idempotency-Key": (raw_post('Idempotency-Key: "k", "l"'), 422, "invalid-id"),
    "on_error neither stop nor skip": (
        raw_request("POST /scores?on_error=x", "Content-Type: application/json", body=OK_BODY),
        422,
        "invalid-query",
    ),
    "unknown parameter of a post": (
        raw_request("POST /scores?onerror=skip", "Content-Type: application/json", body=OK_BODY),
        422,
        "invalid-query",
    ),
    "NDJSON with a bad line": (
        raw_request("POST /scores", "Content-Type: application/x-ndjson", body=OK_BODY + b"\n{\n"),
        422,
        "invalid-batch",
    ),
    "not MessagePack": (
        raw_request("POST /scores", "Content-Type: application/msgpack", body=b"\xc1"),
        400,
        "malformed-request",
    ),
    "MessagePack batch cut off": (
        raw_request("POST /scores", "Content-Type: application/msgpack", body=b"\x92\x01"),
        400,
        "malformed-request",
    ),
    "query that is no array": (
        raw_request("POST /means/query", "Content-Type: application/json", body=b'{"UUID": "a"}'),
        422,
        "invalid-query",
    ),
    "query with what is no UUID": (
        raw_request("POST /means/query", "Content-Type: application/json", body=b'["a", 5, ""]'),
        422,
        "invalid-query",
    ),
    "query not JSON": (
        raw_request("POST /means/query", "Content-Type: application/json", body=b"["),
        400,
        "malformed-request",
    ),
    "query of more than `batch_max_scores`": (
        raw_request("POST /means/query", "Content-Type: application/json", body=b'["a"%s]' % (b', "a"' * 10)),
        413,
        "body-too-large",
    ),
    "listing with limit 0": (raw_request("GET /means?limit=0"), 422, "invalid-query"),
    "listing with limit 1001": (raw_request("GET /means?limit=1001"), 422, "invalid-query"),
    "listing with limit x": (raw_request("GET /means?limit=x"), 422, "invalid-query"),
    "listing after what is no UUID": (raw_request("GET /means?after=a%00"), 422, "invalid-query"),
    "listing with an unknown parameter": (raw_request("GET /means?offset=5"), 422, "invalid-query"),
    "listing with a parameter twice": (raw_request("GET /means?limit=5&limit=5"), 422, "invalid-query"),
    "parameter not UTF-8": (raw_request("GET /means?after=%ff"), 400, "malformed-request"),
    "name of a parameter not UTF-8": (raw_request("GET /events?min_count=1&%ED%A0%80"), 400, "malformed-request"),
    "delete of a UUID without a score": (raw_request("DELETE /means/nobody"), 404, "unknown-uuid"),
    "void of an unknown id": (raw_request("DELETE /scores/nobody"), 404, "unknown-id"),
    "void of an invalid id": (raw_request("DELETE /scores/a%0Ab"), 422, "invalid-id"),
    "void of a score without an id": (raw_json("POST /voids", b'{"UUID": "nobody", "score": 5}'), 422, "invalid-id"),
    "void of a score 6": (raw_json("POST /voids", b'{"UUID": "nobody", "score": 6, "id": "k"}'), 422, "invalid-score"),
    "void of many scores": (raw_json("POST /voids", b'[{"UUID": "nobody", "score": 5, "id": "k"}]'), 422, "invalid-score"),
    "void of a score of a UUID without one": (
        raw_json("POST /voids", b'{"UUID": "nobody", "score": 5, "id": "k"}'),
        404,
        "unknown-uuid",
    ),
    "void of a score, not JSON": (raw_json("POST /voids", b"{"), 400, "malformed-request"),
    "void of a score as NDJSON": (
        raw_request("POST /voids", "Content-Type: application/x-ndjson", body=OK_BODY),
        415,
        "unsupported-media-type",
    ),
    "merge of a UUID without a score": (raw_json("POST /means/nobody/merge", b'{"into": "a"}'), 404, "unknown-uuid"),
    "merge into itself": (raw_json("POST /means/a%2Fb/merge", b'{"into": "a/b"}'), 422, "invalid-uuid"),
    "merge into what is no UUID": (raw_json("POST /means/a/merge", b'{"into": "\\n"}'), 422, "invalid-uuid"),
    "merge into half a character": (raw_json("POST /means/a/merge", b'{"into": "\\ud800"}'), 422, "invalid-uuid"),
    "merge with an unknown member": (raw_json("POST /means/a/merge", b'{"into": "b", "from": "a"}'), 422, "invalid-uuid"),
    "merge without a member": (raw_json("POST /means/a/merge", b"{}"), 422, "invalid-uuid"),
    "merge with a list": (raw_json("POST /means/a/merge", b'["b"]'), 422, "invalid-uuid"),
    "merge, not JSON": (raw_json("POST /means/a/merge", b""), 400, "malformed-request"),
    "merge of what is no UUID": (raw_json("POST /means//merge", b'{"into": "b"}'), 422, "invalid-uuid"),
    "merge of no UUID": (raw_json("POST /means/merge", b'{"into": "b"}'), 405, "method-not-allowed"),
    "body past `body_max_bytes`": (raw_post(body=OK_BODY + b" " * 1000), 413, "body-too-large"),
    "body cut off, connection half closed": (HALF_POST, 400, "malformed-request"),
    "chunked body cut off": (CHUNKED + b"1d\r\n" + OK_BODY, 400, "malformed-request"),
    "chunk size not a number": (CHUNKED + b"zz\r\n", 400, "malformed-request"),
    "no Host": (b"GET /livez HTTP/1.1\r\n\r\n", 400, "malformed-request"),
    "two Hosts": (raw_request("GET /livez", "Host: localhost"), 400, "malformed-request"),
    "Host of another site": (b"GET /livez HTTP/1.1\r\nHost: evil.example\r\n\r\n", 421, "misdirected-request"),
    "not HTTP": (b"\x16\x03\x01 hello\r\n\r\n", 400, "malformed-request"),
    "header without a colon": (raw_request("GET /livez", "X x"), 400, "malformed-request"),
    "header of 10,000 bytes": (raw_request("GET /livez", "X: " + "x" * 10_000), 400, "malformed-request"),
    "Expect other than 100-continue": (raw_post("Expect: tea"), 417, "expectation-failed"),
    "unknown route": (raw_request("GET /nothing/%ff"), 404, "unknown-route"),
    "wrong method": (raw_request("PUT /scores", length=0), 405, "method-not-allowed"),
    "`#` in the path": (raw_request("DELETE /means/a1-b1#2"), 400, "malformed-request"),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
async def test_a_bad_request_is_refused_and_says_nothing_of_versions(service, store, caplog, name):
    """Sent byte for byte and then half closed: the client has sent all that it will."""
    raw, status, slug = BAD_REQUESTS[name]
    found, headers, problem = await exchange(service, raw)
    assert (found, problem["type"], problem["status"]) == (status, f"urn:scoremean:{slug}", status)
    assert problem["title"] and problem["detail"]
    assert headers["content-type"] == "application/problem+json"
    assert headers["server"] == "scoremean"
    assert store.stats().scores == 0
    assert not caplog.records


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (raw_post("Expect: 100-continue", body=b"", length=1001), 413),
        (raw_post(body=b"", length=1001), 413),
        (raw_post(body=b"", length=1 << 62), 413),
        (raw_request("POST /means/query", "Content-Type: application/json", "Expect: 100-continue", length=1001), 413),
        (raw_request("POST /scores", "Expect: 100-continue", length=100), 415),
        (raw_request("POST /nothing", "Expect: 100-continue", length=100), 404),
        (raw_request("GET /livez", "Expect: 100-continue", length=100), 200),
        (raw_post("Expect: 100-continue", "Expect: tea", body=b"", length=100), 417),
    ],
)
async def test_a_body_that_is_not_wanted_is_not_asked_for(service, raw, status):
    """The answer comes before it, and nothing else; and it is the last one, for the body may still come."""
    reader, writer = await asyncio.open_connection(*service.url.removeprefix("http://").split(":"))
    writer.write(raw)
    found, headers, _ = await read_response(reader)
    assert (found, headers["connection"]) == (status, "close")
    writer.close()


@pytest.mark.parametrize("raw", [raw_request("GET /livez", "Expect: 100-continue"), raw_post("Expect: 100-continue")])
async def test_a_body_that_is_there_is_not_asked_for(service, raw):
    """Nor one that there is none of."""
    assert (await exchange(service, raw))[0] == 200


async def test_a_chunked_body_is_asked_for(service):
    """Its length is known only when it is there."""
    reader, writer = await asyncio.open_connection(*service.url.removeprefix("http://").split(":"))
    writer.write(CHUNKED.replace(b"Host", b"Expect: 100-continue\r\nHost"))
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(OK_BODY), OK_BODY))
    assert (await read_response(reader))[0] == 200
    writer.close()


@pytest.mark.parametrize("cut", [0, 5, 10_000])
@pytest.mark.parametrize(
    "first",
    [
        raw_request("GET /livez", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"),
        raw_request("GET /livez", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"),
        raw_request("GET /livez", "Connection: upgrade", "Upgrade: TLS/1.0, HTTP/1.1"),
        raw_request("GET /livez", "Connection: Upgrade", "Upgrade: h2c", body=b"{}"),
        raw_post("Connection: Upgrade", "Upgrade: h2c"),
        raw_post("Connection: Upgrade", "Upgrade: websocket"),
        raw_request("CONNECT localhost:80"),
    ],
)
async def test_an_upgrade_ends_its_connection(service, store, first, cut):
    """What comes behind it would be of the other protocol, so nothing of it is taken; each answer is the one to its request."""
    reader, writer = await asyncio.open_connection(*service.url.removeprefix("http://").split(":"))
    raw = raw_request("GET /stats") + first + raw_post(body=b'{"UUID": "behind", "score": 5}') * 2
    writer.write(raw[: len(raw) - cut])
    await writer.drain()
    writer.write(raw[len(raw) - cut :])
    assert "uuids" in (await read_response(reader))[2]
    status, headers, body = await read_response(reader)
    assert (status, headers["connection"]) == (405 if b"CONNECT" in first else 200, "close")
    assert body.get("mean", 5.0) == 5.0 and "uuids" not in body
    assert await reader.read() == b""
    assert store.get(["behind"]) == [None]
    writer.close()


async def test_requests_behind_each_other_are_all_answered(service):
    """Also when the client closes its sending side with the last of them."""
    reader, writer = await asyncio.open_connection(*service.url.removeprefix("http://").split(":"))
    writer.write(raw_post() * 50)
    writer.write_eof()
    for left in reversed(range(50)):
        status, headers, _ = await read_response(reader)
        assert (status, headers.get("connection")) == (200, None if left else "close")
    assert await reader.read() == b""
    writer.close()


async def test_a_body_that_stops_half_way_is_given_up(service, store):
    """The connection is open and nothing more comes: 408 after body_timeout_seconds."""
    reader, writer = await asyncio.open_connection(*service.url.removeprefix("http://").split(":"))
    writer.write(HALF_POST)
    status, headers, problem = await read_response(reader)
    assert (status, problem["type"], headers["connection"]) == (408, "urn:scoremean:request-timeout", "close")
    assert store.stats().scores == 0
    writer.close()


async def test_a_wrong_method_says_which_are_allowed(client):
    """On every route."""
    for path, allowed in (
        ("/scores", "POST"),
        ("/scores/k", "DELETE"),
        ("/voids", "POST"),
        ("/means", "GET, HEAD"),
        ("/means/a", "DELETE, GET, HEAD"),
        ("/means/query", "DELETE, GET, HEAD, POST"),
        ("/means/a/merge", "DELETE, GET, HEAD, POST"),
        ("/means/merge", "DELETE, GET, HEAD"),
        ("/stats", "GET, HEAD"),
    ):
        async with client.put(path) as response:
            assert (response.status, response.headers["Allow"]) == (405, allowed)


async def test_a_client_that_half_closes_gets_its_answer(service):
    """Its request was whole and is counted, so it must be answered."""
    status, _, body = await exchange(service, raw_post())
    assert (status, body) == (200, {"UUID": "a1-b1", "mean": 5.0})


async def test_a_client_that_hangs_up_costs_nothing(service, store, caplog):
    """In the middle of a body, or before its answer: no traceback, and the service goes on."""
    for raw in (HALF_POST, b"POST /sco"):
        _, writer = await asyncio.open_connection(*service.url.removeprefix("http://").split(":"))
        writer.write(raw)
        await writer.drain()
        writer.transport.abort()
    async with ClientSession(service.url) as client:
        assert await post(client, "a", 4) == 4.0
    assert store.stats().scores == 1
    assert not caplog.records


@pytest.mark.parametrize(
    ("member", "key"), [("k-1", None), (None, "k-1"), (None, '"k-1"'), (None, '"k\\-1"'), ("k-1", "k-1")]
)
async def test_a_retry_gets_the_first_answer_and_counts_nothing(client, store, member, key):
    """The id as a member, as a header, quoted as the draft has it or bare: it is the same id."""
    body = {"UUID": "a", "score": 5} | ({"id": member} if member else {})
    headers = {"Idempotency-Key": key} if key else {}
    async with client.post("/scores", json=body, headers=headers) as response:
        assert (response.status, await response.json()) == (200, {"UUID": "a", "mean": 5.0})
        assert "Idempotency-Replayed" not in response.headers
    await post(client, "a", 3)
    async with client.post("/scores", json={"UUID": "a", "score": 5, "id": "k-1"}) as response:
        assert (response.status, await response.json()) == (200, {"UUID": "a", "mean": 5.0})
        assert response.headers["Idempotency-Replayed"] == "true"
    assert store.get(["a"]) == [Tally(8, 2)]


async def test_an_id_with_another_score_is_refused(client, store):
    """422, and the first score stands."""
    async with client.post("/scores", json={"UUID": "a", "score": 5, "id": "k"}) as response:
        assert response.status == 200
    await assert_problem(client.post("/scores", json={"UUID": "a", "score": 4, "id": "k"}), 422, "id-conflict")
    await assert_problem(client.post("/scores", json={"UUID": "b", "score": 5, "id": "k"}), 422, "id-conflict")
    assert store.get(["a", "b"]) == [Tally(5, 1), None]


async def test_a_refused_post_does_not_use_up_its_id(client, store):
    """A 4xx stores nothing, so the mended request may carry the same id."""
    await assert_problem(client.post("/scores", json={"UUID": "a", "score": 6, "id": "k"}), 422, "invalid-score")
    async with client.post("/scores", json={"UUID": "a", "score": 5, "id": "k"}) as response:
        assert response.status == 200
    assert store.stats().ids == 1


async def test_a_void_fixes_the_sum_and_the_count(client, store):
    """Once, however often it is sent; the id is refused afterwards."""
    async with client.post("/scores", json={"UUID": "a", "score": 1, "id": "wrong/é"}) as response:
        assert response.status == 200
    await post(client, "a", 5)
    for _ in range(2):
        async with client.delete("/scores/wrong%2F%C3%A9") as response:
            assert (response.status, await response.json()) == (200, {"UUID": "a", "mean": 5.0, "sum": 5, "count": 1})
    again = {"UUID": "a", "score": 1, "id": "wrong/é"}
    await assert_problem(client.post("/scores", json=again), 422, "id-voided")
    assert store.stats().scores == 1


async def test_a_void_of_the_only_score_leaves_no_mean(client):
    """null in the answer, 404 from then on."""
    async with client.post("/scores", json={"UUID": "a", "score": 1, "id": "k"}) as response:
        assert response.status == 200
    async with client.delete("/scores/k") as response:
        assert await response.json() == {"UUID": "a", "mean": None, "sum": 0, "count": 0}
    await assert_problem(client.get("/means/a"), 404, "unknown-uuid")


@pytest.mark.parametrize(("member", "key"), [("k-1", None), (None, '"k-1"'), ("k-1", "k-1")])
async def test_a_score_is_voided_by_its_value_once(client, store, member, key):
    """For its id, as a member or in the header: the first answer again, and nothing more is taken out."""
    for score in (5, 1, 4):
        await post(client, "a", score)
    body = {"UUID": "a", "score": 1} | ({"id": member} if member else {})
    answer = {"UUID": "a", "mean": 4.5, "sum": 9, "count": 2}
    async with client.post("/voids", json=body, headers={"Idempotency-Key": key} if key else {}) as response:
        assert (response.status, await response.json()) == (200, answer)
        assert "Idempotency-Replayed" not in response.headers
    await post(client, "a", 0)
    async with client.post("/voids", json={"UUID": "a", "score": 1, "id": "k-1"}) as response:
        assert (response.status, await response.json()) == (200, answer)
        assert response.headers["Idempotency-Replayed"] == "true"
    assert store.get(["a"]) == [Tally(9, 3)]


async def test_a_void_by_value_is_of_what_the_tally_can_hold(client, store):
    """Refused, it changes nothing and keeps no id; then the id may be used for what is right."""
    await post(client, "a", 5)
    void = {"UUID": "a", "score": 4, "id": "k"}
    problem = await assert_problem(client.post("/voids", json=void), 422, "no-such-score")
    assert "sum 5 and count 1" in problem["detail"]
    assert (store.get(["a"]), store.stats().ids) == ([Tally(5, 1)], 0)
    async with client.post("/voids", json=void | {"score": 5}) as response:
        assert await response.json() == {"UUID": "a", "mean": None, "sum": 0, "count": 0}
    await assert_problem(client.get("/means/a"), 404, "unknown-uuid")


async def test_an_id_is_of_a_score_or_of_a_void(client, store):
    """Neither takes that of the other; a void is not voided."""
    score = {"UUID": "a", "score": 5, "id": "score"}
    for body in (score, score | {"id": "other"}):
        async with client.post("/scores", json=body) as response:
            assert response.status == 200
    void = score | {"id": "void"}
    async with client.post("/voids", json=void) as response:
        assert response.status == 200
    await assert_problem(client.post("/voids", json=score), 422, "id-conflict")
    await assert_problem(client.post("/voids", json=void | {"score": 4}), 422, "id-conflict")
    await assert_problem(client.post("/scores", json=void), 422, "id-conflict")
    await assert_problem(client.post("/scores", json=[void]), 422, "invalid-batch")
    await assert_problem(client.delete("/scores/void"), 404, "unknown-id")
    assert store.get(["a"]) == [Tally(5, 1)]


async def test_a_void_of_a_score_in_messagepack(client):
    """Answered in it, too."""
    await post(client, "a", 5)
    body = msgspec.msgpack.encode({"UUID": "a", "score": 5, "id": "k"})
    async with client.post("/voids", data=body, headers={"Content-Type": "application/msgpack"}) as response:
        assert response.content_type == "application/msgpack"
        assert msgspec.msgpack.decode(await response.read()) == {"UUID": "a", "mean": None, "sum": 0, "count": 0}


@pytest.mark.parametrize(
    ("uuid", "path"),
    [("a/b", "a/b"), ("a/b", "a%2Fb"), ("a/merge", "a/merge"), ("merge", "merge"), ("query", "query"), ("é", "%C3%A9")],
)
async def test_a_uuid_is_merged_into_another(client, service, store, uuid, path):
    """In one step; merged again it has no score, and nothing is counted twice. The path is encoded as any other."""
    for scored, score in ((uuid, 5), (uuid, 4), ("into", 3)):
        await post(client, scored, score)
    raw = raw_json(f"POST /means/{path}/merge", b'{"into": "into"}')
    assert (await exchange(service, raw))[::2] == (200, {"UUID": "into", "mean": 4.0, "sum": 12, "count": 3})
    status, _, problem = await exchange(service, raw)
    assert (status, problem["type"]) == (404, "urn:scoremean:unknown-uuid")
    assert store.get([uuid, "into"]) == [None, Tally(12, 3)]
    assert (store.stats().uuids, store.stats().scores) == (1, 3)


async def test_a_uuid_is_merged_into_a_new_one(client, store):
    """Which is to rename it."""
    await post(client, "a", 5)
    async with client.post("/means/a/merge", json={"into": "b"}) as response:
        assert (response.status, await response.json()) == (200, {"UUID": "b", "mean": 5.0, "sum": 5, "count": 1})
    assert store.get(["a", "b"]) == [None, Tally(5, 1)]


@pytest.mark.parametrize("path", ["/means/a%2Fb/merge", "/means/a/b/merge", "/me%61ns/a%2fb%2Fmerge", "/means/a/b/merg%65"])
async def test_a_path_of_a_merge_is_one_text(client, service, path):
    """However it is encoded: what stands before the last /merge is the UUID."""
    await post(client, "a/b", 5)
    status, _, mean = await exchange(service, raw_json(f"POST {path}", b'{"into": "b"}'))
    assert (status, mean["UUID"], mean["count"]) == (200, "b", 1)


async def test_ids_of_a_merged_uuid(client, store):
    """They are replayed and void nothing; by its value the score is voided where it went."""
    score = {"UUID": "a", "score": 5, "id": "k"}
    for body in (score, {"UUID": "b", "score": 1}):
        async with client.post("/scores", json=body) as response:
            assert response.status == 200
    async with client.post("/means/a/merge", json={"into": "b"}) as response:
        assert response.status == 200
    async with client.post("/scores", json=score) as response:
        assert (await response.json(), response.headers["Idempotency-Replayed"]) == ({"UUID": "a", "mean": 5.0}, "true")
    await assert_problem(client.delete("/scores/k"), 404, "unknown-id")
    async with client.post("/voids", json={"UUID": "b", "score": 5, "id": "v"}) as response:
        assert await response.json() == {"UUID": "b", "mean": 1.0, "sum": 1, "count": 1}
    assert store.get(["a", "b"]) == [None, Tally(1, 1)]


@pytest.mark.parametrize(
    ("path", "body"), [("/voids", {"UUID": "a", "score": 5, "id": "k"}), ("/means/a/merge", {"into": "b"})]
)
async def test_a_full_disk_mends_nothing(client, store, monkeypatch, path, body):
    """507, as a post; and once there is room, the same request is carried out."""
    await post(client, "a", 5)
    monkeypatch.setattr(lmdb_module, "free_bytes", lambda _: 0)
    await assert_problem(client.post(path, json=body), 507, "store-full")
    monkeypatch.undo()
    assert store.get(["a", "b"]) == [Tally(5, 1), None]
    async with client.post(path, json=body) as response:
        assert response.status == 200


async def test_unavailable_errors_say_when_to_try_again(client, service, monkeypatch):
    """503 with Retry-After; a full store is 507 and reading goes on."""
    await post(client, "a", 4)
    writer = service._writer  # pylint: disable=protected-access  # no request of a test's size fills the real queue
    monkeypatch.setattr(writer, "_queue_max_scores", 0)
    async with client.post("/scores", json={"UUID": "a", "score": 1}) as response:
        assert (response.status, response.headers["Retry-After"]) == (503, "1")
        assert (await response.json())["type"] == "urn:scoremean:queue-full"
    monkeypatch.undo()

    async def full(_):
        raise StoreFull("full")

    monkeypatch.setattr(writer, "post", full)
    await assert_problem(client.post("/scores", json={"UUID": "a", "score": 1}), 507, "store-full")
    async with client.get("/means/a") as response:
        assert response.status == 200


async def test_a_bug_is_a_500_that_is_logged_and_told_in_the_same_shape(client, store, caplog, monkeypatch):
    """Only its own request fails."""

    def fail():
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(store, "stats", fail)
    problem = await assert_problem(client.get("/stats"), 500, "internal-error")
    assert "oops" not in json.dumps(problem)
    assert "oops" in caplog.text
    assert await post(client, "a", 4) == 4.0


async def test_many_clients_post_to_one_uuid_and_to_many(client, store):
    """Each of the counts is handed out once, and every tally is exact."""

    async def run(number: int) -> list[float]:
        return [await post(client, uuid, number % 6) for uuid in ("one", f"own-{number}") * 5]

    await asyncio.gather(*(run(number) for number in range(40)))
    assert store.get(["one"]) == [Tally(5 * sum(n % 6 for n in range(40)), 200)]
    assert store.get([f"own-{n}" for n in range(40)]) == [Tally(5 * (n % 6), 5) for n in range(40)]


async def test_an_answer_is_sent_after_the_commit_and_not_before(client, store, monkeypatch):
    """With the commit held back, no answer comes; a read does not see the score either."""
    commit, held = Future(), asyncio.Event()
    monkeypatch.setattr(store, "submit", lambda batch: held.set() or commit)
    request = asyncio.ensure_future(post(client, "a", 5))
    await held.wait()
    await assert_problem(client.get("/means/a"), 404, "unknown-uuid")
    assert not request.done()
    commit.set_result([Tally(5, 1)])
    assert await request == 5.0


async def assert_problem(request, status: int, slug: str) -> dict:
    """Assert that `request` is answered with this problem, and return it."""
    async with request as response:
        assert response.content_type == "application/problem+json"
        problem = await response.json()
    assert (response.status, problem["type"]) == (status, f"urn:scoremean:{slug}"), problem
    return problem


async def exchange(service: Service, raw: bytes) -> tuple[int, dict[str, str], dict]:
    """Send `raw`, close the sending side, and return the one response."""
    reader, writer = await asyncio.open_connection(*service.url.removeprefix("http://").split(":"))
    writer.write(raw)
    writer.write_eof()
    response = await read_response(reader)
    assert await reader.read() == b""
    writer.close()
    return response


async def read_response(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], dict]:
    """Read one response: its status, its headers by lower-case name, its JSON."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
    headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
    body = await reader.readexactly(int(headers["content-length"]))
    return int(head[0].split()[1]), headers, json.loads(body)
