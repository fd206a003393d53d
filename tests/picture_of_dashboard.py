"""A Grafana dashboard drawn from its own JSON: a real Prometheus answers its queries, and SVG shows the answers.

Grafana itself cannot be installed from a package registry; the panels, their places, units and queries are its own.
"""

from __future__ import annotations

import html
import json
import math
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

COLORS = ("#73bf69", "#f2cc0c", "#5794f2", "#ff9830", "#b877d9", "#e05f5f")
CELL, ROW = 51, 27
STEP_S = 1
Ask = Callable[[str], list[dict[str, Any]]]
"""A query to its series over the time since the start."""


@contextmanager
def prometheus(url: str, folder: Path) -> Iterator[Ask]:
    """A Prometheus that scrapes the server at `url` every second; skips the test where none is installed."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("no prometheus is installed (Debian's package of that name)")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    target = url.removeprefix("http://")
    scrape = {"job_name": "drivetrain", "scrape_interval": "1s", "static_configs": [{"targets": [target]}]}
    (folder / "prometheus.yaml").write_text(json.dumps({"scrape_configs": [scrape]}))
    flags = ["--config.file=prometheus.yaml", f"--web.listen-address=127.0.0.1:{port}", "--storage.tsdb.path=data"]
    log = (folder / "prometheus.log").open("w")
    process = subprocess.Popen([program, *flags, "--log.level=error"], cwd=folder, stdout=log, stderr=log)
    began = time.time()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
            _wait(client, process)

            def ask(query: str) -> list[dict[str, Any]]:
                span = {"start": began, "end": time.time(), "step": STEP_S}
                answer = client.get("/api/v1/query_range", params={"query": query, **span}).json()
                assert answer["status"] == "success", answer
                return answer["data"]["result"]

            yield ask
    finally:
        process.terminate()
        process.wait(20)
        log.close()


def _wait(client: httpx.Client, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, "prometheus ended"
        try:
            if client.get("/-/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError("prometheus did not become ready")


def dashboard_html(path: Path, ask: Ask) -> str:
    """A page with every panel in its place."""
    dashboard = json.loads(path.read_text(encoding="utf-8"))
    panels = "".join(_panel(panel, ask) for panel in dashboard["panels"])
    style = (
        "body{margin:0;background:#111217;color:#d8d9da;font:12px Inter,sans-serif}h1{font:500 15px Inter,sans-serif;"
        "margin:14px 18px 10px}svg{display:block}text{fill:#9a9ba0;font-size:10px}.big{fill:#73bf69;font-size:40px;"
        "font-weight:500}.title{fill:#ccccdc;font-size:12px;font-weight:500}"
    )
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in dashboard["panels"]) * ROW
    return (
        f"<!doctype html><meta charset=utf-8><style>{style}</style><h1>{html.escape(dashboard['title'])}</h1>"
        f'<svg width="1280" height="{height}">{panels}</svg>'
    )


def _panel(panel: dict[str, Any], ask: Ask) -> str:
    place = panel["gridPos"]
    x, y = 18 + place["x"] * CELL, place["y"] * ROW
    width, height = place["w"] * CELL - 8, place["h"] * ROW - 8
    unit = panel["fieldConfig"]["defaults"].get("unit", "short")
    lines = [line for target in panel["targets"] for line in _lines(target, ask)]
    title = f'<text class="title" x="10" y="18">{html.escape(panel["title"])}</text>'
    if panel["type"] == "stat":
        latest = lines[0][1][-1][1] if lines else math.nan
        shown = _spelled(latest, unit)
        body = f'<text class="big" x="{width / 2}" y="{height / 2 + 22}" text-anchor="middle">{shown}</text>'
    else:
        body = _chart(lines, unit, width, height)
    frame = f'<rect width="{width}" height="{height}" rx="3" fill="#181b1f" stroke="#25272c"/>'
    return f'<g transform="translate({x},{y})">{frame}{title}{body}</g>'


def _lines(target: dict[str, Any], ask: Ask) -> list[tuple[str, list[tuple[float, float]]]]:
    query = target["expr"].replace("$instance", ".*").replace("$__rate_interval", "6s")
    found: list[tuple[str, list[tuple[float, float]]]] = []
    for series in ask(query):
        labels: dict[str, str] = series["metric"]
        label = re.sub(r"\{\{(\w+)\}\}", lambda name, of=labels: of.get(name[1], ""), target["legendFormat"])
        points = [(float(at), float(value)) for at, value in series["values"]]
        points = [(at, value) for at, value in points if math.isfinite(value)]
        if points:
            found.append((label, points))
    return found


def _chart(lines: list[tuple[str, list[tuple[float, float]]]], unit: str, width: float, height: float) -> str:
    if not lines:
        return f'<text x="{width / 2}" y="{height / 2}" text-anchor="middle">No data</text>'
    left, top, right, bottom = 52.0, 30.0, width - 12, height - 36
    times = [at for _, points in lines for at, _ in points]
    first, last = min(times), max(*times, min(times) + 1)
    most = max(value for _, points in lines for _, value in points) * 1.1 or 1.0
    parts: list[str] = []
    for tick in range(5):
        at = bottom - (bottom - top) * tick / 4
        label = _spelled(most * tick / 4, unit)
        parts.append(f'<line x1="{left}" x2="{right}" y1="{at}" y2="{at}" stroke="#25272c"/>')
        parts.append(f'<text x="{left - 6}" y="{at + 3}" text-anchor="end">{label}</text>')
    mark = left
    for number, (label, points) in enumerate(lines):
        color = COLORS[number % len(COLORS)]
        spots = " ".join(
            f"{left + (right - left) * (at - first) / (last - first):.1f},{bottom - (bottom - top) * value / most:.1f}"
            for at, value in points
        )
        parts.append(f'<polyline points="{spots}" fill="none" stroke="{color}" stroke-width="1.5"/>')
        shown = html.escape(label[:40])
        parts.append(f'<rect x="{mark}" y="{height - 19}" width="10" height="3" fill="{color}"/>')
        parts.append(f'<text x="{mark + 14}" y="{height - 14}">{shown}</text>')
        mark += 26 + 6 * len(shown)
    return "".join(parts)


def _spelled(value: float, unit: str) -> str:
    if math.isnan(value):
        return "-"
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    if unit == "s":
        return f"{value * 1000:.3g} ms" if value < 1 else f"{value:.3g} s"
    return f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"
