"""Which step shapes are compiled: few enough to run all of them before serving, close enough to waste little.

Each axis doubles from bucket to bucket, so that padding wastes at most half of a step and a quarter on average, and a
context twice as long adds one bucket an axis instead of twice as many.
"""

from __future__ import annotations

from dataclasses import dataclass

from drivetrain_plugins.contract.executor import ExecutorLimits
from drivetrain_plugins.contract.shapes import ShapePolicy, StepShape

MASK_BYTES = 512 << 20
"""What the mask of a step with prompts may take, in 16 bits: it decides how many prompts share a step."""
MOST_PREFILLS = 16
SMALLEST_TOKENS = 128
"""A step with prompts has at least so many tokens: fewer leave the matrix units idle anyway."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketPlan:
    """The shapes under some limits.

    Attributes:
        decode, prefill: shapes that are compiled for steps of each kind.
    """

    policy: ShapePolicy
    decode: tuple[StepShape, ...]
    prefill: tuple[StepShape, ...]

    def explain(self) -> str:
        """One line for people: how many shapes there are, and what they are made of."""
        policy = self.policy
        return (
            f"{len(self.decode) + len(self.prefill)} shapes: {len(self.decode)} for decoding (rows "
            f"{_range(policy.row_buckets)}) and {len(self.prefill)} with prompts (tokens "
            f"{_range(policy.token_buckets)}, up to {policy.max_prefills_per_step} prompts a step), each for pages in"
            f" all {_range(policy.total_page_buckets)}; every axis doubles"
        )


def plan_buckets(limits: ExecutorLimits, warm_up_s: float | None = None) -> BucketPlan:
    """The bucket plan of an engine.

    Args:
        limits: `memory.max_pages` bounds the pages that steps read together, unless a step of prompts needs more.
        warm_up_s: as in `GaudiOptions`.
    """
    prefills = most_prefills(limits)
    usable_pages = max(1, limits.memory.max_pages - 1)
    most_pages = min(limits.max_num_rows * limits.max_pages, max(usable_pages, prefills * limits.max_pages))
    policy = ShapePolicy(
        mixed_steps=False,
        max_prefills_per_step=prefills,
        row_buckets=doubling(1, limits.max_num_rows),
        # Prompts are padded to one number of rows: rows cost nothing there, tokens and pages do.
        mixed_row_buckets=(prefills + 1,),
        token_buckets=doubling(min(SMALLEST_TOKENS, limits.max_step_tokens), limits.max_step_tokens),
        total_page_buckets=doubling(1, most_pages),
        # Rows that share pages could read more than there are, and each step would be of a shape of its own.
        max_total_pages=most_pages,
        max_captured_rows=limits.max_num_rows,
        max_captured_tokens=limits.max_step_tokens,
        captured_sampling=frozenset(),
        samples_inside=False,
        records_all=True,
        record_budget_s=warm_up_s,
    )
    shapes = policy.captured_shapes(page_size=limits.page_size, max_pages=limits.max_pages)
    return BucketPlan(
        policy=policy,
        decode=tuple(shape for shape in shapes if shape.decode_only),
        prefill=tuple(shape for shape in shapes if not shape.decode_only),
    )


def most_prefills(limits: ExecutorLimits) -> int:
    """How many prompts may share a step, so that their mask stays small at the longest context; at least one."""
    return max(1, min(MOST_PREFILLS, limits.max_num_rows, MASK_BYTES // mask_bytes(limits)))


def mask_bytes(limits: ExecutorLimits) -> int:
    """Bytes of the mask of the largest step with one prompt at the longest context."""
    return 2 * limits.max_step_tokens * limits.max_pages * limits.page_size


def doubling(first: int, last: int) -> tuple[int, ...]:
    """`first`, doubled until `last`, which is the end of it whether or not it is reached by doubling."""
    buckets = [first]
    while buckets[-1] < last:
        buckets.append(min(2 * buckets[-1], last))
    return tuple(buckets)


def _range(buckets: tuple[int, ...]) -> str:
    return f"{buckets[0]} to {buckets[-1]}" if buckets[0] < buckets[-1] else str(buckets[0])
