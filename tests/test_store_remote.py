"""The store behind a socket: the contract, faithful answers, one commit for many connections, and connections that break."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoremean.counts import Counts
from scoremean.errors import Fault, IdConflict, IdVoided, InvalidBatch, OutcomeUnknown, StoreError, StoreFull, UnknownId
from scoremean.model import Add, Batch, Forget, Merge, Replay, Score, Tally, Void, Voided, VoidScore
from scoremean.store import forward as remote
from scoremean.store.embedded.store import LmdbStore
from scoremean.store.forward import RemoteStore, SharedStore
from scoremean.writer import Writer
from tests.store_contract import StoreContract
from tests.support import scores_of

NAMES = st.sampled_from(["a1-b1", "é/ü", "z" * 256])
SCORES = st.builds(Score, NAMES, st.integers(-5, 5), st.none() | NAMES)
CHANGES = (
    SCORES
    | st.builds(Void, NAMES)
    | st.builds(VoidScore, st.builds(Score, NAMES, st.integers(-5, 5), NAMES))
    | st.builds(Forget, NAMES)
    | st.builds(Merge, st.just("other"), NAMES)
    | st.builds(Batch, st.lists(SCORES, max_size=3), st.booleans())
    | st.builds(Add, NAMES, st.builds(Tally, st.integers(-5, 5), st.integers(1, 9)), st.none() | NAMES)
)
NUMBERS = st.integers(-(1 << 63), (1 << 63) - 1)
FAULTS = st.lists(st.builds(Fault, NAMES, NAMES), max_size=2).map(tuple)
REFUSALS = st.builds(UnknownId, NAMES) | st.sampled_from([IdConflict, IdVoided, InvalidBatch]).flatmap(
    lambda kind: st.builds(kind, NAMES, FAULTS)
)
TALLIES = st.builds(Tally, NUMBERS, NUMBERS) | st.builds(Replay, NUMBERS, NUMBERS)
OUTCOMES = (
    TALLIES | REFUSALS | st.lists(TALLIES | REFUSALS, max_size=4) | st.builds(Voided, NAMES, st.builds(Tally, NUMBERS, NUMBERS))
)


class _Remote(RemoteStore):
    """A RemoteStore on a loop and thread of its own, which end with it."""

    thread: threading.Thread

    def close(self) -> None:
        super().close()
        if not self._loop.is_closed():
            asyncio.run_coroutine_threadsafe(turns(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self.thread.join()
            self._loop.close()


async def linked(shared: SharedStore, store: RemoteStore) -> RemoteStore:
    """Return `store`, connected to `shared`."""
    ours, theirs = socket.socketpair()
    await shared.connect(ours)
    await store.connect(theirs)
    return store


async def turns() -> None:
    """Let the loop turn: what was sent before is read now, and what was closed is gone."""
    for _ in range(10):
        await asyncio.sleep(0)


class TestContract(StoreContract):
    """RemoteStore keeps what every store keeps, from threads that are not its loop's."""

    def open(self, place, **options):
        # In one process a store cannot be opened twice, so it reads through the store that writes.
        owned = LmdbStore(place, **options)
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever)
        thread.start()

        async def connect() -> _Remote:
            return await linked(SharedStore(owned), _Remote(owned, Counts()))

        store = asyncio.run_coroutine_threadsafe(connect(), loop).result()
        store.thread = thread
        return store


@given(st.lists(CHANGES))
def test_changes_arrive_as_they_were_sent(changes):
    """Every kind, in every order, of the same class."""
    assert remote.unpack_changes(remote.pack_changes(changes)) == changes


@given(st.lists(OUTCOMES))
def test_outcomes_arrive_as_they_were(outcomes):
    """A Replay is no Tally; a refusal keeps its class, its sentence and its faults."""

    def shape(outcome):
        if isinstance(outcome, list):
            return [shape(one) for one in outcome]
        return (type(outcome), vars(outcome), str(outcome)) if isinstance(outcome, Exception) else outcome

    arrived = remote.unpack_answer(remote.pack_answer(outcomes))
    assert shape(arrived) == shape(outcomes)


