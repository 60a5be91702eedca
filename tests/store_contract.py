"""What every store must keep. A store's test module inherits StoreContract and StoreMachine, and says how to open it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from scoremean.errors import (
    IdConflict,
    IdVoided,
    InvalidBatch,
    InvalidId,
    InvalidQuery,
    InvalidScore,
    InvalidUUID,
    NoSuchScore,
    StoreError,
    UnknownId,
    UnknownUUID,
)
from scoremean.model import COUNT_BOUND, Add, Batch, Forget, Merge, Replay, Score, Tally, Void, Voided, VoidScore
from scoremean.store.base import Change, Outcome, Store
from tests.support import Oracle, plain, scores_of

UUIDS = st.sampled_from(["a1-b1", "a", "b", "é/ü", "\U0001f600", "z" * 256])
IDS = st.sampled_from(["id-1", "id-2", "id-3", "é"])
SCORES = st.builds(Score, UUIDS, st.integers(0, 5), st.none() | IDS)
BATCHES = st.builds(Batch, st.lists(SCORES, max_size=4), st.booleans())
MERGES = st.lists(UUIDS, min_size=2, max_size=2, unique=True).map(lambda pair: Merge(*pair))
VOIDS = st.builds(Void, IDS) | st.builds(VoidScore, st.builds(Score, UUIDS, st.integers(0, 5), IDS))
CHANGES = SCORES | BATCHES | VOIDS | st.builds(Forget, UUIDS) | MERGES

USED = [Score("a", 5, "used"), Score("a", 1, "gone"), Void("gone")]
PARTLY_AT_FAULT = [
    Score("b", 1, "new"),
    Score("a", 4, "used"),
    Score("b", 2, "new"),
    Score("b", 1, "new"),
    Score("a", 1, "gone"),
]


class StoreContract(ABC):
    """One method a promise."""

    @abstractmethod
    def open(self, place: Path, **options: Any) -> Store:
        """Open the store at `place`, new or not."""

    @pytest.fixture(name="place")
    def fixture_place(self, tmp_path: Path) -> Path:
        """Where this test's store is."""
        return tmp_path / "store"

    @pytest.fixture(name="store")
    def fixture_store(self, place: Path) -> Iterator[Store]:
        """A new store, which is checked after the test."""
        with self.open(place) as store:
            yield store
            assert store.check() == []

    def test_a_new_store_is_empty(self, store):
        """No tally, no score, no damage."""
        assert store.get(["a"]) == [None]
        assert store.scan(None, 10).tallies == []
        assert (store.stats().uuids, store.stats().scores) == (0, 0)

    def test_each_score_gets_the_tally_after_it(self, store):
        """Scores of one UUID in one batch see each other in order."""
        batch = scores_of([("a", 5), ("b", 1), ("a", 3), ("a", 4)])
        assert store.commit(batch) == [Tally(5, 1), Tally(1, 1), Tally(8, 2), Tally(12, 3)]
        assert store.commit([Score("b", 0)]) == [Tally(1, 2)]
        assert store.get(["b", "x", "a"]) == [Tally(1, 2), None, Tally(12, 3)]
        assert (store.stats().uuids, store.stats().scores) == (2, 5)

    def test_an_id_counts_once(self, store):
        """In one batch, in two, and after others: the first answer again, marked as a replay."""
        score = Score("a", 5, "id-1")
        assert store.commit([score, Score("a", 1), score]) == [Tally(5, 1), Tally(6, 2), Replay(5, 1)]
        assert store.commit([Score("a", 3), score]) == [Tally(9, 3), Replay(5, 1)]
        assert store.get(["a"]) == [Tally(9, 3)]
        assert (store.stats().scores, store.stats().ids) == (3, 1)

    @pytest.mark.parametrize("other", [Score("b", 5, "id-1"), Score("a", 4, "id-1")])
    def test_an_id_belongs_to_one_score(self, store, other):
        """Used for another UUID or score it is refused, and only that; also within a batch."""
        outcomes = store.commit([Score("a", 5, "id-1"), other, Score("b", 1)])
        assert isinstance(outcomes.pop(1), IdConflict)
        assert outcomes == [Tally(5, 1), Tally(1, 1)]
        assert isinstance(store.commit([other])[0], IdConflict)
        assert store.get(["a", "b"]) == [Tally(5, 1), Tally(1, 1)]

    def test_a_void_takes_a_score_out_of_sum_and_count(self, store):
        """Once, however often it is sent; and the id does not count again afterwards."""
        store.commit([Score("a", 5, "id-1"), Score("a", 2), Score("a", 4, "id-2")])
        assert store.commit([Void("id-1"), Void("id-1")]) == [Voided("a", Tally(6, 2)), Voided("a", Tally(6, 2))]
        assert isinstance(store.commit([Score("a", 5, "id-1")])[0], IdVoided)
        assert isinstance(store.commit([Score("a", 4, "id-1")])[0], IdConflict)
        assert store.get(["a"]) == [Tally(6, 2)]
        assert store.stats().scores == 2

    def test_a_uuid_whose_every_score_was_voided_has_no_mean(self, store):
        """It is gone from reads; a new score starts anew. Voids and scores of one batch see each other."""
        outcomes = store.commit([Score("a", 5, "id-1"), Void("id-1"), Score("b", 1)])
        assert outcomes == [Tally(5, 1), Voided("a", Tally(0, 0)), Tally(1, 1)]
        assert store.get(["a"]) == [None]
        assert [uuid for uuid, _ in store.scan(None, 10).tallies] == ["b"]
        assert store.commit([Score("a", 3)]) == [Tally(3, 1)]

    def test_a_score_is_voided_by_its_value(self, store):
        """Whatever it was counted with: without an id, in an imported sum; once for the id of the void."""
        store.commit([Score("a", 5), Add("a", Tally(9, 3), "file"), Score("b", 4)])
        voids = [VoidScore(Score("a", 5, "void-1")), VoidScore(Score("a", 2, "void-2"))]
        assert store.commit(voids) == [Tally(9, 3), Tally(7, 2)]
        store.commit([Score("a", 1)])
        replays = store.commit(voids)
        assert replays == [Replay(9, 3), Replay(7, 2)] and {type(one) for one in replays} == {Replay}
        assert (store.get(["a", "b"]), store.stats().scores) == ([Tally(8, 3), Tally(4, 1)], 4)

    def test_a_void_by_value_of_the_last_score_leaves_no_mean(self, store):
        """The id goes on being replayed, and scores after it are as of a new UUID."""
        last = VoidScore(Score("a", 5, "void-1"))
        assert store.commit([Score("a", 5), last, last]) == [Tally(5, 1), Tally(0, 0), Replay(0, 0)]
        assert (store.get(["a"]), store.stats().uuids) == ([None], 0)
        assert store.commit([Score("a", 3), last]) == [Tally(3, 1), Replay(0, 0)]
        assert store.get(["a"]) == [Tally(3, 1)]

    def test_what_a_tally_cannot_hold_is_not_voided(self, store):
        """Nothing changes, and its id may be used again."""
        store.commit([Score("a", 5), Score("b", 5), Score("b", 5)])
        refused = [Score("a", 4, "void"), Score("b", 4, "void"), Score("nobody", 5, "void")]
        outcomes = store.commit([VoidScore(score) for score in refused])
        assert [plain(outcome) for outcome in outcomes] == [NoSuchScore, NoSuchScore, UnknownUUID]
        assert store.get(["a", "b", "nobody"]) == [Tally(5, 1), Tally(10, 2), None]
        assert store.stats().ids == 0
        assert store.commit([VoidScore(Score("a", 5, "void"))]) == [Tally(0, 0)]

    def test_an_id_is_of_a_score_or_of_a_void(self, store):
        """Neither takes that of the other, nor of another void; and the void itself cannot be voided."""
        store.commit([Score("a", 5, "score"), Score("a", 5), Score("b", 4), VoidScore(Score("a", 5, "void"))])
        changes = [
            VoidScore(Score("a", 5, "score")),
            Score("a", 5, "void"),
            Add("a", Tally(5, 1), "void"),
            VoidScore(Score("b", 4, "void")),
            VoidScore(Score("a", 4, "void")),
            Batch([Score("a", 5, "void")]),
            Void("void"),
        ]
        outcomes = [plain(outcome) for outcome in store.commit(changes)]
        assert outcomes == [IdConflict] * 5 + [InvalidBatch, UnknownId]
        assert store.get(["a", "b"]) == [Tally(5, 1), Tally(4, 1)]

    def test_a_score_is_not_voided_by_its_value_and_by_its_id(self, store):
        """What the one has taken out the other does not find any more, as far as the tally tells."""
        store.commit([Score("a", 5, "id-1"), Add("b", Tally(9, 3), "id-2"), Add("b", Tally(1, 1))])
        store.commit([VoidScore(Score("a", 5, "void-1")), *(VoidScore(Score("b", 3, f"void-{n}")) for n in "23")])
        outcomes = store.commit([Void("id-1"), Void("id-2")])
        assert [plain(outcome) for outcome in outcomes] == [UnknownUUID, NoSuchScore]
        assert store.get(["a", "b"]) == [None, Tally(4, 2)]
        assert store.commit([Score("a", 5, "id-1"), Score("a", 5), Void("id-1")])[2] == Voided("a", Tally(0, 0))

    def test_a_void_by_value_without_an_id_cannot_be(self):
        """Its retry would take out another score."""
        with pytest.raises(InvalidId, match="needs an id of its own"):
            VoidScore(Score("a", 5))

    def test_a_uuid_is_merged_into_another(self, store):
        """The one has both tallies, the other is unknown and starts anew; again it is refused."""
        store.commit(scores_of([("a", 5), ("a", 4), ("b", 1), ("c", 2)]))
        assert store.commit([Merge("a", "b")]) == [Tally(10, 3)]
        assert store.get(["a", "b", "c"]) == [None, Tally(10, 3), Tally(2, 1)]
        assert (store.stats().uuids, store.stats().scores) == (2, 4)
        assert plain(store.commit([Merge("a", "b")])[0]) is UnknownUUID
        assert store.commit([Score("a", 3), Merge("b", "new"), Merge("new", "a")]) == [Tally(3, 1), Tally(10, 3), Tally(13, 4)]
        assert store.get(["a", "b", "new"]) == [Tally(13, 4), None, None]

    def test_ids_of_a_merged_uuid_are_as_of_a_forgotten_one(self, store):
        """They replay, and void nothing: by its value the score is voided where it went. Those of the other stay."""
        store.commit([Score("a", 5, "id-1"), Score("a", 4), Score("b", 1, "id-2"), VoidScore(Score("a", 4, "void-1"))])
        store.commit([Merge("a", "b")])
        again = [Score("a", 5, "id-1"), VoidScore(Score("a", 4, "void-1")), Void("id-1"), Score("a", 2, "id-3")]
        outcomes = [plain(outcome) for outcome in store.commit(again)]
        assert outcomes == [Replay(5, 1), Replay(5, 1), UnknownId, Tally(2, 1)]
        assert store.commit([VoidScore(Score("b", 5, "void-2")), Void("id-2"), Void("id-3")]) == [
            Tally(1, 1),
            Voided("b", Tally(0, 0)),
            Voided("a", Tally(0, 0)),
        ]

    def test_a_merge_that_makes_no_tally_is_refused(self, store):
        """Of more scores than there may be: what is on disk could not be told from damage."""
        store.commit([Add("a", Tally(0, COUNT_BOUND)), Score("b", 1)])
        assert [plain(outcome) for outcome in store.commit([Merge("b", "a"), Merge("a", "c")])] == [
            InvalidScore,
            Tally(0, COUNT_BOUND),
        ]
        assert store.get(["a", "b", "c"]) == [None, Tally(1, 1), Tally(0, COUNT_BOUND)]

    @pytest.mark.parametrize(("uuid", "into"), [("a", "a"), ("", "a"), ("a", "\n")])
    def test_what_cannot_be_merged_is_refused_before(self, uuid, into):
        """Into itself, or what is no UUID."""
        with pytest.raises(InvalidUUID):
            Merge(uuid, into)

    def test_a_void_of_an_unknown_id_is_refused(self, store):
        """And changes nothing."""
        assert isinstance(store.commit([Void("nobody")])[0], UnknownId)

    def test_a_batch_of_one_request_is_refused_as_a_whole(self, store):
        """With every fault listed."""
        store.commit(USED)
        [refused] = store.commit([Batch(PARTLY_AT_FAULT)])
        assert isinstance(refused, InvalidBatch)
        assert [fault.pointer for fault in refused.faults] == ["/1/id", "/2/id", "/4/id"]
        assert store.get(["a", "b"]) == [Tally(5, 1), None]

    def test_a_batch_of_one_request_is_refused_score_by_score(self, store):
        """With `skip` the others are counted; an empty one has no outcomes."""
        store.commit(USED)
        [outcomes, none] = store.commit([Batch(PARTLY_AT_FAULT, skip=True), Batch([], skip=True)])
        assert none == []
        assert [plain(outcome) for outcome in outcomes] == [Tally(1, 1), IdConflict, IdConflict, Replay(1, 1), IdVoided]
        assert store.get(["a", "b"]) == [Tally(5, 1), Tally(1, 1)]

    def test_post_returns_what_became_of_one_change(self, store):
        """A score, a tally, a void, a forget; once it is on disk."""
        assert store.post(Score("a", 5, "id-1")) == Tally(5, 1)
        assert store.post(Score("a", 5, "id-1")) == Replay(5, 1)
        assert store.post(Add("a", Tally(7, 2))) == Tally(12, 3)
        assert store.post(Void("id-1")) == Voided("a", Tally(7, 2))
        assert store.post(Forget("a")) == Tally(7, 2)

    def test_post_raises_what_commit_returns(self, store):
        """So a refusal cannot go unread."""
        store.post_many(USED[:2])
        store.post(USED[2])
        refused = [Score("a", 4, "used"), Score("a", 1, "gone"), Void("nobody"), Forget("nobody")]
        for change, kind in zip(refused, (IdConflict, IdVoided, UnknownId, UnknownUUID), strict=True):
            with pytest.raises(kind):
                store.post(change)
        assert store.get(["a"]) == [Tally(5, 1)]

    def test_post_many_counts_all_or_nothing(self, store):
        """A result a score, in order; or one error with every fault, of which it tells the first."""
        assert store.post_many(Score("a", n) for n in range(3)) == [Tally(0, 1), Tally(1, 2), Tally(3, 3)]
        assert store.post_many([]) == []
        store.commit(USED)
        with pytest.raises(InvalidBatch, match="^3 of 5 scores are at fault, so none was counted: the id used was used before"):
            store.post_many(PARTLY_AT_FAULT)
        assert store.get(["a", "b"]) == [Tally(8, 4), None]

    def test_post_many_with_skip_says_which_were_refused(self, store):
        """And counts the others."""
        store.commit(USED)
        results = store.post_many(PARTLY_AT_FAULT, skip=True)
        assert [plain(result) for result in results] == [Tally(1, 1), IdConflict, IdConflict, Replay(1, 1), IdVoided]
        assert store.get(["a", "b"]) == [Tally(5, 1), Tally(1, 1)]

    @pytest.mark.parametrize("mistake", [("a", 5), {"UUID": "a", "score": 5}, "a", 5, None, Tally(5, 1)])
    def test_what_is_no_change_is_refused_and_the_store_goes_on(self, store, mistake):
        """With a sentence, and before anything is counted: in the middle of a commit it would be a failed one."""
        commits = (
            lambda: store.post(mistake),
            lambda: store.post_many([Score("a", 5), mistake]),
            lambda: store.commit([Score("a", 5), Batch([Score("a", 5), mistake])]),
        )
        for commit in commits:
            with pytest.raises(InvalidScore, match="a store counts a Score, such as"):
                commit()
        assert store.get(["a"]) == [None]

    @pytest.mark.parametrize("uuids", ["ab", b"ab", None, UUID(int=1)])
    def test_a_bare_text_is_not_the_uuids_that_are_its_characters(self, store, uuids):
        """It is refused with a sentence, as all that is no list of UUIDs."""
        store.post_many(scores_of([("a", 1), ("b", 2)]))
        with pytest.raises(InvalidUUID, match=r"give UUIDs in a list, such as \['a1-b1'\], not "):
            store.get(uuids)

    def test_uuids_and_integers_of_other_libraries_are_taken(self, store):
        """As the str and the int that they are, wherever one is given."""
        uuid, text = UUID(int=1), str(UUID(int=1))
        assert store.post(Score(uuid, numpy.int64(5), UUID(int=2))) == Tally(5, 1)
        assert store.post(Add(numpy.str_(text), Tally(numpy.int64(4), numpy.uint8(1)))) == Tally(9, 2)
        assert store.get([uuid, numpy.str_(text)]) == [Tally(9, 2)] * 2
        assert store.scan(None, 1).tallies == [(text, Tally(9, 2))]
        assert store.scan(uuid, 1).tallies == []
        assert store.post(Void(UUID(int=2))) == Voided(text, Tally(4, 1))
        assert store.post(Forget(uuid)) == Tally(4, 1)

    def test_a_forgotten_uuid_is_gone_and_its_ids_touch_no_later_tally(self, store):
        """They replay their first answer, count nothing and cannot be voided; scores after it are as of a new UUID."""
        store.commit([Score("a", 5, "id-1"), Score("a", 3), Score("b", 1)])
        assert store.commit([Forget("a")]) == [Tally(8, 2)]
        assert store.get(["a", "b"]) == [None, Tally(1, 1)]
        assert (store.stats().uuids, store.stats().scores) == (1, 1)
        assert plain(store.commit([Forget("a")])[0]) is UnknownUUID
        assert store.commit([Score("a", 2, "id-2"), Score("a", 5, "id-1")]) == [Tally(2, 1), Replay(5, 1)]
        assert plain(store.commit([Void("id-1")])[0]) is UnknownId
        assert store.commit([Void("id-2")]) == [Voided("a", Tally(0, 0))]

    def test_a_tally_is_added_as_its_scores_would_be(self, store):
        """Also with an id: once, and to be voided."""
        store.commit([Score("a", 5)])
        added = Add("a", Tally(7, 2), "id-1")
        assert store.commit([added, added, Add("b", Tally(1, 1))]) == [Tally(12, 3), Replay(12, 3), Tally(1, 1)]
        assert plain(store.commit([Score("a", 4, "id-1")])[0]) is IdConflict
        assert store.commit([Void("id-1")]) == [Voided("a", Tally(5, 1))]
        assert store.stats().scores == 2

    @pytest.mark.parametrize("tally", [Tally(0, 0), Tally(1, -1), Tally(1_000_001, 1), Tally(0, 1 << 41)])
    def test_what_cannot_be_a_tally_is_not_added(self, store, tally):
        """No scores, or more than scores can sum up to."""
        with pytest.raises(InvalidScore, match="is not the tally of"):
            store.commit([Add("a", tally)])

    def test_ids_are_kept_over_a_restart(self, place):
        """Replayed and voided as before."""
        void = VoidScore(Score("b", 4, "void"))
        with self.open(place) as store:
            store.commit([Score("a", 5, "id-1"), Score("a", 2, "id-2"), Void("id-2"), Score("b", 4), void])
        with self.open(place) as store:
            assert store.commit([void]) == [Replay(0, 0)]
            assert store.commit([Score("a", 5, "id-1")]) == [Replay(5, 1)]
            assert isinstance(store.commit([Score("a", 2, "id-2")])[0], IdVoided)

    def test_an_empty_batch_changes_nothing(self, store):
        """And has no outcome."""
        assert store.commit([]) == []

    def test_batches_are_counted_in_the_order_of_the_calls(self, store):
        """Without waiting in between."""
        futures = [store.submit([Score("a", n % 6)]) for n in range(50)]
        assert [future.result()[0].count for future in futures] == list(range(1, 51))

    @pytest.mark.parametrize("uuid", ["a/b", " ", "é" * 128, "\U0001f600", "x" * 256, "\ufeff\ufffd"])
    def test_any_valid_uuid_is_kept_as_it_is(self, store, uuid):
        """Whatever script, up to the limit."""
        store.commit([Score(uuid, 3)])
        assert store.get([uuid]) == [Tally(3, 1)]
        assert store.scan(None, 10).tallies == [(uuid, Tally(3, 1))]

    @pytest.mark.parametrize("uuid", ["", "x" * 257, "\n"])
    def test_an_invalid_uuid_is_refused_and_not_just_absent(self, store, uuid):
        """A program that asks for it has a mistake."""
        with pytest.raises(InvalidUUID):
            store.get([uuid])
        with pytest.raises(InvalidUUID):
            store.scan(uuid, 1)

    @pytest.mark.parametrize("limit", [0, -1])
    def test_a_scan_without_room_is_refused(self, store, limit):
        """Its empty page would look like the last one."""
        with pytest.raises(InvalidQuery, match=f"limit must be at least 1, not {limit}"):
            store.scan(None, limit)

    def test_negative_and_large_scores_are_exact(self, place):
        """Nothing is rounded."""
        batch = scores_of([("a", -1_000_000)] * 3 + [("b", 1_000_000)] * 3)
        with self.open(place, score_min=-1_000_000, score_max=1_000_000) as store:
            store.commit(batch)
            assert store.get(["a", "b"]) == [Tally(-3_000_000, 3), Tally(3_000_000, 3)]
            assert not store.check()

    @pytest.mark.parametrize(
        "change", [Score("a", 6), Score("a", -1, "id-1"), Add("a", Tally(11, 2)), Add("a", Tally(-1, 2), "id-1")], ids=str
    )
    def test_what_is_outside_of_the_range_is_refused(self, store, change):
        """Alone; and what is counted beside it is."""
        outcomes = store.commit([change, Score("b", 5)])
        assert [plain(outcome) for outcome in outcomes] == [InvalidScore, Tally(5, 1)]
        assert "outside of the range of this store, 0 to 5" in str(outcomes[0])
        assert store.get(["a"]) == [None]

    def test_a_batch_with_a_score_outside_of_the_range_is_refused(self, store):
        """As a whole, with its place; with `skip` alone."""
        batch = [Score("a", 1), Score("a", 6), Score("a", -1, "id-1")]
        refused, outcomes = store.commit([Batch(batch), Batch(batch, skip=True)])
        assert [fault.pointer for fault in refused.faults] == ["/1/score", "/2/score"]
        assert [plain(outcome) for outcome in outcomes] == [Tally(1, 1), InvalidScore, InvalidScore]

    @pytest.mark.parametrize("tally", [Tally(True, 1), Tally(1, True), Tally(1.0, 1), Tally("1", 1), Tally(1, None)], ids=str)
    def test_a_tally_is_two_integers(self, tally):
        """And nothing that equals one: it would be written as what it is, and found to be damage."""
        with pytest.raises(InvalidScore, match="sum and count of a tally must be integers"):
            Add("a", tally)

    def test_a_sum_that_no_store_can_write_is_refused(self, place):
        """Tallies may be as large as they like alone; over all UUIDs the sum stays within what is written in 64 bits."""
        huge = Tally(COUNT_BOUND * 1_000_000, COUNT_BOUND)
        with self.open(place, score_min=-1_000_000, score_max=1_000_000) as store:
            outcomes = [plain(store.commit([Add(f"u{number}", huge)])[0]) for number in range(9)]
            assert outcomes == [huge] * 4 + [InvalidScore] * 5
            assert store.commit([Score("u0", 1)]) == [Tally(huge.sum + 1, huge.count + 1)]
            assert not store.check()

    def test_a_store_keeps_its_range(self, place):
        """Opened with another one it is refused, and with its own, or none, it goes on."""
        with self.open(place, score_min=1, score_max=7) as store:
            store.commit([Score("a", 7)])
        for options in ({"score_min": 0, "score_max": 5}, {"score_max": 8}, {"score_min": 0}):
            with pytest.raises(StoreError, match="holds scores from 1 to 7.*export the tallies and import them into a new"):
                self.open(place, **options)
        for options in ({}, {"score_min": 1, "score_max": 7}, {"score_max": 7}):
            with self.open(place, **options) as store:
                assert plain(store.commit([Score("a", 8)])[0]) is InvalidScore

    def test_a_scan_goes_over_everything_once(self, store):
        """Page by page, whatever the limit."""
        uuids = {f"u{n:03}" for n in range(25)}
        store.commit([Score(uuid, 1) for uuid in uuids])
        for limit in (1, 7, 25, 26):
            found, after = [], None
            while True:
                page = store.scan(after, limit)
                assert len(page.tallies) <= limit
                found += page.tallies
                after = page.after
                if after is None:
                    break
            assert len(found) == 25
            assert dict(found) == {uuid: Tally(1, 1) for uuid in uuids}

    def test_everything_is_there_after_a_restart(self, place):
        """Also the totals."""
        with self.open(place) as store:
            store.commit(scores_of([("a", 5), ("b", 2)]))
        with self.open(place) as store:
            assert store.commit([Score("a", 3)]) == [Tally(8, 2)]
            assert (store.stats().uuids, store.stats().scores) == (2, 3)
            assert store.check() == []

    def test_close_waits_for_the_batches_under_way(self, place):
        """And closing twice does nothing."""
        store = self.open(place)
        futures = [store.submit([Score("a", 1)]) for _ in range(10)]
        store.close()
        store.close()
        assert [future.result()[0].count for future in futures] == list(range(1, 11))

    def test_a_closed_store_says_so(self, place):
        """To write and to read."""
        store = self.open(place)
        store.close()
        writes = (lambda: store.post(Score("a", 1)), lambda: store.post_many([Score("a", 1)]))
        reads = (lambda: store.get(["a"]), lambda: store.scan(None, 1), lambda: next(store.tallies()), store.stats, store.check)
        for use in writes + reads:
            with pytest.raises(StoreError, match="is closed"):
                use()

    def test_many_threads_write_and_read_at_once(self, store):
        """No score is lost, and a reader sees only tallies that were once true."""
        oracle = Oracle()

        def write(thread: int) -> None:
            for n in range(20):
                store.commit(scores_of([("one", n % 6), (f"own-{thread}", n % 6)]))
                [tally] = store.get(["one"])
                assert 0 <= tally.sum <= 5 * tally.count

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(write, range(8)))
        for n in range(20):
            oracle.post(Score("own", n % 6))
        one = oracle.tally("own")
        assert store.get(["one"]) == [Tally(8 * one.sum, 8 * one.count)]
        assert store.get([f"own-{thread}" for thread in range(8)]) == [one] * 8


