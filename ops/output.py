"""The end of a command that prints: what it printed is written, or it is said that it could not be."""

import errno
import os
import sys
from collections.abc import Callable

STDOUT = 1  # the file descriptor


def finished(command: Callable[[], int]) -> int:
    """The exit code of a command when all that it printed is written; 1 if it cannot be, without a traceback."""
    try:
        code = command()
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ENOSPC, errno.EIO):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)  # what is left goes there
        if error.errno != errno.EPIPE:  # else whoever reads it, such as head, has enough
            print(f"stdout cannot be written: {error.strerror}", file=sys.stderr)
        return 1
    return code
