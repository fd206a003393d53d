"""Offline use: a model in this process, prompts in, texts out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

from drivetrain.config import EngineConfig
from drivetrain.errors import ConfigError, Overloaded, RequestError
from drivetrain.messages import EngineInfo, EngineStats, GenerateRequest, Update
from drivetrain.outputs import Completion, EmbeddingOutput, RequestOutput
from drivetrain.phases import OnPhase
from drivetrain.sampling import SamplingParams

if TYPE_CHECKING:
    from drivetrain.answer_text import AnswerText
    from drivetrain.conversation import ToolUse
    from drivetrain.dialects.turn import Turns
    from drivetrain.tokenizer import Tokenizer

_log = logging.getLogger(__name__)

Prompt = str | Sequence[int]
Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """A prompt on its way, and how its answers are read, if not as they are."""

    output: RequestOutput
    params: SamplingParams
    turns: Turns | None = None


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
        return self._job(reply.prompt_ids, params, reply.turns)

    def _job(self, prompt: Prompt, params: SamplingParams, turns: Turns | None = None) -> _Job:
        prompt_ids = self._frontend.encode(prompt)
        output = RequestOutput(
            prompt=prompt if isinstance(prompt, str) else None,
            prompt_ids=prompt_ids,
            completions=[Completion(index=index) for index in range(params.n)],
        )
        return _Job(output=output, params=params, turns=turns)

    def _run(self, jobs: list[_Job], progress: bool) -> list[RequestOutput]:
        frontend, abort = self._frontend, self._engine.abort
        answers: dict[str, tuple[RequestOutput, AnswerText]] = {}
        requests: list[GenerateRequest] = []
        for job in jobs:
            request = frontend.request(self._new_id(), job.output.prompt_ids, job.params)
            requests.append(request)
            answers[request.request_id] = (job.output, frontend.answer_text(request, abort, turns=job.turns))

        def take(update: Update) -> bool:
            output, answer = answers[update.request_id]
            for delta in answer.push([update]):
                output.add(delta)
            if answer.num_live:
                return False
            abort(update.request_id)  # where a stop string ended it, the engine goes on
            return True

        self._drive(requests, take, progress)
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
