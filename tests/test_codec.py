"""The bytes on disk: fixed examples, round trips, and refusals of bytes that scoremean cannot have written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoremean.errors import StoreDamaged
from scoremean.model import Tally
from scoremean.store.embedded import format as codec


@pytest.mark.parametrize(
    ("tally", "written"),
    [((12, 3), "920c03"), ((0, 1), "920001"), ((-5, 2), "92fb02"), ((1000, 200), "92cd03e8ccc8")],
)
def test_the_bytes_of_format_1(tally, written):
    """A change of these bytes is a change of the format."""
    assert codec.pack_tally(*tally).hex() == written


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**63 - 1))
def test_a_tally_of_64_bits_comes_back(total, count):
    """The whole range."""
    assert codec.unpack_tally(codec.pack_tally(total, count)) == Tally(total, count)


@given(st.text().filter(lambda text: text.isprintable()), st.text().filter(lambda text: text.isprintable()))
def test_keys_come_back_and_keep_the_order_of_code_points(a, b):
    """LMDB compares bytes; listing in UUID order depends on this."""
    assert codec.unpack_uuid(codec.pack_uuid(a)) == a
    assert (codec.pack_uuid(a) < codec.pack_uuid(b)) == (a < b)


@given(st.binary(max_size=40))
def test_any_bytes_are_a_tally_or_damage(value):
    """Whatever is on disk, no other error comes out."""
    try:
        assert isinstance(codec.unpack_tally(value), Tally)
    except StoreDamaged:
        pass


@pytest.mark.parametrize(
    "value", [b"", b"\xc1", b"\x92\x01", b"\x92\x01\xcb" + bytes(8), b"\x93\x01\x01\x01", b"\x01", b"\x80"]
)
def test_other_bytes_are_damage(value):
    """Cut off, unknown, a float, three numbers, one number, a map."""
    with pytest.raises(StoreDamaged):
        codec.unpack_tally(value)


def test_the_record_of_an_id_comes_back():
    """And nothing else is one."""
    record = codec.IdRecord("a1-b1", Tally(5, 1), Tally(12, 3), 1, True)
    assert codec.pack_id_record(record).hex() == "97a561312d623105010c03c301"
    assert codec.unpack_id_record(codec.pack_id_record(record)) == record
    assert codec.pack_id("x" * 256) != codec.pack_id("y") and len(codec.pack_id("y")) == 16
    with pytest.raises(StoreDamaged, match="not the record of an id"):
        codec.unpack_id_record(codec.pack_tally(1, 1))


def test_a_record_of_the_journal_comes_back():
    """And nothing else is one."""
    record = codec.Record({"a1-b1": Tally(12, 3), "b": Tally(0, 0)}, Tally(12, 3), {b"k": b"v"}, 7, 1)
    assert codec.pack_record(record).hex() == "960c0396a561312d62310c03a1620000070192c4016bc40176"
    assert codec.unpack_record(codec.pack_record(record)) == record
    empty = codec.Record({}, Tally(12, 3), {}, 0, 0)
    assert codec.unpack_record(codec.pack_record(empty)) == empty
    assert codec.unpack_record_number(codec.pack_record_number(258)) == 258
    assert codec.pack_record_number(255) < codec.pack_record_number(256)
    wrong = ["920101", "96010191a161000090", "96010193010101000090", "96010193a161a16101000090"]
    for other in (*wrong, "96010190000290", "9601019000009101", "96010190000091c400"):
        with pytest.raises(StoreDamaged, match="not a record of the journal"):
            codec.unpack_record(bytes.fromhex(other))


def test_a_generation_comes_back():
    """And nothing else is one."""
    generation = codec.Generation(1, 1_700_000_000)
    assert codec.unpack_generation(codec.pack_generation(generation)) == generation
    with pytest.raises(StoreDamaged, match="not a generation"):
        codec.unpack_generation(b"\x92\x02\x01")


def test_a_format_is_an_integer():
    """The one value that every version must be able to read."""
    assert codec.unpack_number(codec.pack_number(1)) == 1
    with pytest.raises(StoreDamaged, match="not an integer"):
        codec.unpack_number(b"\x80")


def test_a_key_that_is_not_utf8_is_damage():
    """It names the key."""
    with pytest.raises(StoreDamaged, match="not UTF-8"):
        codec.unpack_uuid(b"\xff")


@pytest.mark.parametrize(
    ("unpack", "value"),
    [
        (codec.unpack_tally, "920cc3"),
        (codec.unpack_number, "c2"),
        (codec.unpack_generation, "92cb000000000000000000"),
        (codec.unpack_generation, "92c200"),
        (codec.unpack_id_record, "97a561312d623105010c03c3c0"),
        (codec.unpack_record, "96c201900000 90"),
    ],
)
def test_what_python_takes_for_an_integer_is_damage(unpack, value):
    """True, False, 0.0 and None are none."""
    with pytest.raises(StoreDamaged):
        unpack(bytes.fromhex(value))
