"""Patterns mean what rsync(1) and rclone's "Filtering" say; where they differ, what we say."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierstore.errors import ConfigError
from tierstore.patterns import EVERYTHING, Selection, Sign, matcher, parse_rules

# (pattern, keys that it matches, keys that it does not), of both "+" and "-" but for folders
BOTH_TOOLS = [
    ("*.jpg", "a.jpg d/a.jpg d/.jpg", "a.jpg2 ajpg jpg"),
    ("file.jpg", "file.jpg d/file.jpg", "afile.jpg d/afile.jpg"),
    ("/file.jpg", "file.jpg", "afile.jpg d/file.jpg"),
    ("/tmp", "tmp", "a/tmp tmp2"),
    ("d/*.jpg", "d/a.jpg e/d/a.jpg", "d/e/a.jpg ad/a.jpg"),
    ("/d/*.jpg", "d/a.jpg", "e/d/a.jpg d/e/a.jpg"),
    ("*/a", "d/a e/d/a", "a"),
    ("d**.jpg", "d.jpg d/e/a.jpg x/d/a.jpg da.jpg", "a.jpg"),
    ("d/**/a", "d/e/a d/e/f/a x/d/e/a", "d/a"),
    ("/**/a", "d/a d/e/a", "a"),
    ("/d/**", "d/a d/e/a", "e/d/a d"),
    ("**", "a d/e/a", ""),
    ("?", "a d/b", "ab d/ab"),
    ("d?a", "dxa", "d/a"),
    ("[a-c]x", "ax cx d/bx", "dx x abx"),
    ("[!a-c]x", "dx", "ax /x x"),
    ("[^a-c]x", "dx d/ex", "ax"),
    ("d[!x]a", "dya", "d/a dxa"),
    ("[]x]", "] x", "y"),
    ("[!]x]", "y", "] x"),
    ("[a-]", "a -", "b"),
    ("[\\]]", "]", "\\ a"),
    ("[\\-x]", "- x", "a \\"),
    ("[*?]", "* ?", "a"),
    ("[[:digit:]_]x", "1x _x", "ax :x"),
    ("[[:upper:]][![:space:]]", "Ab", "ab"),
    ("a\\*b", "a*b", "axb a\\*b"),
    ("a\\?\\[b", "a?[b", "axb"),
    ("a.b", "a.b", "axb"),
    ("a+(b)|^$", "a+(b)|^$", "aa+b"),
    ("ä*", "äx d/ä", "a"),
    ("a,b", "a,b", "a b"),
    ("tmp/", "tmp/a d/tmp/a/b", "tmp d/tmp a"),
    ("/tmp/", "tmp/a tmp/a/b", "d/tmp/a tmp"),
    ("*/", "d/a d/e/a", "a"),
]
RCLONE = [
    ("{a,b}", "a b d/a", "c ab {a,b}"),
    ("*.{jpg,png}", "a.jpg d/a.png", "a.gif a. jpg"),
    ("a{,b}c", "ac abc", "abbc"),
    ("/{a,b/c}/d", "a/d b/c/d", "b/d x/a/d"),
    ("{x,{y,z*}}.t", "x.t y.t z1.t", "a.t"),
    ("{a\\,b,c}", "a,b c", "a b"),
    ("{{[0-9]{2}}}.t", "12.t d/34.t", "1.t"),
    ("/{{.*/}}x", "a/b/x", "x"),
    ("{{(?:ab)+}}", "abab", "aba"),
    ("potato,sausage", "potato,sausage", "potato sausage"),
]
RSYNC = [
    ("**/a", "a d/a d/e/a", "ba"),
    ("d/***", "d/a d/e/a x/d/a", "d a"),
    ("a***b", "ab a/x/b", "a"),
    ("a]b", "a]b", "ab"),
]
OURS = [
    ("./tmp", "tmp", "d/tmp"),
    ("d/./e//a", "d/e/a x/d/e/a", "d/a"),
    ("//a", "a", "d/a"),
    ("./", "a d/a", ""),
    ("/", "a d/a", ""),
    ("d\\/a", "d/a x/d/a", "d"),
    ("[a/]x", "ax", "d/x"),
]


@pytest.mark.parametrize(("pattern", "like", "unlike"), [*BOTH_TOOLS, *RCLONE, *RSYNC, *OURS])
def test_what_a_pattern_matches(pattern: str, like: str, unlike: str) -> None:
    only = Selection([("+", pattern), ("-", EVERYTHING)])
    none = Selection([("-", pattern)])
    for key in like.split():
        assert only.wants(key), key
        assert not none.wants(key), key
    for key in unlike.split():
        assert not only.wants(key), key
        folders = [key[:at] for at, sign in enumerate(key) if sign == "/"]
        assert none.wants(key) or any(map(only.wants, folders)), key


def test_what_is_excluded_goes_with_all_that_is_below() -> None:
    """As rsync does; of rclone's patterns only those that end in "/"."""
    for pattern, key in product(["tmp", "t*", "/d/tmp", "*/tmp"], ["d/tmp/a", "d/tmp/e/a"]):
        assert not Selection([("-", pattern)]).wants(key)
    assert Selection([("-", "/tmp")]).wants("d/tmp/a")


