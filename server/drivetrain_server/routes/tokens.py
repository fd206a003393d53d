"""`/tokenize` and `/detokenize`."""

from __future__ import annotations

import orjson

from drivetrain_server.body import read_json
from drivetrain_server.conversation import chat_of
from drivetrain_server.exchange import Exchange
from drivetrain_server.service import Service, ignored_fields
from drivetrain_server.wire.tokens import Detokenize, TokenizeChat, TokenizeText
from drivetrain_server.wire.validation import parse, refuse


class TokenizeRoute:
    """Token ids of a text or of a conversation."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def __call__(self, exchange: Exchange) -> None:
        """Answer with `tokens`, `count` and `max_model_len`."""
        frontend = self.service.lifecycle.frontend()
        body = await read_json(exchange, self.service.config.max_body_bytes)
        if body.keys().isdisjoint(("prompt", "messages")):
            raise refuse("prompt", "send a prompt or messages", code="missing_required_parameter")
        if None not in (body.get("prompt"), body.get("messages")):
            raise refuse("prompt", "got messages too, and one text is encoded; leave one of them out")
        fields = parse(TokenizeText if body.get("messages") is None else TokenizeChat, body)
        self.service.check_model(fields.model, frontend.info)
        exchange.extra_headers += ignored_fields(fields.unknown)
        special = fields.add_special_tokens
        if isinstance(fields, TokenizeText):
            tokens = await frontend.encode_aside(
                fields.prompt, add_special_tokens=special is not False, allow_empty=True
            )
        else:
            tokens = await frontend.encode_aside(chat_of(frontend, fields), add_special_tokens=bool(special))
        answer: dict[str, object] = {
            "tokens": tokens,
            "count": len(tokens),
            "max_model_len": frontend.info.max_model_len,
        }
        if fields.return_token_strs:
            spell = self.service.speller(frontend)
            answer["token_strs"] = [spell(token)[0] for token in tokens]
        await exchange.answer(orjson.dumps(answer))


class DetokenizeRoute:
    """Text of token ids."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def __call__(self, exchange: Exchange) -> None:
        """Answer with `prompt`, the text."""
        frontend = self.service.lifecycle.frontend()
        body = await read_json(exchange, self.service.config.max_body_bytes)
        fields = parse(Detokenize, body)
        info = frontend.info
        self.service.check_model(fields.model, info)
        exchange.extra_headers += ignored_fields(fields.unknown)
        if fields.tokens and max(fields.tokens) >= info.vocab_size:
            raise refuse("tokens", f"token ids are 0 to {info.vocab_size - 1}; got {max(fields.tokens)}")
        text = frontend.tokenizer.decode(fields.tokens, skip_special_tokens=bool(fields.skip_special_tokens))
        await exchange.answer(orjson.dumps({"prompt": text}))
