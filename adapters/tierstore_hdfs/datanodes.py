"""Bytes move at a datanode that works: one that is down or hangs is left out of the next try."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from socket import gethostbyname
from urllib.parse import urlsplit

from tierstore.errors import StorageError, TransientError

_TRIES = 3  # datanodes, as many as a block commonly has
_ASKS = 8


def somewhere(
    place: Callable[..., str],
    move: Callable[[str], None],
    address: Callable[[str], str],
    again: tuple[type[StorageError], ...] = (TransientError,),
) -> None:
    """Move bytes at a datanode, and when that fails, at another one.

    Args:
        place: asks the namenode for a datanode's URL, given `excludedatanodes`. The namenode may
            name one that is down: it notices after minutes.
        move: works with that URL.
        address: what `excludedatanodes` wants to be told of it.
        again: the errors after which another is tried.
    """
    failed: dict[str, str] = {}
    cause: StorageError | None = None
    for left in reversed(range(_TRIES)):
        try:
            url = _other_than(failed, place)
        except TransientError as error:
            if isinstance(cause, TransientError):
                raise cause from error  # there is no other datanode
            raise
        try:
            move(url)
        except again as error:
            if not left:
                raise
            cause, failed[urlsplit(url).netloc] = error, address(url)
        else:
            return


def address_of(url: str) -> str:
    """Return the address of a URL's host; the namenode knows datanodes by it, not by name."""
    host = str(urlsplit(url).hostname)
    with suppress(OSError):
        return gethostbyname(host)
    return host


def _other_than(failed: Mapping[str, str], place: Callable[..., str]) -> str:
    """Return a URL, if possible not of a datanode that failed.

    The namenode does not know an address that it sees otherwise than this host, and of datanodes
    that share one it leaves out any. But each time it may choose another.
    """
    excluded = {"excludedatanodes": ",".join(failed.values())} if failed else {}
    for _ in range(_ASKS):
        url = place(**excluded)
        if urlsplit(url).netloc not in failed:
            break
    return url
