"""Bad requests against a real engine: each is a 4xx that says what is wrong, and no other stream notices."""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

import httpx
import pytest

from fakes.canary import Canary
from fakes.serve_process import ServeProcess

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
JSON = {"content-type": "application/json"}
LONG = [9] * 2000

BAD_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"prompt": LONG}, "prompt"),
    ({"prompt": [9] * 1023, "max_tokens": 2}, "max_tokens"),
    ({"prompt": [9] * 1024, "max_tokens": None}, "prompt"),
    ({"prompt": "Hi", "max_tokens": 2**31 - 1}, "max_tokens"),
    ({"prompt": "Hi", "max_tokens": 2**24}, "max_tokens"),
    ({"prompt": [1, 10**6]}, "prompt"),
    ({"prompt": [2**40]}, "prompt"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": [[1], [2, 10**6]]}, "prompt"),
    ({"prompt": [["a"]]}, "prompt"),
    ({"prompt": {"a": 1}}, "prompt"),
    ({"prompt": ["a"] * 500, "n": 128}, "n"),
    ({"prompt": ["a"] * 100, "n": 40, "max_tokens": 5000}, "max_tokens"),
    ({"max_tokens": 2**31}, "max_tokens"),
    ({"max_tokens": 2**63}, "max_tokens"),
    ({"max_tokens": 10**60}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"n": 10**18}, "n"),
    ({"n": -1}, "n"),
    ({"n": [1]}, "n"),
    ({"best_of": 10**9}, "best_of"),
    ({"temperature": 1e308}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": -1e-300}, "top_p"),
    ({"top_k": 2**31}, "top_k"),
    ({"min_p": 1.0001}, "min_p"),
    ({"repetition_penalty": -0.0}, "repetition_penalty"),
    ({"presence_penalty": 1e300}, "presence_penalty"),
    ({"seed": 2**64}, "seed"),
    ({"stop_token_ids": [10**6]}, "stop_token_ids"),
    ({"stop_token_ids": [2**31]}, "stop_token_ids[0]"),
    ({"stop_token_ids": list(range(65))}, "stop_token_ids"),
    ({"logit_bias": {"1000000": 1}}, "logit_bias"),
    ({"logit_bias": {"-1": 1}}, "logit_bias"),
    ({"logit_bias": {"１": 1}}, "logit_bias"),
    ({"logit_bias": {"1": 1e9}}, "logit_bias.1"),
    ({"logprobs": 10**9}, "logprobs"),
    ({"prompt_logprobs": -1}, "prompt_logprobs"),
    ({"min_tokens": 10**9}, "min_tokens"),
    ({"priority": 101}, "priority"),
    ({"priority": -(2**31)}, "priority"),
    ({"bad_words": ["a" * 5000]}, "bad_words[0]"),
    ({"bad_words": ["a"] * 300}, "bad_words"),
    ({"stop": ["a" * 5000]}, "stop"),
    ({"cache_salt": "x" * 300}, "cache_salt"),
    ({"request_id": "a/b"}, "request_id"),
    ({"stream": 1}, "stream"),
    ({"stream": True, "stream_options": []}, "stream_options"),
]
BAD_CHATS: list[tuple[dict[str, Any], str]] = [
    ({"messages": [{"role": "user", "content": "word " * 5000}]}, "messages"),
    ({"messages": [{"role": "user", "content": {"deep": 1}}]}, "messages[0].content"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_completion_tokens": 10**30}, "max_completion_tokens"),
    ({"top_logprobs": 5}, "top_logprobs"),
    ({"chat_template": "{{ 7 * 7 }}"}, "chat_template"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ({"priority": 10**6}, "priority"),
]
BAD_BYTES = [
    b"",
    b"{",
    b"nul",
    b'{"model": "tiny", "prompt": "a", "temperature": NaN}',
    b'{"model": "tiny", "prompt": "a", "temperature": -Infinity}',
    b'{"model": "tiny", "prompt": "a", "temperature": 1e400}',
    b'{"model": "tiny", "prompt": "\\ud83d"}',
    b'{"model": "tiny", "prompt": "\\udc00\\ud800"}',
    b'{"model": "tiny", "prompt": "\xf8\x88\x80\x80\x80"}',
    b'{"model": "tiny", "prompt": "\xc0\x80"}',
    b'{"model": "tiny", "prompt": "\xff\xfe"}',
    b'{"model": "tiny", "prompt": ' + b"[" * 90_000 + b"]" * 90_000 + b"}",
    b'{"a":' * 30_000 + b"1" + b"}" * 30_000,
    b'{"model": "tiny", "prompt": "a", "max_tokens": ' + b"9" * 100_000 + b"}",
    b"\x00" * 1000,
]


def _refused(answer: httpx.Response, param: str | None = None) -> str | None:
    """What is wrong with a refusal; None if it is as it should be."""
    if not 400 <= answer.status_code < 500:
        return f"status {answer.status_code}: {answer.text[:300]}"
    error = answer.json()["error"]
    if param is not None and error["param"] != param:
        return f"param {error['param']!r}: {error}"
    if len(error["message"]) > 500:
        return f"message of {len(error['message'])} characters"
    return None


def test_bad_fields_are_named_and_nobody_else_notices(tiny_server: ServeProcess) -> None:
    chat = {"messages": [{"role": "user", "content": "Hi"}]}
    cases = [(COMPLETIONS, {"prompt": "Hi"} | fields, param) for fields, param in BAD_FIELDS]
    cases += [(CHAT, chat | fields, param) for fields, param in BAD_CHATS]
    wrong: list[tuple[Any, str]] = []
    with Canary(tiny_server):
        for path, body, param in cases:
            for stream in (None, True):
                if stream and ("stream" in body or "best_of" in body):
                    continue
                whole = {"model": "tiny"} | ({"stream": True} if stream else {}) | body
                reason = _refused(tiny_server.http.post(path, json=whole), param)
                if reason is not None:
                    wrong.append((str(body)[:120], reason))
    assert wrong == []


def test_bad_bytes_are_refused_and_nobody_else_notices(tiny_server: ServeProcess) -> None:
    wrong: list[tuple[bytes, str]] = []
    with Canary(tiny_server):
        for raw in BAD_BYTES:
            for path in (COMPLETIONS, CHAT, "/tokenize", "/detokenize"):
                reason = _refused(tiny_server.http.post(path, content=raw, headers=JSON))
                if reason is not None:
                    wrong.append((raw[:80], reason))
    assert wrong == []


def test_prompt_past_the_context_tells_the_numbers(tiny_server: ServeProcess) -> None:
    answer = tiny_server.http.post(COMPLETIONS, json={"model": "tiny", "prompt": LONG, "max_tokens": 7})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "context_length_exceeded", "prompt")
    assert all(number in error["message"] for number in ("1024", "2000", "7"))


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_unknown_model_is_404_and_names_the_one_that_is_served(tiny_server: ServeProcess, path: str) -> None:
    body = {"model": "\u202e" * 1000, "prompt": "a", "messages": [{"role": "user", "content": "a"}]}
    answer = tiny_server.http.post(path, json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (404, "model")
    assert '"tiny"' in answer.json()["error"]["message"]


def test_body_over_the_limit_is_413_chunked_or_not(tiny_server: ServeProcess) -> None:
    with Canary(tiny_server):
        for size in (200_001, 2_000_000):
            raw = b'{"prompt": "' + b"a" * size
            chunked = (raw[at : at + 50_000] for at in range(0, size, 50_000))
            for content in (raw, chunked):
                answer = tiny_server.http.post(COMPLETIONS, content=content, headers=JSON)
                assert answer.status_code == 413
                assert "200000 bytes" in answer.json()["error"]["message"]


HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
BAD_HTTP = [
    b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET\r\n\r\n",
    b"GET / HTTP/1.1\r\nno colon here\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: localhost\r\n : y\r\n\r\n",
    b"GET / HTTP/1.1\nhost: x\x00y\n\n",
    b"\r\n" * 50_000,
    HEAD + b"content-length: -5\r\n\r\n",
    HEAD + b"content-length: 99999999999999999999999\r\n\r\n{}",
    HEAD + b"content-length: 5\r\ncontent-length: 6\r\n\r\n{}",
    HEAD + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n",
    HEAD + b"transfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
    HEAD + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n" + b"t: x\r\n" * 50_000 + b"\r\n",
    HEAD + b"x: y\r\n" * 20_000 + b"\r\n",
    HEAD + b"x: " + b"y" * 1_000_000,
    b"GET /" + b"%00" * 1000 + b" HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n",
    b"GET /../../etc/passwd HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n",
]


def test_malformed_http_gets_a_4xx_or_a_closed_connection(tiny_server: ServeProcess) -> None:
    wrong: list[tuple[bytes, bytes]] = []
    with Canary(tiny_server):
        for raw in BAD_HTTP:
            said = _said(tiny_server.port, raw)
            if said and not said.startswith(b"HTTP/1.1 4"):
                wrong.append((raw[:80], said[:200]))
    assert wrong == []
    assert tiny_server.http.get("/ready").status_code == 200


def test_connections_that_are_reset_in_the_middle_leave_nothing(tiny_server: ServeProcess) -> None:
    body = json.dumps({"model": "tiny", "prompt": "a" * 500, "max_tokens": 50, "stream": True}).encode()
    whole = HEAD + b"content-length: %d\r\n\r\n" % len(body) + body
    with Canary(tiny_server):
        for end in range(1, len(whole), 23):
            with socket.create_connection(("127.0.0.1", tiny_server.port), timeout=5) as connection:
                connection.sendall(whole[:end])
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    tiny_server.assert_all_pages_back(599)


def _said(port: int, raw: bytes) -> bytes:
    said = b""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        try:
            connection.sendall(raw)
            connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(65536):
                said += part
        except (ConnectionError, OSError):
            pass
    return said
