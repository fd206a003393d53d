"""Which web pages may call the server from a browser."""

from __future__ import annotations

import re
from collections.abc import Iterable

from drivetrain_server.exchange import Exchange, Headers

MAX_AGE_S = 600
HEADER_NAMES = re.compile(rb"[\w-]+(, *[\w-]+)*", re.ASCII)
EXPOSED = b"x-request-id, retry-after, x-drivetrain-ignored-fields"


class Cors:
    """Answers preflights and marks answers for the origins that the operator lists; `*` is any.

    Credentials are never allowed: keys travel in the Authorization header.
    """

    def __init__(self, origins: Iterable[str]) -> None:
        self._origins = {origin.encode() for origin in origins}

    async def answered(self, exchange: Exchange) -> bool:
        """Whether the request was a preflight, and is done."""
        origin = exchange.header(b"origin")
        if origin is None or not self._allows(origin):
            return False
        allowed: Headers = [(b"access-control-allow-origin", origin), (b"vary", b"origin")]
        exchange.extra_headers += allowed
        if exchange.method != "OPTIONS" or exchange.header(b"access-control-request-method") is None:
            exchange.extra_headers.append((b"access-control-expose-headers", EXPOSED))
            return False
        preflight: Headers = [
            (b"access-control-allow-methods", b"GET, POST, DELETE"),
            (b"access-control-max-age", b"%d" % MAX_AGE_S),
        ]
        # Official clients send headers of their own, and more with each version. Who may ask is settled by the origin.
        asked = exchange.header(b"access-control-request-headers")
        if asked is not None and HEADER_NAMES.fullmatch(asked):
            preflight.append((b"access-control-allow-headers", asked))
        await exchange.start(204, preflight)
        await exchange.write(b"", more=False)
        return True

    def _allows(self, origin: bytes) -> bool:
        return b"*" in self._origins or origin in self._origins
