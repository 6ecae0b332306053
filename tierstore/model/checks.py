"""Numbers are checked where they enter: of a negative rate or no node comes an error, no time."""

from __future__ import annotations

import math

from tierstore.errors import ModelError


def positive(what: str, value: float, unit: str = "") -> float:
    """Return `value` if it is a number above 0.

    Raises:
        ModelError: it is not; the message names it.
    """
    if not _is_number(value) or value <= 0:
        raise ModelError(f"{what} is {_said(value, unit)}, not a number above 0")
    return float(value)


def not_negative(what: str, value: float, unit: str = "") -> float:
    """Return `value` if it is a number from 0 up.

    Raises:
        ModelError: it is not.
    """
    if not _is_number(value) or value < 0:
        raise ModelError(f"{what} is {_said(value, unit)}, not a number from 0 up")
    return float(value)


def share(what: str, value: float) -> float:
    """Return `value` if it is from 0 to 1.

    Raises:
        ModelError: it is not.
    """
    if not _is_number(value) or not 0 <= value <= 1:
        raise ModelError(f"{what} is {_said(value, '')}, not from 0 to 1")
    return float(value)


def whole(what: str, value: float, least: int = 1) -> int:
    """Return `value` if it is a whole number of at least `least`.

    Raises:
        ModelError: it is not.
    """
    if not _is_number(value) or value != int(value) or value < least:
        raise ModelError(f"{what} is {_said(value, '')}, not a whole number from {least} up")
    return int(value)


def _is_number(value: object) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)  # type: ignore[arg-type]


def _said(value: object, unit: str) -> str:
    return f"{value} {unit}".rstrip()
