"""Requests that are wrong: each is a 4xx that names the field; and requests that are right: each is a 200."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from fakes.engine import FakeEngine
from fakes.server import RunningServer

USER = {"role": "user", "content": "Hi"}
CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CHAT = {"model": "tiny", "messages": [USER]}
TEXT = {"model": "tiny", "prompt": "Hi"}
CHAT_PATH, TEXT_PATH = "/v1/chat/completions", "/v1/completions"


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with (
        RunningServer(FakeEngine(), max_body_bytes=100_000) as server,
        httpx.Client(base_url=server.url) as made,
    ):
        yield made


def _message(**fields: object) -> dict[str, object]:
    return {"messages": [USER | fields]}


def _tool(**fields: object) -> dict[str, object]:
    return {"type": "function", "function": {"name": "f"} | fields}


def _nested(levels: int) -> dict[str, object]:
    value: dict[str, object] = {}
    for _ in range(levels):
        value = {"a": value}
    return value


BAD_CHAT: list[tuple[dict[str, object], str]] = [
    ({"model": None}, "model"),
    ({"model": 5}, "model"),
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "Hi"}, "messages"),
    ({"messages": ["Hi"]}, "messages[0]"),
    ({"messages": [{"role": "king", "content": "Hi"}]}, "messages[0].role"),
    ({"messages": [USER, {"role": "user"}]}, "messages[1].content"),
    (_message(content=None), "messages[0].content"),
    (_message(content=7), "messages[0].content"),
    (_message(content=[]), "messages[0].content"),
    (_message(content=["Hi"]), "messages[0].content[0]"),
    (_message(content=[{"type": "text"}]), "messages[0].content[0].text"),
    (_message(content=[{"type": "image_url", "image_url": {"url": "x"}}]), "messages[0].content[0].type"),
    (_message(content=[{"type": "input_audio"}]), "messages[0].content[0].type"),
    ({"messages": [{"role": "tool", "content": "42"}]}, "messages[0].tool_call_id"),
    (
        _message(tool_calls=[{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]),
        "messages[0].tool_calls",
    ),
    (_message(tool_calls=[{"id": "a"}]), "messages[0].tool_calls[0].type"),
    ({"messages": [{"role": "assistant", "content": "a", "audio": {"id": "x"}}]}, "messages[0].audio"),
    (_message(content="refuse me"), "messages"),
    ({"continue_final_message": True}, "continue_final_message"),
    ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
    ({"chat_template_kwargs": {"messages": "x"}}, "chat_template_kwargs"),
    ({"chat_template_kwargs": {"enable_thinking": [[[[[[[[[1]]]]]]]]]}}, "chat_template_kwargs.enable_thinking"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
    ({"max_tokens": 1e30}, "max_tokens"),
    ({"logprobs": 3}, "logprobs"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0].type"),
    ({"tools": [_tool(name="f g")]}, "tools[0].function.name"),
    ({"tools": [_tool(), _tool()]}, "tools[1].function.name"),
    ({"tools": [_tool(name=f"f{at}") for at in range(129)]}, "tools"),
    ({"tools": [_tool(parameters={"type": "array"})]}, "tools[0].function.parameters.type"),
    ({"tools": [_tool(parameters={"properties": []})]}, "tools[0].function.parameters.properties"),
    ({"tools": [_tool(parameters={"properties": _nested(40)})]}, "tools[0].function.parameters"),
    ({"tools": [_tool(strict=True)]}, "tools[0].function.strict"),
    ({"tools": [_tool(description="x" * 20_000)]}, "tools[0].function.description"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": [_tool()], "tool_choice": "maybe"}, "tool_choice"),
    ({"tools": [_tool()], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
    ({"tools": [_tool()], "tool_choice": {"type": "function", "name": "f"}}, "tool_choice"),
    ({"tools": [_tool()], "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto"}}}, "tool_choice"),
    ({"parallel_tool_calls": 1}, "parallel_tool_calls"),
    ({"include_reasoning": "no"}, "include_reasoning"),
    ({"functions": [{}]}, "functions"),
    ({"response_format": {"type": "yaml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.schema"),
    ({"audio": {"voice": "x"}}, "audio"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"reasoning_effort": "much"}, "reasoning_effort"),
    (
        {"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": True}},
        "reasoning_effort",
    ),
    ({"max_tokens": 5000}, "max_tokens"),
    ({"max_completion_tokens": 5000}, "max_completion_tokens"),
    (_message(content="x" * 5000), "messages"),
    ({"chat_template_kwargs": {"colour": True}}, "chat_template_kwargs"),
    ({"chat_template_kwargs": {"colour": 0}}, "chat_template_kwargs"),
    ({"web_search_options": {}}, "web_search_options"),
    ({"service_tier": "flex"}, "service_tier"),
    ({"chat_template": "{{ 1 }}"}, "chat_template"),
    ({"structured_outputs": {"regex": None}}, "structured_outputs"),
    ({"guided_choice": [7]}, "guided_choice[0]"),
]
BAD_TEXT: list[tuple[dict[str, object], str]] = [
    ({"prompt": None}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": "", "add_special_tokens": False}, "prompt"),
    ({"prompt": 5}, "prompt"),
    ({"prompt": {}}, "prompt"),
    ({"prompt": ["a", 5]}, "prompt"),
    ({"prompt": [[1], []]}, "prompt"),
    ({"prompt": [[1], ["a"]]}, "prompt"),
    ({"prompt": [1, -1]}, "prompt"),
    ({"prompt": [1, 300]}, "prompt"),
    ({"prompt": [1, 2**31]}, "prompt"),
    ({"prompt": [True]}, "prompt"),
    ({"prompt": [1.5]}, "prompt"),
    ({"prompt": ["a"] * 2049}, "prompt"),
    ({"prompt": [65] * 4096}, "prompt"),
    ({"prompt": "a", "max_tokens": 4095}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"suffix": "x"}, "suffix"),
    ({"best_of": 2, "n": 3}, "best_of"),
    ({"best_of": 2, "stream": True}, "best_of"),
    ({"best_of": 129}, "best_of"),
    ({"logprobs": True}, "logprobs"),
    ({"logprobs": 21}, "logprobs"),
    ({"echo": "yes"}, "echo"),
    ({"prompt": ["a"] * 2000, "n": 100}, "n"),
    ({"prompt": ["a"] * 30, "n": 128, "max_tokens": 4800}, "max_tokens"),
]
BAD_SAMPLING: list[tuple[dict[str, object], str]] = [
    ({"temperature": "1"}, "temperature"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 101}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.5}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"top_k": 1.5}, "top_k"),
    ({"min_p": 2}, "min_p"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"frequency_penalty": -3}, "frequency_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"n": 0}, "n"),
    ({"n": 129}, "n"),
    ({"n": 10**30}, "n"),
    ({"n": "2"}, "n"),
    ({"seed": 2**63}, "seed"),
    ({"seed": 1.5}, "seed"),
    ({"stop": ""}, "stop"),
    ({"stop": 5}, "stop"),
    ({"stop": ["a"] * 65}, "stop"),
    ({"stop": ["a", 5]}, "stop"),
    ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
    ({"stop_token_ids": [300]}, "stop_token_ids"),
    ({"logit_bias": {"a": 1}}, "logit_bias"),
    ({"logit_bias": {"300": 1}}, "logit_bias"),
    ({"logit_bias": {"5": 101}}, "logit_bias.5"),
    ({"logit_bias": {"5": "x"}}, "logit_bias.5"),
    ({"logit_bias": [5]}, "logit_bias"),
    ({"logit_bias": {str(i): 0 for i in range(1025)}}, "logit_bias"),
    ({"stream": "true"}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ({"min_tokens": -1}, "min_tokens"),
    ({"min_tokens": 9, "max_tokens": 5}, "min_tokens"),
    ({"bad_words": "no"}, "bad_words"),
    ({"bad_words": [""]}, "bad_words[0]"),
    ({"ignore_eos": 1}, "ignore_eos"),
    ({"priority": "high"}, "priority"),
    ({"cache_salt": 5}, "cache_salt"),
    ({"request_id": "a b"}, "request_id"),
    ({"use_beam_search": True}, "use_beam_search"),
    ({"truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
    ({"logits_processors": ["x"]}, "logits_processors"),
]
CASES = [
    *((CHAT_PATH, CHAT | fields, param) for fields, param in BAD_CHAT + BAD_SAMPLING),
    *((TEXT_PATH, TEXT | fields, param) for fields, param in BAD_TEXT + BAD_SAMPLING),
    ("/tokenize", {}, "prompt"),
    ("/tokenize", {"prompt": 5}, "prompt"),
    ("/tokenize", {"prompt": "Hi", "messages": [{"role": "user", "content": "Hi"}]}, "prompt"),
    ("/tokenize", {"messages": None}, "prompt"),
    ("/tokenize", {"messages": []}, "messages"),
    ("/detokenize", {"tokens": [300]}, "tokens"),
    ("/detokenize", {"tokens": "a"}, "tokens"),
    ("/tokenize", {}, "prompt"),
    ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
]


def _name(case: tuple[str, dict[str, object], str]) -> str:
    path, body, param = case
    return f"{path}-{param}-{str(body)[-40:]}"


@pytest.mark.parametrize("case", CASES, ids=_name)
def test_bad_field_is_a_400_that_names_it(client: httpx.Client, case: tuple[str, dict[str, object], str]) -> None:
    path, body, param = case
    answer = client.post(path, json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param), error
    assert error["type"] == "invalid_request_error"
    assert param.partition("[")[0].partition(".")[0] in error["message"] or error["code"] == "context_length_exceeded"
    assert len(error["message"]) < 400


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[]", "JSON array"),
        (b"null", "JSON null"),
        (b'"x"', "JSON string"),
        (b'{"model": "tiny", "prompt": "\\ud800"}', "surrogate"),
        (b'{"model": "tiny", "prompt": "\xff"}', "UTF-8"),
        (b'{"model": "tiny", "prompt": "\xed\xa0\x80"}', "surrogates"),
        (b'{"temperature": NaN}', "not valid JSON"),
        (b'{"temperature": Infinity}', "not valid JSON"),
        (b'{"temperature": 1e999}', "infinity"),
        (b'{"a": ' + b"[" * 2000 + b"]" * 2000 + b"}", "depth"),
        (b"\xef\xbb\xbf{}", "BOM"),
    ],
)
def test_bad_json_is_a_400_that_says_where(client: httpx.Client, raw: bytes, words: str) -> None:
    answer = client.post(TEXT_PATH, content=raw, headers={"content-type": "application/json"})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "invalid_json")
    assert words in error["message"]


def test_nesting_inside_a_message_is_refused_by_place(client: httpx.Client) -> None:
    raw = b'{"model": "tiny", "messages": [{"role": "user", "content": ' + b"[" * 900 + b"]" * 900 + b"}]}"
    answer = client.post(CHAT_PATH, content=raw, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith("messages[0].content")


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_other_media_types_are_415(client: httpx.Client, kind: str) -> None:
    answer = client.post(TEXT_PATH, content=b"{}", headers={"content-type": kind})
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type")


def test_compressed_bodies_are_415(client: httpx.Client) -> None:
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    answer = client.post(TEXT_PATH, content=b"x", headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_encoding")


def test_unknown_model_is_404_and_names_the_one_that_is_served(client: httpx.Client) -> None:
    for path, body in ((CHAT_PATH, CHAT), (TEXT_PATH, TEXT)):
        answer = client.post(path, json=body | {"model": "gpt-4"})
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
        assert '"tiny"' in error["message"]


def test_too_long_prompt_tells_the_numbers(client: httpx.Client) -> None:
    answer = client.post(TEXT_PATH, json=TEXT | {"prompt": [65] * 5000, "max_tokens": 100})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "context_length_exceeded")
    assert "4096" in error["message"] and "5000" in error["message"] and "100" in error["message"]


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("/chat/completions", "did you mean /v1/chat/completions?"),
        ("/v1/v1/chat/completions", "did you mean /v1/chat/completions?"),
        ("/v1//chat/completions/", "did you mean /v1/chat/completions?"),
        ("/completions", "did you mean /v1/completions?"),
        ("/models", "did you mean /v1/models?"),
        ("/v1/api/tags", "did you mean /api/tags?"),
        ("/v1/audio/speech", "/ lists them"),
        ("/v1", "/ lists them"),
        ("/v1//", "/ lists them"),
    ],
)
def test_an_unknown_route_names_the_one_that_is_meant(client: httpx.Client, path: str, hint: str) -> None:
    answer = client.post(path, json={})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_route")
    assert answer.json()["error"]["message"] == f"there is no route {path}; {hint}"


def test_counts_of_items_are_told_in_plain_words(client: httpx.Client) -> None:
    few = client.post(CHAT_PATH, json=CHAT | {"messages": []}).json()["error"]["message"]
    many = client.post(CHAT_PATH, json=CHAT | {"stop_token_ids": [1] * 65}).json()["error"]["message"]
    assert few == "messages: expected at least 1 item; got an array of 0"
    assert many == "stop_token_ids: expected at most 64 items; got an array of 65"


def test_unknown_route_and_method_have_openai_shape(client: httpx.Client) -> None:
    missing = client.get("/v1/nothing")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "unknown_route")
    wrong = client.get(CHAT_PATH)
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    control = client.post("/v1/models", json={})
    assert (control.status_code, control.headers["allow"]) == (405, "GET")
    assert control.json()["error"]["code"] == "method_not_allowed"


@pytest.mark.parametrize("size", [100_001, 300_000])
@pytest.mark.parametrize("chunked", [False, True])
def test_large_bodies_are_413(client: httpx.Client, size: int, chunked: bool) -> None:
    raw = b'{"prompt": "' + b"a" * (size - 14) + b'"}'
    content = (raw[at : at + 10_000] for at in range(0, size, 10_000)) if chunked else raw
    answer = client.post(TEXT_PATH, content=content, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
    assert client.get("/health").status_code == 200


def test_a_body_of_just_the_limit_is_read(client: httpx.Client) -> None:
    raw = b'{"prompt": "' + b"a" * (100_000 - 14) + b'"}'
    assert len(raw) == 100_000
    answer = client.post(TEXT_PATH, content=raw, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "model")


GOOD_CHAT: list[dict[str, object]] = [
    {},
    {"user": "u", "metadata": {"a": "b"}, "store": True},
    {"tools": None, "tool_choice": None, "response_format": None, "functions": None},
    {"tools": [], "tool_choice": "none", "parallel_tool_calls": True},
    {"response_format": {"type": "text"}, "modalities": ["text"], "service_tier": "auto"},
    {"temperature": 0, "top_p": 1, "n": 2, "seed": 0, "stop": None},
    {"temperature": None, "top_p": None, "n": None, "stream": None, "max_tokens": None, "logit_bias": None},
    {"temperature": 2.0, "presence_penalty": -2, "frequency_penalty": 2.0, "logit_bias": {"0": -100, "299": 100}},
    {"stop": "x"},
    {"stop": ["x", "yy", "日本"]},
    {"max_tokens": 5, "max_completion_tokens": 5},
    {"logprobs": True, "top_logprobs": 20},
    {"logprobs": False},
    {"logprobs": True, "top_logprobs": 0},
    {"top_k": -1, "min_p": 0, "repetition_penalty": 1.05, "min_tokens": 0},
    {"seed": -(2**63)},
    {"messages": [{"role": "system", "content": ""}, USER]},
    {"messages": [USER, {"role": "assistant", "content": "a", "refusal": None, "audio": None}, USER]},
    {"messages": [USER | {"name": "Ann", "unheard": {"of": [1]}}]},
    {"messages": [USER | {"content": "\u0000 \U0001f680 日本語 \u202e"}]},
    {"messages": [USER | {"content": [{"type": "text", "text": "a", "cache_control": {"type": "x"}}]}]},
    {"prompt_cache_key": "k", "prompt_cache_retention": "24h", "safety_identifier": "u", "verbosity": "low"},
    {"prediction": {"type": "content", "content": "x"}},
    {"chat_template_kwargs": {"enable_thinking": None, "colour": None, "shape": False}},
    {"chat_template_kwargs": {}, "add_generation_prompt": True, "continue_final_message": False},
    {"nobody_knows": [1], "nor_this": None},
]
GOOD_TEXT: list[dict[str, object]] = [
    {},
    {"suffix": None},
    {"suffix": ""},
    {"best_of": 1},
    {"n": 2, "best_of": 3},
    {"logprobs": 0},
    {"logprobs": 5, "echo": True},
    {"max_tokens": 0, "echo": True},
    {"max_tokens": 1, "stop": ["\n"]},
    {"prompt": "\u0000"},
    {"prompt": ""},
    {"prompt": [0, 299]},
    {"user": "x"},
    {"add_special_tokens": False},
]
GOOD = [
    *((CHAT_PATH, CHAT | fields) for fields in GOOD_CHAT),
    *((TEXT_PATH, TEXT | fields) for fields in GOOD_TEXT),
    *((CHAT_PATH, CHAT | fields | {"stream": True}) for fields in GOOD_CHAT),
    *((TEXT_PATH, TEXT | fields | {"stream": True}) for fields in GOOD_TEXT if "best_of" not in fields),
]


@pytest.mark.parametrize("case", GOOD, ids=lambda case: f"{case[0]}-{str(case[1])[-50:]}")
def test_valid_request_is_answered(client: httpx.Client, case: tuple[str, dict[str, object]]) -> None:
    path, body = case
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    if body.get("stream"):
        assert answer.text.endswith("data: [DONE]\n\n")
    else:
        assert len(answer.json()["choices"]) == (body.get("n") or 1)


def test_fields_that_nobody_knows_are_listed(client: httpx.Client) -> None:
    answer = client.post(CHAT_PATH, json=CHAT | {"wat": 1, "täuschung\n": 2, "user": "u", "tools": []})
    assert answer.status_code == 200
    assert answer.headers["x-drivetrain-ignored-fields"] == "wat, t\\xe4uschung?"
    hints = {"store": True, "prompt_cache_key": "k", "verbosity": "low"}
    assert "x-drivetrain-ignored-fields" not in client.post(CHAT_PATH, json=CHAT | hints).headers
