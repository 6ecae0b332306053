"""The commands there are, each imported when it is used: `--help` and <TAB> need none of them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

COMMANDS = {
    "ls": ("ls", "List checkpoints, newest first, and the tiers that hold them."),
    "show": ("show", "Show one checkpoint: its size, ranks, parent, tiers, values and tensors."),
    "verify": (
        "verify",
        "Read all of one checkpoint on every tier that holds it, and report all damage.",
    ),
    "migrate": (
        "migrate",
        "Copy SRC to DST and verify it; run it again to resume after any kill.",
    ),
    "sync": (
        "sync",
        "Mirror SRC to DST: copy what is missing or differs; with --delete, remove the rest.",
    ),
    "cp": (
        "cp",
        "Copy one object and verify it; run it again to resume within it after any kill.",
    ),
    "import": (
        "importing",
        "Import a torch.save file, a DCP folder or Hugging Face safetensors as a step of a run.",
    ),
    "export": (
        "exporting",
        "Export a step as a torch.save file, a DCP folder or Hugging Face safetensors.",
    ),
    "doctor": (
        "doctor",
        "Check each tier: reachable, writable, conditional create, checksums, clock, disk; advise.",
    ),
    "bench": (
        "bench",
        "Measure each tier: sizes x concurrency x put, get, range, first byte and list.",
    ),
    "predict": (
        "predict",
        "Predict for a cluster: time on each tier, stall, lost work, goodput and a good interval.",
    ),
    "plan": ("plan", "Choose tiers, every and keep: the cheapest ladder that meets all targets."),
    "demo": (
        "demo",
        "Train a small transformer with FSDP2, kill a rank while it saves, and resume.",
    ),
}
"""The module of each in this package, and the first sentence of what it says of itself."""


class Deferred(click.Command):
    """A command that knows what it is for, and reads the rest from its module once it is called."""

    def __init__(self, name: str, module: str, purpose: str) -> None:
        super().__init__(name, short_help=purpose)
        self._module = module

    def load(self) -> click.Command:
        """Import the command and return it."""
        command: click.Command = import_module(f"tierstore.cli.{self._module}").run
        return command

    def make_context(self, *words: Any, **more: Any) -> click.Context:
        """Take the words apart as the command itself does; its context is what runs."""
        return self.load().make_context(*words, **more)
