"""The way of every request that generates: read, check, plan, run, answer."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Generic, Protocol, TypeVar

from drivetrain.errors import RequestError
from drivetrain.frontend import Frontend
from drivetrain.grammar import Grammar
from drivetrain.messages import EngineInfo
from drivetrain.sampling import SamplingParams
from drivetrain_server.answers.answer import AnswerShape, Envelope, PromptRun
from drivetrain_server.body import JsonObject, read_json
from drivetrain_server.errors import HttpError, http_error
from drivetrain_server.exchange import EVENT_STREAM, Exchange, StreamFormat, error_event
from drivetrain_server.generation import BeforeEnd, Generation, nothing_more
from drivetrain_server.keys import Tenant
from drivetrain_server.service import Service, fingerprint, ignored_fields
from drivetrain_server.wire.structured import GrammarFields, about
from drivetrain_server.wire.unservable import Unservable, refuse_unservable
from drivetrain_server.wire.validation import refuse, renamed

MAX_CHOICES = 4096
MAX_TOTAL_TOKENS = 2**24


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a request comes down to.

    Attributes:
        best: answers to return a prompt, of the `params.n` that are generated.
        empty: no tokens were asked for.
        before_end: awaited once the answer is complete, before the client is told so.
        names: names of our fields to those that this request used instead, for errors.
    """

    prompts: Sequence[PromptRun]
    params: SamplingParams
    shape: AnswerShape
    best: int
    empty: bool = False
    before_end: BeforeEnd = nothing_more
    names: Mapping[str, str] = field(default_factory=dict[str, str])


class Asked(Protocol):
    """What every body that asks for tokens tells, whichever API it belongs to."""

    @property
    def unknown(self) -> list[str]:
        """Names of the fields that nobody knows."""
        ...

    @property
    def model(self) -> str:
        """The model that is meant."""
        ...

    @property
    def streams(self) -> bool:
        """Whether the answer comes as events."""
        ...

    @property
    def stream_usage(self) -> tuple[bool, bool]:
        """(a last event with usage, usage in every event)."""
        ...

    @property
    def request_id(self) -> str | None:
        """The client's own name for the request."""
        ...

    @property
    def priority(self) -> int | None:
        """Lower runs first."""
        ...

    @property
    def cache_salt(self) -> str | None:
        """Prefixes are shared only within one salt."""
        ...


Fields = TypeVar("Fields", bound=Asked)


