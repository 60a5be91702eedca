"""Measures what scores cost on a cluster: `python -m tests.benchmarks.cost` prints the tables of docs/scale-out.md.

Not how fast they go here, where all processes share two cores, but what each takes of a processor, of memory, of the network
and of the disk. That does not change much with how many there are, so it can be multiplied.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from scoremean import Score, Tally, open_store
from scoremean.model import Add
from tests.benchmarks.data import CACHE
from tests.cluster import Cluster, Node
from tests.reliability import wire
from tests.reliability.wire import Connection
from tests.support import Server

SECONDS = 10
CONNECTIONS = 64
UUIDS = 200_000
COMMIT_SCORES = 10_000
INFO = ("total_net_input_bytes", "total_net_output_bytes", "total_net_repl_output_bytes", "used_memory", "aof_current_size")
CONFIG = {"auto-aof-rewrite-percentage": "0"}  # or the file is made smaller meanwhile
TICKS = os.sysconf("SC_CLK_TCK")


class Shape(NamedTuple):
    """How scores come: how many in a request, and whether each has an id."""

    name: str
    batch: int
    with_ids: bool


SHAPES = [Shape("single posts", 1, False), Shape("single posts with ids", 1, True), Shape("batches of 100 with ids", 100, True)]


def _uuid(number: int) -> str:
    """Return a name of 36 characters, as a random UUID has."""
    return f"{number:08x}-0000-4000-8000-{number * 2654435761 % (1 << 48):012x}"


def _seconds(pid: int) -> float:
    """Return the processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def _facts(nodes: list[Node]) -> Counter[str]:
    """Return what nodes have used until now: processor, network, file, memory."""
    found: Counter[str] = Counter()
    for node in nodes:
        info = node.redis.info("everything")
        found["seconds"] += info["used_cpu_user"] + info["used_cpu_sys"]
        found["calls"] += info["total_commands_processed"]
        found.update({name: info[name] for name in INFO})
    return found


def _measure_memory(cluster: Cluster) -> Iterator[tuple[str, float]]:
    """Fill the cluster, and give what a UUID and an id take of a primary's memory."""
    names = list(map(_uuid, range(UUIDS)))
    few, hot = names[: UUIDS // 10], names[:20]
    adds = [Add(name, Tally(4, 1)) for name in names]
    with open_store(cluster.url) as one, open_store(cluster.url) as other:
        for what, store, changes in (
            ("a UUID", one, adds),
            ("more for a second front end that counts for it within 10 minutes", other, adds),
            ("an id, the only one of its UUID", one, [Score(name, 4, f"a{name[1:]}") for name in names]),
            ("an id, one of ten", one, [Score(name, 4, f"{letter}{name[1:]}") for letter in "bcdefghijk" for name in few]),
            ("an id, one of thousands", one, [Score(name, 4, f"{n:05}{name[5:]}") for n in range(3000) for name in hot]),
        ):
            before = _facts(cluster.primaries())["used_memory"]
            for start in range(0, len(changes), COMMIT_SCORES):
                store.commit(changes[start : start + COMMIT_SCORES])
            yield what, (_facts(cluster.primaries())["used_memory"] - before) / len(changes)


class Clients:
    """Connections that post for a while; `scores` counts what was answered."""

    def __init__(self, url: str, shape: Shape):
        self._url = url
        self._shape = shape
        self._chance = random.Random(1)
        self._ids = 0
        self.scores = 0

    async def run(self, seconds: float) -> None:
        """Post as fast as it is answered."""
        end = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            for _ in range(CONNECTIONS):
                group.create_task(self._client(end))

    async def _client(self, end: float) -> None:
        connection = await Connection.open(self._url)
        while time.monotonic() < end:
            answer = await connection.ask(self._request())
            if answer.status != 200:
                raise RuntimeError(f"an answer was {answer.status}: {answer.body[:200]!r}")
            self.scores += self._shape.batch
        connection.close()

    def _request(self) -> bytes:
        items = [wire.members(_uuid(self._chance.randrange(UUIDS)), 4, self._id()) for _ in range(self._shape.batch)]
        return wire.post(items, "/scores?on_error=skip") if len(items) > 1 else wire.post(items[0])

    def _id(self) -> str | None:
        if not self._shape.with_ids:
            return None
        self._ids += 1
        return f"{time.time_ns():020x}-{self._ids:015x}"


def _measure_shape(cluster: Cluster, shape: Shape) -> list[str]:
    """Return the row of a shape: what a score takes."""
    primaries = cluster.primaries()
    replicas = [node for primary in primaries for node in cluster.replicas(primary)]
    with Server(cluster.url) as server:
        clients = Clients(server.url, shape)
        wire.run(clients.run(1))  # to be warm
        clients.scores = 0
        before = [_facts(primaries), _facts(replicas), _seconds(server.pid)]
        wire.run(clients.run(SECONDS))
        after = [_facts(primaries), _facts(replicas), _seconds(server.pid)]
        server.terminate()
        server.wait()
    first, second = after[0] - before[0], after[1] - before[1]
    microseconds = [after[2] - before[2], first["seconds"], second["seconds"]]
    in_out = [first["total_net_input_bytes"], first["total_net_output_bytes"] - first["total_net_repl_output_bytes"]]
    figures = [value * 1e6 / clients.scores for value in microseconds]
    figures += [value / clients.scores for value in (*in_out, first["total_net_repl_output_bytes"], first["aof_current_size"])]
    figures.append(clients.scores / SECONDS)
    return [shape.name, *(f"{figure:,.1f}" if figure < 100 else f"{figure:,.0f}" for figure in figures)]


def _main() -> None:
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as work, Cluster(Path(work, "cluster"), config=CONFIG) as cluster:
        print("| of memory | bytes |\n|---|---:|")
        for what, size_bytes in _measure_memory(cluster):
            print(f"| {what} | {size_bytes:,.0f} |")
        print(
            "\n| a score of | front end, us | primary, us | replica, us | to primary, bytes | from primary, bytes"
            " | to replica, bytes | file, bytes | scores/s here |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|"
        )
        for shape in SHAPES:
            print(f"| {' | '.join(_measure_shape(cluster, shape))} |", flush=True)


if __name__ == "__main__":
    sys.exit(_main())
