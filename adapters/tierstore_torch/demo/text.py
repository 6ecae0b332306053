"""Real text that every machine has: the source of Python's standard library."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import torch

TEXT_BYTES = 4_000_000


def standard_library() -> torch.Tensor:
    """Return the first 4 MB of the library's modules in order of name, as uint8."""
    folder = Path(sysconfig.get_path("stdlib"))
    text = bytearray()
    for path in sorted(folder.glob("*.py")):
        text += path.read_bytes()
        if len(text) >= TEXT_BYTES:
            break
    return torch.frombuffer(text[:TEXT_BYTES], dtype=torch.uint8)


def batch(text: torch.Tensor, step: int, *, size: int, length: int) -> torch.Tensor:
    """Return the global batch of one step: `size` windows of `length` + 1 bytes, as int64.

    Depends on nothing but the step, so a resumed run at any world size reads the same bytes.
    """
    generator = torch.Generator().manual_seed(step)
    starts = torch.randint(len(text) - length - 1, (size, 1), generator=generator)
    return text[starts + torch.arange(length + 1)].long()
