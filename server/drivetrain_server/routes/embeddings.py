"""`/v1/embeddings`."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import ClassVar

import orjson

from drivetrain.frontend import Frontend
from drivetrain.pooling import check_embeds
from drivetrain_server.body import JsonObject, read_json
from drivetrain_server.embedding import Embedded, embed_all, encode_inputs
from drivetrain_server.exchange import Exchange
from drivetrain_server.service import Service, ignored_fields
from drivetrain_server.wire.embeddings import EmbeddingRequest
from drivetrain_server.wire.unservable import EMBEDDINGS, Unservable, refuse_unservable
from drivetrain_server.wire.validation import parse


class EmbeddingsRoute:
    """Embeddings of texts or tokens. A route with another wire format overrides `parse` and `render`."""

    unservable: ClassVar[Mapping[str, Unservable]] = EMBEDDINGS

    def __init__(self, service: Service) -> None:
        self.service = service

    async def __call__(self, exchange: Exchange) -> None:
        """Answer one request.

        Raises:
            HttpError, DrivetrainError: what is wrong; the caller answers with it.
            ClientGone: nobody reads the answer.
        """
        service = self.service
        frontend = service.lifecycle.frontend()
        body = await read_json(exchange, service.config.max_body_bytes)
        refuse_unservable(body, self.unservable)
        fields = self.parse(body, frontend)
        service.check_model(fields.model, frontend.info)
        check_embeds(frontend.info)
        exchange.extra_headers += ignored_fields(self.unknown(body, fields), dict(self.unservable))
        async with service.serving(exchange):
            results = await self._embed(exchange, frontend, fields)
            await exchange.answer(self.render(results, fields, exchange))

    def parse(self, body: JsonObject, frontend: Frontend) -> EmbeddingRequest:
        """The body as wire fields."""
        return parse(EmbeddingRequest, body)

    def unknown(self, body: JsonObject, fields: EmbeddingRequest) -> list[str]:
        """Names of fields of the body that nobody knows."""
        return fields.unknown

    def render(self, results: Sequence[Embedded], fields: EmbeddingRequest, exchange: Exchange) -> bytes:
        """The body of the answer."""
        as_text = fields.encoding_format == "base64"
        data = [
            {
                "object": "embedding",
                "index": index,
                "embedding": base64.b64encode(result.vector.tobytes()).decode() if as_text else result.vector,
            }
            for index, result in enumerate(results)
        ]
        num_tokens = sum(result.num_tokens for result in results)
        num_cached = sum(result.num_cached_tokens for result in results)
        usage = {
            "prompt_tokens": num_tokens,
            "total_tokens": num_tokens,
            "prompt_tokens_details": {"cached_tokens": num_cached},
        }
        answer = {"object": "list", "data": data, "model": fields.model, "usage": usage}
        return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)

    async def _embed(self, exchange: Exchange, frontend: Frontend, fields: EmbeddingRequest) -> list[Embedded]:
        encoded = await encode_inputs(frontend, fields.input, add_special_tokens=fields.add_special_tokens is not False)
        service, salt = self.service, exchange.tenant.salt
        if fields.cache_salt:
            salt = f"{salt}/{fields.cache_salt}"
        name = f"embd-{fields.request_id or exchange.request_id}-{next(service.serial)}"
        requests = [
            frontend.embedding_request(
                f"{name}-{at}",
                token_ids,
                dimensions=fields.dimensions,
                priority=fields.priority or 0,
                salt=salt,
                deadline_s=service.config.request_timeout_s,
            )
            for at, token_ids in enumerate(encoded)
        ]
        normalize = fields.normalize is not False
        return await embed_all(frontend, requests, dimensions=fields.dimensions, normalize=normalize)
