"""The rows of the page: a function each, whose docstring is what the page says of it, and which returns its figures."""

from __future__ import annotations

import os
import signal
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from tests.benchmarks import data, subjects
from tests.benchmarks.load import Load, Wrk, commits, commits_killed, paced, watch
from tests.benchmarks.run import Figure, Result, Run, ratio
from tests.benchmarks.subjects import Database, Missing, Server

# A server, and what to send to it in a round.
_Loaded = tuple[Server, Callable[[int], Load]]


def _rates(run: Run, subject: Mapping[str, _Loaded]) -> tuple[dict[str, list[float]], Result]:
    """Alternate between servers under wrk; return the requests a second, and a result that shows them."""
    wrk, result = Wrk(), Result()
    for server, load in () if run.quick else subject.values():
        wrk.rate(server, replace(load(0), seconds=1))  # to warm up
    measures = {name: lambda turn, at=at, load=load: wrk.rate(at, load(turn)) for name, (at, load) in subject.items()}
    values = run.alternate(measures)
    for name, rates in values.items():
        result.add(Figure(name, rates, "requests/s"), bar=True)
    result.notes.append(f"wrk was busy for at most {wrk.busiest:.0%} of the time.")
    return values, result


def single(run: Run) -> Result:
    """Durable single posts over 64 connections, and the no-op under the same load.

    Each post is a random one of the UUIDs, and each of these has a score already.
    """
    return _to_noop(run, run.posts, 0.85)


def single256(run: Run) -> Result:
    """The same over 256 connections."""
    return _to_noop(run, lambda seed: run.posts(seed, connections=256), 0.85)


def read(run: Run) -> Result:
    """`GET /means/{UUID}` of random UUIDs over 64 connections, and the no-op's constant answer at the same path."""

    return _to_noop(run, run.reads, 0.9)


def _to_noop(run: Run, load: Callable[[int], Load], goal: float) -> Result:
    with subjects.noop(run.place()) as noop, run.scoremean() as server:
        values, result = _rates(run, {"scoremean": (server, load), "no-op": (noop, load)})
    result.add(ratio("scoremean to the no-op", values["scoremean"], values["no-op"], at_least=goal))
    return result


def watched(run: Run) -> Result:
    """The same single posts, and the reads, to a service whose page is open and to one that nobody watches.

    An open page reads the stream `/events`: each second the figures, and an overview, for which the store is read again and
    again.
    """
    result = Result()
    for what, load in (("posts", run.posts), ("reads", run.reads)):
        with run.scoremean() as alone, run.scoremean() as server, watch(server) as overviews:
            names = [f"{what}, page open", f"{what}, nobody watches"]
            values, rates = _rates(run, {names[0]: (server, load), names[1]: (alone, load)})
        for figure in rates.figures:
            result.add(figure, bar=True)
        result.add(ratio(f"{what}: open to not", values[names[0]], values[names[1]], at_least=0.97))
        result.add(Figure(f"{what}: overviews that the page got", [overviews()], "overviews"))
    return result


def peers(run: Run) -> Result:
    """The same single posts over 64 connections as in `single`, to services of the usual kind that are equally durable.

    FastAPI is served by uvicorn with uvloop and httptools, without an access log, in 2 workers unless it says one; scoremean is
    one process throughout. The goal is judged against both, since its prototype had one worker. The no-op is there too: no
    service on this framework can be further ahead of a peer than it is. Redis has
    `appendonly yes` and `appendfsync always`, and adds in one script; PostgreSQL has `fsync` and `synchronous_commit` on, and
    upserts over pools of 16; both are reached over Unix sockets. SQLite is in WAL with `synchronous=FULL`, under gunicorn with
    4 workers of 2 threads. tests/benchmarks/subjects.py has what else was tried.
    """
    missing = []
    with ExitStack() as stack:
        subject = {"scoremean": (stack.enter_context(run.scoremean()), run.posts)}
        subject["no-op"] = (stack.enter_context(subjects.noop(run.place())), run.posts)
        for peer in subjects.ALL_PEERS:
            try:
                subjects.require_peers(install=not run.quick)
                subject[peer.name] = (stack.enter_context(peer.serve(run.place(), run.once)), run.posts)
            except Missing as error:
                missing.append(f"{peer.name} is missing: {error}.")
        values, result = _rates(run, subject)
    for name in list(values)[2:]:
        goal = 12 if "SQLite" in name else 8
        result.add(ratio(f"scoremean to {name}", values["scoremean"], values[name], at_least=goal))
        result.add(ratio(f"the no-op to {name}", values["no-op"], values[name]))
    result.notes += missing
    return result


