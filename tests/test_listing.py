"""The thread Instruments against the stand-in's REST, whatever that answers."""

import contextlib
import json
import logging
import socket
import threading
import time
from contextlib import ExitStack

import pytest
from vocabulary import eventually

from relay.bybit import listing
from relay.bybit.listing import MAX_ABANDONED, Instruments, Timing, read_once, until_next
from relay.bybit.rest import Unavailable, reason
from sandbox.bybit import Bybit, RestScript
from sandbox.redis import free_port

FAR = "4102444800000"  # Unix ms
QUICK = Timing(leash=10, pause=0.02, pause_max=0.04, refused=0.03)
LOST, BACK = "list of instruments cannot be used: ", "list of instruments is back after "
FAULTS = {
    "HTTP 503": RestScript(status=503),
    "HTTP 403 (Bybit refuses this address: too many requests, or its region)": RestScript(status=403),
    "retCode 10006: Too many visits": RestScript(
        ret_code=10006, headers=(("X-Bapi-Limit-Reset-Timestamp", FAR), ("X-Bapi-Limit-Status", "0"))
    ),
    "retCode 10002: invalid request": RestScript(ret_code=10002, ret_msg="invalid request"),
    "the answer is not JSON": RestScript(body="garbage"),
    "it is empty": RestScript(listing="empty"),
}
LATE = "no whole answer within 0.5 s"


class Clock(threading.Event):
    """The `stop` of a test: the pauses of the thread are noted, and as long as the test says."""

    def __init__(self):
        super().__init__()
        self.pauses = []

    def wait(self, timeout=None):
        self.pauses.append(timeout)
        return super().wait(min(timeout, 0.02))


@pytest.fixture
def bybit():
    with Bybit(symbols={"linear": ["AUSDT", "BUSDT", "CUSDT", "DUSDT", "EUSDT"], "spot": ["AUSDC"]}, rate=0) as bybit:
        yield bybit


@pytest.fixture
def instruments(bybit):
    """Starts the thread; it has to end at once when the test is over."""
    with ExitStack() as stack:

        def start(interval=0.02, stop=None, url=None, category="linear", timing=QUICK):
            stop = stop or threading.Event()
            made = Instruments(category, True, url or bybit.api_url, ("BTC",), interval, stop, timing)
            stack.callback(end, made, stop)
            made.start()
            return made

        def end(made, stop):
            stop.set()
            began = time.monotonic()
            made.join(began + 5)
            assert time.monotonic() - began < 1
            made.join(0)  # may be called again

        yield start


@pytest.fixture
def lines(caplog):
    """The lines of the log so far that have a text."""
    caplog.set_level(logging.INFO, "relay")
    return lambda text="": [
        line for record in caplog.records if record.name.startswith("relay") and text in (line := record.getMessage())
    ]


def symbols(text):
    return frozenset(f"{letter}USDT" for letter in text)


def test_what_is_listed_and_delisted_while_it_runs(bybit, instruments, lines):
    listed = instruments()
    listed.start()  # once more: nothing happens
    eventually(lambda: listed.symbols == symbols("ABCDE"))
    assert lines() == ["Bybit lists 5 instruments"]
    bybit.list("linear", "NEWUSDT")
    eventually(lambda: listed.symbols == symbols("ABCDE") | {"NEWUSDT"})
    bybit.delist("linear", "BUSDT")
    eventually(lambda: listed.symbols == symbols("ACDE") | {"NEWUSDT"})
    bybit.list("linear", "PREUSDT", status="PreLaunch", phase="CallAuction")
    bybit.list("linear", "DUSDT", delivery=1)
    eventually(lambda: listed.symbols == symbols("ACE") | {"NEWUSDT"})
    bybit.list("linear", "PREUSDT", status="PreLaunch", phase="ContinuousTrading")
    eventually(lambda: "PREUSDT" in listed.symbols)
    assert lines() == ["Bybit lists 5 instruments"]


def test_there_is_no_list_before_the_first(bybit, instruments):
    listed = Instruments("linear", True, bybit.api_url, (), 1, threading.Event())
    assert listed.symbols is None
    listed.join(time.monotonic() + 5)  # it was never started


@pytest.mark.parametrize(("text", "script"), [*FAULTS.items(), (LATE, RestScript(body="hang"))])
def test_a_fault_at_the_start_is_logged_once_and_ends_with_the_list(bybit, instruments, lines, text, script):
    bybit.rest = script
    listed = instruments(timing=QUICK._replace(leash=0.5) if text == LATE else QUICK)
    eventually(lambda: len(bybit.rest_requests) > 2)
    assert listed.symbols is None
    assert len(lines()) == len(lines(LOST)) == 1
    assert text in lines()[0]
    assert lines()[0].endswith("; trying until it can")
    bybit.rest = RestScript()
    eventually(lambda: lines(BACK))
    assert listed.symbols == symbols("ABCDE")
    assert lines()[1].endswith("it has 5")


