"""Campaigns that throw bytes at what reads bytes: validation, and the codec of the store.

    python -m tests.reliability.fuzz validation|codec SEED COUNT       what a campaign runs, in a process of its own

An input is made from its seed alone, so a finding is found again. It is the bytes of a valid body or value, mutated, or JSON
put together from pieces that are nearly right. A *target* is a function that takes the bytes and says whether they were taken;
any error but a documented one is a finding, and so is an AssertionError, by which a target says that two readings disagree.
"""

# pylint: disable=protected-access  # the two readings are told apart inside

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import msgpack
import msgspec

from scoremean.errors import InvalidScore, MalformedRequest, RequestError, StoreDamaged
from scoremean.model import Score, Tally
from scoremean.store.embedded import format as codec
from scoremean.store.embedded.format import Generation, IdRecord, Record
from scoremean.web import wire as validation
from scoremean.web.answer import problem
from scoremean.web.wire import JSON, MSGPACK, NDJSON, ScoreDecoder
from tests.reliability.campaign import Finding, Trial, campaign

ROOT = Path(__file__).parents[2]
DECODER = ScoreDecoder(0, 5, 100)

# Broken builds that these campaigns must catch: what is wrong with each, and the Python code that makes it so, run first.
BROKEN_HERE = {
    "decoder-lets-through": (
        "The second reading of a body does not expect bytes that are not UTF-8.",
        "import json\nfrom scoremean.web import wire\nwire._reread = lambda body, error: json.loads(body.decode())\n",
    ),
    "readings-disagree": (
        "An import adds up lines without looking at the UUID.",
        "from scoremean.web import wire\nwire.require_uuid = lambda uuid: uuid\n",
    ),
    "codec-lets-through": (
        "Bytes that are not msgpack are not told from a bug.",
        "import msgpack\nfrom scoremean.store.embedded import format\nformat._unpack = msgpack.unpackb\n",
    ),
}

Target = Callable[[bytes], bool]


# Targets of validation. The fast reading is msgspec's, the slow one the standard library's with `item`.


def _decode(body: bytes) -> bool:
    """A JSON body: what the fast reading takes, the slow one takes as the same; what it refuses, the slow one explains."""
    try:
        score = DECODER.decode(body)
    except InvalidScore as error:
        _explained(error)
        twice = any("stands twice" in fault.detail for fault in error.faults)
        assert twice or isinstance(_slowly(body), InvalidScore), "the slow reading takes what the fast one refuses"
        return False
    assert _slowly(body) == score and 0 <= score.score <= 5, "the slow reading sees another score than the fast one"
    return True


def _slowly(body: bytes) -> Score | InvalidScore:
    return DECODER.item(validation._reread(body, ValueError("malformed")))


def _explained(error: RequestError) -> None:
    """Assert that a refusal names what is at fault in our own words."""
    assert error.faults
    for fault in error.faults:
        assert not fault.pointer or fault.pointer.startswith("/")
        assert len(fault.detail) < 400 and "Expected `" not in fault.detail.partition("stands twice")[0]


def _decode_msgpack(body: bytes) -> bool:
    """A MessagePack body of one score: what msgspec decodes straight into one, and nothing else."""
    score = DECODER.decode_msgpack(body)
    try:
        fast = msgspec.msgpack.decode(body, type=DECODER.type)
    except ValueError:
        fast = None
    assert score == fast, "the slow reading takes what the fast one refuses"
    return True


def _batch_of(kind: str) -> Target:
    def decode_batch(body: bytes) -> bool:
        """A batch: where both readings take it they take the same, and the slow one alone can take none."""
        items = DECODER.decode_batch(body, kind)
        fast = _fast_batch(body, kind)
        refused = [item for item in items if isinstance(item, InvalidScore)]
        for item in refused:
            _explained(item)
        assert refused or items == fast, "the slow reading takes what the fast one refuses"
        if fast is not None and (kind != NDJSON or _one_a_line(body, fast)):
            slow = list(DECODER._judged(body, kind, ValueError("malformed")))
            assert fast == items == slow, "an element by itself is another score than in its batch"
        return not refused

    return decode_batch


def _one_a_line(body: bytes, scores: Sequence[Score]) -> bool:
    """Whether each score stands on a line of its own: msgspec also takes one on several, or several on one."""
    lines = [line for line in body.split(b"\n") if line.strip()]
    return len(lines) == len(scores) and all(line.strip().startswith(b"{") and line.strip().endswith(b"}") for line in lines)


