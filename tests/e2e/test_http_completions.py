"""Completions through the official client."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from fakes.engine import FakeEngine, says
from fakes.server import RunningServer
from fakes.text import BEGIN, END
from fakes.waiting import until


@pytest.fixture
def server() -> Iterator[RunningServer]:
    with RunningServer(FakeEngine(says("xyz"))) as running:
        yield running


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.mark.parametrize(
    ("prompt", "ids"),
    [
        ("ab", [[BEGIN, 97, 98]]),
        (["a", "b"], [[BEGIN, 97], [BEGIN, 98]]),
        ([97, 98], [[97, 98]]),
        ([[97], [98, 99]], [[97], [98, 99]]),
    ],
)
def test_each_shape_of_prompt_reaches_the_engine(
    server: RunningServer, client: openai.OpenAI, prompt: str, ids: list[list[int]]
) -> None:
    answer = client.completions.create(model="tiny", prompt=prompt)
    assert sorted(request.prompt_ids for request in server.engine.requests) == sorted(ids)
    assert [choice.index for choice in answer.choices] == list(range(len(ids)))
    assert {choice.text for choice in answer.choices} == {"xyz"}
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == sum(map(len, ids))
    assert answer.usage.completion_tokens == 4 * len(ids)


def test_sixteen_tokens_are_the_default(server: RunningServer, client: openai.OpenAI) -> None:
    server.engine.script = says("x" * 40)
    choice = client.completions.create(model="tiny", prompt="a").choices[0]
    assert (choice.text, choice.finish_reason) == ("x" * 16, "length")


def test_choices_of_many_prompts_come_in_order(server: RunningServer, client: openai.OpenAI) -> None:
    server.engine.script = lambda request, index: [request.prompt_ids[-1], 48 + index, END]
    answer = client.completions.create(model="tiny", prompt=["a", "b", "c"], n=2)
    assert [(choice.index, choice.text) for choice in answer.choices] == [
        (0, "a0"),
        (1, "a1"),
        (2, "b0"),
        (3, "b1"),
        (4, "c0"),
        (5, "c1"),
    ]


def test_streamed_choices_of_many_prompts_are_those_of_the_whole_answer(
    server: RunningServer, client: openai.OpenAI
) -> None:
    server.engine.script = lambda request, index: [request.prompt_ids[-1], 48 + index, END]
    texts = dict.fromkeys(range(4), "")
    for chunk in client.completions.create(model="tiny", prompt=["a", "b"], n=2, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == {0: "a0", 1: "a1", 2: "b0", 3: "b1"}


@pytest.mark.parametrize("stream", [False, True])
def test_echo_begins_with_the_prompt(client: openai.OpenAI, stream: bool) -> None:
    answer = client.completions.create(model="tiny", prompt="a é ", echo=True, stream=stream)
    chunks = answer if stream else [answer]
    assert "".join(chunk.choices[0].text for chunk in chunks) == "a é xyz"


def test_echo_of_token_ids_is_their_text(client: openai.OpenAI) -> None:
    assert client.completions.create(model="tiny", prompt=[97, 98], echo=True).choices[0].text == "abxyz"


@pytest.mark.parametrize("stream", [False, True])
def test_echo_with_logprobs_scores_prompt_and_answer(client: openai.OpenAI, stream: bool) -> None:
    answer = client.completions.create(
        model="tiny", prompt=[97, 98], echo=True, logprobs=1, max_tokens=2, stream=stream
    )
    tokens, values, tops, offsets = [], [], [], []
    for chunk in answer if stream else [answer]:
        logprobs = chunk.choices[0].logprobs
        assert logprobs is not None
        tokens += logprobs.tokens
        values += logprobs.token_logprobs
        tops += logprobs.top_logprobs
        offsets += logprobs.text_offset
    assert tokens == ["a", "b", "x", "y"]
    assert values == [None, -0.98, -1.20, -1.21]
    assert tops == [None, {"c": -1.0, "b": -0.98}, {"y": -1.0, "x": -1.20}, {"z": -1.0, "y": -1.21}]
    assert offsets == [0, 1, 2, 3]


@pytest.mark.parametrize("made", [120, END])
def test_scoring_without_an_answer_generates_nothing_that_counts(
    server: RunningServer, client: openai.OpenAI, made: int
) -> None:
    server.engine.script = lambda request, index: [made]
    answer = client.completions.create(model="tiny", prompt=[97, 98], echo=True, logprobs=0, max_tokens=0)
    choice = answer.choices[0]
    assert (choice.text, choice.finish_reason) == ("ab", "length")
    assert choice.logprobs is not None and choice.logprobs.token_logprobs == [None, -0.98]
    assert answer.usage is not None and (answer.usage.completion_tokens, answer.usage.total_tokens) == (0, 2)
    assert server.engine.requests[0].params.max_tokens == 1


def test_partial_characters_are_spelt_as_bytes_in_logprobs(server: RunningServer, client: openai.OpenAI) -> None:
    server.engine.script = says("é")
    logprobs = client.completions.create(model="tiny", prompt="a", logprobs=0).choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["bytes:\\xc3", "bytes:\\xa9", "<|end|>"]


def test_best_of_returns_the_likeliest_answers(server: RunningServer, client: openai.OpenAI) -> None:
    server.engine.script = lambda request, index: [(122, 97, 110)[index]] * 2
    answer = client.completions.create(model="tiny", prompt="p", n=2, best_of=3, max_tokens=2)
    assert [choice.text for choice in answer.choices] == ["aa", "nn"]
    assert [choice.logprobs for choice in answer.choices] == [None, None]
    assert answer.usage is not None and answer.usage.completion_tokens == 6


def test_minus_infinity_becomes_a_number(server: RunningServer, client: openai.OpenAI) -> None:
    from drivetrain_server.answers.logprobs import finite

    assert finite(float("-inf")) == -9999.0
    assert finite(-3.5) == -3.5


def test_one_refused_prompt_of_many_ends_the_others(server: RunningServer, client: openai.OpenAI) -> None:
    server.engine.gate_at = 1
    server.engine.script = lambda request, index: [120] if request.prompt_ids == [98] else [120, 121, END]
    server.engine.fail_at = 1
    server.engine.open_gate()
    with pytest.raises(openai.InternalServerError) as caught:
        client.completions.create(model="tiny", prompt=[[97], [98], [99]])
    assert caught.value.status_code == 503
    assert "page 7 was lost" in str(caught.value)


@pytest.mark.parametrize("n", [1, 8])
def test_hundreds_of_prompts_fit_one_request_and_go_by_turns(
    server: RunningServer, client: openai.OpenAI, n: int
) -> None:
    engine = server.engine
    engine.gate_at = 0
    with ThreadPoolExecutor(1) as aside:
        asked = aside.submit(client.completions.create, model="tiny", prompt=[[97]] * 300, n=n, max_tokens=1)
        try:
            until(lambda: engine.num_at_gate >= 256 // n)
            num_begun = len(engine.requests)
        finally:
            engine.open_gate()
        assert len(asked.result().choices) == 300 * n
    assert (num_begun, len(engine.requests)) == (256 // n, 300), "the others wait until one of the first is done"
