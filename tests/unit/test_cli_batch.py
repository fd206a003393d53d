"""`drivetrain run --batch`: OpenAI's batch files, answered line by line and gone on with where a run stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from drivetrain.errors import ConfigError, Overloaded
from drivetrain.messages import GenerateRequest
from drivetrain_server.cli import engine as cli_engine
from drivetrain_server.cli import models
from drivetrain_server.cli.app import build_app
from drivetrain_server.cli.batch_file import check_ids, keep_answered
from fakes.engine import FakeEngine, says
from fakes.server import frontend_factory
from fakes.text import END

HELLO = [{"role": "user", "content": "Hi"}]


@pytest.fixture(autouse=True)
def engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeEngine:
    fake = FakeEngine(says("Hi you"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli_engine, "new_engine", lambda config: fake)
    monkeypatch.setattr(cli_engine, "frontend_factory", lambda config: frontend_factory)
    monkeypatch.setattr(models, "with_model", lambda config: config)
    return fake


def line(custom_id: str, url: str, **body: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": {"model": "tiny"} | body}


def write(path: Path, *entries: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def run(*more: str) -> Any:
    return CliRunner().invoke(build_app("run"), ["run", "--batch", "in.jsonl", "-o", "out.jsonl", *more])


def answers(path: Path) -> dict[str, dict[str, Any]]:
    entries = [json.loads(raw) for raw in path.read_text().splitlines()]
    return {entry["custom_id"]: entry["response"] for entry in entries}


def test_every_kind_of_request_is_answered_under_its_id(engine: FakeEngine, tmp_path: Path) -> None:
    write(
        tmp_path / "in.jsonl",
        line("chat", "/v1/chat/completions", messages=HELLO),
        line("text", "/v1/completions", prompt="a", max_tokens=2),
        line("vector", "/v1/embeddings", input=[3, 4], encoding_format="float"),
        line("response", "/v1/responses", input="Hi"),
    )
    result = run()
    assert result.exit_code == 0
    assert "wrote 4 answers to out.jsonl, 0 of them errors" in result.stderr
    found = answers(tmp_path / "out.jsonl")
    assert {name: each["status_code"] for name, each in found.items()} == dict.fromkeys(
        ("chat", "text", "vector", "response"), 200
    )
    assert found["chat"]["body"]["choices"][0]["message"]["content"] == "Hi you"
    assert found["text"]["body"]["choices"][0]["text"] == "Hi"
    assert found["vector"]["body"]["data"][0]["embedding"][:2] == pytest.approx([0.6, 0.8])
    assert found["response"]["body"]["output"][0]["content"][0]["text"] == "Hi you"
    assert engine.was_shut_down


def test_errors_are_those_of_their_lines(tmp_path: Path) -> None:
    write(
        tmp_path / "in.jsonl",
        line("ok", "/v1/completions", prompt="a"),
        line("field", "/v1/completions", prompt="a", temperature="hot"),
        line("stream", "/v1/completions", prompt="a", stream=True),
        line("url", "/v1/images", prompt="a"),
        line("model", "/v1/completions", prompt="a") | {"body": {"model": "other", "prompt": "a"}},
        {"custom_id": "method", "method": "GET", "url": "/v1/completions", "body": {}},
        {"custom_id": "body", "method": "POST", "url": "/v1/completions"},
    )
    assert "wrote 7 answers to out.jsonl, 6 of them errors" in run().stderr
    found = answers(tmp_path / "out.jsonl")
    assert {name: each["status_code"] for name, each in found.items()} == {
        "ok": 200,
        "field": 400,
        "stream": 400,
        "url": 400,
        "model": 404,
        "method": 400,
        "body": 400,
    }
    params = {name: each["body"]["error"]["param"] for name, each in found.items() if name != "ok"}
    assert params == {
        "field": "temperature",
        "stream": "stream",
        "url": "url",
        "model": "model",
        "method": "method",
        "body": "body",
    }


def test_a_second_run_goes_on_where_the_first_stopped(engine: FakeEngine, tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", *(line(f"r{at}", "/v1/completions", prompt=str(at)) for at in range(5)))
    run()
    whole = (tmp_path / "out.jsonl").read_text().splitlines(keepends=True)
    failed = json.loads(whole[1])
    failed["response"] = {"status_code": 503, "request_id": "x", "body": {}}
    (tmp_path / "out.jsonl").write_text(whole[0] + json.dumps(failed) + "\n" + whole[2] + whole[3][:20])
    engine.requests.clear()
    assert "wrote 3 answers to out.jsonl, 0 of them errors, 2 were there before" in run().stderr
    assert len(engine.requests) == 3
    found = answers(tmp_path / "out.jsonl")
    assert set(found) == {f"r{at}" for at in range(5)}
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 5
    assert all(each["status_code"] == 200 for each in found.values())


def test_a_busy_engine_is_asked_again(engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def script(request: GenerateRequest, index: int) -> list[int]:
        tried.append(request.request_id)
        if len(tried) == 1:
            raise Overloaded("the queue is full", retry_after_s=0.1)
        return [*b"Hi", END]

    engine.script = script
    write(tmp_path / "in.jsonl", line("a", "/v1/completions", prompt="a"))
    run()
    assert answers(tmp_path / "out.jsonl")["a"]["status_code"] == 200
    assert len(tried) == 2


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("", "got no request"),
        ("[1]\n", "in.jsonl:1: expected a JSON object"),
        ('{"custom_id": 5}\n', "in.jsonl:1: expected a text as custom_id, got 5"),
        ('{"custom_id": "a"}\n\n{"custom_id": "a"}\n', "in.jsonl:3: custom_id 'a' is that of line 1"),
    ],
)
def test_a_file_that_is_no_batch_is_refused_before_the_start(tmp_path: Path, raw: str, message: str) -> None:
    (tmp_path / "in.jsonl").write_text(raw)
    with pytest.raises(ConfigError, match=message):
        check_ids(tmp_path / "in.jsonl")


def test_a_file_that_is_no_output_is_left_alone(tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("mine\nand more\n")
    with pytest.raises(ConfigError, match="not the output of a batch"):
        keep_answered(notes)
    assert notes.read_text() == "mine\nand more\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "in.jsonl"], "--output"),
        (["--batch", "in.jsonl", "-o", "out.jsonl", "--raw"], "--raw"),
        (["--batch", "in.jsonl", "-o", "out.jsonl", "--file", "in.jsonl"], "give either"),
        (["--batch", "in.jsonl", "-o", "nowhere/out.jsonl"], "does not exist"),
    ],
)
def test_flags_that_contradict_each_other(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(build_app("run"), ["run", *arguments])
    assert result.exit_code != 0
    assert message in str(result.exception) + result.output