def _fast_batch(body: bytes, kind: str) -> list[Score] | None:
    try:
        return DECODER._batch_decoders[kind](body)
    except ValueError:
        return None


def _add_up(body: bytes) -> bool:
    """The lines of an import: added up as decode_batch reads them, or the sums are as before."""
    before = {"a1-b1": validation.ONE_SCORE + 5, "old": 3 * validation.ONE_SCORE - 7}
    sums = dict(before)
    added = DECODER.add_up(body, sums)
    try:
        items: list[Any] = ScoreDecoder(0, 5, 1 << 30).decode_batch(body, NDJSON)
    except MalformedRequest:
        items = [None]
    plain = all(isinstance(item, Score) and item.id is None for item in items)
    assert (added is not None) == plain or not _one_a_line(body, items), "add_up and decode_batch do not take the same"
    if added is not None:
        assert added == len(items)
        for item in items:
            before[item.uuid] = before.get(item.uuid, 0) + validation.ONE_SCORE + item.score
    assert {uuid: packed for uuid, packed in sums.items() if packed} == before
    return added is not None


def _decode_uuids(body: bytes) -> bool:
    """The UUIDs of a query."""
    uuids = validation.decode_uuids(body, 100)
    assert uuids == json.loads(body) and all(0 < len(uuid.encode()) <= 256 for uuid in uuids)
    return True


def _decode_into(body: bytes) -> bool:
    """Where a UUID is merged to."""
    into = validation.decode_into(body)
    assert json.loads(body) == {"into": into} and 0 < len(into.encode()) <= 256
    return True


def _with_key(body: bytes) -> bool:
    """An Idempotency-Key, as aiohttp gives a header: UTF-8, and what is not as lone surrogates."""
    key = body.decode(errors="surrogateescape")
    score = validation.with_key(Score("a1-b1", 5), [key])
    assert score.id is not None and score.id in (key, re.sub(r"\\(.)", r"\1", key[1:-1]))
    return True


def _media_type(body: bytes) -> bool:
    """A Content-Type, and a Content-Encoding behind a line break."""
    kind, _, encoding = body.decode(errors="surrogateescape").partition("\n")
    headers = {"Content-Type": kind} | ({"Content-Encoding": encoding} if encoding else {})
    found = validation.media_type(headers, (JSON, NDJSON, MSGPACK))
    assert found in kind.lower() and encoding.lower() in ("", "identity")
    return True


def _queries(body: bytes) -> bool:
    """The parameters of a listing and of a post."""
    text = body.decode(errors="surrogateescape")
    if "on_error" in text:
        return validation.decode_on_error(text)
    _, limit = validation.decode_page(text)
    assert 1 <= limit <= validation.PAGE_MAX_UUIDS
    return True


# Targets of the codec: what is taken has the types that it says, and packs to bytes that are read as the same again.


def _unpacks(unpack: Callable[[bytes], Any], pack: Callable[[Any], bytes], typed: Callable[[Any], bool]) -> Target:
    def target(value: bytes) -> bool:
        found = unpack(value)
        assert typed(found), "what is taken has other types than it says"
        assert unpack(pack(found)) == found, "what is taken is packed to something else"
        return True

    return target


def _is_tally(tally: Tally) -> bool:
    return type(tally.sum) is int and type(tally.count) is int  # pylint: disable=unidiomatic-typecheck  # a bool is none


def _is_record(record: Record) -> bool:
    tallies = (record.total, Tally(record.kept, record.ids_table), *record.tallies.values())
    texts = all(isinstance(uuid, str) for uuid in record.tallies)
    ids = all(isinstance(data, bytes) for item in record.ids.items() for data in item)
    return all(map(_is_tally, tallies)) and texts and ids


def _is_id_record(record: IdRecord) -> bool:
    return isinstance(record.uuid, str) and all(map(_is_tally, (record.added, record.first, Tally(record.epoch, 0))))


def _is_generation(generation: Generation) -> bool:
    return _is_tally(Tally(generation.current, generation.since_seconds))


# Inputs.

