"""One S3 server as boto3's control plane and a data plane of signed, zero-copy requests."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import botocore.exceptions as boto
from botocore import UNSIGNED
from botocore.awsrequest import AWSResponse
from botocore.config import Config
from botocore.credentials import Credentials, ReadOnlyCredentials
from botocore.httpsession import get_cert_path
from botocore.loaders import Loader, create_loader
from botocore.session import Session, get_session

from tierstore.blocks import Buffer
from tierstore.errors import (
    AccessError,
    ConfigError,
    DeadlineError,
    StorageError,
    TierstoreError,
    TransientError,
    UnreachableError,
)
from tierstore.http import Response, Transport
from tierstore.http.masking import Masked, as_cause, mask, masked
from tierstore_s3.address import check_supported, endpoint_path, find_address, region_of
from tierstore_s3.errors import RENEW, RENEWABLE, error_code, failure
from tierstore_s3.options import SMALL, S3Options
from tierstore_s3.signing import quote_key, sign
from tierstore_s3.xml import NO_S3, check_whole, check_xml

_OURS = ("host", "content-length", "user-agent", "accept-encoding", "expect")
_SECRETS = Masked()


class _Body:
    """A body as botocore reads it."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def stream(self) -> list[bytes]:
        return [self._body]


@functools.cache
def _loader(data_path: str | None) -> Loader:
    """Return what reads botocore's descriptions of services: 0.2 s, so once for all clients."""
    return create_loader(data_path)


@dataclass(frozen=True, slots=True)
class _Login:
    """What one look at the environment gave: who we are and where the bucket is."""

    boto: Any
    credentials: Credentials | None
    base: str
    region: str
    service: str

    def frozen(self) -> Credentials | ReadOnlyCredentials | None:
        """The credentials of this moment; refreshes those that can be and are due."""
        return self.credentials and self.credentials.get_frozen_credentials()


