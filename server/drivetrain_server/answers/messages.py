"""Anthropic's messages as events and as one body."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import orjson

from drivetrain.completion_text import TextDelta
from drivetrain.dialects.turn import (
    ContentDelta,
    Event,
    Finish,
    ReasoningDelta,
    ToolCallArguments,
    ToolCallBegin,
    ToolCallEnd,
    Turns,
)
from drivetrain_server.answers.answer import Answer, Envelope, PromptRun, reasoning_tokens
from drivetrain_server.errors import HttpError, anthropic_error

STOP_REASONS = {"stop": "end_turn", "tool_calls": "tool_use"}
_STARTS = {
    "text": b'{"type":"text","text":""}',
    "thinking": b'{"type":"thinking","thinking":"","signature":""}',
}


class MessagesShape:
    """One answer of `/v1/messages`: blocks of thinking, text and tool use, one after another.

    Args:
        window: the context ends before the client's own limit.
    """

    def __init__(self, envelope: Envelope, turns: Turns, *, window: bool = False) -> None:
        self._length = "model_context_window_exceeded" if window else "max_tokens"
        self._envelope = envelope
        self._turns = turns
        self._index = -1
        self._open: str | None = None
        self._finish = Finish(reason="stop")

    def opening(self, choice: int, prompt: PromptRun, usage: bytes) -> bytes:
        message = self._message([], None, None, [prompt])
        return _event("message_start", b'"message":' + orjson.dumps(message)) + _event("ping", b"")

    def chunk(self, choice: int, delta: TextDelta, usage: bytes) -> bytes:
        return b"".join([self._told(event) for event in self._turns.push(choice, delta)])

    def splice(self, choice: int, usage: bytes) -> tuple[bytes, bytes] | None:
        if self._open != "text" or not self._turns.plain:
            return None
        before, after = self._delta(b'"type":"text_delta","text":\0').split(b"\0")
        return before, after

    def ending(self, prompts: Sequence[PromptRun], *, usage_event: bool) -> bytes:
        delta = {"stop_reason": self._stop_reason(self._finish), "stop_sequence": _stop_sequence(self._finish)}
        told = b'"delta":%b,"usage":%b' % (orjson.dumps(delta), orjson.dumps(_usage(prompts)))
        return _event("message_delta", told) + _event("message_stop", b"")

    def whole(self, prompts: Sequence[PromptRun], answers: Sequence[Sequence[Answer]]) -> bytes:
        message = self._turns.message(answers[0][0])
        content: list[object] = []
        if message.reasoning is not None:
            content.append({"type": "thinking", "thinking": message.reasoning, "signature": ""})
        if message.content:
            content.append({"type": "text", "text": message.content})
        for call in message.tool_calls:
            given = arguments_of(call.arguments)
            content.append({"type": "tool_use", "id": call.id, "name": call.name, "input": given})
        ended = Finish(reason=message.finish_reason or "stop", stop_reason=message.stop_reason)
        return orjson.dumps(self._message(content, self._stop_reason(ended), _stop_sequence(ended), prompts))

    def _message(
        self, content: list[object], stop_reason: str | None, stop_sequence: str | None, prompts: Sequence[PromptRun]
    ) -> dict[str, object]:
        return {
            "id": self._envelope.id,
            "type": "message",
            "role": "assistant",
            "model": self._envelope.model,
            "content": content,
            "stop_reason": stop_reason,
            "stop_sequence": stop_sequence,
            "usage": _usage(prompts),
        }

    def _told(self, event: Event) -> bytes:
        match event:
            case ContentDelta(text=text):
                start = self._begin("text")
                return start + self._delta(b'"type":"text_delta","text":' + orjson.dumps(text))
            case ReasoningDelta(text=text):
                start = self._begin("thinking")
                return start + self._delta(b'"type":"thinking_delta","thinking":' + orjson.dumps(text))
            case ToolCallBegin(id=id, name=name):
                block = orjson.dumps({"type": "tool_use", "id": id, "name": name, "input": {}})
                return self._end() + self._start("tool_use", block)
            case ToolCallArguments(text=text):
                return self._delta(b'"type":"input_json_delta","partial_json":' + orjson.dumps(text))
            case ToolCallEnd():
                return self._end()
            case Finish():
                self._finish = event
                return self._end()

    def _stop_reason(self, finish: Finish) -> str:
        if isinstance(finish.stop_reason, str):
            return "stop_sequence"
        return self._length if finish.reason == "length" else STOP_REASONS.get(finish.reason, "end_turn")

    def _begin(self, kind: str) -> bytes:
        """Events up to an open block of this kind."""
        return b"" if self._open == kind else self._end() + self._start(kind, _STARTS[kind])

    def _start(self, kind: str, block: bytes) -> bytes:
        self._open = kind
        self._index += 1
        return _event("content_block_start", b'"index":%d,"content_block":%b' % (self._index, block))

    def _end(self) -> bytes:
        if self._open is None:
            return b""
        signed = b""
        if self._open == "thinking":
            signed = self._delta(b'"type":"signature_delta","signature":""')
        self._open = None
        return signed + _event("content_block_stop", b'"index":%d' % self._index)

    def _delta(self, told: bytes) -> bytes:
        """An event of the open block."""
        return _event("content_block_delta", b'"index":%d,"delta":{%b}' % (self._index, told))


def arguments_of(text: str) -> dict[str, object]:
    """Arguments of a call as an object; what is no JSON object stands under `arguments` as it came."""
    try:
        value: object = orjson.loads(text or "{}")
    except orjson.JSONDecodeError:
        value = None
    return cast("dict[str, object]", value) if isinstance(value, dict) else {"arguments": text}


def messages_error_event(error: HttpError) -> bytes:
    """An error in a stream that has begun."""
    return b"event: error\ndata: %b\n\n" % orjson.dumps(anthropic_error(error))


def _event(name: str, told: bytes) -> bytes:
    named = name.encode()
    return b'event: %b\ndata: {"type":"%b"%b%b}\n\n' % (named, named, b"," if told else b"", told)


def _stop_sequence(finish: Finish) -> str | None:
    return finish.stop_reason if isinstance(finish.stop_reason, str) else None


def _usage(prompts: Sequence[PromptRun]) -> dict[str, object]:
    cached = sum(prompt.num_cached_tokens for prompt in prompts)
    return {
        "input_tokens": sum(len(prompt.token_ids) for prompt in prompts) - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": sum(prompt.num_generated for prompt in prompts),
        "output_tokens_details": {"thinking_tokens": reasoning_tokens(prompts)},
    }
