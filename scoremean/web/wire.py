"""Wire bytes -> Score, or a refusal that names every member at fault. Past this module a Score is trusted.

A body is decoded straight into Scores by msgspec, whose type carries the rules. Only a body that this refuses is read a
second time, slowly, to say what is wrong with it; what the second reading thinks decides nothing.

Three media types carry scores: JSON (an object, or an array for a batch), NDJSON (an object a line, always a batch) and
MessagePack (a map, or an array for a batch).
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any
from urllib.parse import parse_qsl

import msgspec

from scoremean.errors import (
    BodyTooLarge,
    Fault,
    InvalidBatch,
    InvalidId,
    InvalidQuery,
    InvalidScore,
    InvalidUUID,
    MalformedRequest,
    UnsupportedMediaType,
)
from scoremean.model import TEXT_MAX_BYTES, Score, Tally, require_uuid
from scoremean.web.overview import MIN_COUNTS

JSON = "application/json"
NDJSON = "application/x-ndjson"
MSGPACK = "application/msgpack"

PAGE_MAX_UUIDS = 1000
PAGE_DEFAULT_UUIDS = 100

_SHOWN_MAX_CHARACTERS = 40
_MEMBERS = "UUID, score and, if you like, id"
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')

Item = Score | InvalidScore

# Split a batch into the bytes of its elements.
_elements = {
    JSON: msgspec.json.Decoder(list[msgspec.Raw]).decode,
    MSGPACK: msgspec.msgpack.Decoder(list[msgspec.Raw]).decode,
}

# A tally in one integer, for sums: count * ONE_SCORE + sum. As fast to add as a number, and far from any overflow.
ONE_SCORE = 1 << 96


def unpack_sum(packed: int) -> Tally:
    """Return the tally that is `count * ONE_SCORE + sum`."""
    count = (packed + (ONE_SCORE >> 1)) // ONE_SCORE
    return Tally(packed - count * ONE_SCORE, count)


def media_type(headers: Mapping[str, str], accepted: Sequence[str]) -> str:
    """Return which of the types `accepted` the body is said to be.

    Raises:
        UnsupportedMediaType: with the header to send instead. Without a Content-Type a browser could be made to post from any
            site, so that is refused too.
    """
    content_type = headers.get("Content-Type", "")
    if content_type in accepted and "Content-Encoding" not in headers:
        return content_type  # as nearly all are
    essence, _, parameters = content_type.partition(";")
    essence = essence.strip().lower()
    if essence not in accepted:
        found = f"not {_shown(content_type)}" if content_type else "and there is none"
        raise UnsupportedMediaType(f"send the header Content-Type: {' or '.join(accepted)}, {found}")
    if parameters.strip().lower().replace('"', "") not in ("", "charset=utf-8"):
        raise UnsupportedMediaType(f"send UTF-8 and the header Content-Type: {essence}, without {_shown(parameters.strip())}")
    if headers.get("Content-Encoding", "identity").lower() != "identity":
        raise UnsupportedMediaType("send the body as it is, without a Content-Encoding")
    return essence


def with_key(score: Score, keys: Sequence[str]) -> Score:
    """Return `score` with the value of the Idempotency-Key header, if there is one, as its id.

    The header's draft wants a quoted string (draft-ietf-httpapi-idempotency-key-header-07); many clients send it bare, and
    both are taken.

    Raises:
        InvalidId: there are two headers, or two keys in one; the key cannot be an id, or the score has another one.
    """
    if not keys:
        return score
    if len(keys) > 1:
        raise InvalidId(f"there are {len(keys)} headers Idempotency-Key; send one")
    [key] = keys
    if key.startswith('"'):
        if (quoted := _QUOTED.fullmatch(key)) is None:
            raise InvalidId("what begins with a quote in the header Idempotency-Key must be one quoted string")
        key = re.sub(r"\\(.)", r"\1", quoted[1])
    if score.id is not None and score.id != key:
        raise InvalidId("the member id and the header Idempotency-Key differ; send one of them")
    try:
        return Score(score.uuid, score.score, key)
    except InvalidId as error:
        raise InvalidId(f"in the header Idempotency-Key, {error}") from None


class ScoreDecoder:
    """Decodes the bodies of posts. The range of a score and the size of a batch differ between services.

    Args:
        score_min, score_max: the lowest and the highest score accepted.
        batch_max_scores: the most scores in one request.

    Attributes:
        score_min, score_max: as given.
        type: of which msgspec decodes every score. It is Score with the range of this service.
    """

    def __init__(self, score_min: int, score_max: int, batch_max_scores: int):
        self.score_min, self.score_max = score_min, score_max
        bounded = Annotated[int, msgspec.Meta(ge=score_min, le=score_max)]
        # On the wire an id is a string or left out: a null would look like an id and protect from nothing.
        fields = [("score", bounded), ("id", str, None)]
        self.type = msgspec.defstruct(
            "Score", fields, bases=(Score,), frozen=True, gc=False, forbid_unknown_fields=True
        )
        self._decoder = msgspec.json.Decoder(self.type)
        self._decode_map = msgspec.msgpack.Decoder(self.type).decode
        self._batch_decoders: dict[str, Callable[[bytes], list[Score]]] = {
            JSON: msgspec.json.Decoder(list[self.type]).decode,
            NDJSON: self._decoder.decode_lines,
            MSGPACK: msgspec.msgpack.Decoder(list[self.type]).decode,
        }
        line = msgspec.defstruct("Line", [("UUID", str), ("score", bounded)], gc=False, forbid_unknown_fields=True)
        self._decode_lines = msgspec.json.Decoder(line).decode_lines
        self._batch_max_scores = batch_max_scores
        self._valid = {"UUID": "a1-b1", "score": score_min}
        text = f"must be a string of 1 to {TEXT_MAX_BYTES} UTF-8 bytes without control characters"
        self._rules = {
            "UUID": f"UUID {text}",
            "score": f"score must be an integer from {score_min} to {score_max}",
            "id": f"id {text}, or be left out",
        }

    def decode(self, body: bytes) -> Score:
        """Return the one Score in `body`, a JSON object.

        Raises:
            MalformedRequest: not UTF-8 or not JSON; the message says where.
            InvalidScore: JSON, but not a score; `faults` names each member at fault.
        """
        try:
            return self._decoder.decode(body)
        except ValueError as error:  # the base of msgspec's errors and of UnicodeDecodeError
            raise self._refusal(_reread(body, error), "", error) from None

    def decode_msgpack(self, body: bytes) -> Score:
        """Return the one Score in `body`, a MessagePack map. Raises as `decode` does."""
        try:
            return self._decode_map(body)
        except ValueError as error:
            raise self._refusal(_reread_msgpack(body), "", error) from None

    def decode_batch(self, body: bytes, kind: str) -> list[Item]:
        """Return the scores of a batch in `body`, of the media type `kind`; an InvalidScore stands in place of one at fault.

        Its faults point into the batch: `/17/score`.

        Raises:
            MalformedRequest: no element of the body can be told from the next.
            InvalidBatch: likewise, but the faults can be told; or it is no array.
            BodyTooLarge: more scores than batch_max_scores.
        """
        try:
            items: list[Item] = self._batch_decoders[kind](body)
        except ValueError as error:
            items = list(self._judged(body, kind, error))
        if len(items) > self._batch_max_scores:
            raise BodyTooLarge(f"the batch has {len(items)} scores; send at most batch_max_scores, {self._batch_max_scores}")
        return items

    def _judged(self, body: bytes, kind: str, error: ValueError) -> Iterator[Item]:
        """Yield what each element of a batch is, as the fast reading judges it by itself.

        Raises:
            InvalidBatch, MalformedRequest: it cannot tell where an element ends; the slow reading may know which is at fault.
        """
        try:
            elements = _lines(body) if kind == NDJSON else _elements[kind](body)
        except (ValueError, RecursionError):
            raise self._whole_refusal(body, kind, error) from None
        decode, reread = (self._decode_map, _reread_msgpack) if kind == MSGPACK else (self._decoder.decode, _reread_line)
        for index, element in enumerate(elements):
            try:
                yield decode(element)
            except ValueError as fault:
                yield self._explained(reread(bytes(element)), f"/{index}", fault)

    def _whole_refusal(self, body: bytes, kind: str, error: ValueError) -> MalformedRequest | InvalidBatch:
        values = _reread(body, error) if kind == JSON else _reread_msgpack(body)
        if not isinstance(values, list):
            return InvalidBatch(f"a batch is an array of scores, not {_shown(values)}")
        items = [self.item(value, f"/{index}") for index, value in enumerate(values)]
        if not any(isinstance(item, InvalidScore) for item in items):
            return MalformedRequest(f"the body is not {'JSON' if kind == JSON else 'MessagePack'}: {error}")
        return all_faults(items)

    def add_up(self, body: bytes, sums: dict[str, int]) -> int | None:
        """Add the scores of an NDJSON body to `sums`, packed in units of ONE_SCORE, and return how many there were.

        This is several times faster than decode_batch, since only a UUID that is new to `sums` is looked at. Returns None,
        with `sums` as it was, for a body with a line that is not just a UUID and a score, or is at fault.
        """
        try:
            lines = self._decode_lines(body)
        except ValueError:
            return None
        added = 0
        try:
            for added, line in enumerate(lines):
                uuid = line.UUID
                if uuid in sums:
                    sums[uuid] += ONE_SCORE + line.score
                else:
                    sums[require_uuid(uuid)] = ONE_SCORE + line.score
        except InvalidUUID:
            for line in lines[:added]:
                sums[line.UUID] -= ONE_SCORE + line.score
            return None
        return len(lines)

    def item(self, value: Any, at: str = "") -> Item:
        """Return the Score that a decoded value is, or an InvalidScore with a fault for each member that is wrong.

        `at` is the pointer to the value, which stands in front of those of its members.
        """
        try:
            return msgspec.convert(value, self.type)
        except ValueError as error:
            return self._explained(value, at, error)

    def _explained(self, value: Any, at: str, error: ValueError) -> InvalidScore:
        """Return the refusal of a value that was read again, or of what could not be read."""
        if isinstance(value, MalformedRequest):
            return InvalidScore(str(value), (Fault(at, str(value)),))
        return self._refusal(value, at, error)

    def _refusal(self, value: Any, at: str, error: ValueError) -> InvalidScore:
        # A member that stands twice is judged each time by msgspec, and the last time by the second reading.
        faults = tuple(self._faults(value, at)) or (Fault(at, f"a member stands twice, and once wrong: {error}"),)
        return InvalidScore("this is not a score" if at else "the body is not a score", faults)

    def _faults(self, value: Any, at: str) -> Iterator[Fault]:
        if not isinstance(value, dict):
            yield Fault(at, f"a score is an object with the members {_MEMBERS}, not {_shown(value)}")
            return
        for name, rule in self._rules.items():
            if name not in value and name != "id":
                yield Fault(at + _pointer(name), f"the member {name} is missing: {rule}")
        for name, member in value.items():
            if name not in self._rules:
                yield Fault(at + _pointer(str(name)), f"unknown member {_shown(name)}; a score has the members {_MEMBERS}")
            elif not self._is_valid(name, member):
                yield Fault(at + _pointer(name), f"{self._rules[name]}, not {_shown(member)}")

    def _is_valid(self, name: str, member: Any) -> bool:
        """Try `member` in a score that is otherwise valid: so the type stays the only judge."""
        try:
            msgspec.convert(self._valid | {name: member}, self.type)
        except ValueError:
            return False
        return True


def all_faults(items: Sequence[Item]) -> InvalidBatch:
    """Return the refusal of a batch as a whole, with the faults of all of its scores."""
    refused = [item for item in items if isinstance(item, InvalidScore)]
    faults = tuple(fault for item in refused for fault in item.faults)
    return InvalidBatch(f"{len(refused)} of {len(items)} scores are at fault, so none was counted", faults)


def is_batch(body: bytes, kind: str) -> bool:
    """Return whether a body is to be read as a batch: NDJSON always, JSON and MessagePack if it starts as an array."""
    if kind == JSON:
        return body.lstrip(b" \t\r\n")[:1] == b"["
    # MessagePack's format: 0x90 to 0x9f, 0xdc and 0xdd begin an array.
    return kind == NDJSON or body[:1] in (b"\xdc", b"\xdd") or body[:1] != b"" and body[0] >> 4 == 9


def decode_uuids(body: bytes, max_uuids: int) -> list[str]:
    """Return the UUIDs in `body`, a JSON array of at most `max_uuids` strings.

    Raises:
        MalformedRequest: not JSON.
        InvalidQuery: another value; `faults` names each that is no UUID.
        BodyTooLarge: more than `max_uuids`.
    """
    try:
        uuids = msgspec.json.decode(body, type=list[Any])
    except (ValueError, RecursionError) as error:
        raise InvalidQuery(f"the body must be an array of UUIDs, not {_shown(_reread(body, error))}") from None
    if len(uuids) > max_uuids:
        raise BodyTooLarge(f"there are {len(uuids)} UUIDs; ask for at most {max_uuids} at once")
    if faults := tuple(_uuid_faults(enumerate(uuids))):
        raise InvalidQuery("not every one is a UUID", faults)
    return uuids


def decode_into(body: bytes) -> str:
    """Return the UUID in `body`, a JSON object with the one member `into`.

    Raises:
        MalformedRequest: not JSON.
        InvalidUUID: another value; `faults` names each member at fault.
    """
    try:
        value = msgspec.json.decode(body, type=dict[str, Any])
    except (ValueError, RecursionError) as error:
        raise InvalidUUID(f"the body must be an object with the member into, not {_shown(_reread(body, error))}") from None
    unknown = (Fault(_pointer(name), f"unknown member {_shown(name)}; there is only into") for name in value if name != "into")
    if faults := (*unknown, *_uuid_faults({"into": value.get("into")}.items())):
        raise InvalidUUID("the body must be an object with the member into, a UUID", faults)
    return value["into"]


def _parameters(query: str, known: Sequence[str]) -> dict[str, str]:
    """Return the parameters in a query string, all of which must be `known`, and none there twice.

    Raises:
        MalformedRequest: it is not percent-encoded UTF-8.
        InvalidQuery: with the name of the parameter at fault.
    """
    found: dict[str, str] = {}
    try:
        pairs = parse_qsl(query, keep_blank_values=True, errors="strict")
    except UnicodeDecodeError:
        raise MalformedRequest("the query is not percent-encoded UTF-8") from None
    for name, value in pairs:
        if name not in known:
            raise InvalidQuery(f"unknown parameter {_shown(name)}; this route knows {' and '.join(known)}")
        if name in found:
            raise InvalidQuery(f"the parameter {name} is there twice; send it once")
        found[name] = value
    return found


def decode_page(query: str) -> tuple[str | None, int]:
    """Return `(after, limit)` of the query string of a listing. Raises as `_parameters` does."""
    found = _parameters(query, ("after", "limit"))
    after, limit = found.get("after"), found.get("limit", str(PAGE_DEFAULT_UUIDS))
    try:
        after = after if after is None else require_uuid(after)
    except InvalidUUID as error:
        raise InvalidQuery(f"the parameter after is no UUID: {error}") from None
    if not re.fullmatch(r"[0-9]{1,4}", limit, re.ASCII) or not 1 <= int(limit) <= PAGE_MAX_UUIDS:
        raise InvalidQuery(f"the parameter limit must be an integer from 1 to {PAGE_MAX_UUIDS}, not {_shown(limit)}")
    return after, int(limit)


def decode_min_count(query: str) -> int:
    """Return the scores that a UUID must have to be in an overview. Raises as `_parameters` does."""
    text = _parameters(query, ("min_count",)).get("min_count", "1")
    if text not in map(str, MIN_COUNTS):
        choices = f"1, 2, 5, 10, 20, 50 and so on to {MIN_COUNTS[-1]}"
        raise InvalidQuery(f"the parameter min_count must be one of {choices}, not {_shown(text)}")
    return int(text)


def decode_on_error(query: str) -> bool:
    """Return whether a batch counts its valid scores and skips the others. Raises as `_parameters` does."""
    if (value := _parameters(query, ("on_error",)).get("on_error", "stop")) not in ("stop", "skip"):
        raise InvalidQuery(f"the parameter on_error must be stop or skip, not {_shown(value)}")
    return value == "skip"


def _uuid_faults(members: Iterable[tuple[int | str, Any]]) -> Iterator[Fault]:
    for place, uuid in members:
        if not isinstance(uuid, str):
            yield Fault(f"/{place}", f"a UUID is a string, not {_shown(uuid)}")
            continue
        try:
            require_uuid(uuid)
        except InvalidUUID as error:
            yield Fault(f"/{place}", str(error))


def _lines(body: bytes) -> list[bytes]:
    return [line for line in body.split(b"\n") if line.strip(b" \t\r")]


def _reread(body: bytes, error: Exception) -> Any:
    """Return the value in `body` as the standard library reads it: more leniently, with NaN and lone surrogates.

    So a NaN is reported as the member it stands in. What is not even that is refused for `error`, msgspec's reason.
    """
    try:
        # Python parses no more than 4,300 digits; the first 400 are as much out of range.
        return json.loads(body.decode(), parse_int=lambda digits: int(digits[:400]))
    except UnicodeDecodeError as undecodable:
        raise MalformedRequest(f"the body is not UTF-8: {undecodable.reason} at byte {undecodable.start}") from None
    except RecursionError:
        raise MalformedRequest("the body is nested too deeply") from None
    except ValueError:
        reason = str(error).removeprefix("JSON is malformed: ") if body else "it is empty"
        raise MalformedRequest(f"the body is not JSON: {reason}") from None


def _reread_line(line: bytes) -> Any:
    """Return the value in a line, or the MalformedRequest that it is: one line costs the batch only itself."""
    try:
        return _reread(line, ValueError("the line is cut off or malformed"))
    except MalformedRequest as error:
        return error


def _reread_msgpack(body: bytes) -> Any:
    try:
        return msgspec.msgpack.decode(body)
    except (ValueError, RecursionError) as error:
        raise MalformedRequest(f"the body is not MessagePack: {error if body else 'it is empty'}") from None


def _pointer(member: str) -> str:
    """Return the JSON pointer (RFC 6901) to a member."""
    # Half a surrogate pair, which JSON can escape and UTF-8 cannot encode, is shown as its escape.
    member = member.encode(errors="backslashreplace").decode()
    return "/" + member.replace("~", "~0").replace("/", "~1")


def _shown(value: Any) -> str:
    """Return `value` as JSON for a sentence, cut to a length that a log line can bear."""
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError):  # MessagePack has values that JSON has not; and writing needs more stack
        text = reprlib.repr(value)
    return text if len(text) <= _SHOWN_MAX_CHARACTERS else text[:_SHOWN_MAX_CHARACTERS] + "..."
