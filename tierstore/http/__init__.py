"""The one HTTP transport of all remote tiers: zero copies, and a deadline on everything.

urllib3 opens connections; what goes over them is ours. A body is sent from the caller's memory and
an answer is received into the caller's memory; and every single send and receive is held to three
deadlines: connecting, stalling (no byte moves), and the total of the request.

It never retries and never follows redirects: that is policy, which its callers have.
"""

from __future__ import annotations

from tierstore.http.clock import Deadlines
from tierstore.http.transport import Response, Transport

__all__ = ["Deadlines", "Response", "Transport"]
