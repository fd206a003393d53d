"""A conversation in the terminal: what is sent, what is kept, what Ctrl-C leaves behind."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator

import pytest

from drivetrain.errors import RequestFailed
from drivetrain_server.cli.conversation import Conversation, Thought, read_message
from drivetrain_server.cli.remote_talker import RemoteTalker
from drivetrain_server.http_client import Endpoint
from fakes.sse_server import Answer, events, sse_server


class Echo:
    """Answers with the last message, word by word; `closed` tells that the stream was left."""

    def __init__(self, pause_s: float = 0.0) -> None:
        self.asked: list[list[dict[str, str]]] = []
        self.closed = False
        self.pause_s = pause_s

    async def answer(self, messages: list[dict[str, str]]) -> AsyncGenerator[str, None]:
        self.asked.append([dict(message) for message in messages])
        try:
            for word in messages[-1]["content"].split():
                yield word + " "
                await asyncio.sleep(self.pause_s)
        finally:
            self.closed = True


async def test_answers_stream_and_become_part_of_the_conversation():
    talk, echo, out = Conversation(system="be brief"), Echo(), []
    talk.say("one two")
    await talk.ask(echo, out.append)
    talk.say("three")
    await talk.ask(echo, out.append)
    assert out == ["one ", "two ", "\n", "three ", "\n"]
    assert echo.asked[1] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "one two"},
        {"role": "assistant", "content": "one two "},
        {"role": "user", "content": "three"},
    ]
    assert talk.stats.startswith("first token after ")


async def test_stopped_answer_stays_as_far_as_it_came_and_ends_the_work():
    talk, echo, out = Conversation(), Echo(pause_s=10.0), []
    talk.say("one two")
    task = asyncio.create_task(talk.ask(echo, out.append))
    while not out:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert echo.closed
    assert talk.turns[-1] == {"role": "assistant", "content": "one "}


async def test_commands_do_what_they_say():
    talk = Conversation()
    talk.say("hello")
    await talk.ask(Echo(), lambda _: None)
    assert talk.command("hello") is None
    assert talk.command("/system You are a pirate") == "system message set, conversation forgotten"
    assert talk.messages() == [{"role": "system", "content": "You are a pirate"}]
    talk.say("hello")
    assert talk.command("/reset") == "forgotten"
    assert talk.messages() == [{"role": "system", "content": "You are a pirate"}]
    assert talk.command("/system") == "no system message any more"
    assert talk.messages() == []
    assert "/retry" in (talk.command("/help") or "")
    assert talk.command("/rest") == "unknown command /rest; /help lists them"


async def test_retry_asks_the_same_again():
    talk, echo = Conversation(), Echo()
    assert not talk.take_back_answer()
    talk.say("hello")
    await talk.ask(echo, lambda _: None)
    assert talk.take_back_answer()
    await talk.ask(echo, lambda _: None)
    assert echo.asked[0] == echo.asked[1]


def test_unanswered_message_is_replaced():
    talk = Conversation()
    talk.say("first")
    talk.say("second")
    assert talk.turns == [{"role": "user", "content": "second"}]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["  hi  "], "hi"),
        (['"""one', "two", 'three"""'], "one\ntwo\nthree"),
        (['"""', " two ", '"""'], "two"),
        (['"""one line"""'], "one line"),
    ],
)
def test_messages_of_several_lines_stand_between_quotes(lines, message):
    left = list(lines)
    assert read_message(lambda _: left.pop(0)) == message
    assert left == []


def chunk(text: str) -> dict[str, object]:
    return {"choices": [{"delta": {"content": text}}]}


async def test_remote_talker_streams_the_text_and_sends_only_what_was_set():
    role = {"choices": [{"delta": {"role": "assistant", "content": ""}}]}
    async with sse_server(lambda *_: Answer(events(role, chunk("a"), chunk("b"), {"choices": []}))) as server:
        talker = RemoteTalker(endpoint=Endpoint(url=server.url), model="m", sampling={"temperature": 0.0})
        pieces = [piece async for piece in talker.answer([{"role": "user", "content": "x"}])]
    assert pieces == ["a", "b"]
    assert server.requests[0][1] == "/v1/chat/completions"
    assert server.requests[0][3] == {
        "model": "m",
        "messages": [{"role": "user", "content": "x"}],
        "stream": True,
        "temperature": 0.0,
    }


async def test_remote_error_in_the_stream_is_raised():
    async with sse_server(lambda *_: Answer(events(chunk("a"), {"error": {"message": "engine died"}}))) as server:
        talker = RemoteTalker(endpoint=Endpoint(url=server.url), model="m")
        with pytest.raises(RequestFailed, match="engine died"):
            _ = [piece async for piece in talker.answer([])]


async def test_undo_takes_back_a_message_with_its_answer():
    talk, echo = Conversation(system="be brief"), Echo()
    assert talk.command("/undo") == "nothing to take back yet"
    for text in ("one", "two"):
        talk.say(text)
        await talk.ask(echo, lambda _: None)
    assert talk.command("/undo") == "taken back"
    assert [turn["content"] for turn in talk.messages()] == ["be brief", "one", "one "]
    talk.say("never answered")
    talk.command("/undo")
    talk.command("/undo")
    assert talk.turns == []


async def test_save_writes_what_would_be_sent(tmp_path):
    talk = Conversation(system="be brief")
    talk.say("Grüße")
    await talk.ask(Echo(), lambda _: None)
    path = tmp_path / "said.json"
    assert talk.command(f"/save {path}") == f"wrote 3 messages to {path}"
    assert json.loads(path.read_text(encoding="utf-8")) == {"messages": talk.messages()}
    assert talk.command("/save") == "/save needs the name of a file"
    assert "cannot be written" in (talk.command(f"/save {tmp_path}") or "")


async def test_thoughts_are_shown_and_not_sent_again():
    thought = {"choices": [{"delta": {"reasoning_content": "hmm"}}]}
    said = {"choices": [{"delta": {"content": "yes"}}]}
    shown: list[str] = []
    talk = Conversation()
    talk.say("really?")
    async with sse_server(lambda *_: Answer(events(thought, said))) as server:
        await talk.ask(RemoteTalker(endpoint=Endpoint(url=server.url), model="m"), shown.append)
    assert [(type(piece), piece) for piece in shown] == [
        (Thought, "hmm"),
        (Thought, "\n\n"),
        (str, "yes"),
        (str, "\n"),
    ]
    assert talk.turns[-1] == {"role": "assistant", "content": "yes"}
