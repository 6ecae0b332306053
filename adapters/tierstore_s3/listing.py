"""Pages of a listing (ListObjectsV2, Amazon S3 API Reference).

botocore takes 0.1 ms for each object of a page, by a general parser; here it is a tenth of that.
"""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple
from urllib.parse import quote, unquote_plus, urlencode
from xml.etree import ElementTree as ET

from botocore.utils import parse_timestamp

from tierstore.backend import ObjectInfo
from tierstore.http.head import whole_number
from tierstore_s3.xml import check_xml

_LONGEST_TOKEN = 8192
_LONGEST_DATE = 64
_LAST = 253_402_300_800.0  # seconds: the end of the year 9999


class Page(NamedTuple):
    """A page of a listing.

    Attributes:
        found: objects, and folders as objects whose key ends in "/".
        token: what the next page is asked for with; empty after the last one.
    """

    found: list[ObjectInfo]
    token: str


def query_of(prefix: str, after: str, delimiter: str, token: str) -> str:
    """Return the query that asks for a page.

    Args:
        prefix: of the bucket's own keys.
        after: the key behind which to begin; may be empty.
        delimiter: what ends a folder's name; may be empty.
        token: of the page before; empty for the first one.
    """
    # XML cannot hold every sign that a key may have, so keys are asked for percent-encoded.
    wanted = {"list-type": "2", "encoding-type": "url", "prefix": prefix}  # policies may look at it
    more = {"start-after": after, "delimiter": delimiter, "continuation-token": token}
    wanted |= {name: value for name, value in more.items() if value}
    return urlencode(wanted, quote_via=quote, safe="")


def parse_page(body: bytes, root: str) -> Page | None:
    """Return what an answer says, or None if it is no listing.

    Args:
        body: of the answer.
        root: what is taken off the front of every key.
    """
    parser = ET.XMLParser(encoding="utf-8")  # noqa: S314 - what it shall not see is refused
    try:
        parser.feed(check_xml(body, "ListObjectsV2"))
        return _page(parser.close(), root)
    except Exception:  # botocore's parser of times has no type for what it does not understand
        return None


def _page(page: ET.Element, root: str) -> Page:
    space, brace, name = page.tag.rpartition("}")
    space += brace
    more, token = page.findtext(f"{space}IsTruncated") == "true", ""
    if more:
        token = page.findtext(f"{space}NextContinuationToken") or ""
    if len(token) > _LONGEST_TOKEN:
        raise ValueError("no token")
    if name != "ListBucketResult" or (more and not token):
        raise ValueError("no page of a listing")
    plain = page.findtext(f"{space}EncodingType") != "url"

    def key(node: ET.Element, name: str) -> str:
        text = node.findtext(space + name) or ""
        whole = text if plain else unquote_plus(text, errors="strict")
        if not whole.startswith(root):
            raise ValueError("not below the root")
        return whole[len(root) :]

    found = [
        ObjectInfo(
            key(each, "Key"),
            _size(each.findtext(f"{space}Size") or ""),
            _seconds(each.findtext(f"{space}LastModified") or ""),
            tag=each.findtext(f"{space}ETag") or "",
        )
        for each in page.iterfind(f"{space}Contents")
    ]
    folders = page.iterfind(f"{space}CommonPrefixes")
    found += (ObjectInfo(key(each, "Prefix"), 0, 0.0) for each in folders)
    return Page(found, token)


def _size(text: str) -> int:
    size = whole_number(text)
    if size is None:
        raise ValueError("no size")
    return size


def _seconds(date: str) -> float:
    if len(date) > _LONGEST_DATE:
        raise ValueError("no time")
    try:
        when = datetime.fromisoformat(date)
    except ValueError:
        when = None
    seconds: float = (when if when and when.tzinfo else parse_timestamp(date)).timestamp()
    if not 0 <= seconds < _LAST:
        raise ValueError("no time")
    return seconds
