"""`serve --workers 2`, as real processes: everything that one process promises, and what happens when one of them dies."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from aiohttp import ClientSession, TCPConnector
from msgspec.structs import replace

from scoremean import Score, Tally, cli, open_store, workers
from scoremean.app import listen
from scoremean.client import Client
from scoremean.counts import Counts, shared_memory
from scoremean.errors import ListenError
from scoremean.settings import Settings
from scoremean.store.embedded.store import LmdbStore
from scoremean.workers import serve_with_workers
from tests.support import Server, assert_sound, post
from tests.test_process import Load, expected


def workers_of(pid: int) -> list[int]:
    """Return the process ids of the children of the process `pid`."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_bytes().split()]


async def flood(url: str, scores: int, connections: int = 32) -> None:
    """Post `scores` scores of few UUIDs, each with an id and twice, over many connections."""
    todo = iter(range(scores))

    async def client(session: ClientSession) -> None:
        for n in todo:
            score = {"UUID": f"u{n % 5}", "score": n % 6, "id": f"id-{n}"}
            for replayed in (False, True):
                async with session.post("/scores", json=score) as response:
                    assert response.status == 200, await response.text()
                    assert ("Idempotency-Replayed" in response.headers) is replayed

    # A new connection for each request: the first one and its retry come to different workers as often as to the same.
    async with ClientSession(url, connector=TCPConnector(limit=connections, force_close=True)) as session:
        await asyncio.gather(*(client(session) for _ in range(connections)))


def test_the_example_and_exact_tallies_under_load(tmp_path):
    """The means of 5, 3, 4 one after the other; then many clients at once; retries count once, whichever worker has them."""

    async def run(url: str) -> None:
        async with ClientSession(url, connector=TCPConnector(force_close=True)) as session:
            assert [await post(session, "a1-b1", score) for score in (5, 3, 4)] == [5.0, 4.0, 4.0]
            # What was answered is there for every worker.
            for _ in range(10):
                async with session.get("/means/a1-b1") as response:
                    assert await response.json() == {"UUID": "a1-b1", "mean": 4.0, "sum": 12, "count": 3}
        await flood(url, 300)

    with Server(tmp_path, "--workers", "2") as server:
        assert len(workers_of(server.pid)) == 2
        asyncio.run(run(server.url))
        server.terminate()
        code, messages = server.wait()
    assert code == 0, messages
    assert "Traceback" not in messages
    with open_store(tmp_path, readonly=True) as store:
        tallies = {f"u{k}": Tally(sum(n % 6 for n in range(300) if n % 5 == k), 60) for k in range(5)}
        assert dict(store.scan(None, 10).tallies) == tallies | {"a1-b1": Tally(12, 3)}
    assert_sound(tmp_path)


