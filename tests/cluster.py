"""A real Redis Cluster: redis-server processes on loopback, each with a directory of its own, which a test may kill and freeze.

All of them end with the test, however that ends: `setpriv --pdeathsig` has the kernel kill them when their parent is gone.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Self

from redis import Redis, RedisError
from redis.backoff import NoBackoff
from redis.retry import Retry

HOST = "127.0.0.1"
SLOTS = 16384
NODE_TIMEOUT_MS = 2000
DEADLINE_SECONDS = 60
POLL_SECONDS = 0.02
# What a node is run with, beside its ports and the time after which it takes another one for dead. As docs/scale-out.md says,
# and what makes a test quick: replicas begin to copy at once, and none goes to another primary.
CONFIG = {
    "appendonly": "yes",
    "appendfsync": "always",
    "maxmemory-policy": "noeviction",
    "cluster-require-full-coverage": "no",
    "save": "",
    "repl-diskless-sync-delay": "0",
    "cluster-allow-replica-migration": "no",
    "cluster-enabled": "yes",
    "protected-mode": "no",
    "bind": HOST,
}


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Return once `condition` holds; who does not answer is asked again. Raises AssertionError past the deadline."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while True:
        with suppress(RedisError):
            if condition():
                return
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {DEADLINE_SECONDS} s")
        time.sleep(POLL_SECONDS)


class View(NamedTuple):
    """What a node says of itself: the id of its primary, or "-" if it is one; its slots; how new that is."""

    primary_id: str
    slots: list[range]
    epoch: int


class Node:
    """A redis-server, by its port.

    Attributes:
        redis: a client of it, which never tries again.
        frozen: whether it is stopped by SIGSTOP.
    """

    def __init__(self, directory: Path, port: int, bus_port: int, config: dict[str, str]):
        directory.mkdir(parents=True)
        self.port = port
        self.bus_port = bus_port
        text = {"decode_responses": True, "encoding_errors": "surrogateescape"}  # a key may be any bytes
        self.redis = Redis(HOST, port, socket_timeout=5, retry=Retry(NoBackoff(), 0), **text)
        self.frozen = False
        self._directory = directory
        self._config = {"port": str(port), "cluster-port": str(bus_port), "dir": str(directory), **config}
        self._process: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        return f"{HOST}:{self.port}"

    @property
    def running(self) -> bool:
        """Whether it can answer: not killed and not frozen."""
        return self._process is not None and self._process.poll() is None and not self.frozen

    @cached_property
    def id(self) -> str:
        """Its name in the cluster, which it keeps."""
        return self.redis.cluster("MYID")

    def start(self) -> None:
        """Start it, with what its directory has. It may not answer yet."""
        command = ["setpriv", "--pdeathsig", "KILL", "redis-server"]
        for name, value in self._config.items():
            command += [f"--{name}", value]
        with open(self._directory / "log", "ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)  # pylint: disable=consider-using-with
        self.frozen = False

    def kill(self) -> None:
        """Send SIGKILL and wait for the end."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def signal(self, number: int) -> None:
        """Send a signal."""
        os.kill(self._process.pid, number)

    def keys(self, slot: int) -> list[bytes]:
        """Return some keys in a slot, as the bytes that they are."""
        return [key.encode(errors="surrogateescape") for key in self.redis.cluster("GETKEYSINSLOT", slot, 10)]

    def view(self) -> View:
        """Return what it says of itself."""
        for one in self.redis.cluster("NODES").values():
            if "myself" in one["flags"]:
                slots = [range(int(ends[0]), int(ends[-1]) + 1) for ends in one["slots"]]
                return View(one["master_id"], slots, int(one["epoch"]))
        raise RedisError("it does not know itself")


