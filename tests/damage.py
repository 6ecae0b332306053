"""Ways to damage what is stored."""

from __future__ import annotations

from pathlib import Path


def flip(path: Path, at: int = -1) -> None:
    """Change one byte of a file."""
    data = bytearray(path.read_bytes())
    data[at] ^= 0x40
    path.write_bytes(data)


def flip_last_byte(tier: Path, step: int, rank: int = 0, run: str = "run") -> None:
    """Change the last byte of a rank's data of one step."""
    (file,) = tier.glob(f"runs/{run}/data/{step:012d}-*/{rank:05d}-000.safetensors")
    flip(file)
