from __future__ import annotations

import hmac

import pytest

from drivetrain_server.errors import HttpError
from drivetrain_server.keys import KeyRing


def test_without_keys_everyone_is_let_in() -> None:
    assert KeyRing([]).tenant(None).salt == ""


def test_keys_are_compared_as_digests_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    real = hmac.compare_digest

    def spy(left: bytes, right: bytes) -> bool:
        compared.append((left, right))
        return real(left, right)

    monkeypatch.setattr(hmac, "compare_digest", spy)
    KeyRing(["a", "b", "c"]).tenant(b"Bearer a")
    assert len(compared) == 3, "every key is compared, whichever matches"
    assert all(len(left) == len(right) == 32 for left, right in compared)


def test_ring_keeps_no_key() -> None:
    ring = KeyRing(["very-secret"])
    assert "very-secret" not in repr(vars(ring))


def test_requests_of_a_key_are_counted_until_they_leave() -> None:
    ring = KeyRing(["a"], max_requests=1)
    tenant = ring.tenant(b"Bearer a")
    ring.enter(tenant)
    with pytest.raises(HttpError, match="1 requests open") as caught:
        ring.enter(tenant)
    assert caught.value.status == 429
    ring.leave(tenant)
    ring.enter(tenant)
