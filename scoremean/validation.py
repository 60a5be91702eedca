"""Wire bytes -> Score, or a refusal that names every member at fault. Past this module a Score is trusted.

A body is decoded straight into a Score by msgspec, whose type carries the rules. Only a body that this refuses is read a
second time, slowly, to say what is wrong with it; what the second reading thinks decides nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import msgspec

from scoremean.errors import Fault, InvalidId, InvalidScore, MalformedRequest, UnsupportedMediaType
from scoremean.model import TEXT_MAX_BYTES, Score

JSON = "application/json"

_SHOWN_MAX_CHARACTERS = 40
_MEMBERS = "UUID, score and, if you like, id"


def require_media_type(headers: Mapping[str, str]) -> None:
    """Return if the body is said to be plain JSON.

    Raises:
        UnsupportedMediaType: with the header to send instead. Without a Content-Type a browser could be made to post from any
            site, so that is refused too.
    """
    content_type = headers.get("Content-Type", "")
    essence, _, parameters = content_type.partition(";")
    if essence.strip().lower() != JSON:
        found = f"not {_shown(content_type)}" if content_type else "and there is none"
        raise UnsupportedMediaType(f"send the header Content-Type: {JSON}, {found}")
    if parameters.strip().lower().replace('"', "") not in ("", "charset=utf-8"):
        raise UnsupportedMediaType(f"send UTF-8 and the header Content-Type: {JSON}, without {_shown(parameters.strip())}")
    if headers.get("Content-Encoding", "identity").lower() != "identity":
        raise UnsupportedMediaType("send the body as it is, without a Content-Encoding")


def with_key(score: Score, key: str | None) -> Score:
    """Return `score` with the value of an Idempotency-Key header, if there is one, as its id.

    The header's draft wants a quoted string (draft-ietf-httpapi-idempotency-key-header-07); many clients send it bare, and
    both are taken.

    Raises:
        InvalidId: the key cannot be an id, or the score has another one.
    """
    if key is None:
        return score
    if len(key) > 1 and key[0] == key[-1] == '"':
        key = re.sub(r"\\(.)", r"\1", key[1:-1])
    if score.id is not None and score.id != key:
        raise InvalidId("the member id and the header Idempotency-Key differ; send one of them")
    try:
        return Score(score.uuid, score.score, key)
    except InvalidId as error:
        raise InvalidId(f"in the header Idempotency-Key, {error}") from None


class ScoreDecoder:
    """Decodes the body of a single post. The range of a score is the one thing that differs between services.

    Args:
        score_min, score_max: the lowest and the highest score accepted.
    """

    def __init__(self, score_min: int, score_max: int):
        bounded = Annotated[int, msgspec.Meta(ge=score_min, le=score_max)]
        # On the wire an id is a string or left out: a null would look like an id and protect from nothing.
        fields = [("score", bounded), ("id", str, None)]
        self._type = msgspec.defstruct(
            "Score", fields, bases=(Score,), frozen=True, gc=False, forbid_unknown_fields=True
        )
        self._decoder = msgspec.json.Decoder(self._type)
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
            faults = tuple(self._faults(_reread(body, error)))
            raise InvalidScore("the body is not a score", faults or (Fault("", str(error)),)) from None

    def _faults(self, value: Any) -> Iterator[Fault]:
        if not isinstance(value, dict):
            yield Fault("", f"a score is an object with the members {_MEMBERS}, not {_shown(value)}")
            return
        for name, rule in self._rules.items():
            if name not in value and name != "id":
                yield Fault(_pointer(name), f"the member {name} is missing: {rule}")
        for name, member in value.items():
            if name not in self._rules:
                yield Fault(_pointer(name), f"unknown member {_shown(name)}; a score has the members {_MEMBERS}")
            elif not self._is_valid(name, member):
                yield Fault(_pointer(name), f"{self._rules[name]}, not {_shown(member)}")

    def _is_valid(self, name: str, member: Any) -> bool:
        """Try `member` in a score that is otherwise valid: so the type stays the only judge."""
        try:
            msgspec.convert(self._valid | {name: member}, self._type)
        except ValueError:
            return False
        return True


def _reread(body: bytes, error: ValueError) -> Any:
    """Return the value in `body` as the standard library reads it: more leniently, with NaN and lone surrogates.

    So a NaN is reported as the member it stands in. What is not even that is refused for `error`, msgspec's reason.
    """
    try:
        # Python parses no more than 4,300 digits; the first 400 are as much out of range.
        return json.loads(body.decode(), parse_int=lambda digits: int(digits[:400]))
    except UnicodeDecodeError as undecodable:
        raise MalformedRequest(f"the body is not UTF-8: {undecodable.reason} at byte {undecodable.start}") from None
    except (ValueError, RecursionError):
        reason = str(error).removeprefix("JSON is malformed: ") if body else "it is empty"
        raise MalformedRequest(f"the body is not JSON: {reason}") from None


def _pointer(member: str) -> str:
    """Return the JSON pointer (RFC 6901) to a member of the body."""
    # Half a surrogate pair, which JSON can escape and UTF-8 cannot encode, is shown as its escape.
    member = member.encode(errors="backslashreplace").decode()
    return "/" + member.replace("~", "~0").replace("/", "~1")


def _shown(value: Any) -> str:
    """Return `value` as JSON for a sentence, cut to a length that a log line can bear."""
    text = json.dumps(value)
    return text if len(text) <= _SHOWN_MAX_CHARACTERS else text[:_SHOWN_MAX_CHARACTERS] + "..."
