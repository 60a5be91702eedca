"""The two readings of a body must agree: the fast one that decides, and the slow one that explains."""

import json

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from scoremean.errors import (
    BodyTooLarge,
    InvalidBatch,
    InvalidQuery,
    InvalidScore,
    InvalidUUID,
    MalformedRequest,
    UnsupportedMediaType,
)
from scoremean.model import Score, Tally
from scoremean.web.wire import JSON as JSON_TYPE
from scoremean.web.wire import MSGPACK, NDJSON, ScoreDecoder, decode_into, decode_uuids, is_batch, media_type, unpack_sum

DECODER = ScoreDecoder(0, 5, 10)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=5,
)
ALMOST_SCORES = st.fixed_dictionaries(
    {}, optional={"UUID": st.text(max_size=3) | JSON_VALUES, "score": st.integers(-1, 6) | JSON_VALUES, "x": JSON_VALUES}
)


@given(JSON_VALUES | ALMOST_SCORES)
@example({"UUID": "\ud800", "score": 1})
def test_what_is_refused_is_explained_and_what_is_taken_is_a_score(value):
    """Every refusal has at least one fault of our own words, each with a pointer into the body."""
    try:
        score = DECODER.decode(json.dumps(value).encode())
    except InvalidScore as error:
        assert error.faults and error.faults[0].detail in str(error)
        for fault in error.faults:
            assert fault.pointer == "" or fault.pointer.startswith("/")
            assert "Expected `" not in fault.detail
            msgspec.json.encode(fault.pointer)
    else:
        assert {"UUID": score.uuid, "score": score.score} == {"UUID": value["UUID"], "score": value["score"]}
        assert 0 <= score.score <= 5


@given(st.binary(max_size=60))
def test_any_bytes_are_a_score_or_a_refusal(body):
    """No other error comes out."""
    try:
        assert isinstance(DECODER.decode(body), Score)
    except (InvalidScore, MalformedRequest) as error:
        assert error.detail


@pytest.mark.parametrize("kind", [JSON_TYPE, NDJSON, MSGPACK])
@given(body=st.binary(max_size=60))
@example(body=b"\x91\x81\x90\x01")
@example(body=b"\x91\xd6\xff\x00\x00\x00\x00")
@example(body=b"[" * 5000)
@example(body=b"\x91" * 5000)
def test_any_bytes_are_a_batch_or_a_refusal(kind, body):
    """In each media type, also with keys and values that JSON does not have."""
    try:
        is_batch(body, kind)
        for item in DECODER.decode_batch(body, kind):
            assert isinstance(item, (Score, InvalidScore))
    except (InvalidScore, MalformedRequest, BodyTooLarge) as error:
        assert error.detail


@given(st.lists(ALMOST_SCORES, max_size=5))
@example([{"UUID": "a", "score": 1}, {"x": float("inf")}, {"UUID": 5}])
def test_the_faults_of_a_batch_are_those_of_its_scores(values):
    """Each with the place of its score in front, also when a number that is not JSON makes the batch one fault."""
    alone: list[Score | InvalidScore] = []
    for value in values:
        try:
            alone.append(DECODER.decode(json.dumps(value).encode()))
        except InvalidScore as error:
            alone.append(error)
    pointers = [
        f"/{index}{fault.pointer}" for index, one in enumerate(alone) if isinstance(one, InvalidScore) for fault in one.faults
    ]
    try:
        items = DECODER.decode_batch(json.dumps(values).encode(), JSON_TYPE)
    except InvalidBatch as error:
        assert [fault.pointer for fault in error.faults] == pointers
        return
    assert [item for item in items if isinstance(item, Score)] == [one for one in alone if isinstance(one, Score)]
    assert [fault.pointer for item in items if isinstance(item, InvalidScore) for fault in item.faults] == pointers


