"""Batches, voids, listings and queries over HTTP, and a random walk over all of it against the oracle."""

from __future__ import annotations

import asyncio
import json
import tempfile

import aiohttp
import msgspec
import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis.stateful import RuleBasedStateMachine, rule
from yarl import URL

from scoremean.app import Service
from scoremean.model import Batch, Forget, Merge, Score, Tally, Void, VoidScore
from scoremean.settings import Settings
from scoremean.store.embedded.store import LmdbStore
from scoremean.web.wire import JSON, MSGPACK, NDJSON
from tests.store_contract import CHANGES
from tests.support import LONG, Oracle, assert_sound, post

SCORES = [{"UUID": "a", "score": 5}, {"UUID": "b", "score": 1}, {"UUID": "a", "score": 3, "id": "k"}]
MEANS = [{"UUID": "a", "mean": 5.0}, {"UUID": "b", "mean": 1.0}, {"UUID": "a", "mean": 4.0}]

ENCODE = {
    JSON: msgspec.json.encode,
    NDJSON: msgspec.json.Encoder().encode_lines,
    MSGPACK: msgspec.msgpack.encode,
}
DECODE = {
    JSON: msgspec.json.decode,
    NDJSON: msgspec.json.Decoder().decode_lines,
    MSGPACK: msgspec.msgpack.decode,
}


async def post_batch(client, body: bytes, kind: str = JSON, **query: str) -> tuple[int, aiohttp.ClientResponse, object]:
    """Post `body` and return the status, the response and its decoded body."""
    async with client.post("/scores", data=body, headers={"Content-Type": kind}, params=query) as response:
        raw = await response.read()
        decode = DECODE.get(response.content_type, msgspec.json.decode)
        return response.status, response, decode(raw)


@pytest.mark.parametrize("kind", ENCODE)
async def test_a_batch_is_answered_in_its_type_and_order(client, store, kind):
    """One result a score; scores of one UUID see each other. The whole batch again is a replay only as far as it has ids."""
    status, response, means = await post_batch(client, ENCODE[kind](SCORES), kind)
    assert (status, response.content_type, means) == (200, kind, MEANS)
    assert "Idempotency-Replayed" not in response.headers
    _, _, again = await post_batch(client, ENCODE[kind](SCORES), kind)
    assert [mean["mean"] for mean in again] == [13 / 3, 1.0, 4.0]
    assert store.get(["a", "b"]) == [Tally(13, 3), Tally(2, 2)]


async def test_a_batch_that_was_counted_whole_before_is_marked(client, store):
    """Every score has an id and was seen: the same answer, and the header."""
    body = ENCODE[JSON]([score | {"id": f"k-{n}"} for n, score in enumerate(SCORES)])
    _, _, first = await post_batch(client, body)
    _, response, again = await post_batch(client, body)
    assert first == again
    assert response.headers["Idempotency-Replayed"] == "true"
    assert store.stats().scores == 3


@pytest.mark.parametrize("kind", ENCODE)
async def test_a_batch_is_all_or_nothing(client, store, kind):
    """Every fault is listed with its place, and nothing is counted; the id is not used up."""
    bad = [SCORES[2], {"UUID": "a", "score": 6}, {"UUID": "", "scoer": 1}, 7]
    status, _, problem = await post_batch(client, ENCODE[kind](bad), kind)
    assert (status, problem["type"]) == (422, "urn:scoremean:invalid-batch")
    assert {error["pointer"] for error in problem["errors"]} == {"/1/score", "/2/score", "/2/UUID", "/2/scoer", "/3"}
    assert (store.stats().scores, store.stats().ids) == (0, 0)


@pytest.mark.parametrize("kind", ENCODE)
async def test_skip_counts_the_valid_ones_and_lists_the_others(client, store, kind):
    """Still one result a score in order; a refused one is the problem that it is, with its place."""
    await post_batch(client, ENCODE[JSON]([SCORES[2]]))
    bad = [SCORES[0], {"UUID": "a", "score": 6}, SCORES[2] | {"score": 4}, SCORES[1]]
    status, _, results = await post_batch(client, ENCODE[kind](bad), kind, on_error="skip")
    assert status == 200
    assert [results[0], results[3]] == [{"UUID": "a", "mean": 4.0}, {"UUID": "b", "mean": 1.0}]
    assert [result["type"] for result in results[1:3]] == ["urn:scoremean:invalid-score", "urn:scoremean:id-conflict"]
    assert [error["pointer"] for result in results[1:3] for error in result["errors"]] == ["/1/score", "/2/id"]
    assert store.get(["a", "b"]) == [Tally(8, 2), Tally(1, 1)]


