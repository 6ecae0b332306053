"""Secrets stay out of what the libraries beneath write to their own debug logs."""

from __future__ import annotations

import logging
import re


class Masked(logging.Filter):
    """Replaces what a pattern finds in a record by asterisks.

    Args:
        pattern: its first group, if it has one, is kept.
    """

    def __init__(self, pattern: str) -> None:
        super().__init__()
        self._secret = re.compile(pattern)

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record pass, without its secrets."""
        text = record.getMessage()
        if self._secret.search(text):
            record.msg, record.args = self._secret.sub(_stars, text), ()
        return True


QUERIES = Masked(r"(delegation=)[^&\s\"]+")
"""For whoever logs requests: WebHDFS wants tokens in the query."""

TOKENS = Masked(r"[A-Za-z0-9+/]{20,}={0,2}")
"""For whoever logs the tokens of an exchange, which are base64."""


def mask(logger: str, masked: Masked) -> None:
    """Give the masks to a logger and to all that are below it by now; filters are not inherited."""
    below = [name for name in logging.root.manager.loggerDict if name.startswith(f"{logger}.")]
    for name in (logger, *below):
        log = logging.getLogger(name)
        if masked not in log.filters:
            log.addFilter(masked)


def _stars(found: re.Match[str]) -> str:
    return f"{found[1] if found.re.groups else ''}***"
