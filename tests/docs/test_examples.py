"""Every fenced block of the README and of docs/ does what the page says."""

from __future__ import annotations

import ast
import re
import shlex
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.command import tierstore
from tests.docs import pages
from tests.docs.conftest import Sandbox
from tests.docs.pages import PAGES, ROOT, Block, all_blocks, blocks, name
from tierstore.config import load_config

KINDS = {"python", "toml", "console", "text"}
"""What blocks may be. "text" is not executed; all others are, below."""

PREPARED = {"docs/operators.md", "docs/format.md", "docs/python.md"}
"""Pages whose Python looks at checkpoints that were saved before."""

_EXPECTED = re.compile(r"# -> (.*)$")


@pytest.mark.parametrize("block", all_blocks(), ids=str)
def test_a_block_is_of_a_kind_that_is_checked(block: Block) -> None:
    assert block.language in KINDS, f"{block}: the kinds are {sorted(KINDS)}"


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore::UserWarning:torch", "ignore::FutureWarning:torch")
@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=name)
def test_python(page: Path, sandbox: Sandbox, names: dict[str, Any], request: Any) -> None:
    """A page's blocks run one after the other, as somebody would who reads it."""
    if name(page) in PREPARED:
        sandbox.prepare(request.getfixturevalue("saved"))
    for block in blocks(page, "python"):
        _run(block, sandbox.localise(block.text), names)


@pytest.mark.parametrize("block", all_blocks("toml"), ids=str)
def test_toml(block: Block, tmp_path: Path) -> None:
    path = tmp_path / "tierstore.toml"
    path.write_text(block.text)
    tiers = load_config(path).tiers
    assert len(tiers) == len(tomllib.loads(block.text)["tier"])


@pytest.mark.torch
@pytest.mark.parametrize("block", all_blocks("console"), ids=str)
def test_console(block: Block, request: Any) -> None:
    lines = [line for line in block.text.splitlines() if line.strip()]
    assert lines, f"{block} is empty"
    assert lines[0].startswith("$ "), f"{block}: a command begins with '$ '"
    sandbox: Sandbox | None = None
    output = ""
    for line in lines:
        if not line.startswith("$ "):
            wanted = _squeezed(sandbox.localise(line) if sandbox else line)
            assert wanted in output, f"{block}: {line!r} is not in what it printed"
            continue
        program, *arguments = shlex.split(line[2:], comments=True)
        if program == "tierstore":
            if sandbox is None:
                sandbox = request.getfixturevalue("sandbox")
                sandbox.prepare(request.getfixturevalue("saved"))
            if arguments[0] == "doctor" and not sandbox.checks:
                pytest.skip("moto checks no checksums, which doctor finds out")
            output = _squeezed(_tierstore(block, [sandbox.localise(word) for word in arguments]))
        else:
            assert program in _CHECKS, f"{block}: nothing here can check {program!r}"
            _CHECKS[program](arguments)


@pytest.mark.parametrize("text", ["```python\n1\n", "~~~python\n1\n```\n"])
def test_a_fence_that_is_not_closed_is_noticed(text: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(AssertionError, match="never closed"):
        blocks(page)


@pytest.mark.parametrize("fence", ["```", "~~~", "````", "   ```"])
def test_a_block_in_any_fence_is_found(fence: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"a\n{fence}pyton title=x\n```python `b`\n{fence}\nc `d`\n")
    (block,) = blocks(page)
    assert (block.line, block.language) == (3, "pyton title=x")
    assert block.language not in KINDS
    assert list(pages.prose(page)) == [(1, "a"), (5, "c `d`")]


def _run(block: Block, text: str, names: dict[str, Any]) -> None:
    """Execute a block; what an expression's comment `# -> text` says is compared with it."""
    tree = ast.parse(text, str(block))
    lines = text.splitlines()
    for statement in tree.body:
        last = lines[statement.end_lineno - 1] if statement.end_lineno else ""
        wanted = _EXPECTED.search(last)
        ast.increment_lineno(statement, block.line - 1)
        if isinstance(statement, ast.Expr):
            code = compile(ast.Expression(statement.value), str(block.page), "eval")
            value = eval(code, names)
            if wanted:
                where = f"{name(block.page)}:{statement.lineno}"
                assert str(value) == wanted[1], f"{where}: it is {value}"
        else:
            exec(compile(ast.Module([statement], []), str(block.page), "exec"), names)


def _tierstore(block: Block, arguments: list[str]) -> str:
    done = tierstore(*arguments)
    assert done.code == 0, f"{block}: {arguments}: {done.out} {done.err}"
    return done.out


def _squeezed(text: str) -> str:
    return re.sub(r"[ \t]+", " ", text).strip()


def _make(arguments: list[str]) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for word in arguments:
        if "=" not in word:
            assert word in targets, f"the Makefile has no {word!r}"


def _pip(arguments: list[str]) -> None:
    command, requirement = arguments
    assert command == "install"
    match = re.fullmatch(r"tierstore\[([a-z0-9,]+)\]", requirement)
    assert match, requirement
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(match[1].split(",")) <= set(extras["optional-dependencies"])


def _python(arguments: list[str]) -> None:
    assert arguments[0] == "-m"
    assert find_spec(arguments[1]), f"there is no module {arguments[1]}"


_CHECKS = {"make": _make, "pip": _pip, "python": _python}
