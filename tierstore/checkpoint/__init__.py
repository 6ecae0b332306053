"""What makes files a checkpoint: fragments, manifest, commit, launches, timeline."""

GRACE = 60.0
"""Seconds that readers of a deleted checkpoint have by default."""
