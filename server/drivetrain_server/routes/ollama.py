"""Ollama's native routes that generate or embed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, TypeVar

import orjson

from drivetrain.dialects.turn import Turns
from drivetrain.frontend import Frontend
from drivetrain.messages import EngineInfo
from drivetrain.sampling import SamplingParams
from drivetrain_server.answers.answer import Envelope, PromptRun
from drivetrain_server.answers.ollama import OllamaShape, loaded
from drivetrain_server.body import JsonObject
from drivetrain_server.embedding import Embedded
from drivetrain_server.errors import HttpError
from drivetrain_server.exchange import JSON_LINES, Exchange
from drivetrain_server.routes.chat import converse_as
from drivetrain_server.routes.embeddings import EmbeddingsRoute
from drivetrain_server.routes.generate import GenerateRoute, Plan
from drivetrain_server.wire.completions import CompletionRequest
from drivetrain_server.wire.embeddings import EmbeddingRequest
from drivetrain_server.wire.ollama import (
    CHAT_NAMES,
    OllamaChat,
    OllamaEmbed,
    OllamaEmbedding,
    OllamaFields,
    OllamaGenerate,
)
from drivetrain_server.wire.sampling import sampling_params
from drivetrain_server.wire.unservable import COMPLETIONS, OLLAMA, Unservable, refuse_unservable
from drivetrain_server.wire.validation import parse

Fields = TypeVar("Fields", bound=OllamaFields)


def ollama_name(name: str, info: EngineInfo) -> str:
    """The engine's own name of a model, which may end in the tag that was taken off here."""
    return info.model if f"{name}:latest" == info.model else name


def _within_context(params: SamplingParams, num_prompt: int, info: EngineInfo) -> SamplingParams:
    """Without a limit that lies behind the end of the context, which is one itself for Ollama's clients."""
    beyond = params.max_tokens is not None and num_prompt + params.max_tokens > info.max_model_len
    return replace(params, max_tokens=None) if beyond else params


class OllamaRoute(GenerateRoute[Fields]):
    """What both routes that generate share."""

    unservable = OLLAMA
    id_prefix = "ollama-"
    stream_format = JSON_LINES
    chat: ClassVar[bool]

    def model_name(self, fields: Fields, info: EngineInfo) -> str:
        return ollama_name(fields.model, info)

    def error_event(self, error: HttpError) -> bytes:
        return orjson.dumps({"error": error.message}) + b"\n"

    def _shape(
        self, frontend: Frontend, fields: Fields, envelope: Envelope, turns: Turns, arrived: float
    ) -> OllamaShape:
        return OllamaShape(
            envelope,
            self.service.speller(frontend),
            turns,
            chat=self.chat,
            arrived=arrived,
            num_logprobs=(fields.top_logprobs or 0) if fields.logprobs else None,
        )

    async def _converse(
        self, frontend: Frontend, fields: Fields, body: JsonObject, envelope: Envelope, exchange: Exchange
    ) -> Plan:
        if fields.think and frontend.dialect.reasoning is None:
            # In Ollama's own words, by which its clients know it.
            told = f'"{fields.model}" does not support thinking'
            raise HttpError(400, told, param="think", code="unsupported_parameter")
        reply, params = await converse_as(self.service, frontend, body)
        return Plan(
            prompts=[PromptRun(token_ids=reply.prompt_ids, turns=reply.turns)],
            params=_within_context(params, len(reply.prompt_ids), frontend.info),
            shape=self._shape(frontend, fields, envelope, reply.turns, exchange.arrived),
            best=1,
        )

    def _load_only(self, fields: Fields) -> bytes:
        """The answer to a request without a prompt."""
        reason = "unload" if fields.keep_alive in (0, "0", "0s") else "load"
        return loaded(fields.model, chat=self.chat, reason=reason)


