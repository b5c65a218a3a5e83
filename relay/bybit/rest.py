"""One reading of Bybit's list of instruments, on a leash: whatever hangs, drips or never ends."""

import os
import re
import ssl
import threading
from collections.abc import Iterator, Sequence
from time import monotonic
from types import SimpleNamespace
from typing import Any

from pybit.exceptions import FailedRequestError, InvalidRequestError
from pybit.unified_trading import HTTP
from requests.adapters import HTTPAdapter

from relay.bybit.dial import describe, interrupt
from relay.bybit.instruments import NotWhole, Whole, read_list
from relay.log import shorten

STEP_TIMEOUT = 10  # seconds for TCP, TLS, and each piece of an answer
# Bytes of an answer: all instruments of spot are one of about 1 MB; one with an error is a page of HTML.
MAX_BODY, MAX_ERROR_BODY = 16 << 20, 64 << 10
POLL = 0.2  # seconds after which a wait looks whether the program ends
REFUSED = 403  # HTTP: too many requests, or the wrong region


class Unavailable(Exception):
    """The list could not be read. Its text is the reason. refused: Bybit asks to stay away for a while."""

    def __init__(self, reason: str, refused: bool = False) -> None:
        super().__init__(reason)
        self.refused = refused


class TooLong(Exception):
    """An answer has no end."""


class Reading:
    """Reads the list once, on a thread of its own, which ends by itself or is cut off by abandon().

    The thread writes _outcome before it sets _done, and nothing afterwards: whoever has seen _done may read it.

    api_url: the base URL; "" = Bybit's own. coins: base coins, for option.
    """

    def __init__(self, category: str, testnet: bool, api_url: str, coins: Sequence[str]) -> None:
        self._category, self._coins = category, coins
        # No retries of pybit's own: they sleep until a time that the answer names, which may be any.
        self._http = HTTP(testnet=testnet, timeout=STEP_TIMEOUT, retry_codes={-1})
        self._http.endpoint = api_url or self._http.endpoint
        self._http.client.verify = trusted()
        self._leash = Leash()
        for scheme in ("https://", "http://"):
            self._http.client.mount(scheme, self._leash)
        self._done = threading.Event()
        self._outcome: Whole | Exception = Unavailable("no answer")
        self._thread = threading.Thread(target=self._run, name="Instruments reading", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            raise Unavailable(f"no thread to be had: {error}") from error

    @property
    def alive(self) -> bool:
        """Whether its thread has not ended. Any thread."""
        return self._thread.is_alive()

    def wait(self, seconds: float, stop: threading.Event) -> Whole | None:
        """The list; None = `stop` was set. Raises Unavailable. The thread that made it."""
        deadline = monotonic() + seconds
        while not self._done.wait(min(POLL, max(0.0, deadline - monotonic()))):
            if stop.is_set():
                self.abandon()
                return None
            if monotonic() >= deadline:
                self.abandon()
                raise Unavailable(f"no whole answer within {seconds:g} s")
        if isinstance(self._outcome, Exception):
            raise reason(self._outcome, self._http.endpoint) from self._outcome
        return self._outcome

    def abandon(self) -> None:
        """Ends what the thread waits for, if it waits for a connection. A name that does not resolve takes longer."""
        self._leash.cut()

    def _run(self) -> None:
        try:
            self._outcome = read_list(self._http.get_instruments_info, self._category, self._coins)
        except Exception as error:  # pybit and requests raise what they like: KeyError, ValueError
            self._outcome = error
        self._done.set()
        self._http.client.close()


class Leash(HTTPAdapter):  # type: ignore[misc,unused-ignore]
    """requests' transport, which another thread can cut, and whose answers have an end."""

    def __init__(self) -> None:
        super().__init__()
        self._is_cut = False
        self._connection: Any = None  # urllib3's, set before anything is opened
        self._opened: Any = None  # its socket, which it forgets while an answer without a length is read

    def cut(self) -> None:
        """Ends the connection, and allows no other. Any thread; never blocks."""
        self._is_cut = True  # before the look at the connection: see _note()
        for sock in (getattr(self._connection, "sock", None), self._opened):
            end(sock)

    def get_connection_with_tls_context(self, *arguments: Any, **options: Any) -> Any:
        """Overridden: notes each connection as soon as it is one."""
        pool = super().get_connection_with_tls_context(*arguments, **options)
        note, kind = self._note, type(pool).ConnectionCls

        class Noted(kind):  # type: ignore[misc,valid-type]
            def connect(self) -> None:
                note(self)
                super().connect()
                note(self)  # what was cut while its socket was not there yet

        pool.ConnectionCls = Noted
        return pool

    def send(self, *arguments: Any, **options: Any) -> Any:
        """Overridden: the answer is bounded, and its encoding is not guessed, which takes seconds for a long one."""
        response = super().send(*arguments, **options)
        response.raw = Bounded(response.raw, response.status_code != 200)
        response.encoding = "utf-8"
        return response

    def _note(self, connection: Any) -> None:
        self._connection, self._opened = connection, connection.sock
        if self._is_cut:
            end(self._opened)
            raise ConnectionAbortedError("cut off")


class Bounded:
    """The raw answer of urllib3, not read beyond a size. is_error: only its beginning is of interest."""

    def __init__(self, raw: Any, is_error: bool) -> None:
        self._raw, self._is_error = raw, is_error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)

    def stream(self, *arguments: Any, **options: Any) -> Iterator[bytes]:
        """Overridden. Raises TooLong."""
        size = 0
        for piece in self._raw.stream(*arguments, **options):
            size += len(piece)
            if size > (MAX_ERROR_BODY if self._is_error else MAX_BODY):
                self._raw.close()
                if self._is_error:
                    return
                raise TooLong
            yield piece


def end(sock: Any) -> None:
    """Ends what another thread waits for on this socket; None = there is none. TLS inside a proxy's TLS is not one
    itself, but has one.
    """
    interrupt(SimpleNamespace(sock=getattr(sock, "socket", sock)))


def trusted() -> str | bool:
    """The certificate authorities for REST: those that websocket-client trusts. requests has a list of its own, which
    would lack that of a proxy.
    """
    paths = ssl.get_default_verify_paths()
    return os.environ.get("WEBSOCKET_CLIENT_CA_BUNDLE") or paths.cafile or paths.capath or True


def reason(error: Exception, url: str) -> Unavailable:
    """Why a reading failed, for the operator; without a password that a proxy's URL may hold."""
    if isinstance(error, FailedRequestError):
        if error.status_code == REFUSED:
            hint = "Bybit refuses this address: too many requests, or its region"
            return Unavailable(f"HTTP {REFUSED} ({hint})", refused=True)
        # pybit's own code for what it could not parse
        text = "the answer is not JSON" if error.status_code == 409 else f"HTTP {error.status_code}"
        return Unavailable(text)
    if isinstance(error, InvalidRequestError):
        return Unavailable(f"retCode {error.status_code}: {shorten(error.message)}")
    if isinstance(error, NotWhole):
        return Unavailable(str(error))
    if isinstance(error, TooLong):
        return Unavailable(f"the answer has more than {MAX_BODY >> 20} MiB")
    if isinstance(error, AttributeError | KeyError | TypeError):
        return Unavailable("the answer is not of Bybit's form")
    cause: BaseException = error
    while below := cause.__cause__ or cause.__context__:  # requests' own text names its objects
        cause = below
    return Unavailable(re.sub(r"//[^/@\s]*@", "//…@", describe(cause, url)))