class StoreMachine(RuleBasedStateMachine):
    """Random sequences of scores, retries, voids and restarts against the oracle."""

    def __init__(self) -> None:
        super().__init__()
        self.oracle = Oracle()
        self.store = self.open()

    def open(self) -> Store:
        """Open the store of this run, new or not."""
        raise NotImplementedError

    def assert_sound(self) -> None:
        """Prove the store, which is closed, to be sound at rest."""

    def expected(self, change: Change) -> Outcome | type:
        """Apply `change` to the oracle and return the outcome that the store must have, an error as its class."""
        return self.oracle.apply(change)

    def order(self, uuid: str) -> Any:
        """Return what a scan goes in the order of."""
        return uuid

    @rule(batch=st.lists(CHANGES, max_size=8))
    def commit(self, batch):
        """Each outcome is the oracle's."""
        outcomes = [plain(outcome) for outcome in self.store.commit(batch)]
        assert outcomes == [self.expected(change) for change in batch]

    @rule()
    def restart(self):
        """Close, prove the store sound at rest, open again."""
        self.store.close()
        self.assert_sound()
        self.store = self.open()

    @rule(uuid=UUIDS)
    def get(self, uuid):
        """The mean is the float nearest to the exact one."""
        [tally] = self.store.get([uuid])
        assert tally == self.oracle.tally(uuid)
        if tally:
            assert Fraction(tally.sum, tally.count) == self.oracle.mean(uuid)
            assert tally.mean == float(self.oracle.mean(uuid))

    @precondition(lambda self: self.oracle.uuids())
    @rule(limit=st.integers(1, 8), data=st.data())
    def scan(self, limit, data):
        """In order, from behind any UUID."""
        after = data.draw(st.none() | UUIDS)
        expected = sorted(self.oracle.uuids(), key=self.order)
        expected = [uuid for uuid in expected if after is None or self.order(uuid) > self.order(after)]
        page = self.store.scan(after, limit)
        assert page.tallies == [(uuid, self.oracle.tally(uuid)) for uuid in expected[:limit]]
        assert page.after == (expected[limit - 1] if len(expected) > limit else None)

    @invariant()
    def sound(self):
        """Checked after every step."""
        assert not self.store.check()
        assert self.store.stats().uuids == len(self.oracle.uuids())

    def teardown(self):
        self.store.close()
        self.assert_sound()
