"""The OpenAPI 3.1 document: every route with its parameters, bodies, statuses, headers and problems.

The schemas are made by msgspec from the types that the service encodes and decodes; a table adds what these do not say, for
each member once, since a name means the same everywhere. What the service is set to is in its document: the range of a score,
the size of a batch, whether it asks for tokens.

Tests hold the operations equal to the routes, the schema of a score to what validation takes, and answers to the document.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import groupby
from operator import attrgetter
from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType

from scoremean import errors
from scoremean.errors import RequestError, ScoremeanError, Unavailable
from scoremean.model import TEXT_MAX_BYTES, Mean, Stats
from scoremean.settings import Settings
from scoremean.web.access import Right
from scoremean.web.assets import HEADERS as ASSET_HEADERS
from scoremean.web.events import Now
from scoremean.web.overview import BINS, MIN_COUNTS, TOP_UUIDS, View
from scoremean.web.wire import JSON, MSGPACK, NDJSON, PAGE_DEFAULT_UUIDS, PAGE_MAX_UUIDS, ScoreDecoder

PROBLEM = "application/problem+json"
EVENTS = "text/event-stream"
_SCHEMA = "#/components/schemas/{name}"


class PostedMean(Struct, forbid_unknown_fields=True):
    """The mean of a UUID right after the score that was posted."""

    UUID: str
    mean: float


class Merge(Struct, forbid_unknown_fields=True):
    """Where the tally of a UUID goes."""

    into: str


class ServiceStats(Stats):
    """What the store holds, and the version of the service."""

    version: str


class Status(Struct):
    """Whether the service is live, or ready."""

    status: str


class MemberFault(Struct):
    """One member that is at fault."""

    pointer: str
    detail: str


class Problem(Struct):
    """An error (RFC 9457). Decide by `type`; the sentences may change."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[MemberFault] | UnsetType = UNSET


_TEXT = f"1 to {TEXT_MAX_BYTES} bytes of UTF-8 without control characters"
# A schema counts characters where the service counts bytes.
_TEXT_SCHEMA = {"type": "string", "minLength": 1, "maxLength": TEXT_MAX_BYTES, "pattern": r"^[^\u0000-\u001f\u007f-\u009f]+$"}
_COUNTER = {"type": "integer", "minimum": 0}
_UUID = {**_TEXT_SCHEMA, "description": f"any text of {_TEXT}; never parsed", "examples": ["a1-b1"]}
_ID = {
    **_TEXT_SCHEMA,
    "description": f"the client's own name for a score, {_TEXT}; scores with the same id count once",
    "examples": ["vote-1"],
}