def test_what_is_included_is_that_alone() -> None:
    """As both tools do: "/*" is what lies in the root."""
    only = Selection([("+", "/*"), ("-", EVERYTHING)])
    assert [key for key in ("a", "d/a", "d/e/a") if only.wants(key)] == ["a"]


def test_the_first_rule_that_matches_decides() -> None:
    one: tuple[Sign, str] = ("+", "keep.*")
    other: tuple[Sign, str] = ("-", "*.tmp")
    assert Selection([one, other]).wants("d/keep.tmp")
    assert not Selection([other, one]).wants("d/keep.tmp")
    assert Selection([one, other]).wants("what no rule names")
    assert not Selection([one, ("-", "d")]).wants("d/a")
    assert Selection([one, ("-", "d")]).wants("d/keep.a"), "rules are about objects, not folders"
    assert Selection().wants("a")


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("[z-a]", r"range z-a, which is empty"),
        ("a[", r"'\[' without"),
        ("[]", r"'\[' without"),
        ("[!]", r"'\[' without"),
        ("[a-", r"'\[' without"),
        ("[\\", r"'\[' without"),
        ("{a,b", r"'\{' without"),
        ("{a,[b}", r"'\[' without"),
        ("a}", r"'\}' without"),
        ("a\\", "ends with a backslash"),
        ("[[:foo:]]", r"unknown class \[:foo:\]"),
        ("{{(}}", "malformed"),
        ("{{(?P<a>x)}}{{(?P<a>x)}}", "malformed"),
        ("{" * 5000, "more than"),
        ("", "is empty"),
        ("../a", "goes up"),
        ("a/..", "goes up"),
    ],
)
def test_a_bad_pattern_is_named(pattern: str, said: str) -> None:
    for sign in ("+", "-"):
        with pytest.raises(ConfigError, match=said) as caught:
            Selection([(sign, pattern)])  # type: ignore[list-item]
        assert repr(pattern) in str(caught.value)


def test_names_have_no_folders() -> None:
    like = matcher("layers.*.w[qk]")
    assert like("layers.0.a/b.wq")
    assert not like("layers.0.wv")
    assert matcher("a?b")("a/b")
    assert matcher("{a,b}.*")("b.c")
    assert matcher("a\\[0\\]")("a[0]")
    with pytest.raises(ConfigError, match="z-a"):
        matcher("[z-a]")


def test_a_file_of_rules() -> None:
    text = "# all\n; also said so\n\n  + *.txt \n- *\r\n"
    assert [*parse_rules(text, where="f")] == [("+", "*.txt"), ("-", "*")]
    assert [*parse_rules("- a\n!\n+ b", where="f")] == [("-", "a"), None, ("+", "b")]
    for line in ("*.txt", "+", "-", "+*.txt", "merge f", "! x"):
        with pytest.raises(ConfigError, match=r"^f, line 2: .* is no rule"):
            list(parse_rules(f"- a\n{line}", where="f"))


PARTS = st.sampled_from(["a", "b", "*", "**", "?", "[ab]", "{a,b/c}", "a*", "{{a.}}", "b\\/c"])
PATTERN = st.builds(
    "{}{}{}".format,
    st.sampled_from(["", "/"]),
    st.lists(PARTS, min_size=1, max_size=3).map("/".join),
    st.sampled_from(["", "/"]),
)
KEYS = ["/".join(names) for deep in (1, 2, 3) for names in product("abc", repeat=deep)]


@given(st.lists(st.tuples(st.sampled_from(["+", "-"]), PATTERN), max_size=3))
def test_no_wanted_key_is_below_a_folder_that_need_not_be_looked_at(
    rules: list[tuple[Sign, str]],
) -> None:
    selection = Selection(rules)
    for key in filter(selection.wants, KEYS):
        folders = [key[: at + 1] for at, sign in enumerate(key) if sign == "/"]
        assert all(map(selection.may_want_below, ["", *folders])), (rules, key)


@pytest.mark.parametrize(
    ("rules", "folder"),
    [
        ("- /tmp", "tmp/"),
        ("- tmp", "a/tmp/"),
        ("- tmp/", "a/tmp/b/"),
        ("- a/**", "a/"),
        ("- *", "a/"),
        ("+ /a/*.txt,- **", "b/"),
        ("+ /a/*.txt,- **", "a/b/"),
        ("+ /a/b/,- **", "a/c/"),
        ("+ /*,- /a", "a/"),
    ],
)
def test_folders_that_need_not_be_looked_at(rules: str, folder: str) -> None:
    given = [(rule[0], rule[2:]) for rule in rules.split(",")]
    assert not Selection(given).may_want_below(folder)  # type: ignore[arg-type]
