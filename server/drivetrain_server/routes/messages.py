"""`/v1/messages` and `/v1/messages/count_tokens`, as Anthropic's clients call them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import orjson

from drivetrain.errors import RequestError
from drivetrain.frontend import Frontend
from drivetrain_server.answers.answer import Envelope, PromptRun
from drivetrain_server.answers.messages import MessagesShape, messages_error_event
from drivetrain_server.body import JsonObject, read_json
from drivetrain_server.errors import HttpError, http_error
from drivetrain_server.exchange import Exchange
from drivetrain_server.routes.chat import converse_as
from drivetrain_server.routes.generate import GenerateRoute, Plan
from drivetrain_server.service import Service, ignored_fields
from drivetrain_server.wire.messages import MessagesFields, MessagesRequest
from drivetrain_server.wire.unservable import MESSAGES, refuse_unservable
from drivetrain_server.wire.validation import parse, renamed


class MessagesRoute(GenerateRoute[MessagesRequest]):
    """Goes on with a conversation."""

    unservable = MESSAGES
    id_prefix = "msg_"

    def parse(self, body: JsonObject) -> MessagesRequest:
        return parse(MessagesRequest, body)

    def named(self, fields: MessagesRequest) -> Mapping[str, str]:
        return fields.chat_names

    def error_event(self, error: HttpError) -> bytes:
        return messages_error_event(error)

    async def plan(self, frontend: Frontend, fields: MessagesRequest, envelope: Envelope, exchange: Exchange) -> Plan:
        reply, params = await converse_as(self.service, frontend, fields.chat_body())
        # Clients must send a limit here, and send one that fits the largest models: the context is one too.
        window = fields.max_tokens > frontend.info.max_model_len - len(reply.prompt_ids)
        return Plan(
            prompts=[PromptRun(token_ids=reply.prompt_ids, turns=reply.turns)],
            params=replace(params, max_tokens=None) if window else params,
            shape=MessagesShape(envelope, reply.turns, window=window),
            best=1,
        )


class CountTokensRoute:
    """How many tokens a conversation has as a prompt."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def __call__(self, exchange: Exchange) -> None:
        """Answer with `input_tokens`."""
        service = self.service
        frontend = service.lifecycle.frontend()
        body = await read_json(exchange, service.config.max_body_bytes)
        refuse_unservable(body, MESSAGES)
        fields = parse(MessagesFields, body)
        service.check_model(fields.model, frontend.info)
        exchange.extra_headers += ignored_fields(fields.unknown, dict(MESSAGES))
        try:
            reply, _ = await converse_as(service, frontend, fields.chat_body())
        except RequestError as error:
            raise renamed(http_error(error), fields.chat_names) from error
        except HttpError as error:
            raise renamed(error, fields.chat_names) from error
        await exchange.answer(orjson.dumps({"input_tokens": len(reply.prompt_ids)}))
