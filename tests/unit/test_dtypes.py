"""Every torch dtype has an answer, and what safetensors calls its own comes back as it was."""

from __future__ import annotations

import pytest
import torch

from tierstore.errors import PlanError
from tierstore.image.dtypes import TAG_BITS, item_size, stored_type

DTYPES = {
    str(value).removeprefix("torch.")
    for value in vars(torch).values()
    if isinstance(value, torch.dtype)
}
OWN = {
    "bool": "BOOL",
    "uint8": "U8",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
    "complex64": "C64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2": "F8_E5M2",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float8_e8m0fnu": "F8_E8M0",
}
PAIRS = {"complex128": "F64", "complex32": "F16", "bcomplex32": "BF16", "bits16": "U8"}
BYTES = {"bits8", "bits1x8", "bits2x4", "bits4x2"} | {
    f"{sign}int{bits}" for sign in ("", "u") for bits in range(1, 8)
}
QUANTISED = {"qint8", "qint32", "quint8", "quint2x4", "quint4x2"}


def test_every_torch_dtype_is_answered():
    assert set(OWN) | set(PAIRS) | BYTES | {"float4_e2m1fn_x2"} | QUANTISED >= DTYPES


@pytest.mark.parametrize("dtype", sorted(DTYPES - QUANTISED))
def test_item_size_is_torchs(dtype):
    stored = stored_type(dtype)
    assert item_size(dtype) == stored.itemsize == getattr(torch, dtype).itemsize
    count = 1
    for length in stored.shape((1,)):
        count *= length
    assert count * TAG_BITS[stored.tag] == 8 * stored.itemsize


@pytest.mark.parametrize("dtype", sorted(OWN))
def test_own_types_keep_their_shape(dtype):
    stored = stored_type(dtype)
    assert stored.tag == OWN[dtype]
    for shape in ((), (0,), (3,), (2, 0, 5)):
        assert stored.shape(shape) == shape


@pytest.mark.parametrize("dtype", sorted(PAIRS))
def test_pairs_get_a_dimension_of_two(dtype):
    stored = stored_type(dtype)
    assert stored.tag == PAIRS[dtype]
    assert stored.shape(()) == (2,)
    assert stored.shape((3, 0)) == (3, 0, 2)


@pytest.mark.parametrize("dtype", sorted(BYTES))
def test_the_rest_is_bytes(dtype):
    stored = stored_type(dtype)
    assert (stored.tag, stored.itemsize) == ("U8", 1)
    assert stored.shape((3, 2)) == (3, 2)


def test_float4_counts_both_halves_of_a_byte():
    stored = stored_type("float4_e2m1fn_x2")
    assert stored.tag == "F4"
    assert stored.shape((3, 4)) == (3, 8)
    assert stored.shape(()) == (2,)
    assert stored.shape((4, 0)) == (4, 0)


@pytest.mark.parametrize("dtype", sorted(QUANTISED))
def test_quantised_dtypes_are_refused(dtype):
    with pytest.raises(PlanError, match="quantised") as caught:
        stored_type(dtype)
    assert "scale" in caught.value.hint


def test_an_unknown_dtype_names_its_neighbour_and_the_way_out():
    with pytest.raises(PlanError, match="bfloat16") as caught:
        item_size("bfloat61")
    assert "uint8" in caught.value.hint
    with pytest.raises(PlanError):
        stored_type("torch.float32")
