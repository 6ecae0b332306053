"""Migrations on the nodes of a Ray cluster: `tierstore migrate SRC DST --on ray`."""

from __future__ import annotations

from tierstore_ray.crew import RayCrew, open_crew

__all__ = ["RayCrew", "open_crew"]
