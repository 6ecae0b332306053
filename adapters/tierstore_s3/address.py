"""Where a bucket is and how its requests are signed, by botocore's rules.

They are read off a request that botocore makes and that is stopped just before it would be sent.
(Its presigned URLs follow other rules.)
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn
from urllib.parse import urlsplit

from botocore.session import Session

from tierstore.errors import ConfigError
from tierstore.registry import CREDENTIALS_HINT

_PLACE = "tierstore-place"
_INSTEAD = "give the bucket itself, or an access point of one region"
_UNSUPPORTED = (
    (re.compile(r"--x-s3\Z"), "directory bucket"),
    (re.compile(r"--xa-s3\Z"), "access point of a directory bucket"),
    (re.compile(r"\.mrap\Z"), "multi-region access point"),
)
_CUT = re.compile(r"\Aarn:.*:(?:accesspoint|outpost)\Z")


class S3Address(NamedTuple):
    """Where a bucket is.

    Attributes:
        base: the URL before every key.
        region: to sign for; empty only where nothing is signed.
        service: to sign for.
    """

    base: str
    region: str
    service: str


class _StoppedError(Exception):
    pass


@dataclass
class _Watch:
    url: str = ""
    signing: dict[str, Any] = field(default_factory=dict)
    signed: bool = False

    def sign(self, request: Any, signature_version: object, **_: object) -> None:
        self.signing = dict(request.context.get("signing", {}))
        self.signed = isinstance(signature_version, str)  # UNSIGNED is no text
        if self.signed and not self.signing.get("region"):
            raise _StoppedError  # before botocore asks for a session

    def send(self, request: Any, **_: object) -> NoReturn:
        self.url = request.url
        raise _StoppedError


def check_supported(bucket: str) -> None:
    """Refuse kinds of addresses whose requests are signed in a way that only botocore knows.

    Raises:
        ConfigError: it is one, or an ARN of which a URL's host has only a part.
    """
    if _CUT.search(bucket):
        text = f"the ARN in s3://{bucket}/... ends at a slash"
        raise ConfigError(text, hint="write colons instead of the slashes within it")
    for name, kind in _UNSUPPORTED:
        if name.search(bucket):
            raise ConfigError(f"{bucket!r} is a {kind}, which is not supported", hint=_INSTEAD)


def find_address(client: Any, bucket: str) -> S3Address:
    """Return where botocore's `client` would send a request about `bucket`.

    Raises:
        ConfigError: it would be signed otherwise than by Signature Version 4, or holds a secret.
    """
    watch, events = _Watch(), client.meta.events
    handlers = {"before-sign.s3.HeadObject": watch.sign, "before-send.s3.HeadObject": watch.send}
    for event, handler in handlers.items():
        events.register_first(event, handler, unique_id=_PLACE + event)
    try:
        client.head_object(Bucket=bucket, Key=_PLACE)
    except _StoppedError:
        pass
    finally:
        for event in handlers:
            events.unregister(event, unique_id=_PLACE + event)
    region = watch.signing.get("region", "")
    if watch.signed and not region:
        text = f"requests about {bucket!r} need a signature that is not supported"
        raise ConfigError(text, hint=_INSTEAD)
    base = watch.url.partition("?")[0].removesuffix(_PLACE)
    if "@" in urlsplit(base).netloc:
        raise ConfigError("the endpoint's URL holds a user or password", hint=CREDENTIALS_HINT)
    return S3Address(base, region, watch.signing.get("signing_name", "s3"))


def endpoint_path(base: str, bucket: str) -> str:
    """Return the path of the endpoint itself, which most have not, without slashes around."""
    return urlsplit(base).path.strip("/").removesuffix(bucket).strip("/")


def region_of(session: Session, given: str | None) -> str | None:
    """Return the region that is asked for; None leaves it to botocore.

    A variable that is empty is none, for botocore would make `https://s3..amazonaws.com` of it.
    """
    said = session.get_config_variable("region")
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        given = given or os.environ.get(name)
    given = given or said or session.get_scoped_config().get("region")
    return given or ("us-east-1" if said is not None else None)
