"""What the cluster store has under way: the outcomes of its batches, and a lane of commands for each primary.

    changes ──> calls by UUID ──> a lane for each primary: [queries, calls, WAIT] ──> outcomes
                                  while rounds are under way, the next one gathers

It alone knows what is sent again. That may be anything: after a lost connection, to another node, or because too few replicas
have it. So each call of the script has a number, and the hash of a UUID knows the last one of each process. There is never more
than one call under way for a UUID, so one is enough.

WAIT comes after the commands on the same connection, and covers all that the node has written until then. A round whose WAIT
falls short is sent again: the answer to a call that is known, with WAIT behind it, says that it is durable.

A lane that fails holds up no other. What is in it is tried for timeout_seconds, wherever its slot is by then, and has its
outcome by itself.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import Future
from hashlib import sha1
from importlib.resources import files
from operator import attrgetter
from typing import Any

from scoremean import codec
from scoremean.errors import (
    IdConflict,
    IdVoided,
    OutcomeUnknown,
    ScoremeanError,
    StoreFull,
    StoreUnavailable,
    UnknownId,
    UnknownUUID,
)
from scoremean.model import Add, Forget, Replay, Score, Tally, Void, Voided
from scoremean.store.base import Outcome, is_failure
from scoremean.store.cluster import ASKING, BROKEN, Address, Link, ReplyError, Topology, pack_command, target

# How long a batch waits for what is slow in it, before its other outcomes are handed out.
LATE_SECONDS = 0.25
ATTEMPT_SECONDS = 1.0
WAIT_MS = 500
BACKOFF_SECONDS = 0.05
ROUND_MAX_COMMANDS = 1024
LATE_MAX_COMMANDS = 4096
LANE_CONNECTIONS = 2

SCRIPT = files(__package__).joinpath("apply.lua").read_bytes()
_EVALSHA = b"EVALSHA", sha1(SCRIPT).hexdigest().encode(), 1

# Errors of a node that will pass, or after which another node has the slot.
_PASSING = set("CLUSTERDOWN TRYAGAIN LOADING MASTERDOWN READONLY NOREPLICAS NOSCRIPT MISCONF BUSY UNBLOCKED".split())

FULL = "too much waits for a node of the cluster that does not answer; nothing was counted, send it again later"

_log = logging.getLogger(__name__)


class Outcomes:
    """The outcomes of a batch, as they come in.

    Args:
        size: how many there are.
        finish: called with them all. One that was postponed is a Future.
    """

    def __init__(self, size: int, finish: Callable[[list[Any]], None]):
        self._list: list[Any] = [None] * size
        self._left = size
        self._late: dict[int, Future[Any]] = {}
        self._finish = finish

    def settle(self, place: int, outcome: Any) -> None:
        """Take the outcome in this place; the first one stands."""
        if self._list[place] is None:
            self._list[place] = outcome
            self._left -= 1
            if not self._left:
                self._finish(self._list)
        elif (late := self._late.pop(place, None)) is not None:
            late.set_result(outcome)

    def postpone(self, place: int) -> None:
        """Wait no more for this place, unless its outcome is there."""
        if self._list[place] is not None:
            return
        late: Future[Any] = Future()
        late.set_running_or_notify_cancel()
        self.settle(place, late)
        self._late[place] = late

    def release(self) -> None:
        """Wait for no place any more."""
        for place in range(len(self._list)):
            self.postpone(place)


class Part(Outcomes):
    """The outcomes of the scores of a Batch, which together are one outcome of another batch.

    When that of one score is unknown, that of the Batch is: with the same ids it can be sent again.
    """

    def __init__(self, size: int, whole: Outcomes, place: int):
        super().__init__(size, lambda outcomes: whole.settle(place, next(filter(is_failure, outcomes), outcomes)))
        self._postpone = lambda: whole.postpone(place)

    def postpone(self, place: int) -> None:
        """Wait no more for the whole part."""
        self._postpone()


# Where an outcome goes: to a place of these outcomes.
Place = tuple[Outcomes, int]


class Command:
    """What is sent to the primary of a slot, again and again until it is settled or has failed.

    Attributes:
        packed: its bytes.
        deadline: when to give up, on the loop's clock; 0 before it was sent first.
        asking: it goes to the node that a slot is moving to.
    """

    scores = 0

    def __init__(self, slot: int):
        self.slot = slot
        self.packed = b""
        self.deadline = 0.0
        self.asking = False

    def pack(self, process: bytes, number: int, now: int, keep: int) -> None:
        """Make its bytes, unless it has them from the start."""

    def settle(self, reply: Any) -> None:
        """Take the reply, which is durable."""
        raise NotImplementedError

    def fail(self, error: ScoremeanError) -> None:
        """Take the error: nothing was counted, or that is unknown."""
        raise NotImplementedError


class Query(Command):
    """A command of which the same, sent again, is as good: it reads, or claims an id.

    Attributes:
        reply: the durable reply, or the error; Ellipsis before it is there.
        then: called with it.
    """

    def __init__(self, slot: int, packed: bytes):
        super().__init__(slot)
        self.packed = packed
        self.reply: Any = ...
        self.then: Callable[[Any], None] | None = None

    def settle(self, reply: Any) -> None:
        self.reply = reply
        if self.then is not None:
            self.then(reply)

    fail = settle


class Counted:
    """What calls have counted since it was last looked at: scores added and taken away, replays, voids."""

    def __init__(self) -> None:
        self.scores = self.taken = self.replays = self.voids = 0


class _Sum:
    """Scores and tallies without ids that follow each other: one change for the script."""

    def __init__(self) -> None:
        self._tally = [0, 0]
        self._takers: list[tuple[Place, int, int]] = []

    def add(self, place: Place, total: int, count: int) -> None:
        """Take in one."""
        self._tally[0] += total
        self._tally[1] += count
        self._takers.append((place, total, count))

    def arguments(self) -> tuple[bytes | int, ...]:
        """Return what the script takes."""
        return b"a", *self._tally

    def settle(self, answer: bytes, counted: Counted) -> None:
        """Give each its tally."""
        total, count = map(int, answer.split())
        counted.scores += self._tally[1]
        total, count = total - self._tally[0], count - self._tally[1]
        for (outcomes, place), added, scores in self._takers:
            total += added
            count += scores
            outcomes.settle(place, Tally(total, count))

    def fail(self, error: ScoremeanError) -> None:
        """Give each the error."""
        for (outcomes, place), _, _ in self._takers:
            outcomes.settle(place, error)


class _One:
    """A change of a kind that is counted by itself."""

    def __init__(self, change: Add | Void | Forget, place: Place):
        self._change = change
        self._outcomes, self._place = place

    def arguments(self) -> tuple[bytes | int, ...]:
        """Return what the script takes."""
        change = self._change
        if isinstance(change, Forget):
            return (b"f",)
        key = codec.pack_id(change.id or "")
        return (b"v", key) if isinstance(change, Void) else (b"i", key, change.tally.sum, change.tally.count)

    def settle(self, answer: bytes, counted: Counted) -> None:
        """Give it its outcome."""
        kind = {Add: self._added, VoidOf: self._voided, Forget: self._forgotten}[self._change.__class__]
        self._outcomes.settle(self._place, kind(answer.split(), counted))

    def fail(self, error: ScoremeanError) -> None:
        """Give it the error."""
        self._outcomes.settle(self._place, error)

    def _added(self, words: list[bytes], counted: Counted) -> Outcome:
        if words == [b"c"]:
            return conflict(self._change.id)
        if words == [b"x"]:
            return IdVoided(f"the score with the id {self._change.id} was voided; post a new score with a new id")
        if words[0] == b"r":
            counted.replays += 1
            return Replay(int(words[1]), int(words[2]))
        counted.scores += self._change.tally.count
        return Tally(int(words[0]), int(words[1]))

    def _voided(self, words: list[bytes], counted: Counted) -> Outcome:
        if words == [b"u"]:
            return unknown_id(self._change.id)
        counted.taken += int(words[3])
        counted.voids += words[3] != b"0"
        return Voided(self._change.uuid, Tally(int(words[1]), int(words[2])))

    def _forgotten(self, words: list[bytes], counted: Counted) -> Outcome:
        if words == [b"u"]:
            return UnknownUUID(f"no score was counted for the UUID {self._change.uuid}")
        counted.taken += int(words[1])
        return Tally(int(words[0]), int(words[1]))


class VoidOf(Void, frozen=True, gc=False):
    """A Void whose id is known to be of this UUID."""

    uuid: str


class Call(Command):
    """One call of the script: all that a round has for one UUID."""

    def __init__(self, uuid: str, key: bytes, slot: int, counted: Counted):
        super().__init__(slot)
        self.uuid = uuid
        self._key = key
        self._counted = counted
        self.changes: list[_Sum | _One] = []
        self.awaited_by: list[Lane] = []

    def add(self, change: Score | Add | Void | Forget, place: Place) -> None:
        """Take in a change."""
        self.scores += 1
        kind = change.__class__
        if kind is VoidOf or kind is Forget:
            self.changes.append(_One(change, place))
        elif change.id is not None:
            self.changes.append(_One(change if kind is Add else _as_add(change), place))
        elif kind is Add:
            self._sum().add(place, change.tally.sum, change.tally.count)
        else:
            self._sum().add(place, change.score, 1)

    def _sum(self) -> _Sum:
        if not self.changes or self.changes[-1].__class__ is not _Sum:
            self.changes.append(_Sum())
        return self.changes[-1]

    def pack(self, process: bytes, number: int, now: int, keep: int) -> None:
        changes = self.changes
        arguments = changes[0].arguments() if len(changes) == 1 else itertools.chain(*(one.arguments() for one in changes))
        self.packed = pack_command((*_EVALSHA, self._key, process, number, now, keep, *arguments))

    def settle(self, reply: bytes) -> None:
        if reply == b"late":
            self.fail(OutcomeUnknown("a later call has overtaken this one: outcome unknown, retry with the same id"))
            return
        for change, answer in zip(self.changes, reply.split(b";"), strict=True):
            change.settle(answer, self._counted)

    def fail(self, error: ScoremeanError) -> None:
        for change in self.changes:
            change.fail(error)


class Lane:
    """What waits for one primary, and the connections to it: a round on each may be under way.

    Attributes:
        queries, calls: what was not sent yet; calls by their UUID.
        again: what was sent, and has no durable answer.
        late: it does not answer, or not with enough replicas: nobody should wait for it.
        asking: a round with queries is under way. There is one at a time, so that they stay in order.
        free: the connections on which no round is under way.
        woken: one of them is about to be used.
    """

    def __init__(self, address: Address | None, links: Sequence[Link]):
        self.address = address
        self.links = links
        self.free = list(links)
        self.woken = False
        self.asking = False
        self.queries: list[Query] = []
        self.calls: dict[str, Call] = {}
        self.again: list[Command] = []
        self.late = False

    def delay(self) -> None:
        """Say that a round takes long."""
        self.late = True

    @property
    def full(self) -> bool:
        """Whether it must not have more while it is late."""
        return self.late and len(self.queries) + len(self.calls) + len(self.again) >= LATE_MAX_COMMANDS


class Lanes:
    """The lanes to all primaries. It lives on one event loop.

    Args:
        topology: which node has which slot.
        wait_replicas: how many replicas must have what is answered.
        timeout_seconds: for how long a command is tried.
        stamp: returns the Unix time, and for how long ids are kept, in seconds.
        report: called after each round with what was counted, the scores in it, and how many nanoseconds it took.

    Attributes:
        counted: what was counted and not yet reported.
    """

    def __init__(  # pylint: disable=too-many-arguments
        self,
        topology: Topology,
        *,
        wait_replicas: int,
        timeout_seconds: float,
        stamp: Callable[[], tuple[int, int]],
        report: Callable[[Counted, int, int], None],
    ):
        self._topology = topology
        self._wait_replicas = wait_replicas
        self._timeout_seconds = timeout_seconds
        self._stamp = stamp
        self._report = report
        self._barrier = pack_command((b"WAIT", wait_replicas, WAIT_MS)) if wait_replicas else pack_command((b"PING",))
        self._process = os.urandom(6)
        self._numbers = itertools.count(1)
        self._lanes: dict[Address | None, Lane] = {}
        self._flying: dict[str, Call] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self.counted = Counted()

    @property
    def late(self) -> bool:
        """Whether a lane is."""
        return any(lane.late for lane in self._lanes.values())

    async def close(self) -> None:
        """Wait for what is under way, then close all connections."""
        while self._tasks:
            await asyncio.wait(list(self._tasks))
        for lane in self._lanes.values():
            for link in lane.links:
                link.close()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start `work`, for which `close` waits."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def put(self, change: Score | Add | VoidOf | Forget, key: bytes, slot: int, place: Place) -> None:
        """Put a change of the UUID with this key into its lane."""
        lane = self.lane(slot)
        outcomes, index = place
        if lane.late:
            if lane.full:
                outcomes.settle(index, StoreUnavailable(FULL))
                return
            outcomes.postpone(index)
        if (call := lane.calls.get(change.uuid)) is None:
            call = lane.calls[change.uuid] = Call(change.uuid, key, slot, self.counted)
            if not lane.woken:
                self.wake(lane)
        call.add(change, place)

    async def answered(self, queries: Sequence[Query], timeout_seconds: float | None = None) -> None:
        """Put queries into lanes and return when all have their reply.

        With a timeout it returns after that at the latest, and does not wait for those in a lane that is late.
        """
        all_there: asyncio.Future[None] = self._loop.create_future()
        left = 0

        def count(_: Any) -> None:
            nonlocal left
            left -= 1
            if not left and not all_there.done():
                all_there.set_result(None)

        for query in queries:
            lane = self.lane(query.slot)
            if lane.full:
                query.settle(StoreUnavailable(FULL))
                continue
            lane.queries.append(query)
            if timeout_seconds is None or not lane.late:
                left += 1
                query.then = count
            self.wake(lane)
        if left:
            await asyncio.wait([all_there], timeout=timeout_seconds)
        for query in queries:
            query.then = None

    def lane(self, slot: int) -> Lane:
        """Return the lane of the primary that has this slot."""
        return self._lanes.get(address := self._topology.primaries[slot]) or self._lane_at(address)

    def _lane_at(self, address: Address | None) -> Lane:
        if address not in self._lanes:
            # Whoever is promoted may not have it.
            prepare = pack_command((b"SCRIPT", b"LOAD", SCRIPT)), 1
            links = [Link(self._topology.location, address, prepare) for _ in range(LANE_CONNECTIONS)]
            self._lanes[address] = Lane(address, links)
        return self._lanes[address]

    def wake(self, lane: Lane) -> None:
        """Have what waits in a lane sent, if a connection is free."""
        if lane.free and not lane.woken:
            lane.woken = True
            self.spawn(self._work(lane, lane.free.pop()))

    async def _work(self, lane: Lane, link: Link) -> None:
        """Send rounds on one connection until the lane is empty."""
        lane.woken = False
        try:
            while commands := self._take(lane):
                asks = not lane.asking and any(one.__class__ is Query for one in commands)
                lane.asking = lane.asking or asks
                try:
                    await self._round(lane, link, commands)
                except Exception:  # pylint: disable=broad-exception-caught  # none may hang, whatever a node answers
                    _log.exception("%s: a round failed", lane.address)
                    for command in commands:
                        self._give_up(command, "a node answered what is not understood")
                finally:
                    lane.asking = lane.asking and not asks
        finally:
            lane.free.append(link)

    def _take(self, lane: Lane) -> list[Command]:
        """Return what is to be sent next. A call waits while another one for its UUID is under way."""
        commands, lane.again = lane.again, []
        room = ROUND_MAX_COMMANDS - len(commands)
        if not lane.asking:
            commands += lane.queries[:room]
            del lane.queries[:room]
        room = ROUND_MAX_COMMANDS - len(commands)
        calls = []
        for call in itertools.islice(lane.calls.values(), max(room, 0)):
            if (flying := self._flying.get(call.uuid)) is None:
                calls.append(call)
            else:
                flying.awaited_by.append(lane)
        for call in calls:
            del lane.calls[call.uuid]
            self._flying[call.uuid] = call
        commands += calls
        deadline = self._loop.time() + self._timeout_seconds
        for command in commands:
            command.deadline = command.deadline or deadline
        return commands

    async def _round(self, lane: Lane, link: Link, commands: list[Command]) -> None:
        """Send `commands` and settle those that are durable; put the others where they are to be sent again."""
        started = time.perf_counter_ns()
        try:
            replies = await self._exchange(lane, link, commands)
        except BROKEN as error:
            link.close()
            await self._again(lane, commands, repr(error))
            return
        trouble = self._short_of(replies.pop())
        failed: list[Command] = []
        for command, reply in zip(commands, replies, strict=True):
            if isinstance(reply, ReplyError):
                trouble = self._refused(lane, link, command, str(reply), failed) or trouble
            elif trouble:
                failed.append(command)
            else:
                self._settle(command, reply)
        self._report(self.counted, sum(map(_scores_of, commands)), time.perf_counter_ns() - started)
        if failed:
            await self._again(lane, failed, trouble)
        if not trouble:
            lane.late = False

    async def _exchange(self, lane: Lane, link: Link, commands: list[Command]) -> list[Any]:
        """Return the reply to each command, and that to WAIT. Raises one of BROKEN."""
        now, keep = self._stamp()
        for command in commands:
            if not command.packed:
                command.pack(self._process, next(self._numbers), now, keep)
        asked = [one.asking for one in commands]
        packed = b"".join([ASKING + one.packed if one.asking else one.packed for one in commands])
        timer = self._loop.call_later(LATE_SECONDS, lane.delay)
        try:
            async with asyncio.timeout(ATTEMPT_SECONDS):
                replies = await link.exchange(packed + self._barrier, len(commands) + sum(asked) + 1)
        finally:
            timer.cancel()
        if any(asked):  # the replies to ASKING go
            kept = list(itertools.chain.from_iterable((False, True) if asking else (True,) for asking in asked))
            replies = list(itertools.compress(replies, [*kept, True]))
        return replies

    def _short_of(self, barrier: Any) -> str:
        """Return what is wrong with the answer to WAIT, if anything is."""
        if isinstance(barrier, ReplyError):
            return str(barrier)
        if self._wait_replicas and barrier < self._wait_replicas:
            return f"{barrier} of {self._wait_replicas} replicas have it"
        return ""

    def _refused(self, lane: Lane, link: Link, command: Command, text: str, failed: list[Command]) -> str:
        """Deal with an error that a node answers; return it if it says that the node is in trouble."""
        kind = text.split(" ", 1)[0]
        command.asking = False
        if kind == "MOVED":
            self._topology.move(command.slot, text, lane.address)
            self._send_again(command, self.lane(command.slot), text)
        elif kind == "ASK":
            command.asking = True
            self._send_again(command, self._lane_at(target(text, lane.address)), text)
        elif kind == "OOM":
            self._land(command)
            command.fail(StoreFull("a node of the cluster has reached its maxmemory; nothing was counted"))
        elif kind in _PASSING:
            failed.append(command)
            if kind == "NOSCRIPT":
                link.close()  # a new connection loads it
            return text
        else:
            _log.error("%s:%d says: %s", *lane.address, text)
            self._give_up(command, text)
        return ""

    async def _again(self, lane: Lane, commands: Iterable[Command], trouble: str) -> None:
        """Look where what was not done is to be sent now, and give up what was tried for too long."""
        lane.late = True
        _log.info("%s: %s; trying again", lane.address, trouble)
        before = self._topology.primaries
        await self._topology.refresh()
        for command in commands:
            command.asking = False
            self._send_again(command, self.lane(command.slot), trouble)
        if self._topology.primaries is not before:
            self._move_waiting(lane)
        if lane.again:
            await asyncio.sleep(BACKOFF_SECONDS)

    def _move_waiting(self, lane: Lane) -> None:
        """Move what was not sent yet to the lanes where it belongs now."""
        claims, lane.queries = lane.queries, []
        calls, lane.calls = lane.calls, {}
        for claim in claims:
            to = self.lane(claim.slot)
            to.queries.append(claim)
            self.wake(to)
        for call in calls.values():
            to = self.lane(call.slot)
            if (other := to.calls.get(call.uuid)) is not None:
                call.changes += other.changes
            to.calls[call.uuid] = call
            self.wake(to)

    def _send_again(self, command: Command, lane: Lane, trouble: str) -> None:
        """Put a command into a lane once more, unless it was tried for too long."""
        if self._loop.time() > command.deadline:
            self._give_up(command, trouble)
        else:
            lane.again.append(command)
            self.wake(lane)

    def _settle(self, command: Command, reply: Any) -> None:
        self._land(command)
        command.settle(reply)

    def _give_up(self, command: Command, trouble: str) -> None:
        self._land(command)
        sentence = f"the cluster did not confirm it in time ({trouble}): outcome unknown, retry with the same id"
        command.fail(OutcomeUnknown(sentence))

    def _land(self, command: Command) -> None:
        """Let the next call for its UUID be sent."""
        if command.__class__ is Call and self._flying.pop(command.uuid, None) is not None:
            for lane in command.awaited_by:  # when its slot has moved, not only where it is now
                self.wake(lane)
            lane = self.lane(command.slot)
            if command.uuid in lane.calls:
                self.wake(lane)


_scores_of = attrgetter("scores")


def _as_add(score: Score) -> Add:
    return Add(score.uuid, Tally(score.score, 1), score.id)


def conflict(name: str | None) -> IdConflict:
    """Return the refusal of an id that belongs to something else."""
    return IdConflict(f"the id {name} was used before, for another UUID or score; give each score an id of its own")


def unknown_id(name: str | None) -> UnknownId:
    """Return the refusal of an id that belongs to nothing."""
    return UnknownId(f"no score carried the id {name}, or it has expired or was forgotten")