class S3Client:
    """Requests to one bucket, by any number of threads.

    botocore finds the credentials, the endpoint and the bucket's address, and writes, signs and
    reads the control plane; its own retries are off, because retrying is policy. All bytes go
    through `Transport`.

    Raises:
        ConfigError: the bucket is of a kind that is not supported.
    """

    def __init__(self, bucket: str, options: S3Options) -> None:
        check_supported(bucket)
        self.bucket = bucket
        self.options = options
        self._lock = threading.Lock()  # held for no longer than to look or to exchange
        self._finding = threading.Lock()  # while credentials are looked for, which may take long
        self._session: Session | None = None
        self._login: _Login | None = None
        self._transport: Transport | None = None
        self._pid = os.getpid()

    def call(self, operation: str, **parameters: object) -> dict[str, Any]:
        """Carry out one operation of the control plane on the bucket.

        Raises:
            TierstoreError: as `tierstore_s3.errors.failure` maps it.
        """
        login = self._current()
        try:
            answer: dict[str, Any] = getattr(login.boto, operation)(
                Bucket=self.bucket, **parameters
            )
        except boto.ClientError as error:
            self._refuse(error, login)
        except boto.BotoCoreError as error:
            _raise(error)
        except TierstoreError:
            raise
        except Exception as error:  # what botocore's parsers raise has no type, but the answer
            text = f"{operation}: botocore cannot read the answer ({type(error).__name__})"
            raise StorageError(text, hint=NO_S3) from None
        return answer

    def request(
        self,
        method: str,
        key: str,
        *,
        query: str = "",
        headers: Mapping[str, str],
        body: Buffer | None = None,
        into: Sequence[memoryview] | None = None,
        ok: Container[int] = (200,),
    ) -> Response:
        """Send one signed request about the object `key` through `Transport.request`."""
        login = self._current()
        url = f"{login.base}{quote_key(key)}{'?' if query else ''}{query}"
        try:
            signed = sign(method, url, headers, login.frozen(), login.region, login.service)
        except boto.BotoCoreError as error:
            _raise(error)
        transport = self._connected()
        answer = transport.request(method, url, headers=signed, body=body, into=into, ok=ok)
        if answer.status not in ok and error_code(answer) in RENEWABLE:
            self._renew(login)
        return answer

    def close(self) -> None:
        """Release all connections. Idempotent; a later request opens new ones."""
        with self._lock:
            transport, self._transport = self._transport, None
            login, self._login = self._login, None
        if transport:
            transport.close()
        if login:
            login.boto.close()

    def _current(self) -> _Login:
        with self._lock:
            if self._pid != os.getpid():  # the connections are those of the process we come from
                self._pid, self._login = os.getpid(), None
            login, transport = self._login, self._transport
        if login is not None and transport is not None:
            return login
        with self._finding:
            found = self._login or self._log_in()
            with self._lock:
                self._login = self._login or found
                self._transport = self._transport or self._connect()
                return self._login

    def _log_in(self) -> _Login:
        options = self.options
        try:
            session = self._session = get_session()
            if options.profile:
                session.set_config_variable("profile", options.profile)
            data_path = session.get_config_variable("data_path")
            session.register_component("data_loader", _loader(data_path))
            client = session.create_client(
                "s3",
                region_name=region_of(session, options.region),
                endpoint_url=options.endpoint_url,
                config=self._config(),
            )
            client.meta.events.register("before-send.s3", self._send)
            mask("botocore", _SECRETS)  # all of it is imported by now
            address = find_address(client, self.bucket)
            credentials = None if options.anonymous else session.get_credentials()
        except (boto.BotoCoreError, ValueError) as error:
            _raise(error)
        return _Login(client, credentials, *address)

    def _config(self) -> Config:
        options = self.options
        return Config(
            signature_version=UNSIGNED if options.anonymous else "s3v4",
            s3={"addressing_style": options.addressing},
            retries={"total_max_attempts": 1, "mode": "standard"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )

    def _send(self, request: Any, **_: object) -> AWSResponse:
        """Send what botocore has written and signed; return the answer as it wants one."""
        given = {name: _text(value) for name, value in request.headers.items()}
        answer = self._connected().request(
            request.method,
            request.url,
            headers={name: v for name, v in given.items() if name.lower() not in _OURS},
            body=request.body or None,
        )
        body = check_xml(answer.body, request.method)
        if body and answer.status < 300:
            check_whole(body, request.method)
        return AWSResponse(request.url, answer.status, dict(answer.headers), _Body(body))

    def _connected(self) -> Transport:
        transport = self._transport
        if transport is None:
            raise StorageError("the backend is closed")
        return transport

    def _trust(self, session: Session) -> str | bool:
        if not self.options.verify:
            return False
        named = self.options.ca_bundle or session.get_config_variable("ca_bundle")
        return str(named or get_cert_path(True))

    def _connect(self) -> Transport:
        options = self.options
        trust = self._trust(self._session or get_session())
        return Transport(
            pool_size=SMALL * options.concurrency,
            deadlines=options.deadlines,
            ca_bundle=trust if isinstance(trust, str) else None,
            verify=options.verify,
        )

    def _refuse(self, error: boto.ClientError, login: _Login) -> NoReturn:
        said, meta = error.response.get("Error", {}), error.response.get("ResponseMetadata", {})
        code = str(said.get("Code", ""))
        if code in RENEWABLE:
            self._renew(login)
        raise self.advised(
            failure(
                meta.get("HTTPStatusCode", 0),
                code,
                str(said.get("Message", "")),
                meta.get("HTTPHeaders", {}),
                doing=error.operation_name,
            )
        ) from None  # botocore's own text repeats the server's

    def advised(self, error: TierstoreError) -> TierstoreError:
        """Return a refusal, with a doubt about the endpoint where it has a path."""
        path = endpoint_path(self._current().base, self.bucket)
        if path and type(error) in (AccessError, StorageError):
            doubt = f"see whether endpoint_url should have the path /{path}"
            error.hint = f"{doubt}; if so, {error.hint}" if error.hint else doubt
        return error

    def _renew(self, used: _Login) -> None:
        """Look for newer credentials where the refused ones came from.

        A job of weeks outlives the token in its credentials file, which others renew in place.

        Raises:
            TransientError: there are some; the request is worth repeating.
        """
        with self._finding:
            if self._login is used:
                fresh = self._log_in()
                if fresh.frozen() == used.frozen():
                    fresh.boto.close()
                    return
                with self._lock:
                    closed = self._login is not used
                    self._login = self._login if closed else fresh
                if closed:
                    fresh.boto.close()
        used.boto.close()
        raise TransientError("the credentials were renewed meanwhile")


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _raise(error: Exception) -> NoReturn:
    """Raise what a failure before any answer means."""
    text, cause = masked(str(error)), as_cause(error)
    wrong = boto.ProfileNotFound | boto.InvalidConfigError | boto.EndpointProviderError | ValueError
    if isinstance(error, wrong):
        raise ConfigError(text) from None  # what it was raised from may show it, too
    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError):
        hint = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile, or anonymous = true"
        raise AccessError(text, hint=hint) from cause
    if isinstance(error, boto.CredentialRetrievalError | boto.TokenRetrievalError | boto.SSOError):
        raise AccessError(text, hint=RENEW) from cause
    if isinstance(error, boto.SSLError) and "CERTIFICATE_VERIFY_FAILED" in text:
        hint = "give the authority's certificate as ca_bundle"
        raise AccessError("the server's certificate is not trusted", hint=hint) from cause
    if isinstance(error, boto.ConnectTimeoutError | boto.ReadTimeoutError):
        raise DeadlineError(text) from cause
    if isinstance(error, boto.HTTPClientError | boto.ConnectionError):
        raise UnreachableError(text) from cause
    raise StorageError(text) from cause
