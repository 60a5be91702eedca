"""The nouns: Score, Tally, Mean, Page, Stats. Frozen, pure, without I/O.

Everything scoremean does is arithmetic on one pair of integers, the Tally. Its mean is derived when it is read and never
stored, so no rounding ever adds up.
"""
# pylint: disable=redefined-builtin,unused-argument  # of the signatures that only a type checker reads

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, SupportsIndex
from uuid import UUID

from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import force_setattr

from scoremean.errors import Fault, InvalidId, InvalidScore, InvalidUUID

TEXT_MAX_BYTES = 256

# Scores between -SCORE_BOUND and SCORE_BOUND keep a tally within 64 bits for 9 * 10**12 scores of one UUID.
SCORE_BOUND = 1_000_000
COUNT_BOUND = 1 << 40
# What the sum over all UUIDs may be, so that it fits 64 bits in any case.
SUM_BOUND = 1 << 62

_CONTROL_CHARACTER = re.compile("[\x00-\x1f\x7f-\x9f]")
_SCORE_RULE = f"score must be an integer from {-SCORE_BOUND} to {SCORE_BOUND}"
_SHOWN_MAX_CHARACTERS = 60

# A UUID, or an id, as a program may give it; the nouns and everything behind them hold it as a str.
Text = str | UUID


def require_uuid(uuid: Text) -> str:
    """Return `uuid` as a str, if it is 1 to 256 UTF-8 bytes without control characters.

    Raises:
        InvalidUUID: with a sentence that says which of these it is not.
    """
    return _require_text(uuid, "UUID", InvalidUUID)


def require_uuids(uuids: Iterable[Text]) -> list[str]:
    """Return many UUIDs, each as `require_uuid` does. Raises InvalidUUID, also for one that is not in a list."""
    if isinstance(uuids, (str, bytes)) or not hasattr(uuids, "__iter__"):
        raise InvalidUUID(f"give UUIDs in a list, such as ['a1-b1'], not {shown(uuids)}")
    return [_require_text(uuid, "UUID", InvalidUUID) for uuid in uuids]


def require_id(name: Text) -> str:
    """Return `name`, the id of a score, as a str, if that is what a UUID may be, too. Raises InvalidId."""
    return _require_text(name, "id", InvalidId)


