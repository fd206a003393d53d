"""Checks in processes of their own: kernel tests, the conformance suite, and both kinds under compute-sanitizer."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from itertools import groupby

from device_parts.settings import ROOT, Record, Settings

COUNTS = re.compile(r"(\d+) (passed|failed|errors?|skipped|xfailed|deselected)")
LAST_LINE = re.compile(r"\d+ \w+.* in [\d.]+s")
SANITIZER_ERRORS = re.compile(r"ERROR SUMMARY: (\d+) error")
RACES = re.compile(r"RACECHECK SUMMARY: (\d+) hazard")
SHOWN_CHARS = 3000
MOST_WORKERS = 12
"""Processes that share the device: each holds some hundred megabytes of it."""
PYTEST = (sys.executable, "-m", "pytest", "-q", "-W", "default", "-p", "no:cacheprovider", "-p", "no:benchmark")
"""Warnings are not errors: a device machine has other versions of everything."""


def run_kernels(settings: Settings, record: Record) -> None:
    """The kernel tests on the device, side by side: most of their time is compiling."""
    workers = max(1, min(MOST_WORKERS, len(os.sched_getaffinity(0)) - 2))
    parallel = ["-n", str(workers)] if find_spec("xdist") is not None else []
    _run_tests(settings, record, "kernel tests", [settings.kernel_tests, *parallel])


def run_device(settings: Settings, record: Record) -> None:
    """The backend's own tests: memory, graphs and, where there are several devices, the communicator."""
    files = sorted(ROOT.glob(f"tests/kernels/test_{settings.backend}_*.py"))
    if not files:
        record.fail(f"device tests: there is no tests/kernels/test_{settings.backend}_*.py")
        return
    _run_tests(settings, record, "device tests", [str(file.relative_to(ROOT)) for file in files])


def run_conformance(settings: Settings, record: Record) -> None:
    """The conformance suite on the configured backend."""
    from drivetrain_plugins.selection import choose_backend

    spec = choose_backend(settings.backend).spec
    assert spec is not None, "a selected backend has a spec"
    options = json.dumps(settings.engine.get("backend_options", {}).get(spec.name, {}))
    answer = subprocess.run(
        [sys.executable, "-m", "drivetrain_plugins.conformance", spec.backend, options],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    lines = [json.loads(line) for line in answer.stdout.splitlines() if line.startswith("{")]
    results = lines[-1].get("results", []) if lines else []
    failed = [f"{result['name']}: {result['reason']}" for result in results if result["outcome"] == "failed"]
    counts = {
        outcome: sum(result["outcome"] == outcome for result in results) for outcome in ("passed", "failed", "skipped")
    }
    skipped = [f"{result['name']}: {result['reason']}" for result in results if result["outcome"] == "skipped"]
    record.put(backend=spec.backend, counts=counts, failed=failed, skipped=skipped, returncode=answer.returncode)
    print(f"conformance of {spec.backend}: {counts}")
    if answer.returncode or not counts["passed"]:
        record.fail(f"conformance: exit status {answer.returncode}, {counts}: {'; '.join(failed)[:SHOWN_CHARS]}")


def run_sanitizer(settings: Settings, record: Record) -> None:
    """A few kernel tests of each file under compute-sanitizer.

    A test that fails there is told apart from an error of memory or a race: under memcheck PyTorch's caching allocator
    is off, so that every tensor has its own bounds, and capture into a graph may not work then.
    """
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not os.path.exists(program):
        record.fail("sanitizer: compute-sanitizer is not on PATH; install the CUDA toolkit")
        return
    tests = _some_tests(settings)
    record.put(tests=tests)
    if not tests:
        record.fail(f"sanitizer: no tests in {settings.kernel_tests} that match {settings.kernel_select!r}")
    for tool in settings.sanitizer_tools if tests else ():
        command = [program, "--tool", tool, "--error-exitcode", "9", "--print-limit", "20"]
        environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if tool in ("memcheck", "initcheck") else {}
        found = _pytest(settings, tests, command, environment)
        summaries = SANITIZER_ERRORS.findall(found["output"]) + RACES.findall(found["output"])
        errors = sum(map(int, summaries)) if summaries else None
        record.append("tools", {"tool": tool, "errors": errors} | found)
        if errors is None:
            record.fail(f"{tool}: no summary in its output: {found['output'][-SHOWN_CHARS:]}")
        elif errors:
            record.fail(f"{tool}: {errors} errors")


def _run_tests(settings: Settings, record: Record, what: str, tests: list[str]) -> None:
    found = _pytest(settings, tests)
    record.put(**found)
    if found["returncode"]:
        record.fail(f"{what}: exit status {found['returncode']}, {found['counts']}")


def _some_tests(settings: Settings) -> list[str]:
    """Node ids, spread evenly over each file's tests."""
    command = [*PYTEST, "--collect-only", settings.kernel_tests]
    if settings.kernel_select:
        command += ["-k", settings.kernel_select]
    answer = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    ids = [line for line in answer.stdout.splitlines() if "::" in line and not line.startswith(("ERROR", "FAILED"))]
    chosen: list[str] = []
    for _, of_file in groupby(ids, key=lambda test: test.split("::")[0]):
        tests = list(of_file)
        step = max(1, len(tests) // settings.sanitizer_tests)
        chosen += tests[::step][: settings.sanitizer_tests]
    return chosen


def _pytest(
    settings: Settings, tests: list[str], wrapper: list[str] | None = None, environment: dict[str, str] | None = None
) -> dict[str, object]:
    """Run tests and read pytest's last line."""
    command = [*(wrapper or []), *PYTEST, *tests]
    if settings.kernel_select and not wrapper:
        command += ["-k", settings.kernel_select]
    started = time.perf_counter()
    lines: list[str] = []
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            print(line, end="", flush=True)
    returncode = process.returncode
    output = "".join(lines)
    last = next((line for line in reversed(lines) if LAST_LINE.search(line)), "")
    counts = {outcome: int(count) for count, outcome in COUNTS.findall(last)}
    failed = [line.strip() for line in lines if line.startswith(("FAILED ", "ERROR "))]
    return {
        "returncode": returncode,
        "counts": counts,
        "seconds": round(time.perf_counter() - started, 1),
        "failed": failed[:100],
        "output": output[-SHOWN_CHARS:],
    }
