"""Chat completions as events and as one body."""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from drivetrain.completion_text import TextDelta
from drivetrain.dialects.turn import (
    ContentDelta,
    Event,
    Finish,
    Message,
    ReasoningDelta,
    ToolCall,
    ToolCallArguments,
    ToolCallBegin,
    ToolCallEnd,
    Turns,
)
from drivetrain_server.answers.answer import Answer, Envelope, PromptRun, usage_of
from drivetrain_server.answers.logprobs import TokenSpeller, chat_logprobs, prompt_logprobs

CHUNK = "chat.completion.chunk"


class ChatShape:
    """One answer of `/v1/chat/completions`.

    Events are spliced from bytes made once: only text and usage are rendered a token.

    Args:
        turns: how choices are read.
        num_logprobs: alternatives a token, None for no log-probabilities.
        token_ids: tell the token ids too.
        reasoning: tell the reasoning too.
    """

    def __init__(
        self,
        envelope: Envelope,
        spell: TokenSpeller,
        turns: Turns,
        *,
        num_logprobs: int | None,
        token_ids: bool,
        reasoning: bool = True,
        role: str = "assistant",
    ) -> None:
        self._envelope = envelope
        self._spell = spell
        self._turns = turns
        self._num_logprobs = num_logprobs
        self._token_ids = token_ids
        self._reasoning = reasoning
        self._role = role
        self._head = envelope.event_head(CHUNK)
        self._heads: dict[int, bytes] = {}
        self._bare = num_logprobs is None and not token_ids
        self._plain = self._bare and turns.plain

    def opening(self, choice: int, prompt: PromptRun, usage: bytes) -> bytes:
        delta = {"role": self._role, "content": ""}
        extra = b""
        if self._token_ids and choice == 0:
            extra += b',"prompt_token_ids":' + orjson.dumps(prompt.token_ids)
        if prompt.logprobs is not None and choice == 0:
            extra += b',"prompt_logprobs":' + orjson.dumps(prompt_logprobs(prompt.logprobs, self._spell))
        parts = (self._choice_head(choice), orjson.dumps(delta), b',"logprobs":null,"finish_reason":null}]')
        return b"".join(parts) + usage + extra + b"}\n\n"

    def chunk(self, choice: int, delta: TextDelta, usage: bytes) -> bytes:
        if self._plain:
            return self._plain_chunk(choice, delta, usage)
        events = self._turns.push(choice, delta)
        if len(events) == 1:
            return self._event(choice, events[0], usage)
        return b"".join([self._event(choice, event, usage) for event in events])

    def splice(self, choice: int, usage: bytes) -> tuple[bytes, bytes] | None:
        if not self._plain:
            return None
        return self._choice_head(choice) + b'{"content":', b'},"logprobs":null,"finish_reason":null}]%b}\n\n' % usage

    def ending(self, prompts: Sequence[PromptRun], *, usage_event: bool) -> bytes:
        return self._envelope.ending(CHUNK, prompts, usage_event=usage_event)

    def whole(self, prompts: Sequence[PromptRun], answers: Sequence[Sequence[Answer]]) -> bytes:
        prompt = prompts[0]
        body = self._envelope.fields("chat.completion")
        body["choices"] = [self._choice(index, answer) for index, answer in enumerate(answers[0])]
        body["usage"] = usage_of(prompts)
        if self._token_ids:
            body["prompt_token_ids"] = prompt.token_ids
        if prompt.logprobs is not None:
            body["prompt_logprobs"] = prompt_logprobs(prompt.logprobs, self._spell)
        return orjson.dumps(body)

    def _plain_chunk(self, choice: int, delta: TextDelta, usage: bytes) -> bytes:
        head = self._choice_head(choice)
        events = b""
        if delta.text:
            text = orjson.dumps(delta.text)
            events = b'%b{"content":%b},"logprobs":null,"finish_reason":null}]%b}\n\n' % (head, text, usage)
        if delta.finish_reason is not None:
            events += b'%b{},"logprobs":null,"finish_reason":%b,"stop_reason":%b}]%b}\n\n' % (
                head,
                orjson.dumps(delta.finish_reason),
                orjson.dumps(delta.stop_reason),
                usage,
            )
        return events

    def _event(self, choice: int, event: Event, usage: bytes) -> bytes:
        if self._bare and type(event) is ContentDelta:
            head, text = self._choice_head(choice), orjson.dumps(event.text)
            return b'%b{"content":%b},"logprobs":null,"finish_reason":null}]%b}\n\n' % (head, text, usage)
        told = self._told(event)
        ends = b'"finish_reason":null'
        if isinstance(event, Finish):
            reasons = (orjson.dumps(event.reason), orjson.dumps(event.stop_reason))
            ends = b'"finish_reason":%b,"stop_reason":%b' % reasons
        elif told == b"{}" and (self._bare or not event.token_ids):
            return b""
        logprobs, ids = b"null", b""
        if self._num_logprobs is not None:
            logprobs = orjson.dumps(chat_logprobs(event.logprobs, self._num_logprobs, self._spell))
        if self._token_ids:
            ids = b',"token_ids":' + orjson.dumps(event.token_ids)
        return b'%b%b,"logprobs":%b,%b%b}]%b}\n\n' % (self._choice_head(choice), told, logprobs, ends, ids, usage)

    def _told(self, event: Event) -> bytes:
        match event:
            case ContentDelta(text=text):
                return b'{"content":%b}' % orjson.dumps(text)
            case ReasoningDelta(text=text):
                rendered = orjson.dumps(text)
                return b'{"reasoning":%b,"reasoning_content":%b}' % (rendered, rendered) if self._reasoning else b"{}"
            case ToolCallBegin(index=index, id=id, name=name):
                return (
                    b'{"tool_calls":[{"index":%d,"id":%b,"type":"function","function":{"name":%b,"arguments":""}}]}'
                    % (
                        index,
                        orjson.dumps(id),
                        orjson.dumps(name),
                    )
                )
            case ToolCallArguments(index=index, text=text):
                return b'{"tool_calls":[{"index":%d,"function":{"arguments":%b}}]}' % (index, orjson.dumps(text))
            case ToolCallEnd() | Finish():
                return b"{}"

    def _choice(self, index: int, answer: Answer) -> dict[str, object]:
        logprobs = None
        if self._num_logprobs is not None:
            logprobs = chat_logprobs(answer.logprobs, self._num_logprobs, self._spell)
        message = self._turns.message(answer)
        choice: dict[str, object] = {
            "index": index,
            "message": self._message(message),
            "logprobs": logprobs,
            "finish_reason": message.finish_reason,
            "stop_reason": message.stop_reason,
        }
        if self._token_ids:
            choice["token_ids"] = answer.token_ids
        return choice

    def _message(self, message: Message) -> dict[str, object]:
        reasoning = message.reasoning if self._reasoning else None
        calls = [_whole_call(call) for call in message.tool_calls]
        told: dict[str, object] = {
            "role": self._role,
            "content": message.content if message.content or not calls else None,
            "refusal": None,
            "reasoning": reasoning,
            "reasoning_content": reasoning,
        }
        return told | ({"tool_calls": calls} if calls else {})

    def _choice_head(self, choice: int) -> bytes:
        head = self._heads.get(choice)
        if head is None:
            head = self._heads[choice] = self._head + b'{"index":%d,"delta":' % choice
        return head


def _whole_call(call: ToolCall) -> dict[str, object]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
