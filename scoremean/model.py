"""The nouns: Score, Tally, Mean, Page, Stats. Frozen, pure, without I/O.

Everything scoremean does is arithmetic on one pair of integers, the Tally. Its mean is derived when it is read and never
stored, so no rounding ever adds up.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from msgspec import UNSET, Struct, UnsetType

from scoremean.errors import Fault, InvalidId, InvalidScore, InvalidUUID

TEXT_MAX_BYTES = 256

# Scores between -SCORE_BOUND and SCORE_BOUND keep a tally within 64 bits for 9 * 10**12 scores of one UUID.
SCORE_BOUND = 1_000_000
COUNT_BOUND = 1 << 40

_CONTROL_CHARACTER = re.compile("[\x00-\x1f\x7f-\x9f]")


def require_uuid(uuid: str) -> str:
    """Return `uuid` if it is 1 to 256 UTF-8 bytes without control characters.

    Raises:
        InvalidUUID: with a sentence that says which of these it is not.
    """
    return _require_text(uuid, "UUID", InvalidUUID)


def require_id(name: str) -> str:
    """Return `name`, the id of a score, if it is 1 to 256 UTF-8 bytes without control characters. Raises InvalidId."""
    return _require_text(name, "id", InvalidId)


def _require_text(text: str, what: str, error: type[InvalidScore]) -> str:
    # Nearly every one is short printable ASCII, where one character is one byte.
    if text.isascii() and text.isprintable() and 0 < len(text) <= TEXT_MAX_BYTES:
        return text
    try:
        size_bytes = len(text.encode())
    except UnicodeEncodeError:
        raise error(f"{what} holds half of a surrogate pair, which UTF-8 cannot encode") from None
    if not 0 < size_bytes <= TEXT_MAX_BYTES:
        raise error(f"{what} must be 1 to {TEXT_MAX_BYTES} bytes of UTF-8; it has {size_bytes}")
    if found := _CONTROL_CHARACTER.search(text):
        raise error(f"{what} must not hold control characters; it has U+{ord(found[0]):04X}")
    return text


class Score(Struct, frozen=True, gc=False, forbid_unknown_fields=True, rename={"uuid": "UUID"}):
    """One integer given to one UUID. It is also the form of a score on the wire, where validation narrows its range further.

    `id` is the client's own name for this score. Scores with the same id count once.

    Raises:
        InvalidUUID, InvalidId: when made with a UUID or an id that is not one.
        InvalidScore: when `score` is not an int within SCORE_BOUND; a bool is not, and no float is ever stored.
    """

    uuid: str
    score: int
    id: str | None = None

    def __post_init__(self) -> None:
        require_uuid(self.uuid)
        if self.id is not None:
            require_id(self.id)
        if self.score.__class__ is not int or not -SCORE_BOUND <= self.score <= SCORE_BOUND:
            raise InvalidScore(f"score must be an integer from {-SCORE_BOUND} to {SCORE_BOUND}, not {self.score!r}")


class Void(Struct, frozen=True, gc=False):
    """Takes the score that carried `id` out of its UUID's tally, out of the sum and the count. Raises InvalidId."""

    id: str

    def __post_init__(self) -> None:
        require_id(self.id)


class VoidScore(Struct, frozen=True, gc=False):
    """Takes one score of this UUID and value out of the tally, out of the sum and the count, whatever it was counted with.

    It is for a score that carried no id, or came in an imported tally. The `id` of `score` is that of the void, which takes out
    once for it. Raises InvalidId without one.
    """

    score: Score

    def __post_init__(self) -> None:
        if self.score.id is None:
            raise InvalidId("the void of a score needs an id of its own: a retry without one would take out another score")


class Merge(Struct, frozen=True, gc=False):
    """Adds the tally of a UUID to that of `into` and forgets the UUID, in one commit. Raises InvalidUUID."""

    uuid: str
    into: str

    def __post_init__(self) -> None:
        require_uuid(self.uuid)
        if require_uuid(self.into) == self.uuid:
            reason = "a UUID is not merged into itself"
            raise InvalidUUID(reason, (Fault("/into", reason),))


class Forget(Struct, frozen=True, gc=False):
    """Forgets a UUID: its tally goes, and ids of its scores are only replayed from then on. Raises InvalidUUID."""

    uuid: str

    def __post_init__(self) -> None:
        require_uuid(self.uuid)


class Add(Struct, frozen=True, gc=False):
    """Adds the tally of many scores of one UUID at once: what an import or a merge is made of.

    With an `id` it counts once, as a Score does; the sum takes the place of the score. Raises InvalidUUID, InvalidId.
    """

    uuid: str
    tally: Tally
    id: str | None = None

    def __post_init__(self) -> None:
        require_uuid(self.uuid)
        if self.id is not None:
            require_id(self.id)
        if not 1 <= self.tally.count <= COUNT_BOUND or abs(self.tally.sum) > self.tally.count * SCORE_BOUND:
            raise InvalidScore(f"{self.tally} is not the tally of 1 to {COUNT_BOUND} scores")


class Batch(Struct, frozen=True):
    """Scores of one request, counted in order: all or nothing, or with `skip` those that are not refused."""

    scores: Sequence[Score]
    skip: bool = False


class Tally(Struct, frozen=True, gc=False, order=True):
    """The pair `(sum, count)` of all scores of one UUID: two integers, exact however many there are."""

    sum: int
    count: int

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.sum + other.sum, self.count + other.count)

    def __sub__(self, other: Tally) -> Tally:
        return Tally(self.sum - other.sum, self.count - other.count)

    @property
    def mean(self) -> float:
        """`sum / count`, correctly rounded to the nearest float.

        Raises:
            ZeroDivisionError: for a tally of no scores, which has no mean.
        """
        return self.sum / self.count


class Replay(Tally, frozen=True, gc=False):
    """The tally that the first score, or void of a score, with this id was answered with. This one changed nothing."""


class Voided(Struct, frozen=True, gc=False):
    """What a Void leaves: the UUID of the score and its tally without it, which may be of no scores."""

    uuid: str
    tally: Tally


class Mean(Struct, frozen=True, gc=False, rename={"uuid": "UUID"}):
    """What a client reads: a UUID with its tally's mean, and the tally itself where a route gives it.

    `mean` is None where a void has left no score.
    """

    uuid: str
    mean: float | None
    sum: int | UnsetType = UNSET
    count: int | UnsetType = UNSET


class Page(Struct, frozen=True):
    """A run of `(UUID, Tally)` pairs in the order of the store, and the UUID to go on after; None when it was the last."""

    tallies: list[tuple[str, Tally]]
    after: str | None


class Stats(Struct, frozen=True):
    """What a store holds: UUIDs with a score, scores counted, ids kept, bytes used on disk, and the bytes it may grow to."""

    uuids: int
    scores: int
    ids: int
    store_size_bytes: int
    store_size_max_bytes: int
