"""Chat completions as events and as one body."""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from drivetrain.completion_text import TextDelta
from drivetrain_server.answers.answer import Answer, Envelope, PromptRun, usage_of
from drivetrain_server.answers.logprobs import TokenSpeller, chat_logprobs, prompt_logprobs

CHUNK = "chat.completion.chunk"


class ChatShape:
    """One answer of `/v1/chat/completions`.

    Events are spliced from bytes made once: only text and usage are rendered a token.

    Args:
        num_logprobs: alternatives a token, None for no log-probabilities.
        token_ids: tell the token ids too.
    """

    def __init__(
        self,
        envelope: Envelope,
        spell: TokenSpeller,
        *,
        num_logprobs: int | None,
        token_ids: bool,
        role: str = "assistant",
    ) -> None:
        self._envelope = envelope
        self._spell = spell
        self._num_logprobs = num_logprobs
        self._token_ids = token_ids
        self._role = role
        self._head = envelope.event_head(CHUNK)
        self._heads: dict[int, bytes] = {}
        self._plain = num_logprobs is None and not token_ids

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
        head = self._choice_head(choice)
        events = b""
        if self._plain:
            if delta.text:
                text = orjson.dumps(delta.text)
                events = b'%b{"content":%b},"logprobs":null,"finish_reason":null}]%b}\n\n' % (head, text, usage)
        elif delta.token_ids or delta.text:
            events = b'%b{"content":%b},"logprobs":%b,"finish_reason":null%b}]%b}\n\n' % (
                head,
                orjson.dumps(delta.text),
                self._logprobs(delta),
                b',"token_ids":' + orjson.dumps(delta.token_ids) if self._token_ids else b"",
                usage,
            )
        if delta.finish_reason is not None:
            events += b'%b{},"logprobs":null,"finish_reason":%b,"stop_reason":%b}]%b}\n\n' % (
                head,
                orjson.dumps(delta.finish_reason),
                orjson.dumps(delta.stop_reason),
                usage,
            )
        return events

    def splice(self, choice: int, usage: bytes) -> tuple[bytes, bytes] | None:
        if not self._plain:
            return None
        return self._choice_head(choice) + b'{"content":', b'},"logprobs":null,"finish_reason":null}]%b}\n\n' % usage

    def usage(self, usage: dict[str, object]) -> bytes:
        return self._envelope.usage_event(CHUNK, usage)

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

    def _choice(self, index: int, answer: Answer) -> dict[str, object]:
        logprobs = None
        if self._num_logprobs is not None:
            logprobs = chat_logprobs(answer.logprobs, self._num_logprobs, self._spell)
        message = {
            "role": self._role,
            "content": answer.text,
            "refusal": None,
            "reasoning": None,
            "reasoning_content": None,
        }
        choice: dict[str, object] = {
            "index": index,
            "message": message,
            "logprobs": logprobs,
            "finish_reason": answer.finish_reason,
            "stop_reason": answer.stop_reason,
        }
        if self._token_ids:
            choice["token_ids"] = answer.token_ids
        return choice

    def _logprobs(self, delta: TextDelta) -> bytes:
        if self._num_logprobs is None:
            return b"null"
        return orjson.dumps(chat_logprobs(delta.logprobs or (), self._num_logprobs, self._spell))

    def _choice_head(self, choice: int) -> bytes:
        head = self._heads.get(choice)
        if head is None:
            head = self._heads[choice] = self._head + b'{"index":%d,"delta":' % choice
        return head
