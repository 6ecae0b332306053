"""Patterns, as rsync and rclone write them: which keys and which names are meant.

`*` and `?` stand for anything but "/", `**` for anything, `[a-z]`, `[!a]`, `[^a]` and `[[:digit:]]`
for one sign other than "/", `{a,b}` for one of these, `{{...}}` for a regular expression, and a
backslash takes the meaning from the sign behind it. In names, which have no folders, `*` and `?`
stand for anything too.

What a pattern of keys means beyond that, and where the two tools differ, is said in
docs/design/042-patterns.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from tierstore.errors import ConfigError

Sign = Literal["+", "-"]
EVERYTHING = "**"
_POSIX = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "blank": " \\t",
    "cntrl": "\\x00-\\x1f\\x7f",
    "digit": "0-9",
    "graph": "!-~",
    "lower": "a-z",
    "print": " -~",
    "punct": "!-/:-@\\[-`{-~",
    "space": "\\s",
    "upper": "A-Z",
    "xdigit": "0-9A-Fa-f",
}
_HINT = "a sign that is meant as it is has a backslash before it"
_TIMES = re.compile(r"/(?:\.?/)+")  # one slash, written several times
_REGEX = re.compile(r"\{(.+?)\}\}(?!\})")  # what follows the first "{" of a regular expression
_CLASS = re.compile(r":([a-z]+):\]")
_DEEPEST = 20
_UP = re.compile(r"(?:\A|/)\.\.(?:/|\Z)")


@lru_cache(maxsize=256)
def matcher(pattern: str) -> Callable[[str], bool]:
    """Return what tells whether a whole name is like a pattern; names have no folders.

    Raises:
        ConfigError: the pattern is malformed.
    """
    (part,) = _Reader(pattern, folders=False).parts()
    found = _compiled(part.regex, pattern)
    return lambda name: found.fullmatch(name) is not None


class Selection:
    """Which keys are wanted: the first rule that matches a key decides, else it is wanted.

    Args:
        rules: ("+", what is wanted) and ("-", what is not), as patterns. One that begins with "/"
            is held against whole keys, another also against what begins behind any "/". One that
            ends in "/" stands for all that is below such a folder; without it, "-" does so too.

    Raises:
        ConfigError: a pattern is malformed; the message names it.
    """

    def __init__(self, rules: Iterable[tuple[Sign, str]] = ()) -> None:
        self._rules = [_Rule.parse(sign, pattern) for sign, pattern in rules]

    def wants(self, key: str) -> bool:
        """Whether a key is wanted."""
        return next((rule.takes for rule in self._rules if rule.whole.fullmatch(key)), True)

    def may_want_below(self, folder: str) -> bool:
        """Whether any key below a folder may be wanted; if not, nobody has to look there.

        Args:
            folder: a prefix of keys that ends in "/", or "" for the root.
        """
        name = folder.rstrip("/")
        for rule in self._rules:
            if rule.takes and rule.may_match_below(name):
                return True
            if not rule.takes and rule.matches_all_below(name):
                return False
        return True


def parse_rules(text: str, *, where: str) -> Iterator[tuple[Sign, str] | None]:
    """Yield the rules of a filter file: "+ PATTERN" or "- PATTERN" a line; None for "!".

    What is behind "#" or ";" at the beginning of a line, and an empty line, says nothing.

    Args:
        text: the file's content.
        where: its name, for messages.

    Raises:
        ConfigError: a line is something else.
    """
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if not line or line[0] in "#;":
            continue
        sign, _, pattern = line.partition(" ")
        if line == "!":
            yield None
        elif sign == "+" and pattern:
            yield "+", pattern.strip()
        elif sign == "-" and pattern:
            yield "-", pattern.strip()
        else:
            raise ConfigError(
                f"{where}, line {number}: {line!r} is no rule",
                hint="a rule is '+ PATTERN' or '- PATTERN'; '!' forgets those before it",
            )


@dataclass(frozen=True, slots=True)
class _Part:
    """What is between two slashes of a pattern; `wide`: it may match slashes too."""

    regex: str
    wide: bool


@dataclass(frozen=True, slots=True)
class _Rule:
    """One rule about keys.

    Attributes:
        takes: what it matches is wanted.
        whole: matches the keys it is about.
        parts: of the pattern.
        anchored: it is held against whole keys.
        folder: it is about what is below the folders that it matches, and not about these.
    """

    takes: bool
    whole: re.Pattern[str]
    parts: tuple[_Part, ...]
    anchored: bool
    folder: bool

    @classmethod
    def parse(cls, sign: Sign, pattern: str) -> _Rule:
        if not pattern or _UP.search(pattern):
            text = "goes up" if pattern else "is empty"
            raise ConfigError(f"the pattern {pattern!r} {text} and matches no key")
        text = _TIMES.sub("/", pattern)
        text = text.removesuffix(".") if text.endswith("/.") else text
        anchored = text.startswith(("/", "./")) or text == "."
        inner = text.removeprefix(".") if anchored else text
        folder = inner.endswith("/") or (anchored and not inner)
        inner = inner.strip("/")
        if inner.endswith(("/**", "/***")):  # all that is below a folder, said otherwise
            inner, folder = inner.rstrip("*").rstrip("/"), True
        parts = tuple(_Reader(inner, pattern).parts()) if inner else ()
        takes = sign == "+"
        regex = _joined(parts, anchored=anchored)
        below = "/.+" if folder else "" if takes else "(?:/.+)?"
        whole = _compiled(f"{regex}{below}" if parts else ".+", pattern)
        return cls(takes, whole, parts, anchored, folder)

    def matches_all_below(self, name: str) -> bool:
        """Whether it matches whatever is below a folder."""
        if not (self.parts and name):
            return not self.parts
        return self.whole.fullmatch(f"{name}/x" if self.folder else name) is not None

    def may_match_below(self, name: str) -> bool:
        """Whether it may match something below a folder."""
        if not (self.anchored and self.parts and name):
            return True
        names = name.split("/")
        for part, one in zip(self.parts, names, strict=False):
            if part.wide:
                return True
            if not re.fullmatch(part.regex, one, re.DOTALL):
                return False
        return self.folder or len(self.parts) > len(names)


def _joined(parts: tuple[_Part, ...], *, anchored: bool) -> str:
    regexes = [part.regex for part in parts]
    before = "" if anchored else "(?:.*/)?"
    if len(regexes) > 1 and regexes[0] == ".*" and not anchored:
        regexes = regexes[1:]  # as rsync says: also in no folder at all
    return before + "/".join(regexes)


def _compiled(regex: str, pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(regex, re.DOTALL)
    except (re.error, RecursionError, OverflowError) as error:
        raise ConfigError(f"the pattern {pattern!r} is malformed: {error}", hint=_HINT) from None


class _Reader:
    """Reads a pattern from its first sign to its last.

    Args:
        text: the pattern, or what of it is to be read.
        pattern: as it was written, for messages.
        folders: "/" stands between folders.
    """

    def __init__(self, text: str, pattern: str = "", *, folders: bool = True) -> None:
        self._text, self._at, self._pattern = text, 0, pattern or text
        self._folders = folders
        self._one = "[^/]" if folders else "."
        self._wide = False  # something in the present part may match a slash

    def parts(self) -> Iterator[_Part]:
        """Yield the parts; names are one."""
        regex = ""
        while self._at < len(self._text):
            sign = self._take()
            if sign == "/" and self._folders:
                yield _Part(regex, self._wide)
                regex, self._wide = "", False
            else:
                regex += self._sign(sign, 0)
        yield _Part(regex, self._wide)

    def _sign(self, sign: str, depth: int) -> str:
        match sign:
            case "\\":
                meant = self._take("ends with a backslash")
                self._wide = self._wide or meant == "/"
                return re.escape(meant)
            case "*":
                return self._stars()
            case "?":
                return self._one
            case "[":
                return self._set()
            case "{":
                return self._choice(depth)
            case "}":
                raise self._wrong("has a '}' without a '{'")
            case _:
                self._wide = self._wide or (sign == "/" and depth > 0)
                return re.escape(sign)

    def _stars(self) -> str:
        many = len(self._text) - len(self._text[self._at :].lstrip("*")) - self._at
        self._at += many
        self._wide = self._wide or many > 0
        return ".*" if many else f"{self._one}*"

    def _choice(self, depth: int) -> str:
        if found := _REGEX.match(self._text, self._at):
            self._at, self._wide = found.end(), True
            _compiled(found[1], self._pattern)
            return f"(?:{found[1]})"
        if depth == _DEEPEST:
            raise self._wrong(f"has more than {_DEEPEST} '{{' in each other")
        options, regex = [], ""
        while (sign := self._take("has a '{' without a '}'")) != "}":
            if sign == ",":
                options.append(regex)
                regex = ""
            else:
                regex += self._sign(sign, depth + 1)
        return f"(?:{'|'.join([*options, regex])})"

    def _set(self) -> str:
        unclosed = "has a '[' without a ']'"
        excluded = self._text[self._at : self._at + 1] in ("!", "^")
        self._at += excluded
        inside = ""
        while (sign := self._take(unclosed)) != "]" or not inside:
            if sign == "[" and (found := _CLASS.match(self._text, self._at)):
                if found[1] not in _POSIX:
                    raise self._wrong(f"has the unknown class [:{found[1]}:]")
                inside, self._at = inside + _POSIX[found[1]], found.end()
                continue
            low = self._take(unclosed) if sign == "\\" else sign
            inside += re.escape(low)
            if self._text.startswith("-", self._at) and not self._text.startswith("-]", self._at):
                self._at += 1
                high = self._take(unclosed)
                high = self._take(unclosed) if high == "\\" else high
                if high < low:
                    raise self._wrong(f"has the range {low}-{high}, which is empty")
                inside += f"-{re.escape(high)}"
        never = "(?!/)" if self._folders else ""
        return f"{never}[{'^' if excluded else ''}{inside}]"

    def _take(self, missing: str = "") -> str:
        if self._at >= len(self._text):
            raise self._wrong(missing)
        self._at += 1
        return self._text[self._at - 1]

    def _wrong(self, what: str) -> ConfigError:
        return ConfigError(f"the pattern {self._pattern!r} {what}", hint=_HINT)
