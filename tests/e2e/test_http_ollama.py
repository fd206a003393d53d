"""Ollama's native routes through the official client."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import httpx
import ollama
import pytest

from fakes.dialects import QWEN3, frontends_with
from fakes.engine import FakeEngine, says
from fakes.server import RunningServer
from fakes.text import BEGIN

HELLO = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with RunningServer(FakeEngine(says("Hello there!"))) as running:
        yield running


@pytest.fixture
def client(server: RunningServer) -> Iterator[ollama.Client]:
    made = ollama.Client(host=server.url)
    yield made
    made._client.close()


def prompt_of(server: RunningServer) -> str:
    return bytes(token for token in server.engine.requests[-1].prompt_ids if token < 256).decode()


def test_chat_answers_with_text_counts_and_durations(server: RunningServer, client: ollama.Client) -> None:
    answer = client.chat(model="tiny", messages=HELLO)
    assert answer.message.content == "Hello there!"
    assert answer.message.role == "assistant"
    assert (answer.done, answer.done_reason, answer.model) == (True, "stop", "tiny")
    assert answer.prompt_eval_count == len(server.engine.requests[-1].prompt_ids)
    assert answer.eval_count == len("Hello there!") + 1
    assert answer.total_duration is not None and answer.total_duration > 0
    assert prompt_of(server) == "user: Hi\nassistant: "


def test_chat_streams_line_by_line(server: RunningServer, client: ollama.Client) -> None:
    parts = list(client.chat(model="tiny:latest", messages=HELLO, stream=True))
    assert "".join(part.message.content or "" for part in parts) == "Hello there!"
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert len(parts) > 2
    assert parts[-1].done_reason == "stop"
    assert parts[-1].eval_count == 13
    raw = httpx.post(f"{server.url}/api/chat", json={"model": "tiny", "messages": HELLO})
    assert raw.headers["content-type"] == "application/x-ndjson"
    assert json.loads(raw.text.splitlines()[0])["message"] == {"role": "assistant", "content": "H"}


async def test_the_async_client_streams_too(server: RunningServer) -> None:
    client = ollama.AsyncClient(host=server.url)
    answer = await client.generate(model="tiny", prompt="Hi")
    assert answer.response == "Hello there!"
    parts = [part async for part in await client.generate(model="tiny", prompt="Hi", stream=True)]
    assert "".join(part.response for part in parts) == "Hello there!"
    await client._client.aclose()


def test_options_are_those_of_the_sampler(server: RunningServer, client: ollama.Client) -> None:
    options: dict[str, Any] = {
        "temperature": 1,
        "top_p": 0.5,
        "top_k": 7,
        "min_p": 0.1,
        "seed": 3,
        "repeat_penalty": 1.5,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "stop": ["there"],
        "num_predict": 20,
        "num_ctx": 2048,
        "num_gpu": 1,
    }
    answer = client.generate(model="tiny", prompt="Hi", system="Be brief.", options=options)
    params = server.engine.requests[-1].params
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (1.0, 0.5, 7, 0.1)
    assert (params.seed, params.repetition_penalty, params.max_tokens) == (3, 1.5, 20)
    assert (params.presence_penalty, params.frequency_penalty) == (0.5, -0.5)
    assert (answer.response, answer.done_reason) == ("Hello ", "stop")
    assert prompt_of(server) == "system: Be brief.\nuser: Hi\nassistant: "


def test_raw_prompts_go_without_the_template(server: RunningServer, client: ollama.Client) -> None:
    answer = client.generate(model="tiny", prompt="Once", raw=True, options={"num_predict": 5})
    assert (answer.response, answer.done_reason) == ("Hello", "length")
    assert server.engine.requests[-1].prompt_ids == [BEGIN, *b"Once"]
    client.generate(model="tiny", prompt="Once", raw=True)
    assert server.engine.requests[-1].params.max_tokens is None


def test_log_probabilities(client: ollama.Client) -> None:
    answer = client.chat(model="tiny", messages=HELLO, logprobs=True, top_logprobs=2)
    assert answer.logprobs is not None
    assert [entry.token for entry in answer.logprobs[:2]] == ["H", "e"]
    assert len(answer.logprobs[0].top_logprobs or []) == 2


def test_without_a_prompt_the_model_is_only_said_to_be_there(server: RunningServer, client: ollama.Client) -> None:
    before = len(server.engine.requests)
    assert client.generate(model="tiny").done_reason == "load"
    assert client.chat(model="tiny", messages=[]).done_reason == "load"
    assert client.generate(model="tiny", keep_alive=0).done_reason == "unload"
    assert len(server.engine.requests) == before


def test_embeddings_old_and_new(client: ollama.Client) -> None:
    answer = client.embed(model="tiny", input=["\3\4", "a"], dimensions=3)
    assert [len(vector) for vector in answer.embeddings] == [3, 3]
    assert answer.prompt_eval_count == 5
    assert sum(number**2 for number in answer.embeddings[0]) == pytest.approx(1)
    assert client.embeddings(model="tiny", prompt="a").embedding == [BEGIN, 97, 0, 0, 0, 0, 0, 0]


def test_the_model_is_listed_shown_and_running(client: ollama.Client) -> None:
    (listed,) = client.list().models
    assert (listed.model, listed.size) == ("tiny", 1 << 20)
    shown = client.show("tiny")
    assert shown.capabilities == ["completion", "embedding", "tools"]
    assert shown.template is not None and "message.role" in shown.template
    assert shown.modelinfo is not None
    assert shown.modelinfo["general.architecture"] == "tiny"
    assert shown.modelinfo["general.parameter_count"] == 1_234_567
    assert shown.modelinfo["tiny.context_length"] == 4096
    assert shown.details is not None
    assert (shown.details.family, shown.details.parameter_size) == ("tiny", "1.23M")


def test_memory_is_the_weights_and_the_pages_that_hold_something(client: ollama.Client) -> None:
    (running,) = client.ps().models
    assert (running.model, running.context_length) == ("tiny", 4096)
    assert running.size_vram == running.size == 5_000_000 + (1 << 20) * 10 // 64


def test_version(server: RunningServer) -> None:
    from drivetrain.version import __version__

    assert httpx.get(f"{server.url}/api/version").json() == {"version": __version__}


@pytest.mark.parametrize("think", [True, "low", "high"])
def test_a_model_that_does_not_reason_refuses_to_think(client: ollama.Client, think: Any) -> None:
    for asked in (
        lambda: client.chat(model="tiny", messages=HELLO, think=think),
        lambda: client.generate(model="tiny", prompt="Hi", think=think),
        lambda: [*client.chat(model="tiny", messages=HELLO, think=think, stream=True)],
    ):
        with pytest.raises(ollama.ResponseError) as refused:
            asked()
        assert (refused.value.status_code, refused.value.error) == (400, '"tiny" does not support thinking')
    assert client.chat(model="tiny", messages=HELLO, think=False).message.content == "Hello there!"


def test_a_model_that_reasons_thinks_where_asked() -> None:
    engine = FakeEngine(says("<think>Hm.</think>Yes."))
    with RunningServer(engine, frontend=frontends_with(QWEN3)) as running:
        client = ollama.Client(host=running.url)
        assert client.show("tiny").capabilities == ["completion", "embedding", "tools", "thinking"]
        for think in (True, "high", None):
            answer = client.chat(model="tiny", messages=HELLO, think=think).message
            assert (answer.thinking, answer.content) == ("Hm.", "Yes.")
            assert prompt_of(running).endswith("assistant: ")
        assert client.generate(model="tiny", prompt="Hi", think=True).thinking == "Hm."
        client.chat(model="tiny", messages=HELLO, think=False)
        assert prompt_of(running).endswith("</think>\n\n")
        client._client.close()


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("chat", {"messages": [{"role": "user", "content": "a", "images": ["x"]}]}, "messages[0].images"),
        ("chat", {"messages": [{"role": "robot", "content": "a"}]}, "messages[0].role"),
        ("chat", {"messages": HELLO, "options": {"mirostat": 2}}, "options.mirostat"),
        ("chat", {"messages": HELLO, "options": {"temperature": "hot"}}, "options.temperature"),
        ("chat", {"messages": HELLO, "options": {"num_predict": 0}}, "options.num_predict"),
        ("chat", {"messages": HELLO, "options": {"repeat_last_n": 32}}, "options.repeat_last_n"),
        ("chat", {"messages": HELLO, "format": "xml"}, "format"),
        ("chat", {"messages": HELLO, "format": 5}, "format"),
        ("chat", {"messages": HELLO, "think": "x"}, "think"),
        ("chat", {"messages": [{"role": "assistant", "tool_calls": 5}]}, "messages[0].tool_calls"),
        ("chat", {"messages": [{"role": "assistant", "thinking": 5}]}, "messages[0].thinking"),
        ("generate", {"prompt": 5}, "prompt"),
        ("generate", {"prompt": "a", "context": [1, 2]}, "context"),
        ("generate", {"prompt": "a", "suffix": "b"}, "suffix"),
        ("generate", {"prompt": "a", "images": ["x"]}, "images"),
        ("embed", {"input": []}, "input"),
        ("embed", {"input": "a", "dimensions": 99}, "dimensions"),
        ("generate", {"prompt": "a", "raw": True, "system": "b"}, "system"),
        ("generate", {"prompt": "a", "raw": True, "think": True}, "think"),
    ],
)
def test_refusals_are_in_ollamas_shape(server: RunningServer, path: str, body: dict[str, Any], said: str) -> None:
    answer = httpx.post(f"{server.url}/api/{path}", json={"model": "tiny"} | body)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(f"{said}: ")


def test_another_model_and_another_route(server: RunningServer, client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match="is not served here") as refused:
        client.chat(model="other", messages=HELLO)
    assert refused.value.status_code == 404
    assert "there is no route /api/pull" in httpx.post(f"{server.url}/api/pull", json={}).json()["error"]
    assert httpx.get(f"{server.url}/api/chat").json()["error"] == "/api/chat does not take GET; use POST"


FORM = "application/x-www-form-urlencoded"


@pytest.mark.parametrize("media_type", [None, FORM, "text/plain;charset=UTF-8"])
def test_the_media_type_is_free_but_not_for_a_web_page(server: RunningServer, media_type: str | None) -> None:
    body = json.dumps({"model": "tiny", "messages": HELLO, "stream": False}).encode()
    typed = {} if media_type is None else {"content-type": media_type}
    before = len(server.engine.requests)
    assert httpx.post(f"{server.url}/api/chat", content=body, headers=typed).json()["message"] == {
        "role": "assistant",
        "content": "Hello there!",
    }
    for name, value in (("origin", "https://evil.example"), ("origin", "null"), ("sec-fetch-site", "cross-site")):
        page = httpx.post(f"{server.url}/api/chat", content=body, headers=typed | {name: value})
        assert page.status_code == 415
        assert "expected application/json" in page.json()["error"]
    other = httpx.post(f"{server.url}/v1/completions", content=b'{"model": "tiny", "prompt": "a"}', headers=typed)
    assert other.status_code == 415
    assert len(server.engine.requests) == before + 1


def test_curl_without_a_header_is_answered(server: RunningServer) -> None:
    """As Ollama documents it: curl then sends the type of a form."""
    asked = '{"model": "tiny", "prompt": "Hi", "stream": false}'
    run = subprocess.run(
        ["curl", "-s", f"{server.url}/api/generate", "-d", asked], capture_output=True, timeout=60, check=True
    )
    assert json.loads(run.stdout)["response"] == "Hello there!"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("num_predict", [1, 12])
def test_durations_are_those_of_prompt_and_answer(stream: bool, num_predict: int) -> None:
    engine = FakeEngine(says("Hello there!"))
    engine.pause_s = 0.01
    body = {"model": "tiny", "prompt": "Hi", "stream": stream, "options": {"num_predict": num_predict}}
    with RunningServer(engine) as running:
        last = json.loads(httpx.post(f"{running.url}/api/generate", json=body).text.splitlines()[-1])
    assert last["eval_count"] == num_predict
    assert last["eval_duration"] > (num_predict - 1) * 9e6
    assert 0 < last["prompt_eval_duration"] < last["total_duration"]
    assert last["prompt_eval_duration"] + last["eval_duration"] <= last["total_duration"]


def test_options_with_ollamas_defaults_are_let_through(client: ollama.Client) -> None:
    options = {"repeat_last_n": 64, "mirostat": 0, "mirostat_eta": 0.1, "mirostat_tau": 5.0, "typical_p": 1.0}
    assert client.generate(model="tiny", prompt="Hi", options=options).response == "Hello there!"


def test_unknown_fields_and_options_are_listed(server: RunningServer) -> None:
    body = {"model": "tiny", "messages": HELLO, "color": "red", "options": {"magic": 1, "num_ctx": 4096}}
    answer = httpx.post(f"{server.url}/api/chat", json=body | {"stream": False, "keep_alive": "5m"})
    assert answer.headers["x-drivetrain-ignored-fields"] == "color, options.magic"


def test_an_error_in_a_stream_is_a_line(server: RunningServer, client: ollama.Client) -> None:
    server.engine.fail_at = 3
    try:
        with pytest.raises(ollama.ResponseError, match="page 7 was lost"):
            list(client.chat(model="tiny", messages=HELLO, stream=True))
    finally:
        server.engine.fail_at = None


@pytest.mark.parametrize("path", ["/api/embed", "/api/embeddings"])
def test_fields_of_other_routes_are_listed_and_not_taken(server: RunningServer, path: str) -> None:
    body = {"model": "tiny", "input": "a", "prompt": "a", "normalize": True, "cache_salt": "s"}
    answer = httpx.post(server.url + path, json=body)
    assert answer.status_code == 200
    ignored = answer.headers["x-drivetrain-ignored-fields"]
    assert "normalize" in ignored
    assert "cache_salt" in ignored
