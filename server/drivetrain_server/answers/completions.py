"""Completions as events and as one body."""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from drivetrain.completion_text import TextDelta
from drivetrain_server.answers.answer import Answer, Envelope, PromptRun, usage_of
from drivetrain_server.answers.logprobs import TokenSpeller, completion_logprobs, prompt_logprobs

KIND = "text_completion"


class CompletionShape:
    """One answer of `/v1/completions`. Choices count on from prompt to prompt.

    Args:
        num_logprobs: alternatives a token, None for no log-probabilities.
        echo: begin each choice with its prompt.
        tell_prompt_logprobs: the client asked for `prompt_logprobs` by that name.
    """

    def __init__(
        self,
        envelope: Envelope,
        spell: TokenSpeller,
        *,
        num_logprobs: int | None,
        echo: bool,
        token_ids: bool,
        tell_prompt_logprobs: bool,
    ) -> None:
        self._envelope = envelope
        self._spell = spell
        self._num_logprobs = num_logprobs
        self._echo = echo
        self._token_ids = token_ids
        self._tell_prompt_logprobs = tell_prompt_logprobs
        self._head = envelope.event_head(KIND)
        self._heads: dict[int, bytes] = {}
        self._shifts: dict[int, int] = {}
        self._plain = num_logprobs is None and not token_ids

    def opening(self, choice: int, prompt: PromptRun, usage: bytes) -> bytes:
        self._shifts[choice] = len(prompt.text) if self._echo else 0
        extra = self._prompt_extras(prompt)
        if not self._echo and not extra:
            return b""
        logprobs = b"null"
        if self._echo and self._num_logprobs is not None:
            logprobs = orjson.dumps(self._prompt_part(prompt))
        return b'%b%b,"logprobs":%b,"finish_reason":null%b}]%b}\n\n' % (
            self._choice_head(choice),
            orjson.dumps(prompt.text if self._echo else ""),
            logprobs,
            b"".join(b"," + orjson.dumps(name) + b":" + orjson.dumps(value) for name, value in extra.items()),
            usage,
        )

    def chunk(self, choice: int, delta: TextDelta, usage: bytes) -> bytes:
        ends = delta.finish_reason is not None
        if not (delta.text or ends or (delta.token_ids and not self._plain)):
            return b""
        logprobs, extra = b"null", b""
        if self._num_logprobs is not None:
            shift = self._shifts[choice]
            starts = [start + shift for start in delta.token_starts or ()]
            entries = delta.logprobs or []
            logprobs = orjson.dumps(
                completion_logprobs(delta.token_ids, entries, starts, self._num_logprobs, self._spell)
            )
        if self._token_ids:
            extra = b',"token_ids":' + orjson.dumps(delta.token_ids)
        if ends:
            extra += b',"stop_reason":' + orjson.dumps(delta.stop_reason)
        return b'%b%b,"logprobs":%b,"finish_reason":%b%b}]%b}\n\n' % (
            self._choice_head(choice),
            orjson.dumps(delta.text),
            logprobs,
            orjson.dumps(delta.finish_reason),
            extra,
            usage,
        )

    def splice(self, choice: int, usage: bytes) -> tuple[bytes, bytes] | None:
        if not self._plain:
            return None
        return self._choice_head(choice), b',"logprobs":null,"finish_reason":null}]%b}\n\n' % usage

    def ending(self, prompts: Sequence[PromptRun], *, usage_event: bool) -> bytes:
        return self._envelope.ending(KIND, prompts, usage_event=usage_event)

    def whole(self, prompts: Sequence[PromptRun], answers: Sequence[Sequence[Answer]]) -> bytes:
        pairs = [(prompt, answer) for prompt, group in zip(prompts, answers, strict=True) for answer in group]
        body = self._envelope.fields(KIND)
        body["choices"] = [self._choice(index, prompt, answer) for index, (prompt, answer) in enumerate(pairs)]
        body["usage"] = usage_of(prompts)
        return orjson.dumps(body)

    def _choice(self, index: int, prompt: PromptRun, answer: Answer) -> dict[str, object]:
        shift = len(prompt.text) if self._echo else 0
        logprobs = None
        if self._num_logprobs is not None:
            starts = [start + shift for start in answer.starts]
            logprobs = completion_logprobs(answer.token_ids, answer.logprobs, starts, self._num_logprobs, self._spell)
            if self._echo:
                logprobs = _joined(self._prompt_part(prompt), logprobs)
        choice: dict[str, object] = {
            "index": index,
            "text": (prompt.text if self._echo else "") + answer.text,
            "logprobs": logprobs,
            "finish_reason": answer.finish_reason,
            "stop_reason": answer.stop_reason,
        }
        if self._token_ids:
            choice["token_ids"] = answer.token_ids
        return choice | self._prompt_extras(prompt)

    def _prompt_part(self, prompt: PromptRun) -> dict[str, object]:
        assert self._num_logprobs is not None and prompt.logprobs is not None, (
            "echoed log-probabilities were not asked for"
        )
        starts: list[int] = []
        length = 0
        for token_id in prompt.token_ids:
            starts.append(length)
            length += len(self._spell(token_id)[0])
        return completion_logprobs(prompt.token_ids, prompt.logprobs, starts, self._num_logprobs, self._spell)

    def _prompt_extras(self, prompt: PromptRun) -> dict[str, object]:
        extra: dict[str, object] = {}
        if self._token_ids:
            extra["prompt_token_ids"] = prompt.token_ids
        if self._tell_prompt_logprobs and prompt.logprobs is not None:
            extra["prompt_logprobs"] = prompt_logprobs(prompt.logprobs, self._spell)
        return extra

    def _choice_head(self, choice: int) -> bytes:
        head = self._heads.get(choice)
        if head is None:
            head = self._heads[choice] = self._head + b'{"index":%d,"text":' % choice
        return head


def _joined(first: dict[str, object], second: dict[str, object]) -> dict[str, object]:
    return {name: [*_list(first[name]), *_list(second[name])] for name in first}


def _list(value: object) -> list[object]:
    assert isinstance(value, list)
    return value  # pyright: ignore[reportUnknownVariableType]
