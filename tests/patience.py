"""How long tests wait: no test rests on how fast the machine is.

A deadline in a test is only there against hangs. What is quick is told by what was done, such as
the number of requests; what has to end early is told apart by the reason that it gives.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tierstore.backend import Backend
from tierstore.wrappers.retry import Retrying

PATIENCE = 600.0
"""Seconds for what takes one on an idle machine."""

# Hypothesis fails an example that takes 0.2 s, and a strategy that is slow, unless told otherwise.
settings.register_profile(
    "patient",
    parent=settings.default,
    deadline=None,
    suppress_health_check=[*settings.default.suppress_health_check, HealthCheck.too_slow],
)
settings.load_profile("patient")


def noted_retries(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Note how many seconds each tier that is opened from now on repeats a request."""
    noted: list[float] = []

    class Noting(Retrying):
        def __init__(self, inner: Backend, *, seconds: float, **options: Any) -> None:
            noted.append(seconds)
            super().__init__(inner, seconds=seconds, **options)

    monkeypatch.setattr("tierstore.wrappers.Retrying", Noting)
    return noted