class OllamaChatRoute(OllamaRoute[OllamaChat]):
    """Goes on with a conversation."""

    chat = True
    names: ClassVar[Mapping[str, str]] = CHAT_NAMES | {"prompt": "messages"}

    def parse(self, body: JsonObject) -> OllamaChat:
        return parse(OllamaChat, body)

    def ready_answer(self, fields: OllamaChat) -> bytes | None:
        return None if fields.messages else self._load_only(fields)

    async def plan(self, frontend: Frontend, fields: OllamaChat, envelope: Envelope, exchange: Exchange) -> Plan:
        return await self._converse(frontend, fields, fields.chat_body(), envelope, exchange)


class OllamaGenerateRoute(OllamaRoute[OllamaGenerate]):
    """Goes on from a text."""

    chat = False
    names: ClassVar[Mapping[str, str]] = CHAT_NAMES | {"messages": "prompt"}

    def parse(self, body: JsonObject) -> OllamaGenerate:
        return parse(OllamaGenerate, body)

    def ready_answer(self, fields: OllamaGenerate) -> bytes | None:
        return None if fields.prompt else self._load_only(fields)

    async def plan(self, frontend: Frontend, fields: OllamaGenerate, envelope: Envelope, exchange: Exchange) -> Plan:
        if not fields.raw:
            return await self._converse(frontend, fields, fields.chat_body(), envelope, exchange)
        body = fields.completion_body()
        refuse_unservable(body, COMPLETIONS)
        plain = parse(CompletionRequest, body)
        asked = {"max_tokens": plain.max_tokens, "logprobs": (fields.top_logprobs or 0) if fields.logprobs else None}
        params = sampling_params(plain, self.service.sampling_defaults(frontend), asked)
        token_ids = await frontend.encode_aside(fields.prompt, add_special_tokens=True)
        shape = self._shape(frontend, fields, envelope, Turns(), exchange.arrived)
        params = _within_context(params, len(token_ids), frontend.info)
        return Plan(prompts=[PromptRun(token_ids=token_ids)], params=params, shape=shape, best=1)


class OllamaEmbedRoute(EmbeddingsRoute):
    """Embeddings of one text or several."""

    unservable: ClassVar[Mapping[str, Unservable]] = {}

    def parse(self, body: JsonObject, frontend: Frontend) -> EmbeddingRequest:
        fields = parse(OllamaEmbed, body)
        return EmbeddingRequest(
            model=ollama_name(fields.model, frontend.info),
            input=fields.input,
            dimensions=fields.dimensions,
        )

    def unknown(self, body: JsonObject, fields: EmbeddingRequest) -> list[str]:
        return [name for name in body if name not in OllamaEmbed.model_fields]

    def render(self, results: Sequence[Embedded], fields: EmbeddingRequest, exchange: Exchange) -> bytes:
        answer = {
            "model": fields.model,
            "embeddings": [result.vector for result in results],
            "total_duration": exchange.elapsed_ns,
            "load_duration": 0,
            "prompt_eval_count": sum(result.num_tokens for result in results),
        }
        return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)


class OllamaEmbeddingsRoute(EmbeddingsRoute):
    """The older route: one text, and a vector that is not normalised."""

    unservable: ClassVar[Mapping[str, Unservable]] = {}

    def parse(self, body: JsonObject, frontend: Frontend) -> EmbeddingRequest:
        fields = parse(OllamaEmbedding, body)
        return EmbeddingRequest(
            model=ollama_name(fields.model, frontend.info),
            input=[fields.prompt],
            normalize=False,
        )

    def unknown(self, body: JsonObject, fields: EmbeddingRequest) -> list[str]:
        return [name for name in body if name not in OllamaEmbedding.model_fields]

    def render(self, results: Sequence[Embedded], fields: EmbeddingRequest, exchange: Exchange) -> bytes:
        return orjson.dumps({"embedding": results[0].vector}, option=orjson.OPT_SERIALIZE_NUMPY)