def test_mistakes_are_mended_whichever_worker_has_them(tmp_path):
    """Voids by value and merges, each sent over a new connection and then again: what one worker did, the others know."""

    async def send(session: ClientSession, path: str, body: dict) -> tuple[int, dict, bool]:
        async with session.post(path, json=body) as response:
            return response.status, await response.json(), "Idempotency-Replayed" in response.headers

    async def run(url: str) -> None:
        async with ClientSession(url, connector=TCPConnector(force_close=True)) as session:
            for n in range(8):
                await post(session, f"from-{n}", 5)
                await post(session, f"from-{n}", 4)
                void = {"UUID": f"from-{n}", "score": 5, "id": f"void-{n}"}
                left = {"UUID": f"from-{n}", "mean": 4.0, "sum": 4, "count": 1}
                assert [await send(session, "/voids", void) for _ in range(3)] == [(200, left, n > 0) for n in range(3)]
                status, problem, _ = await send(session, "/voids", void | {"id": f"other-{n}"})
                assert (status, problem["type"]) == (422, "urn:scoremean:no-such-score")
                merges = [await send(session, f"/means/from-{n}/merge", {"into": "into"}) for _ in range(2)]
                assert [status for status, *_ in merges] == [200, 404]
                assert merges[0][1] == {"UUID": "into", "mean": 4.0, "sum": 4 * (n + 1), "count": n + 1}

    with Server(tmp_path, "--workers", "2") as server:
        asyncio.run(run(server.url))
        server.terminate()
        assert server.wait()[0] == 0
    with open_store(tmp_path, readonly=True) as store:
        assert dict(store.scan(None, 10).tallies) == {"into": Tally(32, 8)}
    assert_sound(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_under_load_cuts_no_counted_request(tmp_path, number):
    """Exit code 0, and every count is exactly the answers."""
    load = Load()
    with Server(tmp_path, "--workers", "2") as server:
        asyncio.run(load.run(server.url, 500, lambda: os.kill(server.pid, number)))
        code, messages = server.wait()
    assert code == 0, messages
    assert "Traceback" not in messages
    with open_store(tmp_path, readonly=True) as store:
        assert store.get(list(load.answered)) == [expected(answered) for answered in load.answered.values()]
    assert_sound(tmp_path)


def test_sigkill_of_the_parent_loses_no_acknowledged_score(tmp_path):
    """And the workers go by themselves: standard error, which they share, ends."""
    load = Load()
    with Server(tmp_path, "--workers", "2") as server:
        asyncio.run(load.run(server.url, 500, server.kill))
        assert server.wait()[0] == -signal.SIGKILL
    assert_sound(tmp_path)
    with Server(tmp_path, "--workers", "2"), open_store(tmp_path, readonly=True) as store:
        for uuid, answered in load.answered.items():
            [tally] = store.get([uuid])
            assert tally in (expected(answered), expected(answered + 1))


def test_a_worker_that_dies_is_replaced(tmp_path):
    """Clients that send again what was cut off lose nothing and count nothing twice."""

    async def run(server: Server) -> None:
        async with Client(server.url) as client:

            async def send(number: int) -> None:
                for n in range(50):
                    await client.post(Score(f"u{number}", n % 6))
                    if (number, n) == (0, 25):
                        os.kill(workers_of(server.pid)[0], signal.SIGKILL)

            await asyncio.gather(*(send(number) for number in range(16)))

    with Server(tmp_path, "--workers", "2") as server:
        before = workers_of(server.pid)
        asyncio.run(run(server))
        while len(after := workers_of(server.pid)) < 2:
            pass
        assert before[0] not in after and before[1] in after
        with open_store(tmp_path, readonly=True) as store:
            assert store.get([f"u{n}" for n in range(16)]) == [Tally(sum(n % 6 for n in range(50)), 50)] * 16
        server.terminate()
        code, messages = server.wait()
    assert code == 0, messages
    assert f"worker {before[0]} ended by itself with exit code -9; another one takes over" in messages
    assert_sound(tmp_path)


def changed(statement: str) -> list[str]:
    """Return what starts scoremean with a part of it changed; of the process that writes alone, not of its workers."""
    source = f"import sys; from scoremean import cli; from scoremean.store.embedded import files, store; {statement}"
    return [sys.executable, "-c", f"{source}; sys.exit(cli.main())"]


def test_workers_start_on_a_full_disk(tmp_path):
    """Means are read, and a retry gets its first answer."""

    async def run(url: str) -> None:
        async with ClientSession(url) as session:
            for body, status in (({"UUID": "a", "score": 5, "id": "id-1"}, 200), ({"UUID": "a", "score": 1}, 507)):
                async with session.post("/scores", json=body) as response:
                    assert response.status == status
            async with session.get("/means/a") as response:
                assert (await response.json())["sum"] == 5

    with open_store(tmp_path) as store:
        store.post(Score("a", 5, "id-1"))
    with Server(tmp_path, "--workers", "2", program=changed("store.free_bytes = lambda _: 0")) as server:
        asyncio.run(run(server.url))


def test_workers_that_cannot_start_end_the_service(tmp_path):
    """After a few tries, with exit code 1."""
    code = "import sys; from scoremean import cli, workers; workers.child_command = lambda *_: ['false']; sys.exit(cli.main())"
    command = [sys.executable, "-c", code, "serve", "--workers", "2", "--port", "0", "--store", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "workers end as soon as they are started, the service must stop" in done.stderr


def test_a_store_that_is_moved_ends_the_service(tmp_path):
    """A worker that took over would find none."""
    with Server(tmp_path / "store", "--workers", "2") as server:
        (tmp_path / "store").rename(tmp_path / "elsewhere")
        code, messages = server.wait()
    assert code == 1
    assert "while it was open; nothing is counted any more" in messages


def test_a_failed_commit_ends_all(tmp_path):
    """The outcome is unknown, and the exit code 1."""

    async def run(server: Server) -> None:
        async with ClientSession(server.url) as session:
            assert await post(session, "a", 5) == 5.0
            limits = resource.prlimit(server.pid, resource.RLIMIT_FSIZE)
            resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (1, limits[1]))  # from now on no write to a file succeeds
            async with session.post("/scores", json={"UUID": "a", "score": 1}) as response:
                assert response.status == 503
                assert (await response.json())["type"] == "urn:scoremean:outcome-unknown"
            resource.prlimit(server.pid, resource.RLIMIT_FSIZE, limits)  # or it could not write what it has covered

    with Server(tmp_path, "--workers", "2") as server:
        asyncio.run(run(server))
        code, messages = server.wait()
    assert code == 1
    assert "a commit failed" in messages
    with open_store(tmp_path, readonly=True) as store:
        assert store.get(["a"]) == [Tally(5, 1)]


async def test_a_worker_that_does_not_stop_is_killed(tmp_path, settings, monkeypatch):
    """In the end; and then it is no good end."""
    store = LmdbStore(tmp_path, counts=Counts(3, descriptor=shared_memory(3)))
    monkeypatch.setattr(workers, "STOP_MARGIN_SECONDS", 0)
    settings = replace(settings, store=str(store.path), workers=2, shutdown_timeout_seconds=1)
    before = workers_of(os.getpid())
    announced = asyncio.get_running_loop().create_future()
    serving = asyncio.ensure_future(serve_with_workers(settings, store, "1.2.3", announced.set_result))
    async with ClientSession(await announced) as client:
        assert await post(client, "a", 5) == 5.0
    os.kill(next(pid for pid in workers_of(os.getpid()) if pid not in before), signal.SIGSTOP)
    os.kill(os.getpid(), signal.SIGTERM)
    assert await serving is False
    assert workers_of(os.getpid()) == before
    store.close()
    os.close(store.counts.descriptor)


def test_what_prevents_a_start_is_one_sentence(tmp_path, capsys):
    """The same as with one process: the store is in use, the address is in use."""
    with Server(tmp_path / "store", "--workers", "2") as server:
        port = server.url.rpartition(":")[2]
        for store, message in (("store", f"is in use by process {server.pid}"), ("other", "Address already in use")):
            for number in ("1", "2"):
                arguments = ["serve", "--store", str(tmp_path / store), "--port", port, "--workers", number]
                assert cli.main(arguments) == 3
                errors = capsys.readouterr().err
                assert message in errors and errors.count("\n") == 1


def test_all_sockets_have_one_port_and_each_gets_its_share():
    """The kernel spreads the connections; nobody else can listen on the port."""
    listening = listen(Settings(port=0), 3)
    [port] = {one.getsockname()[1] for [one] in listening}
    with pytest.raises(ListenError, match=f"cannot listen on 127.0.0.1 port {port}: Address already in use"):
        listen(Settings(port=port), 2)
    clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(100)]
    for [one] in listening:
        one.settimeout(10)
        one.accept()[0].close()  # there is one: with 100 connections it is certain, but for a chance of 10 ** -17
    for one in [*clients, *(one for [one] in listening)]:
        one.close()


