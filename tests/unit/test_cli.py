"""The command line: help, errors, exit statuses, flags that follow from the configuration."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from drivetrain.config import EngineConfig, ServerConfig, settings_of
from drivetrain.errors import ConfigError, EngineDead
from drivetrain.version import __version__
from drivetrain_server.cli.app import build_app
from drivetrain_server.cli.chat import stream_answer
from drivetrain_server.cli.conversation import Conversation
from drivetrain_server.cli.entry import error_block, main
from drivetrain_server.running import recorded
from fakes.sse_server import Answer, SseServer, events, sse_server
from processor_time import answers_at_once

PATHS = [os.path.abspath(path) for path in sys.path]
COMMANDS = ("serve", "run", "chat", "top", "ps", "pull", "ls", "rm", "bench", "backends", "doctor")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch, tmp_path):
    """No drivetrain.toml, no variables of the developer's; wide help texts."""
    for name in [name for name in os.environ if name.startswith("DRIVETRAIN_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DRIVETRAIN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")


def invoke(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(build_app(arguments[0]), list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def run_main(capsys, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    captured = capsys.readouterr()
    return ended.value.code or 0, captured.out, captured.err


@contextmanager
def serving(answer) -> Iterator[SseServer]:
    """The tiny server in a thread of its own, for commands that run their own event loop."""
    started, loop = threading.Event(), asyncio.new_event_loop()
    state: dict[str, object] = {}

    async def serve() -> None:
        async with sse_server(answer) as server:
            state["server"], state["ended"] = server, asyncio.Event()
            started.set()
            await state["ended"].wait()

    def work() -> None:
        loop.run_until_complete(serve())
        loop.close()

    thread = threading.Thread(target=work)
    thread.start()
    started.wait()
    try:
        yield state["server"]
    finally:
        loop.call_soon_threadsafe(state["ended"].set)
        thread.join()


def child_environment() -> dict[str, str]:
    """So that a child finds our packages from another folder, too."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(PATHS)}


def test_help_lists_every_command(capsys):
    status, out, _ = run_main(capsys, "--help")
    assert status == 0
    for command in COMMANDS:
        assert re.search(rf"^  {command} +[A-Z]", out, re.MULTILINE), command


def test_version(capsys):
    assert run_main(capsys, "--version") == (0, f"drivetrain {__version__}\n", "")


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_answer_within_300_ms(option):
    command = [sys.executable, "-c", "from drivetrain_server.cli import main; main()", option]
    assert answers_at_once(command, child_environment(), limit_s=0.3)


def test_heavy_modules_stay_out_of_the_command_line():
    code = (
        "import sys; from drivetrain_server.cli.app import build_app; build_app();"
        "heavy = ('torch', 'fastapi', 'uvicorn', 'numpy', 'asyncio', 'rich', 'pydantic', 'msgspec');"
        "print([name for name in heavy if name in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=child_environment())
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("command", ["serve", "run", "chat"])
def test_every_engine_field_is_a_flag(command):
    status, out, _ = invoke(command, "--help")
    assert status == 0
    for setting in settings_of(EngineConfig):
        assert setting.flag in out, setting.name
    assert ("--max-body-bytes" in out) == (command == "serve")
    if command == "serve":
        assert all(setting.flag in out for setting in settings_of(ServerConfig))


def test_problems_of_flags_file_and_environment_come_as_one_block(capsys, monkeypatch):
    Path("drivetrain.toml").write_text("[limits]\nmax_seqs = 3\n")
    monkeypatch.setenv("DRIVETRAIN_PORT", "http")
    status, out, err = run_main(capsys, "serve", "x", "--dtype", "bf16")
    assert status == 2
    assert out == ""
    assert err.splitlines() == [
        "error: 3 problems",
        "  - drivetrain.toml: unknown key `limits.max_seqs`; did you mean `limits.max_num_seqs`?",
        '  - DRIVETRAIN_PORT: got "http", expected a whole number from 0 to 65535',
        '  - --dtype: got "bf16", expected one of auto, bfloat16, float16, float32; did you mean "bfloat16"?',
    ]


def test_unknown_flag_is_refused_with_a_suggestion(capsys):
    status, _, err = run_main(capsys, "serve", "--max-num-seq", "3")
    assert status == 2
    assert "--max-num-seqs" in err


def test_unknown_command_is_refused(capsys):
    status, _, err = run_main(capsys, "server")
    assert status == 2
    assert "serve" in err


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("sevre", "Did you mean `drivetrain serve`?"),
        ("VERSION", "Did you mean `drivetrain --version`?"),
        ("help", "Did you mean `drivetrain --help`?"),
        ("plan", "The word is in `drivetrain serve --help`."),
        ("remove", "The word is in `drivetrain rm --help`."),
        ("zzz", "`drivetrain --help` lists every command."),
    ],
)
def test_word_that_is_no_command_leads_to_what_was_meant(capsys, word, meant):
    status, _, err = run_main(capsys, word, "--port", "1")
    assert status == 2
    assert f"No such command '{word}'. {meant}" in err


def test_model_as_argument_and_as_flag_contradict(capsys):
    status, _, err = run_main(capsys, "serve", "a", "--model", "b")
    assert (status, err) == (2, 'error: MODEL: got "a" beside --model b; give one of them\n')


def test_debug_shows_the_traceback_wherever_it_stands(capsys):
    for arguments in (("--debug", "serve", "--port", "x"), ("serve", "--port", "x", "--debug")):
        status, _, err = run_main(capsys, *arguments)
        assert status == 2
        assert "Traceback" in err
    assert "Traceback" not in run_main(capsys, "serve", "--port", "x")[2]


def test_error_block_marks_every_problem():
    assert error_block(ConfigError("one")) == "error: one"
    assert error_block(ConfigError("one\ntwo")) == "error: 2 problems\n  - one\n  - two"
    assert error_block(EngineDead("")) == "error: EngineDead"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run",), "PROMPT: give either a prompt"),
        (("run", "m", "Hello", "--model", "n"), 'MODEL: got "m" beside --model n; give one of them'),
        (("run", "m", "hi", "--file", "x"), "PROMPT: give either a prompt"),
        (("run", "--file", "none.txt"), "none.txt: cannot read prompts"),
        (("run", "hi", "--output", "no/where.jsonl"), "--output: the folder no does not exist"),
        (("bench", "--shared-prefix", "200"), "--shared-prefix: got 200, expected at most --input-tokens (128)"),
    ],
)
def test_wrong_usage_exits_with_2(capsys, arguments, message):
    status, _, err = run_main(capsys, *arguments)
    assert status == 2
    assert message in err


def test_a_backend_that_does_not_exist_is_wrong_usage(capsys):
    code, _, error = run_main(capsys, "backends", "--check", "cpuu")
    assert code == 2
    assert error.startswith("error: There is no backend 'cpuu'; did you mean 'cpu'? Known here: cpu, ")


def test_raw_refuses_conversations(capsys, tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "x"}]}\n')
    status, _, err = run_main(capsys, "run", "--raw", "--file", str(path))
    assert status == 2
    assert "need the chat template" in err


def test_nobody_listening_exits_with_1(capsys):
    status, _, err = run_main(capsys, "bench", "--url", "http://127.0.0.1:9")
    assert status == 1
    assert "is the server running?" in err


def token_events(body: object) -> list[bytes]:
    tokens = [{"choices": [{"text": "x", "finish_reason": None}]} for _ in range(body["max_tokens"])]
    usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": body["max_tokens"]}
    return events(*tokens, {"choices": [], "usage": usage})


def answer_bench(path: str, body: object) -> Answer:
    return Answer([b'{"data": [{"id": "tiny"}]}'] if path == "/v1/models" else token_events(body))


def test_bench_prints_its_figures_as_json():
    options = ("--num-requests", "4", "--input-tokens", "5", "--output-tokens", "3", "--json")
    with serving(answer_bench) as server:
        status, out, _ = invoke("bench", "--url", server.url, *options)
    report = json.loads(out)
    assert status == 0
    assert report["load"]["model"] == "tiny"
    assert (report["succeeded"], report["failed"], report["output_tokens"]) == (4, 0, 12)
    assert report["ttft_ms"]["p50"] > 0
    assert len(server.requests) == 1 + 1 + 4


def test_bench_prints_a_table_and_fails_on_wrong_counts():
    options = ("--num-requests", "2", "--input-tokens", "5", "--output-tokens", "3", "--model", "m", "--warmup", "0")
    with serving(answer_bench) as server:
        status, out, _ = invoke("bench", "--url", server.url, *options)
    assert status == 0
    assert "time to first token" in out
    assert "output tok/s" in out
    lengths = iter([3, 2])
    with serving(lambda path, body: Answer(token_events({**body, "max_tokens": next(lengths)}))) as server:
        status, out, _ = invoke("bench", "--url", server.url, *options)
    assert status == 1
    assert "time to first token" in out
    assert "1 of 2 failed: the server counted 2 answer tokens, expected 3" in out


@pytest.mark.parametrize(("warmup", "what"), [("2", "2 warm-up requests"), ("0", "3 requests")])
def test_bench_ends_with_the_servers_reason_where_nothing_succeeds(capsys, warmup, what):
    refused = Answer([b'{"error": {"message": "there is no model nope"}}'], status=404)
    with serving(lambda *_: refused) as server:
        options = ("--model", "nope", "--num-requests", "3", "--warmup", warmup, "--concurrency", "1,2")
        status, out, err = run_main(capsys, "bench", "--url", server.url, *options)
        asked = len(server.requests)
    assert (status, out) == (1, "")
    assert err == f"error: none of {what} succeeded: the server answered 404: there is no model nope\n"
    assert asked == (int(warmup) or 3), "nothing more is asked"


def test_bench_tells_every_reason_and_records_a_run_that_failed(capsys):
    answers = iter(
        [
            Answer([b'{"error": {"message": "full"}}'], status=503),
            Answer(events({"error": {"message": "out of memory", "type": "x"}})),
            Answer([b'{"error": {"message": "full"}}'], status=503),
        ]
    )
    with serving(lambda *_: next(answers)) as server:
        options = ("--model", "m", "--num-requests", "3", "--warmup", "0", "--concurrency", "1", "--json")
        status, out, err = run_main(capsys, "bench", "--url", server.url, *options)
    assert status == 1
    assert json.loads(out)["failed"] == 3
    assert err == (
        "error: none of 3 requests succeeded: 2 with: the server answered 503: full; "
        "1 with: the stream ended with an error: out of memory\n"
    )


@pytest.mark.parametrize("arguments", [("bench", "--num-requests", "1"), ("top", "--once", "--json")])
def test_without_an_address_the_last_started_server_of_this_machine_is_meant(capsys, arguments):
    status, _, err = run_main(capsys, *arguments)
    assert status == 1 and err.startswith("error: http://127.0.0.1:8000: cannot connect: ")
    with recorded("http://127.0.0.1:9", "tiny"):
        status, _, err = run_main(capsys, *arguments)
    assert status == 1 and err.startswith("error: http://127.0.0.1:9: cannot connect: ")


def test_bench_runs_a_sweep_with_goals_into_a_file(tmp_path):
    options = ("-n", "3", "--input-tokens", "4-6", "--output-tokens", "2", "-c", "1,2", "--goal", "latency=60000")
    with serving(answer_bench) as server:
        status, out, _ = invoke("bench", "--url", server.url, *options, "--output", "runs.jsonl")
    runs = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    assert status == 0 and out.count("goodput") == 2
    assert [run["load"]["concurrency"] for run in runs] == [1, 2]
    assert [run["good_share"] for run in runs] == [1.0, 1.0]
    assert runs[0]["load"]["input_tokens"] == "4-6"
    prompts = [tuple(body["prompt"]) for _, _, _, body in server.requests if body]
    assert len(set(prompts)) == len(prompts) == 7, "no run asks what another one has asked"


@pytest.mark.parametrize("text", ["0", "a", "1,,2", "1.5", "-1", "nan"])
def test_bench_refuses_wrong_concurrency(capsys, text):
    status, _, err = run_main(capsys, "bench", "--concurrency", text)
    assert status == 2 and "--concurrency: got" in err


def test_chat_with_a_server_streams_and_keeps_the_conversation(monkeypatch):
    def answer(path: str, body: object) -> Answer:
        if path == "/v1/models":
            return Answer([b'{"data": [{"id": "tiny"}]}'])
        count = len(body["messages"])
        return Answer(events(*({"choices": [{"delta": {"content": piece}}]} for piece in ("said ", str(count)))))

    with serving(answer) as server:
        arguments = ["chat", "--url", server.url, "--system", "s", "--temperature", "0"]
        typed = "hello\nagain\n/retry\n/reset\nfresh\n/nonsense\n/exit\nnever\n"
        result = CliRunner().invoke(build_app("chat"), arguments, input=typed)
    assert result.exit_code == 0, result.output
    assert result.stdout == "said 2\nsaid 4\nsaid 4\nsaid 2\n"
    assert "unknown command /nonsense" in result.stderr
    sent = [body for _, path, _, body in server.requests if path.endswith("completions")]
    assert [message["content"] for message in sent[1]["messages"]] == ["s", "hello", "said 2", "again"]
    assert all(body["temperature"] == 0.0 and "max_tokens" not in body for body in sent)


def test_chat_survives_a_refused_message():
    answers = iter(
        [
            Answer([b"not here"], status=404),  # a server may list no models
            Answer([b'{"error": {"message": "too long"}}'], status=400),
            Answer(events({"choices": [{"delta": {"content": "fine"}}]})),
        ]
    )
    with serving(lambda *_: next(answers)) as server:
        result = CliRunner().invoke(build_app("chat"), ["chat", "m", "--url", server.url], input="one\ntwo\n")
    assert result.exit_code == 1, "a script learns that a message had no answer"
    assert result.stdout == "\nfine\n"
    assert "error: the server answered 400: too long" in result.stderr
    assert [message["content"] for message in server.requests[2][3]["messages"]] == ["two"]


def test_chat_greets_only_a_server_that_answers_and_takes_the_key(capsys):
    status, _, err = run_main(capsys, "chat", "m", "--url", "http://127.0.0.1:9")
    assert status == 1 and "is the server running?" in err and "m at" not in err
    with serving(lambda *_: Answer([b'{"error": {"message": "no key"}}'], status=401)) as server:
        status, _, err = run_main(capsys, "chat", "m", "--url", server.url)
    assert status == 1 and "m at" not in err
    assert "the server answered 401: no key; give its key with --api-key or OPENAI_API_KEY" in err


@pytest.mark.parametrize("word", ["/exit", "/quit", "/bye"])
def test_chat_ends_on_every_usual_word(word):
    with serving(lambda *_: Answer([b'{"data": [{"id": "tiny"}]}'])) as server:
        result = CliRunner().invoke(build_app("chat"), ["chat", "--url", server.url], input=f"{word}\nnever\n")
    assert (result.exit_code, result.stdout, len(server.requests)) == (0, "", 1)


def test_ctrl_c_stops_the_answer_and_not_the_conversation(capsys):
    class Endless:
        closed = False

        async def answer(self, messages):
            try:
                yield "begun"
                os.kill(os.getpid(), signal.SIGINT)
                await asyncio.sleep(60)
            finally:
                self.closed = True

    talker, conversation = Endless(), Conversation()
    with asyncio.Runner() as runner:
        for _ in range(2):
            conversation.say("go on")
            stream_answer(runner, talker, conversation)
    captured = capsys.readouterr()
    assert captured.out == "begun\n" * 2
    assert captured.err == "(stopped)\n" * 2
    assert talker.closed
    assert [turn["role"] for turn in conversation.turns] == ["user", "assistant"] * 2


def test_ctrl_c_elsewhere_ends_quietly(capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("drivetrain_server.cli.doctor.findings", interrupted)
    assert run_main(capsys, "doctor") == (130, "", "")


def test_completion_knows_flags_that_come_from_the_configuration():
    command = [sys.executable, "-c", "from drivetrain_server.cli import main; main()"]
    asked = {"_DRIVETRAIN_COMPLETE": "complete_bash", "COMP_WORDS": "drivetrain serve --max-num", "COMP_CWORD": "2"}
    done = subprocess.run(command, capture_output=True, text=True, env=child_environment() | asked, check=True)
    assert done.stdout.split() == ["--max-num-seqs"]
