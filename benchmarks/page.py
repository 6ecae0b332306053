"""One HTML page that needs nothing else: tables, plots, light and dark, wide and narrow."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

from benchmarks.pictures import Placed
from benchmarks.plots import Picture

_STYLE = Path(__file__).with_name("page.css")
_HEADING = re.compile(r"<h3>(.*?)</h3>")


@dataclass(frozen=True, slots=True)
class Section:
    """One comparison.

    Attributes:
        name: of its file; unique on the page.
        title: for people.
        text: its tables, as Markdown with headings of the third level.
        pictures: the plots, each with the heading it belongs below.
    """

    name: str
    title: str
    text: str
    pictures: Sequence[Placed]


def page(title: str, sections: Sequence[Section]) -> str:
    """Return the whole page."""
    links = "".join(
        f'<li><a href="#{_quoted(each.name)}">{_quoted(each.title)}</a></li>' for each in sections
    )
    body = "\n".join(_section(each) for each in sections)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_quoted(title)}</title>\n<style>\n{_STYLE.read_text()}</style>\n</head>\n<body>\n"
        f"<header>\n<h1>{_quoted(title)}</h1>\n"
        f'<nav aria-label="Comparisons"><ul>{links}</ul></nav>\n</header>\n'
        f"<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _section(section: Section) -> str:
    text = MarkdownIt("commonmark", {"html": False}).enable("table").render(section.text)
    text = _tables(text)
    left = list(section.pictures)
    pieces, at = [], 0
    for heading in _HEADING.finditer(text):
        pieces.append(text[at : heading.end()])
        at = heading.end()
        title = html.unescape(heading[1])
        pieces.append(_gallery([p for begin, p in left if title.startswith(begin)]))
        left = [(begin, p) for begin, p in left if not title.startswith(begin)]
    pieces += [text[at:], _gallery([picture for _, picture in left])]
    name = _quoted(section.name)
    return (
        f'<section id="{name}" aria-labelledby="{name}-title">\n'
        f'<h2 id="{name}-title">{_quoted(section.title)}</h2>\n{"".join(pieces)}</section>'
    )


def _tables(text: str) -> str:
    """Let wide tables scroll by themselves, also with the keyboard, and name their columns."""
    text = text.replace("<th></th>", "<td></td>").replace("<th>", '<th scope="col">')
    opened = '<div class="table" tabindex="0" role="region" aria-label="table"><table>'
    return text.replace("<table>", opened).replace("</table>", "</table></div>")


def _gallery(pictures: Sequence[Picture]) -> str:
    if not pictures:
        return ""
    figures = "".join(
        f"<figure><figcaption>{_quoted(picture.title)}</figcaption>"
        + picture.svg.replace("<svg", f'<svg role="img" aria-label="{_quoted(picture.alt)}"', 1)
        + "</figure>\n"
        for picture in pictures
    )
    return f'\n<div class="gallery">\n{figures}</div>\n'


def _quoted(text: str) -> str:
    return html.escape(text)