async def test_an_id_conflict_refuses_a_whole_batch(client, store):
    """It is found by the store, before any score of the batch is counted."""
    await post_batch(client, ENCODE[JSON]([SCORES[2]]))
    status, _, problem = await post_batch(client, ENCODE[JSON]([SCORES[0], SCORES[2] | {"score": 4}]))
    assert (status, problem["type"]) == (422, "urn:scoremean:invalid-batch")
    assert [error["pointer"] for error in problem["errors"]] == ["/1/id"]
    assert store.stats().scores == 1


@pytest.mark.parametrize("kind", ENCODE)
async def test_an_empty_batch_is_answered_with_none(client, kind):
    """It is not an error to have nothing to send."""
    assert (await post_batch(client, ENCODE[kind]([]), kind))[::2] == (200, [])


async def test_messagepack_carries_a_single_score_too(client):
    """A map, answered with a map; a fault has its pointer."""
    status, response, mean = await post_batch(client, ENCODE[MSGPACK](SCORES[0]), MSGPACK)
    assert (status, response.content_type, mean) == (200, MSGPACK, MEANS[0])
    status, _, problem = await post_batch(client, ENCODE[MSGPACK]({"UUID": "a", "score": b"x", 7: 1}), MSGPACK)
    assert (status, {error["pointer"] for error in problem["errors"]}) == (422, {"/score", "/7"})


async def test_lines_of_ndjson_may_end_as_they_like(client):
    """CRLF, blank lines, no last newline."""
    body = b'{"UUID": "a", "score": 5}\r\n\n{"UUID": "b", "score": 1}'
    assert (await post_batch(client, body, NDJSON))[2] == MEANS[:2]


async def test_a_large_batch_does_not_hold_up_the_loop(tmp_path):
    """It is decoded in a thread: a small request that was sent after it is answered before it."""
    settings = Settings(port=0)
    with LmdbStore(tmp_path) as store:
        service = Service(settings, store, "1")
        await service.start()
        async with aiohttp.ClientSession(service.url) as client:
            scores = [{"UUID": f"uuid-{n}", "score": n % 6, "id": f"id-{n}"} for n in range(10_000)]
            large = asyncio.ensure_future(post_batch(client, ENCODE[JSON](scores)))
            assert await post(client, "small", 5) == 5.0
            status, _, means = await large
            assert (status, len(means)) == (200, 10_000)
            status, _, problem = await post_batch(client, ENCODE[JSON](scores + [{"UUID": "a", "score": 6}]))
            assert (status, problem["type"]) == (413, "urn:scoremean:body-too-large")
            scores[9_999]["score"] = 6
            status, _, problem = await post_batch(client, ENCODE[JSON](scores))
            assert (status, problem["errors"][0]["pointer"]) == (422, "/9999/score")
            assert store.stats().scores == 10_001
        await service.stop()


async def test_a_listing_goes_page_by_page(client, service):
    """In the order of UUIDs; the Link leads to the next page, the last one has none."""
    uuids = sorted(["a/b", "é", "a b", "&?", "z"])
    for uuid in uuids:
        await post(client, uuid, 2)
    found, url = [], "/means?limit=2"
    while url:
        async with client.get(service.url + url) as response:
            assert response.status == 200
            found += await response.json()
            links = response.links
            url = str(links["next"]["url"].relative()) if "next" in links else None
    assert found == [{"UUID": uuid, "mean": 2.0, "sum": 2, "count": 1} for uuid in uuids]
    async with client.get("/means", params={"after": "é"}) as response:
        assert (await response.json(), "Link" in response.headers) == ([], False)


async def test_a_query_answers_in_the_order_asked(client):
    """null for a UUID without a score."""
    await post(client, "a", 4)
    async with client.post("/means/query", json=["x", "a", "a"]) as response:
        mean = {"UUID": "a", "mean": 4.0, "sum": 4, "count": 1}
        assert (response.status, await response.json()) == (200, [None, mean, mean])


async def test_a_mean_that_did_not_change_is_not_sent_again(client):
    """ETag and If-None-Match; a new score gives another ETag."""
    await post(client, "a", 4)
    async with client.get("/means/a") as response:
        etag = response.headers["ETag"]
    for header in (etag, f'"x", W/{etag}', "*"):
        async with client.get("/means/a", headers={"If-None-Match": header}) as response:
            assert (response.status, await response.read(), response.headers["ETag"]) == (304, b"", etag)
    await post(client, "a", 4)
    async with client.get("/means/a", headers={"If-None-Match": etag}) as response:
        assert response.status == 200
        assert response.headers["ETag"] != etag


