"""Group commit, in front of a Store of this module's own that blocks, fails and counts."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future

import pytest

from scoremean.counts import QUEUE_SCORES, Counts
from scoremean.errors import IdConflict, OutcomeUnknown, QueueFull, Stopping, StoreFull
from scoremean.model import Batch, Score, Tally
from scoremean.store.base import Change, Outcome, Store
from scoremean.writer import Writer
from tests.support import Oracle, scores_of


class HeldStore(Store):
    """Holds every batch until the test lets it go, and then commits or fails it."""

    def __init__(self) -> None:
        self.batches: list[list[Change]] = []
        self.oracle = Oracle()
        self._held: list[Future[list[Outcome]]] = []
        self.broken: Exception | None = None
        self.refuse: IdConflict | None = None
        self.counts = Counts()
        self.failed = Future()

    def submit(self, batch):
        if self.broken:
            raise self.broken
        self.batches.append(list(batch))
        self._held.append(Future())
        return self._held[-1]

    def let_go(self, error: BaseException | None = None) -> None:
        """Commit the batch that is held, or fail it."""
        future = self._held.pop(0)
        if error:
            future.set_exception(error)
        else:
            future.set_result([self._outcome(change) for change in self.batches[-1]])

    def _outcome(self, change: Change) -> Outcome:
        if self.refuse and isinstance(change, Score) and change.id:
            return self.refuse
        return self.oracle.apply(change)

    @property
    def held(self) -> int:
        """Batches that are under way."""
        return len(self._held)

    def get(self, uuids):
        return [self.oracle.tally(uuid) for uuid in uuids]

    def scan(self, after, limit):
        raise NotImplementedError

    def tallies(self):
        raise NotImplementedError

    def stats(self):
        raise NotImplementedError

    def check(self):
        return []

    def close(self):
        pass


@pytest.fixture(name="held")
def fixture_held() -> HeldStore:
    """The store behind `writer`."""
    return HeldStore()


@pytest.fixture(name="writer")
async def fixture_writer(held: HeldStore) -> Writer:
    """A Writer that lets ten scores wait."""
    return Writer(held, queue_max_scores=10)


async def turns() -> None:
    """Let the loop do all that is ready, and what follows from it."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_lone_score_is_committed_at_once(writer, held):
    """No timer: it is submitted within the next turn of the loop."""
    answer = writer.post(Score("a", 5))
    await turns()
    assert held.batches == [[Score("a", 5)]] and not answer.done()
    held.let_go()
    assert await answer == Tally(5, 1)


async def test_while_a_batch_commits_the_next_one_gathers(writer, held):
    """One commit at a time; each request gets the outcomes of its own scores."""
    first = writer.post(Score("a", 5))
    await turns()
    later = [writer.post(Batch(scores_of([("a", 3), ("b", 1)]))), writer.post(Score("a", 4))]
    await turns()
    assert held.held == 1
    held.let_go()
    assert await first == Tally(5, 1)
    await turns()
    assert held.batches[1] == [Batch(scores_of([("a", 3), ("b", 1)])), Score("a", 4)]
    assert not later[0].done()
    held.let_go()
    assert await later[0] == [Tally(8, 2), Tally(1, 1)]
    assert await later[1] == Tally(12, 3)


async def test_scores_that_arrive_together_are_committed_together(writer, held):
    """Also the first ones, when nothing is under way."""
    answers = [writer.post(Score("a", 1)) for _ in range(4)]
    await turns()
    assert [len(batch) for batch in held.batches] == [4]
    held.let_go()
    assert [(await answer).count for answer in answers] == [1, 2, 3, 4]


async def test_a_full_queue_refuses_and_counts_nothing(writer, held):
    """What waits and what is under way both count; once answered there is room again. The gauge tells."""
    under_way = writer.post(Batch([Score("a", 1)] * 6))
    await turns()
    assert held.counts.total(QUEUE_SCORES) == 6
    waiting = writer.post(Batch([Score("a", 1)] * 4))
    with pytest.raises(QueueFull, match="10 scores wait for a commit, of 10 that may"):
        writer.post(Score("a", 1))
    held.let_go()
    await under_way
    await turns()
    assert held.counts.total(QUEUE_SCORES) == 4
    room = writer.post(Batch([Score("a", 1)] * 6))
    held.let_go()
    await waiting
    await turns()
    held.let_go()
    assert (await room)[-1] == Tally(16, 16)
    assert held.counts.total(QUEUE_SCORES) == 0


async def test_a_refused_change_fails_its_own_request_only(writer, held):
    """The others of the commit are counted."""
    held.refuse = IdConflict("used before")
    refused, counted = writer.post(Score("a", 1, "id-1")), writer.post(Score("a", 2))
    await turns()
    held.let_go()
    with pytest.raises(IdConflict, match="used before"):
        await refused
    assert await counted == Tally(2, 1)
    assert writer.accepting


async def test_a_cancelled_request_is_committed_all_the_same(writer, held):
    """A client that went away gives up its answer, nothing else."""
    gone = writer.post(Score("a", 5))
    stays = writer.post(Score("a", 3))
    await turns()
    gone.cancel()
    held.let_go()
    assert await stays == Tally(8, 2)


async def test_a_full_store_refuses_the_batch_and_goes_on(writer, held):
    """Every request of the batch gets the error; the next batch is tried."""
    refused = [writer.post(Score("a", 1)) for _ in range(2)]
    await turns()
    next_one = writer.post(Score("b", 1))
    held.let_go(StoreFull("full"))
    for answer in refused:
        with pytest.raises(StoreFull):
            await answer
    await turns()
    held.let_go()
    assert await next_one == Tally(1, 1)
    assert writer.accepting
    assert not writer.failed.done()


async def test_a_failed_commit_is_the_end(writer, held, caplog):
    """Outcome unknown for its batch, not counted for what gathered behind it, nothing taken from then on, reason logged."""
    batch = writer.post(Score("a", 1))
    await turns()
    behind = writer.post(Score("a", 1))
    error = OSError(5, "Input/output error")
    held.let_go(error)
    with pytest.raises(OutcomeUnknown):
        await batch
    with pytest.raises(Stopping, match="nothing was counted"):
        await behind
    assert await writer.failed is error
    assert not writer.accepting
    with pytest.raises(Stopping):
        writer.post(Score("a", 1))
    assert len(held.batches) == 1
    assert "Input/output error" in caplog.text
    await writer.close()


async def test_a_store_that_refuses_to_submit_is_a_failed_commit(writer, held, caplog):
    """Nobody waits for ever."""
    held.broken = RuntimeError("no thread")
    with pytest.raises(OutcomeUnknown):
        await writer.post(Score("a", 1))
    assert await writer.failed is held.broken
    assert "no thread" in caplog.text


async def test_close_drains_what_was_taken_and_takes_no_more(writer, held):
    """All that gathered is committed before close returns."""
    first = writer.post(Score("a", 5))
    await turns()
    second = writer.post(Score("a", 3))
    closing = asyncio.ensure_future(writer.close())
    await turns()
    with pytest.raises(Stopping):
        writer.post(Score("a", 1))
    held.let_go()
    await turns()
    assert not closing.done()
    held.let_go()
    await closing
    assert (await first, await second) == (Tally(5, 1), Tally(8, 2))


async def test_close_of_an_idle_writer_returns(writer):
    """Also twice."""
    await writer.close()
    await writer.close()
