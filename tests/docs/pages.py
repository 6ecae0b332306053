"""The README and everything under docs/, taken apart: fenced blocks, links, names, tables."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_FENCE = re.compile(r"^ *(`{3,}|~{3,})(.*)$")
_LINK = re.compile(r"\[(?:[^\[\]]|`[^`]*`)*\]\(([^)\s]+)\)")
_CODE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


@dataclass(frozen=True)
class Block:
    """A fenced block; `line` is the page's line number of its first line."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{name(self.page)}:{self.line}"


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str | None = None) -> list[Block]:
    found = [part for part in _parts(page) if isinstance(part, Block)]
    return [block for block in found if language in (None, block.language)]


def all_blocks(language: str | None = None) -> list[Block]:
    return [block for page in PAGES for block in blocks(page, language)]


def prose(page: Path) -> list[tuple[int, str]]:
    """The numbered lines outside of fenced blocks."""
    return [part for part in _parts(page) if not isinstance(part, Block)]


def inline_code(page: Path) -> Iterator[tuple[str, str]]:
    """Yield (where, text) of everything in backticks."""
    for number, line in prose(page):
        for text in _CODE.findall(line):
            yield f"{name(page)}:{number}", text


def links(page: Path) -> Iterator[tuple[str, str]]:
    for number, line in prose(page):
        for target in _LINK.findall(line):
            yield f"{name(page)}:{number}", target


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = [line.lstrip("#") for _, line in prose(page) if re.match(r"#+ ", line)]
    return {re.sub(r"[^\w\- ]", "", head.strip().lower()).replace(" ", "-") for head in headings}


def tables(page: Path, first: str) -> Iterator[list[str]]:
    """Yield the rows, as cells, of every table whose first column has this heading."""
    inside = False
    for _, line in prose(page):
        if not line.startswith("|"):
            inside = False
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if cells[0] == first:
            inside = True
        elif inside and set(cells[0]) != {"-"}:
            yield cells


def _parts(page: Path) -> list[Block | tuple[int, str]]:
    parts: list[Block | tuple[int, str]] = []
    opened: tuple[int, str, str] | None = None
    body: list[str] = []
    for number, line in enumerate(page.read_text().splitlines(), 1):
        fence = _FENCE.match(line)
        if opened is None and fence:
            opened, body = (number + 1, fence[1], fence[2].strip()), []
        elif opened is None:
            parts.append((number, line))
        elif fence and fence[1] == opened[1] and not fence[2].strip():
            parts.append(Block(page, opened[0], opened[2], "\n".join(body) + "\n"))
            opened = None
        else:
            body.append(line)
    assert opened is None, f"{name(page)}:{opened and opened[0]}: the fence is never closed"
    return parts