class Cluster:
    """A cluster of `primaries` with `replicas` each, made on entry and ended by force on exit.

    Args:
        directory: an empty one, or one that is not there; it holds what the nodes write.
        config: of every node, beside CONFIG.

    Attributes:
        nodes: the primaries first, and then their replicas; after a failover they have other roles.
        url: what `--store` takes.
    """

    def __init__(
        self,
        directory: Path,
        primaries: int = 3,
        replicas: int = 1,
        node_timeout_ms: int = NODE_TIMEOUT_MS,
        config: dict[str, str] | None = None,
    ):
        count = primaries * (1 + replicas)
        ports = _free_ports(2 * count)
        config = {**CONFIG, "cluster-node-timeout": str(node_timeout_ms), **(config or {})}
        self.nodes = [Node(directory / str(port), port, bus, config) for port, bus in zip(ports[:count], ports[count:])]
        self.url = "redis://" + ",".join(map(str, self.nodes))
        self._primaries = primaries
        self._replicas = replicas

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.callback(self._end)
            for node in self.nodes:
                node.start()
            self._join()
            self.wait_until_healthy()
            stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        for node in self.nodes:
            node.kill()
            node.redis.close()

    def _join(self) -> None:
        """Make one cluster of nodes that know nobody."""
        wait_until(lambda: all(node.redis.ping() for node in self.nodes), "all nodes answer")
        primaries, replicas = self.nodes[: self._primaries], self.nodes[self._primaries :]
        for index, node in enumerate(primaries):
            first, last = SLOTS * index // self._primaries, SLOTS * (index + 1) // self._primaries - 1
            node.redis.cluster("ADDSLOTSRANGE", first, last)
            node.redis.cluster("SET-CONFIG-EPOCH", index + 1)
        for node in self.nodes:
            for other in self.nodes:
                if node is not other:
                    node.redis.cluster("MEET", HOST, other.port, other.bus_port)
        for index, node in enumerate(replicas):
            primary = primaries[index % self._primaries]
            wait_until(lambda node=node, primary=primary: _is_replica(node, primary), f"{node} is a replica of {primary}")

    def wait_until_healthy(self) -> None:
        """Return once every node that runs serves, agrees with the others on who has which slot, and copies its primary."""
        wait_until(self._healthy, "the cluster is healthy")

    def _healthy(self) -> bool:
        running = [node for node in self.nodes if node.running]
        for node in running:
            info = node.redis.cluster("INFO")
            if info["cluster_state"] != "ok" or int(info["cluster_slots_ok"]) != SLOTS:
                return False
            replication = node.redis.info("replication")
            if replication["role"] == "slave" and replication["master_link_status"] != "up":
                return False
        return len({str(sorted(node.redis.cluster("SLOTS"), key=str)) for node in running}) == 1

    def empty(self) -> None:
        """Take everything out of it."""
        for node in self.primaries():
            node.redis.flushall()

    def primaries(self) -> list[Node]:
        """Return the nodes that have slots, of those that run."""
        return sorted({id(node): node for node in self._owners()}.values(), key=lambda node: node.port)

    def primary(self, slot: int) -> Node:
        """Return the node that has `slot`, of those that run: of two that say so the one that was told later."""
        owners = [(node.view().epoch, node.port, node) for node in self._owners(slot)]
        if not owners:
            raise RedisError(f"nobody has slot {slot}")
        return max(owners)[-1]

    def _owners(self, slot: int | None = None) -> Iterator[Node]:
        for node in self.nodes:
            if node.running:
                with suppress(RedisError):
                    if any(slot is None or slot in some for some in node.view().slots):
                        yield node

    def replicas(self, primary: Node) -> list[Node]:
        """Return the replicas of a node, of those that run."""
        return [node for node in self.nodes if node.running and node.view().primary_id == primary.id]

    def kill(self, *nodes: Node) -> None:
        """Send SIGKILL to each, and wait for their ends."""
        for node in nodes:
            node.signal(signal.SIGKILL)
        for node in nodes:
            node.kill()

    def freeze(self, node: Node) -> None:
        """Send SIGSTOP: it neither answers nor refuses."""
        node.signal(signal.SIGSTOP)
        node.frozen = True

    def thaw(self, node: Node) -> None:
        """Send SIGCONT."""
        node.signal(signal.SIGCONT)
        node.frozen = False

    def restart(self, *nodes: Node) -> None:
        """Start nodes that were killed, with what they have on disk, and return once they answer.

        To be called in the thread that goes on: they end with it.
        """
        for node in nodes:
            node.start()
        wait_until(lambda: all(_loaded(node) for node in nodes), f"{nodes} answer")

    @contextmanager
    def detached(self, replica: Node) -> Iterator[None]:
        """Keep a replica from copying: it answers and can be promoted, but its primary refuses it, for a password."""
        replica.redis.config_set("masterauth", "wrong")
        replica.redis.execute_command("CLIENT KILL", "TYPE", "master")
        wait_until(lambda: replica.redis.info("replication")["master_link_status"] == "down", f"{replica} is detached")
        try:
            yield
        finally:
            replica.redis.config_set("masterauth", "")

    def wait_until_promoted(self, slot: int, old: Node) -> Node:
        """Return the node that has `slot` in place of `old`, once it has."""
        wait_until(lambda: self.primary(slot) is not old, f"another node than {old} has slot {slot}")
        return self.primary(slot)

    def migrate(self, slot: int, target: Node, before_it_is_told: Callable[[], None] = lambda: None) -> None:
        """Move a slot with its keys to another primary, while it is served.

        Args:
            before_it_is_told: called when the keys have moved and the slot has not: clients are sent from one to the other.
        """
        source = self.primary(slot)
        target.redis.cluster("SETSLOT", slot, "IMPORTING", source.id)
        source.redis.cluster("SETSLOT", slot, "MIGRATING", target.id)
        while keys := source.keys(slot):
            source.redis.migrate(HOST, target.port, keys, 0, 5000)
        before_it_is_told()
        while keys := source.keys(slot):
            source.redis.migrate(HOST, target.port, keys, 0, 5000)
        for node in (target, source, *self.primaries()):
            node.redis.cluster("SETSLOT", slot, "NODE", target.id)


def _loaded(node: Node) -> bool:
    """Whether it answers, with all that it has on disk."""
    return node.redis.ping() and not node.redis.info("persistence")["loading"]


def _is_replica(node: Node, primary: Node) -> bool:
    """Make `node` a replica as soon as it knows `primary`."""
    if node.view().primary_id != primary.id:
        node.redis.cluster("REPLICATE", primary.id)
    return True


def _free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server((HOST, 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]
