"""Tool calls and reasoning through the official client and the real server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from fakes.dialects import EFFORT, OPENS_THINKING, PLAIN, QWEN3, frontends_with
from fakes.engine import FakeEngine, says
from fakes.server import RunningServer
from fakes.text import END, byte_tokenizer

HELLO = [{"role": "user", "content": "Hi"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CLOCK = {"type": "function", "function": {"name": "now"}}
SAID = (
    "<think>\nThe user wants weather.\n</think>\n\nLet me look.\n"
    '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln \\"x\\""}}\n</tool_call>\n'
    '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
)


@pytest.fixture
def server() -> Iterator[RunningServer]:
    with RunningServer(FakeEngine(says(SAID)), frontend=frontends_with(QWEN3)) as running:
        yield running


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def prompt_of(server: RunningServer) -> str:
    return bytes(server.engine.requests[-1].prompt_ids).decode()


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(**{"model": "tiny", "messages": HELLO, "tools": [WEATHER, CLOCK]} | fields)


def test_whole_answer_has_reasoning_content_and_calls(server: RunningServer, client: openai.OpenAI) -> None:
    choice = ask(client).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Let me look."
    assert choice.message.reasoning == choice.message.reasoning_content == "The user wants weather."
    first, second = choice.message.tool_calls
    assert (first.type, first.function.name, second.function.name) == ("function", "get_weather", "now")
    assert json.loads(first.function.arguments) == {"city": 'Köln "x"'}
    assert second.function.arguments == "{}"
    assert first.id.startswith("call_") and first.id != second.id
    assert prompt_of(server).startswith('TOOLS {"type": "function", "function": {"name": "get_weather"')


@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_the_clients_own_accumulation_of_a_stream_is_the_whole_answer(
    server: RunningServer, client: openai.OpenAI, batch: int
) -> None:
    server.engine.batch = batch
    whole = ask(client).choices[0].message
    with client.chat.completions.stream(model="tiny", messages=HELLO, tools=[WEATHER, CLOCK]) as stream:  # type: ignore[arg-type, list-item]
        kinds = {event.type for event in stream}
        message = stream.get_final_completion().choices[0]
    assert "tool_calls.function.arguments.delta" in kinds and "content.delta" in kinds
    assert message.finish_reason == "tool_calls"
    assert message.message.content == whole.content
    assert [(call.function.name, call.function.arguments) for call in message.message.tool_calls or []] == [
        (call.function.name, call.function.arguments) for call in whole.tool_calls
    ]


def test_stream_gives_arguments_as_they_are_written(client: openai.OpenAI) -> None:
    deltas = [chunk.choices[0].delta for chunk in ask(client, stream=True)]
    pieces = [call for delta in deltas for call in delta.tool_calls or []]
    begins = [piece for piece in pieces if piece.id]
    assert [(piece.index, piece.function.name, piece.function.arguments) for piece in begins] == [
        (0, "get_weather", ""),
        (1, "now", ""),
    ]
    first = [piece.function.arguments for piece in pieces if piece.index == 0]
    assert len(first) > 10
    assert json.loads("".join(first)) == {"city": 'Köln "x"'}
    reasoning = "".join(delta.reasoning for delta in deltas if getattr(delta, "reasoning", None))
    assert reasoning == "The user wants weather."


def test_reasoning_can_be_left_out(client: openai.OpenAI) -> None:
    message = ask(client, extra_body={"include_reasoning": False}).choices[0].message
    assert message.reasoning is None and message.content == "Let me look."
    chunks = list(ask(client, stream=True, extra_body={"include_reasoning": False}))
    assert not any(getattr(chunk.choices[0].delta, "reasoning", None) for chunk in chunks)


def test_one_call_at_a_time(client: openai.OpenAI) -> None:
    message = ask(client, parallel_tool_calls=False).choices[0].message
    assert [call.function.name for call in message.tool_calls] == ["get_weather"]


@pytest.mark.parametrize("batch", [1, 1000])
def test_a_marker_that_is_spelt_is_text_where_the_tokenizer_has_it_as_a_token(batch: int) -> None:
    marks = ("<tool_call>", "</tool_call>", "<think>", "</think>")
    token = {text: token_id for token_id, text in byte_tokenizer(*marks).added_tokens.items()}
    call = b'{"name": "now", "arguments": {}}'
    spelt = f"So: <tool_call>{call.decode()}</tool_call> </think>"
    script = [*spelt.encode(), token["<tool_call>"], *call, token["</tool_call>"], END]
    engine = FakeEngine(lambda request, index: script)
    engine.batch = batch
    with (
        RunningServer(engine, frontend=frontends_with(QWEN3, *marks)) as running,
        openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as made,
    ):
        with made.chat.completions.stream(model="tiny", messages=HELLO, tools=[CLOCK]) as stream:  # type: ignore[arg-type, list-item]
            streamed = stream.get_final_completion().choices[0]
        for choice in (ask(made, tools=[CLOCK]).choices[0], streamed):
            assert (choice.message.content, choice.finish_reason) == (spelt, "tool_calls")
            assert [one.function.name for one in choice.message.tool_calls] == ["now"]


def test_tool_choice_none_keeps_the_tools_from_the_model(server: RunningServer, client: openai.OpenAI) -> None:
    message = ask(client, tool_choice="none").choices[0].message
    assert "TOOLS" not in prompt_of(server)
    assert message.tool_calls is None
    assert message.content.startswith("Let me look.\n<tool_call>")


def test_allowed_tools_are_all_that_the_model_knows(server: RunningServer, client: openai.OpenAI) -> None:
    allowed = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "now"}}]}
    ask(client, tool_choice={"type": "allowed_tools", "allowed_tools": allowed})
    assert "get_weather" not in prompt_of(server) and '"name": "now"' in prompt_of(server)
    assert server.engine.requests[-1].params.grammar is None


def test_calls_and_results_of_earlier_turns_reach_the_template(server: RunningServer, client: openai.OpenAI) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "now", "arguments": '{"zone":"CET"}'}}
    turns = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning": "Hm."},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "12:00"}]},
    ]
    ask(client, messages=turns)
    assert prompt_of(server).endswith(
        'user: Hiassistant: <think>Hm.</think><tool_call>{"name": "now", "arguments": {"zone": "CET"}}</tool_call>'
        "tool: 12:00 (c1)assistant: "
    )


def test_effort_switches_thinking_where_the_template_has_a_switch(server: RunningServer, client: openai.OpenAI) -> None:
    ask(client, reasoning_effort="none", tools=openai.omit)
    assert prompt_of(server).endswith("<think>\n\n</think>\n\n")
    ask(client, reasoning_effort="high", tools=openai.omit)
    assert prompt_of(server).endswith("assistant: ")


def test_effort_is_handed_to_a_template_that_reads_it() -> None:
    engine = FakeEngine()
    with (
        RunningServer(engine, frontend=frontends_with(EFFORT)) as running,
        openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client,
    ):
        ask(client, reasoning_effort="low", tools=openai.omit)
        assert prompt_of(running).startswith("effort=low ")


def test_effort_without_a_variable_is_refused() -> None:
    with (
        RunningServer(FakeEngine(), frontend=frontends_with(OPENS_THINKING)) as running,
        httpx.Client(base_url=running.url) as http,
    ):
        answer = http.post("/v1/chat/completions", json={"model": "tiny", "messages": HELLO, "reasoning_effort": "low"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "reasoning_effort"


@pytest.mark.parametrize("name", ["enable_thinking", "thinking"])
def test_thinking_may_be_switched_off_where_there_is_none(name: str) -> None:
    statuses: dict[str, list[int]] = {}
    for template in (PLAIN, OPENS_THINKING):
        with RunningServer(FakeEngine(), frontend=frontends_with(template)) as running:
            for value in (False, None, True):
                body = {"model": "tiny", "messages": HELLO, "chat_template_kwargs": {name: value}}
                answer = httpx.post(f"{running.url}/v1/chat/completions", json=body)
                statuses.setdefault(template, []).append(answer.status_code)
    assert statuses == {PLAIN: [200, 200, 400], OPENS_THINKING: [400, 200, 400]}


def test_reasoning_that_the_prompt_began_is_told_apart() -> None:
    engine = FakeEngine(says("Two and two.\n</think>\n\nFour."))
    with (
        RunningServer(engine, frontend=frontends_with(OPENS_THINKING)) as running,
        openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client,
    ):
        message = ask(client, tools=openai.omit).choices[0].message
        cut = ask(client, tools=openai.omit, max_tokens=5).choices[0]
    assert (message.reasoning, message.content) == ("Two and two.", "Four.")
    assert (cut.finish_reason, cut.message.reasoning, cut.message.content) == ("length", "Two a", "")


def test_tools_are_told_in_words_where_the_template_has_no_place_for_them() -> None:
    engine = FakeEngine(says('```json\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n```'))
    with (
        RunningServer(engine, frontend=frontends_with(PLAIN)) as running,
        openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client,
    ):
        choice = ask(client).choices[0]
        prompt = prompt_of(running)
    assert prompt.startswith("system: You can call these functions")
    assert '{"name": "get_weather", "description": "Weather of a city"' in prompt
    assert '```json\n{"name": "NAME", "arguments": {"ARGUMENT": "VALUE"}}\n```' in prompt
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    assert json.loads(choice.message.tool_calls[0].function.arguments) == {"city": "Rome"}


def test_malformed_calls_are_content(server: RunningServer, client: openai.OpenAI) -> None:
    for said in ("<tool_call>\n{oops}\n</tool_call>", '<tool_call>{"name": 3}</tool_call>', "<tool_call>"):
        server.engine.script = says(said)
        choice = ask(client).choices[0]
        assert (choice.message.content, choice.finish_reason) == (said, "stop")
        assert "".join(chunk.choices[0].delta.content or "" for chunk in ask(client, stream=True)) == said


def test_what_the_limit_left_of_a_call_is_no_content(server: RunningServer, client: openai.OpenAI) -> None:
    call = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    for said, content, num_calls in (
        (f'Ok. {call}\n<tool_call>\n{{"name": "n', "Ok.", 1),
        ("Ok. <tool_call>\n{", "Ok.", 0),
    ):
        server.engine.script = says(said)
        choice = ask(client, max_tokens=len(said)).choices[0]
        assert (choice.finish_reason, choice.message.content) == ("length", content)
        assert len(choice.message.tool_calls or []) == num_calls
        chunks = [chunk.choices[0] for chunk in ask(client, max_tokens=len(said), stream=True)]
        assert "".join(chunk.delta.content or "" for chunk in chunks) == content
        assert chunks[-1].finish_reason == "length"


def test_required_calls_end_where_one_is_made_once_more(server: RunningServer, client: openai.OpenAI) -> None:
    once = '<tool_call>\n{"name": "now", "arguments": {"zone": %d}}\n</tool_call>\n'
    server.engine.script = says("".join(once % zone for zone in (1, 10, 1, 2)) * 100)
    answer = ask(client, tool_choice="required")
    assert [call.function.arguments for call in answer.choices[0].message.tool_calls] == ['{"zone": 1}', '{"zone": 10}']
    assert (answer.choices[0].finish_reason, answer.choices[0].message.content) == ("tool_calls", None)
    assert answer.usage.completion_tokens == len("".join(once % zone for zone in (1, 10, 1))) - len("\n</tool_call>\n")
    chunks = [chunk.choices[0] for chunk in ask(client, tool_choice="required", stream=True)]
    pieces = [call for chunk in chunks for call in chunk.delta.tool_calls or []]
    assert "".join(piece.function.arguments or "" for piece in pieces) == '{"zone": 1}{"zone": 10}'
    assert chunks[-1].finish_reason == "tool_calls"
    assert not any(chunk.delta.content for chunk in chunks)
    assert len(server.engine.aborted) == 2 and not server.engine.finished
    assert (
        len(ask(client, tool_choice={"type": "function", "function": {"name": "now"}}).choices[0].message.tool_calls)
        == 1
    )


def test_arguments_cut_by_the_limit_are_told_as_far_as_they_came(server: RunningServer, client: openai.OpenAI) -> None:
    server.engine.script = says('<tool_call>\n{"name": "get_weather", "arguments": {"city": "Par')
    choice = ask(client, max_tokens=62).choices[0]
    assert choice.message.tool_calls[0].function.arguments == '{"city": "Par'
    assert choice.message.content is None


def test_all_tokens_are_told_in_order_with_their_logprobs(server: RunningServer, client: openai.OpenAI) -> None:
    told: list[int] = []
    entries: list[str] = []
    for chunk in ask(client, stream=True, logprobs=True, extra_body={"return_token_ids": True}):
        choice = chunk.choices[0]
        told += getattr(choice, "token_ids", None) or []
        entries += [entry.token for entry in (choice.logprobs and choice.logprobs.content) or []]
    assert told == [*SAID.encode(), 256]
    assert len(entries) == len(told)


def test_parsers_can_be_turned_off() -> None:
    make = frontends_with(QWEN3, tool_parser="none", reasoning_parser="none")
    with (
        RunningServer(FakeEngine(says(SAID)), frontend=make) as running,
        openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client,
    ):
        message = ask(client).choices[0].message
        assert message.content == SAID and message.tool_calls is None
        with pytest.raises(openai.BadRequestError, match="tool_parser"):
            ask(client, tool_choice="required")


def test_a_required_call_is_held_to_a_grammar(server: RunningServer, client: openai.OpenAI) -> None:
    named = {"type": "function", "function": {"name": "now"}}
    for choice, absent in (("required", "nothing"), (named, "get_weather")):
        ask(client, tool_choice=choice)
        grammar = server.engine.requests[-1].params.grammar
        assert grammar is not None and grammar.kind == "lark"
        assert '"name\\": \\"now' in grammar.value and absent not in grammar.value


def test_tokenize_counts_the_tools_too(server: RunningServer) -> None:
    with httpx.Client(base_url=server.url) as http:
        plain = http.post("/tokenize", json={"messages": HELLO}).json()["count"]
        body = {"messages": HELLO, "tools": [WEATHER]}
        assert http.post("/tokenize", json=body).json()["count"] > plain + 50


def test_a_demanded_form_is_that_of_the_content_behind_reasoning_that_the_prompt_began() -> None:
    engine = FakeEngine(says('Hm.</think>{"a": 1}'))
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
    with (
        RunningServer(engine, frontend=frontends_with(OPENS_THINKING)) as running,
        openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client,
    ):
        message = ask(client, tools=openai.omit, response_format=schema).choices[0].message
        behind = engine.requests[-1].params.grammar
        engine.script = says("Hm.</think>yes")
        chosen = ask(client, tools=openai.omit, extra_body={"guided_choice": ["yes", "no"]}).choices[0].message
        choice = engine.requests[-1].params.grammar
    assert (message.reasoning, message.content) == ("Hm.", '{"a": 1}')
    assert (chosen.reasoning, chosen.content) == ("Hm.", "yes")
    assert (behind.kind, choice.kind) == ("json_schema", "choice")
    assert "</think>" in behind.within and behind.within == choice.within


def test_a_message_that_is_gone_on_with_keeps_to_its_own_reasoning() -> None:
    engine = FakeEngine(says("so.</think>yes"))

    def gone_on(client: openai.OpenAI, said: str, **fields: Any) -> tuple[Any, Any]:
        messages = [*HELLO, {"role": "assistant", "content": said}]
        extra = {"add_generation_prompt": False, "continue_final_message": True} | fields.pop("extra", {})
        answer = client.chat.completions.create(model="tiny", messages=messages, extra_body=extra, **fields)
        return answer.choices[0].message, engine.requests[-1].params.grammar

    with (
        RunningServer(engine, frontend=frontends_with(QWEN3)) as running,
        openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client,
    ):
        choice = {"guided_choice": ["yes", "no"]}
        message, form = gone_on(client, "<think>Let me see,", extra=choice)
        assert (message.reasoning, message.content) == ("so.", "yes")
        assert form.within.startswith("start: reasoning "), "it has to end the reasoning"
        _, calls = gone_on(client, "<think>Let me see,", tools=[WEATHER], tool_choice="required")
        assert calls.value.startswith("start: reasoning ")
        _, alone = gone_on(client, "The answer is ", extra=choice)
        assert (alone.kind, alone.within) == ("choice", "")


def test_tools_and_another_form_exclude_each_other_where_a_call_is_required(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="the tools demand a form"):
        ask(client, tool_choice="required", response_format={"type": "json_object"})


def test_schemas_too_large_for_a_grammar_are_refused_under_their_field(client: openai.OpenAI) -> None:
    parameters = {"type": "object", "properties": {"a": {"enum": ["x" * 100 + str(at) for at in range(3000)]}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    with pytest.raises(openai.BadRequestError) as refusal:
        ask(client, tools=[tool], tool_choice="required")
    assert refusal.value.param == "tools"
