"""Answers from an engine of this command's own."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from drivetrain.frontend import Chat, Frontend
from drivetrain.sampling import SamplingParams
from drivetrain_server.cli.engine import new_request_id


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalTalker:
    """A model that this command has loaded."""

    frontend: Frontend
    params: SamplingParams

    async def answer(self, messages: list[dict[str, str]]) -> AsyncGenerator[str, None]:
        """Stream the answer's text; closing it early aborts the request.

        Raises:
            RequestError: the conversation does not fit, or the chat template refused it.
            EngineDead, RequestFailed: as `Frontend.generate`.
        """
        prompt_ids = await self.frontend.encode_aside(Chat(messages=messages), add_special_tokens=False)
        request = self.frontend.request(new_request_id(), prompt_ids, self.params)
        async with aclosing(self.frontend.generate(request)) as batches:
            async for batch in batches:
                for delta in batch:
                    if delta.text:
                        yield delta.text