def test_the_first_commit_tells_readers_how_large_the_store_may_grow(tmp_path):
    """A worker that took the size from before would fail to read once the store has outgrown it."""
    LmdbStore(tmp_path, size_max_bytes=1 << 20).close()
    with LmdbStore(tmp_path, size_max_bytes=1 << 22) as store:
        store.commit([])
    with LmdbStore(tmp_path, readonly=True) as store:
        assert store.stats().store_size_max_bytes == 1 << 22
        assert store.get([Score("a", 1).uuid]) == [None]


def test_a_worker_that_nobody_asks_follows_in_slices(tmp_path):
    """So its next read has next to nothing to catch up with, however much was counted; and the answer is right meanwhile."""
    with LmdbStore(tmp_path / "store") as store:
        store.commit([Score("a", 1)])
        source = (
            "import sys\nfrom scoremean.store.embedded import store\nstore.CATCH_UP_ENTRIES = 10\n"
            "reader = store.LmdbStore(sys.argv[1], readonly=True)\nprint(flush=True)\nsys.stdin.readline()\n"
            "slices = 1\nwhile not reader.catch_up():\n    slices += 1\nprint(slices, reader.get(['a']), flush=True)\n"
        )
        command = [sys.executable, "-c", source, str(tmp_path / "store")]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
            assert reader.stdout.readline() == "\n"
            for _ in range(50):
                store.commit([Score("a", 1)])
            slices, _, tally = reader.communicate("\n")[0].partition(" ")
        assert int(slices) == 11  # of five records with an entry each, and one that finds no more
        assert tally == "[Tally(sum=51, count=51)]\n"
