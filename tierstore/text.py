"""Text that others wrote, such as names of keys and tensors and what servers say, for people.

A terminal obeys what is not printed: signs in a name can clear the screen, forge lines, or type.
"""

from __future__ import annotations

from collections.abc import Iterable

_MEMBERS = 2_000_000  # a page of WebHDFS has 300,000, the index of a model two for each tensor


def printable(text: str, *, keep: str = "") -> str:
    """Return a text with all that is not printed written out, as Python escapes it.

    Args:
        text: anything, lone surrogates too.
        keep: what stays as it is all the same.
    """
    if text.isprintable():
        return text
    return "".join([s if s.isprintable() or s in keep else _written(s) for s in text])


def some(names: Iterable[str], shown: int = 5) -> str:
    """Return the first names, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - shown} more" if len(listed) > shown else ""
    return ", ".join(listed[:shown]) + more


def is_unicode(text: str) -> bool:
    """Whether a text can be stored: one with half of a surrogate pair cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def has_too_many_members(json: bytes) -> bool:
    """Whether JSON has more members than any that is meant; parsed, each takes up to 100 bytes."""
    return sum(map(json.count, (b"{", b"[", b",", b":"))) > _MEMBERS


def _written(sign: str) -> str:
    return sign.encode("unicode_escape").decode()
