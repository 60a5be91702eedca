"""Campaigns against the disk: the power is cut, its calls fail, it is full. Each with a real server and real clients."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from copy import deepcopy
from itertools import count
from pathlib import Path
from random import Random
from typing import NamedTuple

from scoremean.store.embedded.files import DATA_FILE, LOCK_FILE, free_bytes
from scoremean.store.embedded.store import DISK_RESERVE_BYTES
from tests.reliability import wire
from tests.reliability.campaign import Finding, Missing, Trial, campaign
from tests.reliability.disk_clients import (
    COUNTED,
    CUT,
    OUTCOME_UNKNOWN,
    STOPPING,
    STORE_FULL,
    Client,
    Serving,
    clients,
    damages,
    missing,
    post_all,
)
from tests.reliability.disk_mount import Ext4
from tests.reliability.disk_states import MEDIUM_JOURNAL

CUTS_GOAL = 50
NEW_STORE_EVERY = 5
LOAD_MAX_SECONDS = 0.6

WRITING_CALLS = ("pwrite64", "pwritev", "writev", "fdatasync")
RESTART_MAX_SECONDS = 5

WAIT_SECONDS = 20


@campaign("power cut", f"at least {CUTS_GOAL} cuts, 0 lost, 0 damaged", "sync-off", "metasync-off")
def power_cuts(trial: Trial) -> Finding:
    """A server has its store on an ext4 file system in a file on a loop device, and 16 clients post to it. FS_IOC_SHUTDOWN
    makes the file system drop all that was not synced, as a power cut would: at a random moment, or right after the last
    answer, and every second time the server is killed with it. The file system is mounted again, which plays its journal, and
    then the pages of the store are verified, its invariants checked, and each client's scores compared with what the client was
    told; acknowledged ids must be known, and the next start must know that it has to check. The next cut hits the same store.
    Every fifth one hits a new store, right after its first answer."""
    cuts = 8 if trial.short else 120
    done = lost = damaged = unmarked = 0
    some: Sequence[Client] = ()
    with Ext4(trial.work, 256) as disk:
        while done < cuts and not lost and not damaged:
            store = disk.path / f"store-{done // NEW_STORE_EVERY}"
            if done % NEW_STORE_EVERY == 0:
                some = clients(16)
            with Serving(store, trial.broken, MEDIUM_JOURNAL) as server:
                acts = [disk.cut_power] + [server.kill] * (done % 2)
                wire.run(_post_and_act(some, server.url, done % NEW_STORE_EVERY, acts))
            disk.unmount()
            disk.mount()
            done += 1
            unmarked += not _reboot(store)
            if wrong := damages(store):
                print(f"cut {done}: {wrong[0]}", file=sys.stderr)
                damaged += 1
            else:
                lost += missing(some, store) + sum(client.forgotten for client in some)
    figure = f"{done} cuts, {lost} lost, {damaged} damaged"
    if unmarked:
        figure += f", {unmarked} after which the next start would not check the store"
    return Finding(figure, not lost and not damaged and not unmarked and (trial.short or done >= CUTS_GOAL))


def _reboot(store: Path) -> bool:
    """Let the next start find the mark of another boot, as it would after a power cut. Return whether there was a mark."""
    mark = store / LOCK_FILE
    if not mark.exists() or not (words := mark.read_text(encoding="ascii").split()):
        return False
    mark.write_text(f"{words[0]} before-the-power-cut\n", encoding="ascii")
    return True


async def _post_and_act(some: Sequence[Client], url: str, age: int, acts: Sequence[Callable[[], None]]) -> None:
    """Let the clients post, do `acts`, and return when every client was refused.

    Args:
        age: how many cuts the store has seen: none, and it is right after the first answer; an odd number, and it is when all
            have their last answer; else while they post.
    """
    if age % 2:
        await post_all(some, url, Random().randrange(1, 30))
    told = sum(client.told for client in some)
    posting = asyncio.ensure_future(post_all([] if age % 2 else some, url))
    while sum(client.told for client in some) == told and not posting.done():
        await asyncio.sleep(0)
    if age % 2 == 0 and age:
        await asyncio.sleep(Random().uniform(0, LOAD_MAX_SECONDS))
    for act in acts:
        act()
    await posting


class _Fault(NamedTuple):
    """What strace makes of the `number`-th call of `name` by a thread; also of all later ones if `lasting`."""

    name: str
    number: int
    outcome: str
    lasting: bool

    def __str__(self) -> str:
        return f"inject={self.name}:{self.outcome}:when={self.number}{'+' if self.lasting else ''}"


class _Hit(NamedTuple):
    """What a fault led to: acknowledged scores that are not there, the seconds of the restart, and what else was wrong."""

    false: int
    restart_seconds: float
    wrong: str


class _Faults:
    """Runs a server on a copy of one store again and again, each time with another fault.

    Args:
        posts: how many posts each of the clients makes at most, so that the calls can be counted.
    """

    def __init__(self, trial: Trial, posts: int):
        if not shutil.which("strace"):
            raise Missing("needs strace")
        self._trial = trial
        self._posts = posts
        self._store = trial.work / "store"
        self._clients = clients(3)
        with Serving(self._store, trial.broken, MEDIUM_JOURNAL) as server:
            wire.run(post_all(self._clients, server.url, 12))
            server.stop()

    def calls(self) -> Counter[str]:
        """Return how often each call is made while the clients post."""
        with self._serving("counted", ["-e", f"trace={','.join(WRITING_CALLS)}"]) as (server, some, _):
            wire.run(post_all(some, server.url, self._posts))
        lines = (self._trial.work / "counted.strace").read_text().splitlines()
        return Counter(name for name in WRITING_CALLS for line in lines if f" {name}(" in line)

    def hit(self, fault: _Fault) -> _Hit:
        """Run with a fault; return what came of it."""
        name = f"{fault.name}-{fault.number}-{fault.outcome}-{fault.lasting}"
        with self._serving(name, ["-e", str(fault)]) as (server, some, store):
            wire.run(post_all(some, server.url, self._posts * 2))
            if all(client.last == COUNTED for client in some):
                return _Hit(0, 0, "the call was never made")
            code, log = server.wait(), server.log
        wrong = [] if code == 1 and "a commit failed" in log else [f"exit code {code}"]
        wrong += [f"a client got: {client.last}" for client in some if client.last not in (CUT, OUTCOME_UNKNOWN, STOPPING)]
        with Serving(store, self._trial.broken, MEDIUM_JOURNAL) as server:
            false = missing(some, store)
            wire.run(post_all(some, server.url, 1))
            wrong += [f"after the restart a client got: {client.last}" for client in some if client.last != COUNTED]
        wrong += damages(store)
        shutil.rmtree(store)
        return _Hit(false, server.start_seconds, ", ".join(wrong))

    def _serving(self, name: str, options: Sequence[str]) -> _Traced:
        return _Traced(self._trial, self._store, self._clients, name, options)


class _Traced:
    """A server under strace, on a copy of a store, with a copy of its clients."""

    def __init__(self, trial: Trial, store: Path, some: Sequence[Client], name: str, options: Sequence[str]):
        self._store = trial.work / name
        shutil.copytree(store, self._store)
        self._clients = deepcopy(some)
        strace = ["strace", "-f", "-o", str(trial.work / f"{name}.strace"), "-P", str(self._store / DATA_FILE), *options]
        self._server = Serving(self._store, trial.broken, MEDIUM_JOURNAL, strace)

    def __enter__(self) -> tuple[Serving, Sequence[Client], Path]:
        return self._server.__enter__(), self._clients, self._store

    def __exit__(self, *error: object) -> None:
        self._server.__exit__(*error)


@campaign(
    "I/O errors",
    f"at every call of a commit, 0 false acknowledgements, restart within {RESTART_MAX_SECONDS} s",
    "answer-before-commit",
)
def io_errors(trial: Trial) -> Finding:
    """A server runs under strace, which lets the n-th of its writes, or of its syncs, to the store fail: with EIO once or from
    then on, with ENOSPC, or with a write cut short; for every n of the first commits. Three clients post. Each of them must be
    told that the outcome is unknown, or that nothing was counted, and the service must log why and end with exit code 1. It is
    started again without the fault: it must serve, and hold exactly what was acknowledged, and at most what is unknown."""
    faults = _Faults(trial, 2 if trial.short else 6)
    plan, hits = list(_plan(faults.calls(), trial.short)), []
    with ThreadPoolExecutor(2) as pool:
        for fault, hit in zip(plan, pool.map(faults.hit, plan)):
            hits.append(hit)
            if hit.wrong:
                print(f"{fault}: {hit.wrong}", file=sys.stderr)
            if trial.broken and (hit.wrong or hit.false):
                pool.shutdown(wait=False, cancel_futures=True)  # it is caught, and may take its time at each
                break
    false = sum(hit.false for hit in hits)
    slowest = max(hit.restart_seconds for hit in hits)
    wrong = sum(bool(hit.wrong) for hit in hits)
    figure = f"{len(hits)} faults, {false} false acknowledgements, {wrong} other faults, restart within {slowest:.1f} s"
    return Finding(figure, not false and not wrong and slowest <= RESTART_MAX_SECONDS)


def _plan(calls: Counter[str], short: bool) -> Iterator[_Fault]:
    """Yield the faults to try: each call with each outcome, or in the short form with one of them in turn."""
    turn = count()
    for name, made in sorted(calls.items()):
        outcomes = [("error=EIO", False), ("error=EIO", True), ("error=ENOSPC", False)]
        if name != "fdatasync":
            outcomes.append(("retval=1", False))
        for number in range(1, made + 1):
            for outcome in [outcomes[next(turn) % len(outcomes)]] if short else outcomes:
                yield _Fault(name, number, *outcome)


@campaign("disk full and freed", "0 lost, serves again without a restart")
def disk_full(trial: Trial) -> Finding:
    """A server has its store on a small ext4 file system, and 8 clients post to it. A file beside the store takes all the
    space that is left, until every client is told that the store is full (507) and nothing more fits on the disk. Meanwhile
    reading goes on. Then the file is removed, and the same process must count every client's scores again. At the end each
    client's scores are compared with what it was told."""
    rounds = 3 if trial.short else 20
    with Ext4(trial.work, 96) as disk:
        store, some = disk.path / "store", clients(8)
        with Serving(store, trial.broken, MEDIUM_JOURNAL) as server:
            run = _FullDisk(some, server.url, disk.path / "filler")
            try:
                wire.run(run.go(rounds))
            except* (RuntimeError, TimeoutError, ConnectionError) as errors:
                print(*errors.exceptions, server.log, sep="\n", file=sys.stderr)
        lost = missing(some, store)
        wrong = damages(store)
    figure = f"{run.freed} times full and freed, {lost} lost, {run.refused} posts refused, {run.reads} reads answered meanwhile"
    return Finding(figure, run.freed == rounds and not lost and not wrong)


