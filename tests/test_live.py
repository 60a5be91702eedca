"""Server-sent events: what they say, when they end, and that the store is read in slices, and only while somebody watches."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from unittest.mock import Mock

import pytest
from aiohttp import ClientSession, TCPConnector

from scoremean import Page, Score, Tally, Void
from scoremean.errors import Stopping
from scoremean.web import events as live
from scoremean.web.events import Live
from scoremean.web.overview import MIN_COUNTS
from tests.support import Server, post, scores_of


@pytest.fixture(name="quick", autouse=True)
def fixture_quick(monkeypatch):
    """No second between two events, and slices that a test can fill."""
    monkeypatch.setattr(live, "EVENT_SECONDS", 0)
    monkeypatch.setattr(live, "SLICE_UUIDS", 2)


@asynccontextmanager
async def watched(client, query: str = "") -> AsyncIterator[AsyncIterator[tuple[str, dict]]]:
    """Give the events that come, as their names and data."""

    async def events(content) -> AsyncIterator[tuple[str, dict]]:
        async for line in content:
            name = line.decode().removeprefix("event: ").rstrip()
            data = await content.readline()
            assert data.startswith(b"data: ") and await content.readline() == b"\n"
            yield name, json.loads(data[6:])

    async with client.get(f"/events{query}") as response:
        assert (response.status, response.headers["Content-Type"]) == (200, "text/event-stream")
        assert response.headers["Cache-Control"] == "no-store"
        async with aclosing(events(response.content)) as found:
            yield found


async def until(events, name: str, condition=lambda data: True) -> dict:
    """Return the data of the first event `name` that meets `condition`."""
    async for found, data in events:
        if found == name and condition(data):
            return data
    raise AssertionError("the events have ended")


async def test_now_tells_what_is_counted(client, store):
    """Scores, replays, voids and commits, as they happen."""
    async with watched(client) as events:
        first = await until(events, "now")
        assert (first["counted"], first["uuids"], first["version"]) == (0, 0, "1.2.3")
        await post(client, "a", 5)
        for _ in range(2):
            async with client.post("/scores", json={"UUID": "b", "score": 4, "id": "one"}) as response:
                assert response.status == 200
        async with client.delete("/scores/one") as response:
            assert response.status == 200
        now = await until(events, "now", lambda data: data["voids"] and not data["queue_scores"])
    stats = store.stats()
    assert (now["counted"], now["replays"], now["voids"], now["commits"]) == (2, 1, 1, 4)
    assert (now["uuids"], now["scores"], now["ids"]) == (stats.uuids, stats.scores, stats.ids) == (1, 1, 1)
    assert now["store_size_bytes"] > 0 and now["disk_free_bytes"] > 0
    duration = now["commit_duration"]
    assert sum(duration["counts"]) == 4 and duration["sum_seconds"] > 0
    assert len(duration["counts"]) == len(duration["bounds_seconds"]) + 1
    assert first["time"] <= now["time"]


async def test_the_overview_follows_the_scores(client, store):
    """It is there at once, and again when there is news, and not when there is none."""
    store.commit(scores_of([("a", 5), ("a", 4), ("b", 1), ("c", 3), ("c", 3), ("d", 0), ("d", 0), ("e", 2)]))
    async with watched(client, "?min_count=2") as events:
        overview = await until(events, "overview", lambda data: data["complete"])
        assert [mean["UUID"] for mean in overview["best"]] == ["a", "c", "d"]
        assert overview["worst"][0] == {"UUID": "d", "mean": 0.0, "sum": 0, "count": 2}
        assert (overview["uuids"], overview["read_uuids"], overview["min_count"]) == (3, 5, 2)
        assert (overview["score_min"], overview["score_max"], sum(overview["distribution"])) == (0, 5, 3)
        names = [await anext(events) for _ in range(5)]
        assert {name for name, _ in names} == {"now"}
        store.commit(scores_of([("e", 5)]))
        overview = await until(events, "overview")
        assert [mean["UUID"] for mean in overview["best"]] == ["a", "e", "c", "d"]


async def test_a_store_that_is_read_for_the_first_time_is_shown_as_far_as_it_is_read(store, monkeypatch):
    """Then only when it is read to the end."""
    store.commit(scores_of((f"u{n}", n % 6) for n in range(5)))
    scans, rests = [], []
    scan, sleep = store.scan, asyncio.sleep

    async def rest(seconds: float) -> None:
        rests.append(seconds)
        await sleep(0)

    def slow_scan(after, limit):
        scans.append((after, limit))
        return scan(after, limit)

    monkeypatch.setattr(store, "scan", slow_scan)
    monkeypatch.setattr(live.asyncio, "sleep", rest)
    shown = Live(store, "1", 0, 5)
    views = []
    async with aclosing(shown.stream(1)) as events:
        async for event in events:
            if b"event: overview" in event:
                views.append(json.loads(event.rpartition(b"data: ")[2]))
                if views[-1]["complete"]:
                    break
    assert [view["read_uuids"] for view in views] == sorted({view["read_uuids"] for view in views})
    assert views[0]["read_uuids"] < 5 and not views[0]["complete"]
    assert scans == [(None, 2), ("u1", 2), ("u3", 2)]
    assert all(seconds >= 0 for seconds in rests)


@pytest.mark.parametrize(("busy", "factor"), [(False, 1), (True, 99)])
async def test_a_reading_leaves_the_loop_to_others(store, monkeypatch, busy, factor):
    """For as long as its slice took; while scores are counted, 99 times as long."""
    store.commit(scores_of((f"u{n}", 3) for n in range(9)))
    scan, sleep, now, rests = store.scan, asyncio.sleep, [100.0], []

    def slow_scan(after, limit):
        now[0] += 0.5
        if busy:
            store.commit([Score("u1", 3)])
        return scan(after, limit)

    async def rest(seconds: float) -> None:
        rests.append(seconds)
        await sleep(0)

    monkeypatch.setattr(store, "scan", slow_scan)
    monkeypatch.setattr(live.asyncio, "sleep", rest)
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now[0])
    shown = Live(store, "1", 0, 5)
    async with aclosing(shown.stream(1)) as events:
        async for event in events:
            if b'"complete":true' in event:
                break
    pauses = [seconds for seconds in rests if seconds]
    assert pauses[1:] == [0.5 * factor] * (len(pauses) - 1) and len(pauses) >= 4


async def test_a_store_is_not_read_when_nobody_watches(store, monkeypatch):
    """What was begun is given up."""
    store.commit(scores_of((f"u{n}", 3) for n in range(9)))
    scans = []
    scan = store.scan
    monkeypatch.setattr(store, "scan", lambda after, limit: scans.append(after) or scan(after, limit))
    shown = Live(store, "1", 0, 5)
    async with aclosing(shown.stream(1)) as events:
        await anext(events)
    while len(asyncio.all_tasks()) > 1:
        await asyncio.sleep(0)
    assert 0 < len(scans) < 5


@pytest.mark.parametrize("query", ["?min_count=3", "?min_count=", "?min_count=-1", "?min_count=2000000", "?count=1"])
async def test_a_parameter_that_is_none_is_refused(client, query):
    """With a sentence that names it."""
    async with client.get(f"/events{query}") as response:
        problem = await response.json()
        assert (response.status, problem["type"]) == (422, "urn:scoremean:invalid-query")
        assert "min_count" in problem["detail"]


async def test_every_minimum_is_taken(client):
    """From 1 to a million."""
    for min_count in MIN_COUNTS:
        async with watched(client, f"?min_count={min_count}") as events:
            assert (await until(events, "overview"))["min_count"] == min_count


async def test_there_are_no_more_streams_than_may_be(client, monkeypatch):
    """One that ends makes room for another."""
    monkeypatch.setattr(live, "STREAMS_MAX", 1)
    async with watched(client) as events:
        await anext(events)
        async with client.get("/events") as response:
            problem = await response.json()
            assert (response.status, problem["type"]) == (503, "urn:scoremean:too-many-streams")
    while True:  # the service notices at the next event that a client is gone
        async with client.head("/events") as response:
            assert await response.read() == b""
            if response.status == 200:
                break


async def test_a_stop_ends_the_streams(service, client):
    """At once, and as a whole answer."""
    async with watched(client) as events:
        await anext(events)
        await service.stop()
        async for name, _ in events:
            assert name in ("now", "overview")


async def test_a_store_that_cannot_be_read_ends_the_stream(client, store, monkeypatch):
    """As after a failed commit."""
    store.commit([Score("a", 1, "one"), Void("one")])
    async with watched(client) as events:
        await anext(events)
        monkeypatch.setattr(store, "_failed", True)
        async for name, _ in events:
            assert name in ("now", "overview")
    monkeypatch.setattr(store, "_failed", False)


async def test_an_overview_that_cannot_be_read_to_its_end_is_given_up(client, store, monkeypatch, caplog):
    """The stream goes on as long as it can, and says nothing of it."""
    caplog.set_level(logging.INFO)
    store.commit(scores_of((f"u{n}", 3) for n in range(9)))
    monkeypatch.setattr(store, "scan", Mock(side_effect=[Page([("u0", Tally(3, 1))], "u0"), Stopping("no more")] * 99))
    async with watched(client) as events:
        overview = await until(events, "overview")
        assert not overview["complete"] and overview["read_uuids"] == 1
        while "the overview was not read to its end: no more" not in caplog.text:
            await anext(events)


def test_workers_tell_what_all_of_them_did(tmp_path):
    """Whichever one is asked; and each reads the overview itself."""

    async def run(url: str) -> None:
        async with ClientSession(url, connector=TCPConnector(force_close=True)) as session:
            for n in range(8):
                await post(session, f"u{n}", 3)
            for _ in range(6):
                async with watched(session) as events:
                    assert (await until(events, "now"))["counted"] == 8
                    assert (await until(events, "overview", lambda data: data["complete"]))["uuids"] == 8

    with Server(tmp_path, "--workers", "2") as server:
        asyncio.run(run(server.url))
