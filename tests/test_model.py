"""Score, Tally and UUID by themselves."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoremean.errors import InvalidScore, InvalidUUID
from scoremean.model import SCORE_BOUND, Score, Tally, require_uuid

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
