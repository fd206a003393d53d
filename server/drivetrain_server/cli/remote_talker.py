"""Answers from a server, over its chat completions route."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field

from drivetrain.errors import RequestFailed
from drivetrain_server.cli.conversation import Thought
from drivetrain_server.http_client import Endpoint, Json, parse_json, request


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteTalker:
    """A model behind an OpenAI-style server.

    Attributes:
        sampling: fields of the request that the user set.
    """

    endpoint: Endpoint
    model: str
    sampling: Mapping[str, Json] = field(default_factory=dict[str, Json])

    async def answer(self, messages: list[dict[str, str]]) -> AsyncGenerator[str, None]:
        """Stream the answer's text, after what the model thought.

        Raises:
            RequestFailed: the server ended the stream with an error.
            ConnectionFailed, HttpError: as `drivetrain_server.http_client.request`.
        """
        sent: list[Json] = [dict(message) for message in messages]
        body: dict[str, Json] = {"model": self.model, "messages": sent, "stream": True, **self.sampling}
        async with request(self.endpoint, "POST", "/v1/chat/completions", body) as response:
            async for event in response.events():
                if event == "[DONE]":
                    return
                match parse_json(event):
                    case {"error": problem}:
                        raise RequestFailed(f"the server ended the answer: {problem}")
                    case {"choices": [{"delta": {"content": str(text)}}, *_]} if text:
                        yield text
                    case {"choices": [{"delta": {"reasoning_content": str(text)} | {"reasoning": str(text)}}, *_]}:
                        yield Thought(text)
                    case _:
                        pass