def disk(run: Run) -> Result:
    """What a score costs the disk: batches of 64 random scores are committed to a store of a million UUIDs.

    Bytes are `wchar` and writes are `syscw` of `/proc/self/io`: the bytes and the calls that the process hands to the kernel,
    before and after, folds included. `write_bytes` are the pages that these calls made the kernel write to the disk.
    """
    scale, result = run.scale, Result()
    found = commits(data.store(run.place() / "store", scale.million), scale.million, scale.commits)
    scores = scale.commits * 64
    result.add(Figure("bytes a score", [found["wchar"] / scores], "bytes", at_most=600))
    result.add(Figure("writes a commit", [found["syscw"] / scale.commits], "writes", at_most=8))
    result.add(Figure("bytes a score, in whole pages (`write_bytes`)", [found["write_bytes"] / scores], "bytes"))
    result.add(Figure("a commit", [found["commit_median_ms"]], "ms"))
    return result


def size(run: Run) -> Result:
    """Durable single posts over 64 connections to a store of many UUIDs, and to a small one.

    Each post is a random one of the UUIDs; the file of the large store is in the page cache as far as copying it left it there.
    """
    few, many = run.scale.few, run.scale.many
    with ExitStack() as stack:
        subject = {}
        for uuids in (few, many):
            server = stack.enter_context(run.scoremean(data.store(run.place() / "store", uuids)))
            subject[f"{uuids:,} UUIDs"] = (server, lambda seed, uuids=uuids: run.posts(seed, uuids))
        values, result = _rates(run, subject)
    below, above = values.values()
    result.add(ratio(f"{many:,} UUIDs to {few:,}", above, below, at_least=0.8))
    return result


def latency(run: Run) -> Result:
    """Latency of durable single posts over 64 connections at half the peak rate, and the no-op's at the same rate.

    The peak is what wrk measures just before. Then posts come at a constant rate, whether or not earlier ones were answered,
    and the time of each is counted from the moment it was due.
    """
    result, figures = Result(), []
    with subjects.noop(run.place()) as noop, run.scoremean() as server:
        peak = statistics.median([Wrk().rate(server, run.posts(seed)) for seed in range(run.scale.rounds)])

        def p99(at: Server, turn: int) -> float:
            figures.append((at, paced(at, run.posts(turn), peak / 2)))
            return figures[-1][1]["p99"]

        values = run.alternate({"scoremean": lambda turn: p99(server, turn), "no-op": lambda turn: p99(noop, turn)})
    result.add(Figure("the rate", [found["rate"] for at, found in figures if at is server], "requests/s"))
    result.add(Figure("scoremean, p99", values["scoremean"], "ms", at_most=5), bar=True)
    for name in ("p50", "p99.9", "longest"):
        result.add(Figure(f"scoremean, {name}", [found[name] for at, found in figures if at is server], "ms"))
    result.add(Figure("no-op, p99", values["no-op"], "ms"), bar=True)
    result.notes.append(f"The generator used at most {max(found['busy'] for _, found in figures):.0%} of one core.")
    return result


