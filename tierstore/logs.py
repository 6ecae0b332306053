"""The project's loggers: what they are told of others' names and words reaches a log printable."""

from __future__ import annotations

import logging

from tierstore.text import printable


class _Printable(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record pass, with what is not printed written out."""
        text = record.getMessage()
        if not text.isprintable():
            record.msg, record.args = printable(text), ()
        return True


_PRINTABLE = _Printable()


def logger(name: str) -> logging.Logger:
    """Return a module's logger. Filters are not inherited, so each has its own."""
    log = logging.getLogger(name)
    log.addFilter(_PRINTABLE)
    return log
