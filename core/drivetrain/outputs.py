"""What `LLM` gives back: prompts with their answers or embeddings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from drivetrain.errors import RequestError
from drivetrain.messages import FinishReasonName, TokenLogprob

if TYPE_CHECKING:
    from drivetrain.completion_text import TextDelta
    from drivetrain.dialects.turn import Message
    from drivetrain_plugins.contract.batch import Float32Array


@dataclass(slots=True, kw_only=True)
class Completion:
    """One answer to a prompt.

    Attributes:
        text: all that was generated, in a chat with the model's markers of reasoning and calls.
        stop_reason: the stop string or stop token id that ended it; None for an end token of the model.
        logprobs: one entry a token, where asked for.
        message: in a chat, the text told apart: `content`, `reasoning` and `tool_calls`.
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list[int])
    logprobs: list[TokenLogprob] | None = None
    finish_reason: FinishReasonName | None = None
    stop_reason: int | str | None = None
    message: Message | None = None

    def add(self, delta: TextDelta) -> None:
        """Take what became known since the last delta in."""
        self.text += delta.text
        self.token_ids += delta.token_ids
        if delta.logprobs is not None:
            self.logprobs = (self.logprobs or []) + delta.logprobs
        self.finish_reason, self.stop_reason = delta.finish_reason, delta.stop_reason


@dataclass(slots=True, kw_only=True)
class RequestOutput:
    """A prompt and its answers.

    Attributes:
        prompt: the text, or None if token ids came.
        prompt_logprobs: one entry a prompt token (None for the first), where asked for.
        num_cached_tokens: prompt tokens taken from the prefix cache.
    """

    prompt: str | None
    prompt_ids: list[int]
    completions: list[Completion]
    prompt_logprobs: list[TokenLogprob | None] | None = None
    num_cached_tokens: int = 0

    def add(self, delta: TextDelta) -> None:
        """Take what became known about one of its completions in."""
        self.completions[delta.index].add(delta)
        self.num_cached_tokens = max(self.num_cached_tokens, delta.num_cached_tokens)
        if delta.prompt_logprobs is not None:
            self.prompt_logprobs = delta.prompt_logprobs

    @property
    def text(self) -> str:
        """The first answer's text."""
        return self.completions[0].text

    @property
    def message(self) -> Message:
        """The first answer's content, reasoning and calls, in a chat.

        Raises:
            RequestError: it is an answer to a prompt, which has its `text` alone.
        """
        message = self.completions[0].message
        if message is None:
            raise RequestError("message: only answers of a chat are messages; this is one to a prompt, read its text")
        return message


@dataclass(slots=True, kw_only=True)
class EmbeddingOutput:
    """A prompt and its embedding.

    Attributes:
        vector: float32 (D,).
        num_cached_tokens: prompt tokens taken from the prefix cache.
    """

    prompt_ids: list[int]
    vector: Float32Array
    num_cached_tokens: int = 0
