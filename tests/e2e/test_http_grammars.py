"""Answers in a demanded form, over HTTP: every way to demand it, what is refused, and what hostile grammars cost."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import openai
import pytest

from fakes.canary import Canary
from fakes.serve_process import ServeProcess, sse_events
from fakes.tiny_grammars import tiny_tokenizer
from hostile_grammars import hostile_bodies

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2, "uniqueItems": False},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
WORDS = r"(red|green) (fox|dog)"
JSON_SCHEMA = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": SCHEMA}}
DENSE = {
    str(token_id): -100
    for token_id in range(tiny_tokenizer().vocab_size)
    if tiny_tokenizer().token_bytes(token_id).isspace()
}
"""Random weights like spaces as much as anything else, and JSON allows them nearly everywhere."""
TAG = {
    "structures": [{"begin": "<f=size>", "schema": {"type": "integer", "maximum": 9, "minimum": 0}, "end": "</f>"}],
    "triggers": ["<f="],
}


def chat(server: ServeProcess, **fields: Any) -> httpx.Response:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Go"}], "seed": 5, "max_tokens": 150}
    body |= {"logit_bias": DENSE} | fields
    return server.http.post("/v1/chat/completions", json=body)


def text_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    choice = answer.json()["choices"][0]
    assert choice["finish_reason"] == "stop"
    return choice["message"]["content"]


def is_person(text: str) -> bool:
    return jsonschema.Draft202012Validator(SCHEMA).is_valid(json.loads(text))


def is_words(text: str) -> bool:
    return re.fullmatch(WORDS, text) is not None


@pytest.mark.parametrize(
    ("fields", "check"),
    [
        ({"response_format": JSON_SCHEMA}, is_person),
        ({"structured_outputs": {"json": SCHEMA}}, is_person),
        ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, is_person),
        ({"guided_json": SCHEMA}, is_person),
        ({"structured_outputs": {"regex": WORDS}}, is_words),
        ({"guided_regex": WORDS}, is_words),
        ({"structured_outputs": {"choice": ["red fox", "green dog"]}}, is_words),
        ({"guided_choice": ["red fox", "green dog"]}, is_words),
        ({"structured_outputs": {"grammar": 'start: ("red" | "green") " fox"'}}, is_words),
        ({"guided_grammar": 'start: ("red" | "green") " fox"'}, is_words),
    ],
)
def test_every_field_that_demands_a_form_gets_it(tiny_server: ServeProcess, fields: dict[str, Any], check: Any) -> None:
    text = text_of(chat(tiny_server, **fields))
    assert check(text), text


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_object"}},
        {"structured_outputs": {"json_object": True}},
        {"guided_json_object": True},
    ],
)
def test_any_object_begins_as_one(tiny_server: ServeProcess, fields: dict[str, Any]) -> None:
    """Random weights hardly ever end one, so a short answer is looked at."""
    answer = chat(tiny_server, **fields, max_tokens=12)
    assert answer.json()["choices"][0]["message"]["content"].startswith("{")


def test_text_is_free_until_a_trigger_and_then_follows_its_tag(tiny_server: ServeProcess) -> None:
    free = {"response_format": {"type": "structural_tag"} | TAG, "max_tokens": 20}
    assert chat(tiny_server, **free).status_code == 200
    at_once = {"structures": [TAG["structures"][0] | {"begin": "<"}], "triggers": ["<"]}
    fields = {"structured_outputs": {"structural_tag": at_once}, "logit_bias": {str(_token(tiny_server, "<")): 100}}
    text = chat(tiny_server, **fields, max_tokens=12).json()["choices"][0]["message"]["content"]
    assert re.match(r"<\s*[0-9]\s*</f>", text), text


def _token(server: ServeProcess, text: str) -> int:
    [token] = server.http.post("/tokenize", json={"prompt": text}).json()["tokens"]
    return token


def test_streams_and_several_answers_follow_it_too(tiny_server: ServeProcess) -> None:
    body = {"model": "tiny", "prompt": "Go", "n": 3, "max_tokens": 150, "stream": True, "guided_json": SCHEMA}
    body["logit_bias"] = DENSE
    texts = ["", "", ""]
    with tiny_server.http.stream("POST", "/v1/completions", json=body) as answer:
        assert answer.status_code == 200
        for event in sse_events(answer):
            for choice in event["choices"]:
                texts[choice["index"]] += choice["text"]
    assert [text for text in texts if not is_person(text)] == []


def test_the_official_client_parses_its_own_models(tiny_server: ServeProcess) -> None:
    with openai.OpenAI(base_url=f"{tiny_server.url}/v1", api_key="x", max_retries=0) as client:
        answer = client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "Go"}],
            response_format=JSON_SCHEMA,  # type: ignore[arg-type]
            max_tokens=150,
            logit_bias=DENSE,
        )
    text = answer.choices[0].message.content or ""
    assert is_person(text), text


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type", "json_schema"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema", "required"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}},
            "response_format",
            'keyword "not" is not supported',
        ),
        ({"guided_json": {"if": {}, "then": {}}}, "guided_json", 'keywords "if", "then" are not supported'),
        ({"guided_json": "{"}, "guided_json", "JSON cannot be read"),
        ({"guided_json": {"type": "string", "format": "zip"}}, "guided_json", "format: zip"),
        ({"guided_json": {"x-guidance": {"lenient": True}}}, "guided_json", "x-guidance"),
        ({"guided_regex": "(a"}, "guided_regex", "unclosed group"),
        ({"guided_choice": []}, "guided_choice", "at least 1"),
        ({"guided_grammar": "start: x"}, "guided_grammar", "unknown name"),
        ({"structured_outputs": {}}, "structured_outputs", "none of json"),
        (
            {"structured_outputs": {"regex": "a", "whitespace_pattern": " "}},
            "structured_outputs.whitespace_pattern",
            "",
        ),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs.choice", "send one of them"),
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "guided_regex", "send one of them"),
        (
            {"structured_outputs": {"structural_tag": {"triggers": ["<"]}}},
            "structured_outputs.structural_tag",
            "structures",
        ),
        ({"guided_whitespace_pattern": " "}, "guided_whitespace_pattern", ""),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_served_is_a_400_that_names_it(
    tiny_server: ServeProcess, fields: dict[str, Any], param: str, words: str, stream: bool
) -> None:
    answer = chat(tiny_server, **fields, stream=stream)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert words in error["message"]


@pytest.mark.parametrize("wrong", [{"$ref": "#/nowhere"}, {"enum": ["é" * 50_000]}])
def test_schemas_of_tools_are_refused_under_the_name_of_tools_on_every_route(
    tiny_server: ServeProcess, wrong: dict[str, Any]
) -> None:
    schema = {"type": "object", "properties": {"a": wrong}}
    said = [{"role": "user", "content": "Go"}]
    asked: list[tuple[str, dict[str, Any]]] = [
        (
            "/v1/chat/completions",
            {
                "messages": said,
                "tool_choice": "required",
                "tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}],
            },
        ),
        (
            "/v1/responses",
            {
                "input": "Go",
                "tool_choice": "required",
                "tools": [{"type": "function", "name": "f", "parameters": schema}],
            },
        ),
        (
            "/v1/messages",
            {
                "messages": said,
                "max_tokens": 9,
                "tool_choice": {"type": "any"},
                "tools": [{"name": "f", "input_schema": schema}],
            },
        ),
    ]
    for route, fields in asked:
        answer = tiny_server.http.post(route, json={"model": "tiny", **fields})
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, "tools"), (route, error)
        assert error["message"].startswith("tools: ")


def resident_mb(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 >> 20


def test_hostile_grammars_are_refused_or_answered_while_another_stream_stays_the_same(
    tiny_server: ServeProcess,
) -> None:
    chat(tiny_server, guided_regex="a", max_tokens=2)
    pids = [tiny_server.process.pid, *_children(tiny_server.process.pid)]
    before = sum(map(resident_mb, pids))
    with Canary(tiny_server):
        for name, fields in hostile_bodies().items():
            started = time.monotonic()
            answer = chat(tiny_server, **fields, max_tokens=12)
            assert answer.status_code in (200, 400, 503), (name, answer.text)
            if answer.status_code == 503:  # compiled, and found too costly as the answer went on
                assert "grammar: the answer cannot go on" in answer.json()["error"]["message"], name
            assert time.monotonic() - started < 60, name
    assert sum(map(resident_mb, pids)) - before < 600


def _children(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").iterdir():
        yield from map(int, (task / "children").read_text().split())
