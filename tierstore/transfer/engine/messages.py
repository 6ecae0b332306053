"""What passes between the engine's state machine, its feed, its workers and its journal.

The machine gives commands and is told events; every command that is carried out is answered by one
event. `Note` and `Report` are not answered: the first has to be in the journal before any later
command is carried out.
"""

from __future__ import annotations

from dataclasses import dataclass

from tierstore.scan import Kind, LeftOut
from tierstore.transfer.engine.entries import Dead, Entry, Missed, Outcome
from tierstore.transfer.engine.records import Record, Version

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
    missed: tuple[Missed, ...] = ()
    """The sources that did not give it, in the order in which they were asked."""

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
    """Ask source and destination what they know: `Looked`, `Changed` or `Failed`."""

    job: int
    entry: Entry


@dataclass(frozen=True, slots=True)
class Compare:
    """Read a range of both, or of the source alone: `Compared`, `Changed` or `Failed`."""

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
    """Read a part of the source and write it: `Sent`, `Changed` or `Failed`."""

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
    store: str
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
    """What source and destination know; the CRC32Cs are None where a store knows none."""

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
        missed: it is the source that did not do its part; another one may.
    """

    job: int
    reason: str
    fatal: bool = False
    outcome: Outcome = Outcome.FAILED
    missed: bool = False


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