@pytest.mark.parametrize(("text", "script"), [*FAULTS.items(), (LATE, RestScript(body="drip"))])
def test_in_a_later_fault_the_last_list_stays(bybit, instruments, lines, text, script):
    listed = instruments(timing=QUICK._replace(leash=0.5) if text == LATE else QUICK)
    eventually(lambda: listed.symbols)
    bybit.rest = script
    eventually(lambda: lines(LOST))
    asked = len(bybit.rest_requests)
    eventually(lambda: len(bybit.rest_requests) > asked + 1)
    assert listed.symbols == symbols("ABCDE")
    bybit.rest = RestScript()
    eventually(lambda: lines(BACK))
    assert len(lines(LOST)) == 1
    assert text in lines(LOST)[0]
    assert lines(LOST)[0].endswith("; the last one stays in use")


def test_an_outage_of_the_exchange(bybit, instruments, lines):
    listed = instruments()
    eventually(lambda: listed.symbols)
    bybit.away()
    eventually(lambda: lines("cannot be used: [Errno 111] Connection refused; "))
    bybit.back()
    eventually(lambda: lines(BACK))
    assert listed.symbols == symbols("ABCDE")


def test_an_answer_without_an_end_is_not_kept(bybit):
    bybit.rest = RestScript(body="flood")
    with pytest.raises(Unavailable, match="the answer has more than 16 MiB"):
        read_once("linear", True, bybit.api_url, (), 10, threading.Event())


@pytest.mark.parametrize("script", [RestScript(listing="half"), RestScript(page_size=2, without_page=2)])
def test_half_a_list_is_believed_when_it_has_come_again_and_again(bybit, instruments, lines, script, monkeypatch):
    monkeypatch.setattr("relay.bybit.instruments.MANY_GONE_AFTER", 0.2)
    stop = Clock()
    listed = instruments(interval=60, stop=stop)
    eventually(lambda: listed.symbols)
    bybit.rest = script
    eventually(lambda: listed.symbols == symbols("AB"))
    assert lines("lacks")[0].endswith(
        "lacks 3 of 5 instruments; they stay subscribed until it has lacked them for ten minutes"
    )
    assert min(stop.pauses) >= 30  # no sooner because of it
    eventually(lambda: lines(BACK))


def test_the_pause_grows_while_it_fails_and_http_403_costs_ten_minutes(bybit, instruments):
    bybit.rest, stop = RestScript(status=502), Clock()
    listed = instruments(interval=60, stop=stop, timing=None)
    eventually(lambda: len(stop.pauses) >= 8)
    for pause, longest in zip(stop.pauses, (1, 2, 4, 8, 16, 30, 30, 30), strict=False):
        assert 0.75 * longest <= pause <= longest
    bybit.rest = RestScript(status=403)
    eventually(lambda: 600 in stop.pauses)
    bybit.rest = RestScript()
    eventually(lambda: 30 < stop.pauses[-1] <= 90)
    assert listed.symbols
    bybit.rest, before = RestScript(status=502), len(stop.pauses)
    eventually(lambda: any(pause <= 1 for pause in stop.pauses[before:]))  # it has started anew


@pytest.mark.parametrize("body", ["hang", "drip", "flood"])
def test_a_stop_does_not_wait_for_an_answer(bybit, instruments, body):
    bybit.rest = RestScript(body=body)
    instruments(timing=Timing())
    eventually(lambda: bybit.rest_requests)  # the fixtures assert the rest: it ends at once, with all its threads


