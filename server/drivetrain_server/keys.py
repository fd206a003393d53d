"""API keys: who may call, and which prefix cache they share."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass

from drivetrain_server.errors import HttpError


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """The owner of a key.

    Attributes:
        name: short digest of the key, for logs; empty where no keys are set.
        salt: keeps the prefix caches of different keys apart.
    """

    name: str
    salt: str


class KeyRing:
    """The keys that are let in, kept as digests only.

    Args:
        keys: none means that every caller is let in.
        max_requests: requests that one key may have open at a time; None is no limit.
    """

    def __init__(self, keys: Iterable[str], *, max_requests: int | None = None) -> None:
        self._digests = [_digest(key.encode()) for key in keys]
        self._max_requests = max_requests
        self._open: dict[str, int] = {}

    def tenant(self, authorization: bytes | None, api_key: bytes | None = None) -> Tenant:
        """Whose key the headers carry. Every key is compared, in constant time.

        Args:
            authorization: the header of that name.
            api_key: the header `x-api-key`, which counts where the other one is missing.

        Raises:
            HttpError: 401, no key or a wrong one.
        """
        if not self._digests:
            return Tenant(name="", salt="")
        if authorization is None and api_key is not None:
            authorization = b"Bearer " + api_key
        scheme, _, key = (authorization or b"").strip().partition(b" ")
        if scheme.lower() != b"bearer" or not key.strip():
            raise _unauthorized("this server needs an API key; send it as `Authorization: Bearer KEY`")
        offered = _digest(key.strip())
        matches = [digest for digest in self._digests if hmac.compare_digest(digest, offered)]
        if not matches:
            raise _unauthorized("the API key is not one of this server's; check it for typing mistakes")
        digest = matches[0]
        salt = hashlib.sha256(b"prefix cache of " + digest).hexdigest()[:32]
        return Tenant(name=digest.hex()[:12], salt=salt)

    def enter(self, tenant: Tenant) -> None:
        """Count a request in.

        Raises:
            HttpError: 429, this key has too many open.
        """
        count = self._open.get(tenant.name, 0)
        if self._max_requests is not None and count >= self._max_requests:
            raise too_many_open(count, self._max_requests)
        self._open[tenant.name] = count + 1

    def leave(self, tenant: Tenant) -> None:
        """Count a request out."""
        count = self._open[tenant.name] - 1
        if count:
            self._open[tenant.name] = count
        else:
            del self._open[tenant.name]


def too_many_open(count: int, limit: int) -> HttpError:
    """The answer to a key that has `count` requests open."""
    return HttpError(
        429,
        f"this key has {count} requests open, and {limit} are allowed; wait for one to finish",
        type="rate_limit_error",
        code="too_many_requests",
        retry_after_s=1,
    )


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _unauthorized(message: str) -> HttpError:
    return HttpError(
        401,
        message,
        type="authentication_error",
        code="invalid_api_key",
        headers=((b"www-authenticate", b"Bearer"),),
    )
