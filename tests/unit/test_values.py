"""Plain values come back exactly, and malformed text is an error and nothing else."""

from __future__ import annotations

import collections
import enum
import json
import math
import random
import struct
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tierstore.checkpoint.values import MAX_DEPTH, NotPlainError, decode, encode
from tierstore.errors import FormatError, PlanError


def same(left: object, right: object) -> bool:
    """Equal in type, content, order and every bit."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return same(list(left.items()), list(right.items()))
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, set | frozenset):
        return sorted(map(encode, left)) == sorted(map(encode, right))
    if isinstance(left, float):
        return struct.pack(">d", left) == struct.pack(">d", right)
    if isinstance(left, complex):
        return same([left.real, left.imag], [right.real, right.imag])
    if isinstance(left, np.ndarray | np.generic):
        return (left.dtype.str, left.shape, left.tobytes()) == (
            right.dtype.str,
            right.shape,
            right.tobytes(),
        )
    return left == right


EXAMPLES = [
    None,
    True,
    0,
    -(2**63) - 1,
    2**64,
    2**128 - 1,
    -(7**9000),
    -0.0,
    5e-324,
    math.inf,
    -math.inf,
    struct.unpack(">d", bytes.fromhex("fff0000000000abc"))[0],  # a signalling NaN with a payload
    complex(math.nan, -0.0),
    "",
    "$tuple",
    "\x00\u2028\U0001f600",
    "\ud800",
    "\ud83d\ude00",  # two lone surrogates, not one character
    b"\x00\xff",
    bytearray(b"x"),
    (),
    ((1,), [2], {3}, frozenset({4})),
    {},
    {"b": 1, "a": 2},
    {1: "int", "1": "str", 2.5: None, None: 0, (1, "x"): [], b"k": 1, False: 1},
    {"$ref": 1, "x": 2},
    {"$tuple": [1]},
    {"\ud800": 1},
    collections.OrderedDict([("b", 1), ("a", 2)]),
    collections.Counter({30: 1, 80: 2}),  # the milestones of MultiStepLR
    np.float64(1.5),
    np.float16("nan"),
    np.bool_(True),
    np.uint64(2**64 - 1),
    np.complex64(1 - 2j),
    np.datetime64("2026-02-03T04:05:06.789", "ms"),
    np.datetime64("NaT"),
    np.timedelta64(25, "D"),
    np.arange(6, dtype=">i2").reshape(2, 3),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.arange(10)[::3],
    np.zeros((0, 5), np.float32),
    np.array(7, np.int8),
    np.array(["a", "\ud800", "long"]),
    np.array([b"a", b"b\x00c"]),
    np.array([True, False]),
    np.array(["2026-01-01", "NaT"], "M8[25s]"),
    torch.float8_e4m3fn,
    torch.device("cuda:3"),
    torch.device("cpu"),
    torch.Size([2, 0, 3]),
    [torch.bfloat16, {"device": torch.device("meta")}],
]


@pytest.mark.parametrize("value", EXAMPLES, ids=[str(n) for n in range(len(EXAMPLES))])
def test_round_trip(value):
    text = encode(value)
    text.encode("ascii")
    json.loads(text, parse_constant=pytest.fail)
    assert same(decode(text), value)


def test_real_random_states():
    generator = np.random.default_rng(7)
    state = {
        "python": random.getstate(),
        "numpy": np.random.RandomState(1).get_state(),
        "generator": generator.bit_generator.state,
    }
    restored = decode(encode(state))
    assert same(restored, state)
    other = np.random.default_rng(8)
    other.bit_generator.state = restored["generator"]
    assert other.random() == generator.random()


def test_real_scheduler_and_optimizer_states():
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))], lr=0.1)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [30, 80])
    for state in (scheduler.state_dict(), optimizer.state_dict()["param_groups"]):
        assert same(decode(encode(state)), state)


def test_arrays_come_back_writable():
    array = decode(encode(np.arange(3)))
    array[0] = 9
    assert array.tolist() == [9, 1, 2]


plain_keys = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.text(alphabet="$tuplesr")
    | st.binary()
)
leaves = (
    plain_keys
    | st.integers(-(2**200), 2**200)
    | st.complex_numbers()
    | st.builds(bytearray, st.binary())
    | hnp.arrays(
        hnp.boolean_dtypes()
        | hnp.integer_dtypes(endianness="?")
        | hnp.floating_dtypes(endianness="?", sizes=(16, 32, 64))
        | hnp.complex_number_dtypes(endianness="?", sizes=(64, 128))
        | hnp.datetime64_dtypes(endianness="?")
        | hnp.unicode_string_dtypes(endianness="?", max_len=3)
        | hnp.byte_string_dtypes(max_len=3),
        hnp.array_shapes(min_dims=0, min_side=0, max_side=3),
    )
)
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.sets(plain_keys)
        | st.frozensets(plain_keys)
        | st.dictionaries(plain_keys | st.tuples(plain_keys), inner)
        | st.dictionaries(plain_keys, inner).map(collections.OrderedDict)
    ),
    max_leaves=12,
)


@given(values)
@settings(max_examples=300, deadline=None)
def test_any_plain_value_comes_back(value):
    text = encode(value)
    restored = decode(text)
    assert same(restored, value)
    assert encode(restored) == text


class Named(NamedTuple):
    x: int


class Color(enum.IntEnum):
    RED = 1


class Text(str):
    __slots__ = ()


class Numbers(np.ndarray):
    pass


cycle: list[object] = []
cycle.append({"again": cycle})
ring: dict[str, object] = {}
ring["self"] = (ring, ring)


@pytest.mark.parametrize(
    "value",
    [
        Named(1),
        Color.RED,
        Text("x"),
        {Text("x"): 1},
        collections.defaultdict(int),
        object(),
        len,
        lambda: 1,
        Path("x"),
        range(3),
        memoryview(b"x"),
        np.array([None]),
        np.array([(1, 2.0)], "i4,f8"),
        np.zeros(2, "V4"),
        np.void(b"x"),
        np.str_("x"),
        np.longdouble(1),
        np.zeros(1, np.clongdouble),
        np.zeros(2).view(Numbers),
        np.ma.masked_array([1, 2]),
        np.array(["a"], np.dtypes.StringDType()),
        np.dtype("f4"),
        torch.zeros(2),
        torch.nn.Parameter(torch.zeros(2)),
        torch.strided,
        cycle,
        ring,
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("wrap", [lambda v: v, lambda v: {"k": [v]}], ids=["bare", "inside"])
def test_what_is_not_plain_is_refused(value, wrap):
    with pytest.raises(NotPlainError) as caught:
        encode(wrap(value))
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, PlanError)


def test_the_error_names_the_type():
    with pytest.raises(NotPlainError, match="pathlib"):
        encode({"a": [Path("x")]})
    with pytest.raises(NotPlainError, match="object"):
        encode(np.array([None]))


@pytest.mark.parametrize("wrap", [lambda v: [v], lambda v: (v,), lambda v: {1: v}])
def test_depth_limit(wrap):
    value: object = 1
    for _ in range(MAX_DEPTH):
        value = wrap(value)
    assert same(decode(encode(value)), value)
    with pytest.raises(NotPlainError, match="nested"):
        encode(wrap(value))


def test_a_caller_near_its_own_limit_gets_the_same_error():
    value: object = 1
    for _ in range(MAX_DEPTH):
        value = [value]

    def descend() -> None:
        encode(value)
        descend()

    with pytest.raises((NotPlainError, RecursionError)):
        descend()


MALFORMED = [
    "",
    "{",
    "nul",
    "NaN",
    "[Infinity]",
    "-Infinity",
    '{"a":1,"a":2}',
    '{"$unknown":1}',
    '{"$tuple":[1],"x":1}',
    '{"$tuple":5}',
    '{"$tuple":"ab"}',
    '{"$tuple":{"$tuple":[]}}',
    '{"$set":[[1]]}',
    '{"$set":[1,1]}',
    '{"$set":[{}]}',
    '{"$dict":[[1]]}',
    '{"$dict":[1]}',
    '{"$dict":[[1,2],[1,3]]}',
    '{"$dict":[[[],2]]}',
    '{"$ordered":{"a":1}}',
    '{"$counter":["ab"]}',
    '{"$int":5}',
    '{"$int":"0x1"}',
    '{"$int":"1_0"}',
    '{"$int":" 1"}',
    '{"$float":"00"}',
    '{"$float":"zz"}',
    '{"$float":null}',
    '{"$complex":[1.0]}',
    '{"$complex":["1","2"]}',
    '{"$bytes":"a"}',
    '{"$bytes":"a\\u0000=="}',
    '{"$bytes":[1]}',
    '{"$str":"/w=="}',
    '{"$array":["<f4",[2],""]}',
    '{"$array":["<f4",[-1],""]}',
    '{"$array":["<f4",[true],"AAAAAA=="]}',
    '{"$array":["<f4",3,""]}',
    '{"$array":["|O",[1],"AAAAAAAAAAA="]}',
    '{"$array":["i4,f8",[0],""]}',
    '{"$array":["(2,3)f4",[0],""]}',
    '{"$array":["<f3",[0],""]}',
    '{"$array":["<M8[xyz]",[0],""]}',
    '{"$array":["<M8[99999999999s]",[0],""]}',
    '{"$array":["<U999999999",[0],"AA=="]}',
    '{"$array":[{"$dtype":"float32"},[0],""]}',
    f'{{"$array":["<f4",[{2**70},0],""]}}',
    f'{{"$array":["<f4",{[0] * 80},""]}}',
    '{"$scalar":["<f4",""]}',
    '{"$scalar":["<U1","AAAAAA=="]}',
    '{"$scalar":["|b1"]}',
    '{"$dtype":"nn"}',
    '{"$dtype":"__builtins__"}',
    '{"$dtype":"nn.Module"}',
    '{"$dtype":1}',
    '{"$device":"toaster:1"}',
    '{"$device":"cuda:99999999999999999999"}',
    '{"$device":""}',
    '{"$size":[-1]}',
    '{"$size":["a"]}',
    "[" * 100_000,
    "[" * 100_000 + "]" * 100_000,
    "9" * 10_000,
    '{"$tuple":[' * 5_000 + "]}" * 5_000,
]


@pytest.mark.parametrize("text", MALFORMED, ids=lambda text: text[:40])
def test_malformed_text_is_a_format_error(text):
    with pytest.raises(FormatError):
        decode(text)


TAGS = (
    "$tuple $set $frozenset $bytes $bytearray $str $int $float $complex $dict $ordered $counter "
    "$array $scalar $dtype $device $size $new a"
)
tags = st.sampled_from(TAGS.split())
hostile = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["<f4", "<M8[s]", "|S0", "<U0", "AAAA", "AAAAAA==", "cpu", "float32", "ff"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(tags, inner, max_size=2)
        | st.tuples(st.sampled_from(["<f4", "<U0", "|b1"]), st.lists(inner, max_size=2), inner).map(
            lambda triple: {"$array": list(triple)}
        )
    ),
    max_leaves=10,
)


@given(hostile)
@settings(max_examples=500, deadline=None)
def test_hostile_json_gives_a_plain_value_or_a_format_error(tree):
    try:
        value = decode(json.dumps(tree))
    except FormatError:
        return
    assert same(decode(encode(value)), value)


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_any_text_gives_a_value_or_a_format_error(text):
    try:
        decode(text)
    except FormatError:
        return


@given(values, st.data())
@settings(max_examples=200, deadline=None)
def test_damaged_text_gives_a_value_or_a_format_error(value, data):
    text = encode(value)
    at = data.draw(st.integers(0, len(text)))
    damage = data.draw(st.text(alphabet='{}[]",:$0123456789abcdef=', max_size=2))
    try:
        decode(text[:at] + damage + text[at + 1 :])
    except FormatError:
        return


def run(code: str, seed: str) -> str:
    env = {"PYTHONHASHSEED": seed}
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=env
    )
    return done.stdout


def test_sets_have_one_text_in_every_process():
    code = (
        "from tierstore.checkpoint.values import encode;"
        "print(encode({chr(97 + n) * 3 for n in range(20)} | {(1, 'x'), 2.5, None}))"
    )
    assert run(code, "1") == run(code, "2")


def test_the_core_does_not_import_torch():
    code = """
import sys
from tierstore.checkpoint.values import decode, encode, NotPlainError
decode(encode({"a": (1, b"x")}))
try:
    encode(object())
except NotPlainError:
    pass
print("torch" in sys.modules, decode('{"$dtype":"bfloat16"}'), "torch" in sys.modules)
"""
    assert run(code, "0").split() == ["False", "torch.bfloat16", "True"]


def test_torch_missing_is_said_plainly(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(FormatError, match="not installed"):
        decode('{"$device":"cpu"}')
