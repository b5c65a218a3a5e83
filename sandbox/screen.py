"""Where the demo shows itself, and what it names at its end."""

from rich.console import Console

CONSOLE = Console(highlight=False)
CHAOS = "make demo CHAOS=1   break everything, and count the messages"
NEXT = """\
make dashboard      market and collector in your browser
make run            the collector on Bybit's testnet\
"""


def is_live() -> bool:
    """Whether a picture can be drawn again and again."""
    return CONSOLE.is_terminal and not CONSOLE.is_dumb_terminal
