"""All inputs of one embedding request while the engine works on them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from drivetrain.errors import RequestError
from drivetrain.frontend import INLINE_CHARS, Frontend
from drivetrain.messages import GenerateRequest
from drivetrain.pooling import shaped
from drivetrain_plugins.contract.batch import Float32Array
from drivetrain_server.wire.validation import refuse

MAX_CONCURRENT_INPUTS = 256
"""Inputs of one request that the engine works on at a time, so that a long list leaves others their place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """One input and its vector, as it is given out.

    Attributes:
        vector: float32 (D,).
    """

    vector: Float32Array
    num_tokens: int
    num_cached_tokens: int


async def encode_inputs(
    frontend: Frontend, inputs: Sequence[str] | Sequence[list[int]], *, add_special_tokens: bool
) -> list[list[int]]:
    """Token ids of each input, made in a thread where that takes long enough to be felt by others.

    Raises:
        HttpError: 400, an input without tokens or with one that the vocabulary does not have.
    """

    def work() -> list[list[int]]:
        encoded: list[list[int]] = []
        for at, each in enumerate(inputs):
            try:
                encoded.append(frontend.encode(each, add_special_tokens=add_special_tokens))
            except RequestError as error:
                raise refuse(f"input[{at}]" if len(inputs) > 1 else "input", _reason(error)) from None
        return encoded

    size = sum(len(each) for each in inputs if isinstance(each, str))
    return work() if size <= INLINE_CHARS else await asyncio.to_thread(work)


async def embed_all(
    frontend: Frontend, requests: Sequence[GenerateRequest], *, dimensions: int | None, normalize: bool
) -> list[Embedded]:
    """The vectors of all requests, in order; the first error ends the others.

    Raises:
        DrivetrainError: as `Frontend.embed`.
    """
    turns = asyncio.Semaphore(MAX_CONCURRENT_INPUTS)

    async def one(request: GenerateRequest) -> Embedded:
        async with turns:
            vector, num_cached = await frontend.embed(request)
        return Embedded(
            vector=shaped(vector, dimensions, normalize=normalize),
            num_tokens=len(request.prompt_ids),
            num_cached_tokens=num_cached,
        )

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(request)) for request in requests]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def _reason(error: RequestError) -> str:
    return str(error).removeprefix("prompt: ")
