"""Text in, text out: what stands between a caller with words and an engine that knows token ids."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from functools import cached_property
from pathlib import Path
from typing import Protocol

from drivetrain.answer_text import Abort, AnswerText
from drivetrain.chat_template import ChatTemplate
from drivetrain.client import EngineClient
from drivetrain.completion_text import CompletionText, TextDelta
from drivetrain.config import EngineConfig
from drivetrain.config_files import load_generation_config
from drivetrain.conversation import Chat
from drivetrain.dialects.choose import Dialect, choose_dialect
from drivetrain.dialects.turn import Turns
from drivetrain.errors import ConfigError, EngineError, RequestError, RequestFailed, TemplateError
from drivetrain.generation_defaults import GenerationDefaults
from drivetrain.grammar import Grammar
from drivetrain.grammar.checker import GrammarChecker
from drivetrain.messages import EngineInfo, GenerateRequest
from drivetrain.model_limits import check_answer_fits, check_input_fits, check_token_ids
from drivetrain.model_store import resolve_model
from drivetrain.pooling import EMBEDDING_PARAMS, check_dimensions, check_embeds, embedding_of
from drivetrain.sampling import SamplingParams
from drivetrain.tokenizer import Tokenizer, load_tokenizer
from drivetrain_plugins.contract.batch import Float32Array

INLINE_CHARS = 16_384
"""Prompts longer than this are tokenized in a thread, so that other streams go on meanwhile."""


class Informed(Protocol):
    """Any engine, in this process or behind a client."""

    @property
    def info(self) -> EngineInfo | None:
        """None until it is ready."""
        ...


class Frontend:
    """The text layer that the server and offline use share.

    Args:
        engine: its limits bound the prompts; `generate` needs it to be an `EngineClient`.
        tokenizer: the model's tokenizer.
        chat_template: None where the model has none; chat requests are then refused.
        defaults: what the model's authors recommend.
        grammars: checks grammars before they come to the engine; None leaves that to the engine.
        tool_parser: name of the family in whose style the model calls tools; as in the configuration.
        reasoning_parser: the same for its reasoning.
    """

    def __init__(
        self,
        engine: Informed,
        tokenizer: Tokenizer,
        *,
        chat_template: ChatTemplate | None = None,
        defaults: GenerationDefaults | None = None,
        grammars: GrammarChecker | None = None,
        tool_parser: str = "auto",
        reasoning_parser: str = "auto",
    ) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        self._recommended = defaults or GenerationDefaults()
        self._grammars = grammars
        self._parsers = (tool_parser, reasoning_parser)

    @property
    def info(self) -> EngineInfo:
        """What the engine tells about itself.

        Raises:
            EngineError: it is not ready.
        """
        info = self.engine.info
        if info is None:
            raise EngineError("the engine is not ready; wait for its start to end")
        return info

    @cached_property
    def defaults(self) -> GenerationDefaults:
        """What the model's authors recommend, as far as the engine serves it.

        Raises:
            EngineError: it is not ready.
        """
        return self._recommended.within(self.info)

    @cached_property
    def special_tokens(self) -> Mapping[str, int]:
        """Special tokens of the tokenizer by their text."""
        tokenizer = self.tokenizer
        return {text: id for id, text in tokenizer.added_tokens.items() if id in tokenizer.special_ids}

    @cached_property
    def dialect(self) -> Dialect:
        """How the model spells reasoning and calls."""
        tokenizer, template = self.tokenizer, self.chat_template
        tool_parser, reasoning_parser = self._parsers
        return choose_dialect(
            () if template is None else template.sources.values(),
            self.special_tokens,
            {text: id for id, text in tokenizer.added_tokens.items()},
            tool_parser=tool_parser,
            reasoning_parser=reasoning_parser,
        )

    @property
    def client(self) -> EngineClient:
        """The engine, to stream answers from."""
        assert isinstance(self.engine, EngineClient), "an engine in this process is stepped, not streamed from"
        return self.engine

    def encode(
        self, prompt: str | Sequence[int], *, add_special_tokens: bool = True, allow_empty: bool = False
    ) -> list[int]:
        """Token ids of a prompt.

        Raises:
            RequestError: it is empty, or an id is not in the vocabulary.
        """
        text = isinstance(prompt, str)
        ids = self.tokenizer.encode(prompt, add_special_tokens=add_special_tokens) if text else list(prompt)
        # A tokenizer may know tokens that the model's embedding has no row for.
        check_token_ids("prompt", ids, self.info.vocab_size)
        if not ids and not allow_empty:
            raise RequestError("prompt: it has no tokens; send at least one", param="prompt")
        return ids

    def render(self, chat: Chat) -> str:
        """The prompt text of a chat.

        Raises:
            TemplateError: the template refused the messages, or the model has none.
        """
        if self.chat_template is None:
            raise TemplateError(
                "messages: this model has no chat template; use the completions route with a prompt", param="messages"
            )
        return self.chat_template.render(
            chat.messages,
            tools=chat.tools,
            add_generation_prompt=chat.add_generation_prompt,
            continue_final_message=chat.continue_final_message,
            kwargs=chat.variables,
        )

    def encode_chat(self, chat: Chat, *, add_special_tokens: bool = False) -> list[int]:
        """Token ids of a chat. Templates write the special tokens themselves, so none are added.

        Raises:
            TemplateError: as `render`.
        """
        return self.encode(self.render(chat), add_special_tokens=add_special_tokens)

    async def encode_aside(
        self, prompt: str | Sequence[int] | Chat, *, add_special_tokens: bool, allow_empty: bool = False
    ) -> list[int]:
        """Token ids of a prompt or chat, made in a thread where that takes long enough to be felt by others."""

        def work() -> list[int]:
            if isinstance(prompt, Chat):
                return self.encode_chat(prompt, add_special_tokens=add_special_tokens)
            return self.encode(prompt, add_special_tokens=add_special_tokens, allow_empty=allow_empty)

        size = prompt.num_chars if isinstance(prompt, Chat) else len(prompt) if isinstance(prompt, str) else 0
        return work() if size <= INLINE_CHARS else await asyncio.to_thread(work)

    def request(
        self,
        request_id: str,
        prompt_ids: list[int],
        params: SamplingParams,
        *,
        priority: int = 0,
        salt: str = "",
        deadline_s: float | None = None,
    ) -> GenerateRequest:
        """What goes to the engine, checked against its limits.

        Raises:
            PromptTooLong: prompt and answer do not fit into the context.
            RequestError: a token id of `stop_token_ids` or `logit_bias` is not in the vocabulary.
        """
        info = self.info
        check_answer_fits(info, len(prompt_ids), params.max_tokens)
        check_token_ids("stop_token_ids", params.stop_token_ids, info.vocab_size)
        check_token_ids("logit_bias", params.logit_bias, info.vocab_size)
        return GenerateRequest(
            request_id=request_id,
            prompt_ids=prompt_ids,
            params=params,
            bad_word_ids=self._bad_word_ids(params.bad_words),
            priority=priority,
            salt=salt,
            deadline_s=deadline_s,
        )

    def embedding_request(
        self,
        request_id: str,
        prompt_ids: list[int],
        *,
        dimensions: int | None = None,
        priority: int = 0,
        salt: str = "",
        deadline_s: float | None = None,
    ) -> GenerateRequest:
        """What goes to the engine for the embedding of a prompt, checked against its limits.

        Raises:
            PromptTooLong: the prompt does not fit into the context.
            RequestError: no embeddings are served, or none of `dimensions` numbers.
        """
        info = self.info
        check_embeds(info)
        check_dimensions(dimensions, info.embedding_size, info.embedding_dimensions)
        check_input_fits(info, len(prompt_ids))
        return GenerateRequest(
            request_id=request_id,
            prompt_ids=prompt_ids,
            params=EMBEDDING_PARAMS,
            priority=priority,
            salt=salt,
            deadline_s=deadline_s,
            embeds=True,
        )

    async def embed(self, request: GenerateRequest) -> tuple[Float32Array, int]:
        """(the pooled vector, prompt tokens taken from the prefix cache) of a request of `embedding_request`.

        Raises:
            RequestFailed: the engine failed or aborted the request.
            Overloaded, RequestError, EngineDead: as `EngineClient.generate`.
        """
        async with aclosing(self.client.generate(request)) as updates:
            async for batch in updates:
                for update in batch:
                    if (vector := embedding_of(update)) is not None:
                        return vector, update.num_cached_tokens
        raise RequestFailed("the engine ended the stream of this request before its embedding came")

    def completion_text(
        self,
        index: int,
        params: SamplingParams,
        prompt_ids: Sequence[int] = (),
        *,
        turns: Turns | None = None,
    ) -> CompletionText:
        """The text state of one completion of a prompt, as `turns` needs it; None needs nothing."""
        shown, watch = (frozenset[int](), None) if turns is None else (turns.shown, turns.watch())
        return CompletionText(index, params, self.tokenizer, prompt_ids, shown=shown, watch=watch)

    def answer_text(self, request: GenerateRequest, abort: Abort, *, turns: Turns | None = None) -> AnswerText:
        """The text state of a whole answer.

        Args:
            abort: ends completions whose text has ended.
            turns: how the text will be read, if not as it is.
        """
        params, prompt_ids = request.params, request.prompt_ids
        texts = [self.completion_text(index, params, prompt_ids, turns=turns) for index in range(params.n)]
        return AnswerText(request.request_id, texts, abort)

    async def check_grammar(self, grammar: Grammar, owner: str = "") -> None:
        """Refuse a grammar that cannot be compiled within limits, before it comes to the engine.

        Args:
            owner: whose it is; the places of those that wait are shared among owners.

        Raises:
            RequestError: says why; `param` is `grammar`.
            ShareUsed, Overloaded, EngineError: as `GrammarChecker.check`.
        """
        if self._grammars is not None:
            await self._grammars.check(grammar, owner)

    def close(self) -> None:
        """End what was started to check requests."""
        if self._grammars is not None:
            self._grammars.close()

    async def generate(
        self, request: GenerateRequest, *, turns: Turns | None = None
    ) -> AsyncGenerator[list[TextDelta], None]:
        """Stream the answer of a request as text: one delta a completion for all that is queued.

        Ends when every completion has finished. Closing it early aborts the request.

        Args:
            turns: how the text will be read, if not as it is.

        Raises:
            RequestFailed: the engine failed or aborted a completion.
            Overloaded, RequestError, EngineDead: as `EngineClient.generate`.
        """
        engine = self.client
        answer = self.answer_text(request, engine.abort, turns=turns)
        async with aclosing(engine.generate(request)) as updates:
            async for batch in updates:
                if deltas := answer.push(batch):
                    yield deltas
                if not answer.num_live:
                    return
        raise RequestFailed("the engine ended the stream of this request before its answer was complete")

    def _bad_word_ids(self, words: Sequence[str]) -> list[list[int]]:
        found: list[list[int]] = []
        vocab_size = self.info.vocab_size
        for word in words:
            for text in (word, f" {word.lstrip()}"):
                ids = self.tokenizer.encode(text, add_special_tokens=False)
                # A token that the model does not have is never generated.
                if ids and max(ids) < vocab_size and ids not in found:
                    found.append(ids)
        return found


def load_frontend(config: EngineConfig, engine: Informed) -> Frontend:
    """The text layer of the configured model, from its own files.

    Raises:
        ModelError: no such model, or one without a tokenizer that can be rebuilt.
        ConfigError: the configured `chat_template` cannot be read.
    """
    path = resolve_model(config.model)
    tokenizer_path = path if config.tokenizer is None else Path(config.tokenizer).expanduser()
    tokenizer = load_tokenizer(tokenizer_path)
    generation = load_generation_config(path)
    return Frontend(
        engine,
        tokenizer,
        chat_template=_chat_template(tokenizer, config.chat_template),
        grammars=GrammarChecker(tokenizer_path, lambda: _vocab_size(engine)),
        defaults=GenerationDefaults(
            temperature=generation.temperature,
            top_p=generation.top_p,
            top_k=generation.top_k,
            min_p=generation.min_p,
            repetition_penalty=generation.repetition_penalty,
        ),
        tool_parser=config.tool_parser,
        reasoning_parser=config.reasoning_parser,
    )


def _vocab_size(engine: Informed) -> int:
    if engine.info is None:
        raise EngineError("the engine is not ready; wait for its start to end")
    return engine.info.vocab_size


def _chat_template(tokenizer: Tokenizer, override: str | None) -> ChatTemplate | None:
    if override is None:
        return ChatTemplate.from_tokenizer(tokenizer) if tokenizer.chat_templates else None
    try:
        source = Path(override).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"chat_template: cannot read {override}: {error}; give a Jinja file") from error
    return ChatTemplate.from_tokenizer(tokenizer, source)
