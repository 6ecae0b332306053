"""Who asks a namenode, by SPNEGO (RFC 4559), and the cookie that stands for it from then on."""

from __future__ import annotations

import re
import threading
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tierstore.errors import AccessError, ConfigError, StorageError
from tierstore.http import Response, Transport
from tierstore.http.masking import Masked, as_cause, mask, masked
from tierstore_hdfs.errors import TICKET, answered

if TYPE_CHECKING:
    from spnego import ContextProxy

_ASK = "GETHOMEDIRECTORY"  # changes nothing and wants no right
_LEGS = 8  # Kerberos takes one, NTLM two
_COOKIE = re.compile(r'(?<![\w.])hadoop\.auth=("[^"]+"|[^";,\s]+)')
_OFFER = re.compile(r"(?:^|,)\s*Negotiate(?:\s+([A-Za-z0-9+/]+=*))?\s*(?=,|$)", re.IGNORECASE)
_NONE = "an HDFS without Kerberos wants no auth: leave it out, and set user or HADOOP_USER_NAME"
_TOKENS = Masked(r"[A-Za-z0-9+/]{20,}={0,2}")  # base64, in pyspnego's own log
_PROXY = "name the namenode itself: something in between takes headers out of its answers"


class Session:
    """What makes one namenode know this client.

    It does what Hadoop's KerberosAuthenticator does: an exchange on a request of its own, so that
    none is carried out twice, and then the cookie of its answer, which is good for hours.

    Args:
        base: the namenode's URL, up to "/webhdfs/v1".
        user: the principal whose ticket is used; None takes the default one.
        connect: opens what an exchange goes over.

    Raises:
        ConfigError: pyspnego is not installed.
    """

    def __init__(self, base: str, user: str | None, connect: Callable[[], Transport]) -> None:
        self._base = base
        self._name = urlsplit(base).netloc
        self._user = user
        self._connect = connect
        self._library = _pyspnego()
        self._lock = threading.Lock()
        self._cookie = ""

    def cookie(self, refused: str = "") -> str:
        """Return the Cookie header for a request, after an exchange if there is none.

        Args:
            refused: the one that was answered 401; of many threads that were, one renews it.

        Raises:
            AccessError: there is no ticket, or the namenode refuses it, or wants none.
            StorageError: it did not answer as a namenode does.
        """
        with self._lock:
            if self._cookie in ("", refused):
                self._cookie = ""
                self._cookie = self._exchange()
            return self._cookie

    def _exchange(self) -> str:
        # NTLM speaks of the connection, and a used one may be known already: so it is a new one.
        with closing(self._connect()) as transport:
            answer = self._ask(transport)
            if answer.status == 200:
                raise AccessError(f"{self._name} asks for no ticket", hint=_NONE)
            if answer.status != 401:
                raise answered(answer, doing=_ASK, who="ticket")
            if _offer(answer) is None:
                raise AccessError(f"{self._name} does not offer Negotiate", hint=_NONE)
            with self._naming():
                context: ContextProxy = self._library.client(
                    self._user,
                    hostname=urlsplit(self._base).hostname,
                    service="HTTP",
                    protocol="negotiate",
                )
                token = context.step()
            for _ in range(_LEGS):
                answer = self._ask(transport, token)
                token, said = None, _offer(answer)
                if said and not context.complete:
                    with self._naming():
                        token = context.step(b64decode(said))
                if answer.status != 401 or not token:
                    break
        return self._granted(answer, proven=context.complete)

    def _granted(self, answer: Response, *, proven: bool) -> str:
        """Return the cookie with which an exchange ended."""
        if answer.status in (401, 403):
            raise AccessError(f"{self._name} refuses the ticket", hint=TICKET)
        if answer.status != 200:
            raise answered(answer, doing=_ASK, who="ticket")
        if not proven:
            raise AccessError(f"{self._name} does not prove that it is the namenode", hint=_PROXY)
        cookie = _COOKIE.search(answer.headers.get("Set-Cookie", ""))
        if not cookie:
            raise StorageError(f"{self._name} sets no cookie hadoop.auth", hint=_PROXY)
        return cookie[0]

    def _ask(self, transport: Transport, token: bytes | None = None) -> Response:
        sent = {"Authorization": f"Negotiate {b64encode(token).decode()}"} if token else {}
        return transport.request("GET", f"{self._base}/?op={_ASK}", headers=sent, ok=(200,))

    @contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of a malformed token the library's parsers raise many
            text = f"no ticket for {self._name}: {masked(str(error))}"
            raise AccessError(text, hint=TICKET) from as_cause(error)


def _offer(answer: Response) -> str | None:
    """Return what follows "Negotiate" in an answer, "" if nothing does; None without the word."""
    found = _OFFER.search(answer.headers.get("WWW-Authenticate", ""))
    return (found[1] or "") if found else None


def _pyspnego() -> Any:
    try:
        import spnego
    except ModuleNotFoundError as error:
        raise ConfigError(
            'auth = "spnego" needs pyspnego, which is not installed',
            hint="pip install 'tierstore[hdfs-kerberos]'",
        ) from error
    mask("spnego", _TOKENS)
    return spnego
