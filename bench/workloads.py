"""The token workloads that every engine is timed on: seeded lists of (prompt token ids, answer tokens).

The ids depend on nothing but the workload's name and the size of the vocabulary, so that each engine, on any machine
and Python, gets the same prompts. `digest` names a list.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

Work = list[tuple[list[int], int]]
"""Prompt token ids and how many tokens to answer, a request each."""

FIRST_ID = 1000
"""Ids below it are often special tokens."""
VOCAB_SIZE = 100_000
"""Prompts hold ids below it: every model that is timed has more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Lengths of a workload's requests; a pair is a range with both ends included, drawn anew for each request.

    Attributes:
        shared: tokens that all prompts begin with, before their own.
    """

    requests: int
    prompt: int | tuple[int, int]
    answer: int | tuple[int, int]
    shared: int = 0


SHAPES = {
    "single": Shape(requests=1, prompt=512, answer=256),
    "eight": Shape(requests=8, prompt=512, answer=256),
    "nano": Shape(requests=256, prompt=(100, 1024), answer=(100, 1024)),
    "chat": Shape(requests=1000, prompt=(256, 768), answer=(128, 384)),
    "summarize": Shape(requests=128, prompt=4096, answer=32),
    "prefix": Shape(requests=256, prompt=128, answer=128, shared=2048),
}


def make(name: str, vocab_size: int = VOCAB_SIZE) -> Work:
    """The requests of a workload.

    Raises:
        KeyError: `SHAPES` has no such name.
    """
    shape = SHAPES[name]
    rng = random.Random(name)

    def length(bounds: int | tuple[int, int]) -> int:
        return bounds if isinstance(bounds, int) else rng.randint(*bounds)

    def ids(count: int) -> list[int]:
        return [rng.randrange(FIRST_ID, vocab_size) for _ in range(count)]

    # The order of the draws is part of the workload: length of the prompt, its ids, length of the answer.
    shared = ids(shape.shared)
    return [(shared + ids(length(shape.prompt)), length(shape.answer)) for _ in range(shape.requests)]


def shortened(work: Work, *, requests: int, tokens: int) -> Work:
    """The first requests with prompts and answers cut to `tokens`: for a try of the code on a slow device."""
    return [(prompt[:tokens], min(answer, tokens)) for prompt, answer in work[:requests]]


def digest(work: Work) -> str:
    """A short name of exactly this list of requests."""
    text = ";".join(f"{','.join(map(str, prompt))}:{answer}" for prompt, answer in work)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