# Pieces that have broken readers: numbers at and past every limit, halves of characters, other brackets, types of MessagePack.
_PIECES = [
    *b"0 -0 1.0 5e0 1e400 -1 6 9223372036854775808 18446744073709551616 NaN Infinity -Infinity".split(),
    *b"null true false 00 +1 .5 5.".split(),
    *rb"\ud800 \udfff \u0000 \u00e9 \" \\ \/ \x41".split(),
    *b'[ ] { } [] {} : , " "" "UUID" "score" "id" "UUID":"b" "score":5 ,"score":6 {"UUID":"b","score":1}'.split(),
    *(b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xff", b"\xc0\x80", b"\xf4\x90\x80\x80"),
    *(b"\0", b"\x7f", b"\xc2\x80", b"\xe2\x80\xa8"),
    *(b"\n", b"\r", b"\r\n", b"\t", b" ", b"\x0b", b"\x1e", b"//", b"/**/", b"'"),
    *(bytes([first]) for first in (0x80, 0x81, 0x8F, 0x90, 0x93, 0x9F, 0xA0, 0xBF, 0xC0, 0xC1, 0xC2, 0xC3, 0xE0)),
    *(b"\xc4\x01a", b"\xc7\x00\x01", b"\xca\0\0\0\0", b"\xcb" + bytes(8), b"\xcc\xff", b"\xcf" + b"\xff" * 8),
    *(b"\xd3\x80" + bytes(7), b"\xd4\x01\0", b"\xd6\xff\0\0\0\0"),
    *(b"\xd7\xff" + b"\xff" * 8, b"\xc7\x0c\xff" + b"\xff" * 12),
    *(b"\xd9\xff", b"\xdb\xff\xff\xff\xff"),
    *(b"\xdc\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xde\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"),
]
# Rare, since they cost a thousand times as much: what is nested too deep, and numbers and texts that are too long.
_HUGE = [
    *(bracket * depth for depth in (400, 1000, 3000) for bracket in (b"[", b"\x91", b'{"a":')),
    *(b"[" * 700 + b"]" * 700, b"\x81\xa1a" * 1000, b"9" * 5000, b"0." + b"1" * 5000, b" " * 9000),
    *(b"x" * 300, "é".encode() * 200),
]
_NAMES = ["UUID", "UUID", "UUID", "score", "score", "score", "id", "Uuid", "scoer", "", "a/b~c", "\\ud800", "\\u0055UID"]
_MEMBERS = [
    *'"a1-b1" "a1-b1" "b" "" "\\u00e9" "\\ud83d\\ude00" "\\ud83d" "a\\u0000" "a\\u0085" "k-1" 0 1 2 3 4 5 5 5'.split(),
    *'6 -1 -0 5.0 5e0 1E400 NaN null true [] {} [5] {"a":1} "5" 99999999999999999999999'.split(),
    f'"{"x" * 256}"',
    f'"{"x" * 257}"',
    f'"{"é" * 128}"',
]


_OBJECTS: list[Any] = [
    *("a1-b1", "é", "x" * 256, 5, 0, 1, 2, 3, 4, 6, -1, 5.0, True, None, "", "k-1", "x" * 257, b"a", [], [5], {"a": 1}, {1: 2}),
    *(2**63, -(2**63), float("nan"), msgpack.Timestamp(1, 2), msgpack.ExtType(7, b"x"), "a\0", "\x85"),
]


class Inputs:
    """Endless inputs for one subject: what its `make` makes, that mutated, and its valid ones mutated."""

    def __init__(self, seed: int, subject: Subject):
        self._random = Random(seed)
        self._subject = subject

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        chance = self._random.random()
        if chance > 0.99:
            return self._random.randbytes(self._random.randrange(40))
        if self._subject.make is not None and chance < 0.6:
            made = self._subject.make(self._random)
            return made if chance < 0.4 else self._mutated(made)
        return self._mutated(self._random.choice(self._subject.valid))

    def _mutated(self, valid: bytes) -> bytes:
        """Return `valid` after one to four changes."""
        random, data = self._random, bytearray(valid)
        for _ in range(random.choice((1, 1, 2, 3, 4))):
            place = random.randrange(len(data) + 1)
            match random.randrange(8):
                case 0 if place < len(data):
                    data[place] ^= 1 << random.randrange(8)
                case 1 if place < len(data):
                    data[place] = random.choice((0, 0x7F, 0x80, 0xFF, random.randrange(256)))
                case 2:
                    del data[place : place + random.choice((1, 1, 2, 8, 1000))]
                case 3:
                    data[place:place] = data[place : place + random.randrange(1, 20)] * random.choice((1, 1, 2, 9))
                case 4:
                    other = random.choice(ANY_VALID)
                    start = random.randrange(len(other) + 1)
                    data[place : place + random.choice((0, 0, 5))] = other[start : start + random.randrange(1, 40)]
                case 5 if random.random() < 0.03:
                    data[place:place] = random.choice(_HUGE) if random.random() < 0.5 else _nested(random)
                case _:
                    data[place : place + random.choice((0, 0, 1, 2))] = random.choice(_PIECES)
        return bytes(data)


def _nested(random: Random) -> bytes:
    """Return a value that is nested deeply, about where one reader or another gives up."""
    depth = random.choice((random.randrange(1, 1100), random.randrange(900, 1010)))
    opening, closing = random.choice(((b"[", b"]"), (b'{"a":', b"}"), (b"\x91", b""), (b"\x81\xa1a", b"")))
    return opening * depth + b"1" + closing * depth


def _object(random: Random) -> str:
    """Return a JSON object that is a score, or nearly one."""
    if random.random() < 0.7:  # most often right, or nothing but refusals would be tried
        members = [("UUID", random.choice(_MEMBERS[:6])), ("score", random.choice(_MEMBERS[10:18]))]
        if random.random() < 0.3:
            members.insert(random.randrange(3), (random.choice(_NAMES), random.choice(_MEMBERS)))
    else:
        members = [(random.choice(_NAMES), random.choice(_MEMBERS)) for _ in range(random.randrange(5))]
    space = random.choice(("", "", " ", "\t"))
    return "{" + f",{space}".join(f'"{name}"{space}:{space}{value}' for name, value in members) + space + "}"


def _json_array(random: Random) -> bytes:
    return f"[{random.choice((',', ', ')).join(_object(random) for _ in range(random.randrange(4)))}]".encode()


def _json_lines(random: Random) -> bytes:
    return random.choice(("\n", "\n", "\n\n", "\r\n", " \n")).join(_object(random) for _ in range(random.randrange(4))).encode()


def _map(random: Random) -> bytes:
    """Return a MessagePack map that is a score, or nearly one; a member may stand twice."""
    members = [("UUID", random.choice(_OBJECTS[:3])), ("score", random.choice(_OBJECTS[3:9]))]
    while random.random() < 0.3:
        name = random.choice((*_NAMES, 5, None, b"UUID", 1.5))
        members.insert(random.randrange(len(members) + 1), (name, random.choice(_OBJECTS)))
    return bytes([0x80 | len(members)]) + b"".join(msgpack.packb(value) for member in members for value in member)


def _packed_array(random: Random) -> bytes:
    number = random.randrange(4)
    return bytes([0x90 | number]) + b"".join(_map(random) for _ in range(number))


class Subject(NamedTuple):
    """What is tried, valid inputs to start from, and what makes more that are nearly right."""

    target: Target
    valid: Sequence[bytes]
    make: Callable[[Random], bytes] | None = None


_SCORES = [{"UUID": "a1-b1", "score": 5}, {"UUID": "é ü/😀", "score": 0, "id": "k-1"}, {"UUID": "x" * 256, "score": 3}]
_ONE = [json.dumps(score, ensure_ascii=False).encode() for score in _SCORES]
_ARRAYS = [json.dumps(_SCORES, indent=1).encode(), b"[]", b'[{"UUID":"a","score":4}]']
_LINES = [b"\n".join(_ONE), b'{"UUID":"a1-b1","score":4}\r\n\r\n{"UUID":"b","score":1}\n', b'{"UUID":"b","score":1}']
_TALLIES = {"a1-b1": Tally(12, 3), "b": Tally(0, 0)}
_IDS = {codec.pack_id("k"): codec.pack_id_record(IdRecord("a1-b1", Tally(5, 1), Tally(12, 3)))}
_MANY = {f"user-{number}": Tally(number, 1) for number in range(20)}

VALIDATION = {
    "decode": Subject(_decode, _ONE, lambda random: _object(random).encode()),
    "decode_batch, JSON": Subject(_batch_of(JSON), _ARRAYS, _json_array),
    "decode_batch, NDJSON": Subject(_batch_of(NDJSON), _LINES, _json_lines),
    "decode_batch, MessagePack": Subject(_batch_of(MSGPACK), [msgpack.packb(_SCORES)], _packed_array),
    "decode_msgpack": Subject(_decode_msgpack, list(map(msgpack.packb, _SCORES)), _map),
    "add_up": Subject(_add_up, _LINES, _json_lines),
    "decode_uuids": Subject(_decode_uuids, [b'["a1-b1","nobody","\\u00e9"]', b"[]", "[\n\"é\"]".encode()]),
    "decode_into": Subject(_decode_into, [b'{"into": "a1-b1"}', b'{"into":"\\u00e9"}', b'{"into": 5, "x": [{}]}']),
    "with_key": Subject(_with_key, [b'"k\\-1"', b"k-1", b'""']),
    "media_type": Subject(_media_type, [b"application/json; charset=utf-8\nidentity", b"application/x-ndjson", JSON.encode()]),
    "decode_page, decode_on_error": Subject(_queries, [b"after=a1-b1&limit=100", b"on_error=skip", b"limit=1"]),
}

CODEC = {
    "unpack_uuid": Subject(
        _unpacks(codec.unpack_uuid, codec.pack_uuid, lambda uuid: isinstance(uuid, str)),
        [codec.pack_uuid("é ü/😀"), codec.pack_uuid("a1-b1")],
    ),
    "unpack_tally": Subject(
        _unpacks(codec.unpack_tally, lambda tally: codec.pack_tally(tally.sum, tally.count), _is_tally),
        [codec.pack_tally(12, 3), codec.pack_tally(-(2**63), 2**63)],
    ),
    "unpack_record": Subject(
        _unpacks(codec.unpack_record, codec.pack_record, _is_record),
        list(map(codec.pack_record, (Record(_TALLIES, Tally(12, 3), _IDS, 1, 0), Record(_MANY, Tally(1, 20), {}, 0, 1)))),
    ),
    "unpack_id_record": Subject(
        _unpacks(codec.unpack_id_record, codec.pack_id_record, _is_id_record),
        [
            codec.pack_id_record(IdRecord("a1-b1", Tally(5, 1), Tally(12, 3), 1, True)),
            codec.pack_id_record(IdRecord("é", Tally(-5, 1), Tally(2**40, 2**40))),
        ],
    ),
    "unpack_generation": Subject(
        _unpacks(codec.unpack_generation, codec.pack_generation, _is_generation),
        [codec.pack_generation(Generation(1, 1_700_000_000)), codec.pack_generation(Generation(0, 0))],
    ),
    "unpack_number": Subject(
        _unpacks(codec.unpack_number, codec.pack_number, lambda number: _is_tally(Tally(number, 0))),
        list(map(codec.pack_number, (1, 0, 2**63))),
    ),
    "unpack_record_number": Subject(
        lambda key: codec.unpack_record_number(key) >= 0, [codec.pack_record_number(258)]
    ),
}

SUBJECTS: dict[str, dict[str, Subject]] = {"validation": VALIDATION, "codec": CODEC}
ANY_VALID = [data for subjects in SUBJECTS.values() for subject in subjects.values() for data in subject.valid]


@dataclass
class Found:
    """What a run found: how many inputs there were, how many were taken, and each kind of finding with a short input."""

    inputs: int = 0
    taken: int = 0
    findings: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, target: Target, data: bytes) -> None:
        """Note what kind of finding `data` is, unless that is known."""
        kind = kind_of(target, data) or "not found again"
        if (key := f"{name}: {kind}") not in self.findings and len(self.findings) < 20:
            short = shortened(target, data, kind)
            self.findings[key] = f"{len(short)} bytes, {ascii(short)[:150]}"


