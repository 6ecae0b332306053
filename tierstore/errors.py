"""Every error tierstore raises.

Read the tree as the list of outcomes a caller can meet::

    TierstoreError
    |- ConfigError              the configuration or a URL is wrong
    |- InvalidKeyError          a key, run or step is not a legal name
    |- ModelError               a number is out of range, or points are missing
    |- StorageError             a tier answered, or failed to answer, about one key
    |  |- NotFoundError         the key does not exist
    |  |- AlreadyExistsError    an if-absent create lost to an existing object
    |  |- AccessError           the credentials are missing, wrong, expired or not enough
    |  |- OutOfSpaceError       the tier is full, over quota, or over a file-size limit
    |  |- UnsupportedError      this backend cannot do what was asked
    |  |  `- BlockedError       a folder has the key's place, or a file that of one of its folders
    |  `- TransientError        trying again may help
    |     |- DamagedInTransitError the bytes that arrived are not the bytes that were sent
    |     |- ThrottledError     the tier asks for fewer requests
    |     |- UnreachableError   no connection, or it was lost
    |     `- DeadlineError      a connect, stall or total deadline passed
    |- IntegrityError           stored bytes are not what was written
    |  |- CorruptBlockError     no tier holds a good copy of a block
    |  |- TruncatedFileError    a stored file has the wrong size
    |  `- FormatError           a file cannot be parsed
    |     `- NewerFormatError   ... because a newer tierstore wrote it
    `- CheckpointError          a save or restore could not be carried out
       |- CheckpointNotFoundError   no complete checkpoint matches
       |- UnknownNameError      the checkpoint has nothing of this name
       |- IncompleteError       ranks or bytes are missing; nothing was committed
       |- AttemptDeletedError   the attempt was deleted while it was being written or read
       |- PlanError             the state dict cannot be saved or restored as it is
       `- UnsafePickleError     it holds pickled objects and the caller did not allow them
"""

from __future__ import annotations

from tierstore.text import printable

__all__ = [
    "AccessError",
    "AlreadyExistsError",
    "AttemptDeletedError",
    "BlockedError",
    "CheckpointError",
    "CheckpointNotFoundError",
    "ConfigError",
    "CorruptBlockError",
    "DamagedInTransitError",
    "DeadlineError",
    "FormatError",
    "IncompleteError",
    "IntegrityError",
    "InvalidKeyError",
    "ModelError",
    "NewerFormatError",
    "NotFoundError",
    "OutOfSpaceError",
    "PlanError",
    "StorageError",
    "ThrottledError",
    "TierstoreError",
    "TransientError",
    "TruncatedFileError",
    "UnknownNameError",
    "UnreachableError",
    "UnsafePickleError",
    "UnsupportedError",
]


class TierstoreError(Exception):
    """The base of all errors.

    Args:
        message: what happened, naming the thing it happened to.
        hint: the next step a person can take, one sentence, or empty.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return printable(f"{self.message} ({self.hint})" if self.hint else self.message)

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only state survives pickling: errors cross process groups.
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(
    cls: type[TierstoreError], args: tuple[object, ...], state: dict[str, object]
) -> TierstoreError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class ConfigError(TierstoreError):
    """The configuration file, an option or a URL is wrong."""


class InvalidKeyError(TierstoreError, ValueError):
    """A key, run name, step or rank is not a legal name."""


class ModelError(TierstoreError, ValueError):
    """The storage-time model was given a number outside its domain, or too few measured points."""


class StorageError(TierstoreError):
    """A tier answered, or failed to answer, about one key.

    Args:
        message: what happened.
        url: the tier's root URL, without credentials.
        key: the key below the root, or empty.
        hint: the next step.
        retry_after: seconds the server asks to wait, or None.
    """

    def __init__(
        self,
        message: str,
        *,
        url: str = "",
        key: str = "",
        hint: str = "",
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.url = url
        self.key = key
        self.retry_after = retry_after

    def __str__(self) -> str:
        place = "/".join(
            part.strip("/") if i else part.rstrip("/")
            for i, part in enumerate((self.url, self.key))
            if part
        )
        text = f"{place}: {self.message}" if place else self.message
        return printable(f"{text} ({self.hint})" if self.hint else text)


class NotFoundError(StorageError, FileNotFoundError):
    """The key does not exist on this tier."""


class AlreadyExistsError(StorageError, FileExistsError):
    """An if-absent create lost: the key exists already."""


class AccessError(StorageError, PermissionError):
    """The credentials are missing, wrong, expired or not enough."""


class OutOfSpaceError(StorageError):
    """The tier is full, over quota, or over a file-size limit."""


class UnsupportedError(StorageError):
    """This backend cannot do what was asked; see its capabilities."""


class BlockedError(UnsupportedError):
    """A folder has the key's place, or a file has the place of one of its folders."""


class TransientError(StorageError):
    """Trying again may help."""


class DamagedInTransitError(TransientError):
    """The server says that the bytes that arrived are not the bytes that were sent."""


class ThrottledError(TransientError):
    """The tier asks for fewer requests."""


class UnreachableError(TransientError):
    """No connection could be made, or it was lost."""


class DeadlineError(TransientError, TimeoutError):
    """A connect, stall or total deadline passed."""


class IntegrityError(TierstoreError):
    """Stored bytes are not what was written."""


class CorruptBlockError(IntegrityError):
    """No tier holds a good copy of a block.

    Args:
        file: the key of the file.
        block: the index of the 4 MiB block.
        tiers: what was tried, in order, each with its outcome.
    """

    def __init__(self, file: str, block: int, tiers: list[str]) -> None:
        tried = "; ".join(tiers)
        super().__init__(
            f"{file}: block {block} is damaged on every tier (tried {tried})",
            hint="restore an older step, or copy the file back from a backup",
        )
        self.file = file
        self.block = block
        self.tiers = tiers


class TruncatedFileError(IntegrityError):
    """A stored file has the wrong size."""


class FormatError(IntegrityError):
    """A file cannot be parsed."""


class NewerFormatError(FormatError):
    """A newer tierstore wrote this file."""


class CheckpointError(TierstoreError):
    """A save or restore could not be carried out."""


class CheckpointNotFoundError(CheckpointError):
    """No complete checkpoint matches."""


class UnknownNameError(CheckpointError, KeyError):
    """The checkpoint has no tensor and no value of this name."""


class IncompleteError(CheckpointError):
    """Ranks or bytes are missing; nothing was committed."""


class AttemptDeletedError(CheckpointError):
    """The attempt was deleted while it was being written or read."""


class PlanError(CheckpointError):
    """The state dict cannot be saved or restored as it is."""


class UnsafePickleError(CheckpointError):
    """The checkpoint holds pickled objects and the caller did not allow them."""
