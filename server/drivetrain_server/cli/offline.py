"""Answering a list of prompts with one engine, as many at once as it takes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from drivetrain.dialects.turn import ContentDelta, ReasoningDelta, Turns
from drivetrain.frontend import Frontend
from drivetrain.sampling import SamplingParams
from drivetrain_server.cli.conversation import Thought
from drivetrain_server.cli.engine import new_request_id, reply_in_chat
from drivetrain_server.cli.prompts import Prompt


@dataclass(slots=True, kw_only=True)
class Answer:
    """One prompt with its answer.

    Attributes:
        reasoning: what the model thought before; None where it tells of nothing.
        finish_reason: "stop" or "length".
    """

    index: int
    prompt: str
    text: str = ""
    reasoning: str | None = None
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
        on_text, on_done: told of each piece of text, before it is added, and of each finished answer.

    Raises:
        RequestError: a prompt does not fit, or the chat template refused it; the others are ended.
        EngineDead, RequestFailed: as `Frontend.generate`.
    """
    slots = asyncio.Semaphore(at_once)

    async def one(index: int, prompt: Prompt) -> Answer:
        answer = Answer(index=index, prompt=prompt.text)
        async with slots:
            if raw:
                prompt_ids, turns = await frontend.encode_aside(prompt.text, add_special_tokens=True), Turns()
            else:
                reply = await reply_in_chat(frontend, prompt.as_messages())
                prompt_ids, turns = reply.prompt_ids, reply.turns
            answer.prompt_tokens = len(prompt_ids)
            request = frontend.request(new_request_id(), prompt_ids, params)
            async for batch in frontend.generate(request, turns=turns):
                for delta in batch:
                    answer.answer_tokens += len(delta.token_ids)
                    answer.finish_reason = delta.finish_reason or answer.finish_reason
                    for event in turns.push(0, delta):
                        match event:
                            case ContentDelta(text=text):
                                on_text(answer, text)
                                answer.text += text
                            case ReasoningDelta(text=text):
                                on_text(answer, Thought(text))
                                answer.reasoning = (answer.reasoning or "") + text
                            case _:
                                pass
        on_done(answer)
        return answer

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(index, prompt)) for index, prompt in enumerate(prompts)]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]
