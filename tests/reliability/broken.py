"""Builds of scoremean that are broken on purpose, each in one promise: a campaign that does not catch its own is worth nothing.

Each is a few lines of Python that change scoremean in the server's process before it starts, so there is no second copy of the
code that could fall behind. `command` starts one. A module with campaigns may have builds that only its campaigns know, in
BROKEN_HERE; the harness puts them here.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from inspect import cleandoc
from typing import NamedTuple

from scoremean.store.embedded import journal as limits


class Broken(NamedTuple):
    """What is broken, in a sentence for docs/reliability.md, and the Python that breaks it."""

    what: str
    source: str


def _patch(what: str, source: str) -> Broken:
    return Broken(what, cleandoc(source))


BROKEN: dict[str, Broken] = {
    "answer-before-commit": _patch(
        "a post is answered when its batch is counted, and committed to the disk only then",
        """
        from concurrent.futures import Future
        from scoremean.store.embedded import commit
        from scoremean.store.embedded import store as lmdb

        submit, count = lmdb.LmdbStore.submit, commit.Commit.count

        class Batch(list):
            pass

        def early(self, changes):
            batch = Batch(changes)
            batch.answer = Future()
            submit(self, batch)
            return batch.answer

        def count_and_answer(self, changes):
            outcomes = count(self, changes)
            changes.answer.set_result(outcomes)
            return outcomes

        lmdb.LmdbStore.submit, commit.Commit.count = early, count_and_answer
        """,
    ),
    "sync-off": _patch(
        "LMDB runs with `sync` off: a commit writes its pages and does not wait for the disk",
        """
        import lmdb

        environment = lmdb.Environment
        lmdb.Environment = lambda *args, **options: environment(*args, **{**options, "sync": False})
        """,
    ),
    "metasync-off": _patch(
        "LMDB runs with `metasync` off: a commit syncs its pages and not the meta page that names them",
        """
        import lmdb

        environment = lmdb.Environment
        lmdb.Environment = lambda *args, **options: environment(*args, **{**options, "metasync": False})
        """,
    ),
    "id-in-second-transaction": _patch(
        "the ids of a batch are written in a transaction of their own, after that of its tallies",
        """
        from scoremean import Add, Score, Tally, VoidScore
        from scoremean.store.embedded import format as codec
        from scoremean.store.embedded import commit
        from scoremean.store.embedded import store as lmdb

        once, commit_once = commit.Commit._once, lmdb.LmdbStore._commit
        late, tallies = [], []

        def once_without_id(self, name, uuid, added, apply):
            if tallies:
                tally = tallies.pop(0)
                return once(self, name, uuid, added, lambda *_: tally)
            if self._find(codec.pack_id(name)):
                return once(self, name, uuid, added, apply)
            outcome = apply(uuid, added.sum, added.count)
            if isinstance(outcome, Tally):
                void = added.count < 0
                late.append((VoidScore(Score(uuid, -added.sum, name)) if void else Add(uuid, added, name), outcome))
            return outcome

        def commit_twice(self, batch, counted):
            outcomes = commit_once(self, batch, counted)
            if late:
                changes = [change for change, _ in late]
                tallies.extend(tally for _, tally in late)
                late.clear()
                commit_once(self, changes, counted)
            return outcomes

        commit.Commit._once, lmdb.LmdbStore._commit = once_without_id, commit_twice
        """,
    ),
    "ids-not-looked-up": _patch(
        "a score is counted without a look whether its id was seen before",
        """
        from scoremean.store.embedded import commit

        commit.Commit._find = lambda self, key: None
        """,
    ),
    "fold-drops-journal-first": _patch(
        "a fold drops the journal's records before it has written their tallies into `means`",
        """
        from scoremean.store.embedded import journal

        fold = journal.Journal.fold

        def drop_and_fold(self, *args):
            if self._older.last and self._slices is None:
                while not self._older.drop(args[0]):
                    pass
            return fold(self, *args)

        journal.Journal.fold = drop_and_fold
        """,
    ),
    "drain-skipped": _patch(
        "at a stop nothing waits for the requests under way, nor for the Writer",
        """
        from scoremean import app

        async def stop(self):
            pass

        app.Service.stop = stop
        """,
    ),
    "lost-update": _patch(
        "of two scores of one UUID in a commit, the second does not see the first",
        """
        from scoremean.store.embedded import commit

        add = commit.Commit._add

        def add_to_what_is_stored(self, uuid, *tally):
            self._tallies.pop(uuid, None)
            return add(self, uuid, *tally)

        commit.Commit._add = add_to_what_is_stored
        """,
    ),
    "stale-read": _patch(
        "one read of a UUID in a hundred answers what the read before it found",
        """
        import random
        from scoremean.store.embedded import store as lmdb

        get, seen = lmdb.LmdbStore.get, {}

        def get_stale(self, uuids):
            fresh = get(self, uuids)
            found = [seen.get(uuid, tally) if random.random() < 0.01 else tally for uuid, tally in zip(uuids, fresh)]
            seen.update(zip(uuids, fresh))
            return found

        lmdb.LmdbStore.get = get_stale
        """,
    ),
    "mean-before": _patch(
        "a post is answered with the mean right before its score, not right after it",
        """
        from scoremean.model import Tally
        from scoremean.store.embedded import commit

        add = commit.Commit._add

        def add_and_answer_before(self, uuid, total, count):
            tally = add(self, uuid, total, count)
            return tally if tally.count == count else Tally(tally.sum - total, tally.count - count)

        commit.Commit._add = add_and_answer_before
        """,
    ),
    "leak": _patch(
        "the Writer keeps 1 KiB of each request, and each fiftieth leaves a descriptor open",
        """
        import os
        from scoremean import writer

        post, kept = writer.Writer.post, []

        def keep(self, change):
            kept.append(bytes(1024))
            if len(kept) % 50 == 0:
                os.dup(0)
            return post(self, change)

        writer.Writer.post = keep
        """,
    ),
}

_START = "import sys; from scoremean import cli; sys.exit(cli.main())"


def command(broken: str | None = None, journal: Mapping[str, int] | None = None) -> list[str]:
    """Return what starts `scoremean`, up to the verb.

    Args:
        broken: the name of a broken build; None for scoremean as it is.
        journal: limits of scoremean.store.embedded.journal to run with, such as SMALL_JOURNAL.

    Raises:
        AttributeError: the journal has no such limit.
    """
    parts = [BROKEN[broken].source] if broken else []
    for limit in journal or ():
        getattr(limits, limit)
    if journal:
        parts.append(f"from scoremean.store.embedded import journal as limits\nvars(limits).update({dict(journal)})")
    if not parts:
        return [sys.executable, "-m", "scoremean"]
    return [sys.executable, "-c", "\n".join([*parts, _START])]
