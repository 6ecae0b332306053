"""Numbers are checked where they enter: of a negative rate or no node comes an error, no time.

None is so large or so small that what is computed from several of them is no number any more.
"""

from __future__ import annotations

import math

from tierstore.errors import ModelError

_MOST = 1e30
_LEAST = 1 / _MOST


def positive(what: str, value: float, unit: str = "") -> float:
    """Return `value` if it is a number above 0, and one to compute with: 1e-30 to 1e30.

    Raises:
        ModelError: it is not; the message names it.
    """
    number = not_negative(what, value, unit, wanted="a number above 0")
    if not number:
        raise ModelError(f"{what} is {_said(value, unit)}, not a number above 0")
    if number < _LEAST:
        raise ModelError(f"{what} is {_said(value, unit)}, too small to compute with")
    return number


def not_negative(
    what: str, value: float, unit: str = "", *, wanted: str = "a number from 0 up"
) -> float:
    """Return `value` if it is a number from 0 up to 1e30.

    Raises:
        ModelError: it is not.
    """
    number = _number(value)
    if number is None or number < 0:
        raise ModelError(f"{what} is {_said(value, unit)}, not {wanted}")
    if number > _MOST:
        raise ModelError(f"{what} is {number:g}{f' {unit}' if unit else ''}, above 1e30")
    return number


def share(what: str, value: float) -> float:
    """Return `value` if it is from 0 to 1.

    Raises:
        ModelError: it is not.
    """
    number = _number(value)
    if number is None or not 0 <= number <= 1:
        raise ModelError(f"{what} is {_said(value, '')}, not from 0 to 1")
    return number


def whole(what: str, value: float, least: int = 1, most: int = 10**9) -> int:
    """Return `value` if it is a whole number from `least` to `most`.

    Raises:
        ModelError: it is not.
    """
    number = _number(value)
    if number is None or number != int(number) or number < least:
        raise ModelError(f"{what} is {_said(value, '')}, not a whole number from {least} up")
    if number > most:
        raise ModelError(f"{what} is {number:g}, more than {most:,}")
    return int(value)


def _number(value: object) -> float | None:
    """Return a finite number; what is too large for one is 1e308; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return 1e308 if value > 0 else -1e308


def _said(value: object, unit: str) -> str:
    return f"{value} {unit}".rstrip()
