"""Models, tokens, version, metrics, documents, and pages of other origins."""

from __future__ import annotations

import time
from collections.abc import Iterator

import anthropic
import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from drivetrain.version import __version__
from fakes.engine import FakeEngine
from fakes.server import RunningServer
from fakes.text import BEGIN

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with (
        RunningServer(FakeEngine(), cors_origins=("https://page.example",)) as server,
        httpx.Client(base_url=server.url) as made,
    ):
        yield made


def test_models_are_listed_and_found(client: httpx.Client) -> None:
    with openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="none", max_retries=0) as official:
        (model,) = official.models.list()
        assert (model.id, model.object, model.owned_by) == ("tiny", "model", "drivetrain")
        assert official.models.retrieve("tiny").model_dump()["max_model_len"] == 4096
        with pytest.raises(openai.NotFoundError) as caught:
            official.models.retrieve("org/other")
    assert caught.value.code == "model_not_found"


def test_anthropics_clients_get_models_in_their_shape(client: httpx.Client) -> None:
    with anthropic.Anthropic(base_url=str(client.base_url), api_key="none", max_retries=0) as official:
        listed = official.models.list()
        (model,) = listed
        assert (model.id, model.type, model.display_name, model.lifecycle) == ("tiny", "model", "tiny", "active")
        assert (listed.has_more, listed.first_id, listed.last_id) == (False, "tiny", "tiny")
        assert abs(model.created_at.timestamp() - time.time()) < 600
        assert (model.max_input_tokens, official.models.retrieve("tiny")) == (4096, model)
        assert official.models.list(after_id="tiny").data == []
        with pytest.raises(anthropic.NotFoundError) as caught:
            official.models.retrieve("other")
    assert caught.value.body == {
        "type": "error",
        "error": {
            "type": "not_found_error",
            "message": 'the model "other" is not served here; this server has "tiny"',
            "param": "model",
            "code": "model_not_found",
        },
    }


@pytest.mark.parametrize("path", ["/", "/health", "/ready", "/version", "/v1/models", "/v1/models/tiny", "/api/tags"])
def test_head_is_get_without_the_body(client: httpx.Client, path: str) -> None:
    head, whole = client.head(path), client.get(path)
    assert (head.status_code, head.content) == (200, b"")
    own = ("x-request-id", "date")
    assert {k: v for k, v in head.headers.items() if k not in own} == {
        k: v for k, v in whole.headers.items() if k not in own
    }
    assert client.get(path).content == whole.content
    assert client.head("/v1/models/other").status_code == 404
    assert client.head("/v1/chat/completions").status_code == 405


def test_text_is_tokenized_and_back(client: httpx.Client) -> None:
    answer = client.post("/tokenize", json={"model": "tiny", "prompt": "aé"}).json()
    assert answer == {"tokens": [BEGIN, 97, 195, 169], "count": 4, "max_model_len": 4096}
    bare = {"prompt": "aé", "add_special_tokens": False, "return_token_strs": True}
    answer = client.post("/tokenize", json=bare).json()
    assert (answer["tokens"], answer["token_strs"]) == ([97, 195, 169], ["a", "bytes:\\xc3", "bytes:\\xa9"])
    assert client.post("/detokenize", json={"tokens": [BEGIN, 97, 195, 169]}).json() == {"prompt": "<|begin|>aé"}
    bare = {"tokens": [BEGIN, 97], "skip_special_tokens": True}
    assert client.post("/detokenize", json=bare).json() == {"prompt": "a"}
    assert client.post("/tokenize", json={"prompt": "", "add_special_tokens": False}).json()["tokens"] == []


def test_messages_are_tokenized_as_chat_would(client: httpx.Client) -> None:
    answer = client.post("/tokenize", json=CHAT).json()
    assert bytes(answer["tokens"]).decode() == "user: Hi\nassistant: "
    assert answer["count"] == client.post("/v1/chat/completions", json=CHAT).json()["usage"]["prompt_tokens"]


def test_version_and_index(client: httpx.Client) -> None:
    assert client.get("/version").json() == {"version": __version__}
    index = client.get("/")
    assert index.status_code == 200 and "/v1/chat/completions" in index.text


