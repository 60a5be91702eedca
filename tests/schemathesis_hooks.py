"""What schemathesis has to know of scoremean that an OpenAPI document cannot say. It loads this by SCHEMATHESIS_HOOKS."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import schemathesis
from schemathesis.specs.openapi.checks import (
    allow_header_conformance,
    negative_data_rejection,
    positive_data_acceptance,
)

from scoremean.web.wire import MSGPACK, NDJSON

# Rules that no schema has: an id is for one score, and a header for a single one; a tally holds what is voided.
STORE_PROBLEMS = {f"urn:scoremean:{slug}" for slug in ("id-conflict", "id-voided", "invalid-id", "no-such-score")}


@schemathesis.serializer(NDJSON)
def as_lines(_: object, value: Any) -> bytes:
    """Return an array as NDJSON."""
    return "\n".join(map(json.dumps, value)).encode()


@schemathesis.deserializer(NDJSON)
def from_lines(_: object, response: schemathesis.Response) -> Any:
    """Return the array in an answer of NDJSON."""
    return msgspec.json.decode(b"[%s]" % b",".join(response.content.splitlines()))


@schemathesis.serializer(MSGPACK)
def as_msgpack(_: object, value: Any) -> bytes:
    """Return a value as MessagePack; one with integers that this cannot hold as a body that is refused as well."""
    try:
        return msgspec.msgpack.encode(value)
    except OverflowError:
        return b""


@schemathesis.deserializer(MSGPACK)
def from_msgpack(_: object, response: schemathesis.Response) -> Any:
    """Return the value in an answer of MessagePack."""
    return msgspec.msgpack.decode(response.content)


@schemathesis.hook
def filter_case(_: schemathesis.HookContext, case: schemathesis.Case) -> bool:
    """Leave out what can be no example.

    Python's client sends no header beyond Latin-1; lines are an array whatever they are; on_error=skip takes any score.
    """
    if any(ord(character) > 255 for value in (case.headers or {}).values() for character in str(value)):
        return False
    if case.media_type == NDJSON and not isinstance(case.body, list):
        return False
    negative = case.meta is not None and case.meta.generation.mode.is_negative
    return not (negative and (case.query or {}).get("on_error") == "skip")


@schemathesis.check
def valid_data_is_taken(
    ctx: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case
) -> bool | None:
    """As positive_data_acceptance, but for what is refused by a rule that no schema has."""
    if response.status_code == 422 and _beyond_schema(response.json()):
        return None
    return positive_data_acceptance(ctx, response, case)


def _beyond_schema(problem: dict[str, Any]) -> bool:
    """Return whether all faults are such: of ids, of 4.0, which is an integer to a schema, or of a merge into itself."""
    faults = problem.get("errors", [])
    return problem["type"] in STORE_PROBLEMS or bool(faults) and all(map(_fault_beyond_schema, faults))


def _fault_beyond_schema(fault: dict[str, str]) -> bool:
    detail = fault["detail"]
    return any(rule in detail for rule in ("was used before", "was voided", "into itself")) or detail.endswith(".0")


@schemathesis.check
def invalid_data_is_refused(
    ctx: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case
) -> bool | None:
    """As negative_data_rejection, which does not know that 413 refuses an array that is too long."""
    return None if response.status_code == 413 else negative_data_rejection(ctx, response, case)


@schemathesis.check
def allow_names_the_methods(
    ctx: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case
) -> bool | None:
    """As allow_header_conformance, but for what is a UUID behind /means/ too, and has the methods of /means/{UUID}."""
    is_uuid_too = case.operation.path in ("/means/query", "/means/{UUID}/merge")
    return None if is_uuid_too else allow_header_conformance(ctx, response, case)
