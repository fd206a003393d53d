"""What the request of a conversation comes down to, for every route that takes messages."""

from __future__ import annotations

from dataclasses import dataclass

from drivetrain.frontend import Frontend
from drivetrain_server.answers.turn import Turns
from drivetrain_server.wire.chat import ChatRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """A prompt, and how its answers are read.

    Attributes:
        sampling: values for fields of `SamplingParams` that the conversation asks for by itself.
    """

    prompt_ids: list[int]
    sampling: dict[str, object]
    turns: Turns


async def prepare(frontend: Frontend, fields: ChatRequest) -> Conversation:
    """Render, encode and choose how answers are read.

    Raises:
        HttpError: 400, with the field at fault.
        TemplateError: the template refused the messages, or the model has none.
    """
    prompt_ids = await frontend.encode_aside(fields.chat(), add_special_tokens=False)
    return Conversation(prompt_ids=prompt_ids, sampling={}, turns=Turns())