@pytest.fixture(name="shared")
async def fixture_shared(store: LmdbStore) -> AsyncIterator[SharedStore]:
    """The owner's side of `store`."""
    shared = SharedStore(store)
    yield shared
    await shared.close()


@pytest.fixture(name="link")
async def fixture_link(store: LmdbStore, shared: SharedStore) -> AsyncIterator[Callable[[], Awaitable[RemoteStore]]]:
    """Makes a RemoteStore that is connected to `shared`."""
    made: list[RemoteStore] = []

    async def link() -> RemoteStore:
        made.append(await linked(shared, RemoteStore(store, Counts())))
        return made[-1]

    yield link
    for one in made:
        one.close()
    await turns()


@pytest.fixture(name="commits")
def fixture_commits(store: LmdbStore, monkeypatch) -> list[tuple[list, Future]]:
    """The commits that `store` is asked for: each batch and the future of its outcomes, which the test resolves."""
    commits: list[tuple[list, Future]] = []

    def submit(batch):
        commits.append((batch, Future()))
        return commits[-1][1]

    monkeypatch.setattr(store, "submit", submit)
    return commits


async def arrival(commits: list, number: int) -> None:
    """Return once `number` commits were asked for."""
    while len(commits) < number:
        await asyncio.sleep(0)


async def test_batches_of_two_connections_are_one_commit(link, commits):
    """Those that arrive together, and those that arrive while a commit is under way; each gets its own outcomes."""
    one, two = await link(), await link()
    first = [one.submit(scores_of([("a", 1)])), two.submit(scores_of([("b", 2), ("b", 3)]))]
    await arrival(commits, 1)
    assert commits[0][0] == scores_of([("a", 1), ("b", 2), ("b", 3)])
    second = [two.submit(scores_of([("b", 4)])), one.submit([]), one.submit(scores_of([("a", 5)]))]
    await turns()
    assert len(commits) == 1
    commits[0][1].set_result([Tally(1, 1), Tally(2, 1), Tally(5, 2)])
    assert [await asyncio.wrap_future(future) for future in first] == [[Tally(1, 1)], [Tally(2, 1), Tally(5, 2)]]
    await arrival(commits, 2)
    assert sorted(score.uuid for score in commits[1][0]) == ["a", "b"]
    commits[1][1].set_result([Tally(score.score, 9) for score in commits[1][0]])
    assert [await asyncio.wrap_future(future) for future in second] == [[Tally(4, 9)], [], [Tally(5, 9)]]


async def test_a_full_store_refuses_and_goes_on(link, commits):
    """Every batch of the commit, and with the sentence of the store."""
    one = await link()
    future = one.submit(scores_of([("a", 1)]))
    await arrival(commits, 1)
    commits[0][1].set_exception(StoreFull("no room"))
    with pytest.raises(StoreFull, match="^no room$"):
        await asyncio.wrap_future(future)
    future = one.submit(scores_of([("a", 2)]))
    await arrival(commits, 2)
    commits[1][1].set_result([Tally(2, 1)])
    assert await asyncio.wrap_future(future) == [Tally(2, 1)]


async def test_a_failed_commit_is_the_last(link, shared, commits, caplog):
    """The batch under way, one that waits and one that comes later: the outcome of each is unknown, and no other is tried."""
    one, two = await link(), await link()
    futures = [one.submit([Score("a", 1)])]
    await arrival(commits, 1)
    futures.append(two.submit([Score("b", 1)]))
    await turns()
    commits[0][1].set_exception(OSError(5, "Input/output error"))
    await shared.failed
    futures.append(two.submit([Score("b", 2)]))
    for future in futures:
        with pytest.raises(OutcomeUnknown, match="the commit failed in the process that owns the store: OSError"):
            await asyncio.wrap_future(future)
    assert len(commits) == 1
    assert "a commit failed" in caplog.text


