"""Sizes, times and other numbers as people write them, and as they read them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from tierstore import registry
from tierstore.errors import ConfigError

T = TypeVar("T")

_NUMBER = re.compile(r"([0-9.]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z]*)")
_UNIT_OF_SIZE = re.compile(r"(?:([KMGTP])(B|iB?)?|B?)", re.IGNORECASE)
_SECONDS = {"": 1.0, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}


def nbytes(text: str) -> float:
    """Return a size, read as GNU's tools do: "32M" and "32MiB" are 32 * 2**20, "5GB" is 5e9.

    Raises:
        ConfigError: it is no size.
    """
    number, unit = _split(text, "a size such as 32M or 1.5GiB")
    match = _UNIT_OF_SIZE.fullmatch(unit)
    if not match:
        raise ConfigError(
            f"{text!r} has no unit of size",
            hint="K, M, G, T, P and KiB... are powers of 1024; KB... of 1000",
        )
    prefix, rest = match.groups("")
    power = " KMGTP".index(prefix.upper() or " ")
    return _counted(text, number * (1000.0 if rest.upper() == "B" else 1024.0) ** power)


def some_bytes(text: str) -> int:
    """Return whole bytes, at least one; see `nbytes`.

    Raises:
        ConfigError: it is no size, or less.
    """
    found = int(nbytes(text))
    if found < 1:
        raise ConfigError(f"{text!r} is less than one byte")
    return found


def seconds(text: str) -> float:
    """Return a time in seconds: "90", "5m", "2h", "150d".

    Raises:
        ConfigError: it is no time.
    """
    number, unit = _split(text, "a time such as 90s, 5m, 2h or 150d")
    if unit not in _SECONDS:
        raise ConfigError(f"{text!r} has no unit of time", hint="units are ms, s, m, h and d")
    return _counted(text, number * _SECONDS[unit])


def number(text: str) -> float:
    """Return a plain number.

    Raises:
        ConfigError: it is none.
    """
    value, unit = _split(text, "a number")
    if unit:
        raise ConfigError(f"{text!r} is not a plain number")
    return value


def duration(value: float) -> str:
    """Return a time as a person reads it."""
    if value == float("inf"):
        return "all"
    for unit, factor in (("d", 86_400.0), ("h", 3600.0), ("min", 60.0)):
        if value >= 2 * factor:
            return f"{value / factor:.1f} {unit}"
    for unit, factor in (("s", 1.0), ("ms", 1e-3)):
        if value >= factor or not value:
            return f"{value / factor:.3g} {unit}"
    return f"{value * 1e6:.3g} us"


def assignments(
    given: Iterable[str] | None, known: Mapping[str, Callable[[str], T]], *, what: str
) -> dict[str, T]:
    """Return key=value words, each converted by what `known` has for its key.

    A key that ends in "." there stands for one for each tier: "ceiling.s3".

    Raises:
        ConfigError: a word is no assignment, its key is unknown, or its value is wrong.
    """
    found = {}
    for word in given or ():
        key, equals, text = word.partition("=")
        of = key.partition(".")[0] + "." if "." in key else key
        if not equals or not text:
            raise ConfigError(f"{what} {word!r} is not of the form KEY=VALUE")
        if of not in known or (key == of and key.endswith(".")):
            names = [name + "TIER" if name.endswith(".") else name for name in known]
            raise ConfigError(f"{what} {key!r} is unknown", hint=registry.nearest(key, names))
        try:
            found[key] = known[of](text)
        except ConfigError as error:
            raise ConfigError(f"{what} {key}: {error.message}", hint=error.hint) from None
    return found


def _split(text: str, wanted: str) -> tuple[float, str]:
    match = _NUMBER.fullmatch(text.strip())
    try:
        return _counted(text, float(match[1] if match else "")), match[2] if match else ""
    except ValueError:
        raise ConfigError(f"{text!r} is not {wanted}") from None


def _counted(text: str, number: float) -> float:
    if number == float("inf"):
        raise ConfigError(f"{text!r} is more than any number here")
    return number
