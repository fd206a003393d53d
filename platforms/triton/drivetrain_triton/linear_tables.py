"""Which configuration a product with few tokens runs with, from tables that `bench/tune_linear.py` writes.

A table is keyed by architecture; an entry names the shape that it was measured on. A shape that was not measured takes
the entry of the nearest one. Parts without a table of their own take the default one.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Literal

Kind = Literal["gemv", "skinny", "stream"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearConfig:
    """How one product is launched.

    Attributes:
        kind: "gemv" by multiply-adds, "skinny" on the matrix units, "stream" on Hopper's with its copy engine.
        bn: outputs a tile. bk: inputs a round.
        unroll: rounds unrolled ("gemv").
        bm, stages: most tokens, rounds in flight (not "gemv").
        split: parts of K ("skinny").
        programs: that share the rounds, rotation: rounds by which the next tile begins later ("stream").
    """

    kind: Kind
    bn: int
    bk: int
    num_warps: int
    unroll: int = 1
    bm: int = 16
    split: int = 1
    stages: int = 3
    programs: int = 1
    rotation: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearEntry:
    """A measured shape and the configuration that was the fastest.

    Attributes:
        tokens: most tokens that it serves.
        n, k: outputs (with `gate` of each half) and inputs.
        gate: gate and up halves with an activation between them.
        config: None where a library's product and separate kernels were faster.
    """

    tokens: int
    n: int
    k: int
    gate: bool
    config: LinearConfig | None

    def distance(self, n: int, k: int) -> float:
        """How far another shape is, in powers of two."""
        return abs(math.log2(n / self.n)) + abs(math.log2(k / self.k))


@lru_cache(maxsize=4)
def every_entry(arch: str) -> tuple[LinearEntry, ...]:
    """What a part chooses from."""
    text = resources.files("drivetrain_triton").joinpath("tables/linear.json").read_text()
    tables = json.loads(text)
    return tuple(
        LinearEntry(
            tokens=line["tokens"],
            n=line["n"],
            k=line["k"],
            gate=line["gate"],
            config=LinearConfig(**line["config"]) if line["config"] is not None else None,
        )
        for line in tables.get(arch, tables["default"])
    )


@lru_cache(maxsize=1024)
def linear_config(arch: str, tokens: int, n: int, k: int, *, gate: bool) -> LinearConfig | None:
    """The configuration of a product of `tokens` tokens, or None where a library's product is faster.

    Args:
        n: outputs; with `gate` of each half.
    """
    buckets = sorted({entry.tokens for entry in every_entry(arch) if entry.tokens >= tokens})
    if not buckets:
        return None
    near = [entry for entry in every_entry(arch) if entry.tokens == buckets[0] and entry.gate == gate]
    # A round of more inputs than there are leaves threads without work.
    near = [entry for entry in near if entry.config is None or entry.config.bk <= k] or near
    # Blackwell has no gated entry on the matrix units: Triton 3.6 cannot lower two accumulators of 16 columns there.
    return min(near, key=lambda entry: entry.distance(n, k)).config if near else None
