"""`/v1/responses`."""

from __future__ import annotations

import secrets
from dataclasses import replace
from typing import Any

from drivetrain.conversation import Reply
from drivetrain.frontend import Frontend
from drivetrain.sampling import SamplingParams
from drivetrain_server.answers.answer import Envelope, PromptRun
from drivetrain_server.answers.responses import ResponsesShape
from drivetrain_server.body import JsonObject
from drivetrain_server.exchange import Exchange
from drivetrain_server.kept_responses import Kept, KeptResponses
from drivetrain_server.routes.chat import converse_as
from drivetrain_server.routes.generate import GenerateRoute, Plan
from drivetrain_server.service import Service
from drivetrain_server.wire.responses import CHAT_NAMES, ResponsesRequest, messages_of
from drivetrain_server.wire.unservable import RESPONSES
from drivetrain_server.wire.validation import parse

Json = dict[str, Any]


class ResponsesRoute(GenerateRoute[ResponsesRequest]):
    """Goes on with a conversation, and keeps it."""

    unservable = RESPONSES
    id_prefix = "resp_"
    names = CHAT_NAMES

    def __init__(self, service: Service, kept: KeptResponses) -> None:
        super().__init__(service)
        self._kept = kept

    def parse(self, body: JsonObject) -> ResponsesRequest:
        return parse(ResponsesRequest, body)

    async def plan(self, frontend: Frontend, fields: ResponsesRequest, envelope: Envelope, exchange: Exchange) -> Plan:
        # Its own, not the request's id, which a client may send twice.
        envelope = replace(envelope, id=f"{self.id_prefix}{secrets.token_hex(16)}")
        earlier: list[Json] = []
        if fields.previous_response_id is not None:
            name = "previous_response_id"
            earlier = (await self._kept.get(exchange.tenant, fields.previous_response_id, param=name)).history
        items = [*earlier, *fields.items]
        messages_of(fields.items)  # so that errors count the items of this request
        reply, params = await self._fitting(frontend, fields, messages_of(items))

        async def keep() -> None:
            if fields.store is not False:
                response = shape.response
                kept = Kept(history=[*items, *response["output"]], inputs=fields.items, body=response)
                await self._kept.add(exchange.tenant, envelope.id, kept)

        shape = ResponsesShape(
            envelope,
            self.service.speller(frontend),
            reply.turns,
            echo=_echo(fields, params),
            num_logprobs=fields.num_logprobs,
        )
        exchange.error_event = shape.failed
        return Plan(
            prompts=[PromptRun(token_ids=reply.prompt_ids, turns=reply.turns)],
            params=params,
            shape=shape,
            best=1,
            before_end=keep,
        )

    async def _fitting(
        self, frontend: Frontend, fields: ResponsesRequest, messages: list[Json]
    ) -> tuple[Reply, SamplingParams]:
        """The conversation; with `truncation` of "auto" without as many of its oldest messages as do not fit."""
        found = await converse_as(self.service, frontend, fields.chat_body(messages))
        room = frontend.info.max_model_len - (fields.max_output_tokens or 1)
        if fields.truncation != "auto" or len(found[0].prompt_ids) <= room:
            return found
        # The most that may stay lies between `low` and `high` messages, counted from the end.
        low, high = 1, len(messages) - 1
        while low <= high:
            middle = (low + high) // 2
            tried = await converse_as(self.service, frontend, fields.chat_body(_newest(messages, middle)))
            if len(tried[0].prompt_ids) <= room:
                found, low = tried, middle + 1
            else:
                high = middle - 1
        return found


def _newest(messages: list[Json], count: int) -> list[Json]:
    """The last messages, not beginning with the result of a call that is not among them."""
    kept = messages[-count:]
    while len(kept) > 1 and kept[0]["role"] in ("tool", "assistant"):
        kept = kept[1:]
    return kept


def _echo(fields: ResponsesRequest, params: SamplingParams) -> Json:
    text, reasoning = fields.text, fields.reasoning
    return {
        "instructions": fields.instructions,
        "max_output_tokens": fields.max_output_tokens,
        "max_tool_calls": None,
        "parallel_tool_calls": fields.parallel_tool_calls is not False,
        "previous_response_id": fields.previous_response_id,
        "reasoning": {"effort": None if reasoning is None else reasoning.effort, "summary": None},
        "service_tier": "default",
        "store": fields.store is not False,
        "temperature": params.temperature,
        "text": {
            "format": (None if text is None else text.format) or {"type": "text"},
            "verbosity": (None if text is None else text.verbosity) or "medium",
        },
        "tool_choice": fields.tool_choice or "auto",
        "tools": fields.tools or [],
        "top_logprobs": fields.top_logprobs or 0,
        "top_p": params.top_p,
        "truncation": fields.truncation or "disabled",
        "metadata": fields.metadata or {},
    }
