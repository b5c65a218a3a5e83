"""Messages that are handed on together. Pure."""


class Batch(list[bytes]):
    """Texts of messages that were read at once, oldest first.

    A slice of it is a plain list, which is published as one message, as JSON: so write Batch(batch[:10]), or
    Batch(text for text in batch if ...).
    """
