"""Plain Python values as tagged JSON: exact both ways, and nothing is ever executed.

What JSON holds is written as JSON: None, bool, str, list, finite float, int of up to 64 bits, dict
with string keys. The rest is an object with one key that starts with "$"::

    {"$tuple": [1, 2]}      {"$set": [..]}          {"$frozenset": [..]}
    {"$bytes": "<base64>"}  {"$bytearray": ..}      {"$str": "<base64 of UTF-8>"}  lone surrogates
    {"$int": "-1f.."}       {"$float": "<hex>"}     {"$complex": [1.0, 2.0]}
    {"$dict": [[k, v], ..]} {"$ordered": [..]}      {"$counter": [..]}
    {"$array": ["<f4", [2, 3], "<base64>"]}         {"$scalar": ["<f4", "<base64>"]}
    {"$dtype": "float32"}   {"$device": "cuda:0"}   {"$size": [2, 3]}              torch's

Dispatch is by exact type: a subclass (named tuple, enum, ...) may mean more than its base and is
not plain. The same value gives the same text in every process, so texts can be compared.
"""

from __future__ import annotations

import importlib
import json
import math
import re
import struct
import sys
from base64 import b64decode, b64encode
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np

from tierstore.errors import FormatError, PlanError, TierstoreError

MAX_DEPTH = 100
"""How deep containers may be nested."""

_ARRAY_KINDS = "biufcmMUS"
_SCALAR_KINDS = "biufcmM"
_DTYPE = re.compile(r"[<>|][biufcmMUS][0-9]{1,9}(\[[0-9]{0,9}[A-Za-z]{1,9}\])?")
_DEVICE = re.compile(r"[a-z]{1,30}(:[0-9]{1,9})?")
_MAPPINGS: dict[type, str] = {dict: "$dict", OrderedDict: "$ordered", Counter: "$counter"}


class NotPlainError(PlanError, TypeError):
    """A value that tagged JSON cannot hold exactly."""


def encode(value: object) -> str:
    """Return `value` as ASCII JSON text.

    Raises:
        NotPlainError: it holds something that is not plain, is nested more than 100 deep, or
            contains itself.
    """
    try:
        return _text(_pack(value, 0))
    except RecursionError as error:  # the caller was deep in its own stack
        raise _too_deep() from error


def decode(text: str) -> Any:
    """Return the value that `encode` was given. Arrays are new and writable.

    Raises:
        FormatError: `text` is not what `encode` writes.
    """
    try:
        return json.loads(text, object_pairs_hook=_unpack, parse_constant=_refuse_constant)
    except TierstoreError:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise FormatError(f"a stored value cannot be read: {error}") from error


def _text(packed: object) -> str:
    return json.dumps(packed, allow_nan=False, separators=(",", ":"))


def _pack(value: object, depth: int) -> object:
    if depth > MAX_DEPTH:
        raise _too_deep()
    kind = type(value)
    if kind in _PACKERS:
        return _PACKERS[kind](value, depth + 1)
    if isinstance(value, np.generic) and value.dtype.type is kind:
        return {"$scalar": [_dtype_text(value.dtype, _SCALAR_KINDS), _base64(value.tobytes())]}
    if (torch := sys.modules.get("torch")) is not None:  # without torch there is nothing of torch's
        if kind is torch.dtype:
            return {"$dtype": str(value).removeprefix("torch.")}
        if kind is torch.device:
            return {"$device": str(value)}
        if kind is torch.Size:
            return {"$size": [int(length) for length in value]}  # type: ignore[attr-defined]
    raise _not_plain(kind)


def _pack_int(value: int, _: int) -> object:
    # Longer ones would lose digits in other readers, or break Python's own limit on digits.
    return value if -(2**63) <= value < 2**64 else {"$int": f"{value:x}"}


def _pack_float(value: float, _: int) -> object:
    return value if math.isfinite(value) else {"$float": struct.pack(">d", value).hex()}


def _pack_str(value: str, _: int) -> object:
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON would join two lone surrogates to one character
        return {"$str": _base64(value.encode(errors="surrogatepass"))}
    return value


