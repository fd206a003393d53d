"""Ollama's answers, as lines of JSON and as one body."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from time import perf_counter

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
from drivetrain.messages import TokenLogprob
from drivetrain_server.answers.answer import Answer, Envelope, PromptRun
from drivetrain_server.answers.logprobs import TokenSpeller, chat_logprobs
from drivetrain_server.answers.messages import arguments_of

Json = dict[str, object]


class OllamaShape:
    """One answer of `/api/chat` (a `message` a line) or of `/api/generate` (a `response` a line).

    Args:
        chat: which of the two.
        arrived: when the request arrived, on the clock of `perf_counter`.
        num_logprobs: alternatives a token, None for no log-probabilities.
    """

    def __init__(
        self,
        envelope: Envelope,
        spell: TokenSpeller,
        turns: Turns,
        *,
        chat: bool,
        arrived: float,
        num_logprobs: int | None = None,
    ) -> None:
        self._envelope = envelope
        self._spell = spell
        self._turns = turns
        self._chat = chat
        self._arrived = arrived
        self._num_logprobs = num_logprobs
        self._call: tuple[str, list[str]] = ("", [])
        self._reason = "stop"

    def opening(self, choice: int, prompt: PromptRun, usage: bytes) -> bytes:
        return b""

    def chunk(self, choice: int, delta: TextDelta, usage: bytes) -> bytes:
        return b"".join([self._told(event) for event in self._turns.push(choice, delta)])

    def splice(self, choice: int, usage: bytes) -> tuple[bytes, bytes] | None:
        return None

    def ending(self, prompts: Sequence[PromptRun], *, usage_event: bool) -> bytes:
        return _line(self._part({"content": ""}) | self._done(prompts))

    def whole(self, prompts: Sequence[PromptRun], answers: Sequence[Sequence[Answer]]) -> bytes:
        answer = answers[0][0]
        message = self._turns.message(answer)
        self._reason = _done_reason(message.finish_reason or "stop")
        told: Json = {"content": message.content}
        if message.reasoning is not None:
            told["thinking"] = message.reasoning
        if message.tool_calls:
            told["tool_calls"] = [_call(call.name, call.arguments) for call in message.tool_calls]
        return orjson.dumps(self._part(told, answer.logprobs) | self._done(prompts))

    def _told(self, event: Event) -> bytes:
        match event:
            case ContentDelta(text=text):
                return _line(self._part({"content": text}, event.logprobs) | {"done": False})
            case ReasoningDelta(text=text):
                return _line(self._part({"content": "", "thinking": text}, event.logprobs) | {"done": False})
            case ToolCallBegin(name=name):
                self._call = (name, [])
                return b""
            case ToolCallArguments(text=text):
                self._call[1].append(text)
                return b""
            case ToolCallEnd():
                name, texts = self._call
                return _line(self._part({"content": "", "tool_calls": [_call(name, "".join(texts))]}) | {"done": False})
            case Finish(reason=reason):
                self._reason = _done_reason(reason)
                return b""

    def _part(self, told: Json, logprobs: Sequence[TokenLogprob] = ()) -> Json:
        part: Json = {"model": self._envelope.model, "created_at": now()}
        if self._chat:
            part["message"] = {"role": "assistant", **told}
        else:
            part["response"] = told.pop("content")
            part |= told
        if self._num_logprobs is not None and logprobs:
            part["logprobs"] = chat_logprobs(logprobs, self._num_logprobs, self._spell)["content"]
        return part

    def _done(self, prompts: Sequence[PromptRun]) -> Json:
        ended = perf_counter()
        (prompt,) = prompts
        first = ended if prompt.first_token_at is None else prompt.first_token_at
        return {
            "done": True,
            "done_reason": self._reason,
            "total_duration": _nanoseconds(ended - self._arrived),
            "load_duration": 0,
            "prompt_eval_count": len(prompt.token_ids),
            "prompt_eval_duration": _nanoseconds(first - self._arrived),
            "eval_count": prompt.num_generated,
            "eval_duration": _nanoseconds(ended - first),
        }


def now() -> str:
    """The time in the form of Ollama's answers."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def loaded(model: str, *, chat: bool, reason: str) -> bytes:
    """The answer to a request without a prompt, which asks only for the model to be loaded or let go."""
    told: Json = {"message": {"role": "assistant", "content": ""}} if chat else {"response": ""}
    return orjson.dumps({"model": model, "created_at": now()} | told | {"done": True, "done_reason": reason})


def _call(name: str, arguments: str) -> Json:
    return {"function": {"name": name, "arguments": arguments_of(arguments)}}


def _done_reason(reason: str) -> str:
    return "length" if reason == "length" else "stop"


def _line(value: Json) -> bytes:
    return orjson.dumps(value) + b"\n"


def _nanoseconds(seconds: float) -> int:
    """At least one: clients divide by it."""
    return max(int(seconds * 1e9), 1)
