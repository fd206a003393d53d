"""Which decode rows are told to share a prefix: only true ones, only those that are worth it, cheaply."""

from __future__ import annotations

from array import array

import pytest

from drivetrain.batch import BatchBuilder
from drivetrain.request import Request
from drivetrain.sampling import SamplingParams
from drivetrain.scheduler import Schedule, ScheduledRow
from drivetrain.shared_prefixes import SharedPrefixes
from drivetrain_plugins.contract.batch import StepBatch
from drivetrain_plugins.contract.shapes import ShapePolicy

PAGE = 4
POLICY = ShapePolicy(max_shared_groups=2, min_shared_rows=2, min_shared_tokens=8)


def row(slot: int, pages: list[int], start: int) -> ScheduledRow:
    request = Request(
        request_id=f"r{slot}",
        prompt_ids=array("i", range(start)),
        params=SamplingParams(temperature=0.0),
        arrival_s=0.0,
        max_total=1000,
    )
    request.pages = pages
    return ScheduledRow(request, slot, start)


def find(rows: list[ScheduledRow], policy: ShapePolicy = POLICY) -> tuple[list[int], list[tuple[int, int, int]]] | None:
    found = SharedPrefixes(policy, PAGE).find(rows, [each.request for each in rows])
    return None if found is None else (found.order, found.groups)


def test_rows_with_the_same_leading_pages_stand_together() -> None:
    rows = [
        row(0, [1, 2, 3, 10], 14),
        row(1, [7, 8, 20], 9),
        row(2, [1, 2, 3, 11], 13),
        row(3, [5, 6, 21], 10),
        row(4, [1, 2, 12, 13], 15),
        row(5, [7, 8, 22], 11),
    ]
    assert find(rows) == ([0, 2, 4, 1, 5, 3], [(0, 3, 8), (3, 5, 8)])


def test_the_groups_that_save_most_come_first_and_no_more_than_the_policy_allows() -> None:
    pairs = [row(slot, [first, first + 1, 50 + slot], 9) for slot, first in enumerate((1, 1, 11, 11, 21, 21, 21))]
    assert find(pairs) == ([4, 5, 6, 0, 1, 2, 3], [(0, 3, 8), (3, 5, 8)])


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([row(0, [1, 2, 3], 12)], "nobody shares with it"),
        ([row(0, [1, 2, 3], 12), row(1, [4, 2, 3], 12)], "pages stand for what is before them too"),
        ([row(0, [1, 2, 9], 12), row(1, [1, 3, 8], 12)], "one page is too little"),
        ([row(0, [1, 2, 3], 12), row(1, [1, 2, 4], 7)], "the second row is still within the second page"),
    ],
)
def test_what_is_not_worth_it_is_no_group(rows: list[ScheduledRow], why: str) -> None:
    assert find(rows) is None, why


def test_every_row_keeps_a_token_of_its_own() -> None:
    pages = [1, 2, 3]
    assert find([row(0, pages, 11), row(1, pages, 12)]) == ([0, 1], [(0, 2, 8)])
    assert find([row(0, pages, 12), row(1, pages, 12)]) == ([0, 1], [(0, 2, 12)])


def test_groups_are_looked_for_again_only_when_other_requests_decode() -> None:
    prefixes = SharedPrefixes(POLICY, PAGE)
    rows = [row(0, [1, 2, 3], 10), row(1, [1, 2, 4], 10)]
    requests = [each.request for each in rows]
    first = prefixes.find(rows, requests)
    assert first is not None
    assert prefixes.find(rows, list(requests)) is first
    assert prefixes.find([], []) is None
    rows[1].request.pages = [5, 6, 7]  # preempted, and admitted again since
    assert prefixes.find(rows, requests) is None


def build(rows: list[ScheduledRow], *, told: bool = True, prefill: ScheduledRow | None = None) -> StepBatch:
    policy = ShapePolicy(max_shared_groups=3, min_shared_rows=2, min_shared_tokens=4, row_buckets=(4,))
    builder = BatchBuilder(policy=policy, dummy_slot=9, page_size=PAGE, shared_prefixes=told)
    every = rows if prefill is None else [*rows, prefill]
    return builder.build(
        Schedule(
            0,
            every,
            num_tokens=sum(each.num_tokens for each in every),
            num_decode_rows=len(rows),
            num_samples=len(every),
        )
    )


def test_the_batch_tells_groups_among_padding_rows_and_padding_groups() -> None:
    rows = [row(0, [1, 2], 6), row(3, [8, 9], 5), row(1, [1, 3], 7)]
    batch = build(rows)
    assert batch.layout.shared_groups == 3
    assert batch.section("shared_rows").tolist() == [0, 2, 1, 3]
    assert batch.section("shared_groups").tolist() == [[0, 2, 4], [0, 0, 0], [0, 0, 0]]
    assert build(rows[:2]).layout.shared_groups == 0, "no group, no sections"
    assert build(rows, told=False).layout.shared_groups == 0, "the device reads no groups"


def test_decode_rows_beside_a_prompt_are_told_too() -> None:
    chunk = row(2, [1, 4], 4)
    chunk.num_tokens = 3
    batch = build([row(0, [1, 2], 6), row(1, [1, 3], 7)], prefill=chunk)
    assert batch.section("shared_groups").tolist()[0] == [0, 2, 4]
    assert batch.section("shared_rows").tolist() == [0, 1, 2, 3], "a row with several tokens is in no group"
