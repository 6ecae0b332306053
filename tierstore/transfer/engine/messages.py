"""What passes between the engine's state machine, its feed, its workers and its journal.

The machine gives commands and is told events; every command that is carried out is answered by one
event. `Note` and `Report` are not answered: the first has to be in the journal before any later
command is carried out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from tierstore.scan import Kind, LeftOut
from tierstore.transfer.engine.records import Record, Version


@dataclass(frozen=True, slots=True)
class Entry:
    """One object to move, as it was listed.

    Attributes:
        key: at the source.
        version: of the source's object.
        target: of what the destination has under that name; None for nothing.
        group: what it is part of, as a prefix of keys: the data of a checkpoint, or the launches
            of a run; empty for none.
        seals: for a commit, the groups that it relies on, its data first: all of them arrive
            before it does.
        blocks: the CRC32Cs of its 4 MiB blocks, where its checkpoint's manifest says them.
        partial: it is the commit of some ranks, to be joined with those of the others.
        trouble: why it cannot be moved, if that is known already.
        priority: of those that wait the highest is begun first.
    """

    key: str
    version: Version
    target: Version | None = None
    group: str = ""
    seals: tuple[str, ...] = ()
    blocks: tuple[int, ...] = field(default=(), repr=False)
    partial: bool = False
    trouble: str = ""
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Dead:
    """A checkpoint that was deleted at the source, and has data there still.

    Attributes:
        commit: the key of its tombstone.
        group: the prefix of its data.
    """

    commit: str
    group: str


Item = Entry | Dead | LeftOut
"""What a feed gives."""


class Outcome(Enum):
    """How an object ended."""

    COPIED = "copied"
    SAME = "same"
    """It was there already and is identical."""
    KEPT = "kept"
    """The destination has something else there, which was left alone as asked."""
    WAITING = "waiting"
    """It arrived, and becomes a checkpoint once the parts of other nodes have arrived as well."""
    LEFT_OUT = "left_out"
    """It is no object, or no key of the destination can name it."""
    BLOCKED = "blocked"
    """What a mirror has in its place, and the original has not, has to go first."""
    FAILED = "failed"

    @property
    def is_nothing(self) -> bool:
        """Whether there was no object at all."""
        return self is Outcome.LEFT_OUT


# Commands


@dataclass(frozen=True, slots=True)
class Note:
    """Append a record to the journal."""

    record: Record


@dataclass(frozen=True, slots=True)
class Report:
    """Tell how an object ended."""

    key: str
    outcome: Outcome
    size: int
    reason: str = ""
    asked: bool = False
    """It was left out because somebody asked for that."""

    @classmethod
    def of(cls, left: LeftOut) -> Report:
        """Return what to tell of something that nobody can move."""
        failed = left.kind is Kind.UNREADABLE
        outcome = Outcome.FAILED if failed else Outcome.LEFT_OUT
        return cls(left.name, outcome, 0, left.why, left.kind is Kind.LINK)


@dataclass(frozen=True, slots=True)
class More:
    """Take some more of the feed: `Fed` or `Broken`."""


@dataclass(frozen=True, slots=True)
class Try:
    """Find out whether an object can be read, and has a place to go to: `Tried` or `Failed`."""

    job: int
    entry: Entry


@dataclass(frozen=True, slots=True)
class Look:
    """Ask both ends what they know: `Looked`, `Changed` or `Failed`."""

    job: int
    entry: Entry


@dataclass(frozen=True, slots=True)
class Compare:
    """Read a range of both ends, or of the source alone: `Compared` or `Failed`."""

    job: int
    entry: Entry
    index: int
    offset: int
    length: int
    both: bool


@dataclass(frozen=True, slots=True)
class Copy:
    """Copy a whole small object and verify it: `Copied`, `Changed`, `Conflicted` or `Failed`."""

    job: int
    entry: Entry
    replace: bool


@dataclass(frozen=True, slots=True)
class Open:
    """Begin an upload or, with a token, go on with one: `Opened`, `Gone` or `Failed`."""

    job: int
    entry: Entry
    token: str


@dataclass(frozen=True, slots=True)
class Send:
    """Read a part of the source and write it: `Sent` or `Failed`."""

    job: int
    entry: Entry
    index: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Commit:
    """Make an upload visible: `Committed`, `Short`, `Changed`, `Conflicted` or `Failed`."""

    job: int
    entry: Entry
    crc: int
    replace: bool


@dataclass(frozen=True, slots=True)
class Check:
    """Read a part back from the destination: `Checked` or `Failed`."""

    job: int
    entry: Entry
    index: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Discard:
    """Free what an upload holds at the destination: `Discarded`, whether it could or not.

    With an empty token, free every upload of that key: an earlier life may have begun one and been
    killed before it noted the token.
    """

    job: int
    key: str
    size: int
    token: str


@dataclass(frozen=True, slots=True)
class Unite:
    """Commit what some ranks wrote with what the others did: `United` or `Failed`."""

    job: int
    entry: Entry


@dataclass(frozen=True, slots=True)
class Remove:
    """Delete an object at the source; a commit becomes a tombstone: `Removed` or `Failed`.

    Attributes:
        job: of which object.
        entry: the object.
        only_link: only if it is a link.
        dry: only look whether it would be.
    """

    job: int
    entry: Entry
    only_link: bool = False
    dry: bool = False


@dataclass(frozen=True, slots=True)
class Sweep:
    """Delete what a deleted checkpoint has left at the source: `Removed` or `Failed`."""

    job: int
    dead: Dead


@dataclass(frozen=True, slots=True)
class Wait:
    """Give those who still read what was deleted the time they were promised: `Waited`."""


Task = Try | Look | Compare | Copy | Open | Send | Commit | Check | Discard | Unite | Remove | Sweep
Command = Note | Report | More | Wait | Task


# Events


@dataclass(frozen=True, slots=True)
class Fed:
    """More objects, commits behind all that they rely on; `last` if there are no others."""

    entries: tuple[Entry, ...]
    last: bool
    dead: tuple[Dead, ...] = ()
    left_out: tuple[LeftOut, ...] = ()


@dataclass(frozen=True, slots=True)
class Broken:
    """The feed, or the whole, cannot go on."""

    reason: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Somebody wants it to stop."""


