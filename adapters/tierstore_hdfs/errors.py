"""From what HDFS says to what a caller can do about it.

Names of exceptions: "Error Responses", WebHDFS REST API, Apache Hadoop 3.4.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

from tierstore.errors import (
    AccessError,
    AlreadyExistsError,
    BlockedError,
    DeadlineError,
    InvalidKeyError,
    NotFoundError,
    OutOfSpaceError,
    StorageError,
    TierstoreError,
    TransientError,
    TruncatedFileError,
    UnreachableError,
    UnsupportedError,
)
from tierstore.http import Response
from tierstore.http.masking import masked
from tierstore_hdfs.answers import OTHER

STANDBY = "StandbyException"
_LONGEST = 500  # signs of what a server says
_MAKES = ("CREATE", "MKDIRS", "PUT", "RENAME")
_SPACE = "delete old checkpoints, or raise the folder's quota"
_RIGHTS = (
    "give the tier's folder to this user (hdfs dfs -mkdir, -chown), or set user or HADOOP_USER_NAME"
)
_NAME = "HDFS takes no such name: set user or HADOOP_USER_NAME"
_LOGIN = 'give a delegation token as token_file, or a Kerberos ticket by auth = "spnego"'
TICKET = (
    "run kinit, klist shows tickets; pip install 'tierstore[hdfs-kerberos]' brings what reads them"
)
_RENEW = "renew the delegation token in token_file"
_WAIT = "hdfs dfsadmin -safemode get tells whether the namenode takes changes"
_START = "start the namenode, or name its HTTP address in the URL (dfs.namenode.http-address)"
_STATES = "hdfs haadmin -getAllServiceState tells which of them is active"
_CLASH = "a folder has this name, or a file the name of one of its folders"
_NODES = "look at the datanodes: hdfs dfsadmin -report"

Who = Literal["name", "token", "ticket"]
"""What a request says who asks with."""

# The hints for whoever sends a name, in the words of those who do not.
_INSTEAD: dict[Who, dict[str, str]] = {
    "name": {},
    "token": {
        _RIGHTS: "give the tier's folder to the token's user (hdfs dfs -mkdir, -chown)",
        _LOGIN: (
            "put a new delegation token into token_file, or show a Kerberos ticket instead: "
            'auth = "spnego"'
        ),
    },
    "ticket": {
        _RIGHTS: "give the tier's folder to the user whom klist shows (hdfs dfs -mkdir, -chown)",
        _LOGIN: TICKET,
        _RENEW: "the namenode gave this token: run kinit if klist shows no ticket that is valid",
    },
}
_NOBODY = "user=dr.who"  # hadoop.http.staticuser.user
_IGNORED = (
    "this HDFS has no Kerberos and looks at no token: leave token_file out, and set user or "
    "HADOOP_USER_NAME"
)

_BY_KIND: dict[str, tuple[type[TierstoreError], str]] = {
    "FileNotFoundException": (NotFoundError, ""),
    "FileAlreadyExistsException": (AlreadyExistsError, ""),
    "AccessControlException": (AccessError, _RIGHTS),
    "AuthorizationException": (AccessError, _RIGHTS),
    "SecurityException": (AccessError, _LOGIN),
    "AuthenticationException": (AccessError, _LOGIN),
    "InvalidToken": (AccessError, _RENEW),
    "SafeModeException": (TransientError, _WAIT),
    "RetriableException": (TransientError, _WAIT),
    "AlreadyBeingCreatedException": (TransientError, ""),
    "LeaseExpiredException": (TransientError, ""),
    "BlockMissingException": (TransientError, _NODES),
    "NoRouteToHostException": (UnreachableError, _NODES),
    "ConnectException": (UnreachableError, _NODES),
    "SocketTimeoutException": (UnreachableError, _NODES),
    "SocketException": (UnreachableError, _NODES),
    "ConnectTimeoutException": (UnreachableError, _NODES),
    "EOFException": (UnreachableError, _NODES),
    "ClosedChannelException": (UnreachableError, _NODES),
    "NSQuotaExceededException": (OutOfSpaceError, _SPACE),
    "DSQuotaExceededException": (OutOfSpaceError, _SPACE),
    "QuotaExceededException": (OutOfSpaceError, _SPACE),
    "QuotaByStorageTypeExceededException": (OutOfSpaceError, _SPACE),
    "PathComponentTooLongException": (InvalidKeyError, "shorten the run's name"),
    "MaxDirectoryItemsExceededException": (OutOfSpaceError, "delete old checkpoints"),
    "InvalidPathException": (InvalidKeyError, ""),
    "HadoopIllegalArgumentException": (UnsupportedError, ""),
}

_BY_STATUS: dict[int, tuple[type[TierstoreError], str]] = {
    401: (AccessError, _LOGIN),
    408: (UnreachableError, ""),
    502: (UnreachableError, ""),
    504: (UnreachableError, ""),
}

# What HDFS says in plain IOExceptions.
_BY_TEXT: tuple[tuple[str, type[TierstoreError], str], ...] = (
    ("out of the range [", TruncatedFileError, ""),
    ("quota of ", OutOfSpaceError, _SPACE),
    ("could only be written to", TransientError, f"they are down or full; {_NODES}"),
    ("Could not obtain block", TransientError, _NODES),
    ("Unable to create new block", TransientError, _NODES),
    ("All datanodes", TransientError, _NODES),
    ("Failed to find datanode", TransientError, _NODES),
    ("No active nodes", TransientError, _NODES),
    ('parameter "user.name"', AccessError, _NAME),
    ("must both be directories", BlockedError, _CLASH),
    ("Path is not a directory", BlockedError, _CLASH),
    ("is not a directory", NotFoundError, ""),
    ("is not a file", NotFoundError, "it is a folder"),
    ("is in safe mode", TransientError, _WAIT),
    ("InvalidToken", AccessError, _RENEW),
)


def refusal(answer: Response) -> tuple[str, str]:
    """Return the exception's name and text that an answer holds, "" where it holds none."""
    try:
        said = json.loads(answer.body)["RemoteException"]
        text = str(said.get("message", ""))[:_LONGEST].partition("\n")[0]
        return str(said["exception"])[:_LONGEST], masked(text)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "", ""


