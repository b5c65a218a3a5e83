"""The page itself: Bokeh's models, and how they follow what the reader has found. One Page for each open tab.

All of it runs on the thread of the server. The colours of the charts are legible on dark and on light.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic, time
from typing import Any

from bokeh.core.templates import get_env
from bokeh.document import Document
from bokeh.events import ConnectionLost
from bokeh.models import ColumnDataSource, CustomJS, Div, HoverTool, InlineStyleSheet, Select
from bokeh.models.formatters import DatetimeTickFormatter, NumeralTickFormatter
from bokeh.models.ranges import Range1d
from bokeh.plotting import figure

from dashboard import charts, html
from dashboard.reader import Reader

HERE = Path(__file__).resolve().parent
PERIOD = 333  # milliseconds between two pictures
GREEN, RED, BLUE, AMBER, GREY = "#2fa871", "#e2574f", "#4f86e8", "#d9932a", "#7b8594"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
DIVS = ("verdict", "streams", "collectors", "redis", "events", "quote", "trades", "liquidations")
NUMBER = "0,0.[00000000]"
FAVOURITE = "BTCUSDT"  # is shown first, if it is there


class Page:
    """What one tab shows. reader: shared by all."""

    def __init__(self, doc: Document, reader: Reader) -> None:
        self._doc, self._reader = doc, reader
        sheet = InlineStyleSheet(css=(HERE / "parts.css").read_text(encoding="utf-8"))
        self._divs = {
            name: Div(name=name, margin=0, stylesheets=[sheet], sizing_mode="stretch_width", disable_math=True)
            for name in DIVS
        }
        self._select = Select(
            name="symbol", options=[], value="", margin=0, stylesheets=[sheet], sizing_mode="stretch_width"
        )
        self._sources = {name: ColumnDataSource(charts.EMPTY[name]) for name in charts.EMPTY}
        self._price, self._depth = price_chart(self._sources), depth_chart(self._sources)
        for root in (*self._divs.values(), self._select, self._price, self._depth):
            doc.add_root(root)
        doc.template = get_env().from_string((HERE / "page.html.jinja").read_text(encoding="utf-8"))
        css = (HERE / "page.css").read_text(encoding="utf-8")
        doc.template_variables.update(css=css, address=reader.model.address)
        doc.title = "Bybit Streaming Collector"
        doc.config.notify_connection_status = False  # the page says it itself
        doc.js_on_event(ConnectionLost, CustomJS(code="window.serverLost && window.serverLost()"))
        self._wish = _wish(doc)
        self.update()
        doc.add_periodic_callback(self.update, PERIOD)

    def update(self) -> None:
        """Brings all that has changed to the browser."""
        with self._reader.lock:
            now, model = monotonic(), self._reader.model
            symbols = model.symbols()
            symbol = self._chosen(symbols)
            market = model.watch(symbol, now) if symbol else None
            is_away = model.outage is not None
            is_old = is_away or not any(state.is_alive(now) for state in model.health.publishers(now))
            verdict = model.verdict(now)
            parts = {
                "verdict": html.verdict_html(verdict),
                "streams": html.streams_html(model.health.streams(now), is_away),
                "collectors": html.collectors_html(model.health, now, is_away),
                "redis": html.redis_html(model, now),
                "events": html.events_html(model.events, now),
                "quote": html.market_html(market, is_old),
                "trades": html.trades_html(market.trades if market else (), html.SHOWN_TRADES, is_old),
                "liquidations": html.trades_html(
                    market.liquidations if market else (), html.SHOWN_LIQUIDATIONS, is_old
                ),
            }
            data = charts.data(market)
        for name, text in parts.items():
            self._divs[name].text = text
        self._doc.title = f"{verdict.title} · Bybit Streaming Collector"
        if symbols != self._select.options:
            self._select.options = symbols
        if symbol != self._select.value:
            self._select.value = symbol
        self._draw(data, is_old)

    def _chosen(self, symbols: list[str]) -> str:
        """The symbol that is shown: what the user has chosen, else the one of the address, else the favourite."""
        if self._select.value:
            return str(self._select.value)
        for wish in (self._wish, FAVOURITE, *symbols):
            if wish in symbols:
                return wish
        return ""

    def _draw(self, data: Mapping[str, charts.Columns], is_old: bool) -> None:
        for name, columns in data.items():
            self._sources[name].data = columns
        price, depth = data["price"], charts.depth_ranges(data["bids"], data["asks"])
        end = time() * 1000 if not is_old or not len(price["time"]) else float(price["time"][-1])
        for chart, (x, y) in ((self._price, charts.price_ranges(price, end)), (self._depth, depth)):
            chart.x_range.update(start=x[0], end=x[1])
            chart.y_range.update(start=y[0], end=y[1])
            chart.styles = {"opacity": "0.4" if is_old else "1"}
        top = max(data["volume"]["sum"], default=1.0) or 1.0
        self._price.extra_y_ranges["volume"].update(start=0.0, end=top * 5)


def _wish(doc: Document) -> str:
    """The symbol in the address of the page: /?symbol=ETHUSDT."""
    context = doc.session_context
    arguments = context.request.arguments if context and context.request else {}
    wish: bytes = arguments.get("symbol", [b""])[0]
    return wish.decode(errors="replace")


def _chart(height: int, **options: Any) -> Any:
    """A chart without frame and tools."""
    chart = figure(
        height=height,
        sizing_mode="stretch_width",
        tools="",
        toolbar_location=None,
        margin=0,
        x_range=Range1d(0, 1),
        y_range=Range1d(0, 1),
        y_axis_location="right",
        background_fill_color=None,
        border_fill_color=None,
        outline_line_color=None,
        min_border_left=6,
        min_border_right=60,
        min_border_top=8,
        **options,
    )
    for axis in chart.axis:
        axis.update(
            axis_line_color=None,
            major_tick_line_color=None,
            minor_tick_line_color=None,
            major_label_text_color=GREY,
            major_label_text_font=FONT,
            major_label_text_font_size="11px",
            major_label_standoff=8,
        )
    chart.yaxis[0].formatter = NumeralTickFormatter(format=NUMBER)
    chart.xgrid.grid_line_color = None
    chart.ygrid[0].update(grid_line_color=GREY, grid_line_alpha=0.18)
    chart.xaxis[0].ticker.desired_num_ticks = 4
    chart.yaxis[0].ticker.desired_num_ticks = 5
    return chart


def price_chart(sources: Mapping[str, ColumnDataSource]) -> Any:
    """The price of the last minutes, what was bought and sold below it, liquidations as triangles."""
    chart = _chart(240, name="price", x_axis_type="datetime")
    chart.xaxis[0].formatter = DatetimeTickFormatter(
        minutes="%H:%M", minsec="%H:%M:%S", seconds="%H:%M:%S", hourmin="%H:%M"
    )
    chart.extra_y_ranges = {"volume": Range1d(0, 1)}
    bars = {"x": "time", "width": charts.BAR * 800, "source": sources["volume"], "y_range_name": "volume"}
    chart.vbar(bottom=0, top="sold", color=RED, alpha=0.35, line_color=None, **bars)
    chart.vbar(bottom="sold", top="sum", color=GREEN, alpha=0.35, line_color=None, **bars)
    price = sources["price"]
    chart.varea(x="time", y1="low", y2="price", source=price, color=BLUE, alpha=0.08)
    line = chart.line(x="time", y="price", source=price, color=BLUE, width=2, line_join="round")
    chart.scatter(
        x="time", y="price", marker="marker", color="color", size=9, line_color=None, source=sources["liquidations"]
    )
    chart.scatter(x="time", y="price", color=BLUE, size=8, line_color=None, source=sources["last"])
    chart.add_tools(
        HoverTool(
            renderers=[line],
            mode="vline",
            line_policy="nearest",
            tooltips=[("", f"@price{{{NUMBER}}}"), ("", "@time{%H:%M:%S}")],
            formatters={"@time": "datetime"},
        )
    )
    return chart


def depth_chart(sources: Mapping[str, ColumnDataSource]) -> Any:
    """How much could be sold and bought up to each price."""
    chart = _chart(328, name="depth")
    chart.xaxis[0].formatter = NumeralTickFormatter(format=NUMBER)
    for side, color in (("bids", GREEN), ("asks", RED)):
        chart.varea(x="price", y1=0, y2="sum", source=sources[side], color=color, alpha=0.16)
        chart.line(x="price", y="sum", source=sources[side], color=color, width=2)
    return chart


def make_page(reader: Reader) -> Callable[[Document], None]:
    """What makes the page of a tab."""

    def make(doc: Document) -> None:
        Page(doc, reader)

    return make
