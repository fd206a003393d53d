"""Programs in an interpreter of their own, where nothing is imported yet."""

from __future__ import annotations

import os
import subprocess
import sys


def printed_by(program: str) -> str:
    """What a program prints, run with this interpreter and its import path."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout
