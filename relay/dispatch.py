"""What a callback is, and what it is given."""

from collections.abc import Callable
from typing import Any, TypeVar

Message = dict[str, Any] | str | bytes
Callback = Callable[[Any], object]
C = TypeVar("C", bound=Callback)


def raw(callback: C) -> C:
    """Marks a callback that takes the text of a message, as bytes, instead of a dict: then nothing is parsed."""
    callback.raw = True  # type: ignore[attr-defined]
    return callback
