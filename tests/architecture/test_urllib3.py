"""urllib3 opens connections, by what it promises to keep: no upper bound of its version is needed.

A class that derives from one of its own can reach, and replace, what is private there.
"""

from __future__ import annotations

import ast
from pathlib import Path

import urllib3.util

HTTP = Path(__file__).parents[2] / "tierstore/http"


def test_only_what_urllib3_promises_is_used() -> None:
    found: dict[str, set[str]] = {}
    bases: set[str] = set()
    for path in HTTP.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert not [each.name for each in node.names if each.name.startswith("urllib3")]
            elif isinstance(node, ast.ImportFrom) and str(node.module).startswith("urllib3"):
                found.setdefault(str(node.module), set()).update(each.name for each in node.names)
            elif isinstance(node, ast.ClassDef):
                bases |= {base.id for base in node.bases if isinstance(base, ast.Name)}
    assert set(found) == {"urllib3.connection", "urllib3.exceptions", "urllib3.util"}
    assert found["urllib3.connection"] == {"HTTPConnection", "HTTPSConnection"}
    assert found["urllib3.util"] <= set(urllib3.util.__all__)
    assert not [name for name in found["urllib3.exceptions"] if name.startswith("_")]
    assert not bases & set.union(*found.values())


def test_no_private_attribute_of_a_connection_is_touched() -> None:
    """It is opened, and its socket taken: in one function."""
    used = {
        node.attr
        for node in ast.walk(ast.parse((HTTP / "opening.py").read_text()))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "connection"
    }
    assert used == {"connect", "close", "sock"}
