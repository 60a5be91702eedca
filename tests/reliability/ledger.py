"""What clients know of a store: what they were told is counted, and which requests got no answer and may be.

A score is random out of a million, so that the sum of a UUID's tally tells which requests it holds: two different sets of the
few requests without an answer have the same sum and count about once in a million.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from tests.reliability import wire
from tests.reliability.wire import Answer, Connection, Cut

SCORE_MAX = 1_000_000
FLAGS = ("--score-max", str(SCORE_MAX))
BATCH_SCORES = 8
LASTING_UUIDS = 48
OPEN_MAX_WITHOUT_IDS = 64

Pair = tuple[int, int]


@dataclass(eq=False, slots=True)
class Request:
    """One request that changes the store.

    Attributes:
        data: its bytes.
        changes: what it adds to the tally of each UUID.
        ids: the ids of its scores, or of the void of a score, none if they have none; of a void the id that it voids. What has
            ids can be sent again.
        new_ids: how many more ids the store has once it is counted; a UUID that was merged is one.
    """

    data: bytes
    changes: dict[str, Pair]
    ids: list[str]
    new_ids: int = 0

    @property
    def scores(self) -> int:
        """How many scores it posts."""
        return max(0, sum(count for _, count in self.changes.values()))


class Ledger:
    """Makes requests at random and keeps what is known of each.

    Args:
        skip: post batches with `on_error=skip`, for a store that has none which are all or nothing.

    Attributes:
        known: the tally of each UUID, as acknowledged or found.
        open: requests that were sent and not answered.
        scores: how many scores were acknowledged.
        ids: how many ids the store must have.
    """

    def __init__(self, chance: random.Random, *, skip: bool = False):
        self._chance = chance
        self._batches = "/scores?on_error=skip" if skip else "/scores"
        self._names = 0
        self._kept: deque[tuple[Request, bytes]] = deque(maxlen=300)
        self.known: defaultdict[str, Pair] = defaultdict(lambda: (0, 0))
        self.open: dict[Request, None] = {}
        self.scores = 0
        self.ids = 0

    def next(self) -> Request:
        """Return a new request: one score, a batch of BATCH_SCORES, a void or a merge; half of the scores have ids."""
        roll = self._chance.random()
        if roll < 0.05 and (mended := self._merge() if roll < 0.01 else self._void(by_value=roll < 0.03)):
            request = mended
        else:
            request = self._posts(1 if roll < 0.75 else BATCH_SCORES)
        self.open[request] = None
        return request

    def _posts(self, count: int) -> Request:
        # Without an answer, those without ids cannot be sent again; `explain` tries each choice of them, so there are few.
        with_ids = self._chance.random() < 0.5 or len(self.open) > OPEN_MAX_WITHOUT_IDS
        names = [self._name("id") if with_ids else None for _ in range(count)]
        uuids = [self._uuid() for _ in range(count)]
        scores = [self._chance.randrange(SCORE_MAX) for _ in range(count)]
        items = list(map(wire.members, uuids, scores, names))
        changes: dict[str, Pair] = {}
        for uuid, score in zip(uuids, scores):
            changes[uuid] = added(changes.get(uuid, (0, 0)), (score, 1))
        data = wire.post(items, self._batches) if count > 1 else wire.post(items[0])
        ids = [name for name in names if name]
        return Request(data, changes, ids, len(ids))

    def score(self, uuid: str) -> Request:
        """Return a new request with one score of `uuid`, without an id."""
        score = self._chance.randrange(SCORE_MAX)
        request = Request(wire.post(wire.members(uuid, score)), {uuid: (score, 1)}, [])
        self.open[request] = None
        return request

    def _void(self, by_value: bool) -> Request | None:
        """Return the void of a single score that is known to be counted, if there is one."""
        if (request := self._single("")) is None:
            return None
        [(uuid, (score, _))] = request.changes.items()
        if by_value:
            name = self._name("void")
            return Request(wire.post(wire.members(uuid, score, name), "/voids"), {uuid: (-score, -1)}, [name], 1)
        return Request(wire.request("DELETE", f"/scores/{request.ids[0]}"), {uuid: (-score, -1)}, request.ids)

    def _merge(self) -> Request | None:
        """Return the merge of a UUID that is known to have one score, and gets no other, if there is one."""
        if (request := self._single("uuid-")) is None:
            return None
        [(uuid, pair)] = request.changes.items()
        into = f"lasting-{self._chance.randrange(LASTING_UUIDS)}"
        data = wire.post({"into": into}, f"/means/{uuid}/merge")
        return Request(data, {uuid: (-pair[0], -1), into: pair}, [], 1)

    def _single(self, start: str) -> Request | None:
        """Return a single score of a UUID that starts so and is known to be counted; it is not sent again afterwards."""
        for index, (request, _) in enumerate(self._kept):
            if len(request.ids) == request.scores == 1 and next(iter(request.changes)).startswith(start):
                del self._kept[index]
                return request
        return None

    def _uuid(self) -> str:
        if self._chance.random() < 0.01:
            return self._name("uuid")
        return f"lasting-{self._chance.randrange(LASTING_UUIDS)}"

    def _name(self, kind: str) -> str:
        self._names += 1
        return f"{kind}-{self._names}"

    def acknowledge(self, request: Request, answer: Answer) -> None:
        """Take in that `request` was answered 200."""
        del self.open[request]
        self.add(request.changes)
        self.scores += request.scores
        self.ids += request.new_ids
        if request.ids and request.new_ids:
            self._kept.append((request, answer.body))

    def add(self, changes: Mapping[str, Pair]) -> None:
        """Take in that these changes are counted."""
        for uuid, pair in changes.items():
            self.known[uuid] = added(self.known[uuid], pair)

    def kept(self, count: int) -> list[tuple[Request, bytes]]:
        """Return acknowledged requests with ids, and the first answer of each: the newest and some older ones."""
        newest = list(self._kept)[-count:]
        return newest + self._chance.sample(list(self._kept), min(count, len(self._kept)))


def added(one: Pair, other: Pair) -> Pair:
    """Return the sum of two tallies."""
    return one[0] + other[0], one[1] + other[1]


def explain(ledger: Ledger, stored: Mapping[str, Pair], may: Iterable[Request]) -> tuple[Counter[str], dict[Request, set[str]]]:
    """Compare a store with what is known.

    Args:
        may: requests that may be counted, each once or not at all.

    Returns:
        By how many scores each UUID is off that no choice of them explains; and which of them are counted, with the UUIDs where
        they are. A UUID that two choices explain is left out of the latter.
    """
    by_uuid: defaultdict[str, list[Request]] = defaultdict(list)
    for request in may:
        for uuid in request.changes:
            by_uuid[uuid].append(request)
    off: Counter[str] = Counter()
    counted: dict[Request, set[str]] = defaultdict(set)
    for uuid, pair in stored.items():
        known = ledger.known[uuid]
        sets = _sums(uuid, by_uuid[uuid])
        difference = pair[0] - known[0], pair[1] - known[1]
        if difference not in sets:
            off[uuid] = difference[1] or -1  # the right count with a wrong sum: one was lost for one that is not known
        for request in sets.get(difference) or ():
            counted[request].add(uuid)
    return off, counted


def _sums(uuid: str, requests: list[Request]) -> dict[Pair, frozenset[Request] | None]:
    """Return every tally that a choice of `requests` gives, and which choice; None if there are several."""
    sums: dict[Pair, frozenset[Request] | None] = {(0, 0): frozenset()}
    for request in requests:
        more = {added(pair, request.changes[uuid]): chosen for pair, chosen in sums.items()}
        for pair, chosen in more.items():
            sums[pair] = None if pair in sums or chosen is None else chosen | {request}
    return sums


def torn(counted: Mapping[Request, set[str]], off: Mapping[str, int], stored: Mapping[str, Pair]) -> int:
    """Return how many requests are counted for some of their UUIDs and not for others, where that can be told."""
    told = stored.keys() - off.keys()
    return sum(uuids != request.changes.keys() & told for request, uuids in counted.items() if uuids)


class Drive:
    """Connections that send a ledger's requests until the server ends them, one at a time each.

    Attributes:
        cut: answers that began and did not end.
        wrong: requests that got another answer than 200 and 503.
    """

    def __init__(self, ledger: Ledger, connections: int):
        self._ledger = ledger
        self._connections = connections
        self.cut = 0
        self.wrong = 0

    async def run(self, url: str, after_seconds: float, act: Callable[[], None]) -> None:
        """Send, call `act` after so long, and return when every connection has ended."""
        asyncio.get_running_loop().call_later(after_seconds, act)
        async with asyncio.TaskGroup() as group:
            for _ in range(self._connections):
                group.create_task(self._client(url))

    async def _client(self, url: str) -> None:
        try:
            connection = await Connection.open(url)
        except OSError:
            return
        try:
            while not connection.lost:
                request = self._ledger.next()
                answer = await connection.ask(request.data)
                if answer.status == 200:
                    self._ledger.acknowledge(request, answer)
                    continue
                if b"urn:scoremean:outcome-unknown" in answer.body:
                    return
                del self._ledger.open[request]
                if answer.status == 503:
                    return
                self.wrong += 1
        except Cut as error:
            self.cut += error.begun
        finally:
            connection.close()
