"""Which names a server may be called by: a page that points its own name at this machine gets nothing."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import httpx
import pytest

from fakes.engine import FakeEngine
from fakes.server import RunningServer

OWN = ("localhost", "LOCALHOST:8000", "api.localhost", "127.0.0.1:80", "[::1]:8000", "[::1]", "10.1.2.3", "localhost.")
FOREIGN = ("evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "localhost:x", "x")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with RunningServer(FakeEngine(), allowed_hosts=("Trains.example",), cors_origins=("*",)) as server:
        yield server.url


@pytest.mark.parametrize("host", [*OWN, "trains.example:443", "host.docker.internal:8000", socket.gethostname(), ""])
def test_this_machine_s_names_are_answered(url: str, host: str) -> None:
    assert httpx.get(f"{url}/v1/models", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("host", FOREIGN)
def test_other_names_get_nothing(url: str, host: str) -> None:
    answers = [
        httpx.get(url + path, headers={"host": host}) for path in ("/", "/health", "/v1/models", "/metrics", "/nothing")
    ]
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
    answers.append(httpx.post(f"{url}/v1/chat/completions", json=chat, headers={"host": host}))
    preflight = {"host": host, "origin": "http://evil.example", "access-control-request-method": "POST"}
    answers.append(httpx.options(f"{url}/v1/chat/completions", headers=preflight))
    for answer in answers:
        error = answer.json()["error"]
        assert (answer.status_code, error["type"], error["code"]) == (403, "permission_error", "host_not_allowed")
        assert error["message"].startswith("Host: got ")
        assert "server.allowed_hosts" in error["message"]
        assert "access-control-allow-origin" not in answer.headers


def test_a_key_is_proof_enough_and_so_is_a_star() -> None:
    for settings in ({"api_keys": ("secret",)}, {"allowed_hosts": ("*",)}):
        with RunningServer(FakeEngine(), **settings) as server:
            headers = {"host": "evil.example", "authorization": "Bearer secret"}
            assert httpx.get(f"{server.url}/v1/models", headers=headers).status_code == 200
