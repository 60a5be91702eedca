"""The overview of all UUIDs, beside the plain sorting of everything."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoremean import Tally
from scoremean.web.overview import BINS, MIN_COUNTS, TOP_UUIDS, Reading

LOW, HIGH = -1, 5


@st.composite
def tallies(draw) -> Tally:
    """A tally that scores from LOW to HIGH make."""
    count = draw(st.integers(1, 4) | st.integers(1, 60) | st.integers(1, 10**7))
    return Tally(draw(st.integers(LOW * count, HIGH * count)), count)


def place(tally: Tally) -> int:
    """Return the part of the range that the mean is in."""
    return min(int((Fraction(tally.sum, tally.count) - LOW) / (HIGH - LOW) * BINS), BINS - 1)


@given(st.lists(tallies(), max_size=120), st.sampled_from(MIN_COUNTS[:8]))
def test_it_is_what_a_sort_of_everything_gives(some, min_count):
    """The best and the worst in order, of equal means the one of more scores first; and every mean in its part."""
    named = {f"u{n}": tally for n, tally in enumerate(some)}
    reading = Reading(LOW, HIGH)
    reading.add(named.items())
    view = reading.view(min_count)
    enough = {uuid: tally for uuid, tally in named.items() if tally.count >= min_count}
    best = sorted(enough, key=lambda uuid: (-enough[uuid].mean, -enough[uuid].count, uuid))
    worst = sorted(enough, key=lambda uuid: (enough[uuid].mean, -enough[uuid].count, uuid))
    assert [mean.uuid for mean in view.best] == best[:TOP_UUIDS]
    assert [mean.uuid for mean in view.worst] == worst[:TOP_UUIDS]
    for mean in view.best + view.worst:
        assert (mean.sum, mean.count, mean.mean) == (named[mean.uuid].sum, named[mean.uuid].count, named[mean.uuid].mean)
    parts = [place(tally) for tally in enough.values()]
    assert view.distribution == [parts.count(n) for n in range(BINS)]
    assert (view.uuids, view.read_uuids, view.min_count) == (len(enough), len(named), min_count)


@pytest.mark.parametrize(
    ("total", "count", "part"), [(0, 1, 0), (5, 1, 49), (29, 10, 29), (43, 10, 43), (-9, 1, 0), (9, 1, 49)]
)
def test_a_mean_on_a_bound_belongs_to_the_part_above(total, count, part):
    """Also where a float would not; the highest score to the last part, and what is outside to the nearest."""
    reading = Reading(0, 5)
    reading.add([("a", Tally(total, count))])
    assert reading.view(1).distribution.index(1) == part


def test_it_is_complete_at_its_end():
    """And has the time of that."""
    reading = Reading(0, 5)
    assert not reading.view(1).complete
    reading.end()
    assert reading.complete and reading.view(1).complete
    assert reading.view(1).time == reading.view(1).time