def try_one(target: Target, data: bytes) -> bool:
    """Return whether `target` takes `data`. Raises whatever is not a documented refusal, which can be told to a client."""
    try:
        return target(data)
    except StoreDamaged:
        return False
    except RequestError as error:
        problem(error)  # what cannot be encoded would be a 500
        return False


def kind_of(target: Target, data: bytes) -> str | None:
    """Return what kind of finding `data` is: the error, and the line of ours that it came from; None if it is none."""
    try:
        try_one(target, data)
    except AssertionError as error:
        return re.sub("'.*'|[0-9]+", "...", str(error).partition("\n")[0]) or "AssertionError"
    except Exception as error:  # pylint: disable=broad-exception-caught  # this is what is looked for
        trace, place = error.__traceback__, ""
        while trace is not None:
            code = trace.tb_frame.f_code
            if code.co_filename.startswith(str(ROOT)):
                place = f"{Path(code.co_filename).stem}.{code.co_name}"
            trace = trace.tb_next
        return f"{type(error).__name__} in {place}"
    return None


def shortened(target: Target, data: bytes, kind: str) -> bytes:
    """Return a short input of the same kind, as far as leaving pieces out leads."""
    short, tries = data, 2000
    size = len(data) // 2
    while size and tries:
        for start in range(0, len(short), max(1, size // 8)):
            tries = max(0, tries - 1)
            shorter = short[:start] + short[start + size :]
            if kind_of(target, shorter) == kind:
                short = shorter
                break
        else:
            size = size // 2 if size > 32 else size - 1
    return short


def run(subjects: dict[str, Subject], seed: int, number: int) -> Found:
    """Try so many inputs, as many for each subject."""
    found = Found()
    inputs = {name: Inputs(seed, subject) for name, subject in subjects.items()}
    for name, (target, *_) in subjects.items():
        for _ in range(-(-number // len(subjects))):
            data = next(inputs[name])
            found.inputs += 1
            try:
                found.taken += try_one(target, data)
            except Exception:  # pylint: disable=broad-exception-caught  # this is what is looked for
                found.add(name, target, data)
    return found


def main(subject: str, seed: str, number: str) -> None:
    """Run so many inputs and print what was found as JSON."""
    found = run(SUBJECTS[subject], int(seed), int(number))
    print(json.dumps({"inputs": found.inputs, "taken": found.taken, "findings": found.findings}))


def _campaign(trial: Trial, subject: str, numbers: Sequence[int]) -> Finding:
    """Run processes side by side, one for each of `numbers` with a seed of its own."""
    broken = BROKEN_HERE[trial.broken][1] if trial.broken else ""
    source = f"{broken}\nimport sys\nfrom tests.reliability import fuzz\nfuzz.main(*sys.argv[1:])\n"
    processes = [
        subprocess.Popen(  # pylint: disable=consider-using-with  # communicate waits for them
            [sys.executable, "-c", source, subject, str(seed), str(number)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        for seed, number in enumerate(numbers, 1)
    ]
    founds = [json.loads(process.communicate()[0]) for process in processes]
    inputs, taken = (sum(found[name] for found in founds) for name in ("inputs", "taken"))
    findings = {key: text for found in founds for key, text in found["findings"].items()}
    figure = f"{inputs:,} inputs, {taken:,} of them taken, {len(findings)} kinds of uncaught error or disagreement"
    return Finding("; ".join([figure, *(f"{key}: {text}" for key, text in findings.items())]), not findings)


@campaign("fuzz, validation", "0 uncaught in at least 1,000,000 inputs", "decoder-lets-through", "readings-disagree")
def fuzz_validation(trial: Trial) -> Finding:
    """1,000,000 inputs (20,000) with fixed seeds go to the functions that read what a client sent: bodies of scores as JSON,
    NDJSON and MessagePack, single and in batches, the lines of an import, UUIDs of a query, Idempotency-Key, Content-Type and
    the parameters. They are valid ones with bits flipped, pieces cut out, doubled, spliced and put in that have broken other
    readers (nesting, huge numbers, halves of characters, every type of MessagePack), and JSON that is nearly a score. Only the
    documented errors may come out, each with faults that name members and can be sent to a client; and where there are two
    readings of the same bytes, both take the same scores.
    """
    return _campaign(trial, "validation", (20_000,) if trial.short else (500_000, 500_000))


@campaign("fuzz, codec", "0 uncaught in at least 100,000 inputs", "codec-lets-through")
def fuzz_codec(trial: Trial) -> Finding:
    """200,000 inputs (20,000), made likewise from values that a store holds, go to the `unpack_` functions: only StoreDamaged
    may come out, what is taken has the types that it says, and is packed to bytes that are read as the same again.
    """
    return _campaign(trial, "codec", (20_000,) if trial.short else (100_000, 100_000))


if __name__ == "__main__":
    main(*sys.argv[1:])
