"""What Prometheus scrapes, read by Prometheus's own parser; and that counting is exact, whichever process does it."""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path

from aiohttp import ClientSession, TCPConnector
from prometheus_client.parser import text_string_to_metric_families

from scoremean import Merge, Score, Void, VoidScore, counts, errors
from scoremean.counts import STATUSES, Counts, request_cell, shared_memory
from scoremean.metrics import Metrics
from scoremean.model import Stats
from scoremean.store.embedded import journal
from scoremean.store.embedded.store import LmdbStore
from scoremean.web.handlers import Handlers
from tests.support import SMALL_JOURNAL, Server, post, scores_of

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"


def parse(text: str) -> dict[tuple[str, tuple], float]:
    """Return the value of every sample, by its name and labels."""
    families = text_string_to_metric_families(text)
    return {(one.name, tuple(sorted(one.labels.items()))): one.value for family in families for one in family.samples}


async def scrape(client: ClientSession) -> dict[tuple[str, tuple], float]:
    """Return what /metrics says."""
    async with client.get("/metrics") as response:
        assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        return parse(await response.text())


def requests(method: str, route: str, status: int) -> tuple[str, tuple]:
    """Return what counts the requests of a route that were answered so."""
    return "scoremean_http_requests_total", (("method", method), ("route", route), ("status", str(status)))


async def test_what_happens_is_counted(client, store):
    """Every request, score, replay, void and commit."""
    await post(client, "a", 5)
    for _ in range(2):
        async with client.post("/scores", json={"UUID": "b", "score": 4, "id": "one"}) as response:
            assert response.status == 200
    async with client.post("/scores", json=[{"UUID": "a", "score": 1}] * 3) as response:
        assert response.status == 200
    for _ in range(2):  # the second changes nothing
        async with client.delete("/scores/one") as response:
            assert response.status == 200
    async with client.delete("/means/a") as response:
        assert response.status == 200
    for path in ("/means/nobody", "/nowhere", "/"):
        async with client.get(path) as response:
            await response.read()
    async with client.head("/livez") as response:
        assert response.status == 200
    found = await scrape(client)
    assert found["scoremean_scores_total", ()] == 5
    assert found["scoremean_replays_total", ()] == 1
    assert found["scoremean_voids_total", ()] == 1
    assert found["scoremean_commit_duration_seconds_count", ()] == found["scoremean_commit_scores_count", ()] == 7
    assert found["scoremean_commit_scores_sum", ()] == 9
    assert found["scoremean_commit_scores_bucket", (("le", "2.0"),)] == 6
    assert found["scoremean_commit_duration_seconds_sum", ()] > 0
    assert found[requests("POST", "/scores", 200)] == 4
    assert found[requests("DELETE", "/scores/{id}", 200)] == 2
    assert found[requests("GET", "/means/{UUID}", 404)] == 1
    assert found[requests("none", "none", 404)] == 1
    assert found[requests("GET", "/", 200)] == found[requests("GET", "/livez", 200)] == 1
    stats = store.stats()
    for name in ("uuids", "scores", "ids"):
        assert found[f"scoremean_store_{name}", ()] == getattr(stats, name)
    assert found["scoremean_store_size_bytes", ()] == stats.store_size_bytes
    assert found["scoremean_disk_free_bytes", ()] > 0
    assert found["process_start_time_seconds", ()] > 0 and found["process_resident_memory_bytes", ()] > 0
    assert found[requests("POST", "/scores", 200)] == 4


async def test_bytes_that_are_no_request_are_counted(service, client):
    """As a request of no route."""
    reader, writer = await asyncio.open_connection(*service.url.removeprefix("http://").split(":"))
    writer.write(b"nonsense\r\n\r\n")
    answer = await reader.read()
    assert b"400 Bad Request" in answer and b"\r\nX-Request-Id: " in answer
    writer.close()
    assert (await scrape(client))[requests("none", "none", 400)] == 1


