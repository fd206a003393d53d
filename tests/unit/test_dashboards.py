"""Grafana's dashboards ask for nothing that `/metrics` does not tell."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
from prometheus_client.parser import text_string_to_metric_families

from drivetrain.messages import EngineStats
from drivetrain_server.telemetry import Telemetry, render
from fakes.engine import INFO

FOLDER = Path(__file__).parents[2] / "deploy" / "grafana"
NAMES = ("overview", "latency", "engine")
TARGET_LABELS = {"instance", "job"}
"""What Prometheus itself adds to every series."""


@pytest.fixture(scope="module")
def exported() -> dict[str, dict[str, set[str]]]:
    """Labels of every series that the server exports, with their values."""
    telemetry = Telemetry()
    telemetry.request("/v1/completions", "POST", 200, 0.1)
    telemetry.request("/v1/completions", "POST", 503, 0.1)
    telemetry.generated("chat", duration_s=1.0, first_token_s=0.5, num_tokens=3)
    text = render([telemetry.reading(open_requests=1)], ready=True, info=INFO, stats=EngineStats()).decode()
    found: dict[str, dict[str, set[str]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = found.setdefault(sample.name, {})
            for label, value in sample.labels.items():
                labels.setdefault(label, set()).add(value)
    return found


def panels(name: str) -> list[dict[str, Any]]:
    return json.loads((FOLDER / f"{name}.json").read_text("utf-8"))["panels"]


def queries() -> Iterator[tuple[str, str, str]]:
    for name in NAMES:
        for panel in panels(name):
            for target in panel["targets"]:
                yield f"{name}: {panel['title']}", target["expr"], target["legendFormat"]


def selectors(node: Any) -> Iterator[Any]:
    """Every vector selector below a node of the parsed query."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    for child in ("expr", "lhs", "rhs", "vector_selector", "param"):
        below = getattr(node, child, None)
        if below is not None and not isinstance(below, str):
            yield from selectors(below)
    for argument in getattr(node, "args", None) or ():
        yield from selectors(argument)


def grouped(node: Any) -> Iterator[str]:
    """Every label that an aggregation below a node groups by."""
    modifier = getattr(node, "modifier", None)
    if isinstance(node, promql_parser.AggregateExpr) and modifier is not None:
        yield from modifier.labels
    for child in ("expr", "lhs", "rhs"):
        below = getattr(node, child, None)
        if below is not None and not isinstance(below, str):
            yield from grouped(below)
    for argument in getattr(node, "args", None) or ():
        yield from grouped(argument)


@pytest.mark.parametrize(("place", "query", "legend"), list(queries()), ids=lambda value: str(value)[:60])
def test_a_query_asks_for_series_and_labels_that_exist(
    exported: dict[str, dict[str, set[str]]], place: str, query: str, legend: str
) -> None:
    parsed = promql_parser.parse(query.replace("$__rate_interval", "1m").replace("$instance", ".*"))
    found = list(selectors(parsed))
    assert found, place
    kept = set(grouped(parsed))
    for selector in found:
        assert selector.name in exported, f"{place}: {selector.name}"
        labels = exported[selector.name]
        for matcher in selector.matchers.matchers:
            assert matcher.name in labels.keys() | TARGET_LABELS, f"{place}: {selector.name} has no {matcher.name}"
            if matcher.name in labels:
                assert any(re.fullmatch(matcher.value, value) for value in labels[matcher.name]), f"{place}: {matcher}"
        assert kept <= labels.keys() | TARGET_LABELS, f"{place}: {selector.name} is grouped by {kept}"
        assert selector.name.endswith("_total") == ("_total" in selector.name)
    for label in re.findall(r"{{(\w+)}}", legend):
        assert label in kept, f"{place}: the legend names {label}"
    if any(selector.name.endswith(("_total", "_bucket", "_count", "_sum")) for selector in found):
        assert "rate(" in query, f"{place}: a counter is shown as it is"


def test_a_name_that_does_not_exist_would_be_found(exported: dict[str, dict[str, set[str]]]) -> None:
    (selector,) = selectors(promql_parser.parse('sum by (le) (rate(drivetrain_nothing_total{state="used"}[5m]))'))
    assert selector.name == "drivetrain_nothing_total"
    assert selector.name not in exported
    assert [matcher.name for matcher in selector.matchers.matchers] == ["state"]


@pytest.mark.parametrize("name", NAMES)
def test_a_dashboard_is_what_its_source_says(name: str) -> None:
    spec = importlib.util.spec_from_file_location("grafana_build", FOLDER / "build.py")
    assert spec is not None and spec.loader is not None
    build = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = build
    try:
        spec.loader.exec_module(build)
        assert (FOLDER / f"{name}.json").read_text("utf-8") == build.rendered(name)
    finally:
        del sys.modules[spec.name]


@pytest.mark.parametrize("name", NAMES)
def test_panels_have_a_place_a_unit_and_a_word_of_advice(name: str) -> None:
    places: set[tuple[int, int]] = set()
    for panel in panels(name):
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        places.add((place["x"], place["y"]))
    assert len(places) == len(panels(name))


def test_every_metric_of_the_engine_is_on_some_dashboard(exported: dict[str, dict[str, set[str]]]) -> None:
    asked = " ".join(query for _, query, _ in queries())
    shown = [name for name in exported if name.startswith("drivetrain_")]
    missing = [name for name in shown if re.sub(r"_(bucket|sum|count)$", "", name) not in asked]
    assert missing == []