def shown(value: object) -> str:
    """Return `value` for a sentence: in one line, and cut to a length that a sentence can bear."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # an int of more digits than Python prints
        text = f"a larger {type(value).__name__}"
    return text if len(text) <= _SHOWN_MAX_CHARACTERS else text[:_SHOWN_MAX_CHARACTERS] + "..."


def _require_text(text: Text, what: str, error: type[InvalidScore]) -> str:
    # Nearly every one is short printable ASCII, where one character is one byte.
    if text.__class__ is str and text.isascii() and text.isprintable() and 0 < len(text) <= TEXT_MAX_BYTES:
        return text
    if not isinstance(text, Text):
        raise error(f"{what} must be a str or a uuid.UUID, not {shown(text)}")
    # A subclass of str, such as numpy's, becomes the str that it holds, whatever it prints.
    text = str(text) if isinstance(text, UUID) else str.__str__(text)
    try:
        size_bytes = len(text.encode())
    except UnicodeEncodeError:
        raise error(f"{what} holds half of a surrogate pair, which UTF-8 cannot encode") from None
    if not 0 < size_bytes <= TEXT_MAX_BYTES:
        raise error(f"{what} must be 1 to {TEXT_MAX_BYTES} bytes of UTF-8; it has {size_bytes}")
    if found := _CONTROL_CHARACTER.search(text):
        raise error(f"{what} must not hold control characters; it has U+{ord(found[0]):04X}")
    return text


def _require_int(value: SupportsIndex, rule: str) -> int:
    """Return the int that an integer of any library is. Raises InvalidScore: a bool is none, and no float is ever stored."""
    with suppress(TypeError):
        if not isinstance(value, bool):
            return operator.index(value)
    raise InvalidScore(f"{rule}, not {shown(value)}")


class Score(Struct, frozen=True, gc=False, forbid_unknown_fields=True, rename={"uuid": "UUID"}):
    """One integer given to one UUID. It is also the form of a score on the wire, where validation narrows its range further.

    `id` is the client's own name for this score. Scores with the same id count once. A `uuid.UUID` and an integer of another
    library, such as numpy's, are taken too, and held as a str and an int. On the wire nothing but a string and an integer is.

    Raises:
        InvalidUUID, InvalidId: when made with a UUID or an id that is not one.
        InvalidScore: when `score` is not an integer within SCORE_BOUND; a bool is not, and no float is ever stored.
    """

    uuid: str
    score: int
    id: str | None = None

    if TYPE_CHECKING:

        def __init__(self, uuid: Text, score: SupportsIndex, id: Text | None = None): ...

    def __post_init__(self) -> None:
        # Most of the time that a batch takes to be decoded is spent here, so nothing is set that is so already.
        if (uuid := _require_text(self.uuid, "UUID", InvalidUUID)) is not self.uuid:
            force_setattr(self, "uuid", uuid)
        if self.id is not None and (name := _require_text(self.id, "id", InvalidId)) is not self.id:
            force_setattr(self, "id", name)
        if self.score.__class__ is not int:
            force_setattr(self, "score", _require_int(self.score, _SCORE_RULE))
        if not -SCORE_BOUND <= self.score <= SCORE_BOUND:
            raise InvalidScore(f"{_SCORE_RULE}, not {shown(self.score)}")


class Void(Struct, frozen=True, gc=False):
    """Takes the score that carried `id` out of its UUID's tally, out of the sum and the count. Raises InvalidId."""

    id: str

    if TYPE_CHECKING:

        def __init__(self, id: Text): ...

    def __post_init__(self) -> None:
        force_setattr(self, "id", require_id(self.id))


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

    if TYPE_CHECKING:

        def __init__(self, uuid: Text, into: Text): ...

    def __post_init__(self) -> None:
        force_setattr(self, "uuid", require_uuid(self.uuid))
        force_setattr(self, "into", require_uuid(self.into))
        if self.into == self.uuid:
            reason = "a UUID is not merged into itself"
            raise InvalidUUID(reason, (Fault("/into", reason),))


class Forget(Struct, frozen=True, gc=False):
    """Forgets a UUID: its tally goes, and ids of its scores are only replayed from then on. Raises InvalidUUID."""

    uuid: str

    if TYPE_CHECKING:

        def __init__(self, uuid: Text): ...

    def __post_init__(self) -> None:
        force_setattr(self, "uuid", require_uuid(self.uuid))


class Add(Struct, frozen=True, gc=False):
    """Adds the tally of many scores of one UUID at once: what an import or a merge is made of.

    With an `id` it counts once, as a Score does; the sum takes the place of the score. Raises what Score does.
    """

    uuid: str
    tally: Tally
    id: str | None = None

    if TYPE_CHECKING:

        def __init__(self, uuid: Text, tally: Tally, id: Text | None = None): ...

    def __post_init__(self) -> None:
        force_setattr(self, "uuid", require_uuid(self.uuid))
        if self.id is not None:
            force_setattr(self, "id", require_id(self.id))
        if not isinstance(self.tally, Tally):
            raise InvalidScore(f"an Add has a Tally, not {shown(self.tally)}")
        rule = "sum and count of a tally must be integers"
        force_setattr(self, "tally", Tally(_require_int(self.tally.sum, rule), _require_int(self.tally.count, rule)))
        if not 1 <= self.tally.count <= COUNT_BOUND or abs(self.tally.sum) > self.tally.count * SCORE_BOUND:
            raise InvalidScore(f"{shown(self.tally)} is not the tally of 1 to {COUNT_BOUND} scores")


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