def _pack_complex(value: complex, depth: int) -> object:
    return {"$complex": [_pack_float(value.real, depth), _pack_float(value.imag, depth)]}


def _pack_mapping(value: dict[Any, Any], depth: int) -> object:
    packed = [(_pack(key, depth), _pack(item, depth)) for key, item in value.items()]
    if type(value) is dict and all(
        type(name) is str and not name.startswith("$") for name, _ in packed
    ):
        return dict(packed)
    return {_MAPPINGS[type(value)]: packed}


def _pack_sequence(value: list[object] | tuple[object, ...], depth: int) -> list[object]:
    return [_pack(item, depth) for item in value]


def _pack_set(value: set[object] | frozenset[object], depth: int) -> list[object]:
    # A set's own order changes from process to process.
    return sorted((_pack(item, depth) for item in value), key=_text)


def _pack_array(value: np.ndarray[Any, Any], _: int) -> object:
    dtype = _dtype_text(value.dtype, _ARRAY_KINDS)
    return {"$array": [dtype, list(value.shape), _base64(value.tobytes())]}


def _dtype_text(dtype: np.dtype[Any], kinds: str) -> str:
    # Structured, object and third-party dtypes are of other kinds. Long doubles differ between
    # machines and have padding that is never the same.
    if dtype.kind not in kinds or dtype.char in "gG" or dtype.metadata:
        raise _not_plain(dtype)
    return dtype.str


def _base64(data: bytes | bytearray) -> str:
    return b64encode(data).decode()


def _too_deep() -> NotPlainError:
    return NotPlainError(f"a value is nested more than {MAX_DEPTH} deep, or contains itself")


def _not_plain(kind: object) -> NotPlainError:
    name = f"{kind.__module__}.{kind.__qualname__}" if isinstance(kind, type) else f"dtype {kind}"
    return NotPlainError(
        f"a value of {name} is not plain",
        hint="plain are None, bool, numbers, str, bytes, list, tuple, set, dict, numpy's numbers "
        "and arrays, torch's dtype, device and Size",
    )


_PACKERS: dict[type, Callable[[Any, int], object]] = {
    type(None): lambda value, _: value,
    bool: lambda value, _: value,
    int: _pack_int,
    float: _pack_float,
    str: _pack_str,
    complex: _pack_complex,
    bytes: lambda value, _: {"$bytes": _base64(value)},
    bytearray: lambda value, _: {"$bytearray": _base64(value)},
    list: _pack_sequence,
    tuple: lambda value, depth: {"$tuple": _pack_sequence(value, depth)},
    set: lambda value, depth: {"$set": _pack_set(value, depth)},
    frozenset: lambda value, depth: {"$frozenset": _pack_set(value, depth)},
    dict: _pack_mapping,
    OrderedDict: _pack_mapping,
    Counter: _pack_mapping,
    np.ndarray: _pack_array,
}


def _unpack(pairs: list[tuple[str, Any]]) -> object:
    """Turn one JSON object, whose members are decoded already, into a value."""
    if len(pairs) == 1 and pairs[0][0].startswith("$"):
        tag, payload = pairs[0]
        if tag not in _UNPACKERS:
            raise FormatError(
                f"a stored value has the unknown tag {tag[:40]!r}",
                hint="a newer tierstore may have written it",
            )
        return _UNPACKERS[tag](payload)
    value = dict(pairs)
    if len(value) != len(pairs) or any(key.startswith("$") for key in value):
        raise FormatError("a stored value has a key twice, or a tag beside other keys")
    return value


def _list(payload: object, length: int | None = None) -> list[Any]:
    if type(payload) is not list or length not in (None, len(payload)):
        raise FormatError("a stored value has a payload of the wrong kind")
    return payload


def _string(payload: object, pattern: re.Pattern[str] | None = None) -> str:
    if type(payload) is not str or (pattern and not pattern.fullmatch(payload)):
        raise FormatError("a stored value has a payload of the wrong kind")
    return payload


