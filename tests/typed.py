"""Every public name, used as a program with strict types uses it. It is read by mypy alone, in test_types."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import assert_type
from uuid import uuid4

import numpy

import scoremean
from scoremean import (
    Add,
    Batch,
    Forget,
    Mean,
    Merge,
    Page,
    Replay,
    Score,
    ScoremeanError,
    Stats,
    Store,
    Tally,
    Void,
    Voided,
    VoidScore,
    open_store,
)
from scoremean.client import Client, SyncClient
from scoremean.counts import Counts
from scoremean.errors import Fault, IdConflict, InvalidBatch, RequestError
from scoremean.store.base import Change, Outcome


def nouns() -> None:
    """Made of what each may be made of."""
    assert_type(scoremean.__version__, str)
    score = Score(uuid4(), numpy.int64(5), id=uuid4())
    assert_type(score.uuid, str)
    assert_type(score.score, int)
    assert_type(score.id, str | None)
    total = Tally(5, 1) + Tally(4, 1) - Tally(1, 1)
    assert_type(total.mean, float)
    assert_type(Add("a", total, "id").tally, Tally)
    assert_type(Batch([score], skip=True).skip, bool)
    assert_type(Void("id").id, str)
    assert_type(Forget(uuid4()).uuid, str)


def library(path: Path) -> None:
    """Each method of a store, with its result."""
    with open_store(
        path, readonly=False, size_max_bytes=1 << 30, id_retention_seconds=3600, counts=Counts()
    ) as store:
        use(store)


def use(store: Store) -> None:
    """Whichever it is."""
    tally = store.post(Score("a1-b1", 5, "id"))
    assert_type(tally, Tally)
    assert_type(isinstance(tally, Replay), bool)
    assert_type(store.post(Add("a", Tally(1, 1))), Tally)
    assert_type(store.post(Forget("a")), Tally)
    assert_type(store.post(Merge(uuid4(), into="b")), Tally)
    assert_type(store.post(VoidScore(Score("b", 5, "void-1"))), Tally)
    voided = store.post(Void("id"))
    assert_type(voided, Voided)
    assert_type(voided.tally, Tally)
    assert_type(store.post_many(Score("a", n) for n in range(5)), list[Tally])
    for result in store.post_many([Score("a", 5)], skip=True):
        assert_type(result, Tally | RequestError)
    changes: list[Change] = [Score("a", 5), Void("id")]
    assert_type(store.commit(changes), list[Outcome])
    store.submit(changes).result()
    assert_type(store.get(["a", uuid4()]), list[Tally | None])
    page = store.scan(None, 10)
    assert_type(page, Page)
    assert_type(page.tallies, list[tuple[str, Tally]])
    assert_type(page.after, str | None)
    assert_type(store.tallies(), Iterator[tuple[str, Tally]])
    assert_type(store.stats(), Stats)
    assert_type(store.check(), list[str])
    store.close()


def errors(store: Store) -> str:
    """From the widest to the one that has faults."""
    try:
        store.post_many([Score("a", 5)])
    except InvalidBatch as error:
        assert_type(error.faults, tuple[Fault, ...])
        return error.faults[0].pointer + error.faults[0].detail
    except IdConflict as error:
        return error.detail
    except ScoremeanError as error:
        return str(error)
    return ""


def asked(url: str) -> None:
    """Each method of the client for scripts."""
    with SyncClient(
        url,
        attempts_max=3,
        backoff_seconds=0.1,
        timeout_seconds=5,
        with_ids=True,
        batch_scores=100,
        concurrency=2,
        token="t",
        tls=ssl.create_default_context(),
    ) as client:
        assert_type(client, SyncClient)
        mean = client.post(Score("a", 5))
        assert_type(mean, Mean)
        assert_type(mean.mean, float | None)
        assert_type(client.post_many([Score("a", 5)]), Iterator[Mean])
        assert_type(client.post_many([Score("a", 5)], skip=True), Iterator[Mean | RequestError])
        assert_type(client.get(uuid4()), Mean | None)
        assert_type(client.get_many(["a"]), list[Mean | None])
        assert_type(client.iterate(limit=5), Iterator[Mean])
        assert_type(client.void("id"), Mean)
        assert_type(client.void_score(Score("a", 5)), Mean)
        assert_type(client.merge("a", into="b"), Mean)
        assert_type(client.forget("a"), Mean)
    client.close()


async def asked_on_a_loop(url: str, scores: AsyncIterator[Score]) -> None:
    """Each method of the client for a loop."""
    async with Client(url, token="t") as client:
        assert_type(client, Client)
        assert_type(await client.post(Score("a", 5)), Mean)
        assert_type(client.post_many(scores), AsyncIterator[Mean])
        async for result in client.post_many([Score("a", 5)], skip=True):
            assert_type(result, Mean | RequestError)
        assert_type(await client.get(uuid4()), Mean | None)
        assert_type(await client.get_many(["a"]), list[Mean | None])
        async for mean in client.iterate():
            assert_type(mean, Mean)
        assert_type(await client.void("id"), Mean)
        assert_type(await client.void_score(Score("a", 5)), Mean)
        assert_type(await client.merge("a", into="b"), Mean)
        assert_type(await client.forget("a"), Mean)
