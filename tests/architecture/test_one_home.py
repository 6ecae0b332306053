"""Ideas that have one home: nobody else does by itself what one module does for all."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PART = "tierstore/transfer/part.py"
MOVERS = (
    "tierstore/transfer",
    "tierstore/ladder",
    "tierstore/migration",
    "tierstore/convert",
    "tierstore/operations",
    "tierstore/door",
    "adapters/tierstore_torch",
)
CRCS = {"crc32c", "crc32c_of", "block_crcs"}
OTHERS = {  # they move no part
    "adapters/tierstore_torch/demo/train.py": "whether two trained models are the same",
    "adapters/tierstore_torch/state/flatten.py": "a short name for a long path",
    "adapters/tierstore_torch/state/shard.py": "whether the ranks' structures are the same",
    "tierstore/ladder/diagnosis.py": "sends a wrong CRC32C, to see whether it is refused",
    "tierstore/ladder/union.py": "whether two tiers have the same object; what all of them can do",
    "tierstore/migration/apart.py": "a name of the marker",
}


def _trees(*folders: str) -> Iterator[tuple[str, ast.Module]]:
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield str(path.relative_to(ROOT)), ast.parse(path.read_text())


def _moves(node: ast.AST) -> str:
    """Return what of moving a part is done here, if any."""
    match node:
        case ast.Call(func=ast.Attribute(attr="write"), args=[_, _, _]):
            return "sends"
        case ast.Call(func=ast.Attribute(attr="read_back"), args=[_, _]):
            return "reads back"
        case ast.ImportFrom(module="tierstore.blocks", names=names):
            taken = CRCS.intersection(alias.name for alias in names)
            return f"takes {', '.join(sorted(taken))}" if taken else ""
        case ast.Attribute(attr="server_checksum" | "needs_read_back"):
            return "has a rule of its own for reading back"
    return ""


def test_only_one_module_moves_parts():
    found = {
        (name, done)
        for name, tree in _trees(*MOVERS)
        for node in ast.walk(tree)
        if (done := _moves(node))
    }
    here = {done for name, done in found if name == PART}
    assert {"sends", "reads back", "has a rule of its own for reading back"} < here
    others = {(name, done) for name, done in found if name not in (PART, *OTHERS)}
    assert not others, f"{PART} does this for all: {sorted(others)}"
    assert set(OTHERS) < {name for name, _ in found}, "an exception that is none any more"