@contextlib.contextmanager
def raw_server(answer):
    """Answers whatever comes with these bytes, and closes. Gives its URL."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def run():
            while True:
                try:
                    client, _ = server.accept()
                except OSError:  # the test is over
                    return
                with client, contextlib.suppress(OSError):
                    head = piece = client.recv(65_536)
                    while piece and b"\r\n\r\n" not in head:  # what is left unread would reset the connection
                        head += (piece := client.recv(65_536))
                    client.sendall(answer)

        thread = threading.Thread(target=run)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def http(body, head=""):
    return f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n{head}\r\n{body}".encode()


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"", "Remote end closed"),
        (b"\xff\xfe nonsense\r\n\r\n", "nonsense"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{", "bytes read"),
        (http("{}", "Content-Encoding: gzip\r\n"), "decompressing"),
        (http("[1]"), "not of Bybit's form"),
        (http("null"), "not of Bybit's form"),
        (http('{"retCode":10001}'), "not of Bybit's form"),
        (http('{"retCode":0}'), "has no list"),
        (http(json.dumps({"retCode": 1, "retMsg": "x" * 5000})), "retCode 1: xxx"),
        (http('{"retCode":0,"retMsg":"\xff"'), "not JSON"),
        (b"HTTP/1.1 302 Found\r\nLocation: /again\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", "redirects"),
        (
            b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
            "adapter",
        ),
    ],
)
def test_whatever_answers_there_is_a_reason_in_one_line(answer, text):
    with raw_server(answer) as url, pytest.raises(Unavailable, match=text) as raised:
        read_once("linear", True, url, (), 5, threading.Event())
    assert len(str(raised.value)) < 300
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("body", ["json", "hang", "drip"])
def test_over_tls(certificate, body):
    with Bybit(tls=certificate, rate=0) as bybit:
        bybit.rest = RestScript(body=body)
        if body == "json":
            assert "BTCUSDT" in read_once("linear", True, bybit.api_url, (), 10, threading.Event())
        else:
            with pytest.raises(Unavailable, match="no whole answer within"):
                read_once("linear", True, bybit.api_url, (), 0.3, threading.Event())


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_server_that_says_nothing(scheme):
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"{scheme}://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(Unavailable, match="no whole answer"):
            read_once("linear", True, url, (), 0.3, threading.Event())  # and its thread ends, says a fixture


def test_a_proxy_that_says_nothing(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("https_proxy", f"http://me:secret@127.0.0.1:{server.getsockname()[1]}")
        with pytest.raises(Unavailable, match="no whole answer"):
            read_once("linear", True, "https://api.bybit.com", (), 0.3, threading.Event())
        with server.accept()[0] as asked:
            assert asked.recv(100).startswith(b"CONNECT api.bybit.com:443 ")


def test_a_certificate_that_is_not_trusted(certificate, monkeypatch):
    monkeypatch.delenv("WEBSOCKET_CLIENT_CA_BUNDLE")
    with Bybit(tls=certificate, rate=0) as bybit, pytest.raises(Unavailable, match="its certificate is not trusted"):
        read_once("linear", True, bybit.api_url, (), 10, threading.Event())


def test_a_server_that_is_not_there():
    with pytest.raises(Unavailable, match="refused"):
        read_once("linear", True, f"http://127.0.0.1:{free_port()}", (), 5, threading.Event())


def test_no_password_of_a_proxy_is_in_a_reason():
    assert "secret" not in str(reason(ValueError("Failed to parse: http://me:secret@proxy:80"), "http://x"))


def test_readings_that_do_not_end_are_not_started_without_bound(bybit, instruments, monkeypatch, lines):
    made = []

    class Stuck:
        alive = True

        def __init__(self, *source):
            made.append(self)

        def wait(self, seconds, stop):
            raise Unavailable("stuck")

    monkeypatch.setattr(listing, "Reading", Stuck)
    stop = Clock()
    instruments(stop=stop)
    eventually(lambda: len(stop.pauses) > MAX_ABANDONED + 2)
    assert len(made) == MAX_ABANDONED
    made[0].alive = False  # one has ended after all
    eventually(lambda: len(made) == MAX_ABANDONED + 1)
    assert len(lines(LOST)) == 1


def test_an_error_in_the_program_does_not_end_the_thread(bybit, instruments, monkeypatch, lines):
    monkeypatch.setattr(listing, "Reading", lambda *source: 1 / 0)
    listed = instruments()
    eventually(lambda: lines("Internal error; reading Bybit's list of instruments again"))
    monkeypatch.undo()
    eventually(lambda: listed.symbols)


def test_spot_and_option_are_read_too(bybit, instruments):
    bybit.list("option", "BTC-25JUN27-4000-C-USDT")
    bybit.list("option", "ETH-25JUN27-4000-C-USDT")
    spot, option = instruments(category="spot"), instruments(category="option")
    eventually(lambda: spot.symbols == {"AUSDC"})
    eventually(lambda: option.symbols == {"BTC-25JUN27-4000-C-USDT"})


@pytest.mark.parametrize(("now", "pause"), [(600.0, 60.0), (601.0, 59.0), (630.0, 30.0), (631.0, 89.0), (659.9, 60.1)])
def test_all_collectors_read_the_list_at_the_same_moment(now, pause):
    """Otherwise a standby knows a new symbol up to an interval later than the leader, and takes over without it."""
    assert until_next(60.0, now) == pytest.approx(pause)
    assert (now + until_next(60.0, now)) % 60 == pytest.approx(0)


def test_the_pauses_are_those_that_bybit_asks_for():
    assert Timing() == (30.0, 1.0, 30.0, 600.0)
