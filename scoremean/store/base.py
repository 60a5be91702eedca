"""The Store protocol: where tallies live, and what every store promises.

A promise stands here only if every store can keep it. So a batch is atomic per UUID, and no more; a store that can do more,
such as a batch that is all or nothing, says so in its own class.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Protocol, Self, TypeVar

from scoremean.counts import Counts
from scoremean.errors import NotSupported, RequestError, ScoremeanError, StoreFull, Unavailable
from scoremean.model import Add, Batch, Forget, Merge, Page, Score, Stats, Tally, Void, Voided, VoidScore

# What a commit is made of, and what becomes of each: a Score or an Add gives a Tally (a Replay when its id was seen before), a
# Void gives a Voided, a VoidScore the Tally that is left (or a Replay, likewise), a Forget the Tally that it took away, a Merge
# the Tally of `into` with the other one, a Batch a list with the outcome of each score. Any of them may be refused by what the
# store holds, with an error of the client's that counted nothing; in a store of several nodes also by one of them alone, with
# an error of the service's.
Change = Score | Add | Void | VoidScore | Forget | Merge | Batch
Refusal = RequestError | NotSupported | StoreFull | Unavailable
Outcome = Tally | Voided | Refusal | list[Tally | RequestError]

_Result = TypeVar("_Result")


class Store(Protocol):
    """Tallies by UUID. Safe to call from any thread; a context manager that closes itself.

    Attributes:
        batches_max: the batches that a Writer has under way at once. 1 where each is a commit of its own; more where
            what comes in is gathered behind the store.
        reads_block: whether reads wait for other machines, so that an event loop must leave them to a thread.
        ordered: whether `scan` goes in the order of UUIDs by code point.
        counts: where it counts what it does, and whoever is in front of it too.
    """

    batches_max: int = 1
    reads_block: bool = False
    ordered: bool = True
    counts: Counts

    @abstractmethod
    def submit(self, batch: Sequence[Change]) -> Future[list[Outcome | Future[Outcome]]]:
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
            InvalidBatch: a Batch of which some scores would be refused, so that none was counted; `faults` lists them.

        A store of several nodes goes on when one of them does not answer. What that one holds up is a Future of its outcome,
        so that the others need not wait. And an outcome may be
            OutcomeUnknown: it may be counted or not, and nothing else is affected; of a Batch, any of its scores.
            Unavailable, StoreFull: of one node, so that this change alone counted nothing.
            NotSupported: a Batch that is not `skip`, where the store cannot promise all or nothing.

        The future raises:
            StoreFull: nothing of the batch was counted, and the store goes on.
            Exception: any other error leaves the outcome unknown. The store must not be written again.
        """

    def commit(self, batch: Sequence[Change]) -> list[Outcome]:
        """Count `batch` and return what `submit` resolves to, once it is durable."""
        return self.submit(batch).result()

    @abstractmethod
    def get(self, uuids: Sequence[str]) -> list[Tally | None]:
        """Return the durable tally of each UUID, None for one without a score. Raises InvalidUUID."""

    @abstractmethod
    def scan(self, after: str | None, limit: int) -> Page:
        """Return up to `limit` tallies from behind the UUID `after`, or from the first one when it is None."""

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


async def ask(store: Store, read: Callable[..., _Result], *arguments: object) -> _Result:
    """Return `read(*arguments)`, a read of `store`, in a thread if that waits for other machines."""
    return await asyncio.to_thread(read, *arguments) if store.reads_block else read(*arguments)


def is_failure(outcome: object) -> bool:
    """Return whether an outcome is an error for which the change is not at fault."""
    return isinstance(outcome, ScoremeanError) and not isinstance(outcome, RequestError)
