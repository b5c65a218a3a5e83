"""The parts of the page that are text and tables, as HTML. Pure. Everything that came from Redis is escaped."""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from dashboard.health import Health, State, Stream, number, seconds
from dashboard.market import Market, Trade
from dashboard.model import Event, Model, Verdict

WIDTH, HEIGHT = 96, 26  # of a sparkline
SHOWN_EVENTS, SHOWN_TRADES, SHOWN_LIQUIDATIONS = 8, 14, 14
# The colour of an event's dot; those of later versions are grey.
COLOURS = dict.fromkeys(("lost", "stalled", "dropped", "stopped"), "bad")
COLOURS |= dict.fromkeys(("gap", "silent", "rejected", "delisted", "unsubscribed"), "warn")
COLOURS |= dict.fromkeys(("subscribed", "listed", "redis_reconnected"), "ok") | {"leader": "info"}
MAX_TEXT, MAX_NAMED = 160, 3  # characters of a text of somebody else's; topics of an event that are named


def text(value: object) -> str:
    """Text of somebody else's."""
    words = str(value)
    return escape(words if len(words) <= MAX_TEXT else f"{words[:MAX_TEXT]}…")


def figure(value: object, template: str = "{:,.0f}", unit: float = 1.0) -> str:
    """A number, or a dash where there is none."""
    found = number(value)
    return "–" if found is None else template.format(found * unit)


def rate(value: object) -> str:
    found = number(value)
    return figure(found, "{:,.0f}" if found is None or found >= 100 else "{:,.1f}")


def delay(value: object) -> str:
    """Seconds as milliseconds."""
    found = number(value)
    return figure(found, "{:,.0f}" if found is not None and found >= 0.1 else "{:,.1f}", 1000)


def panel(content: str, is_stale: bool = False) -> str:
    return f'<div class="panel{" stale" if is_stale else ""}">{content}</div>'


# Whether all is well.


def verdict_html(verdict: Verdict) -> str:
    lines = "".join(f"<p>{text(line)}</p>" for line in verdict.lines)
    title = f"<h1>{text(verdict.title)}</h1>"
    return f'<div class="verdict {verdict.level}"><i></i><div>{title}{lines}</div></div>'


def streams_html(streams: Sequence[Stream], now_is_stale: bool) -> str:
    head = '<div class="row head"><b>Stream</b><b class="spark">Messages/s</b><b>p50 ms</b><b>p99 ms</b>'
    head += "<b>Age s</b><b>Gaps</b><b>Reconn.</b></div>"
    rows = "".join(map(_stream, streams)) or '<p class="none">No streams</p>'
    return panel(f'<div class="streams">{head}{rows}</div>', now_is_stale)


def _stream(stream: Stream) -> str:
    fields = stream.fields
    up = fields.get("up")
    level, word = ("ok", "up") if up is True else ("bad", "down") if up is False else ("none", "–")
    reconnects = fields.get("reconnects")
    cells = (
        ("p50", "p50 ms", delay(fields.get("delay_p50"))),
        ("p99", "p99 ms", delay(fields.get("delay_p99"))),
        ("age", "age s", figure(fields.get("age"), "{:,.1f}")),
        ("gaps", "gaps", figure(fields.get("gaps"))),
        ("conns", "reconnects", figure(reconnects)),
    )
    return (
        f'<div class="row{"" if stream.is_live else " stale"}" data-stream="{text(stream.name)}" '
        f'data-messages="{figure(fields.get("messages"), "{:.0f}")}">'
        f'<div class="name"><i class="dot {level}" title="{word}"></i><div><strong>{text(stream.name)}</strong>'
        f"<small>{topics(fields)}</small></div></div>"
        f'<div class="spark">{sparkline(stream.rates)}<span>{rate(fields.get("rate"))}</span></div>'
        + "".join(f'<div class="num {name}"><em>{label}</em>{value}</div>' for name, label, value in cells)
        + "</div>"
    )


def topics(fields: Mapping[str, Any]) -> str:
    """ "up · 695 of 700 topics", as far as it is known."""
    word = {True: "up", False: "down"}.get(fields.get("up"), "unknown")  # type: ignore[arg-type]
    found, wanted, rejected = (number(fields.get(name)) for name in ("topics", "wanted", "rejected"))
    if found is None:
        return word
    of = f" of {wanted:,.0f}" if wanted is not None else ""
    noun = "topic" if (found if wanted is None else wanted) == 1 else "topics"
    more = f", {rejected:,.0f} rejected" if rejected else ""
    return f"{word} · {found:,.0f}{of} {noun}{more}"


