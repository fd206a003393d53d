"""What the check of several ranks makes of a rank that is not there any more."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from drivetrain_plugins.conformance.check import Violation
from drivetrain_plugins.conformance.ranks import run_ranks

DYING = """
import os, signal

class Backend:
    def open(self, info, options):
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_rank_that_is_killed_is_no_rank_that_agrees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dying.py").write_text(DYING)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    with pytest.raises(Violation, match="rank 0 ended with status -9: it said nothing"):
        run_ranks("dying:Backend", {}, world=1, seed=1)