def test_folds_and_the_journal_are_counted(tmp_path, monkeypatch):
    """The entries that wait, and each part of a fold."""
    for name, value in SMALL_JOURNAL.items():
        monkeypatch.setattr(journal, name, value)
    with LmdbStore(tmp_path) as store:
        lengths = []
        for n in range(40):
            store.commit([Score(f"u{n % 3}", 1)])
            lengths.append(store.counts.total(counts.JOURNAL_ENTRIES))
        *folds, nanoseconds = store.counts.totals(counts.FOLD_DURATION.start, counts.FOLD_DURATION.end)
    assert sum(folds) > 5 and nanoseconds > 0
    assert lengths[:3] == [0, 0, 0]  # a new UUID is written in place
    assert max(lengths) > 5 and any(later < earlier for earlier, later in zip(lengths, lengths[1:]))


def test_what_is_not_counted_twice(tmp_path):
    """A score that is taken out again was counted all the same; what is refused never was."""
    with LmdbStore(tmp_path) as store:
        store.commit([Score("a", 1, "one"), Score("a", 2, "one"), Void("one"), Void("one"), Void("none")])
        store.commit(scores_of([("a", 1)] * 3))
        store.commit([VoidScore(Score("a", 1, "two"))] * 2 + [VoidScore(Score("none", 2, "three"))] + [Merge("a", "b")] * 2)
        found = [store.counts.total(cell) for cell in (counts.SCORES, counts.REPLAYS, counts.VOIDS)]
    assert found == [4, 1, 2]


def test_a_histogram_counts_up_to_its_bounds():
    """A value on a bound is within it."""
    own = Counts()
    histogram = counts.COMMIT_SCORES
    for value in (1, 2, 3, 1 << 17, 1 << 20):
        histogram.observe(own.cells, value)
    *values, total = own.totals(histogram.start, histogram.end)
    assert values[:3] == [1, 1, 1] and values[-2:] == [1, 1]
    assert total == 6 + (1 << 17) + (1 << 20)


def test_no_cell_is_two_things():
    """The histograms and the requests lie behind each other, and there is a place for every answer that can be."""
    taken = list(range(counts.COMMIT_DURATION.start))
    for histogram in (counts.COMMIT_DURATION, counts.COMMIT_SCORES, counts.FOLD_DURATION):
        taken += range(histogram.start, histogram.end)
    taken += [request_cell(route, status) for route in range(counts.ROUTES_MAX + 1) for status in STATUSES]
    assert taken == list(range(counts.CELLS))
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.ScoremeanError)]
    assert {kind.status for kind in kinds} <= set(STATUSES)
    assert len(Handlers(*[None] * 6).routes()) <= counts.ROUTES_MAX


def test_rows_add_up_over_processes():
    """In memory that they share."""
    descriptor = shared_memory(2)
    first, second = (Counts(2, row, descriptor) for row in range(2))
    os.close(descriptor)
    first.cells[counts.SCORES] += 2
    second.cells[counts.SCORES] += 3
    assert first.total(counts.SCORES) == second.total(counts.SCORES) == 5
    assert first.process_ids() == [os.getpid()] * 2


def test_workers_count_together(tmp_path):
    """The same answer from each of them; and a worker that dies takes nothing of it away."""

    async def run(server: Server) -> None:
        async with ClientSession(server.url, connector=TCPConnector(force_close=True)) as session:
            for n in range(10):
                await post(session, "a", n % 6)
            before = await scrape(session)
            assert before["scoremean_scores_total", ()] == before[requests("POST", "/scores", 200)] == 10
            assert before["process_resident_memory_bytes", ()] > 3 * (20 << 20)
            for child in Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text(encoding="ascii").split():
                os.kill(int(child), 9)
            while True:
                try:
                    after = await scrape(session)
                    break
                except OSError:  # until another worker has taken over
                    continue
            assert after[requests("POST", "/scores", 200)] == 10

    with Server(tmp_path, "--workers", "2") as server:
        asyncio.run(run(server))


def test_a_process_of_which_nothing_is_known_is_left_out():
    """Of all the others everything is told: /proc may be hidden, or the process have just died."""
    own = Counts()
    own.cells[counts.PROCESS_ID] = 1 << 22  # the system has none so high
    text = Metrics(own, Stats(0, 0, 0, 0, 0), [], "").text().decode()
    assert "process_" not in text and "scoremean_scores_total 0.0" in text


def test_every_metric_is_documented():
    """With its type, and no more."""
    text = Metrics(Counts(), Stats(0, 0, 0, 0, 0), [], "").text().decode()
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert rows == re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE)
