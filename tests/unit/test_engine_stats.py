"""Where the engine says its time went."""

from __future__ import annotations

import time

import pytest

from fakes.tiny_engine import random_requests, run, tiny_engine


@pytest.mark.parametrize("overlap", [False, True])
def test_step_and_schedule_seconds_make_up_the_time_of_a_run(overlap: bool) -> None:
    shares: list[float] = []
    while len(shares) < 5 and max(shares, default=0.0) < 0.5:  # a machine may stand still between two steps
        engine = tiny_engine(overlap=overlap)
        began = time.perf_counter()
        run(engine, random_requests(3, 6))
        elapsed_s = time.perf_counter() - began
        stats = engine.stats()
        assert stats.step_s <= elapsed_s
        shares.append((stats.step_s + stats.schedule_s) / elapsed_s)
    assert max(shares) >= 0.5, shares
