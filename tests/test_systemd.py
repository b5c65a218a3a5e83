"""The notification socket of systemd."""

import os
import socket
import sys

import pytest

from ops.systemd import sd_notify


@pytest.mark.parametrize("abstract", [False, True])
def test_the_state_is_sent_to_the_socket_that_systemd_names(tmp_path, monkeypatch, abstract):
    if abstract and sys.platform != "linux":
        pytest.skip("only Linux has abstract sockets")
    address = f"@bybit-{os.getpid()}" if abstract else str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0" + address[1:] if abstract else address)
        listener.settimeout(5)
        sd_notify("READY=1\nSTATUS=fine")
        assert listener.recv(4096) == b"READY=1\nSTATUS=fine"


def test_without_systemd_nothing_is_sent(monkeypatch, caplog):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    sd_notify("READY=1")
    assert not caplog.messages


def test_a_socket_that_is_gone_is_logged_and_not_raised(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    sd_notify("READY=1\nSTATUS=fine")
    assert caplog.messages == ["Cannot notify systemd of READY=1: [Errno 2] No such file or directory"]
