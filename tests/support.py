"""What several test modules need: a real server process, an exact oracle, and the proof that a store is sound."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from copy import deepcopy
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Self
from urllib.request import Request, urlopen

import pytest
from aiohttp import ClientSession
from lmdb.verify import verify

from scoremean import Batch, Forget, Merge, Replay, Score, Tally, Void, Voided, VoidScore, open_store
from scoremean.errors import (
    IdConflict,
    IdVoided,
    InvalidBatch,
    NoSuchScore,
    RequestError,
    ScoremeanError,
    UnknownId,
    UnknownUUID,
)
from scoremean.store.base import Change, Outcome

# The long form of the random walks, at least 10,000 steps each; docs/contributing.md has the command.
LONG = bool(os.environ.pop("SCOREMEAN_LONG", ""))  # or every process of a test would tell that this is no setting

# Under these limits of the journal a few commits fill it, and every slice of a fold is as short as can be.
SMALL_JOURNAL = {
    "FOLD_AT_ENTRIES": 8,
    "BATCH_MAX_ENTRIES": 4,
    "FOLD_SLICE_ENTRIES": 1,
    "SORT_SLICE_ENTRIES": 2,
    "DROP_SLICE_RECORDS": 2,
}
_SERVE_SMALL = (
    f"import sys; from scoremean import cli; from scoremean.store.embedded import journal;"
    f" vars(journal).update({SMALL_JOURNAL}); sys.exit(cli.main())"
)


def require_program(name: str, package: str) -> None:
    """Skip the test unless the program is there, or this is CI, where the test then fails."""
    if not shutil.which(name) and not os.environ.get("CI"):
        pytest.skip(f"{name} is not installed; `apt-get install -y --no-install-recommends {package}` installs it")


def require_library(name: str) -> None:
    """Skip the test unless the library is there, or this is CI, where the test then fails."""
    if not find_spec(name) and not os.environ.get("CI"):
        pytest.skip(f"there is no {name}; `.venv/bin/pip install -e '.[ci]'` installs it")


def fetch(request: str | Request) -> bytes:
    """Return the body of the answer to a request, or to GET of an address, which must be a success."""
    with urlopen(request) as response:
        return response.read()


class Server:
    """`scoremean serve` in a process of its own, on a free port. Started on entry, ended by force on exit.

    Args:
        store: its directory.
        small_journal: run it with SMALL_JOURNAL.
        program: what starts `scoremean`, up to the verb, such as a broken build; None for scoremean as it is.

    Attributes:
        url: where it listens.
        greeting: the lines that it printed: where it listens, its page, its store, how to post.
    """

    def __init__(self, store: Path | str, *flags: str, small_journal: bool = False, program: Sequence[str] | None = None):
        self.store = store
        self._program = program or [sys.executable, *(["-c", _SERVE_SMALL] if small_journal else ["-m", "scoremean"])]
        self._flags = flags
        self._process: subprocess.Popen[str]
        self._messages: IO[str]
        self.url = ""
        self.greeting: list[str] = []

    def __enter__(self) -> Self:
        command = [*self._program, "serve", "--store", str(self.store), "--port", "0", *self._flags]
        # A file, since a pipe that nobody reads fills and then holds up the server.
        self._messages = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # pylint: disable=consider-using-with
        self._process = subprocess.Popen(  # pylint: disable=consider-using-with  # __exit__ ends it
            command, stdout=subprocess.PIPE, stderr=self._messages, text=True
        )
        line = self._process.stdout.readline()
        if not line.startswith("listening on "):
            self.kill()
            raise AssertionError(self.wait()[1])
        self.url = line.split()[-1]
        self.greeting = [line]
        while self.greeting[-1] and not self.greeting[-1].startswith("post "):
            self.greeting.append(self._process.stdout.readline())
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.wait()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process has not ended; until it was found to have, its id is its own."""
        return self._process.poll() is None

    def kill(self) -> None:
        """Send SIGKILL."""
        self._process.kill()

    def terminate(self) -> None:
        """Send SIGTERM."""
        self._process.terminate()

    def messages(self) -> str:
        """Return what was written to standard error so far."""
        # Not by a seek: the place in the file is the server's too.
        return os.pread(self._messages.fileno(), 1 << 20, 0).decode(errors="replace")

    def wait(self) -> tuple[int, str]:
        """Wait for the end and return the exit code and what was written to standard error."""
        if self._messages.closed:
            return self._process.returncode, ""
        self._process.communicate(timeout=60)
        with self._messages as messages:
            messages.seek(0)
            return self._process.returncode, messages.read()


def plain(outcome: Outcome) -> Outcome | type[ScoremeanError]:
    """Return an outcome as the oracle gives it: a refusal as the class of its error."""
    if isinstance(outcome, list):
        return [plain(one) for one in outcome]
    return type(outcome) if isinstance(outcome, ScoremeanError) else outcome


