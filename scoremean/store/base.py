"""The Store protocol: where tallies live, and what every store promises.

A promise stands here only if every store can keep it.
"""

from __future__ import annotations

import asyncio
import logging
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import Literal, Protocol, Self, get_args, overload

from scoremean.counts import Counts
from scoremean.errors import InvalidScore, OutcomeUnknown, RequestError, ScoremeanError, StoreFull
from scoremean.model import Add, Batch, Forget, Merge, Page, Score, Stats, Tally, Text, Void, Voided, VoidScore, shown

# What a commit is made of, and what becomes of each: a Score or an Add gives a Tally (a Replay when its id was seen before), a
# Void gives a Voided, a VoidScore the Tally that is left (or a Replay, likewise), a Forget the Tally that it took away, a Merge
# the Tally of `into` with the other one, a Batch a list with the outcome of each score. Any of them may be refused by what the
# store holds, with an error of the client's that counted nothing; or by a StoreFull, where others of the commit needed no room.
Change = Score | Add | Void | VoidScore | Forget | Merge | Batch
Outcome = Tally | Voided | RequestError | StoreFull | list[Tally | RequestError]

_log = logging.getLogger(__name__)

SIZE_MAX_BYTES = 64 << 30
ID_RETENTION_SECONDS = 168 * 3600


