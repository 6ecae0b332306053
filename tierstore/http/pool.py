"""The connections to one server, lent to one request after the other."""

from __future__ import annotations

import queue
import ssl

from tierstore.http.connection import Connection
from tierstore.http.opening import Way


class Pool:
    """So many connections at most; the one that was used last is lent first.

    Args:
        way: how the server is reached.
        tls: whom to trust.
        size: connections at most.

    Attributes:
        retired: no connection is kept any more.
        used: when one was last asked for, by a clock that never goes back.
    """

    def __init__(self, way: Way, tls: ssl.SSLContext, size: int) -> None:
        self.retired = False
        self.used = 0.0
        self._idle: queue.LifoQueue[Connection] = queue.LifoQueue(size)
        for _ in range(size):
            self._idle.put_nowait(Connection(way, tls))

    def lend(self, seconds: float) -> Connection | None:
        """Return a connection, to be given back; it may have to be opened.

        None if all of them are in use for so long.
        """
        try:
            connection = self._idle.get(timeout=max(0.0, seconds))
        except queue.Empty:
            return None
        if connection.was_left:
            connection.close()
        return connection

    def give_back(self, connection: Connection) -> None:
        """Take it back, open or closed."""
        if self.retired:
            connection.close()
        self._idle.put_nowait(connection)
        if self.retired:  # meanwhile
            self._close_idle()

    def retire(self) -> None:
        """Close all idle connections; one in use is closed when it is given back. Idempotent."""
        self.retired = True
        self._close_idle()

    def _close_idle(self) -> None:
        held = []
        try:
            while True:
                held.append(self._idle.get_nowait())
        except queue.Empty:
            pass
        for connection in held:
            connection.close()
            self._idle.put_nowait(connection)