def sparkline(values: Sequence[float]) -> str:
    """A small chart of the rates, from 0 up."""
    if len(values) < 2:
        return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}"></svg>'
    top = max(*values, 1e-9) * 1.15
    step = WIDTH / (len(values) - 1)
    line = " ".join(f"{at * step:.1f},{HEIGHT - value / top * (HEIGHT - 2) - 1:.1f}" for at, value in enumerate(values))
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" aria-hidden="true">'
        f'<polygon points="0,{HEIGHT} {line} {WIDTH},{HEIGHT}"/><polyline points="{line}"/></svg>'
    )


def collectors_html(health: Health, now: float, now_is_stale: bool) -> str:
    rows = "".join(_collector(state, now) for group in health.groups().values() for state in group)
    return panel(rows or '<p class="none">No collector</p>', now_is_stale)


def _collector(state: State, now: float) -> str:
    about, is_alive = state.about, state.is_alive(now)
    role = state.role if is_alive else "stopped" if state.was_stopped else "gone"
    level = {"standby": "info", "stopped": "warn", "gone": "bad"}.get(role, "ok")
    facts = [f"term {figure(about.get('term'))}"] if "ready" in about else []
    if not is_alive:
        facts = [f"last seen {seconds(state.age_at(now))} ago"]
    elif "ready" in about:
        facts.append("ready" if about["ready"] is True else "not ready")
    if is_alive:
        facts.append(f"{figure(about.get('pending'))} pending")
    started, ts = number(about.get("started")), number(about.get("ts"))
    if started is not None and ts is not None and is_alive:
        facts.append(f"up {seconds((ts - started) / 1000)}")
    name = " ".join(filter(None, (state.instance or "collector", state.shard)))
    return (
        f'<div class="collector"><i class="dot {level}"></i><div><strong>{text(name)}</strong>'
        f'<small>{text(" · ".join(facts))}</small></div><span class="chip {level}" '
        f'title="version {text(about.get("version", "unknown"))}">{text(role)}</span></div>'
    )


def redis_html(model: Model, now: float) -> str:
    """What waits for Redis, and how it was."""
    abouts = [state.about for state in model.health.publishers(now)]
    share = max((found for about in abouts if (found := number(about.get("buffer_share"))) is not None), default=None)
    pending = _sum(abouts, "pending")
    level = "bad" if (share or 0) >= 0.9 else "warn" if (share or 0) >= 0.5 else "ok"
    facts = [("Messages waiting", figure(pending)), ("Published", figure(_sum(abouts, "published")))]
    losses = [sum(filter(None, map(number, d.values()))) for a in abouts if isinstance(d := a.get("dropped"), dict)]
    facts += [("Dropped", figure(sum(losses) if losses else None)), ("Outages", figure(_sum(abouts, "outages")))]
    rows = "".join(f"<div><span>{name}</span><b>{value}</b></div>" for name, value in facts)
    bar = f'<i style="width:{min(max(share or 0.0, 0.005), 1.0):.1%}"></i>'
    meter = f'<div class="meter {level}">{bar}</div><small>Buffer {figure(share, "{:.1%}")} full</small>'
    return panel(
        f'<div class="facts">{rows}</div>' + (meter if share is not None else ""),
        model.outage is not None,
    )


def _sum(abouts: Iterable[Mapping[str, Any]], name: str) -> float | None:
    found = [value for about in abouts if (value := number(about.get(name))) is not None]
    return sum(found) if found else None


def events_html(events: Iterable[Event], now: float) -> str:
    rows = "".join(_event(event, now) for event, _ in zip(events, range(SHOWN_EVENTS), strict=False))
    return panel(f'<div class="events">{rows}</div>' if rows else '<p class="none">Nothing since this page runs</p>')


def _event(event: Event, now: float) -> str:
    fields = event.fields
    name = str(fields.get("event", ""))
    parts = [", ".join(event.streams), event_words(event)]
    count = f" ×{event.times}" if event.times > 1 else ""
    return (
        f'<div class="event"><i class="dot {COLOURS.get(name, "none")}"></i><div><strong>{text(name)}{count}</strong>'
        f"<small>{text(' · '.join(str(part) for part in parts if part))}</small></div>"
        f"<time>{seconds(now - event.at)}</time></div>"
    )


