"""`/v1/chat/completions`."""

from __future__ import annotations

from drivetrain.frontend import Frontend
from drivetrain_server.answers.answer import Envelope, PromptRun
from drivetrain_server.answers.chat import ChatShape
from drivetrain_server.body import JsonObject
from drivetrain_server.conversation import prepare
from drivetrain_server.exchange import Exchange
from drivetrain_server.routes.generate import GenerateRoute, Plan
from drivetrain_server.wire.chat import ChatRequest
from drivetrain_server.wire.sampling import sampling_params
from drivetrain_server.wire.unservable import CHAT
from drivetrain_server.wire.validation import parse, refuse


class ChatRoute(GenerateRoute[ChatRequest]):
    """Goes on with a conversation."""

    unservable = CHAT
    id_prefix = "chatcmpl-"

    def parse(self, body: JsonObject) -> ChatRequest:
        return parse(ChatRequest, body)

    async def plan(self, frontend: Frontend, fields: ChatRequest, envelope: Envelope, exchange: Exchange) -> Plan:
        limits = (fields.max_completion_tokens, fields.max_tokens)
        if None not in limits and limits[0] != limits[1]:
            raise refuse("max_tokens", f"it says {limits[1]} and max_completion_tokens {limits[0]}; send one of them")
        asked = {"max_tokens": limits[0] or limits[1], "logprobs": fields.num_logprobs}
        conversation = await prepare(frontend, fields)
        params = sampling_params(fields, self.service.sampling_defaults(frontend), asked | conversation.sampling)
        shape = ChatShape(
            envelope,
            self.service.speller(frontend),
            conversation.turns,
            num_logprobs=fields.num_logprobs,
            token_ids=bool(fields.return_token_ids),
            reasoning=fields.include_reasoning is not False,
        )
        return Plan(
            prompts=[PromptRun(token_ids=conversation.prompt_ids)],
            params=params,
            shape=shape,
            best=params.n,
            shown=conversation.turns.shown,
        )