def test_document_describes_raw_routes_with_their_fields(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    body = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/ChatRequest"}
    assert {"messages", "temperature", "min_p", "logprobs"} <= schemas["ChatRequest"]["properties"].keys()
    assert set(schemas["ChatRequest"]["required"]) == {"messages", "model"}
    text = client.get("/openapi.json").text
    names = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert names <= schemas.keys()


def test_document_tells_what_each_field_of_a_body_means(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    silent = [
        f"{name}.{field}"
        for name, schema in schemas.items()
        if name not in ("Error", "HTTPValidationError", "ValidationError")
        for field, about in schema.get("properties", {}).items()
        if not about.get("description", "").endswith(".")
    ]
    assert silent == []
    chat = schemas["ChatRequest"]["properties"]
    assert [*chat][:2] == ["model", "messages"]
    assert chat["top_p"]["description"] == "Keep the smallest set of tokens with this probability. Default: 1."


def test_metrics_count_requests_tokens_and_pages(client: httpx.Client) -> None:
    client.post("/v1/completions", json={"model": "tiny", "prompt": "a", "max_tokens": 5})
    client.post("/v1/completions", json={"model": "tiny", "prompt": 5})
    client.get("/v1/models/tiny")
    client.get("/no/such/route")
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }
    assert samples["drivetrain_http_requests_total", "/v1/completions", "200", "POST"] == 1
    assert samples["drivetrain_http_requests_total", "/v1/completions", "400", "POST"] == 1
    assert samples["drivetrain_http_requests_total", "/v1/models/{name:path}", "200", "GET"] >= 1
    assert samples["drivetrain_http_requests_total", "404", "GET", "other"] == 1
    assert samples["drivetrain_request_duration_seconds_count", "/v1/completions"] == 2
    first, inter = (
        samples["drivetrain_time_to_first_token_seconds_count",],
        samples["drivetrain_inter_token_seconds_count",],
    )
    assert first >= 1 and inter >= 4
    states = [samples["drivetrain_kv_pages", state] for state in ("free", "cached", "used")]
    assert sum(states) == samples["drivetrain_kv_pages_capacity",] == 64
    assert samples["drivetrain_steps_total",] == 7
    assert samples["drivetrain_ready",] == 1
    assert samples["drivetrain_engine_info", "fake", "float32", "none", "tiny"] == 1


def test_request_id_is_given_back_or_made(client: httpx.Client) -> None:
    assert client.get("/version", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    made = client.get("/version", headers={"x-request-id": "not valid!"}).headers["x-request-id"]
    assert len(made) == 24
    answer = client.post("/v1/chat/completions", json=CHAT, headers={"x-request-id": "mine-2"})
    assert answer.json()["id"] == "chatcmpl-mine-2"


def test_only_listed_origins_are_answered(client: httpx.Client) -> None:
    preflight = {"origin": "https://page.example", "access-control-request-method": "POST"}
    answer = client.options("/v1/chat/completions", headers=preflight)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (204, "https://page.example")
    other = client.options("/v1/chat/completions", headers=preflight | {"origin": "https://evil.example"})
    assert other.status_code == 405 and "access-control-allow-origin" not in other.headers
    plain = client.get("/version", headers={"origin": "https://page.example"})
    assert plain.headers["access-control-allow-origin"] == "https://page.example"


def test_a_page_may_send_the_headers_of_official_clients(client: httpx.Client) -> None:
    names = "authorization, content-type, anthropic-dangerous-direct-browser-access, x-stainless-retry-count"
    preflight = {"origin": "https://page.example", "access-control-request-method": "POST"}
    asked = {"access-control-request-headers": names}
    answer = client.options("/v1/chat/completions", headers=preflight | asked)
    assert answer.headers["access-control-allow-headers"] == names
    no_names = client.options("/v1/chat/completions", headers=preflight | {"access-control-request-headers": "a: b"})
    assert no_names.status_code == 204 and "access-control-allow-headers" not in no_names.headers
    plain = client.get("/version", headers={"origin": "https://page.example"})
    assert "x-drivetrain-ignored-fields" in plain.headers["access-control-expose-headers"]
