"""The least time that a workload can take on a device of given ceilings.

A decode step of B sequences reads every weight once and each sequence's keys and values, or computes two operations a
weight and sequence, whichever takes longer:

    T = max(W / BW, 2 N B / F) + (tokens held) * kv / BW

Prefill computes two operations a weight and prompt token and attention's products; a beginning that all prompts share
is computed and read once. Prefill and decode are added: a perfect engine that hides one behind the other may be a
little faster.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from device_parts.ceilings import Ceilings
    from drivetrain_plugins.contract.model import DecoderSpec
    from workloads import Work


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What one token of a model costs.

    Attributes:
        weights: parameters that every step reads: all but the embedding table, unless it is the output matrix.
        layer_weights: those without the output matrix, which only the last token of a prompt needs.
        kv_bytes: keys and values of one token, all layers.
        attention_flop: operations of attention for one query token and one key token, all layers.
    """

    weights: int
    layer_weights: int
    kv_bytes: int
    attention_flop: int
    dtype_bytes: int = 2


def costs(spec: DecoderSpec, *, dtype_bytes: int = 2) -> Costs:
    """The costs of a model of full attention."""
    from drivetrain_plugins.contract.model import weight_shapes

    layers = head = 0
    for name, shape in weight_shapes(spec):
        count = 1
        for size in shape:
            count *= size
        if name == "lm_head.weight" or (spec.tied and name == "embed.weight"):
            head += count
        elif not name.startswith("embed."):
            layers += count
    mixers = [layer.mixer for layer in spec.layers]
    return Costs(
        weights=layers + head,
        layer_weights=layers,
        kv_bytes=sum(2 * mixer.num_kv_heads * mixer.head_dim for mixer in mixers) * dtype_bytes,
        attention_flop=sum(4 * mixer.num_heads * mixer.head_dim for mixer in mixers),
        dtype_bytes=dtype_bytes,
    )


def step_s(costs: Costs, ceilings: Ceilings, rows: int, tokens_held: int) -> float:
    """The floor of one decode step of `rows` sequences that together hold `tokens_held` different tokens."""
    read = costs.weights * costs.dtype_bytes / ceilings.copy_bytes_s
    computed = 2 * costs.weights * rows / ceilings.product_flop_s
    return max(read, computed) + tokens_held * costs.kv_bytes / ceilings.copy_bytes_s


def prefill_s(costs: Costs, ceilings: Ceilings, lengths: list[int], shared: int) -> float:
    """The floor of computing prompts of these lengths, of which the first `shared` tokens are the same."""
    tokens = shared + sum(length - shared for length in lengths)
    # Token p attends to p + 1 tokens.
    pairs = shared * (shared + 1) // 2 + sum((length * (length + 1) - shared * (shared + 1)) // 2 for length in lengths)
    head = costs.weights - costs.layer_weights
    flop = 2 * costs.layer_weights * tokens + 2 * head * len(lengths) + costs.attention_flop * pairs
    return flop / ceilings.product_flop_s


def shared_tokens(work: Work) -> int:
    """How many tokens all prompts of a workload begin with."""
    prompts = [prompt for prompt, _ in work]
    if len(prompts) < 2:
        return 0
    # What the first and the last in the order of the alphabet have in common, all have.
    first, last = min(prompts), max(prompts)
    same = (pair[0] == pair[1] for pair in zip(first, last, strict=False))
    return sum(takewhile(bool, same))


def workload_s(work: Work, costs: Costs, ceilings: Ceilings, max_rows: int) -> float:
    """The floor of a whole workload with at most `max_rows` sequences at once."""
    shared = shared_tokens(work)
    total = prefill_s(costs, ceilings, [len(prompt) for prompt, _ in work], shared)
    waiting = list(reversed(work))
    running: list[tuple[int, int]] = []  # (step at which it has its last token, start of its own tokens less the step)
    step = held = 0
    while waiting or running:
        while waiting and len(running) < max_rows:
            prompt, answer = waiting.pop()
            if answer > 1:  # prefill made the first token
                heapq.heappush(running, (step + answer - 1, len(prompt) - shared - step))
                held += len(prompt) - shared
        if not running:
            break
        step += 1
        held += len(running)
        total += step_s(costs, ceilings, len(running), held + shared)
        while running and running[0][0] <= step:
            _, start = heapq.heappop(running)
            held -= start + step
    return total