async def test_a_uuid_is_forgotten(client, store):
    """The answer has what it had; then it is unknown, and its ids touch nothing."""
    await post_batch(client, ENCODE[JSON](SCORES))
    async with client.delete("/means/a") as response:
        assert (response.status, await response.json()) == (200, {"UUID": "a", "mean": 4.0, "sum": 8, "count": 2})
    for method, path in (("GET", "/means/a"), ("DELETE", "/means/a"), ("DELETE", "/scores/k")):
        async with client.request(method, path) as response:
            assert response.status == 404
    async with client.post("/scores", json=SCORES[2]) as response:
        assert (await response.json(), response.headers["Idempotency-Replayed"]) == (MEANS[2], "true")
    assert store.get(["a"]) == [None]


class HttpMachine(RuleBasedStateMachine):
    """Random changes over HTTP, with restarts of the service, against the oracle."""

    def __init__(self):
        super().__init__()
        self._directory = tempfile.TemporaryDirectory()  # pylint: disable=consider-using-with  # teardown ends it
        self._runner = asyncio.Runner()
        self._oracle = Oracle()
        self._store = LmdbStore(self._directory.name)
        self._runner.run(self._start())

    async def _start(self) -> None:
        self._service = Service(Settings(port=0), self._store, "1")  # pylint: disable=attribute-defined-outside-init
        await self._service.start()

    async def _send(self, method: str, path: str, body: object) -> tuple[int, object]:
        async with aiohttp.ClientSession(self._service.url) as client:
            async with client.request(method, URL(self._service.url + path, encoded=True), json=body) as response:
                return response.status, await response.json()

    @rule(change=CHANGES)
    def change(self, change):
        """The answer is the oracle's outcome."""
        expected = self._oracle.apply(change)
        status, answer = self._runner.run(self._send(*request_of(change)))
        if isinstance(expected, type):
            assert (status, answer["type"]) == (expected.status, f"urn:scoremean:{expected.slug}")
        else:
            assert (status, answer) == (200, answer_of(change, expected))

    @rule()
    def restart(self):
        """Stop, check, open again."""
        self._runner.run(self._service.stop())
        self._store.close()
        self._store = LmdbStore(self._store.path)
        assert not self._store.check()
        self._runner.run(self._start())

    @rule()
    def list(self):
        """Everything that there is, with exact means."""
        _, means = self._runner.run(self._send("GET", "/means", None))
        assert [mean["UUID"] for mean in means] == self._oracle.uuids()
        for mean in means:
            assert mean["mean"] == float(self._oracle.mean(mean["UUID"]))

    def teardown(self):
        self._runner.run(self._service.stop())
        self._runner.close()
        self._store.close()
        assert_sound(self._store.path)
        self._directory.cleanup()


def request_of(change) -> tuple[str, str, object]:
    """Return the method, the path and the JSON body that stand for `change`."""
    match change:
        case Void():
            return "DELETE", f"/scores/{encoded(change.id)}", None
        case VoidScore():
            return "POST", "/voids", wire(change.score)
        case Forget():
            return "DELETE", f"/means/{encoded(change.uuid)}", None
        case Merge():
            return "POST", f"/means/{encoded(change.uuid)}/merge", {"into": change.into}
        case Batch():
            return "POST", "/scores" + "?on_error=skip" * change.skip, [wire(score) for score in change.scores]
    return "POST", "/scores", wire(change)


def encoded(text: str) -> str:
    """Return `text` percent-encoded, every byte of it."""
    return "".join(f"%{byte:02X}" for byte in text.encode())


def wire(score: Score) -> dict[str, object]:
    """Return a score as it is posted."""
    return {"UUID": score.uuid, "score": score.score} | ({"id": score.id} if score.id else {})


def answer_of(change, outcome) -> object:
    """Return the answer that the oracle's outcome stands for; of a refused score in a batch, only that it is one."""
    match change:
        case Void():
            return full_mean(outcome.uuid, outcome.tally)
        case VoidScore():
            return full_mean(change.score.uuid, outcome)
        case Forget():
            return full_mean(change.uuid, outcome)
        case Merge():
            return full_mean(change.into, outcome)
        case Batch():
            pairs = zip(change.scores, outcome)
            return [answer_of(score, one) if isinstance(one, Tally) else AnyProblem(one) for score, one in pairs]
    return {"UUID": change.uuid, "mean": outcome.mean}


def full_mean(uuid: str, tally: Tally) -> dict[str, object]:
    """Return a mean with its tally, as JSON has it."""
    return {"UUID": uuid, "mean": tally.mean if tally.count else None, "sum": tally.sum, "count": tally.count}


class AnyProblem:
    """Equal to any problem of the type of an error."""

    def __init__(self, error):
        self._type = f"urn:scoremean:{error.slug}"

    def __eq__(self, other):
        return other["type"] == self._type

    def __repr__(self):
        return f"AnyProblem({json.dumps(self._type)})"


TestHttpMachine = HttpMachine.TestCase
TestHttpMachine.settings = hypothesis_settings(max_examples=1400 if LONG else 15, stateful_step_count=15, deadline=None)
