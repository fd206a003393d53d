"""Responses, as numbered events and as one body."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, cast

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
    TurnFinish,
    Turns,
)
from drivetrain.messages import TokenLogprob
from drivetrain_server.answers.answer import Answer, Envelope, PromptRun, reasoning_tokens
from drivetrain_server.answers.logprobs import TokenSpeller, chat_logprobs
from drivetrain_server.errors import HttpError

Json = dict[str, Any]


class ResponsesShape:
    """One answer of `/v1/responses`: items of reasoning, text and function calls, one after another.

    Args:
        echo: the fields that tell again what was asked for.
        num_logprobs: alternatives a token, None for no log-probabilities.

    Attributes:
        response: as it is answered, once it is complete.
    """

    def __init__(
        self,
        envelope: Envelope,
        spell: TokenSpeller,
        turns: Turns,
        *,
        echo: Json,
        num_logprobs: int | None,
    ) -> None:
        self.response: Json = {}
        self._envelope = envelope
        self._spell = spell
        self._turns = turns
        self._echo = echo
        self._num_logprobs = num_logprobs
        self._number = 0
        self._items: list[Json] = []
        self._open: _Item | None = None
        self._reason: TurnFinish = "stop"

    def opening(self, choice: int, prompt: PromptRun, usage: bytes) -> bytes:
        response = self._response("in_progress", None)
        return b"".join([self._whole_event(f"response.{name}", response) for name in ("created", "in_progress")])

    def chunk(self, choice: int, delta: TextDelta, usage: bytes) -> bytes:
        return b"".join([self._told(event) for event in self._turns.push(choice, delta)])

    def splice(self, choice: int, usage: bytes) -> tuple[bytes, bytes] | None:
        return None  # each event has a number of its own

    def ending(self, prompts: Sequence[PromptRun], *, usage_event: bool) -> bytes:
        response = self._done(prompts)
        return self._whole_event(f"response.{response['status']}", response)

    def failed(self, error: HttpError) -> bytes:
        """How a stream that has begun tells of an error."""
        response = self._response("failed", None)
        response["error"] = {"code": "server_error", "message": error.message}
        return self._whole_event("response.failed", response)

    def whole(self, prompts: Sequence[PromptRun], answers: Sequence[Sequence[Answer]]) -> bytes:
        answer = answers[0][0]
        message = self._turns.message(answer)
        self._reason = message.finish_reason or "stop"
        if message.reasoning is not None:
            self._begin("reasoning").texts.append(message.reasoning)
        if message.content or not message.tool_calls:
            item = self._begin("message")
            item.texts.append(message.content)
            item.logprobs += self._logprobs(answer.logprobs)
        for call in message.tool_calls:
            self._begin("function_call", call.id, call.name).texts.append(call.arguments)
        self._close()
        return orjson.dumps(self._done(prompts))

    def _told(self, event: Event) -> bytes:
        match event:
            case ContentDelta(text=text):
                logprobs = self._logprobs(event.logprobs)
                start = self._item("message")
                assert self._open is not None
                self._open.logprobs += logprobs
                told = b',"delta":%b,"logprobs":%b' % (orjson.dumps(text), orjson.dumps(logprobs))
                return start + self._delta("response.output_text.delta", text, told)
            case ReasoningDelta(text=text):
                start = self._item("reasoning")
                return start + self._delta("response.reasoning_text.delta", text, b',"delta":' + orjson.dumps(text))
            case ToolCallBegin(id=id, name=name):
                return self._end() + self._start(self._begin("function_call", id, name))
            case ToolCallArguments(text=text):
                told = b',"delta":' + orjson.dumps(text)
                return self._delta("response.function_call_arguments.delta", text, told)
            case ToolCallEnd():
                return self._end()
            case Finish(reason=reason):
                self._reason = reason
                # An answer without any text has one item all the same.
                empty = self._item("message") if not self._items and self._open is None else b""
                return empty + self._end()

    def _item(self, kind: str) -> bytes:
        """Events up to an open item of this kind."""
        if self._open is not None and self._open.kind == kind:
            return b""
        return self._end() + self._start(self._begin(kind))

    def _begin(self, kind: str, call_id: str = "", name: str = "") -> _Item:
        self._close()
        prefix = {"message": "msg", "reasoning": "rs", "function_call": "fc"}[kind]
        place = len(self._items)
        item_id = f"{prefix}_{self._envelope.id.removeprefix('resp_')}_{place}"
        self._open = _Item(kind, item_id, call_id, name)
        return self._open

    def _close(self) -> Json | None:
        """The open item, which becomes a part of the answer."""
        if self._open is None:
            return None
        item, self._open = self._open, None
        self._items.append(item.told(done=True))
        return self._items[-1]

    def _start(self, item: _Item) -> bytes:
        place = b',"output_index":%d' % len(self._items)
        events = self._event("response.output_item.added", place + b',"item":' + orjson.dumps(item.told(done=False)))
        if item.kind != "function_call":
            part = b',"content_index":0,"part":' + orjson.dumps(item.part(""))
            events += self._event("response.content_part.added", self._place(item) + part)
        return events

    def _end(self) -> bytes:
        item = self._open
        if item is None:
            return b""
        place, text = self._place(item), "".join(item.texts)
        output = b',"output_index":%d' % len(self._items)
        events = b""
        if item.kind == "function_call":
            told = b',"name":%b,"arguments":%b' % (orjson.dumps(item.name), orjson.dumps(text))
            events = self._event("response.function_call_arguments.done", place + told)
        else:
            told = b',"content_index":0,"text":' + orjson.dumps(text)
            if item.kind == "message":
                told += b',"logprobs":' + orjson.dumps(item.logprobs)
            name = "output_text" if item.kind == "message" else "reasoning_text"
            events = self._event(f"response.{name}.done", place + told)
            part = b',"content_index":0,"part":' + orjson.dumps(item.part(text))
            events += self._event("response.content_part.done", place + part)
        done = self._close()
        return events + self._event("response.output_item.done", output + b',"item":' + orjson.dumps(done))

    def _delta(self, name: str, text: str, told: bytes) -> bytes:
        item = self._open
        assert item is not None, "text belongs to an item"
        item.texts.append(text)
        index = b"" if item.kind == "function_call" else b',"content_index":0'
        return self._event(name, self._place(item) + index + told)

    def _place(self, item: _Item) -> bytes:
        return b',"item_id":%b,"output_index":%d' % (orjson.dumps(item.id), len(self._items))

    def _event(self, name: str, told: bytes) -> bytes:
        named = name.encode()
        event = b'event: %b\ndata: {"type":"%b","sequence_number":%d%b}\n\n' % (named, named, self._number, told)
        self._number += 1
        return event

    def _whole_event(self, name: str, response: Json) -> bytes:
        return self._event(name, b',"response":' + orjson.dumps(response))

    def _logprobs(self, entries: Sequence[TokenLogprob]) -> list[object]:
        if self._num_logprobs is None:
            return []
        return cast("list[object]", chat_logprobs(entries, self._num_logprobs, self._spell)["content"])

    def _done(self, prompts: Sequence[PromptRun]) -> Json:
        cut = self._reason == "length"
        response = self._response("incomplete" if cut else "completed", self._usage(prompts))
        if cut:
            response["incomplete_details"] = {"reason": "max_output_tokens"}
            if self._items:
                self._items[-1]["status"] = "incomplete"
        else:
            response["completed_at"] = int(time.time())
        self.response = response
        return response

    def _usage(self, prompts: Sequence[PromptRun]) -> Json:
        given = sum(len(prompt.token_ids) for prompt in prompts)
        made = sum(prompt.num_generated for prompt in prompts)
        return {
            "input_tokens": given,
            "input_tokens_details": {"cached_tokens": sum(prompt.num_cached_tokens for prompt in prompts)},
            "output_tokens": made,
            "output_tokens_details": {"reasoning_tokens": reasoning_tokens(prompts)},
            "total_tokens": given + made,
        }

    def _response(self, status: str, usage: Json | None) -> Json:
        told: Json = {
            "id": self._envelope.id,
            "object": "response",
            "created_at": self._envelope.created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "model": self._envelope.model,
            "output": self._items,
            "usage": usage,
        }
        return told | self._echo


class _Item:
    """One item of the output while it grows."""

    __slots__ = ("call_id", "id", "kind", "logprobs", "name", "texts")

    def __init__(self, kind: str, id: str, call_id: str, name: str) -> None:
        self.kind, self.id, self.call_id, self.name = kind, id, call_id, name
        self.texts: list[str] = []
        self.logprobs: list[object] = []

    def part(self, text: str) -> Json:
        """Its one part of content."""
        if self.kind == "reasoning":
            return {"type": "reasoning_text", "text": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": self.logprobs if text else []}

    def told(self, *, done: bool) -> Json:
        """As it stands in the output."""
        text, status = "".join(self.texts), "completed" if done else "in_progress"
        head: Json = {"id": self.id, "type": self.kind, "status": status}
        if self.kind == "function_call":
            return head | {"call_id": self.call_id, "name": self.name, "arguments": text}
        content = [self.part(text)] if done else []
        if self.kind == "reasoning":
            return head | {"summary": [], "content": content, "encrypted_content": None}
        return head | {"role": "assistant", "content": content}
