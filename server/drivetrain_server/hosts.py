"""By which names a server without keys may be called.

A web page can point its own name at this machine (DNS rebinding); to the browser that shows it, what the server then
answers belongs to the page. The browser tells the name in the `Host` header.
"""

from __future__ import annotations

import ipaddress
import socket
from functools import lru_cache

from drivetrain.config.server import ServerConfig
from drivetrain_server.errors import HttpError
from drivetrain_server.exchange import Exchange

PRIVATE = ("localhost", "internal")
"""Names and endings that no public name server may answer for."""


class Hosts:
    """Refuses names that may be somebody else's. With keys every name is good: a page does not have them."""

    def __init__(self, config: ServerConfig) -> None:
        self._any = bool(config.api_keys) or "*" in config.allowed_hosts
        listed = {*config.allowed_hosts, socket.gethostname()}
        self._listed = frozenset(name.lower().rstrip(".") for name in listed)

    def check(self, exchange: Exchange) -> None:
        """Return if the name that the client called is this machine's.

        Raises:
            HttpError: it may be another's.
        """
        host = b"" if self._any else exchange.header(b"host")
        if not host:  # no browser leaves it out
            return
        name = _name(host)
        if name not in self._listed and not _is_private(name):
            raise HttpError(
                403,
                f'Host: got "{name}", expected localhost, an IP address or a name that server.allowed_hosts lists; '
                f"a server without API keys answers to no other, as any web page could call it by one",
                type="permission_error",
                code="host_not_allowed",
            )


@lru_cache(maxsize=256)
def _name(host: bytes) -> str:
    """The name in a `Host` header, without its port."""
    text = host.decode("latin-1").lower()
    head, colon, port = text.rpartition(":")
    if colon and (port.isdigit() or not port) and (":" not in head or head.endswith("]")):
        text = head
    return text.strip("[]").rstrip(".")


@lru_cache(maxsize=256)
def _is_private(name: str) -> bool:
    if name.rpartition(".")[2] in PRIVATE:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
