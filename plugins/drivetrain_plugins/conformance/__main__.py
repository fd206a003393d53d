"""Check one backend in this process: `python -m drivetrain_plugins.conformance MODULE:CLASS [OPTIONS] [LEVELS]`.

OPTIONS and LEVELS are JSON: the backend's table, and a list of names; all levels without one.

Prints a JSON object a line: each result as it comes, then the report. Exits with 1 if the backend does not conform.
"""

from __future__ import annotations

import json
import sys

import msgspec

from drivetrain_plugins.conformance.check import LEVELS, Level
from drivetrain_plugins.conformance.report import CheckResult
from drivetrain_plugins.conformance.run import run_conformance


def main(backend: str, options: str = "{}", levels: str = "[]") -> int:
    """Run every check and print what came of it; returns the exit status."""

    def say(result: CheckResult) -> None:
        print(msgspec.json.encode(result).decode(), flush=True)

    chosen = msgspec.json.decode(levels, type=tuple[Level, ...])
    report = run_conformance(backend, json.loads(options), levels=chosen or LEVELS, on_result=say)
    print(report.to_json().decode(), flush=True)
    return 0 if report.passed else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:4]))