# What is said of a member, by its name or, where another schema has the name for something else, by both names.
_MEMBERS: dict[str, dict[str, Any]] = {
    "UUID": _UUID,
    "id": _ID,
    "score": {"description": "an integer, without quotes, fraction or exponent"},
    "into": {**_UUID, "description": "the UUID that is to have both tallies", "examples": ["a1-b2"]},
    "mean": {"description": "sum / count, as the float nearest to it"},
    "Mean.mean": {"description": "sum / count, as the float nearest to it; null where a void has left no score"},
    "sum": {"description": "the sum of the scores, exact"},
    "count": {**_COUNTER, "description": "the number of scores"},
    "version": {"description": "of the service"},
    "uuids": {**_COUNTER, "description": "UUIDs with a score"},
    "scores": {**_COUNTER, "description": "scores that are counted"},
    "ids": {**_COUNTER, "description": "ids that are kept"},
    "store_size_bytes": {**_COUNTER, "description": "bytes that the store uses"},
    "store_size_max_bytes": {**_COUNTER, "description": "bytes that the store may grow to; 0 without a limit"},
    "Status.status": {"enum": ["live", "ready"], "description": "which of the two was asked for"},
    "pointer": {"description": "a JSON pointer (RFC 6901) to the member; empty for the whole body"},
    "MemberFault.detail": {"description": "a sentence about it"},
    "type": {"description": "the kind of error"},
    "title": {"description": "the kind in words"},
    "status": {"description": "the status of the answer"},
    "detail": {"description": "what is wrong, and what to do"},
    "errors": {"description": "each member at fault, when members are"},
    "time": {"description": "the Unix time in seconds"},
    "disk_free_bytes": {**_COUNTER, "description": "bytes that are free on the disk of the store; 0 where that is not known"},
    "queue_scores": {**_COUNTER, "description": "scores that wait for a commit"},
    "counted": {**_COUNTER, "description": "scores counted since the start"},
    "replays": {**_COUNTER, "description": "scores that came again with their id, since the start"},
    "voids": {**_COUNTER, "description": "scores voided since the start"},
    "commits": {**_COUNTER, "description": "commits since the start"},
    "commit_duration": {"description": "how long these took"},
    "bounds_seconds": {"description": "the upper bound of each bucket but the last"},
    "counts": {"description": "commits in each bucket; the last bucket is above all bounds"},
    "sum_seconds": {"description": "the durations of all commits added up"},
    "min_count": {"description": "the scores that a UUID must have to be looked at", "enum": list(MIN_COUNTS)},
    "score_min": {"description": "the lowest score that is accepted"},
    "score_max": {"description": "the highest score that is accepted"},
    "complete": {"description": "false while the store is read for the first time"},
    "read_uuids": {**_COUNTER, "description": "UUIDs that were read"},
    "View.uuids": {**_COUNTER, "description": "those of them that have enough scores"},
    "distribution": {
        "minItems": BINS,
        "maxItems": BINS,
        "description": "how many of these have a mean in each of equal parts from score_min to score_max",
    },
    "best": {"maxItems": TOP_UUIDS, "description": "the UUIDs with the highest means, best first"},
    "worst": {"maxItems": TOP_UUIDS, "description": "the UUIDs with the lowest means, worst first"},
}

_HEADERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ETag": ("changes with the answer; send it as If-None-Match", {"type": "string"}),
    "Link": ('with rel="next", where the next page is; missing on the last', {"type": "string"}),
    "Idempotency-Replayed": ("there if nothing was counted: this is the first answer again", {"const": "true"}),
    "Retry-After": ("seconds after which to send the request again", {"type": "integer", "minimum": 1}),
    "Allow": ("the methods that the path has", {"type": "string"}),
    "X-Request-Id": ("what the log calls the request", {"type": "string"}),
    "WWW-Authenticate": ("how to say who is asking", {"const": "Bearer"}),
    **{name: ("for browsers", {"const": value}) for name, value in ASSET_HEADERS.items()},
    "Cache-Control": ("whether a copy may be kept, and be used unasked", {"enum": ["no-cache", "no-store"]}),
}
_REQUEST_ID = {
    "name": "X-Request-Id",
    "in": "header",
    "description": "your own name for the request, 1 to 128 characters of visible ASCII; any other is replaced",
    "schema": {"type": "string"},
}
# All other headers are there whenever an answer is of the kind that has them.
_SOMETIMES = ("Link", "Idempotency-Replayed")
_ASSET_HEADERS = ("ETag", *ASSET_HEADERS)

# What any request can be answered with, what one with a body can, one that reads and one that writes.
_ALWAYS = (errors.MalformedRequest, errors.MisdirectedRequest, errors.ExpectationFailed, ScoremeanError)
_BODY = (errors.RequestTimeout, errors.BodyTooLarge, errors.UnsupportedMediaType)
_READ = (errors.Stopping, errors.StoreDamaged)
_WRITE = (
    errors.QueueFull,
    errors.Stopping,
    errors.OutcomeUnknown,
    errors.StoreFull,
    errors.StoreDamaged,
)
# No operation has these two: they are the answer to a request for none.
_NO_ROUTE = (errors.UnknownRoute, errors.MethodNotAllowed)


