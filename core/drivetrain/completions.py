"""What a client asks for, as the completions that the scheduler works on."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from drivetrain.messages import EngineInfo, GenerateRequest, token_array
from drivetrain.request import Request

if TYPE_CHECKING:
    from drivetrain.grammar.compiler import CompiledGrammar

_GOLDEN_RATIO = 0x9E3779B97F4A7C15


def completions_of(
    asked: GenerateRequest, info: EngineInfo, *, end_ids: frozenset[int], seed: int, grammar: CompiledGrammar | None
) -> dict[int, Request]:
    """The completions of a request by index; all but the first take the prompt's KV over from it.

    Args:
        end_ids: the model's end tokens.
        seed: 64 bits that the completions' own seeds are made of.
        grammar: what each answer must follow.
    """
    params = asked.params
    own_ids = frozenset(params.stop_token_ids)
    prompt_ids, arrival_s = token_array(asked.prompt_ids), time.monotonic()
    first: Request | None = None
    completions: dict[int, Request] = {}
    for index in range(params.n):
        completions[index] = completion = Request(
            request_id=f"{asked.request_id}/{index}",
            prompt_ids=prompt_ids,
            params=params,
            arrival_s=arrival_s,
            priority=asked.priority,
            eos_ids=own_ids if params.ignore_eos else end_ids | own_ids,
            salt=asked.salt.encode(),
            max_total=info.max_model_len,
            matcher=None if grammar is None else grammar.matcher(),
            parent=first,
            seed=(seed + index * _GOLDEN_RATIO) & 0xFFFF_FFFF_FFFF_FFFF,
            bad_word_ids=tuple(tuple(word) for word in asked.bad_word_ids),
            pooling=info.pooling if asked.embeds else None,
        )
        first = first or completion
    return completions
