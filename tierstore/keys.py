"""The names of everything that is stored: the same on every tier.

::

    runs/<run>/launches/<launch:06d>.json
    runs/<run>/commits/<step:012d>-<launch:06d>-<try:02d>.json
    runs/<run>/data/<step:012d>-<launch:06d>-<try:02d>-<nonce>/
        <rank:05d>-<segment:03d>.safetensors
        fragments/<rank:05d>
        staged/<rank:05d>                  the description of a staged shard; on no tier
        manifest-<crc32c:08x>.arrow

A try has two digits up to 99 and then as many as it needs: parsed, attempts are in order, and as
text they are not.
"""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass
from typing import NamedTuple, SupportsIndex

from tierstore.errors import InvalidKeyError

RUNS = "runs/"
LONGEST = 1024
"""Bytes of UTF-8 that a key may have, as on S3."""
_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_ATTEMPT = re.compile(r"([0-9]{12})-([0-9]{6})-([0-9]{2}|[1-9][0-9]{2,11})")
_NONCE = re.compile(r"[0-9a-f]{16}")
_COMPONENT = re.compile(r"(?:\A|/)\.{0,2}(?:/|\Z)")  # that no key may have
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def check_key(key: str) -> str:
    """Return `key` if every backend can hold it.

    Raises:
        InvalidKeyError: it is empty, longer than 1,024 UTF-8 bytes, absolute, has an empty, "." or
            ".." component, or a control character or a lone surrogate.
    """
    if _COMPONENT.search(key):
        raise InvalidKeyError(f"key {key!r} has an empty, '.' or '..' component")
    if _CONTROL.search(key):
        raise InvalidKeyError(f"key {key!r} has a control character")
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise InvalidKeyError(f"key {key!r} is not valid Unicode") from None
    if size > LONGEST:
        raise InvalidKeyError(f"key {key[:60]!r}... is {size} bytes long", hint="1,024 at most")
    return key


def check_run(run: str) -> str:
    """Return `run` if it is a legal run name.

    Raises:
        InvalidKeyError: it is not 1 to 200 letters, digits, ".", "_" or "-", or starts with one of
            these three signs.
    """
    if not _RUN.fullmatch(run):
        raise InvalidKeyError(
            f"run name {run!r} is not legal",
            hint="use letters, digits, '.', '_' and '-', starting with a letter or digit",
        )
    return run


def whole(what: str, value: SupportsIndex) -> int:
    """Return a number of any integer type as an int: a tensor hashes by what it is, not by value.

    Raises:
        InvalidKeyError: it is no integer.
    """
    try:
        return operator.index(value)
    except (TypeError, ValueError, RuntimeError):  # torch has all three for its tensors
        raise InvalidKeyError(f"{what} {value!r} is not a whole number") from None


def _bounded(what: str, value: SupportsIndex, digits: int, hint: str = "") -> int:
    number = whole(what, value)
    if not 0 <= number < 10**digits:
        raise InvalidKeyError(f"{what} {number} is not between 0 and {10**digits - 1}", hint=hint)
    return number


@dataclass(frozen=True, slots=True, order=True)
class Attempt:
    """One try at saving one step. Sorts by step, then launch, then try.

    Attributes:
        step: the training step, below 10**12.
        launch: the launch that saved it, from 1, below 10**6.
        number: the try within step and launch, from 1, below 10**12.
    """

    step: int
    launch: int
    number: int

    def __post_init__(self) -> None:
        bounded = (
            ("step", _bounded("step", self.step, 12)),
            ("launch", _bounded("launch", self.launch, 6, "save under another run name")),
            ("number", _bounded("try", self.number, 12)),
        )
        for name, value in bounded:
            object.__setattr__(self, name, value)

    def __str__(self) -> str:
        return f"{self.step:012d}-{self.launch:06d}-{self.number:02d}"

    @classmethod
    def parse(cls, text: str) -> Attempt:
        """Return the attempt that `str` printed.

        Raises:
            InvalidKeyError: `text` is something else.
        """
        match = _ATTEMPT.fullmatch(text)
        if not match:
            raise InvalidKeyError(f"{text!r} is not an attempt (step-launch-try)")
        return cls(*map(int, match.groups()))


class LaunchId(NamedTuple):
    """A launch. Two that did not see each other may have one number; the nonce tells them apart.

    Attributes:
        number: from 1.
        nonce: 16 hexadecimal digits.
    """

    number: int
    nonce: str


class AttemptId(NamedTuple):
    """An attempt of one launch, as its folder is named: two launches may have one number.

    Attributes:
        attempt: the try.
        nonce: of its launch; empty where a record of format 1 does not say it.
    """

    attempt: Attempt
    nonce: str

    @property
    def step(self) -> int:
        """The training step."""
        return self.attempt.step

    @property
    def launch(self) -> LaunchId:
        """The launch that saved it."""
        return LaunchId(self.attempt.launch, self.nonce)

    def __str__(self) -> str:
        return f"{self.attempt}-{self.nonce}"

    @classmethod
    def parse(cls, text: str) -> AttemptId:
        """Return the identity that `str` printed.

        Raises:
            InvalidKeyError: `text` is something else.
        """
        name, _, nonce = text.rpartition("-")
        if not _NONCE.fullmatch(nonce):
            raise InvalidKeyError(f"{text!r} is not an attempt with its launch's nonce")
        return cls(Attempt.parse(name), nonce)