def _bytes(payload: object) -> bytes:
    return b64decode(_string(payload), validate=True)


def _int(payload: object) -> int:
    return int(_string(payload, re.compile(r"-?[0-9a-f]+")), 16)


def _float(payload: object) -> float:
    text = _string(payload, re.compile(r"[0-9a-f]{16}"))
    number: float = struct.unpack(">d", bytes.fromhex(text))[0]
    return number


def _complex(payload: object) -> complex:
    real, imag = _list(payload, 2)
    if type(real) is not float or type(imag) is not float:
        raise FormatError("a stored complex number is not of two floats")
    return complex(real, imag)


def _distinct(kind: Callable[[list[Any]], Any], payload: object) -> Any:
    items = _list(payload)
    value = kind(items)
    if len(value) != len(items):
        raise FormatError("a stored value has an element twice")
    return value


def _mapping(kind: Callable[[Any], Any]) -> Callable[[object], Any]:
    return lambda payload: _distinct(
        lambda pairs: kind(dict(_list(pair, 2) for pair in pairs)), payload
    )


def _dtype(payload: object) -> np.dtype[Any]:
    return np.dtype(_string(payload, _DTYPE))


def _array(payload: object) -> np.ndarray[Any, Any]:
    name, shape, text = _list(payload, 3)
    dtype, data = _dtype(name), bytearray(_bytes(text))
    lengths = _naturals(shape)
    if math.prod(lengths) * dtype.itemsize != len(data):
        raise FormatError(f"a stored array of shape {lengths} has {len(data)} bytes")
    return np.ndarray(lengths, dtype, buffer=data)


def _scalar(payload: object) -> np.generic:
    name, text = _list(payload, 2)
    dtype, data = _dtype(name), _bytes(text)
    if dtype.kind not in _SCALAR_KINDS or dtype.itemsize != len(data):
        raise FormatError(f"a stored number of dtype {dtype} has {len(data)} bytes")
    scalar: np.generic = np.frombuffer(data, dtype)[0]
    return scalar


def _naturals(payload: object) -> tuple[int, ...]:
    if not all(type(item) is int and item >= 0 for item in _list(payload)):
        raise FormatError("a stored shape is not one")
    return tuple(_list(payload))


def _torch() -> Any:
    try:
        return importlib.import_module("torch")  # by name: the core does not depend on it
    except ImportError as error:
        raise FormatError(
            "a stored value is torch's, which is not installed",
            hint="pip install 'tierstore[torch]'",
        ) from error


def _torch_dtype(payload: object) -> object:
    torch = _torch()
    dtype = getattr(torch, _string(payload, re.compile(r"[a-z0-9_]{1,40}")), None)
    if type(dtype) is not torch.dtype:
        raise FormatError(f"a stored value names the unknown torch dtype {payload!r}")
    return dtype


def _torch_device(payload: object) -> object:
    try:
        return _torch().device(_string(payload, _DEVICE))
    except RuntimeError as error:
        raise FormatError(f"a stored value names the unknown torch device {payload!r}") from error


_UNPACKERS: dict[str, Callable[[object], Any]] = {
    "$int": _int,
    "$float": _float,
    "$str": lambda payload: _bytes(payload).decode(errors="surrogatepass"),
    "$complex": _complex,
    "$bytes": _bytes,
    "$bytearray": lambda payload: bytearray(_bytes(payload)),
    "$tuple": lambda payload: tuple(_list(payload)),
    "$set": lambda payload: _distinct(set, payload),
    "$frozenset": lambda payload: _distinct(frozenset, payload),
    "$dict": _mapping(dict),
    "$ordered": _mapping(OrderedDict),
    "$counter": _mapping(Counter),
    "$array": _array,
    "$scalar": _scalar,
    "$dtype": _torch_dtype,
    "$device": _torch_device,
    "$size": lambda payload: _torch().Size(_naturals(payload)),
}


def _refuse_constant(name: str) -> object:
    raise FormatError(f"a stored value holds {name}, which is not JSON")