class _FullDisk:
    """Clients that post and read while a file fills the disk and is removed again.

    Attributes:
        freed: how often the disk was full, and every client's scores counted again afterwards.
        refused: posts that were answered 507.
        reads: reads that were answered while the disk was full.
    """

    def __init__(self, some: Sequence[Client], url: str, filler: Path):
        self._clients = some
        self._url = url
        self._filler = filler
        self._full = False
        self._done = False
        self.freed = self.refused = self.reads = 0

    async def go(self, rounds: int) -> None:
        """Fill and free the disk so many times. Raises a group of what went wrong."""
        async with asyncio.TaskGroup() as tasks:
            for client in self._clients:
                tasks.create_task(self._post(client))
            tasks.create_task(self._read())
            for _ in range(rounds):
                await self._until_all(COUNTED)
                # Up to the reserve first, so that no commit is caught between its look at the disk and its writing.
                await asyncio.to_thread(_fill, self._filler, DISK_RESERVE_BYTES // 2)
                self._full = True
                await self._until_all(STORE_FULL)
                await asyncio.to_thread(_fill, self._filler, 0)
                await asyncio.sleep(0.1)  # in which reads and refused posts go on
                self._full = False
                self._filler.unlink()
                await self._until_all(COUNTED)
                self.freed += 1
            self._done = True

    async def _until_all(self, outcome: str) -> None:
        """Wait until the newest post of each client ended so."""
        async with asyncio.timeout(WAIT_SECONDS):
            while any(client.last != outcome for client in self._clients):
                await asyncio.sleep(0.005)

    async def _post(self, client: Client) -> None:
        connection = await wire.Connection.open(self._url)
        while not self._done:
            if not await client.post(connection):
                if client.last != STORE_FULL:
                    raise RuntimeError(f"{client.uuid}'s post ended with: {client.last}")
                self.refused += 1
                await asyncio.sleep(0.01)
        connection.close()

    async def _read(self) -> None:
        connection = await wire.Connection.open(self._url)
        while not self._done:
            full, told = self._full, self._clients[0].told
            answer = await connection.ask(wire.request("GET", f"/means/{self._clients[0].uuid}"))
            if answer.status != 200 and told:
                raise RuntimeError(f"a read was answered {answer.status}")
            self.reads += full
            await asyncio.sleep(0.01)
        connection.close()


def _fill(filler: Path, left_bytes: int) -> None:
    """Append zeros until no more than this is left on the disk."""
    with suppress(OSError), open(filler, "ab", buffering=0) as file:
        while free_bytes(file.fileno()) > left_bytes and file.write(bytes(1 << 18)) == 1 << 18:
            pass
    with suppress(OSError), open(filler, "ab", buffering=0) as file:
        while not left_bytes and file.write(bytes(1 << 12)):
            pass
