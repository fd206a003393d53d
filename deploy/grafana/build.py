"""Writes the dashboards of this folder: `python deploy/grafana/build.py [--check]`.

One panel a line here, so that the JSON, which Grafana wants long, is never edited by hand.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
PANEL_WIDTH, PANEL_HEIGHT, ROW_WIDTH = 8, 8, 24
WHERE = '{instance=~"$instance"}'
"""Put into every query: one server, several, or all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One picture.

    Attributes:
        queries: legend to PromQL; `$where` is the choice of servers.
        about: what to look for.
        stacked: shares of a whole.
    """

    title: str
    unit: str
    queries: dict[str, str]
    about: str
    stat: bool = False
    stacked: bool = False


def per_second(metric: str, by: str = "") -> str:
    return f"sum{f' by ({by})' if by else ''} (rate({metric}{WHERE}[$__rate_interval]))"


def quantile(share: float, metric: str, by: str = "") -> str:
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, sum by ({labels}) (rate({metric}_bucket{WHERE}[$__rate_interval])))"


def quantiles(metric: str) -> dict[str, str]:
    return {f"p{share * 100:g}": quantile(share, metric) for share in (0.5, 0.9, 0.95, 0.99)}


def total(metric: str, by: str = "") -> str:
    return f"sum{f' by ({by})' if by else ''} ({metric}{WHERE})"


def share(part: str, whole: str) -> str:
    return f"{per_second(part)} / clamp_min({per_second(whole)}, 1e-9)"


KV_USED = f'sum (drivetrain_kv_pages{{instance=~"$instance", state="used"}}) / {total("drivetrain_kv_pages_capacity")}'
ERRORS = 'sum (rate(drivetrain_http_requests_total{instance=~"$instance", status=~"5.."}[$__rate_interval]))'

SERVED = f"count by (model, backend, device, dtype) (drivetrain_engine_info{WHERE})"

OVERVIEW = [
    Panel(
        title="Servers ready",
        unit="short",
        stat=True,
        queries={"ready": total("drivetrain_ready")},
        about="Servers that take requests.",
    ),
    Panel(
        title="Generated tokens",
        unit="short",
        stat=True,
        queries={"tokens/s": per_second("drivetrain_generated_tokens_total")},
        about="A second, over all servers.",
    ),
    Panel(
        title="KV cache in use",
        unit="percentunit",
        stat=True,
        queries={"used": KV_USED},
        about="Near 1, requests wait or give way.",
    ),
    Panel(
        title="Requests",
        unit="reqps",
        queries={"{{status}}": per_second("drivetrain_http_requests_total", "status")},
        about="Answers a second by status; 499 is a client that went away.",
        stacked=True,
    ),
    Panel(
        title="Answers of 5xx",
        unit="percentunit",
        queries={"share": f"{ERRORS} / clamp_min({per_second('drivetrain_http_requests_total')}, 1e-9)"},
        about="Overload, a draining server or a dead engine.",
    ),
    Panel(
        title="Open requests",
        unit="short",
        queries={
            "open": total("drivetrain_open_requests"),
            "running": total("drivetrain_requests_running"),
            "waiting": total("drivetrain_requests_waiting"),
        },
        about="Waiting ones that stay: more load than there is room for.",
    ),
    Panel(
        title="Tokens",
        unit="short",
        queries={
            "prompt": per_second("drivetrain_prompt_tokens_total"),
            "generated": per_second("drivetrain_generated_tokens_total"),
        },
        about="A second.",
    ),
    Panel(
        title="Time to first token",
        unit="s",
        queries=quantiles("drivetrain_time_to_first_token_seconds"),
        about="From arrival, queue included.",
    ),
    Panel(
        title="Time between tokens",
        unit="s",
        queries=quantiles("drivetrain_inter_token_seconds"),
        about="What a reader of a stream feels.",
    ),
    Panel(
        title="Clients that left",
        unit="short",
        queries={
            "left": per_second("drivetrain_client_disconnects_total"),
            "stopped reading": per_second("drivetrain_slow_readers_total"),
        },
        about="A second.",
    ),
    Panel(
        title="What is served",
        unit="short",
        queries={"{{model}} on {{backend}} ({{device}}, {{dtype}})": SERVED},
        about="Servers by model.",
    ),
]

LATENCY = [
    Panel(
        title="Time to first token",
        unit="s",
        queries=quantiles("drivetrain_time_to_first_token_seconds"),
        about="From arrival to the first token.",
    ),
    Panel(
        title="Time in the queue",
        unit="s",
        queries=quantiles("drivetrain_queue_seconds"),
        about="From arrival at the engine to admission to the batch.",
    ),
    Panel(
        title="Time between tokens",
        unit="s",
        queries=quantiles("drivetrain_inter_token_seconds"),
        about="Every gap counts, so that stalls show at p99.",
    ),
    Panel(
        title="Requests by route, p95",
        unit="s",
        queries={"{{route}}": quantile(0.95, "drivetrain_request_duration_seconds", "route")},
        about="From arrival to the last byte.",
    ),
    Panel(
        title="Requests by route, mean",
        unit="s",
        queries={
            "{{route}}": f"{per_second('drivetrain_request_duration_seconds_sum', 'route')} / "
            f"clamp_min({per_second('drivetrain_request_duration_seconds_count', 'route')}, 1e-9)"
        },
        about="Long answers raise it; compare with the tokens.",
    ),
    Panel(
        title="Generation, p95 by operation",
        unit="s",
        queries={
            "{{gen_ai_operation_name}}": quantile(
                0.95, "gen_ai_server_request_duration_seconds", "gen_ai_operation_name"
            )
        },
        about="Complete answers, under the names of OpenTelemetry.",
    ),
    Panel(
        title="Mean time for each token after the first",
        unit="s",
        queries={
            f"p{part * 100:g}": quantile(part, "gen_ai_server_time_per_output_token_seconds") for part in (0.5, 0.95)
        },
        about="Of each complete answer.",
    ),
    Panel(
        title="First token by model, p95",
        unit="s",
        queries={
            "{{gen_ai_request_model}}": quantile(
                0.95, "gen_ai_server_time_to_first_token_seconds", "gen_ai_request_model"
            )
        },
        about="Where several models are served.",
    ),
    Panel(
        title="First tokens within 1 s",
        unit="percentunit",
        queries={
            "share": f'sum (rate(drivetrain_time_to_first_token_seconds_bucket{{instance=~"$instance", le="1"}}'
            f"[$__rate_interval])) / clamp_min("
            f"{per_second('drivetrain_time_to_first_token_seconds_count')}, 1e-9)"
        },
        about="A goal to alert on.",
    ),
]

ENGINE = [
    Panel(
        title="Sequences",
        unit="short",
        queries={"running": total("drivetrain_requests_running"), "waiting": total("drivetrain_requests_waiting")},
        about="In the batch, and outside it.",
    ),
    Panel(
        title="KV pages",
        unit="short",
        queries={"{{state}}": total("drivetrain_kv_pages", "state")},
        about="Cached pages are free for whoever needs them.",
        stacked=True,
    ),
    Panel(
        title="Prefix hits",
        unit="percentunit",
        queries={"share": share("drivetrain_prefix_hit_tokens_total", "drivetrain_prefix_query_tokens_total")},
        about="Prompt tokens that were not computed again.",
    ),
    Panel(
        title="Preemptions",
        unit="short",
        queries={"a second": per_second("drivetrain_preemptions_total")},
        about="Sequences that gave way: raise kv_memory or lower max_num_seqs.",
    ),
    Panel(
        title="Steps sat out",
        unit="short",
        queries={
            "held now": total("drivetrain_requests_held"),
            "awaiting pages now": total("drivetrain_requests_awaiting_pages"),
            "for a {{awaited}}, a second": per_second("drivetrain_held_rows_total", "awaited"),
        },
        about="Slow masks of grammars, or a KV cache that is full.",
    ),
    Panel(
        title="Device busy",
        unit="percentunit",
        queries={"{{instance}}": per_second("drivetrain_step_seconds_total", "instance")},
        about="The share of time in which a step was under way.",
    ),
    Panel(
        title="Steps",
        unit="short",
        queries={"a second": per_second("drivetrain_steps_total")},
        about="Each gives every running sequence a token.",
    ),
    Panel(
        title="Mean step",
        unit="s",
        queries={
            "step": share("drivetrain_step_seconds_total", "drivetrain_steps_total"),
            "host": share("drivetrain_schedule_seconds_total", "drivetrain_steps_total"),
        },
        about="Time of a step, and of scheduling it.",
    ),
    Panel(
        title="Tokens a step",
        unit="short",
        queries={"generated": share("drivetrain_generated_tokens_total", "drivetrain_steps_total")},
        about="The batch that the device really sees.",
    ),
    Panel(
        title="Ends",
        unit="short",
        queries={
            "finished": per_second("drivetrain_finished_requests_total"),
            "failed": per_second("drivetrain_failed_requests_total"),
            "ended from outside": per_second("drivetrain_aborted_requests_total"),
        },
        about="Requests a second.",
    ),
]

DASHBOARDS = {"overview": OVERVIEW, "latency": LATENCY, "engine": ENGINE}


def rendered(name: str) -> str:
    """A dashboard as Grafana imports it."""
    panels = [_panel(place, panel) for place, panel in enumerate(DASHBOARDS[name])]
    board: dict[str, Any] = {
        "uid": f"drivetrain-{name}",
        "title": f"Drivetrain / {name}",
        "tags": ["drivetrain"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "links": [
            {"type": "dashboards", "tags": ["drivetrain"], "title": "Drivetrain", "asDropdown": False, "keepTime": True}
        ],
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Source"},
                {
                    "name": "instance",
                    "type": "query",
                    "label": "Server",
                    "datasource": SOURCE,
                    "multi": True,
                    "includeAll": True,
                    "allValue": ".*",
                    "refresh": 2,
                    "query": {"query": "label_values(drivetrain_ready, instance)", "refId": "instance"},
                    "current": {"text": "All", "value": "$__all"},
                },
            ]
        },
        "panels": panels,
    }
    return json.dumps(board, indent=1) + "\n"


def _panel(place: int, panel: Panel) -> dict[str, Any]:
    per_row = ROW_WIDTH // PANEL_WIDTH
    custom = {"fillOpacity": 30 if panel.stacked else 8, "stacking": {"mode": "normal" if panel.stacked else "none"}}
    return {
        "id": place + 1,
        "type": "stat" if panel.stat else "timeseries",
        "title": panel.title,
        "description": panel.about,
        "datasource": SOURCE,
        "gridPos": {
            "x": place % per_row * PANEL_WIDTH,
            "y": place // per_row * PANEL_HEIGHT,
            "w": PANEL_WIDTH,
            "h": PANEL_HEIGHT,
        },
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "min": 0, "custom": {} if panel.stat else custom},
            "overrides": [],
        },
        "options": {} if panel.stat else {"tooltip": {"mode": "multi", "sort": "desc"}},
        "targets": [
            {"refId": chr(ord("A") + at), "expr": query, "legendFormat": legend, "datasource": SOURCE}
            for at, (legend, query) in enumerate(panel.queries.items())
        ],
    }


def main() -> int:
    stale = [name for name in DASHBOARDS if _path(name).exists() is False or _path(name).read_text() != rendered(name)]
    if "--check" in sys.argv[1:]:
        print(f"stale: {', '.join(stale)}" if stale else "all dashboards are in step")
        return 1 if stale else 0
    for name in stale:
        _path(name).write_text(rendered(name))
    return 0


def _path(name: str) -> Path:
    return HERE / f"{name}.json"


if __name__ == "__main__":
    sys.exit(main())