def event_words(event: Event) -> str:
    """What an event says beside its name and its streams."""
    fields = event.fields
    outage, messages = number(fields.get("outage_seconds")), number(fields.get("messages"))
    if fields.get("event") == "leader":
        return f"{fields.get('instance', '')} publishes, term {figure(fields.get('term'))}"
    if outage is not None:
        return f"after {outage:,.1f} s, {figure(fields.get('buffered'))} messages buffered"
    if messages is not None:
        return f"{messages:,.0f} messages of {fields.get('channel', '')}"
    if fields.get("reason"):
        return str(fields["reason"])
    named = fields.get("topics")
    if not isinstance(named, list) or not named:
        return ""
    return f"{event.topics:,} topics" if event.topics > MAX_NAMED else ", ".join(map(str, named))


# The market.


def market_html(market: Market | None, is_stale: bool) -> str:
    """The last price, and what goes with it."""
    if market is None:
        return panel('<div class="price"><strong>–</strong><small>Waiting for messages</small></div>', is_stale)
    ticker, (bid, ask) = market.fields(), market.best()
    last, side = market.last(), side_class(market.trades[0]) if market.trades else ""
    change = figure(_float(ticker.get("price24hPcnt")), "{:+.2%}")
    sign = "buy" if change.startswith("+") else "sell" if change.startswith("-") else ""
    facts = [
        ("Spread", spread(bid, ask), ""),
        ("24 h", change, sign),
        ("Mark", text(grouped(str(ticker.get("markPrice", "–")))), ""),
        ("Funding", figure(_float(ticker.get("fundingRate")), "{:+.4%}"), ""),
        ("Open interest", figure(_float(ticker.get("openInterest"))), ""),
    ]
    quotes = " ".join(
        f'<span class="{name}" data-{name}="{text(level[0])}">{text(grouped(level[0]))}<em>× {text(level[1])}</em>'
        "</span>"
        for name, level in (("bid", bid), ("ask", ask))
        if level
    )
    cells = "".join(f'<div><span>{name}</span><b class="{colour}">{value}</b></div>' for name, value, colour in facts)
    reason = market.reason()
    note = f'<p class="note">{text(reason)}</p>' if reason else ""
    number_of = f'<strong class="{side}" data-last="{text(last)}">{text(grouped(last)) or "–"}</strong>'
    price = f'<div class="price">{number_of}'
    return panel(f'{price}<div class="quotes">{quotes}</div></div><div class="quick">{cells}</div>{note}', is_stale)


def spread(bid: Sequence[str], ask: Sequence[str]) -> str:
    """As a price, in the digits of the two."""
    if not bid or not ask:
        return "–"
    digits = max(len(level[0].partition(".")[2]) for level in (bid, ask))
    low, high = float(bid[0]), float(ask[0])
    return f"{high - low:,.{digits}f}" + (f" · {(high - low) / high * 10_000:.2f} bp" if high else "")


def trades_html(trades: Iterable[Trade], shown: int, is_stale: bool) -> str:
    """Trades or liquidations, newest first; the bar behind each is its size."""
    rows = [trade for trade, _ in zip(trades, range(shown), strict=False)]
    top = max((_float(trade.size) or 0.0 for trade in rows), default=0.0) or 1.0
    lines = "".join(_trade(trade, math.sqrt((_float(trade.size) or 0.0) / top)) for trade in rows)
    head = '<div class="trade head"><span>Price</span><span>Size</span><time>UTC</time></div>'
    return panel(head + (lines or '<p class="none">None yet</p>'), is_stale)


def _trade(trade: Trade, share: float) -> str:
    cells = f"<span>{text(grouped(trade.price))}</span><span>{text(trade.size)}</span><time>{clock(trade.ts)}</time>"
    return f'<div class="trade {side_class(trade)}" style="--part:{share:.0%}">{cells}</div>'


def side_class(trade: Trade) -> str:
    """The class of its colour."""
    return "buy" if trade.side == "Buy" else "sell"


def grouped(price: str) -> str:
    """Bybit's digits with thousands apart."""
    whole, point, digits = price.partition(".")
    return f"{int(whole):,}{point}{digits}" if whole.isdecimal() else price


def clock(ts: int) -> str:
    """Milliseconds as the time of day, UTC."""
    minutes, second = divmod(ts // 1000 % 86400, 60)
    return f"{minutes // 60:02}:{minutes % 60:02}:{second:02}"


def _float(value: object) -> float | None:
    """A number that Bybit wrote as text."""
    try:
        return number(float(value))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