class Operation(Struct, frozen=True, kw_only=True):
    """What a route takes and answers.

    Attributes:
        name: of the method that answers it, in handlers.py.
        right, vital: as in Route.
        summary, details: what it does, in a line and in full.
        parameters, body: as OpenAPI has them.
        answers: as OpenAPI has them, by status, those that are no problems.
        problems: those of this route, beside those of every route and every right.
    """

    name: str
    right: Right
    vital: bool = False
    summary: str
    details: str = ""
    parameters: tuple[Mapping[str, Any], ...] = ()
    body: Mapping[str, Any] | None = None
    answers: Mapping[int, Mapping[str, Any]]
    problems: tuple[type[ScoremeanError], ...] = ()


def _ref(name: str) -> dict[str, str]:
    return {"$ref": _SCHEMA.format(name=name)}


def _array(items: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _content(schema: Mapping[str, Any], example: object, *types: str) -> dict[str, Any]:
    """Return the content of an answer; what a request may be shown with depends on the settings and stands in the schemas."""
    return {kind: {"schema": schema, "example": example} for kind in types or (JSON,)}


def _answer(text: str, content: Mapping[str, Any] | None, *headers: str) -> dict[str, Any]:
    links = {name: {"$ref": f"#/components/headers/{name}"} for name in ("X-Request-Id", *headers)}
    response: dict[str, Any] = {"description": text, "headers": links}
    return response if content is None else {**response, "content": content}


def _parameter(place: str, name: str, schema: Mapping[str, Any], text: str, example: object = UNSET) -> dict[str, Any]:
    parameter = {"name": name, "in": place, "required": place == "path", "description": text, "schema": schema}
    return parameter if example is UNSET else {**parameter, "example": example}


def _asset(name: str, summary: str, *types: str, problems: tuple = (), parameters: tuple = ()) -> Operation:
    """Return the operation of a file that is the same until the next start."""
    content = {kind: {"schema": {"type": "object" if kind == JSON else "string"}} for kind in types}
    return Operation(
        name=name,
        right=Right.NONE,
        summary=summary,
        parameters=(*parameters, _IF_NONE_MATCH),
        answers={
            200: _answer("the file", content, *_ASSET_HEADERS),
            304: _answer("the file has the ETag that was sent", None, *_ASSET_HEADERS),
        },
        problems=problems,
    )


_MEAN = {"UUID": "a1-b1", "mean": 4.0, "sum": 12, "count": 3}
_UUID_IN_PATH = _parameter("path", "UUID", _UUID, "percent-encoded UTF-8", "a1-b1")
_IF_NONE_MATCH = _parameter("header", "If-None-Match", {"type": "string"}, "the ETag of an earlier answer, or *")
_MIN_COUNT = _parameter(
    "query", "min_count", {"type": "integer", "enum": list(MIN_COUNTS), "default": 1}, "the scores that a UUID must have", 10
)
_RESULTS = _array({"anyOf": [_ref("PostedMean"), _ref("Problem")]})
_EVENT_NAMES = {"now": "Now", "overview": "View"}

OPERATIONS: dict[tuple[str, str], Operation] = {
    ("POST", "/scores"): Operation(
        name="post_scores",
        right=Right.WRITE,
        summary="Count one score, or a batch of them",
        details="Answers once all are on disk, with the mean right after each score. With an `id` the same score counts once,"
        " however often it is sent. A batch is all or nothing, unless `on_error` is `skip`: then the valid scores are"
        " counted, and in place of each refused one stands the problem that it is. The answer has the type of the request;"
        " NDJSON is always a batch. In MessagePack there are the same maps and arrays as in JSON.",
        parameters=(
            _parameter("query", "on_error", {"enum": ["stop", "skip"], "default": "stop"}, "what a bad score of a batch does"),
            _parameter(
                "header",
                "Idempotency-Key",
                _TEXT_SCHEMA,
                "for a single score: the same as its member `id`. May stand in quotes",
            ),
        ),
        body={
            "required": True,
            "content": {
                **{kind: {"schema": {"oneOf": [_ref("Score"), _ref("Batch")]}} for kind in (JSON, MSGPACK)},
                NDJSON: {"schema": _ref("Batch")},
            },
        },
        answers={
            200: {
                **_answer(
                    "the mean after each score, once all are on disk",
                    {
                        **_content({"oneOf": [_ref("PostedMean"), _RESULTS]}, {"UUID": "a1-b1", "mean": 5.0}, JSON, MSGPACK),
                        **_content(_RESULTS, [{"UUID": "a1-b1", "mean": 5.0}, {"UUID": "a1-b1", "mean": 5.0}], NDJSON),
                    },
                    "Idempotency-Replayed",
                ),
                "links": {
                    "mean": {"operationId": "get_mean", "parameters": {"UUID": "$response.body#/UUID"}},
                    "forget": {"operationId": "forget_mean", "parameters": {"UUID": "$response.body#/UUID"}},
                    "void": {"operationId": "void_score", "parameters": {"id": "$request.body#/id"}},
                },
            }
        },
        problems=(
            *_BODY,
            *_WRITE,
            errors.InvalidScore,
            errors.InvalidBatch,
            errors.InvalidId,
            errors.IdConflict,
            errors.IdVoided,
            errors.InvalidQuery,
        ),
    ),
    ("DELETE", "/scores/{id}"): Operation(
        name="void_score",
        right=Right.WRITE,
        summary="Void the score that carried this id",
        details="Takes it out of the sum and the count of its UUID, and answers what is left, once that is on disk. Voiding"
        " twice changes nothing the second time.",
        parameters=(_parameter("path", "id", _ID, "percent-encoded UTF-8", "vote-1"),),
        answers={200: _answer("what is left of the UUID", _content(_ref("Mean"), _MEAN))},
        problems=(*_WRITE, errors.InvalidId, errors.UnknownId, errors.UnknownUUID, errors.NoSuchScore),
    ),
    ("POST", "/voids"): Operation(
        name="post_void",
        right=Right.WRITE,
        summary="Void a score of this UUID and value, whatever it was counted with",
        details="For a score that was posted without an `id`, or imported in a sum. Takes one such score out of the sum and the"
        " count, and answers what is left, once that is on disk. The `id` is the void's own: sent again with it, nothing more"
        " is taken out. It may come as the header `Idempotency-Key` instead, as that of a score may.",
        body={"required": True, "content": {kind: {"schema": _ref("VoidScore")} for kind in (JSON, MSGPACK)}},
        answers={
            200: _answer("what is left of the UUID", _content(_ref("Mean"), _MEAN, JSON, MSGPACK), "Idempotency-Replayed")
        },
        problems=(
            *_BODY,
            *_WRITE,
            errors.InvalidScore,
            errors.InvalidId,
            errors.IdConflict,
            errors.NoSuchScore,
            errors.UnknownUUID,
        ),
    ),
    ("GET", "/means"): Operation(
        name="list_means",
        right=Right.READ,
        summary="List the means in the order of UUIDs, page by page",
        parameters=(
            _parameter("query", "after", _UUID, "the UUID to go on behind"),
            _parameter(
                "query",
                "limit",
                {"type": "integer", "minimum": 1, "maximum": PAGE_MAX_UUIDS, "default": PAGE_DEFAULT_UUIDS},
                "the most means in the page",
                10,
            ),
        ),
        answers={200: _answer("a page of means, all of one moment", _content(_array(_ref("Mean")), [_MEAN]), "Link")},
        problems=(*_READ, errors.InvalidQuery),
    ),
    ("POST", "/means/query"): Operation(
        name="query_means",
        right=Right.READ,
        summary="Look up the means of many UUIDs",
        body={"required": True, "content": {JSON: {"schema": _ref("UUIDs")}}},
        answers={
            200: _answer(
                "the mean of each UUID in the order asked, null for one without a score, all of one moment",
                _content(_array({"anyOf": [_ref("Mean"), {"type": "null"}]}), [_MEAN, None]),
            )
        },
        problems=(*_BODY, *_READ, errors.InvalidQuery),
    ),
    ("GET", "/means/{UUID}"): Operation(
        name="get_mean",
        right=Right.READ,
        summary="Look up the mean of a UUID",
        parameters=(_UUID_IN_PATH, _IF_NONE_MATCH),
        answers={
            200: _answer("the mean, and the tally that it comes from", _content(_ref("Mean"), _MEAN), "ETag"),
            304: _answer("the mean has the ETag that was sent", None, "ETag"),
        },
        problems=(*_READ, errors.InvalidUUID, errors.UnknownUUID),
    ),
    ("DELETE", "/means/{UUID}"): Operation(
        name="forget_mean",
        right=Right.WRITE,
        summary="Forget a UUID and its scores",
        details="Answers what it had, once it is gone from the disk. A new score of this UUID starts anew.",
        parameters=(_UUID_IN_PATH,),
        answers={200: _answer("what the UUID had", _content(_ref("Mean"), _MEAN))},
        problems=(*_WRITE, errors.InvalidUUID, errors.UnknownUUID),
    ),
    ("POST", "/means/{UUID}/merge"): Operation(
        name="merge_mean",
        right=Right.WRITE,
        summary="Merge a UUID into another one",
        details="Adds its tally to that of `into`, which may have no score yet, and forgets it, in one step. Answers the mean"
        " of `into`, once that is on disk. Merged again it has no score, and nothing is counted twice.",
        parameters=(_UUID_IN_PATH,),
        body={"required": True, "content": {JSON: {"schema": _ref("Merge")}}},
        answers={200: _answer("the mean of `into`, with both", _content(_ref("Mean"), {**_MEAN, "UUID": "a1-b2"}))},
        problems=(*_BODY, *_WRITE, errors.InvalidUUID, errors.InvalidScore, errors.UnknownUUID),
    ),
    ("GET", "/stats"): Operation(
        name="get_stats",
        right=Right.READ,
        summary="Tell what the store holds",
        answers={
            200: _answer(
                "what the store holds",
                _content(
                    _ref("ServiceStats"),
                    {
                        "version": "0.1.0",
                        "uuids": 1,
                        "scores": 3,
                        "ids": 0,
                        "store_size_bytes": 57344,
                        "store_size_max_bytes": 64 << 30,
                    },
                ),
            )
        },
        problems=_READ,
    ),
    ("GET", "/events"): Operation(
        name="get_events",
        right=Right.READ,
        summary="Watch what happens, as server-sent events",
        details="The stream does not end. Each second there is an event `now`, and an event `overview` whenever there is news."
        " The schema is of the events, as an array that never ends; their data is JSON.",
        parameters=(_MIN_COUNT,),
        answers={
            200: _answer(
                "the events",
                {
                    EVENTS: {
                        "schema": _array(
                            {
                                "oneOf": [
                                    {
                                        "type": "object",
                                        "properties": {
                                            "event": {"const": event},
                                            "data": {
                                                "type": "string",
                                                "contentMediaType": JSON,
                                                "contentSchema": _ref(name),
                                            },
                                        },
                                        "required": ["event", "data"],
                                    }
                                    for event, name in _EVENT_NAMES.items()
                                ]
                            }
                        )
                    }
                },
                "Cache-Control",
            )
        },
        problems=(*_READ, errors.InvalidQuery, errors.TooManyStreams),
    ),
    ("GET", "/metrics"): Operation(
        name="get_metrics",
        right=Right.READ,
        summary="Tell the metrics in the text format of Prometheus",
        answers={200: _answer("the metrics", {"text/plain": {"schema": {"type": "string"}}})},
        problems=_READ,
    ),
    ("GET", "/livez"): Operation(
        name="get_livez",
        right=Right.NONE,
        vital=True,
        summary="Tell whether the process answers at all",
        details="Restart it when this fails.",
        answers={200: _answer("it does", _content(_ref("Status"), {"status": "live"}))},
    ),
    ("GET", "/readyz"): Operation(
        name="get_readyz",
        right=Right.NONE,
        vital=True,
        summary="Tell whether scores are taken",
        details="Send no requests while this fails.",
        answers={200: _answer("they are", _content(_ref("Status"), {"status": "ready"}))},
        problems=(errors.Stopping,),
    ),
    ("GET", "/"): _asset("get_page", "Get the page for people", "text/html"),
    ("GET", "/page/{file}"): _asset(
        "get_page_file",
        "Get a file of the page for people",
        "text/css",
        "text/javascript",
        "image/svg+xml",
        "text/plain",
        parameters=(_parameter("path", "file", {"type": "string", "minLength": 1}, "the name of the file", "page.css"),),
        problems=(errors.UnknownRoute,),
    ),
    ("GET", "/docs"): _asset("get_docs", "Read this document as a page", "text/html"),
    ("GET", "/openapi.json"): _asset("get_openapi", "Get this document, of OpenAPI 3.1", JSON),
}


def problem_types() -> list[type[ScoremeanError]]:
    """Return every error that reaches a client, in the order of errors.py; not the bases, which are never raised themselves."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ScoremeanError)]
    return [kind for kind in kinds if "slug" in vars(kind) and kind not in (RequestError, Unavailable, errors.StoreError)]


def document(settings: Settings, version: str) -> dict[str, Any]:
    """Return the document of a service with these settings."""
    with_tokens = bool(settings.token_file)
    responses = {kind.__name__: _problem((kind,)) for kind in _NO_ROUTE}
    paths: dict[str, dict[str, Any]] = {}
    for (method, path), operation in OPERATIONS.items():
        item = paths.setdefault(path, {"parameters": [{"$ref": "#/components/parameters/X-Request-Id"}]})
        item[method.lower()] = _operation(operation, with_tokens, responses)
    components: dict[str, Any] = {
        "schemas": _schemas(settings),
        "parameters": {"X-Request-Id": _REQUEST_ID},
        "headers": {
            name: {"description": text, "schema": schema, "required": name not in _SOMETIMES}
            for name, (text, schema) in _HEADERS.items()
        },
        "responses": responses,
        "examples": {kind.slug: _problem_example(kind) for kind in problem_types()},
    }
    if with_tokens:
        components["securitySchemes"] = {
            "token": {"type": "http", "scheme": "bearer", "description": "a token for `read` or, which holds that, for `write`"}
        }
    return {
        "openapi": "3.1.1",
        "info": {
            "title": "scoremean",
            "version": version,
            "summary": "Keeps the exact mean of every UUID's scores, durably",
            "description": "GET routes answer HEAD too. A path that is not here gets the problem `unknown-route`, a method"
            f" that a path does not have `method-not-allowed`. A body has at most {settings.body_max_bytes:,} bytes.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": components,
    }


@lru_cache(maxsize=1)
def encoded(settings: Settings, version: str) -> bytes:
    """Return the document as JSON. It is made once, for the first who asks."""
    return msgspec.json.encode(document(settings, version))


def _operation(operation: Operation, with_tokens: bool, responses: dict[str, Any]) -> dict[str, Any]:
    """Return the operation as OpenAPI has it; its problems are references, of which the targets are put into `responses`."""
    problems = [*operation.problems, *_ALWAYS]
    if not operation.vital:
        problems.append(errors.TooManyConnections)
    found: dict[str, Any] = {"operationId": operation.name, "summary": operation.summary}
    if operation.details:
        found["description"] = operation.details
    if with_tokens and operation.right is not Right.NONE:
        found["security"] = [{"token": []}]
        problems += [errors.Unauthorized, errors.Forbidden][: operation.right]
    if operation.parameters:
        found["parameters"] = list(operation.parameters)
    if operation.body is not None:
        found["requestBody"] = operation.body
    answers = dict(operation.answers)
    for status, group in groupby(sorted(problems, key=attrgetter("status")), key=attrgetter("status")):
        kinds = tuple(group)
        name = "-".join(kind.__name__ for kind in kinds)
        responses.setdefault(name, _problem(kinds))
        answers[status] = {"$ref": f"#/components/responses/{name}"}
    found["responses"] = {str(status): answers[status] for status in sorted(answers)}
    return found


def _problem(kinds: tuple[type[ScoremeanError], ...]) -> dict[str, Any]:
    """Return the response with one status that is one of `kinds`."""
    headers = {
        "Retry-After": issubclass(kinds[0], Unavailable),
        "WWW-Authenticate": kinds[0] is errors.Unauthorized,
        "Allow": kinds[0] is errors.MethodNotAllowed,
    }
    members = {"type": {"enum": [_urn(kind) for kind in kinds]}, "status": {"const": kinds[0].status}}
    content = {
        PROBLEM: {
            "schema": {**_ref("Problem"), "properties": members},
            "examples": {kind.slug: {"$ref": f"#/components/examples/{kind.slug}"} for kind in kinds},
        }
    }
    return _answer(" ".join(_said(kind) for kind in kinds), content, *(name for name, there in headers.items() if there))


def _problem_example(kind: type[ScoremeanError]) -> dict[str, Any]:
    value = {"type": _urn(kind), "title": kind.title, "status": kind.status, "detail": _said(kind)}
    return {"summary": kind.title, "description": _said(kind), "value": value}


def _urn(kind: type[ScoremeanError]) -> str:
    return f"urn:scoremean:{kind.slug}"


def _said(kind: type[ScoremeanError]) -> str:
    """Return what the docstring of an error says of it to whoever gets it."""
    return "A bug in scoremean; its log says more." if kind is ScoremeanError else _first_paragraph(kind.__doc__ or "")


def _first_paragraph(text: str) -> str:
    """Return the start of a docstring; what follows is for who reads the code."""
    return " ".join(text.partition("\n\n")[0].split())


def _schemas(settings: Settings) -> dict[str, Any]:
    score = ScoreDecoder(settings.score_min, settings.score_max, settings.batch_max_scores).type
    types: Iterable[type] = (score, PostedMean, Mean, Merge, ServiceStats, Status, Problem, Now, View)
    _, schemas = msgspec.json.schema_components(types, ref_template=_SCHEMA)
    for name, schema in schemas.items():
        schema["description"] = _first_paragraph(schema.get("description", ""))
        for member, own in schema["properties"].items():
            own |= _MEMBERS.get(f"{name}.{member}") or _MEMBERS[member]
    # Unlike in the type, an id is a string or left out, and all but a post answer a mean with its tally.
    example = {"UUID": "a1-b1", "score": settings.score_max}
    schemas["Score"] |= {"description": "One integer given to one UUID.", "examples": [example]}
    schemas["Score"]["properties"]["id"] = _ID
    schemas["VoidScore"] = schemas["Score"] | {
        "description": "One score to be taken out; its `id` is that of the void.",
        "required": ["UUID", "score", "id"],
        "examples": [{**example, "id": "mistake-1"}],
    }
    schemas["Merge"]["examples"] = [{"into": "a1-b2"}]
    schemas["Mean"]["required"] = list(schemas["Mean"]["properties"])
    schemas["Problem"]["properties"]["type"]["enum"] = [_urn(kind) for kind in problem_types()]
    schemas["Batch"] = _array(_ref("Score")) | {
        "maxItems": settings.batch_max_scores,
        "description": "Scores that are counted together, in order.",
        "examples": [[example, {**example, "id": "vote-1"}]],
    }
    schemas["UUIDs"] = _array(_UUID) | {
        "maxItems": settings.batch_max_scores,
        "description": "UUIDs to look up, in any order.",
        "examples": [["a1-b1", "nobody"]],
    }
    return schemas
