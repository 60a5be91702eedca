"""Group commit: while batch n is being committed, batch n + 1 gathers.

There is no timer and no delay to tune. A lone score is committed at once; under a flood the batches grow by themselves to
whatever arrives during one commit, so one sync to disk is shared by all of them.

    post() ──> gathering ──submit──> Store thread: transaction + sync ──> each request's future

The Writer lives on one event loop and knows nothing of HTTP or LMDB: it works in front of any Store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future as StoreFuture

from scoremean.counts import QUEUE_SCORES
from scoremean.errors import OutcomeUnknown, QueueFull, ScoremeanError, Stopping, StoreFull
from scoremean.model import Batch
from scoremean.store.base import Change, Outcome, Store, tell_failure

Waiting = list[asyncio.Future[Outcome]]


class Writer:
    """Gathers the scores of many requests into batches, of which `store.batches_max` are under way at a time.

    Args:
        store: where the batches go. The Writer does not close it. In its counts stands how many scores wait, as of the last
            beginning or end of a commit.
        queue_max_scores: scores that may wait or be under way; past it `post` refuses.

    Attributes:
        failed: resolves, to the error, when a commit fails; from then on nothing can be counted and the service must stop.
    """

    def __init__(self, store: Store, queue_max_scores: int):
        self._store = store
        self._queue_max_scores = queue_max_scores
        self._loop = asyncio.get_running_loop()
        self._gathering: list[Change] = []
        self._waiting: Waiting = []
        self._gathered_scores = 0
        self._committing_scores = 0
        self._committing_batches = 0
        self._called = False
        self._stopping = False
        self._idle = asyncio.Event()
        self._idle.set()
        self.failed: asyncio.Future[BaseException] = self._loop.create_future()
        store.failed.add_done_callback(lambda done: self._loop.call_soon_threadsafe(self._fail, [], done.result()))

    @property
    def accepting(self) -> bool:
        """Whether `post` takes scores: not stopping, and no commit has failed."""
        return not self._stopping and not self.failed.done()

    def post(self, change: Change) -> asyncio.Future[Outcome]:
        """Queue `change` for the next commit and return the future of this request.

        It resolves to the outcome (Store.submit) once that is durable. Cancelling it gives up the answer only: the change is
        counted all the same.

        Raises, at once and with nothing counted:
            QueueFull: queue_max_scores would be exceeded.
            Stopping: the Writer is closed, or a commit has failed.
        The future raises:
            RequestError: the store refused this change; nothing of it was counted.
            StoreFull: nothing was counted.
            OutcomeUnknown: the commit failed.
        """
        if not self.accepting:
            raise Stopping("the service is stopping; nothing was counted, send it again")
        scores = len(change.scores) if isinstance(change, Batch) else 1
        queued_scores = self._gathered_scores + self._committing_scores
        if queued_scores + scores > self._queue_max_scores:
            raise QueueFull(
                f"{queued_scores} scores wait for a commit, of {self._queue_max_scores} that may;"
                " nothing was counted, send it again later"
            )
        if not self._called and self._committing_batches < self._store.batches_max:
            # A turn of the loop later, so that the requests which arrived together are committed together.
            self._called = True
            self._idle.clear()
            self._loop.call_soon(self._commit_gathered)
        answer = self._loop.create_future()
        self._gathering.append(change)
        self._waiting.append(answer)
        self._gathered_scores += scores
        return answer

    async def close(self) -> None:
        """Take no more scores and return when all that were taken have their answer."""
        self._stopping = True
        await self._idle.wait()

    def _commit_gathered(self) -> None:
        self._called = False
        batch, waiting, scores = self._gathering, self._waiting, self._gathered_scores
        self._gathering, self._waiting, self._gathered_scores = [], [], 0
        if not batch:
            self._rest()
            return
        try:
            future = self._store.submit(batch)
        except Exception as error:  # pylint: disable=broad-exception-caught  # whatever a store raises, none may hang
            self._fail(waiting, error)
            return
        self._committing_scores += scores
        self._committing_batches += 1
        self._store.counts.cells[QUEUE_SCORES] = self._committing_scores
        future.add_done_callback(lambda done: self._loop.call_soon_threadsafe(self._answer, waiting, scores, done))

    def _answer(self, waiting: Waiting, scores: int, done: StoreFuture[list[Outcome]]) -> None:
        """Hand the outcomes of a commit to the requests they belong to, and start the next commit."""
        self._committing_scores -= scores
        self._committing_batches -= 1
        self._store.counts.cells[QUEUE_SCORES] = self._gathered_scores + self._committing_scores
        error = done.exception()
        if error is None:
            self._resolve(waiting, done.result())
        elif isinstance(error, StoreFull):
            self._resolve(waiting, [error] * len(waiting))
        else:
            self._fail(waiting, error)
            return
        if not self._called:
            self._commit_gathered()

    def _fail(self, waiting: Waiting, error: BaseException) -> None:
        tell_failure(self.failed, error)
        unknown = OutcomeUnknown("the commit failed: outcome unknown, retry with the same id")
        self._resolve(waiting, [unknown] * len(waiting))
        stopping = Stopping("the service is stopping; nothing was counted, send it again")
        self._resolve(self._waiting, [stopping] * len(self._waiting))
        self._gathering, self._waiting = [], []
        self._rest()

    def _rest(self) -> None:
        """Let `close` return, unless something is under way."""
        if not self._committing_batches:
            self._idle.set()

    def _resolve(self, waiting: Waiting, outcomes: Sequence[Outcome | ScoremeanError]) -> None:
        """Give every request its outcome, unless its client went away."""
        for answer, outcome in zip(waiting, outcomes, strict=True):
            if answer.done():
                continue
            if isinstance(outcome, ScoremeanError):
                answer.set_exception(outcome)
            else:
                answer.set_result(outcome)
