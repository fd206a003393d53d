"""How many shapes the Gaudi backend compiles, and that every step fits one of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from drivetrain_gaudi.buckets import BucketPlan, doubling, mask_bytes, most_prefills, plan_buckets
from drivetrain_gaudi.device import STEP_TOKENS
from drivetrain_plugins.contract.executor import ExecutorLimits
from drivetrain_plugins.contract.memory import MemoryLimits

PAGE = Path(__file__).parents[2] / "docs" / "backends" / "gaudi.md"
CARD_PAGES = 4096
"""Pages of a Llama-3.1-8B in bfloat16 that a Gaudi 2 holds beside its weights: 16 MiB each, 64 GiB of 96."""


def limits(context: int, *, rows: int = 128, tokens: int = STEP_TOKENS, pages: int = CARD_PAGES) -> ExecutorLimits:
    return ExecutorLimits(
        dtype="bfloat16",
        kv_dtype="bfloat16",
        max_num_rows=rows,
        max_step_tokens=tokens,
        max_model_len=context,
        page_size=128,
        memory=MemoryLimits(max_pages=pages),
    )


def linear_count(plan: BucketPlan, context: int) -> int:
    """Shapes with buckets at equal steps: rows by 16, tokens by 128, pages in all by 64."""
    rows, tokens, pages = [1, *range(16, 129, 16)], range(128, STEP_TOKENS + 1, 128), range(64, CARD_PAGES + 1, 64)
    decode = sum(1 for row in rows for page in pages if page - 63 <= row * (context // 128))
    most = (plan.policy.max_prefills_per_step or 1) * (context // 128)
    return decode + len(tokens) * sum(1 for page in pages if page - 63 <= most)


@pytest.mark.parametrize("context", [8192, 32768, 131072])
def test_the_page_has_the_numbers_of_shapes(context: int) -> None:
    plan = plan_buckets(limits(context))
    row = re.search(rf"^\| {context:,} \|(.*)\|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert row is not None, f"docs/backends/gaudi.md has no row for {context:,}"
    told = [int(cell.strip().replace(",", "")) for cell in row.group(1).split("|")]
    assert told == [
        plan.policy.max_prefills_per_step,
        len(plan.decode),
        len(plan.prefill),
        len(plan.decode) + len(plan.prefill),
        linear_count(plan, context),
    ]


def test_shapes_stay_few_at_any_limits() -> None:
    for context in (128, 2048, 131_072, 1_048_576):
        for rows in (1, 7, 512):
            plan = plan_buckets(limits(context, rows=rows, pages=1 << 20))
            assert 0 < len(plan.decode) + len(plan.prefill) <= 256
            assert plan.policy.row_buckets[-1] == rows


def test_each_axis_doubles_and_ends_at_its_limit() -> None:
    assert doubling(1, 100) == (1, 2, 4, 8, 16, 32, 64, 100)
    assert doubling(1, 1) == (1,)
    assert doubling(128, 128) == (128,)
    plan = plan_buckets(limits(8192))
    assert plan.policy.token_buckets == (128, 256, 512, 1024, 2048)
    assert plan.policy.total_page_buckets[-1] == CARD_PAGES - 1


def test_prompts_share_a_step_as_long_as_their_mask_is_small() -> None:
    assert most_prefills(limits(8192)) == 16
    assert most_prefills(limits(32_768)) == 4
    assert most_prefills(limits(131_072)) == 1
    assert mask_bytes(limits(131_072)) == 512 << 20


def test_a_cache_smaller_than_one_context_still_has_a_bucket_for_a_whole_prompt() -> None:
    plan = plan_buckets(limits(131_072, pages=64))
    assert plan.policy.total_page_buckets[-1] == 1024


def test_no_step_reads_more_pages_than_the_largest_shape_holds() -> None:
    for context in (128, 8192, 131_072):
        for rows, pages in ((1, 64), (7, 4096), (128, 4096), (512, 1 << 20)):
            policy = plan_buckets(limits(context, rows=rows, pages=pages)).policy
            assert policy.max_total_pages == policy.total_page_buckets[-1]
            assert policy.max_total_pages >= (policy.max_prefills_per_step or 1) * (context // 128)


def test_the_plan_explains_itself() -> None:
    plan = plan_buckets(limits(8192))
    total = len(plan.decode) + len(plan.prefill)
    assert plan.explain().startswith(f"{total} shapes: {len(plan.decode)} for decoding (rows 1 to 128)")
    assert "up to 16 prompts a step" in plan.explain()