class Oracle:
    """The plain truth: every score kept, every id, means as fractions.

    Args:
        bounds: the lowest and the highest score.
    """

    def __init__(self, bounds: tuple[int, int] = (0, 5)) -> None:
        self._bounds = bounds
        self._scores: defaultdict[str, list[int]] = defaultdict(list)
        # What was voided, which need not be one of the scores: a tally may hold a 4 that is made of a 5 and a 3.
        self._taken: defaultdict[str, list[int]] = defaultdict(list)
        self._ids: dict[str, tuple[Score | VoidScore, Tally]] = {}
        self._voided: set[str] = set()
        self._forgotten: set[str] = set()

    def apply(self, change: Change) -> Outcome | type[RequestError]:
        """Apply `change` and return its outcome; for one that is refused, the class of the error."""
        match change:
            case Void():
                return self._void(change.id)
            case VoidScore():
                return self._void_score(change)
            case Forget():
                return self._forget(change.uuid)
            case Merge():
                return self._merge(change)
            case Batch():
                return self._batch(change)
        return self._score(change)

    def _batch(self, batch: Batch) -> list[Tally | type[RequestError]] | type[RequestError]:
        trial = deepcopy(self)
        if not batch.skip and any(isinstance(trial.apply(score), type) for score in batch.scores):
            return InvalidBatch
        return [self.apply(score) for score in batch.scores]

    def _score(self, change: Score) -> Tally | type[RequestError]:
        if change.id in self._ids:
            return self._again(change.id, change)
        tally = self.post(change)
        if change.id is not None:
            self._ids[change.id] = (change, tally)
        return tally

    def _again(self, name: str, change: Score | VoidScore) -> Tally | type[RequestError]:
        known, first = self._ids[name]
        if known != change:
            return IdConflict
        return IdVoided if name in self._voided else Replay(first.sum, first.count)

    def _void(self, name: str) -> Voided | type[RequestError]:
        score, _ = self._ids.get(name, (None, None))
        if not isinstance(score, Score) or name in self._forgotten:
            return UnknownId
        if name not in self._voided:
            if error := self._take(score):
                return error
            self._voided.add(name)
        return Voided(score.uuid, self.tally(score.uuid) or Tally(0, 0))

    def _void_score(self, void: VoidScore) -> Tally | type[RequestError]:
        score = void.score
        if score.id in self._ids:
            return self._again(score.id, void)
        if error := self._take(score):
            return error
        left = self.tally(score.uuid) or Tally(0, 0)
        self._ids[score.id] = (void, left)
        return left

    def _take(self, score: Score) -> type[RequestError] | None:
        """Take a score out of its tally, or return why it cannot be in it."""
        tally, (low, high) = self.tally(score.uuid), self._bounds
        if tally is None:
            return UnknownUUID
        left = Tally(tally.sum - score.score, tally.count - 1)
        if not low <= score.score <= high or not low * left.count <= left.sum <= high * left.count:
            return NoSuchScore
        self._taken[score.uuid].append(score.score)
        return None

    def _forget(self, uuid: str) -> Tally | type[RequestError]:
        tally = self.tally(uuid)
        scores = {name: known if isinstance(known, Score) else known.score for name, (known, _) in self._ids.items()}
        self._forgotten |= {name for name, score in scores.items() if score.uuid == uuid}
        self._scores.pop(uuid, None)
        self._taken.pop(uuid, None)
        return tally or UnknownUUID

    def _merge(self, merge: Merge) -> Tally | type[RequestError]:
        if self.tally(merge.uuid) is None:
            return UnknownUUID
        scores, taken = self._scores[merge.uuid], self._taken[merge.uuid]
        self._forget(merge.uuid)
        self._scores[merge.into] += scores
        self._taken[merge.into] += taken
        return self.tally(merge.into)

    def post(self, score: Score) -> Tally:
        """Count `score` and return the tally of its UUID after it."""
        self._scores[score.uuid].append(score.score)
        return self.tally(score.uuid)

    def tally(self, uuid: str) -> Tally | None:
        """Return the tally of `uuid`, None if it has no score."""
        scores, taken = self._scores.get(uuid, []), self._taken.get(uuid, [])
        return Tally(sum(scores) - sum(taken), len(scores) - len(taken)) if len(scores) > len(taken) else None

    def mean(self, uuid: str) -> Fraction:
        """Return the exact mean."""
        tally = self.tally(uuid)
        return Fraction(tally.sum, tally.count)

    def uuids(self) -> list[str]:
        """Return the UUIDs with a score, in the order of code points."""
        return sorted(uuid for uuid in self._scores if self.tally(uuid))


def scores_of(pairs: Iterable[tuple[str, int]]) -> list[Score]:
    """Return a score for each `(UUID, score)`."""
    return [Score(uuid, score) for uuid, score in pairs]


async def post(client: ClientSession, uuid: str, score: int) -> float:
    """Post one score and return the mean in the answer."""
    async with client.post("/scores", json={"UUID": uuid, "score": score}) as response:
        assert response.status == 200, await response.text()
        return (await response.json())["mean"]


def assert_sound(path: Path) -> None:
    """Prove a store at rest: LMDB's pages by an independent walk, then our own invariants."""
    assert not verify(str(path))
    with open_store(path, readonly=True) as store:
        assert not store.check()
