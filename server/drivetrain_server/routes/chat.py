"""`/v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from drivetrain.conversation import Reply
from drivetrain.frontend import Frontend
from drivetrain.sampling import SamplingParams
from drivetrain_server.answers.answer import Envelope, PromptRun
from drivetrain_server.answers.chat import ChatShape
from drivetrain_server.body import JsonObject
from drivetrain_server.conversation import prepare
from drivetrain_server.exchange import Exchange
from drivetrain_server.routes.generate import GenerateRoute, Plan
from drivetrain_server.service import Service
from drivetrain_server.wire.chat import ChatRequest
from drivetrain_server.wire.sampling import sampling_params
from drivetrain_server.wire.unservable import CHAT, refuse_unservable
from drivetrain_server.wire.validation import parse, refuse


async def converse(service: Service, frontend: Frontend, fields: ChatRequest) -> tuple[Reply, SamplingParams]:
    """The prompt of a conversation, how its answers are read, and how their tokens are chosen.

    Raises:
        HttpError, DrivetrainError: what is wrong with the request; names the field.
    """
    limits = (fields.max_completion_tokens, fields.max_tokens)
    if None not in limits and limits[0] != limits[1]:
        raise refuse("max_tokens", f"it says {limits[1]} and max_completion_tokens {limits[0]}; send one of them")
    asked = {"max_tokens": limits[0] or limits[1], "logprobs": fields.num_logprobs}
    demanded = fields.demanded()
    reply = await prepare(frontend, fields, None if demanded is None else demanded[1])
    params = sampling_params(fields, service.sampling_defaults(frontend), asked | {"grammar": reply.calls})
    if reply.form is not None:
        params = replace(params, grammar=reply.form)
    return reply, params


async def converse_as(service: Service, frontend: Frontend, body: JsonObject) -> tuple[Reply, SamplingParams]:
    """The same for a request of another API, put into the words of this one.

    Raises:
        HttpError, DrivetrainError: as `converse`.
    """
    refuse_unservable(body, CHAT)
    return await converse(service, frontend, parse(ChatRequest, body))


class ChatRoute(GenerateRoute[ChatRequest]):
    """Goes on with a conversation."""

    unservable = CHAT
    id_prefix = "chatcmpl-"
    names: ClassVar[Mapping[str, str]] = {"prompt": "messages"}

    def parse(self, body: JsonObject) -> ChatRequest:
        return parse(ChatRequest, body)

    async def plan(self, frontend: Frontend, fields: ChatRequest, envelope: Envelope, exchange: Exchange) -> Plan:
        reply, params = await converse(self.service, frontend, fields)
        shape = ChatShape(
            envelope,
            self.service.speller(frontend),
            reply.turns,
            num_logprobs=fields.num_logprobs,
            token_ids=bool(fields.return_token_ids),
            reasoning=fields.include_reasoning is not False,
        )
        return Plan(
            prompts=[PromptRun(token_ids=reply.prompt_ids, turns=reply.turns)],
            params=params,
            shape=shape,
            best=params.n,
            names={} if fields.max_completion_tokens is None else {"max_tokens": "max_completion_tokens"},
        )
