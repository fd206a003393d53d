"""`bench` and `chat --url` against the real server, over an engine that says what it was told to."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time

from typer.testing import CliRunner

from drivetrain_server.cli.app import build_app
from drivetrain_server.running import recorded
from fakes.engine import FakeEngine, says
from fakes.server import RunningServer
from fakes.waiting import LIMIT_S


def invoke(*arguments: str, typed: str = ""):
    return CliRunner().invoke(build_app(arguments[0]), list(arguments), input=typed)


def test_bench_counts_what_the_engine_made():
    engine = FakeEngine(says("x" * 100))
    with RunningServer(engine) as server:
        sizes = ("--num-requests", "6", "--input-tokens", "9", "--output-tokens", "20", "--vocab-size", "250")
        result = invoke("bench", "--url", server.url, *sizes, "--json")
    report = json.loads(result.stdout)
    assert result.exit_code == 0, report["problems"]
    assert report["load"]["model"] == "tiny"
    assert (report["succeeded"], report["input_tokens"], report["output_tokens"]) == (6, 54, 120)
    assert {len(request.prompt_ids) for request in engine.requests} == {9}
    assert all(request.params.ignore_eos and request.params.temperature == 0 for request in engine.requests)


def test_bench_fails_where_the_engine_fails():
    engine = FakeEngine(says("x" * 100))
    engine.fail_at = 3
    with RunningServer(engine) as server:
        sizes = ("--num-requests", "2", "--vocab-size", "250")
        warm_up = invoke("bench", "--url", server.url, *sizes)
        result = invoke("bench", "--url", server.url, *sizes, "--warmup", "0", "--json")
    assert (warm_up.exit_code, warm_up.stdout) == (1, "")
    assert str(warm_up.exception).startswith("none of 1 warm-up requests succeeded: ")
    assert "page 7 was lost" in str(warm_up.exception)
    report = json.loads(result.stdout)
    assert (result.exit_code, report["succeeded"], report["failed"]) == (1, 0, 2)
    assert "page 7 was lost" in str(report["problems"])


def test_chat_streams_from_the_server_with_a_key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    engine = FakeEngine(says("Grüße!"))
    with RunningServer(engine, api_keys=("secret",)) as server:
        result = invoke("chat", "--url", server.url, "--max-tokens", "50", typed="hello\n")
        refused = invoke("chat", "tiny", "--url", server.url, "--api-key", "wrong", typed="hello\n")
    assert (result.exit_code, result.stdout) == (0, "Grüße!\n")
    assert engine.requests[0].params.max_tokens == 50
    assert "the server answered 401" in str(refused.exception)


def test_chat_joins_the_server_that_runs_here_unless_a_model_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("DRIVETRAIN_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with RunningServer(FakeEngine(says("joined"))) as server, recorded(server.url, "tiny"):
        joined = invoke("chat", typed="hello\n")
        named = invoke("chat", "no-such-model", typed="hello\n")
        (tmp_path / "drivetrain.toml").write_text('model = "another"\n')
        configured = invoke("chat", typed="hello\n")
    assert (joined.exit_code, joined.stdout) == (0, "joined\n")
    assert f"tiny at {server.url}" in joined.stderr
    assert "no model 'no-such-model'" in str(named.exception)
    assert "no model 'another'" in str(configured.exception), "another model is served"


def test_chat_waits_for_a_server_that_starts(monkeypatch, tmp_path):
    monkeypatch.setenv("DRIVETRAIN_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    engine = FakeEngine(says("joined"))
    engine.start_gate = threading.Event()
    with RunningServer(engine, wait=False) as server, recorded(server.url, "tiny"):
        threading.Timer(1.0, engine.start_gate.set).start()
        result = invoke("chat", typed="hello\n")
    assert (result.exit_code, result.stdout) == (0, "joined\n")
    assert f"waiting for {server.url}, which is starting" in result.stderr


def test_chat_prints_answers_as_json():
    with RunningServer(FakeEngine(says("Grüße!"))) as server:
        result = invoke("chat", "--url", server.url, "--json", typed="hello\n/undo\nhi\n")
    assert [json.loads(line) for line in result.stdout.splitlines()] == [
        {"role": "assistant", "content": "Grüße!"},
        {"role": "assistant", "content": "Grüße!"},
    ]


def test_top_fills_a_terminal_and_leaves_it_as_it_was():
    with RunningServer(FakeEngine()) as server:
        main, terminal = pty.openpty()
        program = "from drivetrain_server.cli import main; main()"
        command = [sys.executable, "-c", program, "top", "--url", server.url, "--interval", "0.1"]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(sys.path),
            "TERM": "xterm-256color",
            "COLUMNS": "90",
            "LINES": "24",
        }
        process = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, env=environment)
        os.close(terminal)
        shown = b""
        deadline = time.monotonic() + LIMIT_S
        while shown.count(b"generated tok/s") < 3 and time.monotonic() < deadline:
            shown += os.read(main, 65536)
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(OSError):  # The terminal reads as broken once nobody holds its other end.
            while piece := os.read(main, 65536):
                shown += piece
        os.close(main)
    assert process.wait(LIMIT_S) == 130
    assert shown.count(b"generated tok/s") >= 3
    assert shown.count(b"\x1b[?1049h") == shown.count(b"\x1b[?1049l") == 1, "the other screen is entered and left"
    assert shown.rindex(b"\x1b[?25h") > shown.rindex(b"\x1b[?25l"), "the cursor is there again"
    assert b"Traceback" not in shown


def test_top_without_a_terminal_writes_lines_until_it_is_stopped():
    with RunningServer(FakeEngine()) as server:
        program = "from drivetrain_server.cli import main; main()"
        command = [sys.executable, "-c", program, "top", "--url", server.url, "--interval", "0.1"]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
            lines = [json.loads(process.stdout.readline()) for _ in range(3)]
            process.send_signal(signal.SIGINT)
            errors = process.communicate(timeout=LIMIT_S)[1]
    assert [line["model"] for line in lines] == ["tiny"] * 3
    assert (process.returncode, errors) == (130, b"")