def answered(answer: Response, *, doing: str, who: Who) -> TierstoreError:
    """Return the error that an answer means; `doing` names the operation, `who` how one asked."""
    kind, said = refusal(answer)
    status = answer.status
    error, hint = _BY_STATUS.get(status, (TransientError if status >= 500 else StorageError, ""))
    if not kind and error is StorageError:
        hint = OTHER  # a 404 too: a wrong port must not look like an empty tier
    error, hint = _BY_KIND.get(kind, (error, hint))
    for text, meaning, advice in _BY_TEXT:
        if text in said:
            error, hint = meaning, advice
            break
    if "(is not a directory)" in said and doing.startswith(_MAKES):
        error, hint = BlockedError, _CLASH
    hint = _INSTEAD[who].get(hint, hint)
    if who == "token" and _NOBODY in said:
        hint = _IGNORED
    message = f"{doing}: {status} {kind}: {said}".rstrip(": ")
    return error(message, hint=hint) if hint else error(message)


def nobody(failed: Mapping[str, TransientError]) -> TransientError:
    """Return the error of namenodes, by address, none of which serves."""
    text = "; ".join(f"{name}: {error.message}" for name, error in failed.items())
    down = all(isinstance(error, UnreachableError | DeadlineError) for error in failed.values())
    if down:
        return UnreachableError(f"no namenode answers: {text}", hint=_START)
    hint = _STATES if len(failed) > 1 else "name all namenodes: hdfs://nn1:9870,nn2:9870/path"
    return TransientError(f"no namenode is active: {text}", hint=hint)


@contextmanager
def naming(url: str, key: str) -> Iterator[None]:
    """Give every error from within the tier's URL and the key."""
    try:
        yield
    except TruncatedFileError as error:
        place = f"{url}/{key}"
        if error.message.startswith(place):
            raise
        raise TruncatedFileError(f"{place}: {error.message}") from error
    except StorageError as error:
        error.url, error.key = url, key
        raise
