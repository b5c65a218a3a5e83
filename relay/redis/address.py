"""Where a Redis or a Sentinel listens. Pure."""

Address = tuple[str, int]  # host and port; of a Unix socket its path, and 0


def named(address: Address) -> str:
    """host:port, with an IPv6 address in brackets; unix:/path for a Unix socket."""
    host, port = address
    if not port:
        return f"unix:{host}"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
