"""Which completions of which requests are under way, and until when."""

from __future__ import annotations

import time

import pytest

from drivetrain.live_requests import LiveRequests
from fakes.scheduling import request_of


def test_a_request_lives_until_its_last_completion_is_removed() -> None:
    live, first, second = LiveRequests(), request_of("a"), request_of("b")
    live.add("r", {0: first, 1: second}, deadline_s=None)
    assert (live.owners[first], live.owners[second]) == (("r", 0), ("r", 1))
    live.remove(first)
    assert dict(live.completions("r")) == {1: second}
    assert "r" in live
    live.remove(second)
    assert (len(live), "r" in live, dict(live.completions("r")), live.owners) == (0, False, {}, {})


def test_overdue_requests_are_told_once_in_the_order_of_their_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    live = LiveRequests()
    for name, deadline_s in (("late", 3.0), ("free", None), ("early", 1.0), ("same", 1.0), ("far", 9.0)):
        live.add(name, {0: request_of(name)}, deadline_s=deadline_s)
    now_s = 100.9
    assert live.overdue() == []
    now_s = 103.0
    assert live.overdue() == ["early", "same", "late"]
    assert live.overdue() == []


def test_a_later_request_of_the_same_id_has_a_limit_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    live, first = LiveRequests(), request_of("a")
    live.add("r", {0: first}, deadline_s=5.0)
    live.remove(first)
    now_s = 104.0
    live.add("r", {0: request_of("b")}, deadline_s=5.0)
    now_s = 106.0
    assert live.overdue() == []
    now_s = 109.0
    assert live.overdue() == ["r"]
