"""Answering a list of prompts with one engine, as many at once as it takes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from drivetrain.frontend import Chat, Frontend
from drivetrain.sampling import SamplingParams
from drivetrain_server.cli.engine import new_request_id
from drivetrain_server.cli.prompts import Prompt


@dataclass(slots=True, kw_only=True)
class Answer:
    """One prompt with its answer. `finish_reason` is "stop" or "length"."""

    index: int
    prompt: str
    text: str = ""
    finish_reason: str = ""
    prompt_tokens: int = 0
    answer_tokens: int = 0


async def answer_all(
    frontend: Frontend,
    prompts: Sequence[Prompt],
    params: SamplingParams,
    *,
    raw: bool,
    at_once: int,
    on_text: Callable[[Answer, str], None] = lambda answer, text: None,
    on_done: Callable[[Answer], None] = lambda answer: None,
) -> list[Answer]:
    """Answer every prompt; answers are in the order of the prompts.

    Args:
        raw: continue the text instead of applying the chat template.
        at_once: requests under way at the same time.
        on_text, on_done: told of each piece of text, and of each finished answer.

    Raises:
        RequestError: a prompt does not fit, or the chat template refused it; the others are ended.
        EngineDead, RequestFailed: as `Frontend.generate`.
    """
    slots = asyncio.Semaphore(at_once)

    async def one(index: int, prompt: Prompt) -> Answer:
        answer = Answer(index=index, prompt=prompt.text)
        async with slots:
            chat = prompt.text if raw else Chat(messages=prompt.as_messages())
            prompt_ids = await frontend.encode_aside(chat, add_special_tokens=raw)
            answer.prompt_tokens = len(prompt_ids)
            async for batch in frontend.generate(frontend.request(new_request_id(), prompt_ids, params)):
                for delta in batch:
                    answer.text += delta.text
                    answer.answer_tokens += len(delta.token_ids)
                    answer.finish_reason = delta.finish_reason or answer.finish_reason
                    on_text(answer, delta.text)
        on_done(answer)
        return answer

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(index, prompt)) for index, prompt in enumerate(prompts)]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]
