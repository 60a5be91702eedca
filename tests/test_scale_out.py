"""Moving from an embedded store into a cluster and back, by the commands of docs/scale-out.md, while scores come in."""

from __future__ import annotations

import asyncio
import random
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from scoremean import Score, Tally
from scoremean.client import Client
from tests.cluster import Cluster
from tests.pages import DOCS, Reader, blocks
from tests.support import Server, require_program

ADDRESS = "redis://10.0.0.1:6379"
UUIDS = [f"uuid-{number}" for number in range(50)]
CLIENTS = 4
SCORES = 200

Truth = defaultdict[str, Tally]


@pytest.fixture(name="cluster")
def fixture_cluster(tmp_path: Path) -> Iterator[Cluster]:
    """An empty cluster of 3 primaries with a replica each."""
    require_program("redis-server", "redis-server")
    with Cluster(tmp_path / "cluster") as cluster:
        yield cluster


@asynccontextmanager
async def posting(url: str, truth: Truth) -> AsyncIterator[asyncio.Semaphore]:
    """Post scores until the end, when all are answered and in `truth`. Gives what is released once for each answer."""
    over, answers = asyncio.Event(), asyncio.Semaphore(0)

    async def post() -> None:
        async with Client(url) as client:
            while not over.is_set():
                score = Score(random.choice(UUIDS), random.randrange(6))
                await client.post(score)
                truth[score.uuid] += Tally(score.score, 1)
                answers.release()

    async with asyncio.TaskGroup() as group:
        for _ in range(CLIENTS):
            group.create_task(post())
        try:
            yield answers
        finally:
            over.set()


async def wait_for(answers: asyncio.Semaphore) -> None:
    """Return when SCORES more are answered."""
    for _ in range(SCORES):
        await answers.acquire()


async def served(url: str) -> dict[str, Tally]:
    """Return the tally of each UUID as a service tells it."""
    async with Client(url) as client:
        return {mean.uuid: Tally(mean.sum, mean.count) for mean in await client.get_many(UUIDS) if mean is not None}


def commands(cluster: Cluster) -> list[str]:
    """Return the commands that move in and those that move back, for this cluster."""
    found = [block.text for block in blocks(DOCS / "scale-out.md") if " --tallies " in block.text]
    return [re.sub("^scoremean", ".venv/bin/scoremean", text.replace(ADDRESS, cluster.url), flags=re.M) for text in found]


async def test_a_store_moves_into_a_cluster_and_back(cluster, tmp_path):
    """Nothing is lost, nothing double: scores come in while it moves in, and each move is done twice."""
    truth: Truth = defaultdict(lambda: Tally(0, 0))
    move_in, move_back = commands(cluster)
    with Reader(tmp_path) as reader, Server(tmp_path / "scoremean-data") as old, Server(cluster.url) as new:
        async with posting(old.url, truth) as answers:
            await wait_for(answers)
        async with posting(new.url, truth) as answers:
            await wait_for(answers)
            old.terminate()
            assert (await asyncio.to_thread(old.wait))[0] == 0
            for _ in range(2):
                await asyncio.to_thread(reader.run, move_in)
            await wait_for(answers)
        assert await served(new.url) == truth
        new.terminate()
        await asyncio.to_thread(new.wait)
        for _ in range(2):
            reader.run(move_back)
    with Server(tmp_path / "scoremean-back") as back:
        assert await served(back.url) == truth
