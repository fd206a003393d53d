"""Responses through the official client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from fakes.engine import FakeEngine, says
from fakes.server import RunningServer


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with RunningServer(FakeEngine(says("Hello there!")), api_keys=("one", "two")) as running:
        yield running


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="one", max_retries=0) as made:
        yield made


def prompt_of(server: RunningServer) -> str:
    return bytes(server.engine.requests[-1].prompt_ids).decode()


def test_answer_has_items_usage_and_what_was_asked(server: RunningServer, client: openai.OpenAI) -> None:
    server.engine.cached = 4
    answer = client.responses.create(
        model="tiny", input="Hi", instructions="Be brief.", temperature=0.5, metadata={"topic": "x"}
    )
    server.engine.cached = 0
    assert answer.output_text == "Hello there!"
    assert [(item.type, item.status) for item in answer.output] == [("message", "completed")]  # type: ignore[union-attr]
    assert (answer.status, answer.object, answer.model) == ("completed", "response", "tiny")
    assert prompt_of(server) == "system: Be brief.\nuser: Hi\nassistant: "
    assert answer.usage is not None
    assert answer.usage.input_tokens == len(prompt_of(server))
    assert answer.usage.input_tokens_details.cached_tokens == 4
    assert answer.usage.output_tokens == 13
    assert (answer.temperature, answer.metadata, answer.instructions) == (0.5, {"topic": "x"}, "Be brief.")
    assert (answer.truncation, answer.tool_choice, answer.tools, answer.error) == ("disabled", "auto", [], None)


def test_hints_are_taken_and_told_again(client: openai.OpenAI) -> None:
    answer = client.responses.create(
        model="tiny", input="Hi", text={"verbosity": "low"}, prompt_cache_key="k", safety_identifier="u"
    )
    assert answer.output_text == "Hello there!"
    assert answer.text is not None and answer.text.verbosity == "low"


def test_the_clients_stream_helper_gathers_the_same_response(client: openai.OpenAI) -> None:
    with client.responses.stream(model="tiny", input="Hi") as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert final.output_text == "Hello there!"
    kinds = [event.type for event in events]
    assert [kind for kind in kinds if kind != "response.output_text.delta"] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == "Hello there!" and len(deltas) > 1
    assert final.usage is not None and final.usage.output_tokens == 13


async def test_the_async_client(server: RunningServer) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="one") as client:
        answer = await client.responses.create(model="tiny", input="Hi", max_output_tokens=16)
        assert answer.output_text == "Hello there!"
        stream = await client.responses.create(model="tiny", input="Hi", stream=True)
        assert [event.type async for event in stream][-1] == "response.completed"


def test_a_cut_answer_is_incomplete(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="tiny", input="Hi", max_output_tokens=5)
    assert (answer.status, answer.output_text) == ("incomplete", "Hello")
    assert answer.incomplete_details is not None and answer.incomplete_details.reason == "max_output_tokens"
    last = list(client.responses.create(model="tiny", input="Hi", max_output_tokens=5, stream=True))[-1]
    assert last.type == "response.incomplete"


def test_the_next_turn_goes_on_from_a_kept_response(server: RunningServer, client: openai.OpenAI) -> None:
    first = client.responses.create(model="tiny", input="Hi", instructions="Be brief.")
    second = client.responses.create(model="tiny", input="More", previous_response_id=first.id)
    assert prompt_of(server) == "user: Hi\nassistant: Hello there!\nuser: More\nassistant: "
    client.responses.create(model="tiny", input="Again", previous_response_id=second.id)
    assert prompt_of(server).count("Hello there!") == 2
    assert second.previous_response_id == first.id
    assert client.responses.retrieve(first.id).output_text == "Hello there!"
    listed = client.responses.input_items.list(second.id).data
    assert [item.content[0].text for item in listed] == ["More"]  # type: ignore[union-attr, index]
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError, match="was deleted"):
        client.responses.retrieve(first.id)
    with pytest.raises(openai.NotFoundError) as gone:
        client.responses.create(model="tiny", input="More", previous_response_id=first.id)
    assert gone.value.param == "previous_response_id"


def test_streamed_responses_are_kept_and_others_are_not_if_asked(client: openai.OpenAI) -> None:
    events = list(client.responses.create(model="tiny", input="Hi", stream=True))
    assert events[-1].type == "response.completed"
    assert client.responses.retrieve(events[-1].response.id).output_text == "Hello there!"
    private = client.responses.create(model="tiny", input="Hi", store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(private.id)


def test_no_key_sees_the_responses_of_another(server: RunningServer, client: openai.OpenAI) -> None:
    mine = client.responses.create(model="tiny", input="Hi")
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="two", max_retries=0) as other:
        for look in (other.responses.retrieve, other.responses.delete, other.responses.cancel):
            with pytest.raises(openai.NotFoundError):
                look(mine.id)
        with pytest.raises(openai.NotFoundError):
            other.responses.create(model="tiny", input="Hi", previous_response_id=mine.id)
    with pytest.raises(openai.BadRequestError, match="close the connection"):
        client.responses.cancel(mine.id)


def test_input_items_come_in_pages(client: openai.OpenAI) -> None:
    items: Any = [{"role": "user", "content": f"{at}"} for at in range(45)]
    answer = client.responses.create(model="tiny", input=items)

    def texts(**query: Any) -> list[int]:
        return [int(item.content[0].text) for item in client.responses.input_items.list(answer.id, **query).data]  # type: ignore[union-attr, index]

    assert texts() == [*range(44, 24, -1)]
    assert texts(order="asc", limit=3) == [0, 1, 2]
    assert texts(limit=100) == [*range(44, -1, -1)]
    for order, expected in (("desc", [*range(44, -1, -1)]), ("asc", [*range(45)])):
        pages = client.responses.input_items.list(answer.id, order=order, limit=10).iter_pages()  # type: ignore[arg-type]
        told = [[int(item.content[0].text) for item in page.data] for page in pages]  # type: ignore[union-attr, index]
        assert [len(page) for page in told] == [10, 10, 10, 10, 5]
        assert [at for page in told for at in page] == expected


def test_a_page_of_input_items_tells_its_ends(server: RunningServer, client: openai.OpenAI) -> None:
    items: Any = [
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "id": "twice", "role": "assistant", "content": "two"},
        {"id": "twice", "role": "user", "content": "three"},
    ]
    answer = client.responses.create(model="tiny", input=items)
    url = f"{server.url}/v1/responses/{answer.id}/input_items"

    def page(query: str) -> Any:
        return httpx.get(f"{url}?{query}", headers={"authorization": "Bearer one"}).json()

    first = page("order=asc&limit=2")
    assert (first["object"], first["has_more"], first["first_id"], first["last_id"]) == ("list", True, "rs_1", "twice")
    assert first["data"][0] == items[0]
    part = {"type": "output_text", "text": "two", "annotations": []}
    assert first["data"][1] == items[1] | {"status": "completed", "content": [part]}
    rest = page("order=asc&limit=2&after=twice&include[]=message.output_text.logprobs")
    assert [item["content"][0]["text"] for item in rest["data"]] == ["three"]
    assert (rest["has_more"], rest["first_id"]) == (False, rest["last_id"]) and rest["first_id"] != "twice"
    end = page(f"order=asc&after={rest['last_id']}")
    assert (end["data"], end["has_more"], end["first_id"], end["last_id"]) == ([], False, None, None)


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("/input_items?limit=0", "limit"),
        ("/input_items?limit=101", "limit"),
        ("/input_items?limit=few", "limit"),
        ("/input_items?limit=5&limit=", "limit"),
        ("/input_items?order=random", "order"),
        ("/input_items?after=msg_gone", "after"),
        ("/input_items?include=file_search_call.results", "include[0]"),
        ("?include[]=file_search_call.results", "include[0]"),
        ("?stream=true", "stream"),
        ("?starting_after=3", "starting_after"),
    ],
)
def test_a_bad_query_is_refused_by_name(server: RunningServer, client: openai.OpenAI, query: str, param: str) -> None:
    kept = client.responses.create(model="tiny", input="Hi")
    answer = httpx.get(f"{server.url}/v1/responses/{kept.id}{query}", headers={"authorization": "Bearer one"})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


def test_queries_are_documented_and_unknown_parameters_are_told(server: RunningServer, client: openai.OpenAI) -> None:
    kept = client.responses.create(model="tiny", input="Hi")
    headers = {"authorization": "Bearer one"}
    told = httpx.get(f"{server.url}/v1/responses/{kept.id}/input_items?before=x&limit=1", headers=headers)
    assert (told.status_code, told.headers["x-drivetrain-ignored-fields"]) == (200, "before")
    paths = httpx.get(f"{server.url}/openapi.json", headers=headers).json()["paths"]
    parameters = paths["/v1/responses/{response_id}/input_items"]["get"]["parameters"]
    limit = next(each["schema"] for each in parameters if each["name"] == "limit")
    assert (limit["minimum"], limit["maximum"], limit["default"]) == (1, 100, 20)
    assert {each["name"] for each in parameters} == {"response_id", "order", "limit", "after", "include"}


def test_items_of_every_kind_become_turns(server: RunningServer, client: openai.OpenAI) -> None:
    items: Any = [
        {"role": "developer", "content": "Rules"},
        {"role": "user", "content": [{"type": "input_text", "text": "one"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "two"}]},
        {"role": "user", "content": "three"},
    ]
    client.responses.create(model="tiny", input=items)
    assert prompt_of(server) == "system: Rules\nuser: one\nassistant: two\nuser: three\nassistant: "


def test_log_probabilities(client: openai.OpenAI) -> None:
    answer = client.responses.create(
        model="tiny", input="Hi", top_logprobs=2, include=["message.output_text.logprobs"], max_output_tokens=2
    )
    part = answer.output[0].content[0]  # type: ignore[union-attr, index]
    assert [(entry.token, len(entry.top_logprobs)) for entry in part.logprobs or []] == [("H", 2), ("e", 2)]  # type: ignore[union-attr]


def test_truncation_drops_the_oldest_messages_only_where_asked(server: RunningServer, client: openai.OpenAI) -> None:
    items: Any = [{"role": "user", "content": f"{at} " + "x" * 1000} for at in range(6)]
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model="tiny", input=items)
    assert refused.value.param == "input"
    client.responses.create(model="tiny", input=items, truncation="auto", instructions="Rules", max_output_tokens=100)
    prompt = prompt_of(server)
    assert prompt.startswith("system: Rules\nuser: 3 x")
    assert "user: 5 x" in prompt


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"input": []}, "input"),
        ({"input": [5]}, "input[0]"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input"),
        ({"tools": [{"type": "function", "name": "a b"}]}, "tools[0].name"),
        ({"tools": [{"type": "function", "name": "f", "parameters": {"type": "array"}}]}, "tools[0].parameters.type"),
        ({"tools": [{"type": "function", "name": "f"}], "tool_choice": {"type": "function"}}, "tool_choice"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"input": [{"type": "computer_call"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"input": [{"role": "robot", "content": "a"}]}, "input[0].role"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"background": True}, "background"),
        ({"conversation": "c"}, "conversation"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": 5000}, "max_output_tokens"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"truncation": "some"}, "truncation"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(server: RunningServer, changes: dict[str, Any], param: str) -> None:
    body = {"model": "tiny", "input": "Hi"} | changes
    answer = httpx.post(f"{server.url}/v1/responses", json=body, headers={"authorization": "Bearer one"})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"].startswith(param)


def test_an_error_in_a_stream_is_a_failed_response(server: RunningServer, client: openai.OpenAI) -> None:
    server.engine.fail_at = 3
    try:
        events = list(client.responses.create(model="tiny", input="Hi", stream=True))
    finally:
        server.engine.fail_at = None
    assert events[-1].type == "response.failed"
    assert events[-1].response.error is not None and "page 7 was lost" in events[-1].response.error.message
    assert [event.sequence_number for event in events] == list(range(len(events)))