async def test_a_store_that_takes_no_batch_is_a_failed_commit(link, shared, store, monkeypatch):
    """No client waits for ever."""

    def submit(_):
        raise StoreError("no")

    monkeypatch.setattr(store, "submit", submit)
    with pytest.raises(OutcomeUnknown, match="StoreError"):
        await asyncio.wrap_future((await link()).submit([Score("a", 1)]))
    assert isinstance(shared.failed.result(), StoreError)


async def test_a_broken_connection_leaves_the_outcome_unknown(store, shared, commits):
    """Of what is under way, of what comes later; what was received is counted all the same."""
    ours, theirs = socket.socketpair()
    await shared.connect(ours)
    one = RemoteStore(store, Counts())
    await one.connect(theirs)
    future = one.submit([Score("a", 1)])
    await arrival(commits, 1)
    ours.shutdown(socket.SHUT_RDWR)
    await one.lost
    for broken in (future, one.submit([Score("a", 2)])):
        with pytest.raises(OutcomeUnknown, match="the connection to the process that owns the store broke"):
            await asyncio.wrap_future(broken)
    commits[0][1].set_result([Tally(1, 1)])
    await shared.close()
    assert not shared.failed.done() and len(commits) == 1


async def test_a_writer_does_not_gather_what_the_owner_gathers(link, shared, commits, caplog):
    """It sends on while a commit is under way; when that fails, every batch that was sent has an unknown outcome."""
    writer = Writer(await link(), 10)
    answers = []
    for number in range(1, 4):
        answers.append(writer.post(Score("a", number)))
        await turns()
    assert [score.score for score in commits[0][0]] == [1]
    commits[0][1].set_result([Tally(1, 1)])
    assert await answers[0] == Tally(1, 1)
    await arrival(commits, 2)
    assert [score.score for score in commits[1][0]] == [2, 3]
    answers.append(writer.post(Score("a", 4)))
    await turns()
    commits[1][1].set_exception(OSError(5, "Input/output error"))
    for answer in answers[1:]:
        with pytest.raises(OutcomeUnknown):
            await answer
    await writer.close()
    assert writer.failed.done() and shared.failed.done()
    assert caplog.text.count("a commit failed") == 2  # one line on either side


async def test_a_large_batch_arrives_whole(store, link):
    """It takes many reads in either direction."""
    one = await link()
    batch = [Score(f"{n % 7}{'x' * 200}", n % 6, f"id-{n}") for n in range(10_000)]
    outcomes = await asyncio.wrap_future(one.submit(batch))
    assert len(outcomes) == 10_000
    assert store.stats().scores == 10_000


async def test_close_on_the_loop_does_not_wait_for_itself(link, commits):
    """What is under way then fails; and nothing is taken any more."""
    one = await link()
    future = one.submit([Score("a", 1)])
    await arrival(commits, 1)
    one.close()
    with pytest.raises(OutcomeUnknown):
        await asyncio.wrap_future(future)
    with pytest.raises(StoreError, match="is closed"):
        one.submit([Score("a", 2)])
    assert not one.lost.done()
    commits[0][1].set_result([Tally(1, 1)])


async def test_what_is_no_batch_ends_its_connection_only(shared, link, caplog):
    """Nothing of it is counted."""
    one = await link()
    ours, theirs = socket.socketpair()
    await shared.connect(ours)
    reader, writer = await asyncio.open_unix_connection(sock=theirs)
    body = remote.pack_changes([Score("a", 5)]).replace(b"\x05", b"\xc0")
    writer.write(len(body).to_bytes(8, "little") + bytes(8) + body)
    assert await reader.read() == b""
    writer.close()
    assert "ValidationError" in caplog.text
    assert await asyncio.wrap_future(one.submit([Score("a", 3)])) == [Tally(3, 1)]
