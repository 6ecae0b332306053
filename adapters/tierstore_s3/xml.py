"""What XML is looked at: a small answer can be made to take all memory when it is parsed."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from tierstore.errors import StorageError, UnreachableError

_CUT_OFF = 3  # XML_ERROR_NO_ELEMENTS of expat
_MOST_SIGNS = 300_000  # a page of a listing has 30,000


def check_xml(body: bytes, doing: str) -> bytes:
    """Return an answer that is small and plain enough to be parsed.

    Args:
        body: of the answer.
        doing: the operation, for errors.

    Raises:
        StorageError: it declares a document type, as no S3 server does, or is not in UTF-8, or has
            far more elements and attributes than any page.
    """
    hidden = b"\0" in body  # UTF-16, in which a document type would be overlooked
    if hidden or b"<!DOCTYPE" in body or body.count(b"<") + body.count(b"=") > _MOST_SIGNS:
        raise StorageError(f"{doing}: the answer is none of S3", hint=NO_S3)
    return body


def check_whole(body: bytes, doing: str) -> None:
    """See that an answer is XML at all: botocore takes one that is not for an error of the server.

    Raises:
        UnreachableError: it was cut off.
        StorageError: it is something else.
    """
    try:
        # S314: what it shall not see was refused.
        ET.fromstring(body, parser=ET.XMLParser(encoding="utf-8"))  # noqa: S314
    except ET.ParseError as error:
        if error.code == _CUT_OFF:
            raise UnreachableError(f"{doing}: the answer was cut off") from None
        raise StorageError(f"{doing}: the answer is none of S3", hint=NO_S3) from None


NO_S3 = "see whether an S3 server answers at this endpoint"
"""What to do about an answer that no S3 server gives."""
