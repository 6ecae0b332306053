"""Damage that parsers are fuzzed with: of bytes, and of the values in a JSON text."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from copy import deepcopy
from random import Random
from typing import Any

_GROWTH = 64 * 1024  # bytes that a mutant may be longer than what it comes from
_EXTREMES = [
    sign * (1 << bits) + more for bits in (0, 7, 8, 15, 16, 31, 32, 62, 63, 64)
    for sign in (1, -1) for more in (-1, 0, 1)
]  # fmt: skip
_TOKENS = [
    *map(str, _EXTREMES), "1e999", "-0", "0x10", "1_0", "NaN", "Infinity", "null", "9" * 5000,
    "[" * 2000, "\u00b2", "\u0663", "\ufffd", "../", "\0", "\x1b[31m", "\r\n", "%00", "\\ud800",
]  # fmt: skip
_VALUES: list[Any] = [
    None, True, False, 0, -1, 1.5, "", "x" * 5000, [], {}, [0] * 1000, [[]], {"": None}, "\u00b2",
    "\ud800", "\0", "../../x", "/x", "\x1b[31mx", "NaN", float("nan"), float("inf"), 1e308,
    *_EXTREMES, 10**30,
]  # fmt: skip
_DEEP, _LONG = "a number of 5,000 digits", "lists in lists"  # which json.dumps would not write


def mutate(data: bytes, others: Sequence[bytes], rng: Random) -> bytes:
    """Return `data` with one to eight kinds of damage; some has parts of `others` in it."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 1, 2, 2, 3, 8))):
        rng.choice(_WAYS)(out, others, rng)
    return bytes(out[: len(data) + _GROWTH])


def mutate_json(data: bytes, rng: Random) -> bytes:
    """Return a JSON text in which one to three values are others, gone, or there twice.

    What is no JSON comes back as it is.
    """
    try:
        tree = [json.loads(data)]
    except (ValueError, RecursionError):
        return data
    for _ in range(rng.choice((1, 1, 2, 3))):
        places = list(_places(tree))
        if places:
            _change(*rng.choice(places), tree, rng)
    text = json.dumps(tree[0] if tree else None, ensure_ascii=rng.random() < 0.8)
    text = text.replace(f'"{_DEEP}"', "9" * 5000).replace(f'"{_LONG}"', "[" * 900 + "]" * 900)
    return text.encode(errors="surrogatepass")


def mutate_numbers(data: bytes, places: range, rng: Random) -> bytes:
    """Return `data`, of which one to three numbers at `places` are others."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        _set_number(out, places, rng)
    return bytes(out)


def _places(node: Any) -> Any:
    """Yield (container, key) of everything below a node."""
    for key in list(node) if isinstance(node, dict) else range(len(node)):
        yield node, key
        if isinstance(node[key], dict | list):
            yield from _places(node[key])


def _change(node: Any, key: Any, tree: list[Any], rng: Random) -> None:
    match rng.randrange(6):
        case 0:
            del node[key]
        case 1 if isinstance(node, dict):
            node[rng.choice(["", "\ud800", "__metadata__", f"{key}2", "$x"])] = node[key]
        case 1:
            node.insert(key, node[key])
        case 2 if isinstance(node[key], int | float) and not isinstance(node[key], bool):
            node[key] = rng.choice([node[key] + 1, node[key] - 1, -node[key], float(node[key])])
        case 3:
            donor, place = rng.choice(list(_places(tree)))
            node[key] = json.loads(json.dumps(donor[place]))
        case _:
            node[key] = deepcopy(rng.choice([*_VALUES, _DEEP, _LONG]))


def _flip(out: bytearray, _: Sequence[bytes], rng: Random) -> None:
    if out:
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)


def _byte(out: bytearray, _: Sequence[bytes], rng: Random) -> None:
    if out:
        out[rng.randrange(len(out))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))


def _number(out: bytearray, _: Sequence[bytes], rng: Random) -> None:
    if len(out) >= 8:
        _set_number(out, range(len(out)), rng)


def _set_number(out: bytearray, places: range, rng: Random) -> None:
    """Put an extreme number where one may be, or one that is near to what is there."""
    width = rng.choice((1, 2, 4, 4, 8, 8))
    at = rng.choice(places)
    at = min(at - at % width if rng.random() < 0.8 else at, len(out) - width)
    here = int.from_bytes(out[at : at + width], "little")
    near = here + rng.choice((-8, -4, -1, 1, 4, 8, here, len(out)))
    number = rng.choice((rng.choice(_EXTREMES), near)) % (1 << 8 * width)
    out[at : at + width] = number.to_bytes(width, rng.choice(("little", "little", "big")))


def _token(out: bytearray, _: Sequence[bytes], rng: Random) -> None:
    """Put a text in the place of a number, a word, or nothing."""
    at = rng.randrange(len(out) + 1)
    end = at
    while end < len(out) and chr(out[end]).isalnum() and end - at < 40:
        end += 1
    out[at:end] = rng.choice(_TOKENS).encode()


def _cut(out: bytearray, _: Sequence[bytes], rng: Random) -> None:
    del out[rng.randrange(len(out) + 1) :]


def _grow(out: bytearray, _: Sequence[bytes], rng: Random) -> None:
    out += rng.choice((bytes, rng.randbytes))(rng.choice((1, 7, 8, 64, 4096)))


def _splice(out: bytearray, others: Sequence[bytes], rng: Random) -> None:
    """Go on with another one from somewhere."""
    other = rng.choice(others)
    at = rng.randrange(min(len(out), len(other)) + 1)
    start = rng.choice((at, rng.randrange(len(other) + 1)))
    out[at:] = other[start:]


def _range(size: int, rng: Random) -> slice:
    start = rng.randrange(size + 1)
    return slice(start, start + rng.choice((1, 4, 8, 24, 100, size)))


def _delete(out: bytearray, _: Sequence[bytes], rng: Random) -> None:
    del out[_range(len(out), rng)]


def _double(out: bytearray, _: Sequence[bytes], rng: Random) -> None:
    part = _range(len(out), rng)
    out[part.start : part.start] = out[part]


def _swap(out: bytearray, _: Sequence[bytes], rng: Random) -> None:
    one, two = sorted((_range(len(out), rng), _range(len(out), rng)), key=lambda part: part.start)
    one = slice(one.start, min(one.stop, two.start))
    first, second = out[one], out[two]
    out[two], out[one] = first, second


_WAYS: list[Callable[[bytearray, Sequence[bytes], Random], None]] = [
    *(_flip, _flip, _byte, _number, _number, _number, _token, _cut, _grow, _splice),
    *(_delete, _double, _swap),
]
