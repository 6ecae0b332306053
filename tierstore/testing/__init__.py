"""What a user needs to test a backend of their own: the contract suite.

Fault plans, state machines and servers are below; they may change with any release.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tierstore.testing.contract import BackendContract

__all__ = ["BackendContract"]


def __getattr__(name: str) -> object:
    if name not in __all__:  # imported when used: it needs pytest
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tierstore.testing.contract import BackendContract

    return BackendContract
