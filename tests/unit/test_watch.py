"""What `drivetrain top` makes of two looks at `/metrics`, and how it is shown."""

from __future__ import annotations

import io
import json
from collections import deque

import pytest
from rich.console import Console
from typer.testing import CliRunner

from drivetrain.messages import EngineInfo, EngineStats
from drivetrain_server.cli.app import build_app
from drivetrain_server.cli.top_view import History, screen, sparks
from drivetrain_server.telemetry import Telemetry, render
from drivetrain_server.watch.figures import figures, latency
from drivetrain_server.watch.reading import NotDrivetrain, Reading, read_metrics
from fakes.engine import INFO, FakeEngine
from fakes.server import RunningServer

BEFORE = EngineStats(pages_total=100, pages_free=100, steps=10, prompt_tokens=50, generated_tokens=100, step_s=1.0)
NOW = EngineStats(
    running=3,
    waiting=2,
    pages_total=100,
    pages_free=40,
    pages_cached=35,
    pages_used=25,
    steps=20,
    prompt_tokens=250,
    generated_tokens=140,
    prefix_hit_tokens=50,
    prefix_query_tokens=200,
    preemptions=1,
    finished=4,
    failed=2,
    step_s=1.5,
)


def look(
    at_s: float, stats: EngineStats | None, *, telemetry: Telemetry | None = None, info: EngineInfo | None = INFO
) -> Reading:
    reading = (telemetry or Telemetry()).reading(open_requests=0)
    text = render([reading], ready=stats is not None, info=info, stats=stats)
    return read_metrics(text.decode(), at_s)


def test_figures_are_differences_over_time():
    found = figures(look(10.0, BEFORE), look(12.0, NOW))
    assert (found.model, found.backend, found.status) == ("tiny", "fake", "ready")
    assert (found.running, found.waiting, found.failed, found.preemptions) == (3, 2, 2, 1)
    assert found.pages == {"used": 25, "cached": 35, "free": 40, "capacity": 100}
    assert found.kv_used == 0.25
    assert (found.generated_per_s, found.prompt_per_s, found.requests_per_s) == (20.0, 100.0, 2.0)
    assert (found.busy, found.batch, found.prefix_hits) == (0.25, 4.0, 0.25)


def test_an_engine_that_was_started_again_counts_from_zero():
    found = figures(look(0.0, NOW), look(1.0, EngineStats(generated_tokens=7, steps=7)))
    assert (found.generated_per_s, found.batch, found.prefix_hits) == (7.0, 1.0, None)


def test_a_server_without_an_engine_is_starting():
    found = figures(look(0.0, None, info=None), look(1.0, None, info=None))
    assert (found.status, found.model, found.running, found.kv_used) == ("starting", "", 0, 0.0)


def test_latency_is_that_of_the_interval():
    telemetry = Telemetry()
    telemetry.tokens(9.0, 1, first=True)
    before = look(0.0, BEFORE, telemetry=telemetry)
    for elapsed_s in (0.03, 0.03, 0.03, 0.2):
        telemetry.tokens(elapsed_s, 1, first=True)
    found = figures(before, look(1.0, NOW, telemetry=telemetry))
    assert found.ttft is not None and found.itl is None
    assert found.ttft.count == 4
    assert 25 < found.ttft.p50_ms <= 50 and 100 < found.ttft.p95_ms <= 250


def test_quantiles_are_interpolated_and_bounded():
    inf = float("inf")
    found = latency((), ((0.1, 0.0), (0.2, 10.0), (inf, 10.0)))
    assert found is not None and found.p50_ms == pytest.approx(150)
    beyond = latency((), ((0.1, 0.0), (inf, 4.0)))
    assert beyond is not None and beyond.p95_ms == pytest.approx(100)
    assert latency(((0.1, 3.0), (inf, 3.0)), ((0.1, 3.0), (inf, 3.0))) is None
    again = latency(((0.1, 9.0), (inf, 9.0)), ((0.1, 1.0), (inf, 2.0)))
    assert again is not None and again.count == 2


@pytest.mark.parametrize("text", ["<html>", "up 1\n", "a{b} c"])
def test_what_is_no_drivetrain_is_told(text):
    with pytest.raises(NotDrivetrain):
        read_metrics(text, 0.0)


def test_the_screen_shows_the_figures():
    out = io.StringIO()
    history = History()
    now = figures(look(10.0, BEFORE), look(12.0, NOW))
    history.add(now)
    Console(file=out, width=100, force_terminal=False).print(screen("http://x:1", now, history))
    shown = out.getvalue()
    for expected in ("tiny", "http://x:1", "ready", "2 waiting", "25.0%", "25 used, 35 cached of 100", "20.0", "100.0"):
        assert expected in shown
    assert max(map(len, shown.splitlines())) <= 100


def test_sparks_follow_the_values():
    assert sparks(deque([0.0, 5.0, 10.0])) == "[cyan]▁▅█[/cyan]"
    assert sparks(deque([0.0, 0.0])) == "[dim]▁▁[/dim]"


def test_top_of_a_real_server():
    with RunningServer(FakeEngine(), api_keys=("secret",)) as server:
        arguments = ["top", "--url", server.url, "--interval", "0.1", "--once"]
        told = CliRunner().invoke(build_app("top"), [*arguments, "--api-key", "secret", "--json"])
        shown = CliRunner().invoke(build_app("top"), [*arguments, "--api-key", "secret"])
        refused = CliRunner().invoke(build_app("top"), arguments)
    found = json.loads(told.stdout)
    assert (told.exit_code, found["model"], found["status"], found["pages"]["capacity"]) == (0, "tiny", "ready", 64)
    assert shown.exit_code == 0 and "tiny" in shown.stdout
    assert "the server answered 401" in str(refused.exception)


def test_ps_lists_servers_while_they_live(tmp_path, monkeypatch):
    import os

    from drivetrain_server.running import recorded, records_folder

    monkeypatch.setenv("DRIVETRAIN_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    assert "no server runs" in CliRunner().invoke(build_app("ps"), ["ps"]).stdout
    records = records_folder()
    with RunningServer(FakeEngine()) as server, recorded(server.url.replace("127.0.0.1", "0.0.0.0"), "tiny"):
        (records / "4194305.json").write_text(json.dumps({"pid": 4194305, "url": "x", "model": "m", "started": 0}))
        (records / "broken.json").write_text("{")
        (listed,) = json.loads(CliRunner().invoke(build_app("ps"), ["ps", "--json"]).stdout)
        assert (listed["pid"], listed["url"], listed["model"]) == (os.getpid(), server.url, "tiny")
        assert listed["status"] == "ready"
        assert server.url in CliRunner().invoke(build_app("ps"), ["ps"]).stdout
        assert [path.name for path in records.iterdir()] == [f"{os.getpid()}.json"]
    assert list(records.iterdir()) == []
    (records / "4194305.json").write_text(json.dumps({"pid": 4194305, "url": "x", "model": "m", "started": 0}))
    with recorded("http://127.0.0.1:1", "tiny"):
        assert [path.name for path in records.iterdir()] == [f"{os.getpid()}.json"]
