"""Answers from an engine of this command's own."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from drivetrain.dialects.turn import ContentDelta, ReasoningDelta
from drivetrain.frontend import Frontend
from drivetrain.sampling import SamplingParams
from drivetrain_server.cli.conversation import Thought
from drivetrain_server.cli.engine import new_request_id, reply_in_chat


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalTalker:
    """A model that this command has loaded."""

    frontend: Frontend
    params: SamplingParams

    async def answer(self, messages: list[dict[str, str]]) -> AsyncGenerator[str, None]:
        """Stream the answer's text, after what the model thought; closing it early aborts the request.

        Raises:
            RequestError: the conversation does not fit, or the chat template refused it.
            EngineDead, RequestFailed: as `Frontend.generate`.
        """
        reply = await reply_in_chat(self.frontend, messages)
        turns = reply.turns
        request = self.frontend.request(new_request_id(), reply.prompt_ids, self.params)
        async with aclosing(self.frontend.generate(request, turns=turns)) as batches:
            async for batch in batches:
                for event in (event for delta in batch for event in turns.push(0, delta)):
                    match event:
                        case ContentDelta(text=text):
                            yield text
                        case ReasoningDelta(text=text):
                            yield Thought(text)
                        case _:
                            pass
