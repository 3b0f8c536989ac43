"""JSON as a strict reader takes it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.model import strict_json
from services.core.model.strict_json import BadJson

REFUSED = [
    (b"\xff", "invalid_encoding"),
    (b'{"a":"\xc3\x28"}', "invalid_encoding"),
    (b'"\xed\xa0\x80"', "invalid_encoding"),  # a surrogate, spelled out in UTF-8
    ('{"a":1}'.encode("utf-16"), "invalid_encoding"),
    (b"\xef\xbb\xbf{}", "invalid_json"),
    (b"", "invalid_json"),
    (b"{", "invalid_json"),
    (b"{}{}", "invalid_json"),
    (b"{'a':1}", "invalid_json"),
    (b'{"a":1,}', "invalid_json"),
    (b'{"a":01}', "invalid_json"),
    (b'{"a":+1}', "invalid_json"),
    (b'{"a":.5}', "invalid_json"),
    (b'"\x01"', "invalid_json"),
    (b"[" * 33 + b"]" * 33, "invalid_json"),
    (b'{"a":' * 33 + b"1" + b"}" * 33, "invalid_json"),
    (b"[" * 1_000_000, "invalid_json"),
    (b"NaN", "invalid_number"),
    (b"[-Infinity]", "invalid_number"),
    (b"1e999", "invalid_number"),
    (b"-1e999", "invalid_number"),
    (b"1" * 5000, "invalid_number"),
    (b'{"a":1,"b":2,"a":3}', "duplicate_key"),
    (b'[{"x":{"a":1,"\\u0061":2}}]', "duplicate_key"),
    (json.dumps({f"k{n}": n for n in range(1001)}).encode(), "too_many_keys"),
]


@pytest.mark.parametrize(("body", "code"), REFUSED, ids=[repr(body[:20]) for body, _ in REFUSED])
def test_what_is_not_strictly_json_is_refused_with_its_code(body: bytes, code: str) -> None:
    with pytest.raises(BadJson) as refused:
        strict_json.loads(body)
    assert refused.value.code == code
    assert len(str(refused.value)) < 200
    assert str(refused.value).isascii()


def test_a_mistake_is_reported_with_its_place() -> None:
    with pytest.raises(BadJson, match="line 2, column 5"):
        strict_json.loads(b'{"a":1,\n    b:2}')
    with pytest.raises(BadJson, match="byte 6"):
        strict_json.loads(b'{"a":"\xff"}')
    assert BadJson("invalid_json", "No.").problem(7).line == 7


def test_the_deepest_nesting_that_is_allowed_is_read() -> None:
    assert strict_json.loads(b"[" * 32 + b"]" * 32)
    wide = b"[" + b",".join([b"[{}]"] * 1000) + b"]"
    assert len(strict_json.loads(wide)) == 1000


def test_whole_numbers_stay_exact_and_surrogates_are_left_to_the_fields() -> None:
    assert strict_json.loads(b"9007199254740993") == 2**53 + 1
    assert strict_json.loads(b"5e-324") == 5e-324
    assert strict_json.loads(rb'"\ud800"') == "\ud800"


Scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
Values = st.recursive(Scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


@given(Values)
def test_every_json_value_is_read_as_it_was_written(value: object) -> None:
    assert strict_json.loads(json.dumps(value).encode()) == value


@given(st.binary(max_size=60))
def test_no_bytes_raise_anything_but_bad_json(body: bytes) -> None:
    try:
        strict_json.loads(body)
    except BadJson:
        pass


@given(Values | st.just(10**5000) | st.text(alphabet="\ud800\udfff\x00a"))
def test_anything_can_be_described_in_short_ascii(value: object) -> None:
    shown = strict_json.describe(value)
    assert shown.isascii() and len(shown) < 300 and "\x00" not in shown
