"""What the commands do, as functions: values in, results out; nothing is printed, no exit is made.

The command line, a service and a notebook call the same. Nothing heavy is imported here.
"""

from __future__ import annotations

from tierstore.checkpoint import GRACE

__all__ = ["GRACE"]