@pytest.mark.parametrize("depth", [500, 900, 990, 1000, 1100, 100_000])
@pytest.mark.parametrize("opening", ['{"UUID":"a","score":', '{"x":', ""])
def test_deep_nesting_is_refused_whatever_the_depth(opening, depth):
    """Both readers have a limit of recursion, and they differ."""
    body = opening + "[" * depth + "]" * depth + ("}" if opening else "")
    with pytest.raises((InvalidScore, MalformedRequest)):
        DECODER.decode(body.encode())


def test_every_fault_is_named_at_once():
    """A client mends its request in one go."""
    with pytest.raises(InvalidScore) as caught:
        DECODER.decode(b'{"score": 7, "s/c~ore": 1}')
    assert [fault.pointer for fault in caught.value.faults] == ["/UUID", "/score", "/s~1c~0ore"]
    assert caught.value.faults[1].detail == "score must be an integer from 0 to 5, not 7"


def test_an_integer_of_more_digits_than_python_parses_is_named():
    """Python refuses to parse more than 4,300 digits."""
    with pytest.raises(InvalidScore) as caught:
        DECODER.decode(b'{"UUID": "a", "score": %s}' % (b"9" * 5000))
    assert [fault.pointer for fault in caught.value.faults] == ["/score"]


def test_nesting_too_deep_is_called_so():
    """It is JSON, only not one that is read."""
    with pytest.raises(MalformedRequest, match="nested too deeply"):
        DECODER.decode(b'{"UUID": "a", "score": 5, "x": %s}' % (b"[" * 5000 + b"]" * 5000))


def test_a_member_that_stands_twice_must_be_valid_each_time():
    """The last one would count."""
    assert DECODER.decode(b'{"UUID": "a", "score": 4, "score": 5}').score == 5
    with pytest.raises(InvalidScore) as caught:
        DECODER.decode(b'{"UUID": "a", "score": 9, "score": 5}')
    assert "stands twice" in caught.value.faults[0].detail


@pytest.mark.parametrize("kind", [JSON_TYPE, MSGPACK])
def test_a_value_that_is_just_not_nested_too_deeply_is_refused(kind):
    """Reading it needs a little less of the stack than writing it into a message."""
    start, end = (b'{"UUID":', b"}") if kind == JSON_TYPE else (b"\x81\xa4UUID", b"")
    opening, closing = (b"[", b"]") if kind == JSON_TYPE else (b"\x91", b"\x01")
    for depth in range(500, 1100):
        body = start + opening * depth + (closing * depth if kind == JSON_TYPE else closing) + end
        with pytest.raises((InvalidScore, MalformedRequest)):
            (DECODER.decode if kind == JSON_TYPE else DECODER.decode_msgpack)(body)


def test_a_long_value_is_cut_in_the_message():
    """A client cannot make an answer as large as its body."""
    with pytest.raises(InvalidScore) as caught:
        DECODER.decode(json.dumps({"UUID": "x" * 10_000, "score": 1}).encode())
    assert len(caught.value.faults[0].detail) < 200


@pytest.mark.parametrize(
    "value", ["application/json", "Application/JSON", "application/json; charset=utf-8", 'application/json;charset="UTF-8"']
)
def test_json_in_utf8_is_taken(value):
    """With and without the parameter, in any case."""
    assert media_type({"Content-Type": value, "Content-Encoding": "identity"}, (JSON_TYPE,)) == JSON_TYPE


@pytest.mark.parametrize(
    "value", ["", "text/plain", "application/jsonx", "application/json; charset=latin-1", "multipart/form-data"]
)
def test_any_other_type_is_refused(value):
    """The message says what to send."""
    with pytest.raises(UnsupportedMediaType, match="Content-Type: application/json"):
        media_type({"Content-Type": value}, (JSON_TYPE,))


