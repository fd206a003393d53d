"""The client of `chat --url` and `bench`: bodies however they are cut, errors that say what happened."""

from __future__ import annotations

import asyncio
import socket

import pytest

from drivetrain_server.http_client import ConnectionFailed, Endpoint, HttpError, get_json, request, served_model
from fakes.sse_server import Answer, collect, events, sse_server
from fakes.waiting import LIMIT_S


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
async def test_events_do_not_depend_on_how_the_bytes_are_cut(size, newline):
    lines = "/: keepalive/data: café//event: x/data:two/data: lines//data: [DONE]//"
    text = lines.encode().replace(b"/", newline)
    parts = [text[i : i + size] for i in range(0, len(text), size)]
    async with (
        sse_server(lambda *_: Answer(parts)) as server,
        request(Endpoint(url=server.url), "POST", "/v1/x", {}) as response,
    ):
        assert await collect(response.events()) == ["café", "two\nlines", "[DONE]"]


@pytest.mark.parametrize(("chunked", "length"), [(True, None), (False, 11), (False, None)])
async def test_bodies_with_each_framing_are_whole(chunked, length):
    answer = Answer([b'{"a": ', b"[1]", b" }"], chunked=chunked, length=length)
    async with sse_server(lambda *_: answer) as server:
        assert await get_json(Endpoint(url=server.url), "/version") == {"a": [1]}


async def test_request_carries_key_path_and_body():
    async with sse_server(lambda *_: Answer([b"{}"])) as server:
        endpoint = Endpoint(url=server.url + "/v1/", api_key="k")
        async with request(endpoint, "POST", "/v1/completions", {"n": 1}) as response:
            await response.read()
    [(method, path, headers, body)] = server.requests
    assert (method, path, body) == ("POST", "/v1/completions", {"n": 1})
    assert headers["authorization"] == "Bearer k"
    assert headers["host"] == server.url.removeprefix("http://")


async def test_base_path_is_kept():
    async with sse_server(lambda *_: Answer([b"{}"])) as server:
        await get_json(Endpoint(url=server.url + "/llm/v1"), "/v1/models")
    assert server.requests[0][1] == "/llm/v1/models"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error": {"message": "no such model"}}', "the server answered 404: no such model"),
        (b"<html>", "the server answered 404: <html>"),
        (b"", "the server answered 404: no reason given"),
    ],
)
async def test_errors_carry_the_servers_own_words(body, message):
    async with sse_server(lambda *_: Answer([body], status=404, chunked=False)) as server:
        with pytest.raises(HttpError) as caught:
            await get_json(Endpoint(url=server.url), "/v1/models")
    assert str(caught.value) == message
    assert caught.value.status == 404


@pytest.mark.parametrize("answer", [Answer([b"data: 1\n\n"], cut=True), Answer([b"1234"], chunked=False, length=9)])
async def test_answer_that_breaks_off_is_an_error(answer):
    async with sse_server(lambda *_: answer) as server:
        with pytest.raises(ConnectionFailed, match="broke off"):
            async with request(Endpoint(url=server.url), "GET", "/") as response:
                await response.read()


@pytest.mark.parametrize(
    "answer",
    [
        Answer([b"zz\r\nxx\r\n"], headers=("Transfer-Encoding: chunked",), chunked=False),
        Answer([b"x"], length="many", chunked=False),
    ],
)
async def test_wrong_framing_is_an_error(answer):
    async with sse_server(lambda *_: answer) as server:
        with pytest.raises(ConnectionFailed, match="not framed as HTTP says"):
            await get_json(Endpoint(url=server.url), "/")


async def test_nobody_listening_says_how_to_start_a_server():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConnectionFailed, match=r"cannot connect: .*`drivetrain serve MODEL` starts one"):
            await get_json(Endpoint(url=url), "/")


async def test_what_is_no_http_is_said():
    async def babble(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-x\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(babble, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        with pytest.raises(ConnectionFailed, match=r"no HTTP answer: got 'SSH-2\.0-x' instead of a status line"):
            await get_json(Endpoint(url=f"http://127.0.0.1:{port}"), "/")


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "http://"])
def test_wrong_address_is_refused(url):
    with pytest.raises(ConnectionFailed, match="expected an address such as"):
        Endpoint(url=url)


async def test_leaving_a_stream_closes_the_connection():
    async with sse_server(lambda *_: Answer(events(*range(100000), done=False))) as server:
        async with request(Endpoint(url=server.url), "GET", "/") as response:
            async for _ in response.events():
                break
        async with asyncio.timeout(LIMIT_S):
            while server.open:
                await asyncio.sleep(0.01)
    assert server.open == 0
    assert server.disconnects == 1


async def test_first_listed_model_is_taken():
    async with sse_server(lambda *_: Answer([b'{"data": [{"id": "a"}, {"id": "b"}]}'])) as server:
        assert await served_model(Endpoint(url=server.url)) == "a"
    async with sse_server(lambda *_: Answer([b'{"data": []}'])) as server:
        with pytest.raises(ConnectionFailed, match="expected a list of models"):
            await served_model(Endpoint(url=server.url))
