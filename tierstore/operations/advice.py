"""An error in words: what happened, to which tier, and the next step."""

from __future__ import annotations

from tierstore.errors import ConfigError, IntegrityError, StorageError, TierstoreError
from tierstore.text import printable


def said(error: TierstoreError) -> str:
    """Return what happened, without the hint."""
    return str(error).removesuffix(printable(f" ({error.hint})"))


def next_step(error: TierstoreError) -> str:
    """Return the error's hint, or where to look when it has none."""
    if error.hint:
        return error.hint
    if isinstance(error, StorageError):
        return "`tierstore doctor` checks every tier and says what to do"
    if isinstance(error, IntegrityError):
        return "`tierstore verify` reports all damage of a checkpoint"
    return ""


def of_tier(name: str, error: TierstoreError) -> TierstoreError:
    """Return an error as one of a tier, by its name."""
    kind = ConfigError if isinstance(error, ConfigError) else TierstoreError
    return kind(f"tier {name}: {said(error)}", hint=next_step(error))
