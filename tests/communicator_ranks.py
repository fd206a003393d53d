"""Starts the ranks of the communicators' tests, each in a process of its own."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

RANK = Path(__file__).parent / "kernels" / "communicator_rank.py"


def run_ranks(kind: str, scenario: str, timeout_s: float, ranks: tuple[int, ...] = (0, 1)) -> list[str]:
    """What each rank printed.

    Args:
        kind: "gloo", "nccl" or "sockets".
        ranks: those of the two that are started.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    processes = [
        subprocess.Popen(
            [sys.executable, str(RANK), kind, scenario, str(rank), port, str(timeout_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        for rank in ranks
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        outputs = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, complaint) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, complaint
    return [said.strip() for said, _ in outputs]


def seconds(line: str) -> float:
    """How long a rank waited until it gave up."""
    match = re.match(r"CommunicatorError after ([\d.]+) s: ", line)
    assert match, line
    return float(match.group(1))
