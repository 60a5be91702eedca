"""Every test of HTTP with single scores again, on a store in a Redis Cluster; the tests at the end replace two of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from scoremean import open_store
from tests.cluster import Cluster
from tests.support import require_program, scores_of
from tests.test_http import *  # pylint: disable=wildcard-import,unused-wildcard-import  # the tests are what is wanted


@pytest.fixture(name="running", scope="module")
def fixture_running(tmp_path_factory) -> Iterator[Cluster]:
    """A cluster that all tests of this module share."""
    require_program("redis-server", "redis-server")
    with Cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.fixture(name="store")
def fixture_store(running) -> Iterator:
    """A store in the cluster, which is empty, and is checked after the test."""
    running.empty()
    with open_store(running.url) as store:
        yield store
        assert store.check() == []


async def test_stats_tell_what_the_store_holds(client, store):  # pylint: disable=function-redefined
    """Without a limit, where Redis has none."""
    store.commit(scores_of([("a", 5), ("a", 4), ("b", 1)]))
    async with client.get("/stats") as response:
        stats = await response.json()
    assert stats.pop("store_size_bytes") > 0
    assert stats == {"version": "1.2.3", "uuids": 2, "scores": 3, "ids": 0, "store_size_max_bytes": 0}


async def test_a_client_that_reads_slowly_gets_all_of_a_long_answer(client):  # pylint: disable=function-redefined
    """There is no such answer here: what needs an order says what to use instead."""
    async with client.get("/means") as response:
        problem = await response.json()
    assert (response.status, problem["type"]) == (501, "urn:scoremean:not-supported")
    assert "scoremean export" in problem["detail"] and "POST /means/query" in problem["detail"]


async def test_a_batch_needs_on_error_skip(client, store):
    """The sentence says so; with it, the valid ones are counted."""
    batch = [{"UUID": "a", "score": 5}, {"UUID": "b", "score": 4}]
    async with client.post("/scores", json=batch) as response:
        problem = await response.json()
    assert (response.status, problem["type"]) == (501, "urn:scoremean:not-supported")
    assert "?on_error=skip" in problem["detail"] and store.get(["a", "b"]) == [None, None]
    async with client.post("/scores?on_error=skip", json=batch) as response:
        assert (response.status, await response.json()) == (200, [{"UUID": "a", "mean": 5.0}, {"UUID": "b", "mean": 4.0}])
