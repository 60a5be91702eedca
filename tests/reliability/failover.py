"""Failures of a cluster under the load of two front ends: nodes that are killed, frozen and cut off, slots that move."""

from __future__ import annotations

import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from inspect import cleandoc
from typing import NamedTuple

from scoremean import open_store
from tests.cluster import NODE_TIMEOUT_MS, Cluster
from tests.reliability import broken, wire
from tests.reliability.campaign import Finding, Missing, Trial, campaign
from tests.reliability.failover_clients import Load, Pause, Shard, find_shards, look
from tests.reliability.history import SEED_SCORE, Recorder, verdict
from tests.reliability.ledger import FLAGS, Ledger
from tests.support import Server

REQUESTS, REQUESTS_SHORT = 200_000, 10_000
ROUNDS, ROUNDS_SHORT, ROUNDS_BROKEN = 20, 1, 20
FRONT_ENDS = 2
BACK_MAX_SECONDS = 10
# What every shard must answer before a failure and after it, and the others while it lasts.
ANSWERS = 50
MIGRATED_SLOTS = 8

BROKEN_HERE = {
    "calls-without-numbers": (
        "the cluster does not know a call that it is sent again from another one",
        cleandoc("""
        import hashlib
        from scoremean.store import lanes

        script = lanes.SCRIPT.replace(b"packed and cmsgpack.unpack(packed) or {}", b"{}")
        assert script != lanes.SCRIPT
        lanes.SCRIPT, lanes._EVALSHA = script, (b"EVALSHA", hashlib.sha1(script).hexdigest().encode(), 1)
        """),
    ),
    "reads-kept": (
        "a front end answers a read with what it read up to 50 ms ago",
        cleandoc("""
        import time
        from scoremean.store import redis

        get, kept = redis.RedisStore.get, {}

        def get_kept(self, uuids):
            now = time.monotonic()
            for uuid, tally in zip(uuids, get(self, uuids)):
                if uuid not in kept or kept[uuid][0] < now - 0.05:
                    kept[uuid] = now, tally
            return [kept[uuid][1] for uuid in uuids]

        redis.RedisStore.get = get_kept
        """),
    ),
    "tally-of-the-round": (
        "scores of one UUID that are counted together are all answered with the tally after the last of them",
        cleandoc("""
        from scoremean.model import Tally
        from scoremean.store import lanes

        def settle(self, answer, counted):
            tally = Tally(*map(int, answer.split()))
            for (outcomes, place), _, _ in self._takers:
                outcomes.settle(place, tally)

        lanes._Sum.settle = settle
        """),
    ),
    "no-wait": (
        "a score is answered when its primary has it, whatever replicas have (`--wait-replicas 0`)",
        "import sys; sys.argv += ['--wait-replicas', '0']",
    ),
    "nothing-on-disk": ("every node stops to write its file (`appendonly no`) once the front ends have looked", ""),
}


class Act(NamedTuple):
    """What a failure is made of."""

    cluster: Cluster
    load: Load
    shard: Shard
    chance: random.Random


class Trials:
    """A cluster and its front ends, from failure to failure.

    Attributes:
        urls: where the front ends listen.
        found: how much was lost, double and so on; nothing if all is well.
        pauses: the longest pause of the shard that failed, each time.
        others: the longest pause of another shard, each time.
    """

    def __init__(self, cluster: Cluster, servers: list[Server], chance: random.Random):
        self.cluster = cluster
        self._servers = servers
        self.urls = [server.url for server in servers]
        self._chance = chance
        self.ledger = Ledger(chance, skip=True)
        self.found: Counter[str] = Counter()
        self.pauses: list[Pause] = []
        self.others: list[float] = []

    def run(self, act: Callable[[Act], None]) -> None:
        """Fail once, under load, and look at what is left. While one shard has a pause of a second, the others must go on."""
        shards = find_shards(self.cluster, self.urls[0], self.ledger)
        shard = self._chance.choice(shards)
        with Load(self.urls, self.ledger, shards) as load:
            load.wait_for_answers(ANSWERS)
            act(Act(self.cluster, load, shard, self._chance))
            self.cluster.wait_until_healthy()
            load.wait_for_answers(ANSWERS)
        pause = load.pause(shard.slot)
        self.pauses.append(pause)
        others = [other for other in shards if other is not shard]
        self.others.append(max(load.pause(other.slot).seconds for other in others))
        if pause.seconds > 1 and act is not _kill_all:
            self.found["stalled"] += sum(load.answered_in(other.slot, pause) < ANSWERS for other in others)
        self.found += load.found
        self.found += look(self.urls, self.ledger)

    def finish(self) -> None:
        """End the front ends and read all of the cluster."""
        for server in self._servers:
            server.terminate()
            code, messages = server.wait()
            self.found["exit code not 0"] += code != 0
            errors = _errors(messages)
            print("\n".join(errors), file=sys.stderr)
            self.found["errors in the log"] += len(errors)
        with open_store(self.cluster.url) as store:
            damages = store.check()
        for damage in damages:
            print(f"  {damage}", file=sys.stderr)
        self.found["damages"] += len(damages)