def longest(run: Run) -> Result:
    """The longest single commit, folds included: 64 random scores each, to a store of a million UUIDs.

    Each commit is followed by a plain write of 24 KiB and its sync in the same directory; the longest of these is the disk's
    own.
    """
    scale, result = run.scale, Result()
    store, rounds = data.store(run.place() / "store", scale.million), []
    for turn in range(2):
        rounds.append(commits(store, scale.million, scale.commits // 2, "--disk", f"--seed={turn}"))
    commit, plain = (max(found[f"{name}_longest_ms"] for found in rounds) for name in ("commit", "plain"))
    result.add(Figure("the longest commit", [commit], "ms"), bar=True)
    result.add(Figure("the disk's own longest", [plain], "ms"), bar=True)
    result.add(Figure("the difference", [commit - plain], "ms", at_most=10))
    for name, key in (("a commit, the median", "commit"), ("a plain write, the median", "plain")):
        result.add(Figure(name, [found[f"{key}_median_ms"] for found in rounds], "ms"))
    return result


def imports(run: Run) -> Result:
    """`scoremean import` of NDJSON into a new store: a million lines of random UUIDs, the time of the whole process."""
    scale, result = run.scale, Result()
    scores = run.drawn(".ndjson", scale.uuids, scale.million, 0)
    kinds = {"ids off (--no-ids)": (["--no-ids"], 1_000_000), "ids on": ([], 300_000)}
    measures = {
        name: lambda _, flags=flags: scale.million / subjects.import_scores(run.place() / "store", scores, *flags)
        for name, (flags, _) in kinds.items()
    }
    for name, values in run.alternate(measures).items():
        result.add(Figure(name, values, "scores/s", at_least=kinds[name][1]), bar=True)
    return result


def batch(run: Run) -> Result:
    """Posts of 1,000 random scores each (NDJSON, each score answered with its mean), over 4 connections."""
    scores = run.drawn(".ndjson", run.scale.uuids, run.scale.requests, 0)
    with run.scoremean() as server:
        values, result = _rates(run, {"scoremean": (server, lambda _: Load(scores, run.scale.seconds, 4, lines=1000))})
    result.bars.clear()
    result.add(Figure("scores", [1000 * rate for rate in values["scoremean"]], "scores/s", at_least=300_000))
    return result


def bulk(run: Run) -> Result:
    """A million scores loaded in bulk, by whole processes into empty databases that are durable at the end.

    SQLite takes them in one transaction of `executemany` upserts, PostgreSQL by `COPY` into a temporary table and one upsert,
    Redis by `redis-cli --pipe` of two `HINCRBY` a score. Each gets a file made beforehand in the form it reads with least work
    (tab-separated; Redis its own protocol), scoremean the NDJSON, with --no-ids.
    """
    scale, missing = run.scale, []

    def load(database: Database) -> float:
        database.clear()
        return scale.million / database.load(run.drawn(database.suffix, scale.uuids, scale.million, 0))

    with ExitStack() as stack:
        scores = run.drawn(".ndjson", scale.uuids, scale.million, 0)
        measures = {"scoremean": lambda _: scale.million / subjects.import_scores(run.place() / "store", scores, "--no-ids")}
        for kind in (subjects.sqlite, subjects.postgresql, subjects.redis):
            try:
                database = stack.enter_context(kind(run.place()))
                run.drawn(database.suffix, scale.uuids, scale.million, 0)
                measures[database.name] = lambda _, database=database: load(database)
            except Missing as error:
                missing.append(f"{kind.__name__} is missing: {error}.")
        values = run.alternate(measures)
    result = Result(notes=missing)
    for name, rates in values.items():
        result.add(Figure(name, rates, "scores/s"), bar=True)
    for name in list(values)[1:]:
        result.add(ratio(f"scoremean to {name}", values["scoremean"], values[name], at_least=1))
    return result


def memory(run: Run) -> Result:
    """Resident memory, idle (`VmRSS`) and under 64 connections of single posts (`VmHWM`), and the time to the first answer.

    The start is with many UUIDs, and a journal that random scores have filled to 98% of where a fold begins, when the process
    was killed with SIGKILL; the file is in the page cache. `RssFile` is the part of the memory that is a view of the store's
    file and of programs, which the kernel takes back when it is needed; `RssAnon` is the process's own.
    """
    scale, result = run.scale, Result()
    many = data.store(run.place() / "store", scale.many)
    with run.scoremean() as server:
        _memory(run, server, scale.uuids, result, goals=(60, 200))
    commits_killed(many, scale.many, scale.journal_commits)
    starts = []
    for turn in range(scale.rounds):
        begin = time.perf_counter()
        with run.scoremean(many) as server:  # returns at the first answer
            starts.append(time.perf_counter() - begin)
            if turn == scale.rounds - 1:
                _memory(run, server, scale.many, result, goals=(None, None))
            os.kill(server.pid, signal.SIGKILL)  # so that the next one finds the same journal
    result.add(Figure(f"start with {scale.many:,} UUIDs and a full journal", starts, "s", at_most=1))
    return result


def _memory(run: Run, server: Server, uuids: int, result: Result, goals: tuple[int | None, int | None]) -> None:
    idle = _resident(server.pid)
    Wrk().rate(server, run.posts(0, uuids))
    loaded = _resident(server.pid)
    for when, found, key, goal in (("idle", idle, "VmRSS", goals[0]), ("under load, peak", loaded, "VmHWM", goals[1])):
        name = f"{uuids:,} UUIDs, {when}"
        result.add(Figure(name, [found[key]], "MB", at_most=goal), bar=True)
        result.add(Figure(f"{name}: of it RssAnon", [found["RssAnon"]], "MB"))
        result.add(Figure(f"{name}: of it RssFile", [found["RssFile"]], "MB"))


def _resident(pid: int) -> dict[str, float]:
    """Return the resident memory of a process in MB, by the names that /proc gives."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    sizes = (line.partition(":") for line in lines if line.endswith(" kB"))
    return {name: int(text.split()[0]) * 1024 / 1e6 for name, _, text in sizes}


ROWS = {
    "single": single,
    "single-256": single256,
    "peers": peers,
    "read": read,
    "watched": watched,
    "disk": disk,
    "size": size,
    "latency": latency,
    "longest": longest,
    "import": imports,
    "batch": batch,
    "bulk": bulk,
    "memory": memory,
}