def test_sums_of_a_body_with_an_invalid_uuid_stay_as_they_were():
    """However late it comes; and the sums of others are exact."""
    decoder, sums = ScoreDecoder(-5, 5, 10), {}
    lines = [b'{"UUID":"a","score":-5}', b'{"UUID":"b","score":0}', b'{"UUID":"a","score":-1}']
    assert decoder.add_up(b"\n".join(lines), sums) == 3
    before = {uuid: unpack_sum(packed) for uuid, packed in sums.items()}
    assert before == {"a": Tally(-6, 2), "b": Tally(0, 1)}
    for bad in (b'{"UUID":"","score":1}', b'{"UUID":"d","score":6}', b'{"UUID":"d","score":1,"id":"x"}', b"{"):
        assert decoder.add_up(b"\n".join([*lines, b'{"UUID":"c","score":5}', bad]), sums) is None
        assert {uuid: unpack_sum(packed) for uuid, packed in sums.items() if packed} == before


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (JSON_TYPE, b'[{"UUID":"a","score":9,"score":5}]'),
        (NDJSON, b'{"UUID":"a","score":9,"score":5}'),
        (MSGPACK, b"\x91\x83\xa4UUID\xa1a\xa5score\x09\xa5score\x05"),
    ],
)
def test_a_member_that_stands_twice_must_be_valid_each_time_in_a_batch_too(kind, body):
    """The fast reading judges each element; the slow one, which sees the last, only explains."""
    [item] = DECODER.decode_batch(body, kind)
    assert isinstance(item, InvalidScore) and item.faults[0].pointer == "/0"
    if kind == MSGPACK:
        with pytest.raises(InvalidScore):
            DECODER.decode_msgpack(body[1:])


@pytest.mark.parametrize(
    ("body", "error", "pointers"),
    [
        (b'[{"UUID":NaN,"UUID":"b","score":5}]', MalformedRequest, []),
        (b'[{"UUID":"b","score":5},{"UUID":"b","score":NaN}]', InvalidBatch, ["/1/score"]),
        (b'[{"UUID":"b","score":5}', MalformedRequest, []),
        (b'{"UUID":"b"}', InvalidBatch, []),
        (b"[" * 5000, MalformedRequest, []),
    ],
)
def test_a_batch_that_is_not_json_is_refused_as_a_whole(body, error, pointers):
    """Nothing of it can be counted, whatever is made of bad elements."""
    with pytest.raises(error) as raised:
        DECODER.decode_batch(body, JSON_TYPE)
    assert [fault.pointer for fault in getattr(raised.value, "faults", ())] == pointers


def test_a_line_is_blank_only_by_the_spaces_of_json():
    """A vertical tab is none."""
    [item] = DECODER.decode_batch(b"\x0b", NDJSON)
    assert isinstance(item, InvalidScore)
    assert DECODER.decode_batch(b"\n \t\r\n", NDJSON) == []


@pytest.mark.parametrize("body", [b"[" * 1000, b"[" * 100_000, b'{"a":' * 100_000])
def test_a_query_that_is_nested_too_deeply_is_refused(body):
    """And not a bug."""
    with pytest.raises((MalformedRequest, InvalidQuery)):
        decode_uuids(body, 10)


@pytest.mark.parametrize(
    ("body", "pointers"),
    [
        (b'{"into": ""}', ["/into"]),
        (b'{"into": null}', ["/into"]),
        (b'{"in/to": "b", "score": 1}', ["/in~1to", "/score", "/into"]),
        (b'{"into": "b", "UUID": "a"}', ["/UUID"]),
        (b'"b"', []),
        (b'{"into": "\\ud800"}', []),
    ],
)
def test_where_a_uuid_is_merged_to_is_one_member(body, pointers):
    """Each member at fault is named."""
    with pytest.raises(InvalidUUID) as raised:
        decode_into(body)
    assert [fault.pointer for fault in raised.value.faults] == pointers
    assert decode_into(b'{"into": "\\u00e9/b"}') == "\u00e9/b"