@dataclass(frozen=True, slots=True)
class Joined:
    """A worker is there that is given so many commands at once."""

    worker: str
    width: int


@dataclass(frozen=True, slots=True)
class Left:
    """A worker is gone; what was under way there is not answered any more."""

    worker: str


@dataclass(frozen=True, slots=True)
class Tried:
    """It could be copied."""

    job: int


@dataclass(frozen=True, slots=True)
class Looked:
    """What both ends know; the CRC32Cs are None where a store knows none."""

    job: int
    source_crc: int | None
    target: Version | None
    target_crc: int | None


@dataclass(frozen=True, slots=True)
class Compared:
    """The CRC32Cs of a range; None for a target that was not to be read."""

    job: int
    index: int
    source_crc: int
    target_crc: int | None


@dataclass(frozen=True, slots=True)
class Flushing:
    """The command was carried out; its answer follows once the destination has it for good."""

    job: int


@dataclass(frozen=True, slots=True)
class Copied:
    """The object is there, verified."""

    job: int
    target: Version


@dataclass(frozen=True, slots=True)
class Opened:
    """The upload takes parts; it holds those of `done`, (offset, length) each."""

    job: int
    token: str
    done: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Gone:
    """There is no such upload any more: it was committed, aborted, or has expired."""

    job: int


@dataclass(frozen=True, slots=True)
class Sent:
    """The destination holds the part; `checked` if that was read back from it."""

    job: int
    index: int
    crc: int
    checked: bool = False


@dataclass(frozen=True, slots=True)
class Committed:
    """The object is visible."""

    job: int
    target: Version


@dataclass(frozen=True, slots=True)
class Short:
    """The destination has lost parts that it had taken."""

    job: int


@dataclass(frozen=True, slots=True)
class Checked:
    """What the destination holds of a part has this CRC32C."""

    job: int
    index: int
    crc: int


@dataclass(frozen=True, slots=True)
class Changed:
    """The source's object is not the one that was listed, or its bytes arrived otherwise.

    Attributes:
        version: what the source has now.
        why: the reason to give when it was tried often enough; by default that it changes.
    """

    job: int
    version: Version
    why: str = ""


@dataclass(frozen=True, slots=True)
class Conflicted:
    """The destination has got something else under that name."""

    job: int


@dataclass(frozen=True, slots=True)
class Discarded:
    """The upload is gone, or could not be freed."""

    job: int


@dataclass(frozen=True, slots=True)
class United:
    """All ranks are committed, by an object of this version; None if others are missing."""

    job: int
    target: Version | None


@dataclass(frozen=True, slots=True)
class Removed:
    """The source has it no more.

    Attributes:
        job: of which object.
        changed: it has something newer, which stays.
        kept: it has it still, as was wanted.
    """

    job: int
    changed: bool = False
    kept: bool = False


@dataclass(frozen=True, slots=True)
class Waited:
    """Readers had their time."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A command could not be carried out.

    Attributes:
        job: of which object.
        reason: why.
        fatal: others will not be, either.
        outcome: of the object.
    """

    job: int
    reason: str
    fatal: bool = False
    outcome: Outcome = Outcome.FAILED


Answer = (
    Tried
    | Looked
    | Compared
    | Copied
    | Opened
    | Gone
    | Sent
    | Committed
    | Short
    | Checked
    | Changed
    | Conflicted
    | Discarded
    | United
    | Removed
    | Failed
)
Event = Fed | Broken | Stop | Waited | Flushing | Joined | Left | Answer
