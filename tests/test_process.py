"""The real process: SIGKILL and SIGTERM while many clients post. What was answered must be there, and only once."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable

import aiohttp
import pytest
from aiohttp import ClientSession, TCPConnector

from scoremean import Tally, open_store
from tests.support import Server, assert_sound

CLIENTS = 16


class Load:
    """Clients that post until the server goes away, and what each was told.

    Every client has a UUID of its own and gives it 1, 2, 3, 4, 5, 0, 1 ..., so a tally shows which scores it holds.
    """

    def __init__(self) -> None:
        self.sent: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.cut = 0

    async def run(self, url: str, when_answered: int, act: Callable[[], None]) -> None:
        """Post, and call `act` once when `when_answered` scores have been answered."""
        async with ClientSession(url) as session:
            clients = [asyncio.ensure_future(self._client(session, f"client-{n}")) for n in range(CLIENTS)]
            while self.answered.total() < when_answered:
                await asyncio.sleep(0)
            act()
            await asyncio.gather(*clients)

    async def _client(self, session: ClientSession, uuid: str) -> None:
        while True:
            self.sent[uuid] += 1
            try:
                async with session.post("/scores", json={"UUID": uuid, "score": self.sent[uuid] % 6}) as response:
                    if response.status == 503:
                        return
                    mean = (await response.json())["mean"]
            except aiohttp.ClientConnectorError:  # no connection: the score was never sent
                return
            except aiohttp.ClientError:
                self.cut += 1
                return
            self.answered[uuid] += 1
            assert mean == expected(self.answered[uuid]).mean


def expected(count: int) -> Tally:
    """Return the tally of a client's first `count` scores."""
    return Tally(sum(n % 6 for n in range(1, count + 1)), count)


@pytest.mark.parametrize("small_journal", [False, True])
def test_sigkill_under_load_loses_no_acknowledged_score(tmp_path, small_journal):
    """Each client's tally is what it was told, or that and the one under way; also with a fold in nearly every commit."""
    for round_number in range(3):
        path = tmp_path / str(round_number)
        load = Load()
        with Server(path, small_journal=small_journal) as server:
            asyncio.run(load.run(server.url, 300 * (round_number + 1), server.kill))
            assert server.wait()[0] == -9
        assert_sound(path)
        with Server(path, small_journal=small_journal) as server, open_store(path, readonly=True) as store:
            for uuid, answered in load.answered.items():
                [tally] = store.get([uuid])
                assert tally in (expected(answered), expected(answered + 1))
                assert tally.count <= load.sent[uuid]


def test_retries_after_a_sigkill_count_once(tmp_path):
    """Every score that was sent, answered or not, is sent again with its id after the restart: each counts exactly once."""
    sent: list[dict] = []

    async def flood(server: Server) -> None:
        async with ClientSession(server.url) as session:

            async def client(number: int) -> None:
                for n in range(1000):
                    sent.append({"UUID": f"client-{number % 4}", "score": n % 6, "id": f"{number}/{n}"})
                    async with session.post("/scores", json=sent[-1]) as response:
                        assert response.status == 200
                    if len(sent) == 500:
                        server.kill()

            results = await asyncio.gather(*(client(n) for n in range(CLIENTS)), return_exceptions=True)
            assert all(isinstance(result, aiohttp.ClientError) for result in results)

    async def send_again(server: Server) -> int:
        replayed = 0
        async with ClientSession(server.url) as session:
            for score in sent:
                async with session.post("/scores", json=score) as response:
                    assert response.status == 200
                    replayed += "Idempotency-Replayed" in response.headers
        return replayed

    with Server(tmp_path) as server:
        asyncio.run(flood(server))
        server.wait()
    with Server(tmp_path) as server:
        assert 500 - CLIENTS <= asyncio.run(send_again(server)) <= len(sent)
        with open_store(tmp_path, readonly=True) as store:
            assert (store.stats().scores, store.stats().ids) == (len(sent), len(sent))
            for uuid in {score["UUID"] for score in sent}:
                scores = [score["score"] for score in sent if score["UUID"] == uuid]
                assert store.get([uuid]) == [Tally(sum(scores), len(scores))]
    assert_sound(tmp_path)


def test_sigterm_under_load_cuts_no_counted_request(tmp_path):
    """Exit code 0, and every count is exactly the answers: no score without an answer, no answer without a score."""
    load = Load()
    with Server(tmp_path / "store") as server:
        asyncio.run(load.run(server.url, 500, server.terminate))
        code, messages = server.wait()
    assert code == 0, messages
    assert "Traceback" not in messages
    with open_store(tmp_path / "store", readonly=True) as store:
        assert store.get(list(load.answered)) == [expected(answered) for answered in load.answered.values()]
    assert_sound(tmp_path / "store")


def test_the_example_survives_a_sigkill(tmp_path):
    """5, 3, 4, SIGKILL, restart: 4.0 of 3 scores."""

    async def post_and_kill(server: Server) -> None:
        async with ClientSession(server.url) as session:
            for score in (5, 3, 4):
                await session.post("/scores", json={"UUID": "a1-b1", "score": score})
        server.kill()

    async def read(server: Server) -> dict:
        async with ClientSession(server.url) as session, session.get("/means/a1-b1") as response:
            return await response.json()

    with Server(tmp_path) as server:
        asyncio.run(post_and_kill(server))
        server.wait()
    with Server(tmp_path) as server:
        assert asyncio.run(read(server)) == {"UUID": "a1-b1", "mean": 4.0, "sum": 12, "count": 3}


def test_many_uuids_end_exact(many_scores, tmp_path):
    """20,000 scores, posted one by one over 64 connections."""
    lines = many_scores.read_bytes().splitlines()[:20_000]
    truth: dict[str, Tally] = {}
    for score in map(json.loads, lines):
        truth[score["UUID"]] = truth.get(score["UUID"], Tally(0, 0)) + Tally(score["score"], 1)

    async def run(url: str) -> None:
        todo = iter(lines)
        headers = {"Content-Type": "application/json"}
        async with ClientSession(url, connector=TCPConnector(limit=64), headers=headers) as session:

            async def client() -> None:
                for line in todo:
                    async with session.post("/scores", data=line) as response:
                        assert response.status == 200

            await asyncio.gather(*(client() for _ in range(64)))

    with Server(tmp_path) as server:
        asyncio.run(run(server.url))
        with open_store(tmp_path, readonly=True) as store:
            assert (store.stats().uuids, store.stats().scores) == (len(truth), len(lines))
            assert dict(store.scan(None, 2000).tallies) == truth
    assert_sound(tmp_path)
