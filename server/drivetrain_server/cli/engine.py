"""The engine as commands use it: started with its phases shown, and ended when they leave."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, cast

from drivetrain.config import Config
from drivetrain.sampling import SamplingParams

if TYPE_CHECKING:
    from drivetrain.client import EngineClient
    from drivetrain.conversation import Reply
    from drivetrain.frontend import Frontend
    from drivetrain.process.client import ProcessEngine

END_S = 5.0


def new_engine(config: Config) -> ProcessEngine:
    """An engine in a process of its own, not started."""
    from drivetrain.process.client import ProcessEngine

    return ProcessEngine(config.engine)


def frontend_factory(config: Config) -> Callable[[EngineClient], Frontend]:
    """What loads tokenizer and chat template of the configured model."""
    from drivetrain.frontend import load_frontend

    def load(engine: EngineClient) -> Frontend:
        return load_frontend(config.engine, engine)

    return load


@asynccontextmanager
async def open_frontend(config: Config) -> AsyncGenerator[Frontend, None]:
    """A started engine with its text layer; start-up is shown on stderr.

    Raises:
        DrivetrainError: the engine could not start.
    """
    from drivetrain_server.cli.phases import following

    engine = new_engine(config)
    try:
        async with following(lambda: engine.phases):
            await engine.start()
        yield frontend_factory(config)(engine)
    finally:
        await engine.shutdown(drain_s=0.0)


def sampling_params(config: Config, frontend: Frontend, given: Mapping[str, object]) -> SamplingParams:
    """What the user set, else the configuration's defaults, else the model's own, else those of `SamplingParams`.

    Raises:
        RequestError: a value is out of range.
    """
    chosen = frontend.defaults.given() | dict(config.server.sampling_defaults) | dict(given)
    return SamplingParams(**cast("Mapping[str, float]", chosen))  # pyright: ignore[reportArgumentType]


async def reply_in_chat(frontend: Frontend, messages: Sequence[Mapping[str, str]]) -> Reply:
    """The prompt of a conversation, and how its answer is read.

    Raises:
        RequestError: the chat template refused it, or there is none.
    """
    from drivetrain.conversation import Chat, ToolUse, reply_to, worded

    chat = worded(frontend, Chat(messages=messages), ToolUse())
    return reply_to(frontend, await frontend.encode_aside(chat, add_special_tokens=False), chat, ToolUse())


def new_request_id() -> str:
    """A name that no other request has."""
    return uuid.uuid4().hex
