"""The cluster store: the contract, and what it alone promises or refuses, on a real cluster of redis-server processes."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future

import pytest
from hypothesis import settings

from scoremean import open_store
from scoremean.errors import NotSupported, StoreError
from scoremean.model import Add, Batch, Forget, Replay, Score, Tally, Void, Voided
from tests.cluster import Cluster
from tests.store_contract import PARTLY_AT_FAULT, StoreContract, StoreMachine
from tests.support import LONG, plain, require_program, scores_of

redis = pytest.importorskip("scoremean.store.redis")
lanes = pytest.importorskip("scoremean.store.lanes")
cluster_module = pytest.importorskip("scoremean.store.cluster")


@pytest.fixture(name="running", scope="module")
def fixture_running(tmp_path_factory) -> Iterator[Cluster]:
    """A cluster that all tests of this module share."""
    require_program("redis-server", "redis-server")
    with Cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


def empty(cluster: Cluster) -> str:
    """Take everything out of a cluster, and return its URL."""
    cluster.empty()
    return cluster.url


@pytest.fixture(name="place")
def fixture_place(running) -> str:
    """The URL of an empty cluster."""
    return empty(running)


@pytest.fixture(name="store")
def fixture_store(place) -> Iterator:
    """A store in an empty cluster, which is checked after the test."""
    with open_store(place) as store:
        yield store
        assert store.check() == []


class TestContract(StoreContract):
    """RedisStore keeps what every store keeps."""

    @pytest.fixture(name="place")
    def fixture_place(self, running):  # pylint: disable=arguments-renamed  # fixtures go by name
        return empty(running)

    def open(self, place):
        return open_store(place)

    def test_a_batch_of_one_request_is_refused_as_a_whole(self, store):
        """For it may lie on several nodes; the sentence says what to do instead. An empty one is no different."""
        refused, none, counted = store.commit([Batch(PARTLY_AT_FAULT), Batch([]), Score("a", 1)])
        assert isinstance(refused, NotSupported) and isinstance(none, NotSupported)
        assert "on_error=skip" in refused.detail
        assert counted == Tally(1, 1)


class RedisMachine(StoreMachine):
    """RedisStore against the oracle."""

    cluster: Cluster

    def __init__(self):
        empty(self.cluster)
        super().__init__()

    def open(self):
        return open_store(self.cluster.url)

    def expected(self, change):
        """A Batch that is all or nothing is not supported."""
        return NotSupported if isinstance(change, Batch) and not change.skip else super().expected(change)

    def order(self, uuid):
        """By slot, then by UUID."""
        return cluster_module.slot_of(redis.MEAN + uuid.encode()), uuid


class TestMachine(RedisMachine.TestCase):
    """Short, or long with SCOREMEAN_LONG."""

    settings = settings(max_examples=1000 if LONG else 25, stateful_step_count=20, deadline=None)

    @pytest.fixture(autouse=True)
    def fixture_cluster(self, running):
        """Give the machine its cluster."""
        RedisMachine.cluster = running


def test_a_slot_is_that_of_the_whole_key():
    """As the specification of Redis Cluster has it, also for a UUID with braces."""
    assert cluster_module.slot_of(b"123456789") == 0x31C3
    assert cluster_module.slot_of(redis.MEAN + b"{a}") != cluster_module.slot_of(redis.MEAN + b"{a}b")


@pytest.mark.parametrize("uuid", ["{a}", "{a}b", "}{", "a{}b"])
def test_a_uuid_with_braces_is_like_any_other(running, store, uuid):
    """The cluster puts it where the store looks for it."""
    assert store.commit([Score(uuid, 3)]) == [Tally(3, 1)]
    key = redis.MEAN + uuid.encode()
    assert running.nodes[0].redis.cluster("KEYSLOT", key.decode()) == cluster_module.slot_of(key)
    assert store.scan(None, 10).tallies == [(uuid, Tally(3, 1))]


@pytest.mark.parametrize(
    ("url", "location"),
    [
        ("redis://a", ([("a", 6379)], False, "", "")),
        ("redis://a:1,b:2/", ([("a", 1), ("b", 2)], False, "", "")),
        ("rediss://:p%40ss@[::1]:7000,[fe80::1]", ([("::1", 7000), ("fe80::1", 6379)], True, "", "p@ss")),
        ("redis://user:secret@a:1", ([("a", 1)], False, "user", "secret")),
    ],
)
def test_a_url_names_some_nodes(url, location):
    """And how to be let in, which is not shown again."""
    parsed = cluster_module.parse_url(url)
    assert parsed == location
    assert "secret" not in str(parsed)


@pytest.mark.parametrize("url", ["redis://", "redis://a:b", "redis://a:1,", "redis://a:1/0", "redis://a?x=1"])
def test_what_is_no_url_is_refused(url):
    """Before anything is connected to."""
    with pytest.raises(StoreError, match="must be redis://"):
        open_store(url)


def test_a_cluster_that_is_not_there_is_refused(running):
    """Nobody listens; or it is no cluster, or has no slots yet."""
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    with pytest.raises(StoreError, match=f"no node of redis://127.0.0.1:{port} answers"):
        open_store(f"redis://127.0.0.1:{port}")
    with open_store(f"redis://127.0.0.1:{port},{running.nodes[0]}") as store:
        assert store.get(["a"]) == [None]


def test_a_cluster_that_would_lose_answers_is_refused(running, place):
    """The message says which node, and what to set."""
    node = running.primaries()[0]
    node.redis.config_set("appendfsync", "everysec")
    try:
        with pytest.raises(StoreError, match=f"{node} has appendfsync everysec, .* set it to always on every node"):
            open_store(place)
        open_store(place, readonly=True).close()
    finally:
        node.redis.config_set("appendfsync", "always")


def test_scores_follow_a_slot_that_moves(running, store):
    """While its keys move (ASK), and when clients have not been told yet where it went (MOVED); reads and scans too."""
    score = Score("a", 5, "id-1")
    slot = cluster_module.slot_of(redis.MEAN + b"a")
    source = running.primary(slot)
    target = next(node for node in running.primaries() if node is not source)
    assert store.commit([score]) == [Tally(5, 1)]

    def use() -> None:
        assert store.commit([score, Score("a", 1)]) == [Replay(5, 1), Tally(6, 2)]
        assert store.get(["a"]) == [Tally(6, 2)]
        assert store.scan(None, 10).tallies == [("a", Tally(6, 2))]

    running.migrate(slot, target, before_it_is_told=use)
    try:
        assert store.commit([score, Score("a", 2)]) == [Replay(5, 1), Tally(8, 3)]
        assert store.scan(None, 10).tallies == [("a", Tally(8, 3))]
    finally:
        running.migrate(slot, source)
    assert store.get(["a"]) == [Tally(8, 3)]


def test_a_script_that_a_node_has_lost_is_loaded_again(running, store):
    """NOSCRIPT counts nothing."""
    store.commit([Score("a", 1)])
    for node in running.primaries():
        node.redis.script_flush()
    assert store.commit([Score("a", 2)]) == [Tally(3, 2)]


def test_a_call_that_is_sent_again_is_answered_and_not_counted(running, store):
    """By its number; one that a later call has overtaken is neither."""
    store.commit([Score("a", 1)])
    key = (redis.MEAN + b"a").decode()
    node = running.primary(cluster_module.slot_of(key.encode())).redis
    sha = node.script_load(lanes.SCRIPT.decode())

    def call(process: str, number: int, *changes: object) -> bytes:
        return node.evalsha(sha, 1, key, process, number, 1_800_000_000, 3600, *changes)

    assert call("one", 1, "a", 5, 1) == "6 2"
    assert call("two", 1, "a", 1, 1, "f", "a", 2, 1) == "7 3;7 3;2 1"
    assert call("one", 1, "a", 5, 1) == "6 2"
    assert call("one", 3, "a", 1, 1) == "3 2"
    assert call("one", 2, "a", 1, 1) == "late"
    assert store.get(["a"]) == [Tally(3, 2)]
    node.delete(key)


def test_tallies_are_exact_beyond_what_a_float_holds(store):
    """Up to 64 bits, in both directions, also when it is voided."""
    count = 1 << 40
    large = Tally(count * 1_000_000 - 1, count)
    assert store.commit([Add("a", large, "id-1"), Score("a", 2)]) == [large, large + Tally(2, 1)]
    assert store.commit([Score("a", -1)]) == [large + Tally(1, 2)]
    assert store.commit([Void("id-1")]) == [Voided("a", Tally(1, 2))]
    assert store.commit([Add("b", Tally(-large.sum, count), "id-2"), Void("id-2")])[1] == Voided("b", Tally(0, 0))


def test_ids_are_kept_for_their_time_and_then_go(running, place):
    """A UUID that gets ever new ids keeps not many more than those of the time that they are kept."""
    now = 1_800_000_000.0
    with open_store(place, id_retention_seconds=1000, clock=lambda: now) as store:
        store.commit([Score("a", 1, "first")])
        for _ in range(200):
            now += 100
            store.commit([Score("a", 1, f"{now}-{n}") for n in range(10)])
            again = store.commit([Score("a", 1, f"{now - 900}-0")])[0]
            assert isinstance(again, Replay) == (now >= 1_800_001_000)
        key = redis.MEAN + b"a"
        kept = running.primary(cluster_module.slot_of(key)).redis.hlen(key)
        assert 100 < kept < 300


def test_a_uuid_without_scores_goes_with_its_ids(running, store):
    """It expires, unless a score comes first."""
    key = redis.MEAN + b"a"
    node = running.primary(cluster_module.slot_of(key)).redis
    store.commit([Score("a", 5, "id-1"), Forget("a")])
    assert 0 < node.ttl(key) <= redis.ID_RETENTION_SECONDS
    assert store.stats().uuids == 0
    store.commit([Score("a", 1)])
    assert node.ttl(key) == -1
    assert store.stats().uuids == 1


def test_damage_is_found(running, place):
    """A tally that cannot be, an id that does not agree with it, what is no number."""
    with open_store(place) as store:
        store.commit([Score("a", 5, "id-1"), Score("b", 1), Score("c", 1)])
        for uuid, field, value in (("a", "c", "0"), ("b", "s", "9999999"), ("c", "s", "x")):
            key = redis.MEAN + uuid.encode()
            running.primary(cluster_module.slot_of(key)).redis.hset(key, field, value)
        damages = store.check()
    assert [damage.split(":")[0].split(",")[0] for damage in sorted(damages)] == [f"the UUID '{uuid}'" for uuid in "abc"]


def test_two_stores_are_one_truth(place):
    """What one has answered the other reads; an id counts once, whoever sends it."""
    with open_store(place) as one, open_store(place) as two:
        assert one.commit([Score("a", 5, "id-1")]) == [Tally(5, 1)]
        assert two.commit([Score("a", 5, "id-1"), Score("a", 1)]) == [Replay(5, 1), Tally(6, 2)]
        assert one.get(["a"]) == [Tally(6, 2)]
        assert plain(one.commit([Void("id-1")])[0]) == Voided("a", Tally(1, 1))


def test_a_shard_that_does_not_answer_holds_up_no_other(running, store):
    """Its changes come late, each by itself, and are counted once when it answers again."""
    node = running.primaries()[0]
    names = [f"u{n}" for n in range(40)]
    stuck = {name for name in names if running.primary(cluster_module.slot_of(redis.MEAN + name.encode())) is node}
    store.commit(scores_of([(name, 1) for name in names]))
    running.freeze(node)
    try:
        outcomes = dict(zip(names, store.submit(scores_of([(name, 2) for name in names])).result()))
        late = {name for name, outcome in outcomes.items() if isinstance(outcome, Future)}
        assert late == stuck
        assert {outcomes[name] for name in set(names) - stuck} == {Tally(3, 2)}
    finally:
        running.thaw(node)
    assert {outcomes[name].result() for name in late} == {Tally(3, 2)}
    running.wait_until_healthy()


def test_without_the_extra_nothing_of_it_is_imported(tmp_path):
    """A store in a directory needs no hiredis; one on a cluster says how to get it."""
    code = (
        "import sys; sys.modules['hiredis'] = None\n"
        "from scoremean import open_store, cli; from scoremean.errors import StoreError\n"
        "open_store(sys.argv[1]).close(); assert not {'scoremean.store.redis', 'redis'} & set(sys.modules)\n"
        "try: open_store('redis://a')\nexcept StoreError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "s"], capture_output=True, text=True, check=True)
    assert done.stdout == "a store on Redis Cluster needs hiredis: pip install 'scoremean[redis]'\n"