@dataclass(frozen=True, slots=True)
class RunKeys:
    """The keys of one run."""

    run: str

    def __post_init__(self) -> None:
        check_run(self.run)

    @property
    def root(self) -> str:
        """The prefix of everything of this run."""
        return f"{RUNS}{self.run}/"

    @property
    def launches(self) -> str:
        """The prefix of the launch records."""
        return f"{self.root}launches/"

    @property
    def commits(self) -> str:
        """The prefix of the commits."""
        return f"{self.root}commits/"

    @property
    def data(self) -> str:
        """The prefix of the attempts' folders."""
        return f"{self.root}data/"

    def launch(self, number: int) -> str:
        """The key of a launch record."""
        return f"{self.launches}{_bounded('launch', number, 6):06d}.json"

    def commit(self, attempt: Attempt) -> str:
        """The key of an attempt's commit."""
        return f"{self.commits}{attempt}.json"

    def attempt(self, attempt: Attempt, nonce: str) -> AttemptKeys:
        """The keys of an attempt's files; `nonce` is its launch's 16 hexadecimal digits."""
        if not _NONCE.fullmatch(nonce):
            raise InvalidKeyError(f"{nonce!r} is not a nonce of 16 hexadecimal digits")
        return AttemptKeys(f"{self.rivals(attempt)}{nonce}/")

    def rivals(self, attempt: Attempt) -> str:
        """The prefix of an attempt's files, whosever: rivals differ in the nonce."""
        return f"{self.data}{attempt}-"

    def parse_launch(self, key: str) -> int | None:
        """Return the number of a launch record's key, or None for any other key."""
        name = key.removeprefix(self.launches).removesuffix(".json")
        ours = name.isascii() and name.isdigit() and len(name) == 6
        return int(name) if ours and key == self.launch(int(name)) else None

    def parse_commit(self, key: str) -> Attempt | None:
        """Return the attempt of a commit's key, or None for any other key."""
        match = _ATTEMPT.fullmatch(key.removeprefix(self.commits).removesuffix(".json"))
        attempt = Attempt(*map(int, match.groups())) if match else None
        return attempt if attempt is not None and key == self.commit(attempt) else None

    def parse_data(self, prefix: str) -> AttemptId | None:
        """Return whose folder of data it is, or None for any other prefix."""
        try:
            return AttemptId.parse(prefix.removeprefix(self.data).rstrip("/"))
        except InvalidKeyError:
            return None


_PART = re.compile(
    rf"(?P<root>(?:.*/)?)(?:(?P<commits>commits)/(?P<committed>{_ATTEMPT.pattern})\.json"
    rf"|(?P<data>data)/(?P<attempt>{_ATTEMPT.pattern})-{_NONCE.pattern}/.+"
    r"|(?P<launches>launches)/[0-9]{6}\.json)"
)


class RunPart(NamedTuple):
    """What a key is of a run, wherever the run lies.

    Attributes:
        root: the prefix of everything of the run; empty for a key that is below it.
        kind: "commits", "data" or "launches".
        group: the prefix of the data that it is part of or that a commit is of, or `launches`.
    """

    root: str
    kind: str
    group: str

    @property
    def launches(self) -> str:
        """The prefix of the run's launch records."""
        return f"{self.root}launches/"

    @property
    def commit(self) -> str:
        """The key of the commit that it is or is data of."""
        return f"{self.root}commits/{self.group.rpartition('/')[2][:-1]}.json"


def commit_of(key: str) -> tuple[str, Attempt]:
    """Return the run and the attempt of the key of a commit.

    Raises:
        InvalidKeyError: it is another key.
    """
    run = key.removeprefix(RUNS).partition("/")[0]
    attempt = RunKeys(run).parse_commit(key)
    if attempt is None:
        raise InvalidKeyError(f"{key!r} is not the key of a commit")
    return run, attempt


def parse_part(key: str) -> RunPart | None:
    """Return what a key is of a run, or None for any other key."""
    match = _PART.fullmatch(key)
    if match is None:
        return None
    root, kind = match["root"], match["commits"] or match["data"] or match["launches"]
    attempt = match["committed"] or match["attempt"]
    return RunPart(root, kind, f"{root}data/{attempt}-" if attempt else f"{root}launches/")


@dataclass(frozen=True, slots=True)
class AttemptKeys:
    """The keys of one attempt's files, all below `root` (which ends in "/")."""

    root: str

    @property
    def fragments(self) -> str:
        """The prefix of the fragments."""
        return f"{self.root}fragments/"

    def fragment(self, rank: int) -> str:
        """The key of a rank's fragment."""
        return f"{self.fragments}{_bounded('rank', rank, 5):05d}"

    def staged(self, rank: int) -> str:
        """The key of the description of a rank's shard, where it is staged."""
        return f"{self.root}staged/{_bounded('rank', rank, 5):05d}"

    def segment(self, name: str) -> str:
        """The key of a segment, from its name in the manifest (see `segment_name`)."""
        return f"{self.root}{name}"

    def manifest(self, crc32c: int) -> str:
        """The key of the manifest whose bytes have this CRC32C."""
        return f"{self.root}manifest-{crc32c:08x}.arrow"


def segment_name(rank: int, index: int) -> str:
    """The name of a rank's segment, as the manifest holds it."""
    return f"{_bounded('rank', rank, 5):05d}-{_bounded('segment', index, 3):03d}.safetensors"
