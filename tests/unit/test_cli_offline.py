"""`drivetrain run`, `chat` and `serve` on an engine of their own."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from drivetrain.errors import EngineDead, PromptTooLong
from drivetrain_server import serve as server
from drivetrain_server.cli import conversation, models
from drivetrain_server.cli import engine as cli_engine
from drivetrain_server.cli.app import build_app
from fakes.dialects import QWEN3, frontends_with
from fakes.engine import FakeEngine, says
from fakes.server import frontend_factory


@pytest.fixture(autouse=True)
def engine(monkeypatch, tmp_path) -> FakeEngine:
    fake = FakeEngine(says("Hi you"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DRIVETRAIN_HOME", str(tmp_path / "home"))  # where the servers of this machine are not
    monkeypatch.setattr(cli_engine, "new_engine", lambda config: fake)
    monkeypatch.setattr(cli_engine, "frontend_factory", lambda config: frontend_factory)
    monkeypatch.setattr(models, "with_model", lambda config: config)
    return fake


def invoke(*arguments: str, typed: str = ""):
    return CliRunner().invoke(build_app(arguments[0]), list(arguments), input=typed)


def prompts(engine: FakeEngine) -> list[str]:
    return [bytes(token for token in request.prompt_ids if token < 256).decode() for request in engine.requests]


def test_run_streams_one_answer_through_the_chat_template(engine):
    result = invoke("run", "Hello", "--model", "tiny", "--max-tokens", "4")
    assert (result.exit_code, result.stdout) == (0, "Hi y\n")
    assert prompts(engine) == ["user: Hello\nassistant: "]
    assert engine.was_shut_down


def test_run_takes_the_model_first_as_serve_and_chat_do(engine, monkeypatch, tmp_path):
    named: list[str] = []
    monkeypatch.setattr(models, "with_model", lambda config: named.append(config.engine.model) or config)
    (tmp_path / "prompts.txt").write_text("one\n")
    invoke("run", "tiny", "Hello")
    invoke("run", "Hello", "--model", "tiny")
    invoke("run", "tiny", "--file", "prompts.txt")
    invoke("run", "Hello")
    assert named == ["tiny", "tiny", "tiny", ""]
    assert [prompt.split("\n")[0] for prompt in prompts(engine)] == [*["user: Hello"] * 2, "user: one", "user: Hello"]


def test_run_with_a_model_alone_asks_for_the_prompt(engine, monkeypatch, tmp_path):
    (tmp_path / "home" / "models").mkdir(parents=True)
    (tmp_path / "home" / "models" / "tiny.gguf").touch()
    result = invoke("run", "tiny")
    assert str(result.exception).startswith('PROMPT: "tiny" is a model; say what it should answer')
    assert invoke("run", "tiny", "--model", "tiny").exit_code == 0
    assert engine.requests[0].params is not None and len(engine.requests) == 1


def test_start_up_is_shown_as_json_lines(engine):
    told = [json.loads(line)["phase"]["name"] for line in invoke("run", "Hello").stderr.splitlines()]
    assert set(told) == {"weights"}


def test_raw_prompt_is_sent_as_it_is(engine):
    assert invoke("run", "--raw", "Once upon").stdout == "Hi you\n"
    assert prompts(engine) == ["Once upon"]


def test_prompt_comes_from_standard_input(engine):
    invoke("run", "-", "--raw", typed="from a pipe")
    assert prompts(engine) == ["from a pipe"]


def test_flags_win_over_the_configuration_over_the_models_own_defaults(engine, tmp_path):
    (tmp_path / "drivetrain.toml").write_text("[server]\nsampling_defaults = { temperature = 0.3, top_p = 0.5 }\n")
    invoke("run", "Hello", "--top-p", "0.9")
    params = engine.requests[0].params
    assert (params.top_p, params.temperature, params.top_k) == (0.9, 0.3, 40)


def test_file_of_prompts_is_answered_in_order(engine, tmp_path):
    path = tmp_path / "prompts.jsonl"
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "two"}]
    path.write_text(json.dumps({"prompt": "one"}) + "\n" + json.dumps({"messages": messages}) + "\n")
    result = invoke("run", "--file", str(path), "--json")
    assert [json.loads(line) for line in result.stdout.splitlines()] == [
        {
            "index": index,
            "prompt": prompt,
            "text": "Hi you",
            "reasoning": None,
            "finish_reason": "stop",
            "prompt_tokens": len(sent),
            "answer_tokens": 7,
        }
        for index, (prompt, sent) in enumerate(zip(("one", "two"), prompts(engine), strict=True))
    ]
    assert prompts(engine) == ["user: one\nassistant: ", "system: s\nuser: two\nassistant: "]


def test_answers_go_to_a_file(engine, tmp_path):
    result = invoke("run", "Hello", "--output", str(tmp_path / "out.jsonl"))
    assert result.stdout == ""
    assert f"wrote 1 answers to {tmp_path / 'out.jsonl'}" in result.stderr
    assert json.loads((tmp_path / "out.jsonl").read_text())["text"] == "Hi you"


def test_prompt_that_does_not_fit_is_an_error_and_ends_the_engine(engine):
    result = invoke("run", "x" * 5000)
    assert isinstance(result.exception, PromptTooLong)
    assert engine.was_shut_down


def test_engine_that_dies_ends_the_command(engine):
    engine.die_at = 2
    assert isinstance(invoke("run", "Hello").exception, EngineDead)
    assert isinstance(invoke("chat", typed="Hello\nagain\n").exception, EngineDead)


def test_chat_in_process_keeps_the_conversation(engine):
    result = invoke("chat", "--system", "brief", typed="one\ntwo\n")
    assert (result.exit_code, result.stdout) == (0, "Hi you\nHi you\n")
    assert prompts(engine)[1] == "system: brief\nuser: one\nassistant: Hi you\nuser: two\nassistant: "
    assert engine.was_shut_down


@pytest.fixture
def thinker(engine, monkeypatch) -> FakeEngine:
    """Reasons in its answer, and its template reads reasoning."""
    engine.script = says("<think>\nHm.\n</think>\n\nHi you")
    monkeypatch.setattr(cli_engine, "frontend_factory", lambda config: frontends_with(QWEN3))
    return engine


def test_thoughts_are_no_part_of_answers(thinker, tmp_path):
    assert invoke("run", "Hello").stdout == "Hi you\n"
    told = json.loads(invoke("run", "Hello", "--json").stdout)
    assert (told["text"], told["reasoning"], told["finish_reason"]) == ("Hi you", "Hm.", "stop")
    assert invoke("run", "Hello", "--raw").stdout == "<think>\nHm.\n</think>\n\nHi you\n"
    assert invoke("chat", typed="one\ntwo\n").stdout == "Hi you\nHi you\n"
    assert prompts(thinker)[-1] == "user: oneassistant: Hi youuser: twoassistant: "


@pytest.mark.parametrize("arguments", [("run", "Hello"), ("chat",)])
def test_a_terminal_shows_thoughts_dimmed(thinker, monkeypatch, arguments):
    monkeypatch.setattr(conversation, "is_terminal", lambda: True)
    thinker.batch = 100
    shown = CliRunner().invoke(build_app(arguments[0]), list(arguments), input="Hello\n", color=True).stdout
    assert shown == "\x1b[2mHm.\x1b[0m\x1b[2m\n\n\x1b[0mHi you\n"


def test_serve_hands_engine_and_configuration_to_the_server(engine, monkeypatch):
    seen: dict[str, object] = {}

    def run_server(engine_config, config, *, engine_factory, frontend_factory, announce):
        seen.update(model=engine_config.model, port=config.port, engine=engine_factory(engine_config))
        announce("Ready: tiny")

    monkeypatch.setattr(server, "serve", run_server)
    result = invoke("serve", "tiny", "--port", "0")
    assert result.exit_code == 0
    assert seen == {"model": "tiny", "port": 0, "engine": engine}
    assert "Ready: tiny" in result.stderr
    assert '"name": "weights"' in result.stderr
