"""The cluster store: tallies in a Redis Cluster, which any number of processes write at once.

Keys, each in a slot of its own (the prefix has an empty tag, so that all of a key is hashed, whatever braces a UUID has):

    sm{}:m:UUID      hash    s, c           sum and count; missing without a score, and then the key expires
                             e              how many times the UUID was forgotten
                             t              the last call of each process, packed
                             BLAKE2b of id  what it added, first answer, epoch, voided, time; as text
    sm{}:i:BLAKE2b   string  "sum count UUID", what the id belongs to; expires
    sm{}:scores      string  how many scores are counted

All that is kept of a UUID is in one key, so that one script counts all or nothing of what a batch has for it (apply.lua).
An id is first *claimed* for its UUID and score, then counted there. A crash in between is mended by the retry: it finds the
claim to be its own. How they are sent, and sent again, is in lanes.py.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

from scoremean import codec
from scoremean.counts import COMMIT_DURATION, COMMIT_SCORES, REPLAYS, SCORES, VOIDS, Counts
from scoremean.errors import InvalidScore, NotSupported, ScoremeanError, StoreError, StoreUnavailable
from scoremean.model import Add, Batch, Forget, Page, Score, Stats, Tally, Void, require_uuid
from scoremean.store.base import Change, Outcome, Store
from scoremean.store.cluster import (
    BROKEN,
    SLOTS,
    Address,
    Link,
    Myself,
    ReplyError,
    Topology,
    facts,
    pack_command,
    parse_url,
    slot_of,
)
from scoremean.store.lanes import (
    ATTEMPT_SECONDS,
    BACKOFF_SECONDS,
    LATE_SECONDS,
    Counted,
    Lanes,
    Outcomes,
    Part,
    Query,
    VoidOf,
    conflict,
    unknown_id,
)

PREFIX = b"sm{}:"
MEAN, ID, TOTAL = PREFIX + b"m:", PREFIX + b"i:", PREFIX + b"scores"

ID_RETENTION_SECONDS = 168 * 3600
TIMEOUT_SECONDS = 5.0
TOTAL_SECONDS = 0.1
PAGE_UUIDS = 1024
SCAN_MAX_SLOTS = 1024

# What keeps answers: each with the value that it must have.
_CONFIG = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}

_NO_BATCH = "a batch that is all or nothing is not supported by a store on Redis Cluster; send it with ?on_error=skip"

_log = logging.getLogger(__name__)


class _Held(NamedTuple):
    """What a node has said that it holds; all zeros before it has."""

    uuids: int = 0
    ids: int = 0
    used_bytes: int = 0
    max_bytes: int = 0


class _Totals:
    """What is known of all UUIDs together.

    Attributes:
        added: scores that this process has counted, and not yet added to the total of all.
        timer: will add them.
        scores: the total of all, None where it has no key yet.
        seen: what each node holds.
    """

    def __init__(self) -> None:
        self.added = 0
        self.timer: asyncio.TimerHandle | None = None
        self.scores: int | None = None
        self.seen: dict[Address, _Held] = {}


class RedisStore(Store):
    """A Store in a Redis Cluster, for any number of processes at once.

    A batch is atomic per UUID and no more. So a Batch that is to be all or nothing is refused with NotSupported, and `scan`
    goes in the order of slots. Some outcomes of `submit` may be Unavailable, or a Future of an outcome that is late.

    Args:
        url: redis://[[user]:password@]host[:port],... with some nodes of the cluster; rediss:// for TLS.
        readonly: `submit` is refused.
        wait_replicas: how many replicas of a primary must have a change before it is answered, or a tally before it is read.
        timeout_seconds: for how long a change is tried that a primary does not take, before its outcome is unknown.
        id_retention_seconds: ids are kept at least this long.
        clock: the Unix time in seconds, by which ids expire.
        counts: where to count what it does; None for counts of its own.

    Raises:
        StoreError: no node answers, or they are no cluster that keeps what was answered; the message says why.
    """

    batches_max = 4
    reads_block = True
    ordered = False

    def __init__(  # pylint: disable=too-many-arguments  # each is a choice of the user's
        self,
        url: str,
        *,
        readonly: bool = False,
        wait_replicas: int = 1,
        timeout_seconds: float = TIMEOUT_SECONDS,
        id_retention_seconds: int = ID_RETENTION_SECONDS,
        clock: Callable[[], float] = time.time,
        counts: Counts | None = None,
    ):
        self._topology = Topology(parse_url(url))
        self.counts = counts or Counts()
        self._readonly = readonly
        self._options = {"wait_replicas": wait_replicas, "timeout_seconds": timeout_seconds}
        self._stamp = lambda: (int(clock()), id_retention_seconds)
        self._closed = False
        self._totals = _Totals()
        self._readers: dict[Address, Link] = {}
        self._claiming: asyncio.Task[None] | None = None  # the last batch with ids, behind which later ones wait
        self._scan_slots = 64
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="scoremean-store", daemon=True)
        self._thread.start()
        self._lanes: Lanes
        try:
            self._run(self._open())
        except BaseException:
            self.close()
            raise

    def __str__(self) -> str:
        """The URL without a password."""
        return str(self._topology.location)

    def submit(self, batch: Sequence[Change]) -> Future[list[Outcome]]:
        """Start to count `batch`, each UUID's part by itself; see Store.submit."""
        if self._closed:
            raise StoreError(f"the store {self} is closed")
        if self._readonly:
            raise StoreError(f"the store {self} is open for reading only")
        future: Future[list[Outcome]] = Future()
        future.set_running_or_notify_cancel()
        self._loop.call_soon_threadsafe(self._begin, batch, future)
        return future

    def commit(self, batch: Sequence[Change]) -> list[Outcome]:
        """Count `batch` and return its outcomes, once all of them are there."""
        return [one.result() if isinstance(one, Future) else one for one in self.submit(batch).result()]

    def get(self, uuids: Sequence[str]) -> list[Tally | None]:
        """Return the durable tally of each UUID, None for one without a score. Raises StoreUnavailable."""
        return self._run(self._get([require_uuid(uuid) for uuid in uuids]))

    def scan(self, after: str | None, limit: int) -> Page:
        """Return up to `limit` tallies in the order of slots, and within one in that of UUIDs. Raises StoreUnavailable."""
        return self._run(self._scan(after, limit))

    def tallies(self) -> Iterator[tuple[str, Tally]]:
        """Yield every UUID with its tally; each as it is when it is read."""
        after, more = None, True
        while more:
            page = self.scan(after, PAGE_UUIDS)
            yield from page.tallies
            after, more = page.after, page.after is not None

    def stats(self) -> Stats:
        """Return what the store holds. Other processes' scores of the last TOTAL_SECONDS may be missing."""
        return self._run(self._stats())

    def check(self) -> list[str]:
        """Read everything, key by key, and return a sentence for each damage found."""
        return self._run(self._check())

    def close(self) -> None:
        """Wait for what is under way, then let go of the cluster."""
        if self._closed:
            return
        self._closed = True
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        if self._closed:
            work.close()
            raise StoreError(f"the store {self} is closed")
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _open(self) -> None:
        self._lanes = Lanes(self._topology, stamp=self._stamp, report=self._report, **self._options)
        view = await self._topology.refresh()
        if view is None:
            raise StoreError(f"no node of {self} answers")
        if None in view.primaries:
            raise StoreError(f"the cluster {self} has no node for some slots")
        if not self._readonly:
            await self._require_durable()

    async def _require_durable(self) -> None:
        """Refuse a cluster that would lose what was answered; warn of what cannot be found out, or is missing now."""
        commands = [*(("CONFIG", "GET", name) for name in _CONFIG), (b"INFO", b"replication")]
        for address in sorted(set(self._topology.primaries)):
            node = f"{address[0]}:{address[1]}"
            try:
                *found, info = await self._ask_node(address, commands)
            except StoreUnavailable as error:
                _log.warning("its settings cannot be checked: %s", error)
                continue
            for (name, value), reply in zip(_CONFIG.items(), found):
                if isinstance(reply, ReplyError) or not reply:
                    _log.warning("%s does not tell its %s, which must be %s: %s", node, name, value, reply)
                elif reply[1].decode() != value:
                    raise StoreError(
                        f"{node} has {name} {reply[1].decode()}, and so may lose scores that were answered:"
                        f" set it to {value} on every node of the cluster"
                    )
            replicas = int(facts(info)["connected_slaves"])
            if replicas < (least := self._options["wait_replicas"]):
                _log.warning("%s has %d replicas, and takes no scores with fewer than %d", node, replicas, least)

    async def _close(self) -> None:
        await self._lanes.close()
        if self._totals.timer is not None:
            self._totals.timer.cancel()
        await self._add_total()
        for link in self._readers.values():
            link.close()
        self._topology.close()
        await asyncio.sleep(0)  # for the connections to end

    # Writing.

    def _begin(self, batch: Sequence[Change], future: Future[list[Outcome]]) -> None:
        """Put the changes of a batch into lanes, or ask for their ids first."""
        if not batch:
            future.set_result([])
            return

        def finish(all_: list[Any]) -> None:
            timer.cancel()
            future.set_result(all_)

        def look() -> None:
            nonlocal timer
            if self._lanes.late:
                outcomes.release()
            else:
                timer = self._loop.call_later(LATE_SECONDS, look)

        outcomes = Outcomes(len(batch), finish)
        timer = self._loop.call_later(LATE_SECONDS, look)
        if self._claiming is None and not any(map(_needs_claim, batch)):
            for change, part, place in _flat(batch, outcomes):
                self._apply(change, part, place)
        else:
            self._claiming = self._lanes.spawn(self._begin_in_turn(batch, outcomes, self._claiming))

    async def _begin_in_turn(
        self, batch: Sequence[Change], outcomes: Outcomes, before: asyncio.Task[None] | None
    ) -> None:
        """Ask what the ids of a batch belong to; then, behind the batch before it, put its changes into lanes."""
        changes = list(_flat(batch, outcomes))
        claims = [self._claim(change) for change, _, _ in changes]
        asked = [claim for claim in claims if claim is not None]
        await self._lanes.answered(asked, LATE_SECONDS)
        if before is not None:
            await asyncio.wait([before])
        for (change, part, place), claim in zip(changes, claims):
            if claim is None:
                self._apply(change, part, place)
            elif claim.reply is not ...:
                self._proceed(change, part, place, claim.reply)
            else:
                part.postpone(place)
                claim.then = partial(self._proceed, change, part, place)
        if self._claiming is asyncio.current_task():
            self._claiming = None

    def _claim(self, change: Change) -> Query | None:
        if not _needs_claim(change):
            return None
        key = ID + codec.pack_id(change.id)
        slot = slot_of(key)
        if isinstance(change, Void):
            return Query(slot, pack_command((b"GET", key)))
        return Query(slot, pack_command((b"SET", key, _owner(change), b"NX", b"GET", b"EX", 2 * self._stamp()[1])))

    def _proceed(self, change: Change, outcomes: Outcomes, place: int, reply: Any) -> None:
        """Count a change of which the id is known to belong to `reply`."""
        if isinstance(reply, ScoremeanError):
            outcomes.settle(place, reply)
        elif not isinstance(change, Void):
            if reply is None or reply == _owner(change):
                self._apply(change, outcomes, place)
            else:
                outcomes.settle(place, conflict(change.id))
        elif reply is None:
            outcomes.settle(place, unknown_id(change.id))
        else:
            uuid = reply.split(b" ", 2)[2].decode()
            self._apply(VoidOf(change.id, uuid), outcomes, place)  # pylint: disable=too-many-function-args

    def _apply(self, change: Change, outcomes: Outcomes, place: int) -> None:
        """Have a change counted of which all is known that must be."""
        key = MEAN + change.uuid.encode()
        self._lanes.put(change, key, slot_of(key), (outcomes, place))

    def _report(self, counted: Counted, scores: int, nanoseconds: int) -> None:
        """Add to the counts what a round has counted."""
        cells = self.counts.cells
        cells[SCORES] += counted.scores
        cells[REPLAYS] += counted.replays
        cells[VOIDS] += counted.voids
        totals = self._totals
        totals.added += counted.scores - counted.taken
        counted.scores = counted.taken = counted.replays = counted.voids = 0
        if scores:
            COMMIT_DURATION.observe(cells, nanoseconds)
            COMMIT_SCORES.observe(cells, scores)
        if totals.added and totals.timer is None:
            totals.timer = self._loop.call_later(TOTAL_SECONDS, lambda: self._lanes.spawn(self._add_total()))

    async def _add_total(self) -> None:
        """Add what this process has counted to the total of all. If its node does not answer, later or never."""
        self._totals.timer = None
        added, self._totals.added = self._totals.added, 0
        if not added:
            return
        try:
            [reply] = await self._ask_node(self._topology.primaries[slot_of(TOTAL)], [(b"INCRBY", TOTAL, added)])
        except StoreUnavailable as error:
            _log.info("the total of all scores may lack %d: %s", added, error)
            return
        if isinstance(reply, ReplyError):
            self._totals.added += added
            await self._topology.refresh()

    # Reading.

    async def _get(self, uuids: Sequence[str]) -> list[Tally | None]:
        keys = [MEAN + uuid.encode() for uuid in uuids]
        pairs = await self._ask([(slot_of(key), (b"HMGET", key, b"s", b"c")) for key in keys])
        return [Tally(int(total), int(count)) if count else None for total, count in pairs]

    async def _scan(self, after: str | None, limit: int) -> Page:
        first = slot = 0 if after is None else slot_of(MEAN + after.encode())
        found: list[tuple[str, Tally]] = []
        while slot < SLOTS and len(found) <= limit:
            end = min(slot + self._scan_slots, SLOTS)
            names = await self._names(range(slot, end))
            if slot == first and after is not None:
                names = [name for name in names if slot_of(MEAN + name.encode()) != first or name > after]
            for start in range(0, len(names), limit + 1):
                some = names[start : start + limit + 1]
                found += [(name, tally) for name, tally in zip(some, await self._get(some)) if tally is not None]
                if len(found) > limit:
                    break
            if len(names) > 2 * limit:
                self._scan_slots = max(self._scan_slots // 2, 1)
            elif len(names) < limit:
                self._scan_slots = min(self._scan_slots * 2, SCAN_MAX_SLOTS)
            slot = end
        return Page(found[:limit], (found[limit - 1][0] if limit else after) if len(found) > limit else None)

    async def _names(self, slots: range) -> list[str]:
        """Return the UUIDs that have a key in these slots, in the order of slots and, in each, of UUIDs."""
        deadline = self._loop.time() + self._options["timeout_seconds"]
        while True:
            try:
                return await self._names_once(slots)
            except StoreUnavailable:
                if self._loop.time() > deadline:
                    raise
            await self._topology.refresh()
            await asyncio.sleep(BACKOFF_SECONDS)

    async def _names_once(self, slots: range) -> list[str]:
        by_node = itertools.groupby(slots, lambda slot: self._topology.primaries[slot])
        names: list[str] = []
        for address, run in by_node:
            some = list(run)
            *keys, nodes = await self._ask_node(address, [*map(_keys_of, some), (b"CLUSTER", b"NODES")])
            node = Myself(nodes.decode())
            if not node.slots.issuperset(some):
                raise StoreUnavailable("the slots of the cluster are moving; try again")
            for slot, found in zip(some, keys):
                # What is moving is at one of two nodes; asked in this order, no key is missed.
                if (other := node.moving.get(slot)) is not None:
                    found += (await self._ask_node(other, [_keys_of(slot)]))[0]
                names += sorted({key[len(MEAN) :].decode() for key in found if key.startswith(MEAN)})
        return names

    async def _stats(self) -> Stats:
        """Return what the nodes hold; of one that does not answer, what it held when it last did."""
        await self._add_total()
        primaries = [address for address in dict.fromkeys(self._topology.primaries) if address is not None]
        await asyncio.gather(self._look_at_total(), *map(self._look_at, primaries))
        held = [self._totals.seen.get(one, _Held()) for one in primaries]
        uuids, ids, used, size_max = map(sum, zip(*held))
        scores = self._totals.scores
        return Stats(uuids - (scores is not None), scores or 0, ids, used, size_max)

    async def _look_at_total(self) -> None:
        with suppress(StoreUnavailable):
            primary = self._topology.primaries[slot_of(TOTAL)]
            [total] = await self._ask_node(primary, [(b"GET", TOTAL)], ATTEMPT_SECONDS)
            if isinstance(total, ReplyError):  # it has moved
                [total] = await self._ask([(slot_of(TOTAL), (b"GET", TOTAL))])
            self._totals.scores = total and int(total)

    async def _look_at(self, address: Address) -> None:
        with suppress(StoreUnavailable):
            [info] = await self._ask_node(address, [(b"INFO", b"keyspace", b"memory")], ATTEMPT_SECONDS)
            found = facts(info)
            keys = dict(one.split("=") for one in found.get("db0", "keys=0,expires=0").split(","))
            # Of all keys, those that expire are claims, and UUIDs of which all scores were voided.
            expires = int(keys["expires"])
            used, size_max = int(found["used_memory"]), int(found["maxmemory"])
            self._totals.seen[address] = _Held(int(keys["keys"]) - expires, expires, used, size_max)

    async def _check(self) -> list[str]:
        damages: list[str] = []
        for start in range(0, SLOTS, SCAN_MAX_SLOTS):
            names = await self._names(range(start, min(start + SCAN_MAX_SLOTS, SLOTS)))
            for first in range(0, len(names), PAGE_UUIDS):
                some = names[first : first + PAGE_UUIDS]
                keys = [MEAN + name.encode() for name in some]
                hashes = await self._ask([(slot_of(key), (b"HGETALL", key)) for key in keys])
                for name, flat in zip(some, hashes):
                    damages += _damages(name, dict(zip(flat[::2], flat[1::2])))
        return damages

    async def _ask(self, commands: Sequence[tuple[int, tuple[bytes | int, ...]]]) -> list[Any]:
        """Return the reply to each command, of a key in the slot with it, once what it tells is durable.

        Raises:
            StoreUnavailable: a node does not answer.
        """
        queries = [Query(slot, pack_command(arguments)) for slot, arguments in commands]
        await self._lanes.answered(queries)
        for query in queries:
            if isinstance(query.reply, ScoremeanError):
                raise StoreUnavailable("a node of the cluster does not answer in time; try again")
        return [query.reply for query in queries]

    async def _ask_node(
        self, address: Address | None, commands: Sequence[tuple[bytes | int, ...]], timeout_seconds: float = TIMEOUT_SECONDS
    ) -> list[Any]:
        """Return the replies of one node, once. Raises StoreUnavailable; whether they were carried out is unknown then."""
        if address is None:
            raise StoreUnavailable("no node has some slots of the cluster; try again")
        link = self._readers.setdefault(address, Link(self._topology.location, address))
        try:
            async with asyncio.timeout(timeout_seconds):
                return await link.exchange(b"".join(map(pack_command, commands)), len(commands))
        except BROKEN as error:
            link.close()
            raise StoreUnavailable(f"{address[0]}:{address[1]} does not answer ({error!r}); try again") from error


def _needs_claim(change: Change) -> bool:
    """Return whether an id must be looked up before a change can be counted."""
    kind = change.__class__
    if kind is Batch:
        return any(score.id is not None for score in change.scores)
    return kind is not Forget and change.id is not None


def _flat(changes: Sequence[Change], outcomes: Outcomes) -> Iterator[tuple[Change, Outcomes, int]]:
    """Yield each change, those of a Batch too, with where its outcome goes. A Batch that cannot be is refused here."""
    for place, change in enumerate(changes):
        if change.__class__ is not Batch:
            yield change, outcomes, place
        elif not change.skip:
            outcomes.settle(place, NotSupported(_NO_BATCH))
        elif not change.scores:
            outcomes.settle(place, [])
        else:
            part = Part(len(change.scores), outcomes, place)
            yield from ((score, part, part_place) for part_place, score in enumerate(change.scores))


def _owner(change: Score | Add) -> bytes:
    """Return what the claim of an id says."""
    tally = change.tally if isinstance(change, Add) else Tally(change.score, 1)
    return f"{tally.sum} {tally.count} {change.uuid}".encode()


def _keys_of(slot: int) -> tuple[bytes | int, ...]:
    return b"CLUSTER", b"GETKEYSINSLOT", slot, (1 << 31) - 1


def _damages(uuid: str, fields: dict[bytes, bytes]) -> Iterator[str]:
    """Yield a sentence for each damage in the hash of a UUID."""
    try:
        require_uuid(uuid)
        tally = Tally(int(fields.pop(b"s", b"0")), int(fields.pop(b"c", b"0")))
        epoch = int(fields.pop(b"e", b"0"))
        fields.pop(b"t", None)
        if tally != Tally(0, 0):
            Add(uuid, tally)
        for key, value in fields.items():
            total, count, first_total, first_count, counted_in, voided, _ = map(int, value.split())
            added = Add(uuid, Tally(total, count)).tally
            if (before := Tally(first_total, first_count) - added) != Tally(0, 0):
                Add(uuid, before)
            if len(key) != 16 or counted_in > epoch or voided not in (0, 1):
                yield f"the UUID {uuid!r}, id {key.hex()}: {value!r} was not written by scoremean"
            elif not voided and counted_in == epoch and tally.count < count:
                yield f"the UUID {uuid!r}, id {key.hex()}: {added} was added, and the tally is {tally}"
    except (ValueError, InvalidScore) as error:
        yield f"the UUID {uuid!r}: {error}"
