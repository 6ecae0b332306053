"""What numpy calls the elements of a stored tensor."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tierstore.checkpoint.paths import array_mark
from tierstore.errors import FormatError
from tierstore.image.dtypes import item_size

if TYPE_CHECKING:
    from tierstore.checkpoint.manifest import Tensor

_INTEGERS = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64")
_NUMPY = {"bool", *_INTEGERS, "float16", "float32", "float64", "complex64", "complex128"}
_FLOAT8 = ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu")
_ML_DTYPES = {"bfloat16", *_FLOAT8, "complex32", "bcomplex32"}


@dataclass(frozen=True, slots=True)
class Element:
    """The elements of an array.

    Attributes:
        dtype: numpy's; None if neither numpy nor ml_dtypes has it.
        shape: of the array.
        as_bytes: each element lies along one more, last dimension of the tensor, of bytes.
    """

    dtype: np.dtype[Any] | None
    shape: tuple[int, ...]
    as_bytes: bool = False


def element_of(tensor: Tensor) -> Element:
    """Return what the elements of a tensor are, and the shape of the array that it is.

    Raises:
        FormatError: its recorded dtype does not fit its bytes.
    """
    mark = array_mark(tensor.path)
    if mark is None:
        return Element(_dtype(tensor.dtype), tensor.shape)
    try:
        dtype = np.dtype(mark)
    except (TypeError, ValueError) as error:
        raise FormatError(f"{tensor.name}: numpy does not know the dtype {mark!r}") from error
    if _dtype(tensor.dtype) == dtype:
        return Element(dtype, tensor.shape)
    if tensor.dtype != "uint8" or tensor.shape[-1:] != (dtype.itemsize,) or not dtype.itemsize:
        raise FormatError(
            f"{tensor.name}: a {tensor.dtype} of shape {tensor.shape} is no array of {dtype}"
        )
    return Element(dtype, tensor.shape[:-1], as_bytes=True)


def _dtype(name: str) -> np.dtype[Any] | None:
    if name in _NUMPY:
        dtype = np.dtype(name)
        return dtype if sys.byteorder == "little" else dtype.newbyteorder("<")  # as it is stored
    if name not in _ML_DTYPES:
        return None
    import ml_dtypes

    kind = getattr(ml_dtypes, name, None)
    return None if kind is None else np.dtype(kind)


def bits(width: int) -> np.dtype[Any]:
    """Return a dtype for elements of so many bytes that copies them as they are."""
    return np.dtype("c16" if width == 16 else f"u{width}")


def raw_of(tensor: Tensor) -> Element:
    """Return what the bytes of a tensor are: an element of several has a dimension of its own."""
    width = item_size(tensor.dtype)
    return Element(np.dtype(np.uint8), tensor.shape if width == 1 else (*tensor.shape, width))
