"""`bench` and `chat --url` against the real server, over an engine that says what it was told to."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from drivetrain_server.cli.app import build_app
from fakes.engine import FakeEngine, says
from fakes.server import RunningServer


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
        result = invoke("bench", "--url", server.url, "--num-requests", "2", "--vocab-size", "250", "--json")
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
    assert "the server answered 401" in refused.stderr


def test_chat_prints_answers_as_json():
    with RunningServer(FakeEngine(says("Grüße!"))) as server:
        result = invoke("chat", "--url", server.url, "--json", typed="hello\n/undo\nhi\n")
    assert [json.loads(line) for line in result.stdout.splitlines()] == [
        {"role": "assistant", "content": "Grüße!"},
        {"role": "assistant", "content": "Grüße!"},
    ]
