"""Communicators between two processes of one host: what each call does, and what a lost rank looks like."""

from __future__ import annotations

import pytest

from communicator_ranks import run_ranks, seconds

pytestmark = pytest.mark.parametrize("kind", ["gloo", "sockets"])


def test_every_collective_does_what_it_says(kind: str) -> None:
    assert run_ranks(kind, "every", 30) == ["done", "done"]


@pytest.mark.parametrize("scenario", ["dies", "hangs"])
def test_a_lost_rank_is_a_clear_error_within_the_limit(kind: str, scenario: str) -> None:
    survivor, _ = run_ranks(kind, scenario, 3)
    assert seconds(survivor) < 30
    assert "all_reduce failed on rank 0 of 2 (time limit 3 s)" in survivor


def test_a_rank_that_never_comes_is_a_clear_error_within_the_limit(kind: str) -> None:
    (alone,) = run_ranks(kind, "every", 2, ranks=(0,))
    assert seconds(alone) < 30
    assert "joining tcp://127.0.0.1:" in alone
    assert "rank 0 of 2" in alone
