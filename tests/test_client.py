"""The client against a real service: each method, each error, and a network that loses, delays and cuts.

SCOREMEAN_LOSSY_SCORES sets how many scores go through the lossy proxy; the long form is 100000.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import json
import os
import random
import signal
import socket
import sqlite3
import ssl
import threading
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from typing import Self
from uuid import uuid4

import aiohttp
import pytest
import trustme
from aiohttp import web
from yarl import URL

from scoremean import client as client_module
from scoremean import errors
from scoremean.app import Service
from scoremean.client import Client, SyncClient
from scoremean.errors import Fault, InvalidScore, ScoremeanError, Unavailable
from scoremean.model import Mean, Score, Tally
from scoremean.settings import Settings
from scoremean.web.answer import describe
from tests.pages import DOCS, blocks
from tests.support import Server
from tests.test_docs import error_classes

LOSSY_SCORES = int(os.environ.pop("SCOREMEAN_LOSSY_SCORES", "2000"))
LOSSY_RATE = 0.05
LOSSY_SEED = 1  # each kind of loss comes within the first 60 chunks, or 15 connections
ANSWERS_CUT_EVERY = 20
ODD_TEXTS = ["a/../b", "..", ".", "é ü", "100%", "a?b#c", "%2F", "+", "\U0001f600", "x" * 256]


@pytest.fixture(name="settings")
def fixture_settings() -> Settings:
    """The default limits."""
    return Settings(port=0)


@pytest.fixture(name="scoremean")
async def fixture_scoremean(service: Service) -> AsyncIterator[Client]:
    """A client of `service` that does not wait."""
    async with Client(service.url, backoff_seconds=0) as scoremean:
        yield scoremean


async def test_a_score_is_counted_and_read(scoremean):
    """Post gives the mean alone; get and get_many also the tally, and None where there is none."""
    assert await scoremean.post(Score("a", 5)) == Mean("a", 5.0)
    assert await scoremean.post(Score("a", 4)) == Mean("a", 4.5)
    assert await scoremean.get("a") == Mean("a", 4.5, 9, 2)
    assert await scoremean.get("nobody") is None
    assert await scoremean.get_many(["nobody", "a"]) == [None, Mean("a", 4.5, 9, 2)]
    assert await scoremean.get_many([]) == []


async def test_a_score_keeps_the_id_it_has(scoremean, store):
    """So it can be posted again later, and voided."""
    for _ in range(2):
        assert await scoremean.post(Score("a", 5, "k")) == Mean("a", 5.0)
    assert store.get(["a"]) == [Tally(5, 1)]
    for _ in range(2):
        assert await scoremean.void("k") == Mean("a", None, 0, 0)
    with pytest.raises(errors.IdVoided):
        await scoremean.post(Score("a", 5, "k"))


async def test_without_ids_none_is_sent(service, store):
    """Unless the score has one of its own."""
    async with Client(service.url, with_ids=False) as scoremean:
        await scoremean.post(Score("a", 5))
        assert store.stats().ids == 0
        await scoremean.post(Score("a", 5, "k"))
        assert store.stats().ids == 1


async def test_a_score_is_voided_by_its_value(scoremean, store):
    """For the id that it has, or one that is made: also by a client that gives scores none."""
    async for _ in scoremean.post_many([Score("a", 5), Score("a", 5), Score("a", 4)]):
        pass
    for _ in range(2):
        assert await scoremean.void_score(Score("a", 5, "v")) == Mean("a", 4.5, 9, 2)
    assert await scoremean.void_score(Score("a", 5)) == Mean("a", 4.0, 4, 1)
    with pytest.raises(errors.NoSuchScore):
        await scoremean.void_score(Score("a", 5))
    with pytest.raises(errors.UnknownUUID):
        await scoremean.void_score(Score("nobody", 5))
    async with Client(scoremean._url, with_ids=False) as other:  # pylint: disable=protected-access
        assert await other.void_score(Score("a", 4)) == Mean("a", None, 0, 0)
    assert store.get(["a"]) == [None]


async def test_merge(scoremean, store):
    """It returns the mean of both, once."""
    await scoremean.post(Score("a/b", 5))
    await scoremean.post(Score("c", 3))
    assert await scoremean.merge("a/b", into="c") == Mean("c", 4.0, 8, 2)
    assert store.get(["a/b", "c"]) == [None, Tally(8, 2)]
    with pytest.raises(errors.UnknownUUID):
        await scoremean.merge("a/b", into="c")
    with pytest.raises(errors.InvalidUUID, match="into itself"):
        await scoremean.merge("c", into="c")


async def test_forget(scoremean):
    """It returns what the UUID had, once."""
    await scoremean.post(Score("a", 3))
    assert await scoremean.forget("a") == Mean("a", 3.0, 3, 1)
    with pytest.raises(errors.UnknownUUID):
        await scoremean.forget("a")


@pytest.mark.parametrize("text", ODD_TEXTS, ids=ascii)
async def test_any_text_goes_into_a_path(scoremean, text):
    """As a UUID and as an id, nothing normalised."""
    await scoremean.post(Score(text, 5, text))
    assert await scoremean.get(text) == Mean(text, 5.0, 5, 1)
    assert await scoremean.void(text) == Mean(text, None, 0, 0)
    await scoremean.post(Score(text, 4))
    assert await scoremean.merge(text, into="a1-b1") == Mean("a1-b1", 4.0, 4, 1)
    assert await scoremean.merge("a1-b1", into=text) == Mean(text, 4.0, 4, 1)
    assert await scoremean.forget(text) == Mean(text, 4.0, 4, 1)


async def test_what_cannot_be_a_uuid_is_not_sent():
    """The refusal needs no service."""
    async with Client("http://127.0.0.1:1", attempts_max=1) as scoremean:
        merges = (lambda uuid: scoremean.merge(uuid, into="a")), (lambda uuid: scoremean.merge("a", into=uuid))
        for method in (scoremean.get, scoremean.forget, lambda uuid: scoremean.get_many([uuid]), *merges):
            with pytest.raises(errors.InvalidUUID):
                await method("\ud800")
        with pytest.raises(errors.InvalidId):
            await scoremean.void("")


async def test_iterate_follows_the_pages(scoremean):
    """Every UUID once, in order, also those that must be encoded in the link."""
    async for _ in scoremean.post_many(Score(text, 5) for text in ODD_TEXTS):
        pass
    for limit in (1, 3, 1000):
        assert [mean async for mean in scoremean.iterate(limit)] == [Mean(text, 5.0, 5, 1) for text in sorted(ODD_TEXTS)]
    with pytest.raises(errors.InvalidQuery, match="limit"):
        await anext(scoremean.iterate(0))


async def test_get_many_splits_what_is_too_much_for_one_query(scoremean, monkeypatch):
    """The order stays."""
    monkeypatch.setattr(client_module, "QUERY_MAX_UUIDS", 2)
    await scoremean.post(Score("c", 1))
    assert await scoremean.get_many(list("abcde")) == [None, None, Mean("c", 1.0, 1, 1), None, None]


@pytest.mark.parametrize("count", [0, 1, 10, 95])
async def test_post_many_gives_one_result_a_score_in_order(service, store, count):
    """From an iterable and from an async iterable; one batch at a time also has exact means."""

    async def arriving():
        for score in scores:
            yield score

    scores = [Score("a", number % 6) for number in range(count)]
    totals = [sum(score.score for score in scores[: number + 1]) for number in range(count)]
    async with Client(service.url, batch_scores=10, concurrency=1) as scoremean:
        means = [mean async for mean in scoremean.post_many(scores)]
        assert means == [Mean("a", total / (number + 1)) for number, total in enumerate(totals)]
        assert len([mean async for mean in scoremean.post_many(arriving())]) == count
    assert store.stats().scores == 2 * count


async def test_post_many_reads_no_further_than_what_is_under_way(service):
    """Its memory is bounded: three batches of ten under way, and the one that waits for the first of them."""
    read = Counter()

    def endless():
        while True:
            read["scores"] += 1
            yield Score("a", 1)

    async with Client(service.url, batch_scores=10, concurrency=3) as scoremean:
        results = scoremean.post_many(endless())
        for _ in range(25):
            await anext(results)
        assert read["scores"] <= 25 + 50
        await results.aclose()


async def test_a_batch_with_a_fault_is_refused_whole(service, store):
    """The fault points into all scores, not into its batch."""
    scores = [Score("a", 6 if number == 17 else 5) for number in range(20)]
    async with Client(service.url, batch_scores=10) as scoremean:
        with pytest.raises(errors.InvalidBatch) as caught:
            async for _ in scoremean.post_many(scores):
                pass
    assert caught.value.faults == (Fault("/17/score", "score must be an integer from 0 to 5, not 6"),)
    assert store.get(["a"]) == [Tally(50, 10)]


async def test_with_skip_the_errors_stand_among_the_means(service, store):
    """Each with its class and its place."""
    scores = [Score("a", 5, "k"), Score("a", 6), Score("b", 1, "k"), Score("a", 3)]
    async with Client(service.url, batch_scores=2, concurrency=1) as scoremean:
        results = [result async for result in scoremean.post_many(scores, skip=True)]
    assert [type(result) for result in results] == [Mean, InvalidScore, errors.IdConflict, Mean]
    assert [fault.pointer for error in results[1:3] for fault in error.faults] == ["/1/score", "/2/id"]
    assert store.get(["a", "b"]) == [Tally(8, 2), None]


async def test_a_batch_that_is_too_large(service):
    """It is told so, and what is under way is given up."""
    async with Client(service.url, batch_scores=10_001) as scoremean:
        with pytest.raises(errors.BodyTooLarge, match="batch_max_scores"):
            await anext(scoremean.post_many(Score("a", 1) for _ in range(10_001)))


@pytest.mark.parametrize(
    "options",
    [
        {"url": "127.0.0.1:8080"},
        {"url": "ftp://a"},
        {"url": "http://"},
        {"url": "http://a:99999"},
        {"url": "http://[::1"},
        {"url": "http://a/?b"},
        {"url": None},
        {"batch_scores": 0},
        {"attempts_max": 0},
        {"concurrency": 0},
    ],
    ids=str,
)
def test_what_a_client_cannot_be_made_with(options):
    """It is refused at once."""
    with pytest.raises(errors.SettingError):
        Client(**{"url": "http://127.0.0.1:8080"} | options)


async def test_a_client_outside_of_its_with_says_so(service):
    """Before it is entered, and after it was left."""
    scoremean = Client(service.url)
    with pytest.raises(ScoremeanError, match="inside of `async with Client"):
        await scoremean.post(Score("a", 5))
    async with scoremean:
        assert await scoremean.get("a") is None
    with pytest.raises(ScoremeanError, match="inside of `async with Client"):
        await scoremean.get("a")


async def test_what_is_no_score_and_no_uuid_is_refused_with_a_sentence(scoremean, store):
    """None is taken for another: a text is not the UUIDs that are its characters."""
    for scores in ([("a", 5)], [{"UUID": "a", "score": 5}], "a"):
        for call in (scoremean.post(scores[0]), anext(scoremean.post_many(scores))):
            with pytest.raises(InvalidScore, match="posts a Score, such as"):
                await call
    for uuids in ("ab", b"ab", None):
        with pytest.raises(errors.InvalidUUID, match="give UUIDs in a list"):
            await scoremean.get_many(uuids)
    assert store.stats().scores == 0


async def test_a_uuid_of_the_standard_library_is_taken(scoremean):
    """Wherever a UUID or an id is."""
    uuid, name = uuid4(), uuid4()
    await scoremean.post(Score(uuid, 5, name))
    assert await scoremean.get(uuid) == Mean(str(uuid), 5.0, 5, 1)
    assert await scoremean.get_many([uuid]) == [Mean(str(uuid), 5.0, 5, 1)]
    assert await scoremean.void(name) == Mean(str(uuid), None, 0, 0)
    with pytest.raises(errors.UnknownUUID):
        await scoremean.forget(uuid)


class Script:
    """A service that answers what it is told, one answer a request, the last one again and again."""

    def __init__(self, *answers: web.Response | None):
        self._answers = list(answers)
        self.bodies: list[bytes] = []

    async def answer(self, request: web.Request) -> web.Response:
        """Answer the next; None hangs up instead."""
        self.bodies.append(await request.read())
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if answer is None:
            request.transport.abort()
            return web.Response()
        return web.Response(status=answer.status, body=answer.body, headers=answer.headers)


@pytest.fixture(name="scripted")
def fixture_scripted(aiohttp_server):
    """Start a Script; return its URL."""

    async def start(script: Script) -> str:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", script.answer)
        return str((await aiohttp_server(app)).make_url("/base"))

    return start


def problem(error: ScoremeanError, **headers: str) -> web.Response:
    """Return an answer that is `error`."""
    return web.Response(status=error.status, body=json.dumps(describe(error)).encode(), headers=headers)


def sample(kind: type[ScoremeanError]) -> ScoremeanError:
    """Return an error of this kind, with a fault if it can have one."""
    return kind("why", (Fault("/score", "bad"),)) if issubclass(kind, InvalidScore) else kind("why")


@pytest.mark.parametrize("kind", [kind for kind in error_classes() if "slug" in vars(kind)])
async def test_every_error_is_raised_as_itself(scripted, kind):
    """With its detail and its faults. What may be sent again was sent twice; after a 408 there is no answer to hand on."""
    script = Script(problem(sample(kind)))
    url = await scripted(script)
    async with Client(url, attempts_max=2, backoff_seconds=0) as scoremean:
        with pytest.raises(ScoremeanError) as caught:
            await scoremean.post(Score("a", 5))
    error, tried = caught.value, 2 if kind.status in (408, 503) else 1
    if kind is errors.RequestTimeout:
        assert str(error) == f"no answer from {url} in 2 attempts: why"
        error = error.__cause__
    assert (type(error), error.detail, len(script.bodies)) == (kind, sample(kind).detail, tried)
    assert getattr(error, "faults", ()) == getattr(sample(kind), "faults", ())


async def test_a_proxy_that_finds_a_body_too_large(scripted):
    """It says 413 as the service would, in words of its own."""
    async with Client(await scripted(Script(web.Response(status=413, body=b"<html>")))) as scoremean:
        with pytest.raises(errors.BodyTooLarge, match="not from scoremean"):
            await scoremean.post(Score("a", 5))


MEAN = web.Response(body=b'{"UUID":"a","mean":5.0}')


@pytest.mark.parametrize("with_ids", [True, False])
async def test_every_attempt_sends_the_same_bytes(scripted, with_ids):
    """So the id is the same; through a 503, a 408, a hang-up and an answer that is no problem of ours."""
    answers = [problem(errors.QueueFull("full")), problem(errors.RequestTimeout("slow")), None, web.Response(status=503), MEAN]
    script = Script(*answers)
    async with Client(await scripted(script), backoff_seconds=0, with_ids=with_ids) as scoremean:
        assert await scoremean.post(Score("a", 5)) == Mean("a", 5.0)
    assert len(script.bodies) == 5 and len(set(script.bodies)) == 1
    assert ("id" in json.loads(script.bodies[0])) == with_ids


async def test_retry_after_is_the_least_wait_and_the_backoff_grows(scripted, monkeypatch):
    """Up to the client's own limit. A Retry-After that is a date, or missing, asks for nothing."""
    waits = []

    async def waiting(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(client_module, "sleep", waiting)
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    full = errors.QueueFull("full")
    after = [{"Retry-After": value} for value in ("7", "Wed, 21 Oct 2026 07:28:00 GMT", "0", "3600")]
    script = Script(*(problem(full, **headers) for headers in after), *[problem(full)] * 6, MEAN)
    async with Client(await scripted(script), attempts_max=11) as scoremean:
        await scoremean.post(Score("a", 5))
    assert waits == [7, 0.2, 0.4, 10, 1.6, 3.2, 6.4, 10, 10, 10]


async def test_a_service_that_is_not_there(unused_tcp_port):
    """The connection's own error is the cause."""
    async with Client(f"http://127.0.0.1:{unused_tcp_port}", attempts_max=3, backoff_seconds=0) as scoremean:
        with pytest.raises(Unavailable, match="in 3 attempts") as caught:
            await scoremean.post(Score("a", 5))
    assert isinstance(caught.value.__cause__, aiohttp.ClientConnectorError)


async def test_a_service_that_does_not_answer():
    """Each attempt ends after timeout_seconds."""
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel connects; nobody accepts
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        async with Client(url, attempts_max=2, backoff_seconds=0, timeout_seconds=0.01) as scoremean:
            with pytest.raises(Unavailable) as caught:
                await scoremean.get("a")
    assert isinstance(caught.value.__cause__, TimeoutError)


class Listener:
    """A TCP server that counts its connections, and answers each with the same bytes."""

    def __init__(self, answer: bytes = b"", tls: ssl.SSLContext | None = None):
        self._answer = answer
        self._tls = tls
        self._server: asyncio.Server
        self.connections = 0
        self.port = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        if self._tls is not None:  # a failed handshake does not reach _accepted
            self._tls.sni_callback = self._shaken
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    def _shaken(self, *_: object) -> None:
        self.connections += 1

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += self._tls is None
        await reader.read(1)
        writer.write(self._answer)
        writer.close()


@pytest.mark.parametrize(
    ("url", "trusted", "answer", "reason"),
    [
        ("https://localhost", False, b"", "CERTIFICATE_VERIFY_FAILED.*unable to get local issuer"),
        ("https://127.0.0.1", True, b"", "CERTIFICATE_VERIFY_FAILED.*address mismatch"),
        ("https://localhost", None, b"HTTP/1.1 400 Bad Request\r\n\r\n", "WRONG_VERSION_NUMBER"),
        ("http://localhost", None, b"-ERR unknown command\r\n", "Bad status line"),
        ("http://a..b", None, b"", "label empty or too long"),
    ],
)
async def test_what_sending_again_cannot_mend_is_sent_once(url, trusted, answer, reason):
    """A certificate that is not trusted or is another host's; another protocol; a host that is none. Told in one line."""
    authority = trustme.CA()
    serving, asking = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("localhost").configure_cert(serving)
    if trusted:
        authority.configure_trust(asking)
    async with Listener(answer, None if trusted is None else serving) as listener:
        async with Client(f"{url}:{listener.port}", backoff_seconds=0, tls=asking) as scoremean:
            with pytest.raises(errors.SettingError, match=f"^no answer from {url}:.*would not help: .*{reason}") as caught:
                await scoremean.post(Score("a", 5))
    assert listener.connections == (url != "http://a..b")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(("user", "token"), [("", "a\nb"), ("me:pw@", "a")])
async def test_a_token_that_cannot_be_sent(service, user, token):
    """It is told as what was given, not as an error of aiohttp's."""
    async with Client(service.url.replace("//", f"//{user}"), token=token) as scoremean:
        with pytest.raises(errors.SettingError, match="would not help"):
            await scoremean.get("a")


@pytest.mark.parametrize(
    "answer",
    [
        web.Response(body=b"<html>"),
        web.Response(body=b"[7]"),
        web.Response(status=502, body=b"<html>"),
        web.Response(status=301, headers={"Location": "/elsewhere"}),
        web.Response(body=b"\x91\x81\xa4type\xb6urn:scoremean:no-such-"),
        web.Response(body=b"\x91\x81\xa4type\xb8urn:scoremean:store-full"),
        web.Response(body=b"\x90"),
    ],
)
async def test_an_answer_that_is_not_of_scoremean(scripted, answer):
    """It is an error with the beginning of the answer, never a KeyError."""
    async with Client(await scripted(Script(answer))) as scoremean:
        for attempt in (scoremean.post(Score("a", 5)), anext(scoremean.post_many([Score("a", 5)]))):
            with pytest.raises(ScoremeanError, match="answer") as caught:
                await attempt
            assert caught.type is ScoremeanError


def use_every_method(url: str) -> None:
    """Use a SyncClient, which gives what a Client gives."""
    with SyncClient(url, batch_scores=2, concurrency=2) as scoremean:
        assert scoremean.post(Score("a", 5, "k")) == Mean("a", 5.0)
        assert scoremean.get("a") == Mean("a", 5.0, 5, 1)
        assert scoremean.get_many(["b", "a"]) == [None, Mean("a", 5.0, 5, 1)]
        uuids = [f"u{n}" for n in range(9)]
        assert [mean.uuid for mean in scoremean.post_many(Score(uuid, 1) for uuid in uuids)] == uuids
        assert [mean.uuid for mean in scoremean.iterate(limit=4)] == ["a", *uuids]
        assert scoremean.void("k") == Mean("a", None, 0, 0)
        assert scoremean.forget("u1") == Mean("u1", 1.0, 1, 1)
        with pytest.raises(errors.UnknownUUID):
            scoremean.forget("a")
        results = list(scoremean.post_many([Score("a", 5), Score("a", 5), Score("a", 6)], skip=True))
        assert [type(result) for result in results] == [Mean, Mean, InvalidScore]
        with pytest.raises(errors.InvalidBatch) as caught:
            list(scoremean.post_many([Score("a", 5), Score("a", 5), Score("a", 6), *[Score("a", 1)] * 9]))
        assert [fault.pointer for fault in caught.value.faults] == ["/2/score"]
        assert next(scoremean.post_many(Score("a", 1) for _ in itertools.count())).uuid == "a"
    with pytest.raises(ScoremeanError, match="the client is closed"):
        scoremean.get("a")
    scoremean.close()


def test_a_sync_client_that_is_closed_leaves_nobody_waiting():
    """A call of another thread is given up with a sentence."""
    with socket.create_server(("127.0.0.1", 0)) as silent, ThreadPoolExecutor(1) as other:
        scoremean = SyncClient(f"http://127.0.0.1:{silent.getsockname()[1]}")
        call = other.submit(scoremean.get, "a")
        with silent.accept()[0] as connection:
            connection.recv(1)
            scoremean.close()
        with pytest.raises(ScoremeanError, match="was closed"):
            call.result()


async def test_the_sync_client_has_the_same_methods(service):
    """With the same results and errors."""
    await asyncio.to_thread(use_every_method, service.url)


def test_the_sync_client_takes_and_says_what_the_client_does():
    """The same arguments, and every method, with its text."""
    assert inspect.signature(SyncClient) == inspect.signature(Client)
    public = {name for name in vars(Client) if not name.startswith("_")}
    assert {name for name in vars(SyncClient) if not name.startswith("_")} == public | {"close"}
    for name in public - {"post_many", "iterate"}:
        assert getattr(SyncClient, name).__doc__ == getattr(Client, name).__doc__


def test_the_example_of_the_sync_client_runs_where_a_loop_runs(tmp_path, capsys):
    """As in a notebook; in a plain program test_tutorial runs it."""
    code = next(block.text for block in blocks(DOCS / "client.md") if "SyncClient" in block.text)

    async def cell(url: str) -> None:
        exec(code.replace("http://127.0.0.1:8080", url), {})  # pylint: disable=exec-used  # our own page

    with Server(tmp_path / "store") as server:
        asyncio.run(cell(server.url))
    assert capsys.readouterr().out.startswith("a1-b1 5.0 5 1\n")


async def test_the_sync_client_reads_scores_in_the_thread_that_asks(service):
    """So they may come from what belongs to that thread, as a cursor of SQLite does, or from the same client."""

    def copy() -> list[Mean]:
        with SyncClient(service.url) as scoremean, closing(sqlite3.connect(":memory:")) as database:
            rows = database.execute("SELECT 'a', 5 UNION ALL SELECT 'b', 4")
            return list(scoremean.post_many(Score(uuid, score) for uuid, score in rows if scoremean.get(uuid) is None))

    assert await asyncio.to_thread(copy) == [Mean("a", 5.0), Mean("b", 4.0)]


async def test_many_threads_share_a_sync_client(service, store):
    """And the loop that is its own is nobody else's."""

    def post(scoremean: SyncClient) -> None:
        for _ in range(20):
            scoremean.post(Score("a", 1))

    scoremean = SyncClient(service.url)
    await asyncio.gather(*(asyncio.to_thread(post, scoremean) for _ in range(8)))
    await asyncio.to_thread(scoremean.close)
    assert store.get(["a"]) == [Tally(160, 160)]


def test_a_sync_client_that_cannot_be_made_starts_nothing():
    """The error is the Client's."""
    threads = threading.active_count()
    with pytest.raises(errors.SettingError):
        SyncClient("127.0.0.1:8080")
    assert threading.active_count() == threads


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")  # that is what is tried
def test_a_sync_client_after_a_fork_says_so(unused_tcp_port):
    """The child has no such thread: a call would wait for ever."""
    with SyncClient(f"http://127.0.0.1:{unused_tcp_port}") as scoremean:
        child = os.fork()
        if not child:
            # pylint: disable=protected-access  # the rest of the tests is the parent's
            try:
                scoremean.get("a")
            except ScoremeanError as error:
                os._exit(7 if "forked from" in str(error) else 1)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_ctrl_c_gives_up_a_call_of_the_sync_client():
    """And the client goes on, and closes."""

    def interrupt() -> None:
        with silent.accept()[0] as connection:
            connection.recv(1)
            os.kill(os.getpid(), signal.SIGINT)
            assert connection.recv(1 << 16) and not connection.recv(1)  # the rest of the request, and its end

    with socket.create_server(("127.0.0.1", 0)) as silent, ThreadPoolExecutor(1) as other:
        with SyncClient(f"http://127.0.0.1:{silent.getsockname()[1]}") as scoremean:
            interrupted = other.submit(interrupt)
            with pytest.raises(KeyboardInterrupt):
                scoremean.get("a")
            interrupted.result()


class LossyProxy:
    """A TCP proxy in front of `url` that loses what a network loses, by a seeded chance.

    Args:
        rate: the share of connections that are hung up on, and of chunks, either way, at which the connection is cut: with
            nothing of the chunk forwarded, a part of it or all of it. As many again are delayed.
        answers_cut_every: hang up instead of forwarding a chunk of answers whose number this divides; 0 is never.
    """

    def __init__(self, url: str, *, rate: float = 0.0, answers_cut_every: int = 0):
        self._upstream = URL(url)
        self._rate = rate
        self._answers_cut_every = answers_cut_every
        self._chances: dict[str, random.Random] = {}
        self._lengths = random.Random(LOSSY_SEED)
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server
        self.url = ""
        self.counts: Counter[str] = Counter()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _chance(self, name: str) -> bool:
        """Return whether this happens now, and count it. Each kind has chances of its own, whatever the others came to."""
        chance = self._chances.setdefault(name, random.Random(f"{LOSSY_SEED} {name}"))
        happens = chance.random() < self._rate
        self.counts[name] += happens
        return happens

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.counts["connections"] += 1
        if self._chance("connections dropped"):
            writer.transport.abort()
            return
        back_reader, back_writer = await asyncio.open_connection(self._upstream.host, self._upstream.port)
        ways = [
            asyncio.create_task(self._forward(reader, back_writer, "requests")),
            asyncio.create_task(self._forward(back_reader, writer, "answers")),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            writer.close()
            back_writer.close()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: str) -> None:
        """Forward until either side ends, or chance cuts."""
        with suppress(ConnectionError):
            while chunk := await reader.read(1 << 16):
                self.counts[way] += 1
                if self._chance(f"{way} delayed"):
                    for _ in range(self._lengths.randrange(1, 50)):
                        await asyncio.sleep(0)  # a turn of the loop for everybody else
                forced = way == "answers" and self._answers_cut_every and self.counts[way] % self._answers_cut_every == 0
                if forced:
                    self.counts["answers hung up on"] += 1
                    return
                if self._chance(f"{way} cut"):
                    writer.write(chunk[: self._lengths.randrange(len(chunk) + 1)])
                    return
                writer.write(chunk)
                await writer.drain()


async def post_one_by_one(scoremean: Client, scores: list[Score]) -> None:
    """Post each score by itself, from 100 tasks at a time."""
    left = iter(scores)

    async def worker() -> None:
        for score in left:
            assert (await scoremean.post(score)).uuid == score.uuid

    async with asyncio.TaskGroup() as group:
        for _ in range(100):
            group.create_task(worker())


async def post_in_batches(scoremean: Client, scores: list[Score]) -> None:
    """Post all scores with post_many; every result is a mean of the right UUID."""
    means = [mean async for mean in scoremean.post_many(scores)]
    assert [mean.uuid for mean in means] == [score.uuid for score in scores]


def lossy_scores() -> tuple[list[Score], dict[str, Tally]]:
    """Return LOSSY_SCORES scores and the tally that each UUID must have after them."""
    chance = random.Random(2)
    scores = [Score(f"uuid-{chance.randrange(7)}", chance.randrange(6)) for _ in range(LOSSY_SCORES)]
    tallies: defaultdict[str, Tally] = defaultdict(lambda: Tally(0, 0))
    for score in scores:
        tallies[score.uuid] += Tally(score.score, 1)
    return scores, dict(tallies)


@pytest.mark.parametrize("post_all", [post_one_by_one, post_in_batches])
async def test_through_a_lossy_network_every_score_counts_once(service, store, post_all):
    """None is lost and none is double, though connections were dropped, and requests and answers were cut."""
    scores, tallies = lossy_scores()
    async with LossyProxy(service.url, rate=LOSSY_RATE) as proxy:
        async with Client(proxy.url, backoff_seconds=0, batch_scores=10) as scoremean:
            await post_all(scoremean, scores)
    for loss in ("connections dropped", "requests cut", "answers cut", "requests delayed", "answers delayed"):
        assert proxy.counts[loss] > 0, proxy.counts
    assert store.stats().scores == LOSSY_SCORES
    assert dict(zip(tallies, store.get(list(tallies)))) == tallies


@pytest.mark.parametrize("post_all", [post_one_by_one, post_in_batches])
@pytest.mark.parametrize("with_ids", [True, False])
async def test_without_ids_scores_whose_answer_was_cut_count_twice(service, store, post_all, with_ids):
    """The control: the same run counts too many without ids, so the test above can fail; with them it does not."""
    scores, _ = lossy_scores()
    async with LossyProxy(service.url, answers_cut_every=ANSWERS_CUT_EVERY) as proxy:
        async with Client(proxy.url, backoff_seconds=0, batch_scores=10, with_ids=with_ids) as scoremean:
            await post_all(scoremean, scores)
    assert proxy.counts["answers hung up on"] > 0
    counted_twice = 0 if with_ids else proxy.counts["answers hung up on"] * (1 if post_all is post_one_by_one else 10)
    assert store.stats().scores == LOSSY_SCORES + counted_twice
