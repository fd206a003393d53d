"""Who is let in."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import openai
import pytest

from drivetrain.errors import ShareUsed
from drivetrain.frontend import Frontend
from drivetrain.grammar import Grammar
from fakes.engine import FakeEngine
from fakes.server import RunningServer
from fakes.waiting import LIMIT_S

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
PATH = "/v1/chat/completions"
FIRST, SECOND = {"authorization": "Bearer first-key"}, {"authorization": "Bearer second-key"}


@pytest.fixture(scope="module")
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture(scope="module")
def client(engine: FakeEngine) -> Iterator[httpx.Client]:
    with (
        RunningServer(engine, api_keys=("first-key", "second-key")) as server,
        httpx.Client(base_url=server.url) as made,
    ):
        yield made


def test_every_route_but_health_and_readiness_needs_a_key(client: httpx.Client) -> None:
    document = client.get("/openapi.json", headers=FIRST).json()
    paths = {path.replace("{name}", "tiny") for path in document["paths"]}
    assert {"/v1/chat/completions", "/v1/completions", "/tokenize", "/metrics", "/v1/models", "/version"} <= paths
    for path in paths | {"/openapi.json", "/nothing", "/docs"}:
        for method in ("GET", "POST"):
            status = client.request(method, path).status_code
            assert (status == 401) == (path not in ("/health", "/ready")), (method, path, status)


@pytest.mark.parametrize(
    "header", ["first-key", "Bearer", "", "Bearer wrong", "Basic first-key", "Bearer first-key2", "bearer"]
)
def test_wrong_keys_are_401_in_openai_shape(client: httpx.Client, header: str) -> None:
    answer = client.post(PATH, json=CHAT, headers={"authorization": header})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["type"]) == (401, "invalid_api_key", "authentication_error")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert "first-key" not in answer.text


def test_official_client_is_let_in_by_either_key(client: httpx.Client) -> None:
    for key in ("first-key", "second-key"):
        with openai.OpenAI(base_url=f"{client.base_url}/v1", api_key=key, max_retries=0) as official:
            assert official.chat.completions.create(**CHAT).choices[0].message.content == "Hello there!"  # type: ignore[call-overload]
    with (
        openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="other", max_retries=0) as official,
        pytest.raises(openai.AuthenticationError),
    ):
        official.models.list()


def test_keys_never_share_a_prefix_cache(client: httpx.Client, engine: FakeEngine) -> None:
    engine.requests.clear()
    for headers in (FIRST, FIRST, SECOND):
        client.post(PATH, json=CHAT, headers=headers)
    client.post(PATH, json=CHAT | {"cache_salt": "x"}, headers=FIRST)
    same, again, other, salted = (request.salt for request in engine.requests)
    assert same == again != other
    assert salted == f"{same}/x"
    assert len(same) == 32 and "key" not in same


def test_metrics_are_public_only_where_the_operator_says_so(client: httpx.Client) -> None:
    assert client.get("/metrics").status_code == 401
    with RunningServer(FakeEngine(), api_keys=("k",), metrics_public=True) as server:
        assert httpx.get(f"{server.url}/metrics").status_code == 200
        assert httpx.get(f"{server.url}/version").status_code == 401


def test_one_key_with_too_many_requests_gets_429_and_others_go_on() -> None:
    engine = FakeEngine()
    engine.gate_at = 1
    with (
        RunningServer(engine, api_keys=("first-key", "second-key"), max_requests_per_key=1) as server,
        httpx.Client(base_url=server.url) as client,
    ):
        with client.stream("POST", PATH, json=CHAT | {"stream": True}, headers=FIRST) as answer:
            assert engine.waiting_at_gate.wait(LIMIT_S)
            refused = client.post(PATH, json=CHAT, headers=FIRST)
            assert (refused.status_code, refused.json()["error"]["type"]) == (429, "rate_limit_error")
            assert refused.headers["retry-after"] == "1"
            engine.open_gate()
            assert client.post(PATH, json=CHAT, headers=SECOND).status_code == 200
            answer.read()
        assert client.post(PATH, json=CHAT, headers=FIRST).status_code == 200


def test_one_key_that_fills_its_part_of_the_grammars_gets_429_and_others_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    owners: list[str] = []

    async def check(frontend: Frontend, grammar: Grammar, owner: str = "") -> None:
        owners.append(owner)
        if owner == owners[0]:
            raise ShareUsed("16 grammars of this key wait to be checked", retry_after_s=7)

    monkeypatch.setattr(Frontend, "check_grammar", check)
    asked = CHAT | {"guided_regex": "a"}
    with (
        RunningServer(FakeEngine(), api_keys=("first-key", "second-key")) as server,
        httpx.Client(base_url=server.url) as client,
    ):
        refused = client.post(PATH, json=asked, headers=FIRST)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_requests")
        assert refused.headers["retry-after"] == "7"
        assert client.post(PATH, json=asked, headers=SECOND).status_code == 200
    assert len(set(owners)) == 2 and all(owners)
