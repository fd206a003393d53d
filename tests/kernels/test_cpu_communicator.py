"""The gloo communicator between two processes: what each call does, and what a lost rank looks like."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

RANK = Path(__file__).with_name("communicator_rank.py")


def run_ranks(scenario: str, timeout_s: float, ranks: tuple[int, ...] = (0, 1)) -> list[str]:
    """What each rank printed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    processes = [
        subprocess.Popen(
            [sys.executable, str(RANK), scenario, str(rank), port, str(timeout_s)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        for rank in ranks
    ]
    try:
        outputs = [process.communicate(timeout=60) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, complaint) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, complaint
    return [said.strip() for said, _ in outputs]


def seconds(line: str) -> float:
    match = re.match(r"CommunicatorError after ([\d.]+) s: ", line)
    assert match, line
    return float(match.group(1))


def test_every_collective_does_what_it_says() -> None:
    assert run_ranks("every", 30) == ["done", "done"]


@pytest.mark.parametrize("scenario", ["dies", "hangs"])
def test_a_lost_rank_is_a_clear_error_within_the_limit(scenario: str) -> None:
    survivor, _ = run_ranks(scenario, 3)
    assert seconds(survivor) < 8
    assert "all_reduce failed on rank 0 of 2 (time limit 3 s)" in survivor


def test_a_rank_that_never_comes_is_a_clear_error_within_the_limit() -> None:
    (alone,) = run_ranks("every", 2, ranks=(0,))
    assert seconds(alone) < 8
    assert "joining tcp://127.0.0.1:" in alone
    assert "rank 0 of 2" in alone
