"""Messages that are handed on together. Pure."""


class Batch(list[bytes]):
    """Texts of messages that were read at once, oldest first. A plain list is one message, to be written as JSON."""
