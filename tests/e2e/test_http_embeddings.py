"""Embeddings through the official client, over an engine whose vectors are the first eight token ids."""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from fakes.engine import FakeEngine
from fakes.server import RunningServer
from fakes.text import BEGIN


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with RunningServer(FakeEngine()) as running:
        yield running


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def unit(numbers: list[float]) -> list[float]:
    padded = (numbers + [0.0] * 8)[:8]
    length = math.hypot(*padded)
    return pytest.approx([number / length for number in padded], abs=1e-6)  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("Hi", [[BEGIN, 72, 105]]),
        (["Hi", "A"], [[BEGIN, 72, 105], [BEGIN, 65]]),
        ([3, 4], [[3, 4]]),
        ([[3, 4], [5, 12]], [[3, 4], [5, 12]]),
    ],
)
def test_every_kind_of_input_has_its_vectors_in_order(
    client: openai.OpenAI, given: Any, expected: list[list[float]]
) -> None:
    answer = client.embeddings.create(model="tiny", input=given)  # the client asks for base64 by itself
    assert [item.index for item in answer.data] == list(range(len(expected)))
    assert [item.embedding for item in answer.data] == [unit(ids) for ids in expected]
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(map(len, expected))
    assert (answer.object, answer.model) == ("list", "tiny")


def test_both_encodings_say_the_same(server: RunningServer, client: openai.OpenAI) -> None:
    floats = client.embeddings.create(model="tiny", input=[3, 4], encoding_format="float").data[0].embedding
    body = {"model": "tiny", "input": [3, 4], "encoding_format": "base64"}
    text = httpx.post(f"{server.url}/v1/embeddings", json=body).json()["data"][0]["embedding"]
    assert list(struct.unpack("<8f", base64.b64decode(text))) == pytest.approx(floats, rel=1e-7)
    assert floats == unit([3, 4])


def test_dimensions_cut_and_normalize_again(client: openai.OpenAI) -> None:
    cut = client.embeddings.create(model="tiny", input=[3, 4, 12], dimensions=2).data[0].embedding
    assert cut == pytest.approx([0.6, 0.8])
    raw = client.embeddings.create(model="tiny", input=[3, 4, 12], extra_body={"normalize": False}).data[0].embedding
    assert raw == [3, 4, 12, 0, 0, 0, 0, 0]


async def test_the_async_client_and_many_inputs(server: RunningServer) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        answer = await client.embeddings.create(model="tiny", input=[[1 + at // 300, at % 300] for at in range(600)])
    assert [item.embedding for item in answer.data] == [unit([1 + at // 300, at % 300]) for at in range(600)]


def test_cached_tokens_salt_priority_and_unknown_fields(server: RunningServer) -> None:
    server.engine.cached = 2
    body = {"model": "tiny", "input": [3, 4], "priority": 5, "cache_salt": "mine", "user": "u", "color": "red"}
    answer = httpx.post(f"{server.url}/v1/embeddings", json=body | {"request_id": "one"})
    server.engine.cached = 0
    assert answer.json()["usage"]["prompt_tokens_details"] == {"cached_tokens": 2}
    assert answer.headers["x-drivetrain-ignored-fields"] == "color"
    request = server.engine.requests[-1]
    assert (request.priority, request.salt) == (5, "/mine")
    assert request.request_id.startswith("embd-one-")


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"input": []}, "input"),
        ({"input": [[1], []]}, "input"),
        ({"input": [["a"]]}, "input"),
        ({"input": [1, 300]}, "input"),
        ({"input": [[1], [300]]}, "input[1]"),
        ({"input": [1] * 5000}, "input"),
        ({"dimensions": 9}, "dimensions"),
        ({"dimensions": 0}, "dimensions"),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
        ({"model": "other"}, "model"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(server: RunningServer, changes: dict[str, Any], param: str) -> None:
    answer = httpx.post(f"{server.url}/v1/embeddings", json={"model": "tiny", "input": "Hi"} | changes)
    assert answer.status_code == (404 if param == "model" else 400)
    assert answer.json()["error"]["param"] == param


def test_an_error_of_the_engine_ends_the_request(server: RunningServer, client: openai.OpenAI) -> None:
    server.engine.fail_at = 0
    try:
        with pytest.raises(openai.InternalServerError, match="page 7 was lost"):
            client.embeddings.create(model="tiny", input=["a", "b"])
    finally:
        server.engine.fail_at = None
