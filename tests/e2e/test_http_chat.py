"""Chat completions through the official client."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import openai
import pytest

from fakes.engine import FakeEngine, says
from fakes.server import RunningServer

HELLO = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def server() -> Iterator[RunningServer]:
    with RunningServer(FakeEngine(says("Hello there!"))) as running:
        yield running


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def test_answer_has_text_reason_usage_and_fingerprint(server: RunningServer, client: openai.OpenAI) -> None:
    server.engine.cached = 4
    answer = client.chat.completions.create(model="tiny", messages=HELLO)
    choice = answer.choices[0]
    assert choice.message.content == "Hello there!"
    assert choice.message.role == "assistant"
    assert choice.finish_reason == "stop"
    assert choice.logprobs is None
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.system_fingerprint is not None and answer.system_fingerprint.startswith("fp_")
    prompt = server.engine.requests[0].prompt_ids
    assert bytes(prompt).decode() == "user: Hi\nassistant: "
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(prompt)
    assert answer.usage.completion_tokens == len("Hello there!") + 1
    assert answer.usage.total_tokens == len(prompt) + 13
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 4
    assert answer.choices[0].message.model_dump()["reasoning"] is None
    assert "reasoning_content" in answer.choices[0].message.model_dump()


def test_stream_gives_role_then_text_then_reason_then_usage(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="tiny", messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[0].choices[0].delta.content == ""
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == "Hello there!"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1] if chunk.choices[0].finish_reason] == ["stop"]
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 13
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1


def test_usage_in_every_event_counts_up(client: openai.OpenAI) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(
        client.chat.completions.create(model="tiny", messages=HELLO, stream=True, stream_options=options)  # type: ignore[arg-type]
    )
    counts = [chunk.usage.completion_tokens for chunk in chunks if chunk.usage]
    assert len(counts) == len(chunks)
    assert counts == sorted(counts)
    assert counts[0] == 1 and counts[-1] == 13


def test_emoji_split_across_tokens_arrives_whole(server: RunningServer, client: openai.OpenAI) -> None:
    server.engine.script = says("a👩‍🚀é")
    pieces = [
        chunk.choices[0].delta.content or ""
        for chunk in client.chat.completions.create(model="tiny", messages=HELLO, stream=True)
    ]
    assert "".join(pieces) == "a👩‍🚀é"
    assert not any("\ufffd" in piece for piece in pieces)
    assert "👩" in pieces


def test_three_streamed_choices_keep_their_own_text(server: RunningServer, client: openai.OpenAI) -> None:
    server.engine.script = lambda request, index: [*(b"one", b"second", b"3")[index], 256]
    texts = {0: "", 1: "", 2: ""}
    ends: dict[int, str] = {}
    for chunk in client.chat.completions.create(model="tiny", messages=HELLO, stream=True, n=3):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                ends[choice.index] = choice.finish_reason
    assert texts == {0: "one", 1: "second", 2: "3"}
    assert ends == {0: "stop", 1: "stop", 2: "stop"}


def test_stop_string_in_one_choice_ends_only_that_choice(server: RunningServer, client: openai.OpenAI) -> None:
    server.engine.script = lambda request, index: [*(b"ab END cd", b"abcdefghijkl")[index], 256]
    answer = client.chat.completions.create(model="tiny", messages=HELLO, n=2, stop=["END"])
    assert [choice.message.content for choice in answer.choices] == ["ab ", "abcdefghijkl"]
    assert [choice.finish_reason for choice in answer.choices] == ["stop", "stop"]
    assert answer.choices[0].model_dump()["stop_reason"] == "END"
    request_id = server.engine.requests[0].request_id
    assert server.engine.index_aborts == [(request_id, 0)]
    assert server.engine.finished == [request_id]
    assert answer.usage is not None and answer.usage.completion_tokens == len("ab END") + len("abcdefghijkl") + 1


def test_tokens_after_a_stop_string_are_dropped_and_the_request_ended(
    server: RunningServer, client: openai.OpenAI
) -> None:
    server.engine.batch = 16
    server.engine.script = says("ab END and much more that nobody asked for")
    answer = client.chat.completions.create(
        model="tiny", messages=HELLO, stop="END", extra_body={"include_stop_str_in_output": True}
    )
    assert answer.choices[0].message.content == "ab END"
    assert answer.usage is not None and answer.usage.completion_tokens == 6
    assert server.engine.aborted == [server.engine.requests[0].request_id]


def test_logprobs_have_tokens_bytes_and_alternatives(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=HELLO, logprobs=True, top_logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    first = logprobs.content[0]
    assert (first.token, first.bytes, first.logprob) == ("H", [72], -0.72)
    assert [(top.token, top.logprob) for top in first.top_logprobs] == [("I", -1.0), ("J", -2.0)]
    assert len(logprobs.content) == 13
    assert logprobs.content[-1].token == "<|end|>"


def test_streamed_logprobs_are_those_of_the_whole_answer(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="tiny", messages=HELLO, logprobs=True, top_logprobs=1)
    streamed = []
    for chunk in client.chat.completions.create(
        model="tiny", messages=HELLO, logprobs=True, top_logprobs=1, stream=True
    ):
        streamed += (chunk.choices[0].logprobs and chunk.choices[0].logprobs.content) or []
    logprobs = whole.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert [entry.model_dump() for entry in streamed] == [entry.model_dump() for entry in logprobs.content]


def test_model_defaults_hold_where_the_request_is_silent(server: RunningServer, client: openai.OpenAI) -> None:
    client.chat.completions.create(model="tiny", messages=HELLO)
    client.chat.completions.create(model="tiny", messages=HELLO, temperature=0, extra_body={"top_k": 0})
    silent, explicit = (request.params for request in server.engine.requests)
    assert (silent.temperature, silent.top_k) == (0.6, 40)
    assert (explicit.temperature, explicit.top_k) == (0.0, 0)


def test_operators_defaults_go_before_the_models() -> None:
    engine = FakeEngine()
    with (
        RunningServer(engine, sampling_defaults={"temperature": 0.1, "max_tokens": 3}) as running,
        openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client,
    ):
        client.chat.completions.create(model="tiny", messages=HELLO)
        client.completions.create(model="tiny", prompt="a")
        client.completions.create(model="tiny", prompt="a", max_tokens=5, temperature=1)
    chosen = [request.params for request in engine.requests]
    assert [(params.temperature, params.top_k, params.max_tokens) for params in chosen] == [
        (0.1, 40, 3),
        (0.1, 40, 3),
        (1.0, 40, 5),
    ]


def test_every_sampling_field_reaches_the_engine(server: RunningServer, client: openai.OpenAI) -> None:
    client.chat.completions.create(
        model="tiny",
        messages=HELLO,
        max_completion_tokens=9,
        temperature=0.5,
        top_p=0.9,
        presence_penalty=1,
        frequency_penalty=-1,
        logit_bias={"65": 5},
        seed=-3,
        stop=["x", "y"],
        extra_body={
            "top_k": 7,
            "min_p": 0.1,
            "repetition_penalty": 1.1,
            "min_tokens": 2,
            "ignore_eos": True,
            "stop_token_ids": [10],
            "skip_special_tokens": False,
            "bad_words": ["no"],
            "priority": -5,
            "cache_salt": "mine",
            "request_id": "abc-1",
        },
    )
    request = server.engine.requests[0]
    params = request.params
    assert (params.max_tokens, params.temperature, params.top_p, params.top_k, params.min_p) == (9, 0.5, 0.9, 7, 0.1)
    assert (params.presence_penalty, params.frequency_penalty, params.repetition_penalty) == (1.0, -1.0, 1.1)
    assert (params.logit_bias, params.seed, params.stop) == ({65: 5.0}, -3, ("x", "y"))
    assert (params.min_tokens, params.ignore_eos, params.stop_token_ids) == (2, True, (10,))
    assert params.skip_special_tokens is False
    assert request.bad_word_ids == [list(b"no"), list(b" no")]
    assert (request.priority, request.salt) == (-5, "/mine")
    assert request.request_id.startswith("chatcmpl-abc-1-")


def test_roles_parts_and_variables_reach_the_template(server: RunningServer, client: openai.OpenAI) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    client.chat.completions.create(
        model="tiny",
        messages=[
            {"role": "developer", "content": "Be kind"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "42", "tool_call_id": "c1"},
        ],  # type: ignore[list-item]
        extra_body={"chat_template_kwargs": {"enable_thinking": False}, "add_generation_prompt": False},
    )
    text = bytes(server.engine.requests[0].prompt_ids).decode()
    # The template knows no calls, so they are told in words.
    call_text = '```json\n{"name": "f", "arguments": {"a": 1}}\n```'
    assert text == f"system: Be kind\nuser: a\nb\nassistant: {call_text}\nuser: Result of f:\n42\nthinking=False"


def test_continue_final_message_leaves_the_last_turn_open(server: RunningServer, client: openai.OpenAI) -> None:
    client.chat.completions.create(
        model="tiny",
        messages=[*HELLO, {"role": "assistant", "content": "Sure, "}],  # type: ignore[list-item]
        extra_body={"continue_final_message": True},
    )
    assert bytes(server.engine.requests[0].prompt_ids).decode() == "user: Hi\nassistant: Sure, "


def test_token_ids_and_prompt_logprobs_are_told_on_request(client: openai.OpenAI) -> None:
    extra = {"return_token_ids": True, "prompt_logprobs": 1}
    answer = client.chat.completions.create(model="tiny", messages=HELLO, extra_body=extra).model_dump()
    assert answer["prompt_token_ids"] == list(b"user: Hi\nassistant: ")
    assert answer["choices"][0]["token_ids"] == [*b"Hello there!", 256]
    assert answer["prompt_logprobs"][0] is None
    assert answer["prompt_logprobs"][1]["115"] == {"logprob": -1.15, "rank": 1, "decoded_token": "s"}
    chunks = [
        chunk.model_dump()
        for chunk in client.chat.completions.create(model="tiny", messages=HELLO, stream=True, extra_body=extra)
    ]
    assert chunks[0]["prompt_token_ids"] == answer["prompt_token_ids"]
    assert chunks[0]["prompt_logprobs"] == answer["prompt_logprobs"]
    streamed = [token for chunk in chunks for token in chunk["choices"][0].get("token_ids", [])]
    assert streamed == answer["choices"][0]["token_ids"]


async def test_async_client_streams_many_at_once(server: RunningServer) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:

        async def ask() -> str:
            stream = await client.chat.completions.create(model="tiny", messages=HELLO, stream=True)  # type: ignore[arg-type]
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        assert await asyncio.gather(*(ask() for _ in range(20))) == ["Hello there!"] * 20


def test_idle_stream_gets_comment_lines_before_and_between_tokens() -> None:
    import httpx

    engine = FakeEngine(says("abc"))
    engine.gate_at = 0
    with RunningServer(engine, keepalive_s=0.1) as running, httpx.Client(base_url=running.url) as client:
        body = {"model": "tiny", "messages": HELLO, "stream": True}
        with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            lines = answer.iter_lines()
            assert next(lines) == ": waiting"
            engine.open_gate()
            rest = list(lines)
    assert rest[-2] == "data: [DONE]"
