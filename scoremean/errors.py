"""Every error that scoremean raises on purpose, and nothing else.

    ScoremeanError
    ├── RequestError                what the client sent is at fault; nothing was counted
    │   ├── MalformedRequest        400  not HTTP, not UTF-8, not JSON, or cut off half way
    │   ├── Unauthorized            401  no token, or none that is known
    │   ├── Forbidden               403  a token that may only read
    │   ├── UnknownRoute            404  no such path
    │   ├── UnknownUUID             404  a UUID without a score
    │   ├── UnknownId               404  an id that no score carried, or whose record has expired
    │   ├── MethodNotAllowed        405  the path exists, the method does not
    │   ├── RequestTimeout          408  the body did not arrive in time
    │   ├── BodyTooLarge            413  longer than body_max_bytes
    │   ├── UnsupportedMediaType    415  a Content-Type or Content-Encoding not read here
    │   ├── ExpectationFailed       417  an Expect header other than 100-continue
    │   ├── MisdirectedRequest      421  a Host header that is not a name of this service
    │   └── InvalidScore            422  well-formed, but not a score
    │       ├── InvalidUUID          not 1 to 256 UTF-8 bytes without control characters
    │       ├── InvalidId            the same for an id
    │       ├── IdConflict           the id was used for another UUID or score
    │       ├── IdVoided             the score with this id was voided
    │       ├── NoSuchScore          a void of what the tally of its UUID cannot hold
    │       ├── InvalidBatch         some scores of a batch are at fault, so none was counted
    │       └── InvalidQuery         a parameter or the list of UUIDs of a read is at fault
    ├── Unavailable                 503  try again; Retry-After says when
    │   ├── QueueFull                    more scores wait than queue_max_scores; this one was not counted
    │   ├── Stopping                     the service is shutting down; this one was not counted
    │   ├── TooManyConnections           more connections than connections_max; nothing was done
    │   ├── TooManyStreams               more streams of events than may be
    │   └── OutcomeUnknown               the commit failed half way; it may or may not be counted, and the service exits
    ├── StoreFull                   507  the store has no room left; this one was not counted
    ├── StoreError                  a store that cannot be opened or read
    │   ├── StoreMissing                 there is no store at that path
    │   ├── StoreInUse                   another process, or this one, writes it
    │   ├── StoreForeign                 not a store of scoremean, or of a format it does not read
    │   └── StoreDamaged                 bytes on disk that scoremean did not write
    ├── ImportStopped               a file has bad lines, and they were not to be skipped
    ├── NotWritten                  a backup or a restored store would overwrite something, or has no room
    ├── ListenError                 the address cannot be listened on
    └── SettingError                a setting with a value it cannot have

An error knows how HTTP answers it: `status`, `slug` (the last part of the problem's type) and `title`; its message is the
problem's detail. Errors without a status of their own never reach a client.
"""

from __future__ import annotations

from typing import NamedTuple


class Fault(NamedTuple):
    """One thing that is wrong with a request: a JSON pointer (RFC 6901) to the member, and a sentence about it."""

    pointer: str
    detail: str


class ScoremeanError(Exception):
    """The base of every error here. `str(error)` is one sentence for a person, without a line break."""

    status = 500
    slug = "internal-error"
    title = "Internal error"

    @property
    def detail(self) -> str:
        """The sentence that says what is wrong and what to do."""
        return str(self)


class RequestError(ScoremeanError):
    """What the client sent is at fault; nothing was counted."""

    status = 400
    slug = "bad-request"
    title = "Bad request"


class MalformedRequest(RequestError):
    """The bytes are not what they are said to be: not HTTP, not UTF-8, not JSON, or cut off half way."""

    slug = "malformed-request"
    title = "Malformed request"


class Unauthorized(RequestError):
    """The request has no bearer token, or one that is not in token_file."""

    status = 401
    slug = "unauthorized"
    title = "Unauthorized"


class Forbidden(RequestError):
    """The token may only read, and the route writes."""

    status = 403
    slug = "forbidden"
    title = "Forbidden"


class UnknownRoute(RequestError):
    """No route has this path."""

    status = 404
    slug = "unknown-route"
    title = "Unknown route"


class UnknownUUID(RequestError):
    """No score was ever counted for this UUID."""

    status = 404
    slug = "unknown-uuid"
    title = "Unknown UUID"


class UnknownId(RequestError):
    """No score carried this id, or its record has expired (id_retention_hours)."""

    status = 404
    slug = "unknown-id"
    title = "Unknown id"


class MethodNotAllowed(RequestError):
    """The path exists, but not with this method; the Allow header lists those it has.

    `allowed` is the value of the header.
    """

    status = 405
    slug = "method-not-allowed"
    title = "Method not allowed"

    def __init__(self, message: str, allowed: str = ""):
        super().__init__(message)
        self.allowed = allowed