@contextmanager
def _clustered(trial: Trial, chance: random.Random, *flags: str) -> Iterator[Trials]:
    if not shutil.which("redis-server"):
        raise Missing("needs redis-server")
    with Cluster(trial.work / "cluster") as cluster, ExitStack() as stack:
        servers = [Server(cluster.url, *(flags or FLAGS), program=broken.command(trial.broken)) for _ in range(FRONT_ENDS)]
        for server in servers:
            stack.enter_context(server)
        try:
            yield Trials(cluster, servers, chance)
        except Exception:
            for server in servers:
                print("\n".join(_errors(server.messages())), file=sys.stderr)
            raise


def _errors(messages: str) -> list[str]:
    """Return what of a log is an error, one line each."""
    return [line for line in messages.splitlines() if " ERROR " in line or " CRITICAL " in line]


def _fail(trial: Trial, act: Callable[[Act], None]) -> Finding:
    """Fail again and again, a broken build until it is caught, and say what came of it."""
    chance, seed = wire.seeded()
    rounds = ROUNDS_BROKEN if trial.broken else ROUNDS_SHORT if trial.short else ROUNDS
    with _clustered(trial, chance) as trials:
        if trial.broken == "nothing-on-disk":
            for node in trials.cluster.nodes:
                node.redis.config_set("appendonly", "no")
        for number in range(rounds):
            trials.run(act)
            if number % 5 == 4:
                print(f"  {number + 1} of {rounds} rounds", file=sys.stderr, flush=True)
            if trial.broken and +trials.found:
                break
        else:
            trials.finish()
    found = +trials.found
    if found:
        print(f"  seed {seed}: {dict(found)}", file=sys.stderr)
    longest = max(pause.seconds for pause in trials.pauses)
    kinds = ", ".join(f"{found[kind]} {kind}" for kind in dict.fromkeys(["lost", "double", *found]))
    figure = f"{kinds} of {trials.ledger.scores:,} acknowledged scores in {len(trials.pauses)} rounds"
    figure += f"; the shard was back after {longest:.1f} s at most, another paused for {max(trials.others):.1f} s at most"
    return Finding(figure, not found and (trial.short or longest <= BACK_MAX_SECONDS))


GOAL = "0 lost, 0 double; the shard is back within 10 s, and the others go on meanwhile"


@campaign("a primary is killed", GOAL, "calls-without-numbers")
def killed_primary(trial: Trial) -> Finding:
    """Two front ends on a cluster of 3 primaries with a replica each, `cluster-node-timeout` 2,000 ms, at the default of
    `wait_replicas`, 1. At both, 16 connections post single scores, batches and voids, half of them with ids; and a client for
    each shard posts to it alone, which is how its pauses are known. A primary gets SIGKILL, and is started again when its
    replica was promoted, as a supervisor would.

    When all is healthy, what has ids and no answer is sent again. Then both front ends must tell the same, and of every UUID
    exactly what was acknowledged, and of what has no answer and no id all or nothing. Scores are random out of a million, so a
    sum tells which ones it holds. At the end the whole cluster is read and checked.
    """
    return _fail(trial, _kill)


def _kill(act: Act) -> None:
    primary = act.cluster.primary(act.shard.slot)
    act.cluster.kill(primary)
    act.cluster.wait_until_promoted(act.shard.slot, primary)
    act.cluster.restart(primary)