class Store(Protocol):
    """Tallies by UUID. Safe to call from any thread; a context manager that closes itself.

    Attributes:
        batches_max: the batches that a Writer has under way at once. 1 where each is a commit of its own; more where
            what comes in is gathered behind the store.
        counts: where it counts what it does, and whoever is in front of it too.
        failed: resolves, to the error, when the store finds by itself that nothing can be counted any more.
    """

    batches_max: int = 1
    counts: Counts
    failed: Future[BaseException]

    @abstractmethod
    def submit(self, batch: Sequence[Change]) -> Future[list[Outcome]]:
        """Start to count `batch` and return at once.

        The future resolves once every change is durable, to one outcome a change in the order of the batch, in which they see
        each other: for a Score the tally of its UUID right after it, or the Replay of its id; for a Void what it leaves. An id
        and its tally are durable together or not at all. Batches are counted in the order of the calls. A future, because a
        thread and an event loop can both wait for one.

        An outcome may be an error instead, and then that change alone counted nothing:
            IdConflict: the id was used for another UUID or score, or by a VoidScore for what is none, or the other way round.
            IdVoided: the score with this id was voided.
            UnknownId: a Void of an id that no score carried, that has expired, or of a score of a forgotten or merged UUID.
            UnknownUUID: a Forget, a Merge or a void of a UUID without a score.
            NoSuchScore: a void of what the tally cannot hold.
            InvalidScore: the score or tally is outside of the range of the store.
            InvalidBatch: a Batch of which some scores would be refused, so that none was counted; `faults` lists them.

        The future raises:
            StoreFull: nothing of the batch was counted, and the store goes on.
            Exception: any other error leaves the outcome unknown. The store must not be written again.
        """

    @overload
    def post(self, change: Score | Add | VoidScore | Forget | Merge) -> Tally: ...
    @overload
    def post(self, change: Void) -> Voided: ...
    def post(self, change: Score | Add | Void | VoidScore | Forget | Merge) -> Tally | Voided:
        """Count one score and return the tally of its UUID right after it, once that is on disk.

        It is a Replay, and counted nothing, where the id of the score was seen before. Also takes an Add, to count the tally of
        many scores; a Void or a VoidScore, and returns what it leaves; a Forget, and returns the tally that it took away; and a
        Merge, and returns the tally of both.

        Raises:
            IdConflict, IdVoided, NoSuchScore, UnknownId, UnknownUUID: the store refused it, and nothing was counted.
            InvalidScore: it is none of these.
            StoreFull: there is no room, and nothing was counted.
            StoreError: the store is closed, or open for reading only.
            OutcomeUnknown: the commit failed, and it may or may not be counted. Open the store again.
        """
        [outcome] = self.commit([change])
        if isinstance(outcome, ScoremeanError):
            raise outcome
        return outcome

    @overload
    def post_many(self, scores: Iterable[Score], *, skip: Literal[False] = False) -> list[Tally]: ...
    @overload
    def post_many(self, scores: Iterable[Score], *, skip: bool) -> list[Tally | RequestError]: ...
    def post_many(self, scores: Iterable[Score], *, skip: bool = False) -> Sequence[Tally | RequestError]:
        """Count many scores in one commit and return one result a score, in order, once all are on disk.

        Args:
            scores: held in memory as a whole.
            skip: count those that are not refused and return the error of each other one in its place.

        Raises:
            InvalidBatch: without `skip`, when any is refused: then none was counted, and `faults` lists each.
            StoreFull, StoreError, OutcomeUnknown: as in `post`.
        """
        [outcome] = self.commit([Batch(list(scores), skip)])
        if isinstance(outcome, ScoremeanError):
            raise outcome
        return outcome

    def commit(self, batch: Sequence[Change]) -> list[Outcome]:
        """Count `batch` and return what `submit` resolves to, once it is on disk: what post and post_many are made of.

        A change that is refused is a value in the list, so whoever does not look at it loses a score.

        Raises:
            InvalidScore: something in `batch` is not a change; nothing was counted.
            StoreFull, StoreError, OutcomeUnknown: as in `post`.
        """
        batch = list(batch)
        _require_all(batch, get_args(Change))
        future = self.submit(batch)
        try:
            return future.result()
        except ScoremeanError:
            raise
        except Exception as error:
            raise OutcomeUnknown(f"the commit failed: outcome unknown; open the store again ({error!r})") from error

    @abstractmethod
    def get(self, uuids: Iterable[Text]) -> list[Tally | None]:
        """Return the durable tally of each UUID, None for one without a score. Raises InvalidUUID."""

    @abstractmethod
    def scan(self, after: Text | None, limit: int) -> Page:
        """Return up to `limit` tallies from behind the UUID `after`, or from the first one when it is None.

        Raises:
            InvalidUUID: `after` cannot be one.
            InvalidQuery: `limit` is below 1.
        """

    @abstractmethod
    def tallies(self) -> Iterator[tuple[str, Tally]]:
        """Yield every UUID with its tally, all as of one commit. Raises StoreError, also when the store is closed meanwhile."""

    @abstractmethod
    def stats(self) -> Stats:
        """Return what the store holds, as of the last commit."""

    @abstractmethod
    def check(self) -> list[str]:
        """Read everything and return a sentence for each damage found: an empty list is a sound store."""

    @abstractmethod
    def close(self) -> None:
        """Wait for the batches under way, then let go of the store. Closing twice does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def tell_failure(failed: asyncio.Future[BaseException], error: BaseException) -> None:
    """Resolve `failed` to the first error that ends all counting, and log it."""
    if not failed.done():
        traceback = not isinstance(error, ScoremeanError) and error  # else its sentence says it all
        _log.critical("a commit failed, the service must stop: %r", error, exc_info=traceback)
        failed.set_result(error)


def is_failure(outcome: object) -> bool:
    """Return whether an outcome is an error for which the change is not at fault."""
    return isinstance(outcome, ScoremeanError) and not isinstance(outcome, RequestError)


def _require_all(changes: Iterable[object], kinds: type | tuple[type, ...]) -> None:
    """Raise InvalidScore if one is of another kind. In the middle of a commit it would leave the outcome unknown."""
    for change in changes:
        if not isinstance(change, kinds):
            raise InvalidScore(f"a store counts a Score, such as Score('a1-b1', 5), not {shown(change)}")
        if isinstance(change, Batch):
            _require_all(change.scores, Score)
