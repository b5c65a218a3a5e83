"""systemd's notification protocol: https://www.freedesktop.org/software/systemd/man/sd_notify.html."""

import logging
import os
import socket

log = logging.getLogger(__name__)


def sd_notify(state: str) -> None:
    """Sends `state` ("READY=1", lines of NAME=value) to systemd. Does nothing if systemd did not start the program.

    Never raises: a failure is logged. Any thread.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # Linux's abstract namespace
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifier:
            notifier.sendto(state.encode(), address)
    except OSError as error:
        log.warning("Cannot notify systemd of %(state)s: %(reason)s", {"state": state.split("\n")[0], "reason": error})
