"""Score, Tally and UUID by themselves."""

import re
from decimal import Decimal
from enum import Enum, IntEnum
from fractions import Fraction
from uuid import UUID

import msgspec
import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoremean.errors import InvalidId, InvalidScore, InvalidUUID
from scoremean.model import SCORE_BOUND, Add, Forget, Score, Tally, Void, require_uuid
from scoremean.web.wire import ScoreDecoder

TALLIES = st.builds(Tally, st.integers(-(2**62), 2**62), st.integers(1, 2**62))


@pytest.mark.parametrize("uuid", ["a", "a1-b1", " ", "a/b?c#d%", "ä", "\U0001f600" * 64, "x" * 256, "\ufeff", "é" * 128])
def test_a_uuid_is_any_text_of_1_to_256_bytes(uuid):
    """Spaces, slashes and any script are fine; the limit is in bytes."""
    assert require_uuid(uuid) == uuid


@pytest.mark.parametrize(
    ("uuid", "reason"),
    [
        ("", "it has 0"),
        ("x" * 257, "it has 257"),
        ("é" * 129, "it has 258"),
        ("a\x00", r"U\+0000"),
        ("a\nb", r"U\+000A"),
        ("\x7f", r"U\+007F"),
        ("ä\x9f", r"U\+009F"),
        ("\ud800", "surrogate"),
    ],
)
def test_an_invalid_uuid_is_refused_with_its_reason(uuid, reason):
    """Neither the function nor a Score takes it."""
    with pytest.raises(InvalidUUID, match=reason):
        require_uuid(uuid)
    with pytest.raises(InvalidUUID, match=reason):
        Score(uuid, 1)


@pytest.mark.parametrize("score", [5.0, True, None, "5", SCORE_BOUND + 1, -SCORE_BOUND - 1])
def test_a_score_is_an_integer_that_keeps_a_tally_within_64_bits(score):
    """In a program of one's own there is no validation before the store, so Score itself refuses."""
    with pytest.raises(InvalidScore, match="must be an integer from -1000000 to 1000000"):
        Score("a", score)


@pytest.mark.parametrize("uuid", [None, 5, b"a", ["a"], 1.5])
def test_what_is_no_text_is_refused_with_a_sentence(uuid):
    """As a UUID, and as an id."""
    message = re.escape(f"must be a str or a uuid.UUID, not {uuid!r}")
    with pytest.raises(InvalidUUID, match=f"^UUID {message}$"):
        Score(uuid, 5)
    with pytest.raises(InvalidId, match=f"^id {message}$"):
        Void(uuid)


class Grade(IntEnum):
    """A score with a name."""

    GOOD = 4


class Inspector(str, Enum):
    """A UUID with a name, which is not what it prints."""

    ANN = "a1-b1"


@pytest.mark.parametrize("score", [numpy.int64(4), numpy.uint8(4), numpy.array(4), Grade.GOOD])
def test_an_integer_of_another_library_is_held_as_an_int(score):
    """In a Score and in a tally that is added."""
    added = Add("a", Tally(score, score)).tally
    for held in (Score("a", score).score, added.sum, added.count):
        assert held.__class__ is int and held == 4


@pytest.mark.parametrize("text", [UUID(int=7), Inspector.ANN, numpy.str_("\xe9")])
def test_a_text_of_another_library_is_held_as_a_str(text):
    """It is what it holds, not what it prints."""
    expected = str(text) if isinstance(text, UUID) else text[:]
    for held in (Score(text, 1).uuid, Score("a", 1, text).id, Void(text).id, Forget(text).uuid, Add(text, Tally(1, 1)).uuid):
        assert held.__class__ is str and held == expected


@pytest.mark.parametrize("value", [True, numpy.True_, 5.0, numpy.float64(5), Decimal(5), Fraction(5), numpy.array([5]), "5"])
def test_what_is_no_integer_is_none_in_any_library(value):
    """A bool and a float are refused, whoever made them."""
    with pytest.raises(InvalidScore, match="score must be an integer"):
        Score("a", value)
    for tally in (Tally(value, 1), Tally(1, value)):
        with pytest.raises(InvalidScore, match="sum and count of a tally must be integers"):
            Add("a", tally)


def test_a_value_is_shown_in_one_short_line():
    """Whatever was given: a number that Python does not print, or a table."""
    for value in (10**5000, numpy.zeros((50, 50)), "x" * 1000):
        with pytest.raises(InvalidScore) as caught:
            Score("a", value)
        assert len(str(caught.value)) < 200 and "\n" not in str(caught.value)
    with pytest.raises(InvalidScore, match="an Add has a Tally, not \\(5, 1\\)"):
        Add("a", (5, 1))


@pytest.mark.parametrize("members", ['"a","score":5.0', '"a","score":"5"', '"a","score":true', '7,"score":5', 'null,"score":5'])
def test_the_wire_takes_nothing_but_a_string_and_an_integer(members):
    """What a program may give is wider than what a client may send."""
    for kind in (Score, ScoreDecoder(0, 5, 1).type):
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(f'{{"UUID":{members}}}', type=kind)


@given(TALLIES)
def test_the_mean_is_the_float_nearest_to_the_exact_one(tally):
    """`sum / count` on integers rounds once, however large they are."""
    assert tally.mean == float(Fraction(tally.sum, tally.count))


@given(TALLIES, TALLIES, TALLIES)
def test_tallies_add_in_any_order_and_subtract_back(a, b, c):
    """The arithmetic on which everything else stands."""
    assert (a + b) + c == a + (b + c) == (c + b) + a
    assert (a + b) - b == a


def test_a_tally_of_no_scores_has_no_mean():
    """It is an error, not a zero."""
    with pytest.raises(ZeroDivisionError):
        _ = Tally(0, 0).mean
