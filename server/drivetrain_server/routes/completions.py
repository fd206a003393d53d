"""`/v1/completions`."""

from __future__ import annotations

from drivetrain.frontend import Frontend
from drivetrain_server.answers.answer import Envelope, PromptRun
from drivetrain_server.answers.completions import CompletionShape
from drivetrain_server.body import JsonObject
from drivetrain_server.exchange import Exchange
from drivetrain_server.routes.generate import GenerateRoute, Plan
from drivetrain_server.wire.completions import DEFAULT_MAX_TOKENS, CompletionRequest
from drivetrain_server.wire.sampling import sampling_params
from drivetrain_server.wire.unservable import COMPLETIONS
from drivetrain_server.wire.validation import parse


class CompletionsRoute(GenerateRoute[CompletionRequest]):
    """Goes on with text or tokens."""

    unservable = COMPLETIONS
    id_prefix = "cmpl-"
    operation = "text_completion"

    def parse(self, body: JsonObject) -> CompletionRequest:
        return parse(CompletionRequest, body)

    async def plan(self, frontend: Frontend, fields: CompletionRequest, envelope: Envelope, exchange: Exchange) -> Plan:
        best, generated = fields.choices
        echo = bool(fields.echo)
        prompt_logprobs = fields.prompt_logprobs
        if echo and fields.logprobs is not None:
            prompt_logprobs = max(fields.logprobs, prompt_logprobs or 0)
        asked = {
            "n": generated,
            "max_tokens": None if fields.max_tokens is None else max(fields.max_tokens, 1),
            "logprobs": 0 if fields.logprobs is None and generated > best else fields.logprobs,
            "prompt_logprobs": prompt_logprobs,
        }
        defaults = {"max_tokens": DEFAULT_MAX_TOKENS} | self.service.sampling_defaults(frontend)
        params = sampling_params(fields, defaults, asked)
        shape = CompletionShape(
            envelope,
            self.service.speller(frontend),
            num_logprobs=fields.logprobs,
            echo=echo,
            token_ids=bool(fields.return_token_ids),
            tell_prompt_logprobs=fields.prompt_logprobs is not None,
        )
        prompts = [await self._prompt(frontend, fields, prompt, echo) for prompt in fields.prompt]
        return Plan(prompts=prompts, params=params, shape=shape, best=best, empty=fields.max_tokens == 0)

    async def _prompt(
        self, frontend: Frontend, fields: CompletionRequest, prompt: str | list[int], echo: bool
    ) -> PromptRun:
        special = fields.add_special_tokens is not False
        token_ids = await frontend.encode_aside(prompt, add_special_tokens=special)
        if not echo:
            return PromptRun(token_ids=token_ids)
        text = prompt if isinstance(prompt, str) else frontend.tokenizer.decode(prompt, skip_special_tokens=False)
        return PromptRun(token_ids=token_ids, text=text)
