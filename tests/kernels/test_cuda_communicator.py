"""The NCCL communicator between two GPUs: what each call does, in graphs too, and what a lost rank looks like."""

from __future__ import annotations

import pytest
import torch

from communicator_ranks import run_ranks, seconds

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two NVIDIA GPUs")


@pytest.mark.parametrize("scenario", ["every", "recorded"])
def test_every_collective_does_what_it_says(scenario: str) -> None:
    assert run_ranks("nccl", scenario, 60) == ["done", "done"]


@pytest.mark.parametrize("scenario", ["dies", "hangs"])
def test_a_lost_rank_is_a_clear_error_within_the_limit(scenario: str) -> None:
    survivor, _ = run_ranks("nccl", scenario, 10)
    assert 9 < seconds(survivor) < 20
    assert "all_reduce did not finish on rank 0 of 2 within the time limit of 10 s" in survivor


def test_a_rank_that_never_comes_is_a_clear_error_within_the_limit() -> None:
    (alone,) = run_ranks("nccl", "every", 3, ranks=(0,))
    assert seconds(alone) < 20
    assert "joining tcp://127.0.0.1:" in alone
    assert "rank 0 of 2" in alone
