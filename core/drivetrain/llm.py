"""Offline use: a model in this process, prompts in, texts out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

from drivetrain.config import EngineConfig
from drivetrain.errors import ConfigError, Overloaded, RequestError, RequestFailed
from drivetrain.messages import EngineInfo, EngineStats, FinishReasonName, GenerateRequest, TokenLogprob, Update
from drivetrain.phases import OnPhase
from drivetrain.sampling import SamplingParams

if TYPE_CHECKING:
    from drivetrain.completion_text import CompletionText, TextDelta
    from drivetrain.conversation import ToolUse
    from drivetrain.dialects.turn import Message as Answer
    from drivetrain.dialects.turn import Turns
    from drivetrain.tokenizer import Tokenizer
    from drivetrain_plugins.contract.batch import Float32Array

_log = logging.getLogger(__name__)

Prompt = str | Sequence[int]
Message = Mapping[str, Any]


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
    message: Answer | None = None

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

    @property
    def text(self) -> str:
        """The first answer's text."""
        return self.completions[0].text

    @property
    def message(self) -> Answer:
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


@dataclass(slots=True)
class _Job:
    """A prompt on its way."""

    output: RequestOutput
    texts: list[CompletionText]
    params: SamplingParams
    turns: Turns | None = None

    @property
    def finished(self) -> bool:
        return all(text.finish_reason is not None for text in self.texts)


