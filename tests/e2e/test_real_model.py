"""The quick-start model behind the real server, in fp32: golden answers in any company, pages that come back."""

from __future__ import annotations

import json
import random
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from fakes.serve_process import ServeProcess

pytestmark = pytest.mark.real_model

CONFIG = """
dtype = "float32"

[limits]
max_num_seqs = 40
max_step_tokens = 72
max_model_len = 1024
num_pages = 1200

[backend_options.cpu]
threads = 1
"""


@pytest.fixture(scope="module")
def server(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    folder = tmp_path_factory.mktemp("server")
    with ServeProcess(folder, smollm2_path, CONFIG, name="golden") as running:
        yield running
        assert running.end() == 0


def golden_request(golden: dict[str, Any]) -> dict[str, Any]:
    return {"prompt": golden["prompt_ids"], "max_tokens": len(golden["output_ids"]), "return_token_ids": True}


def assert_golden(answer: dict[str, Any], golden: dict[str, Any]) -> None:
    choice = answer["choices"][0]
    assert choice["token_ids"] == golden["output_ids"]
    assert choice["text"] == golden["text"].removesuffix("<|im_end|>")


def others(count: int) -> list[dict[str, Any]]:
    """Requests of every kind to keep the batch full meanwhile."""
    rng = random.Random(5)
    kinds: list[dict[str, Any]] = [
        {"temperature": 0},
        {"temperature": 0.9, "seed": 1, "top_p": 0.9},
        {"temperature": 1.0, "seed": 2, "top_k": 40, "presence_penalty": 0.5},
        {"temperature": 0, "repetition_penalty": 1.2, "logprobs": 2},
    ]
    return [
        {
            "prompt": [rng.randrange(1000, 40000) for _ in range(rng.randint(8, 120))],
            "max_tokens": rng.randint(8, 48),
            "ignore_eos": True,
        }
        | kinds[index % len(kinds)]
        for index in range(count)
    ]


def test_golden_answers_alone_and_again_from_the_prefix_cache(server: ServeProcess, golden_outputs: list[Any]) -> None:
    for golden in golden_outputs:
        assert_golden(server.complete(**golden_request(golden)), golden)
    for golden in golden_outputs:
        answer = server.complete(**golden_request(golden))
        assert_golden(answer, golden)
        assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] > 0


def test_golden_answers_among_32_others_with_chunks(server: ServeProcess, golden_outputs: list[Any]) -> None:
    with ThreadPoolExecutor(40) as pool:
        busy = [pool.submit(server.complete, **body) for body in others(32)]
        asked = [pool.submit(server.complete, **golden_request(golden)) for golden in golden_outputs]
        for future, golden in zip(asked, golden_outputs, strict=True):
            assert_golden(future.result(), golden)
        for future in busy:
            assert future.result()["usage"]["completion_tokens"] >= 8
    server.assert_all_pages_back(1199)


def test_a_seeded_draw_is_the_same_alone_and_in_company(server: ServeProcess) -> None:
    body = {"prompt": "Once upon a time", "temperature": 0.8, "seed": 11, "max_tokens": 24, "top_p": 0.95}
    alone = server.complete(**body)["choices"][0]["text"]
    with ThreadPoolExecutor(16) as pool:
        busy = [pool.submit(server.complete, **other) for other in others(12)]
        assert server.complete(**body)["choices"][0]["text"] == alone
        for future in busy:
            future.result()


def test_official_client_chats_and_streams(server: ServeProcess) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
    messages: Any = [{"role": "user", "content": "What is the capital of France?"}]
    answer = client.chat.completions.create(model="golden", messages=messages, temperature=0, max_tokens=20)
    assert answer.choices[0].message.content == "The capital of France is Paris."
    assert answer.choices[0].finish_reason == "stop"
    pieces: list[str] = []
    usage = None
    with client.chat.completions.create(
        model="golden",
        messages=messages,
        temperature=0,
        max_tokens=20,
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        for chunk in stream:
            usage = chunk.usage or usage
            pieces += [choice.delta.content or "" for choice in chunk.choices]
    assert "".join(pieces) == answer.choices[0].message.content
    assert usage is not None
    assert answer.usage is not None
    assert usage.completion_tokens == answer.usage.completion_tokens
    client.close()


@pytest.mark.parametrize("phase", ["queued", "prefill", "streaming", "several"])
def test_a_client_that_goes_away_frees_its_pages(server: ServeProcess, phase: str) -> None:
    rng = random.Random(phase)
    long = [rng.randrange(1000, 40000) for _ in range(900)]
    body: dict[str, Any] = {"model": "golden", "prompt": long, "max_tokens": 100, "stream": True, "ignore_eos": True}
    if phase == "several":
        body |= {"n": 4, "prompt": long[:100]}
    if phase == "streaming":
        body |= {"prompt": long[:20]}
    requests = 60 if phase == "queued" else 1
    connections = [raw_request(server.port, body) for _ in range(requests)]
    if phase in ("streaming", "several"):
        received = b""
        while b"data: " not in received:
            received += connections[0].recv(65536)
            assert received, "the stream ended"
    else:
        time.sleep(0.15)
    for connection in connections:
        connection.close()
    server.assert_all_pages_back(1199)
    # The server is as good as new.
    assert server.complete(prompt="Hello", max_tokens=2)["usage"]["completion_tokens"] == 2


def raw_request(port: int, body: dict[str, Any]) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    payload = json.dumps(body).encode()
    fields = ("POST /v1/completions HTTP/1.1", "Host: localhost", "Content-Type: application/json")
    head = "\r\n".join((*fields, f"Content-Length: {len(payload)}"))
    connection.sendall(head.encode() + b"\r\n\r\n" + payload)
    return connection


def test_a_killed_engine_is_told_at_once_and_started_again(server: ServeProcess) -> None:
    body = {"model": "golden", "prompt": "Count: one two", "max_tokens": 900, "stream": True, "ignore_eos": True}
    with server.http.stream("POST", "/v1/completions", json=body) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("data: ")
        server.kill_engine()
        assert any("engine_dead" in line for line in lines)
    server.wait_ready()
    assert server.complete(prompt="The capital of France is", max_tokens=3)["choices"][0]["text"].strip() != ""
    server.assert_all_pages_back(1199)
