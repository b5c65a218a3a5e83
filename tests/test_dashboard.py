"""The page as it is served, looked at in a real browser; and its command line.

Without Chromium and playwright (dashboard/requirements-test.txt) only the command line is tested.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
from conftest import Subscriber, eventually
from programs import ROOT, Program, channel_of

from examples.synced import Book
from sandbox.bybit import Bybit
from sandbox.redis import LocalRedis

PREFIX = "stream:bybit"
STATE, BOOKS, TRADES = f"{PREFIX}_state", f"{PREFIX}_orderbook", f"{PREFIX}_trades"
SYMBOLS = ("BTCUSDT", "ETHUSDT")


@contextlib.contextmanager
def dashboard(directory, *options, redis=None, **settings):
    """`python -m dashboard` on a free port, in a process of its own. Yields it with its `url`."""
    if redis:
        options = ("--redis", f"127.0.0.1:{redis.port}", *options)
    with Program(settings, directory, "-m", ("dashboard", "--port", "0", *options)) as served:
        # A slow machine takes its time to import Bokeh.
        eventually(lambda: "http" in served.output or served.process.poll() is not None, 20)
        assert served.output.startswith("http://"), served.log
        served.url = served.output.split()[0]
        yield served


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("Chromium is not on this machine")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Stage:
    """A Redis, a collector, the page, and a subscriber that knows all messages."""

    def __init__(self, redis, collector, url, subscriber):
        self.redis, self.collector, self.url, self.subscriber = redis, collector, url, subscriber
        self.client = redis.client(decode_responses=True)

    def state(self):
        return {name: json.loads(text) for name, text in self.client.hgetall(STATE).items()}

    @contextlib.contextmanager
    def frozen(self):
        """The collector does nothing meanwhile."""
        self.collector.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.collector.process.send_signal(signal.SIGCONT)


@pytest.fixture(scope="module")
def stage(browser, tmp_path_factory):
    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(LocalRedis())
        bybit = stack.enter_context(Bybit(symbols={"linear": SYMBOLS}, rate=100))
        subscriber = stack.enter_context(Subscriber(redis, BOOKS, TRADES, reconnect=True))
        settings = {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": redis.port, "BYBIT_WS_URL": bybit.url}
        settings |= {"SYMBOLS": ",".join(SYMBOLS), "RECONNECT_DELAY": 0.2}
        collector = stack.enter_context(Program(settings, tmp_path_factory.mktemp("collector")))
        served = stack.enter_context(dashboard(tmp_path_factory.mktemp("dashboard"), redis=redis))
        made = Stage(redis, collector, served.url, subscriber)
        stack.callback(made.client.close)
        yield made
        assert "Traceback" not in served.log


@pytest.fixture(scope="module")
def tabs(browser, stage):
    """Opens the page in a new tab; tabs.complaints: of all of them, about errors and addresses elsewhere."""
    complaints = []

    def open_tab(query=""):
        page = browser.new_page(viewport={"width": 1440, "height": 900}, color_scheme="light")
        page.set_default_timeout(15_000)
        page.on("console", lambda said: said.type in ("error", "warning") and complaints.append(said.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request",
            lambda request: request.url.startswith((stage.url, "data:", "blob:")) or complaints.append(request.url),
        )
        page.goto(stage.url + query)
        page.locator("[data-bid]").wait_for()
        return page

    open_tab.complaints, open_tab.first = complaints, open_tab()
    return open_tab


@pytest.fixture
def page(tabs):
    """The first tab, where all is well. No tab may complain."""
    seen(tabs.first, "All well", 15)
    yield tabs.first
    assert tabs.complaints == []


def seen(page, text, seconds):
    """Waits until the verdict begins with `text`; returns the seconds that took."""
    began = time.monotonic()
    page.locator("h1", has_text=re.compile(f"^{text}")).wait_for(timeout=seconds * 1000)
    return time.monotonic() - began


def attribute(page, name):
    """data-NAME of the one element that has it; "" if none has."""
    elements = page.locator(f"[data-{name}]")
    return elements.get_attribute(f"data-{name}") if elements.count() else ""


def test_the_numbers_are_those_in_redis(stage, page):
    with stage.frozen():
        # What is published now comes after all that the collector has sent: when it is on the page, all is.
        item = {"T": 1, "s": "BTCUSDT", "S": "Buy", "v": "0.5", "p": "12345.5", "i": f"mark{time.time()}"}
        mark = json.dumps({"topic": "publicTrade.BTCUSDT", "ts": 1, "data": [item]}, separators=(",", ":"))
        stage.client.publish(channel_of("publicTrade.BTCUSDT"), mark)
        eventually(lambda: mark.encode() in stage.subscriber.of(TRADES)[-1:])
        page.locator("[data-last='12345.5']").wait_for()
        book = Book()
        for payload in stage.subscriber.of(BOOKS):
            message = json.loads(payload)
            if message["topic"] == "orderbook.50.BTCUSDT":
                book.receive(message, 0.0)
        assert book.synced

        def same():
            assert (attribute(page, "bid"), attribute(page, "ask")) == (book.bids[0][0], book.asks[0][0])
            state = stage.state()
            del state["*"]
            for name, fields in state.items():
                row = page.locator(f"[data-stream='{name}']")
                assert row.get_attribute("data-messages") == str(fields["messages"])
                assert f"{fields['topics']} of {fields['wanted']} topics" in row.inner_text()
            return len(state) == 4

        eventually(same, 3)
    assert page.locator("select").evaluate("select => [...select.options].map(each => each.value)") == list(SYMBOLS)


def test_it_fits_phone_and_desk_in_dark_and_light(page):
    # Nothing may stick out of its place either, where it would be cut off.
    fits = "element => element.getBoundingClientRect().right <= innerWidth"
    for width, height in ((390, 844), (1440, 900)):
        page.set_viewport_size({"width": width, "height": height})
        eventually(lambda: page.evaluate("document.documentElement.scrollWidth <= innerWidth"), 3)
        for part in (".verdict", ".row .conns", ".trade span", "canvas", "select"):
            assert eventually(lambda part=part: page.locator(part).last.evaluate(fits), 3), part
    colour = "getComputedStyle(document.body).backgroundColor"
    for scheme, background in (("dark", "rgb(13, 16, 20)"), ("light", "rgb(244, 245, 247)")):
        page.emulate_media(color_scheme=scheme)
        eventually(lambda expected=background: page.evaluate(colour) == expected, 3)
    page.get_by_role("button").click()
    assert page.evaluate(colour) == "rgb(13, 16, 20)"


def test_another_symbol_can_be_chosen_and_named_in_the_address(stage, page, tabs):
    other = tabs("/?symbol=ETHUSDT")
    assert float(attribute(page, "bid")) > 10 * float(attribute(other, "bid"))
    page.locator("select").select_option("ETHUSDT")
    eventually(lambda: float(attribute(page, "bid")) < 10 * float(attribute(other, "bid")))
    # All tabs share one reader: it, and this test's subscriber.
    assert stage.client.pubsub_numsub(BOOKS) == [(BOOKS, 2)]
    other.close()


@pytest.mark.parametrize("how", ["hangs", "ends"])
def test_an_outage_of_redis_shows_within_3_s_and_ends_by_itself(stage, page, how):
    (stage.redis.pause if how == "hangs" else stage.redis.kill)()
    try:
        seen(page, "Redis is away for [0-9]+ s", 3)
        assert page.locator(".panel.stale [data-last]").count() == 1  # the last picture is still there
    finally:
        (stage.redis.resume if how == "hangs" else stage.redis.start)()
    seen(page, "All well", 15)


def test_a_collector_that_writes_no_state_is_gone_after_3_s(stage, page):
    with stage.frozen():
        about = stage.state()["*"]
        stage.client.hset(STATE, "*", json.dumps(about | {"interval": 1}))
        stage.client.pexpire(STATE, 15_000)
        assert seen(page, "The collector is gone", 5) > 2
    seen(page, "All well", 15)


def test_it_says_that_there_is_no_collector_and_that_its_server_is_away(stage, page, browser, tmp_path):
    with dashboard(tmp_path, redis=stage.redis, CHANNEL_PREFIX="stream:nobody") as served:
        other = browser.new_page()
        other.goto(served.url)
        seen(other, "No collector is running", 10)
        assert not other.locator(".cut-note").is_visible()
        served.process.kill()
        other.locator(".cut-note").wait_for(timeout=5000)
        other.close()


# The command line.


def test_it_listens_on_this_machine_only_and_ctrl_c_ends_it(tmp_path, redis_server):
    with dashboard(tmp_path, redis=redis_server) as served:
        port = served.url.rpartition(":")[2]
        socket.create_connection(("127.0.0.1", int(port)), 2).close()
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.2", int(port)), 2)
        ran = subprocess.run(
            [sys.executable, "-m", "dashboard", "--port", port], cwd=ROOT, capture_output=True, text=True, timeout=20
        )
        sentence = f"python -m dashboard: port {port} is taken: choose another with --port (make dashboard PORT=5007)\n"
        assert (ran.returncode, ran.stdout, ran.stderr) == (1, "", sentence)
        code, took = served.stop(signal.SIGINT)
        assert (code, served.log) == (0, "")
        assert took < 5


@pytest.mark.parametrize(
    ("options", "settings", "sentence"),
    [
        (["--port", "x"], {}, "python -m dashboard: argument --port: 'x' is not a port, 0 to 65535\n"),
        (["--redis", "redis://h"], {}, "REDIS_HOST=redis://h: expected"),
        ([], {"CHANNEL_TYPE": "x"}, "CHANNEL_TYPE=x: expected"),
    ],
)
def test_a_wrong_option_or_setting_is_one_sentence(options, settings, sentence):
    ran = subprocess.run(
        [sys.executable, "-m", "dashboard", *options],
        cwd=ROOT,
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert (ran.returncode, ran.stdout) == (2, "")
    assert sentence in ran.stderr
    assert ran.stderr.count("\n") == 1
