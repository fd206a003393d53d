"""Everything that is measured and checked on a machine with an accelerator, in one command that needs no network.

    python bench/device.py run --out OUT                        every part, on the CUDA backend
    python bench/device.py run --out OUT --only kernels,offline --models Llama-3.1-8B --workloads single,nano
    python bench/device.py run --out OUT --backend cpu --tiny   the same code on a CPU, with a tiny model
    python bench/device.py report OUT...                        the results as Markdown

Each part runs in a process of its own; one that fails, hangs or crashes is reported and the others go on. OUT gets
`results.json` after every part, and `report.md` and `log.txt`. Exits with 1 if a part failed. `bench/device.sh` sets up
a machine that has PyTorch but not Drivetrain's other dependencies.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from device_parts import report
from device_parts.settings import TINY, Record, Settings

MODELS = ("Llama-3.1-8B", "Qwen3-0.6B")
SHOWN = ("ROW ", "PROFILE ", "ANSWERS ", "GOLDEN ", "START ", "LATENCY ", "SOAK ", "FAILED ", "  gap ")
"""Lines of a part that are shown; everything is in log.txt."""
LOG_TAIL = 1500


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part: the function that runs it and how long it may take."""

    target: str
    limit_s: float


PARTS = {
    "ceilings": Part(target="ceilings:run", limit_s=120),
    "kernels": Part(target="checks:run_kernels", limit_s=540),
    "device": Part(target="checks:run_device", limit_s=240),
    "conformance": Part(target="checks:run_conformance", limit_s=400),
    "answers": Part(target="answers:run", limit_s=300),
    "served": Part(target="served:run", limit_s=200),
    "offline": Part(target="offline:run", limit_s=480),
    "startup": Part(target="startup:run", limit_s=300),
    "latency": Part(target="latency:run", limit_s=300),
    "soak": Part(target="soak:run", limit_s=60),
    "sanitizer": Part(target="checks:run_sanitizer", limit_s=540),
}
"""In the order they run. `soak` gets the length of the soak on top."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    _add_run(commands.add_parser("run", help="measure and check"))
    reporting = commands.add_parser("report", help="print the results as Markdown")
    reporting.add_argument("out", nargs="+", type=Path, help="folders or results.json files; a later one wins")
    part = commands.add_parser("part", help="one part in this process")
    part.add_argument("name", choices=PARTS)
    part.add_argument("settings", help="as JSON")
    part.add_argument("result", type=Path)
    given = parser.parse_args(arguments)
    if given.command == "report":
        print(report.markdown(report.read(given.out)))
        return 0
    if given.command == "part":
        return run_part(given.name, Settings.from_json(given.settings), given.result)
    return run_all(given)


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts, of {','.join(PARTS)}")
    parser.add_argument("--backend", default="cuda")
    parser.add_argument("--models", default=",".join(MODELS), help="names of tests/data/configs")
    parser.add_argument("--workloads", default="single,eight,nano,chat,summarize,prefix", help='"none" only profiles')
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--profile", nargs="?", const="single,eight,nano", default="", help="profile these workloads")
    parser.add_argument("--engine", default="{}", help="further fields of EngineConfig, as JSON")
    parser.add_argument(
        "--model",
        default=os.environ.get("GOLDEN_MODEL", ""),
        help="the quick-start model's .gguf file, for the golden outputs [env GOLDEN_MODEL]",
    )
    parser.add_argument("--rates", default="1,4,16,64", help="requests a second of the latency part")
    parser.add_argument("--rate-s", type=float, default=15.0, help="how long each rate is held")
    parser.add_argument("--soak-s", type=float, default=120.0)
    parser.add_argument("--kernel-tests", default="tests/gpu_kernels")
    parser.add_argument("-k", dest="kernel_select", default="", help="kernel tests to run, as pytest's -k")
    parser.add_argument("--sanitizer-tools", default="memcheck", help="of memcheck,racecheck,initcheck,synccheck")
    parser.add_argument("--sanitizer-tests", type=int, default=4, help="tests of each file")
    parser.add_argument("--budget-s", type=float, default=0.0, help="end all parts within this; 0 is no limit")
    parser.add_argument("--tiny", action="store_true", help="try the code: a tiny model, short workloads")
    parser.add_argument("--work", default="", help="folder for models, caches and logs; by default a temporary one")


def settings_of(given: argparse.Namespace, work: str) -> Settings:
    """The settings that a command line asks for."""
    return Settings(
        backend=given.backend,
        work=work,
        models=(TINY,) if given.tiny else _names(given.models),
        workloads=() if given.workloads == "none" else _names(given.workloads),
        repetitions=given.repetitions,
        profile=_names(given.profile),
        engine=json.loads(given.engine),
        golden_model=str(Path(given.model).resolve()) if given.model else "",
        rates=tuple(float(rate) for rate in _names(given.rates)),
        rate_s=given.rate_s,
        soak_s=given.soak_s,
        kernel_tests=given.kernel_tests,
        kernel_select=given.kernel_select,
        sanitizer_tools=_names(given.sanitizer_tools),
        sanitizer_tests=given.sanitizer_tests,
    )


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


def run_all(given: argparse.Namespace) -> int:
    """Every part that was asked for, each in a process of its own."""
    chosen = _names(given.only)
    unknown = [name for name in chosen if name not in PARTS]
    if unknown:
        raise SystemExit(f"--only: got {', '.join(unknown)}, expected some of {', '.join(PARTS)}")
    given.out.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + given.budget_s if given.budget_s else float("inf")
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="drivetrain-bench-") as temporary:
        settings = settings_of(given, given.work or temporary)
        with (given.out / "log.txt").open("a", encoding="utf-8", errors="replace") as log:
            for name, job, part_settings in _jobs(chosen, settings):
                results[name] = _run_child(name, job, part_settings, deadline, log)
                (given.out / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
                (given.out / "report.md").write_text(report.markdown(results), encoding="utf-8")
    failed = [name for name, result in results.items() if result["status"] != "ok"]
    print(f"done: {len(results) - len(failed)} parts ok, failed: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


def _jobs(chosen: tuple[str, ...], settings: Settings) -> list[tuple[str, str, Settings]]:
    """(name of the result, part, settings) of each process; `offline` is one a model."""
    jobs: list[tuple[str, str, Settings]] = []
    for part in PARTS:
        if part in chosen and part == "offline":
            jobs += [(f"offline {model}", part, replace(settings, models=(model,))) for model in settings.models]
        elif part in chosen:
            jobs.append((part, part, settings))
    return jobs


def _run_child(name: str, part: str, settings: Settings, deadline: float, log: TextIO) -> dict[str, Any]:
    """Run a part in a child process. Returns what it recorded, with its status."""
    limit_s = min(PARTS[part].limit_s + (settings.soak_s if part == "soak" else 0), deadline - time.monotonic())
    if limit_s < 5:
        print(f"== {name}: not run, the budget is spent", flush=True)
        return {"status": "not run", "failures": ["the budget was spent"], "seconds": 0.0}
    print(f"== {name}", flush=True)
    log.write(f"\n== {name}\n")
    result = settings.folder("results") / f"{part}.json"
    result.unlink(missing_ok=True)
    command = [sys.executable, __file__, "part", part, settings.to_json(), str(result)]
    started = time.monotonic()
    child = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        start_new_session=True,
    )
    timed_out = threading.Event()

    def stop() -> None:
        timed_out.set()
        os.killpg(child.pid, signal.SIGKILL)

    alarm = threading.Timer(limit_s, stop)
    alarm.start()
    tail = ""
    try:
        assert child.stdout is not None
        for line in child.stdout:
            log.write(line)
            log.flush()
            tail = (tail + line)[-LOG_TAIL:]
            if line.startswith(SHOWN):
                print(line, end="", flush=True)
        returncode = child.wait()
    finally:
        alarm.cancel()
    found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8")) if result.exists() else {"failures": []}
    status = "timed out" if timed_out.is_set() else "ok" if returncode == 0 else "failed"
    if status != "ok" and not found["failures"]:
        found["failures"] = [f"{status} after {limit_s:.0f} s" if timed_out.is_set() else f"exit status {returncode}"]
        print(tail, flush=True)
    found |= {"status": status, "seconds": round(time.monotonic() - started, 1)}
    print(f"== {name}: {status} in {found['seconds']} s", flush=True)
    return found


def run_part(name: str, settings: Settings, result: Path) -> int:
    """One part in this process."""
    # Hundreds of connections, in this process and in the servers under it.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    module, _, function = PARTS[name].target.partition(":")
    record = Record(result)
    record.put()
    getattr(importlib.import_module(f"device_parts.{module}"), function)(settings, record)
    return 1 if record.failures else 0


if __name__ == "__main__":
    sys.exit(main())