class RequestTimeout(RequestError):
    """The rest of the body did not arrive within body_timeout_seconds."""

    status = 408
    slug = "request-timeout"
    title = "Request timeout"


class BodyTooLarge(RequestError):
    """The body is longer than body_max_bytes."""

    status = 413
    slug = "body-too-large"
    title = "Body too large"


class UnsupportedMediaType(RequestError):
    """The Content-Type is missing or not read here, or the body has a Content-Encoding."""

    status = 415
    slug = "unsupported-media-type"
    title = "Unsupported media type"


class ExpectationFailed(RequestError):
    """The Expect header asks for something other than 100-continue."""

    status = 417
    slug = "expectation-failed"
    title = "Expectation failed"


class MisdirectedRequest(RequestError):
    """The Host header is not a name of this service."""

    status = 421
    slug = "misdirected-request"
    title = "Misdirected request"


class InvalidScore(RequestError, ValueError):
    """Well-formed JSON that is not a score.

    `faults` names each member at fault; the sentence holds the first of them.
    """

    status = 422
    slug = "invalid-score"
    title = "Invalid score"

    def __init__(self, message: str, faults: tuple[Fault, ...] = ()):
        super().__init__(message)
        self.faults = faults

    def __str__(self) -> str:
        message = super().__str__()
        # One that came over a wire was told there with its first fault.
        first = self.faults[0].detail if self.faults else ""
        return message if first in message else f"{message}: {first}"


class InvalidUUID(InvalidScore):
    """Not 1 to 256 UTF-8 bytes without control characters."""

    slug = "invalid-uuid"
    title = "Invalid UUID"


class InvalidId(InvalidScore):
    """Not 1 to 256 UTF-8 bytes without control characters; or two ids for one score."""

    slug = "invalid-id"
    title = "Invalid id"


class IdConflict(InvalidScore):
    """The id was used before, for another UUID or another score, or for a void of one. This one was not counted."""

    slug = "id-conflict"
    title = "Id conflict"


class IdVoided(InvalidScore):
    """The score with this id was voided, so it is not counted again."""

    slug = "id-voided"
    title = "Id voided"


class NoSuchScore(InvalidScore):
    """The tally of the UUID cannot hold what was to be voided: no scores could make what would be left. It is as it was."""

    slug = "no-such-score"
    title = "No such score"


class InvalidBatch(InvalidScore):
    """Some scores of a batch are at fault, so that none of them was counted.

    `faults` lists them all.
    """

    slug = "invalid-batch"
    title = "Invalid batch"


class InvalidQuery(InvalidScore):
    """A parameter of a read, or its list of UUIDs, is at fault."""

    slug = "invalid-query"
    title = "Invalid query"


class Unavailable(ScoremeanError):
    """The service cannot answer now; the same request may be sent again after `retry_after_seconds`."""

    status = 503
    slug = "unavailable"
    title = "Unavailable"
    retry_after_seconds = 1


class QueueFull(Unavailable):
    """More scores wait for a commit than queue_max_scores. This one was not counted."""

    slug = "queue-full"
    title = "Queue full"


class Stopping(Unavailable):
    """The service takes no more scores because it is shutting down. This one was not counted."""

    slug = "stopping"
    title = "Stopping"


class TooManyConnections(Unavailable):
    """There are more connections than connections_max. Nothing was done."""

    slug = "too-many-connections"
    title = "Too many connections"


class TooManyStreams(Unavailable):
    """There are as many streams of events as may be."""

    slug = "too-many-streams"
    title = "Too many streams"


class OutcomeUnknown(Unavailable):
    """The commit failed half way: this score may or may not be counted. The service exits."""

    slug = "outcome-unknown"
    title = "Outcome unknown"


class StoreFull(ScoremeanError):
    """The store has no room left (store_size_max_gib). This score was not counted; reading goes on."""

    status = 507
    slug = "store-full"
    title = "Store full"


class StoreError(ScoremeanError):
    """A store that cannot be opened or read."""

    slug = "store-error"
    title = "Store error"


class StoreMissing(StoreError):
    """There is no store at this path, and none was to be created."""


class StoreInUse(StoreError):
    """Another process, or this one, already has the store open for writing."""


class StoreForeign(StoreError):
    """The directory holds something that scoremean did not write, or a format that this version does not read."""


class StoreDamaged(StoreError):
    """The store holds bytes that scoremean cannot have written."""

    slug = "store-damaged"
    title = "Store damaged"


class ImportStopped(ScoremeanError):
    """A file has bad lines, and the import was to stop at them; or it cannot be read as what it is."""


class NotWritten(ScoremeanError):
    """A backup, or a restored store, was not written: something is there already, or the disk has no room for it."""


class ListenError(ScoremeanError):
    """The address cannot be listened on: another program has it, or this machine does not."""


class SettingError(ScoremeanError):
    """A setting has a value that it cannot have; the message names the setting and where the value came from."""