@campaign("a primary is killed whose replica is behind", GOAL, "no-wait")
def killed_detached(trial: Trial) -> Finding:
    """Likewise; but 0.3 s before, the replica of the primary loses its connection and does not get it back, so it is promoted
    without what came since. Nothing of that may have been acknowledged.
    """
    return _fail(trial, _detach_and_kill)


def _detach_and_kill(act: Act) -> None:
    cluster, primary = act.cluster, act.cluster.primary(act.shard.slot)
    [replica] = cluster.replicas(primary)
    with cluster.detached(replica):
        time.sleep(0.3)
        cluster.kill(primary)
        cluster.wait_until_promoted(act.shard.slot, primary)
    cluster.restart(primary)


@campaign("a primary is frozen", GOAL, "calls-without-numbers")
def frozen_primary(trial: Trial) -> Finding:
    """Likewise; but the primary gets SIGSTOP. In every second round SIGCONT comes when its replica was promoted: it still has
    requests that were sent to it, and does not know yet that it is no primary any more. In the others SIGCONT comes before
    anyone has noticed.
    """
    return _fail(trial, _freeze_primary)


def _freeze_primary(act: Act) -> None:
    primary = act.cluster.primary(act.shard.slot)
    act.cluster.freeze(primary)
    if act.chance.random() < 0.5:
        act.cluster.wait_until_promoted(act.shard.slot, primary)
    else:
        time.sleep(NODE_TIMEOUT_MS / 2000)
    act.cluster.thaw(primary)


@campaign("a replica is frozen", GOAL, "calls-without-numbers")
def frozen_replica(trial: Trial) -> Finding:
    """Likewise; but the replica gets SIGSTOP, and SIGCONT 3 s later: its primary counts what it is sent, and can acknowledge
    nothing of it.
    """
    return _fail(trial, _freeze_replica)


def _freeze_replica(act: Act) -> None:
    [replica] = act.cluster.replicas(act.cluster.primary(act.shard.slot))
    act.cluster.freeze(replica)
    time.sleep(3)
    act.cluster.thaw(replica)


@campaign("slots move", GOAL, "calls-without-numbers")
def moved_slots(trial: Trial) -> Finding:
    """Likewise; but slots of UUIDs under load move from the shard to another one: `CLUSTER SETSLOT`, `MIGRATE`. Each waits half
    way, its keys moved, until every shard has answered more scores. Then all connections to the old primary are cut, so that
    what was sent to one and not answered is sent again to the other.
    """
    return _fail(trial, _move)


def _move(act: Act) -> None:
    cluster, source = act.cluster, act.cluster.primary(act.shard.slot)
    others = [node for node in cluster.primaries() if node is not source]
    keys = list(source.redis.scan_iter(match="*lasting-*", count=10_000))
    slots = sorted({source.redis.cluster("KEYSLOT", key) for key in keys})

    def cut() -> None:
        act.load.wait_for_answers(5)
        source.redis.execute_command("CLIENT KILL", "TYPE", "normal", "SKIPME", "yes")

    for slot in act.chance.sample(slots, min(len(slots), MIGRATED_SLOTS)):
        cluster.migrate(slot, act.chance.choice(others), cut)


@campaign("all are killed", "0 lost, 0 double; the cluster is back within 10 s", "nothing-on-disk")
def killed_all(trial: Trial) -> Finding:
    """Likewise; but all 6 processes get SIGKILL at once, and are started again: all that was acknowledged is on disk."""
    return _fail(trial, _kill_all)


def _kill_all(act: Act) -> None:
    act.cluster.kill(*act.cluster.nodes)
    act.cluster.restart(*act.cluster.nodes)


@campaign("linearizability, two front ends", "200,000 operations: 0 violations", "reads-kept", "tally-of-the-round")
def two_front_ends(trial: Trial) -> Finding:
    """As [linearizability](#linearizability), with half of the connections to each of two front ends on one cluster.

    What one has answered, the other must know.
    """
    chance, seed = wire.seeded()
    requests = REQUESTS_SHORT if trial.short or trial.broken else REQUESTS
    with _clustered(trial, chance, "--score-max", str(SEED_SCORE)) as trials:
        recorder = Recorder(trials.urls, requests, chance, skip=True)
        wire.run(recorder.run())
        trials.finish()
    return verdict(recorder.faults + trials.found, recorder.counts, seed)