class GenerateRoute(ABC, Generic[Fields]):
    """A raw ASGI endpoint: nothing but our own code stands between the engine's tokens and the connection."""

    unservable: ClassVar[dict[str, Unservable]]
    id_prefix: ClassVar[str]
    operation: ClassVar[str] = "chat"
    """What is done, in the words of OpenTelemetry."""
    stream_format: ClassVar[StreamFormat] = EVENT_STREAM
    names: ClassVar[Mapping[str, str]] = {}
    """Names of our fields to those of the API that this route speaks, as `renamed` takes them."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def __call__(self, exchange: Exchange) -> None:
        """Answer one request.

        Raises:
            HttpError, DrivetrainError: what is wrong; the caller answers with it.
            ClientGone, SlowReader: nobody reads the answer.
        """
        service = self.service
        frontend = service.lifecycle.frontend()
        body = await read_json(exchange, service.config.max_body_bytes)
        refuse_unservable(body, self.unservable)
        fields = self.parse(body)
        info = frontend.info
        service.check_model(self.model_name(fields, info), info)
        exchange.extra_headers += ignored_fields(fields.unknown, dict(self.unservable))
        if (ready := self.ready_answer(fields)) is not None:
            await exchange.answer(ready)
            return
        try:
            await self._answer(exchange, frontend, fields)
        except RequestError as error:
            raise renamed(http_error(error), self.named(fields)) from error
        except HttpError as error:
            raise renamed(error, self.named(fields)) from error

    async def _answer(self, exchange: Exchange, frontend: Frontend, fields: Fields) -> None:
        """Answer a request whose fields are in order by themselves; what is wrong from here on is named by us."""
        service, info = self.service, frontend.info
        usage_event, usage_always = fields.stream_usage
        envelope = Envelope(
            id=f"{self.id_prefix}{fields.request_id or exchange.request_id}",
            created=int(time.time()),
            model=info.model,
            fingerprint=fingerprint(info),
        )
        exchange.stream_format, exchange.error_event = self.stream_format, self.error_event
        async with service.serving(exchange, streams=fields.streams):
            plan = await self.plan(frontend, fields, envelope, exchange)
            if plan.params.grammar is not None:
                await self._check(frontend, plan.params.grammar, exchange.tenant, fields)
            exchange.runs = plan.prompts
            try:
                generation = self._generation(exchange, frontend, fields, plan, envelope.id)
            except RequestError as error:
                raise renamed(http_error(error), plan.names) from error
            if fields.streams:
                await generation.stream(exchange, plan.shape, usage_event=usage_event, usage_always=usage_always)
            else:
                await generation.whole(exchange, plan.shape, best=plan.best)

    @abstractmethod
    def parse(self, body: JsonObject) -> Fields:
        """The body as wire fields."""

    @abstractmethod
    async def plan(self, frontend: Frontend, fields: Fields, envelope: Envelope, exchange: Exchange) -> Plan:
        """Prompts, parameters and the shape of the answer."""

    def model_name(self, fields: Fields, info: EngineInfo) -> str:
        """The model that is meant, as the engine calls it."""
        return fields.model

    def named(self, fields: Fields) -> Mapping[str, str]:
        """Names of our fields to those that this request used instead, for errors."""
        return self.names

    def ready_answer(self, fields: Fields) -> bytes | None:
        """The whole answer to a request that asks for no tokens; None for all others."""
        return None

    def error_event(self, error: HttpError) -> bytes:
        """How a stream that has begun tells of an error."""
        return error_event(error)

    def grammar_field(self, fields: Fields) -> str:
        """The field that demanded the form of the answer, where it was not the tools, for messages."""
        demanded = fields.demanded() if isinstance(fields, GrammarFields) else None
        return "response_format" if demanded is None else demanded[0]

    async def _check(self, frontend: Frontend, grammar: Grammar, tenant: Tenant, fields: Fields) -> None:
        try:
            await frontend.check_grammar(grammar, tenant.name)
        except RequestError as error:
            raise about("tools" if grammar.schemas else self.grammar_field(fields), error) from None

    def _generation(
        self, exchange: Exchange, frontend: Frontend, fields: Asked, plan: Plan, answer_id: str
    ) -> Generation:
        choices = len(plan.prompts) * plan.params.n
        if choices > MAX_CHOICES:
            raise refuse("n", f"{choices} answers are more than {MAX_CHOICES} a request; send fewer prompts or lower n")
        if choices * (plan.params.max_tokens or 1) > MAX_TOTAL_TOKENS:
            raise refuse(
                "max_tokens",
                f"{choices} answers of {plan.params.max_tokens} tokens are more than {MAX_TOTAL_TOKENS} a request",
            )
        salt = exchange.tenant.salt
        if fields.cache_salt:
            salt = f"{salt}/{fields.cache_salt}"
        for prompt in plan.prompts:
            prompt.awaits_logprobs = plan.params.prompt_logprobs is not None
        serial = next(self.service.serial)
        requests = [
            frontend.request(
                f"{answer_id}-{serial}-{at}",
                prompt.token_ids,
                plan.params,
                priority=fields.priority or 0,
                salt=salt,
                deadline_s=self.service.config.request_timeout_s,
            )
            for at, prompt in enumerate(plan.prompts)
        ]
        return Generation(
            frontend,
            requests,
            plan.prompts,
            telemetry=self.service.telemetry,
            pieces=self.service.pieces(frontend, skip_special=plan.params.skip_special_tokens),
            arrived=exchange.arrived,
            operation=self.operation,
            empty=plan.empty,
            before_end=plan.before_end,
        )
