"""A stand-in for Bybit's public V5 server, WebSocket and REST, that has its dialects and can be made to fail.

It binds a real socket and keeps one rule: every byte and every fault is made on one thread, "bybit" (an asyncio loop),
so frames of one topic go to all its subscribers in one order and nothing here needs a lock.
"""

from sandbox.bybit.script import RestScript, Script
from sandbox.bybit.server import DEFAULT_SYMBOLS, Bybit

__all__ = ("DEFAULT_SYMBOLS", "Bybit", "RestScript", "Script")
