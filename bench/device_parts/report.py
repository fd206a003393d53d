"""Markdown from the results: tables with what was measured and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from device_parts.settings import ROOT

RIVALS = ROOT / "bench/rivals.json"
SHOWN_KERNELS = 12
SHOWN_FAILURES = 8
FAILURE_CHARS = 300

Results = dict[str, Any]


def read(places: Iterable[Path]) -> Results:
    """Results of several runs, each a folder or a file; of a part that ran twice the later one counts."""
    found: Results = {}
    for place in places:
        path = place / "results.json" if place.is_dir() else place
        found |= json.loads(path.read_text(encoding="utf-8"))
    return found


def markdown(results: Results) -> str:
    """All sections for which there are results."""
    sections = (_machine, _workloads, _steps, _starts, _latency, _checks)
    return "\n\n".join(text for section in sections if (text := section(results))) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *([_cell(value) for value in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value).replace("|", "\\|").replace("\n", " ")


def _offline(results: Results) -> list[Results]:
    return [result for name, result in results.items() if name.startswith("offline ") and "model" in result]


def _machine(results: Results) -> str:
    found = results.get("ceilings") or next((part["ceilings"] for part in _offline(results)), None)
    if not found or "copy_bytes_s" not in found:
        return ""
    software = [f"{name} {found[name]}" for name in ("torch", "triton") if found.get(name)]
    return (
        f"{', '.join([found['device'], *software])}: copy {found['copy_bytes_s'] / 1e12:.3g} TB/s, "
        f"bf16 product {found['product_flop_s'] / 1e12:.4g} TFLOP/s, measured in the same run."
    )


def _workloads(results: Results) -> str:
    rivals: dict[str, Any] = json.loads(RIVALS.read_text(encoding="utf-8"))
    rows: list[list[object]] = []
    for part in _offline(results):
        last = {row["work"]: row for row in part.get("rows", [])}
        for work, row in last.items():
            figure = "total_tok_s" if work == "summarize" else "out_tok_s"
            key = f"{part['model']} {work}"
            floor = row[figure] * row["s"] / row["floor_s"]
            others = rivals["rows"].get(key, [None] * len(rivals["engines"]))
            label = f"`{work}`, total tok/s" if work == "summarize" else f"`{work}`, output tok/s"
            rows.append([part["model"], label, row[figure], floor, f"{row['of_floor']:.0%}", *others])
    if not rows:
        return ""
    head = ["model", "workload", "Drivetrain", "floor", "of the floor", *rivals["engines"]]
    return (
        "### Workloads\n\n" + table(head, rows) + f"\n\nRivals were measured earlier, not in this run: "
        f"{rivals['machine']}."
    )


def _steps(results: Results) -> str:
    texts: list[str] = []
    steps: list[list[object]] = []
    for part in _offline(results):
        for found in part.get("profiles", []):
            steps.append(
                [
                    part["model"],
                    f"`{found['work']}`",
                    found["rows"],
                    found["step_us"],
                    found["floor_us"],
                    found["busy_us"],
                    found["idle_us"],
                    found["launches"],
                ]
            )
            kernels = [
                [f"`{kernel['name']}`", kernel["calls"], kernel["us"], kernel["mean_us"], f"{kernel['share']:.1%}"]
                for kernel in found["kernels"][:SHOWN_KERNELS]
            ]
            head = ["kernel", "calls a step", "us a step", "us a call", "share"]
            texts.append(f"{part['model']}, `{found['work']}`:\n\n" + table(head, kernels))
    if not steps:
        return ""
    head = ["model", "workload", "rows", "step, us", "floor, us", "device busy, us", "idle (traced), us", "kernels"]
    return "\n\n".join(["### A decode step", table(head, steps), *texts])


def _starts(results: Results) -> str:
    found = results.get("startup", {})
    rows = [
        [
            start["kind"],
            start["ready_s"],
            start["first_token_s"],
            start["second_request_ttft_s"] * 1000,
            ", ".join(f"{name} {seconds:.1f}" for name, seconds in start["phases"].items()),
        ]
        for start in found.get("starts", [])
    ]
    if not rows:
        return ""
    head = ["caches", "ready, s", "first token over HTTP, s", "next request's first token, ms", "phases, s"]
    return f"### Start of the server, {found['model']}\n\n" + table(head, rows)


def _latency(results: Results) -> str:
    found = results.get("latency", {})
    rows: list[list[object]] = []
    for row in found.get("rates", []):
        first, between = row["ttft_ms"] or {}, row["itl_ms"] or {}
        rows.append(
            [
                f"{row['rate']:g}",
                row["requests_per_s"],
                row["output_tokens_per_s"],
                *(first.get(each) for each in ("p50", "p99")),
                *(between.get(each) for each in ("p50", "p99")),
                row["failed"],
            ]
        )
    if not rows:
        return ""
    head = [
        "requests/s",
        "answered/s",
        "output tok/s",
        "TTFT p50, ms",
        "p99",
        "between tokens p50, ms",
        "p99",
        "failed",
    ]
    title = f"### Latency against load, {found['model']}, {found['input_tokens']} + {found['output_tokens']} tokens"
    return f"{title}\n\n" + table(head, rows)


def _checks(results: Results) -> str:
    rows: list[list[object]] = []
    for name, result in results.items():
        failures = "; ".join(text[:FAILURE_CHARS] for text in result["failures"][:SHOWN_FAILURES])
        rows.append([name, result["status"], result["seconds"], _counted(name, result), failures])
    return "### Parts\n\n" + table(["part", "status", "seconds", "counted", "failures"], rows) if rows else ""


def _golden(result: Results) -> int:
    """Golden answers that were right; none where no model was given."""
    golden = result.get("golden", [])
    return sum(row["answers"] - len(row["wrong"]) for row in golden) if isinstance(golden, list) else 0


def _counted(name: str, result: Results) -> str:
    """What a check counted, in words."""
    if name in ("kernels", "device", "conformance"):
        return ", ".join(f"{count} {outcome}" for outcome, count in result.get("counts", {}).items())
    if name == "sanitizer":
        return ", ".join(
            f"{tool['tool']}: {tool['errors']} errors in {len(result['tests'])} tests"
            for tool in result.get("tools", [])
        )
    if name == "served":
        company = result.get("company", {"requests": 0, "embeddings": 0})
        return f"{_golden(result)} golden answers, {company['requests']} others, {company['embeddings']} embeddings"
    if name == "answers":
        tokens = sum(row["tokens"] for row in result.get("random", []))
        forced = sum(row["clear_tokens"] for row in result.get("forced", []))
        return f"{tokens} tokens in fp32, {forced} in bf16, {_golden(result)} golden answers"
    if name == "soak" and "pages" in result:
        used = result["pages"]["used"]
        return f"{result['finished']} finished, {result['aborted']} aborted, {used:g} pages in use afterwards"
    return ""