class LLM:
    """A model, loaded in this process.

    Args:
        model: folder, GGUF file, or name of a model in the local store.
        on_phase: told about each start-up phase; None shows nothing.
        config: any further field of `EngineConfig` by name, such as `dtype`, `max_model_len`, `backend`.

    Raises:
        DrivetrainError: a setting, the model or the device stands in the way.
    """

    def __init__(self, model: str, *, on_phase: OnPhase | None = None, **config: Any) -> None:
        from drivetrain.assembly import assemble
        from drivetrain.frontend import load_frontend

        try:
            self.config = EngineConfig(model=model, **config)
        except TypeError as error:
            raise ConfigError(f"LLM: {error}; the fields of EngineConfig are accepted") from error
        self._engine = assemble(self.config, on_phase)
        for warning in self._engine.info.warnings:
            _log.warning("%s", warning)
        self._frontend = load_frontend(self.config, self._engine)
        self._num_requests = 0

    @property
    def info(self) -> EngineInfo:
        """What the engine tells about itself."""
        return self._engine.info

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self._frontend.tokenizer

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = True,
    ) -> list[RequestOutput]:
        """Complete prompts, as many at once as fit.

        Args:
            prompts: one prompt or several, each a text or token ids.
            params: for all prompts, or one each; None takes the model's own recommendations.
            progress: show a progress bar if standard error is a terminal.

        Returns:
            One output a prompt, in order.

        Raises:
            RequestError: a prompt or its parameters are wrong; nothing was generated.
            RequestFailed: the engine failed a request.
        """
        many = cast("list[Prompt]", [prompts] if _is_one(prompts) else list(prompts))
        chosen = _spread(self._frontend.defaults.params() if params is None else params, len(many))
        return self._run([self._job(prompt, each) for prompt, each in zip(many, chosen, strict=True)], progress)

    def chat(
        self,
        conversations: Sequence[Message] | Sequence[Sequence[Message]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        tool_choice: str = "auto",
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_variables: Mapping[str, Any] | None = None,
        progress: bool = True,
    ) -> list[RequestOutput]:
        """Answer conversations, each a list of messages with `role` and `content`.

        Args:
            tools: functions that the model may call, as OpenAI's tool objects.
            tool_choice: `auto`, `none`, `required`, or the name of the function that has to be called.

        Returns:
            One output a conversation, in order; `message` of each answer tells content, reasoning and calls apart.

        Raises:
            TemplateError: the model has no chat template, or it refuses the messages.
            RequestError, RequestFailed: as `generate`.
        """
        from drivetrain.conversation import offered

        use = offered(tools, tool_choice)
        many: list[Any] = (
            [conversations] if conversations and isinstance(conversations[0], Mapping) else list(conversations)
        )
        chosen = _spread(self._frontend.defaults.params() if params is None else params, len(many))
        how = {
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
            "variables": template_variables or {},
        }
        jobs = [self._chat_job(messages, use, each, how) for messages, each in zip(many, chosen, strict=True)]
        outputs = self._run(jobs, progress)
        for job in jobs:
            for completion in job.output.completions:
                completion.message = cast("Turns", job.turns).message(completion)
        return outputs

    def embed(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        dimensions: int | None = None,
        normalize: bool = True,
        progress: bool = True,
    ) -> list[EmbeddingOutput]:
        """Embeddings of prompts, as many at once as fit.

        Args:
            prompts: one prompt or several, each a text or token ids.
            dimensions: cut each vector to so many numbers, where the model was made for it.
            normalize: bring each vector to length 1.

        Returns:
            One output a prompt, in order.

        Raises:
            RequestError: a prompt is wrong, or the model is served without embeddings (see `EngineConfig.pooling`).
            RequestFailed: the engine failed a request.
        """
        from drivetrain.pooling import embedding_of, shaped

        many = cast("list[Prompt]", [prompts] if _is_one(prompts) else list(prompts))
        requests = [
            self._frontend.embedding_request(self._new_id(), self._frontend.encode(prompt), dimensions=dimensions)
            for prompt in many
        ]
        outputs: dict[str, EmbeddingOutput] = {}

        def take(update: Update) -> bool:
            vector = embedding_of(update)
            if vector is None:
                return False
            outputs[update.request_id] = EmbeddingOutput(
                prompt_ids=prompt_ids[update.request_id],
                vector=shaped(vector, dimensions, normalize=normalize),
                num_cached_tokens=update.num_cached_tokens,
            )
            return True

        prompt_ids = {request.request_id: request.prompt_ids for request in requests}
        self._drive(requests, take, progress)
        return [outputs[request.request_id] for request in requests]

    def stats(self) -> EngineStats:
        """Gauges and counters of this moment."""
        return self._engine.stats()

    def reset_prefix_cache(self) -> None:
        """Forget every cached page."""
        self._engine.reset_prefix_cache()

    def sleep(self) -> None:
        """Forget every prefix and give the memory of the KV cache back until `wake`; weights stay.

        Raises:
            Unsupported: the device's cache has a fixed size.
        """
        self._engine.sleep()

    def wake(self) -> None:
        """Take the memory of the KV cache again.

        Raises:
            OutOfMemory: somebody else has taken it.
        """
        self._engine.wake()

    def close(self) -> None:
        """Free the device."""
        self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _chat_job(
        self, messages: Sequence[Message], use: ToolUse, params: SamplingParams, how: Mapping[str, Any]
    ) -> _Job:
        from drivetrain.conversation import Chat, reply_to, worded

        frontend, form = self._frontend, params.grammar
        chat = worded(frontend, Chat(messages=messages, tools=use.offers, **how), use)
        skip = params.skip_special_tokens
        reply = reply_to(frontend, frontend.encode_chat(chat), chat, use, form=form, skip_special_tokens=skip)
        if form is not None and reply.calls is not None:
            raise RequestError("grammar: the tools demand a form of the answer already; leave one out", param="grammar")
        params = replace(params, grammar=reply.calls or reply.form)
        job = self._job(reply.prompt_ids, params, reply.turns)
        job.turns = reply.turns
        return job

    def _job(self, prompt: Prompt, params: SamplingParams, turns: Turns | None = None) -> _Job:
        prompt_ids = self._frontend.encode(prompt)
        output = RequestOutput(
            prompt=prompt if isinstance(prompt, str) else None,
            prompt_ids=prompt_ids,
            completions=[Completion(index=index) for index in range(params.n)],
        )
        texts = [self._frontend.completion_text(index, params, prompt_ids, turns=turns) for index in range(params.n)]
        return _Job(output, texts, params)

    def _run(self, jobs: list[_Job], progress: bool) -> list[RequestOutput]:
        by_id = {self._new_id(): job for job in jobs}
        requests = [
            self._frontend.request(request_id, job.output.prompt_ids, job.params) for request_id, job in by_id.items()
        ]
        self._drive(requests, lambda update: self._take(update.request_id, by_id[update.request_id], update), progress)
        return [job.output for job in jobs]

    def _drive(self, requests: Sequence[GenerateRequest], take: Callable[[Update], bool], progress: bool) -> None:
        """Run requests to their ends, as many at once as the engine takes.

        Args:
            take: told each update of a request that runs; True when that request is done.
        """
        from drivetrain.progress import progress_bar

        waiting = list(reversed(requests))
        running: dict[str, int] = {}
        try:
            with progress_bar(len(requests), enabled=progress) as advance:
                while waiting or running:
                    self._submit(waiting, running)
                    for update in self._engine.step():
                        if update.request_id not in running:
                            continue
                        running[update.request_id] += len(update.token_ids)
                        if take(update):
                            advance(running.pop(update.request_id))
        finally:
            for request_id in running:
                self._engine.abort(request_id)
            while self._engine.has_work:
                self._engine.step()

    def _submit(self, waiting: list[GenerateRequest], running: dict[str, int]) -> None:
        while waiting:
            try:
                self._engine.submit(waiting[-1])
            except Overloaded:
                if not running:
                    raise
                return
            running[waiting.pop().request_id] = 0

    def _take(self, request_id: str, job: _Job, update: Update) -> bool:
        """Add an update to its job; True when the job is done."""
        text = job.texts[update.index]
        if text.finish_reason is not None:
            return False
        delta = text.push(update)
        if delta.finish_reason in ("error", "abort"):
            raise RequestFailed(update.error or "the engine aborted this request before it finished")
        output = job.output
        output.completions[update.index].add(delta)
        output.num_cached_tokens = max(output.num_cached_tokens, delta.num_cached_tokens)
        if delta.prompt_logprobs is not None:
            output.prompt_logprobs = delta.prompt_logprobs
        if delta.finish_reason is not None and update.finish_reason is None:
            self._engine.abort(request_id, update.index)
        return job.finished

    def _new_id(self) -> str:
        self._num_requests += 1
        return f"offline-{self._num_requests}"


def _is_one(prompts: Prompt | Sequence[Prompt]) -> bool:
    return isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], int))


def _spread(params: SamplingParams | Sequence[SamplingParams], count: int) -> Iterable[SamplingParams]:
    if isinstance(params, SamplingParams):
        return [params] * count
    if len(params) != count:
        raise RequestError(f"params: {len(params)} sampling parameters for {count} prompts; send one or as many")
    return params
