"""How each torch dtype is held by safetensors.

Types are named as torch names them, without "torch.", so that the core never imports torch. The
safetensors format refuses a whole file for one dtype it does not know. So what it lacks is stored
as a type that it has: a complex number as two reals, sub-byte integers and raw bits as bytes. The
manifest keeps torch's own dtype and shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from math import prod

from tierstore.errors import PlanError


@dataclass(frozen=True, slots=True)
class StoredType:
    """How the elements of one torch dtype lie in a segment.

    Attributes:
        tag: the safetensors dtype, such as "BF16".
        itemsize: bytes of one torch element.
        trailing: dimensions that the stored shape has after torch's own.
        packed: how many stored elements one torch element packs (two F4 in a float4_e2m1fn_x2);
            they count in the last dimension, as the safetensors library has it.
    """

    tag: str
    itemsize: int
    trailing: tuple[int, ...] = ()
    packed: int = 1

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the stored shape of a tensor of torch shape `shape`."""
        if self.packed == 1:
            return shape + self.trailing
        *outer, last = shape or (1,)
        return (*outer, last * self.packed)


_STORED = {
    "bool": StoredType("BOOL", 1),
    "uint8": StoredType("U8", 1),
    "uint16": StoredType("U16", 2),
    "uint32": StoredType("U32", 4),
    "uint64": StoredType("U64", 8),
    "int8": StoredType("I8", 1),
    "int16": StoredType("I16", 2),
    "int32": StoredType("I32", 4),
    "int64": StoredType("I64", 8),
    "float16": StoredType("F16", 2),
    "bfloat16": StoredType("BF16", 2),
    "float32": StoredType("F32", 4),
    "float64": StoredType("F64", 8),
    "complex64": StoredType("C64", 8),
    "float8_e4m3fn": StoredType("F8_E4M3", 1),
    "float8_e4m3fnuz": StoredType("F8_E4M3FNUZ", 1),
    "float8_e5m2": StoredType("F8_E5M2", 1),
    "float8_e5m2fnuz": StoredType("F8_E5M2FNUZ", 1),
    "float8_e8m0fnu": StoredType("F8_E8M0", 1),
    "float4_e2m1fn_x2": StoredType("F4", 1, packed=2),
    "complex32": StoredType("F16", 4, (2,)),
    "bcomplex32": StoredType("BF16", 4, (2,)),
    "complex128": StoredType("F64", 16, (2,)),
    "bits16": StoredType("U8", 2, (2,)),
}
_BYTES = ("bits8", "bits1x8", "bits2x4", "bits4x2")
_STORED |= {name: StoredType("U8", 1) for name in _BYTES}
_STORED |= {f"{sign}int{bits}": StoredType("U8", 1) for sign in ("", "u") for bits in range(1, 8)}

TAG_BITS = {
    stored.tag: stored.itemsize * 8 // prod(stored.trailing) // stored.packed
    for stored in _STORED.values()
}
"""Bits of one stored element, by safetensors dtype."""

NATIVE = {stored.tag: dtype for dtype, stored in reversed(_STORED.items())}
"""The torch dtype that each safetensors dtype stands for in everybody's files."""


def stored_type(dtype: str, name: str = "") -> StoredType:
    """Return how `dtype`, torch's name without "torch.", is stored.

    Args:
        dtype: the dtype.
        name: of a tensor that has it, for errors.

    Raises:
        PlanError: tierstore cannot store it: it is quantised (its scale is not in its bytes), or
            newer than this tierstore.
    """
    try:
        return _STORED[dtype]
    except KeyError:
        pass
    whose = f"{name}: " if name else ""
    if dtype.startswith(("qint", "quint")):
        raise PlanError(
            f"{whose}a tensor of the quantised dtype {dtype!r} cannot be stored as plain bytes",
            hint="save its int_repr(), scale and zero point",
        )
    near = get_close_matches(dtype, _STORED, n=1)
    nearest = f"; the nearest known one is {near[0]!r}" if near else ""
    raise PlanError(
        f"{whose}tierstore does not know the dtype {dtype!r}{nearest}",
        hint="save the tensor as a view of torch.uint8",
    )


def item_size(dtype: str) -> int:
    """Return the bytes of one torch element.

    Raises:
        PlanError: the dtype cannot be stored.
    """
    return stored_type(dtype).itemsize
