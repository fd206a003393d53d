"""The packed batch of a step: where each number stands, how it is padded, and what the sampler is told."""

from __future__ import annotations

import struct
from array import array

import numpy as np
import pytest

from drivetrain.batch import BatchBuilder
from drivetrain.batch_sampling import slot_row
from drivetrain.logprobs import prompt_logprob_span
from drivetrain.request import Request
from drivetrain.sampling import SamplingParams
from drivetrain.scheduler import Schedule, ScheduledRow
from drivetrain_plugins.contract.batch import LAST_TOKEN, NULL_PAGE, NUM_SLOT_COLUMNS, BatchLayout, StepBatch
from drivetrain_plugins.contract.shapes import ShapePolicy

DUMMY = 8
EOS = frozenset({1, 2})
FORBIDDEN = float("-inf")


def request_of(
    prompt: list[int], outputs: list[int] | None = None, *, bad_words: object = (), **params: object
) -> Request:
    request = Request(
        request_id="r",
        prompt_ids=array("i", prompt),
        params=SamplingParams(**({"temperature": 0.0} | params)),  # type: ignore[arg-type]
        arrival_s=0.0,
        eos_ids=EOS,
        max_total=64,
        seed=(7 << 32) + 5,
        bad_word_ids=bad_words,  # type: ignore[arg-type]
    )
    request.tokens.extend(outputs or [])
    request.pages = [11, 12, 13, 14]
    return request


def decode(request: Request, slot: int, *, unknown: int = 0, **fields: object) -> ScheduledRow:
    """The row that computes a request's newest token; `unknown` of its tokens are on the device only."""
    return ScheduledRow(request, slot, len(request.tokens) - 1 + unknown, **fields)  # type: ignore[arg-type]


def build(rows: list[ScheduledRow], policy: ShapePolicy | None = None, copies: object = ()) -> StepBatch:
    decodes = next((at for at, row in enumerate(rows) if row.num_tokens > 1), len(rows))
    schedule = Schedule(
        5,
        rows,
        list(copies),  # type: ignore[call-overload]
        num_tokens=sum(row.num_tokens for row in rows),
        num_decode_rows=decodes,
        num_samples=sum(row.samples for row in rows),
    )
    return BatchBuilder(policy=policy or ShapePolicy(), dummy_slot=DUMMY, page_size=4).build(schedule)


def biases_of(batch: StepBatch) -> set[tuple[int, int, float, int]]:
    return {
        (row, token, struct.unpack("=f", struct.pack("=i", bits))[0], last)
        for row, token, bits, last in batch.section("biases").tolist()
    }


def test_sections_follow_each_other_and_fill_the_buffer() -> None:
    layout = BatchLayout(rows=2, tokens=5, samples=3, page_updates=4, slot_updates=1, biases=2)
    names = [name for name, _, _ in layout.sections]
    assert names[0] == "row_slot" and names[-1] == "biases", "graphs read biases from behind the rest"
    end = 0
    for _, offset, length in layout.sections:
        assert offset == end
        end += length
    assert layout.size == end == 2 + 2 + 3 + 5 + 5 + 3 + 4 * 3 + (1 + NUM_SLOT_COLUMNS) + 2 * 4


def test_a_mixed_step_lists_decode_rows_then_chunks() -> None:
    decoding = request_of([20, 21, 22], [30, 31])
    prefilling = request_of([40, 41, 42, 43, 44, 45])
    batch = build(
        [
            decode(decoding, 3),
            ScheduledRow(prefilling, 0, 2, 3, False),
        ]
    )
    assert batch.section("row_slot").tolist() == [3, 0]
    assert batch.section("row_start").tolist() == [4, 2]
    assert batch.section("query_start").tolist() == [0, 1, 4]
    assert batch.section("token_ids").tolist() == [31, 42, 43, 44]
    assert batch.section("token_row").tolist() == [0, 1, 1, 1]
    assert batch.section("sample_row").tolist() == [0]
    assert (batch.step_id, batch.num_rows, batch.num_tokens, batch.num_decode_rows, batch.num_samples) == (
        5,
        2,
        4,
        1,
        1,
    )
    assert (batch.max_query, batch.max_kv, batch.max_pages) == (3, 5, 2)
    assert not batch.decode_only
    assert batch.packed.dtype == np.int32


def test_a_step_without_samples_still_has_one_row_to_gather() -> None:
    batch = build([ScheduledRow(request_of([20, 21, 22]), 0, 0, 2, False)])
    assert (batch.num_samples, batch.layout.samples) == (0, 1)
    assert batch.section("sample_row").tolist() == [0]


def test_tokens_that_only_the_device_knows_are_taken_from_its_slot() -> None:
    known, ahead = request_of([20, 21], [30]), request_of([40, 41], [50])
    batch = build([decode(known, 0), decode(ahead, 1, unknown=1)])
    assert batch.section("token_ids").tolist() == [30, LAST_TOKEN]
    assert batch.section("row_start").tolist() == [2, 3]


def test_a_resumed_prompt_ends_in_a_token_that_only_the_device_knows() -> None:
    resumed = request_of([20, 21, 22], [30])
    batch = build([ScheduledRow(resumed, 0, 1, 4)])
    assert batch.section("token_ids").tolist() == [21, 22, 30, LAST_TOKEN]


def test_decode_steps_are_padded_to_their_bucket() -> None:
    policy = ShapePolicy(row_buckets=(1, 4), page_buckets=(2, 8))
    rows = [decode(request_of([20, 21, 22, 23], [30]), slot) for slot in range(3)]
    batch = build(rows, policy)
    assert (batch.layout.rows, batch.layout.tokens, batch.num_rows, batch.max_pages) == (4, 4, 3, 2)
    assert batch.section("row_slot").tolist() == [0, 1, 2, DUMMY]
    assert batch.section("row_start").tolist() == [4, 4, 4, 0]
    assert batch.section("query_start").tolist() == [0, 1, 2, 3, 4]
    assert batch.section("token_ids").tolist() == [30, 30, 30, 0]
    assert not batch.captured


def test_padding_tokens_belong_to_a_padding_row() -> None:
    batch = build(
        [ScheduledRow(request_of([20, 21, 22, 23, 24]), 0, 0, 5)], ShapePolicy(token_buckets=(8,), row_buckets=(1, 2))
    )
    assert (batch.layout.rows, batch.layout.tokens) == (2, 8)
    assert batch.section("row_slot").tolist() == [0, DUMMY]
    assert batch.section("query_start").tolist() == [0, 5, 8]
    assert batch.section("token_row").tolist() == [0, 0, 0, 0, 0, 1, 1, 1]
    assert batch.section("token_ids").tolist() == [20, 21, 22, 23, 24, 0, 0, 0]


def test_a_sealed_policy_refuses_what_its_buckets_do_not_hold() -> None:
    rows = [decode(request_of([20]), slot) for slot in range(3)]
    with pytest.raises(ValueError, match="3 rows exceeds the largest bucket 2"):
        build(rows, ShapePolicy(row_buckets=(1, 2), sealed=True))


def test_captured_steps_have_sections_of_fixed_size() -> None:
    policy = ShapePolicy(row_buckets=(4,), max_captured_rows=4)
    rows = [decode(request_of([20, 21], [30]), 0, first_new_page=2, num_new_pages=1), decode(request_of([22]), 5)]
    batch = build(rows, policy)
    assert batch.captured
    assert batch.layout == BatchLayout(rows=4, tokens=4, samples=4, page_updates=4)
    assert batch.section("sample_row").tolist() == [0, 1, 2, 3], "a captured decode step samples every row in order"
    assert batch.section("page_updates").tolist() == [[0, 2, 13], *[[DUMMY, 0, NULL_PAGE]] * 3]


def test_captured_decode_steps_have_two_sizes_of_page_updates_and_room_for_admissions() -> None:
    policy = ShapePolicy(row_buckets=(2,), max_captured_rows=2)
    assert build([decode(request_of([20, 21]), 0)], policy).layout == BatchLayout(
        rows=2, tokens=2, samples=2, page_updates=2
    )
    many = build([decode(request_of([20, 21]), 0, num_new_pages=4)], policy)
    assert many.captured and many.layout.page_updates == 16
    admitted = build([decode(request_of([20, 21]), 1, admitted=True)], policy)
    assert admitted.captured and admitted.layout.slot_updates == 2
    assert admitted.section("slot_updates")[:, 0].tolist() == [1, DUMMY]


def test_what_does_not_fit_into_a_captured_step_runs_uncaptured() -> None:
    policy = ShapePolicy(row_buckets=(2,), max_captured_rows=2)
    long = request_of([20, 21])
    long.pages = list(range(11, 30))
    batch = build([decode(long, 0, num_new_pages=17)], policy)
    assert not batch.captured and batch.layout.page_updates == 17
    partly = [decode(request_of([20, 21]), 0), ScheduledRow(request_of([30, 31, 32]), 1, 1, 1, False)]
    assert not build(partly, policy).captured, "a captured decode step would sample the second row too"


def test_captured_steps_with_prefill_have_sections_of_fixed_size() -> None:
    policy = ShapePolicy(row_buckets=(4,), token_buckets=(8,), max_captured_rows=4, max_captured_tokens=8)
    rows = [decode(request_of([20, 21], [30]), 3), ScheduledRow(request_of([40, 41, 42]), 0, 0, 3, True, 0, 1, True)]
    batch = build(rows, policy)
    assert batch.captured and not batch.decode_only
    assert batch.layout == BatchLayout(rows=4, tokens=8, samples=4, page_updates=6, slot_updates=4)
    assert batch.section("row_slot").tolist() == [3, 0, DUMMY, DUMMY]
    assert batch.section("query_start").tolist() == [0, 1, 4, 8, 8]
    assert batch.section("token_row").tolist() == [0, 1, 1, 1, 2, 2, 2, 2]
    assert batch.section("sample_row").tolist() == [0, 1, 3, 3]
    assert batch.section("slot_updates")[:, 0].tolist() == [0, DUMMY, DUMMY, DUMMY]


def test_padding_samples_never_belong_to_a_request() -> None:
    policy = ShapePolicy(row_buckets=(2, 4), token_buckets=(4,), max_captured_tokens=4)
    rows = [decode(request_of([20, 21]), 0), ScheduledRow(request_of([40, 41, 42, 43]), 1, 0, 3, False)]
    batch = build(rows, policy)
    assert batch.captured and batch.layout.rows == 4, "one row more than there are requests"
    assert batch.section("sample_row").tolist() == [0, 3, 3, 3]
    assert batch.section("row_slot").tolist()[3] == DUMMY
    scored = [rows[0], ScheduledRow(request_of([40, 41, 42, 43], prompt_logprobs=0), 1, 0, 3, False)]
    assert not build(scored, policy).captured, "scores need the states of all tokens"


def test_a_step_that_follows_its_like_tells_only_what_moved() -> None:
    builder = BatchBuilder(policy=ShapePolicy(), dummy_slot=DUMMY, page_size=4)

    def step(rows: list[ScheduledRow]) -> StepBatch:
        return builder.build(Schedule(0, rows, num_tokens=len(rows), num_decode_rows=len(rows), num_samples=len(rows)))

    first, second = request_of([20, 21], [30]), request_of([22], temperature=1.0)
    step([decode(first, 3), decode(second, 1)])
    ahead = step([decode(first, 3, unknown=1, first_new_page=1, num_new_pages=1), decode(second, 1, unknown=1)])
    assert ahead.section("row_slot").tolist() == [3, 1]
    assert ahead.section("row_start").tolist() == [3, 1]
    assert ahead.section("token_ids").tolist() == [LAST_TOKEN, LAST_TOKEN]
    assert ahead.section("page_updates").tolist() == [[3, 1, 12]]
    assert (ahead.max_kv, ahead.features.random) == (4, True)
    alone = step([decode(first, 3, unknown=2)])
    assert (alone.section("row_start").tolist(), alone.max_kv, alone.features.random) == ([4], 5, False)


def test_new_pages_and_copies_are_listed() -> None:
    rows = [ScheduledRow(request_of(list(range(20, 30))), 6, 0, 10, True, 0, 3, True)]
    batch = build(rows, copies=[(4, 9), (5, 10)])
    assert batch.section("page_updates").tolist() == [[6, 0, 11], [6, 1, 12], [6, 2, 13]]
    assert batch.page_copies is not None
    assert batch.page_copies.tolist() == [[4, 9], [5, 10]]
    assert build([decode(request_of([20]), 0)]).page_copies is None


def test_slots_carry_parameters_in_the_order_of_the_contract() -> None:
    params = SamplingParams(
        temperature=0.5,
        top_p=0.25,
        min_p=0.125,
        presence_penalty=1.0,
        frequency_penalty=-1.5,
        repetition_penalty=2.0,
        top_k=-1,
    )
    row = np.frombuffer(slot_row(3, params, 0xFFFF_FFFF_0000_0009), np.int32)
    assert row[0] == 3
    assert row[1:7].view(np.float32).tolist() == [0.5, 0.25, 0.125, 1.0, -1.5, 2.0]
    assert row[7:].tolist() == [0, 9, -1]
    batch = build([decode(request_of([20], top_k=40, temperature=1.0), 4, admitted=True)])
    (update,) = batch.section("slot_updates").tolist()
    assert (update[0], *update[-3:]) == (4, 40, 5, 7)


def test_only_new_penalised_slots_bring_their_history() -> None:
    penalised = request_of([20, 21], [30], presence_penalty=1.0)
    assert build([decode(penalised, 2)]).history is None
    batch = build([decode(request_of([20]), 1, admitted=True), decode(penalised, 2, admitted=True)])
    assert batch.cleared == (2,)
    assert batch.history is not None
    assert batch.history.tolist() == [[2, 20, 0], [2, 21, 0], [2, 30, 1]]


@pytest.mark.parametrize(
    ("params", "changed"),
    [
        ({}, {}),
        ({"temperature": 1.0}, {"random": True}),
        ({"temperature": 1.0, "top_p": 0.5}, {"random": True, "filters": True}),
        ({"temperature": 1.0, "top_k": 5}, {"random": True, "filters": True}),
        ({"temperature": 0.0, "top_k": 5}, {}),
        ({"frequency_penalty": 0.5}, {"penalties": True}),
        ({"logit_bias": {4: 1.0}}, {"biases": True}),
        ({"bad_words": ((9,),)}, {"biases": True}),
        ({"logprobs": 3}, {"logprobs": 3}),
        ({"logprobs": 0}, {"logprobs": 0}),
    ],
)
def test_the_sampler_is_told_what_its_rows_need(params: dict[str, object], changed: dict[str, object]) -> None:
    plain = {"random": False, "filters": False, "penalties": False, "biases": False, "logprobs": -1}
    features = build([decode(request_of([20]), 0), decode(request_of([21], **params), 1)]).features
    assert {name: getattr(features, name) for name in plain} == plain | changed


def test_rows_that_do_not_sample_ask_nothing_of_the_sampler() -> None:
    chunk = ScheduledRow(request_of([20, 21, 22], temperature=1.0, logit_bias={4: 1.0}), 0, 0, 2, False)
    batch = build([decode(request_of([20]), 1), chunk])
    assert not batch.features.random
    assert batch.layout.biases == 0


def test_biases_are_those_of_the_sampled_rows_in_their_order() -> None:
    chunk = ScheduledRow(request_of([20, 21, 22]), 0, 0, 2, False)
    sampled = ScheduledRow(request_of([20, 21], logit_bias={7: 1.5, 9: -2.0}), 3, 0, 2)
    assert biases_of(build([chunk, sampled])) == {(0, 7, 1.5, -1), (0, 9, -2.0, -1)}


def test_end_tokens_are_forbidden_below_the_minimum_and_no_further() -> None:
    def banned(outputs: list[int], unknown: int = 0) -> set[int]:
        request = request_of([20, 21], outputs, min_tokens=2, logit_bias={1: 5.0, 6: 3.0})
        batch = build([decode(request, 0, unknown=unknown)])
        return {token for _, token, value, _ in biases_of(batch) if value == FORBIDDEN}

    assert banned([]) == EOS
    assert banned([30]) == EOS
    assert banned([30], unknown=1) == set()
    assert banned([30, 31]) == set()


def test_a_bias_does_not_weaken_what_is_forbidden() -> None:
    request = request_of([20], min_tokens=1, logit_bias={1: 5.0, 6: 3.0})
    assert biases_of(build([decode(request, 0)])) == {(0, 1, FORBIDDEN, -1), (0, 2, FORBIDDEN, -1), (0, 6, 3.0, -1)}


WORDS = ((9,), (30, 31), (30, 31, 32))


@pytest.mark.parametrize(
    ("outputs", "unknown", "expected"),
    [
        ([], 0, {(9, -1)}),
        ([30], 0, {(9, -1), (31, -1)}),
        ([30, 31], 0, {(9, -1), (32, -1)}),
        ([31], 0, {(9, -1)}),
        ([], 1, {(9, -1), (31, 30)}),
        ([30], 1, {(9, -1), (31, 30), (32, 31)}),
        ([31], 1, {(9, -1), (31, 30)}),
    ],
)
def test_bad_words_are_forbidden_where_they_would_be_completed(
    outputs: list[int], unknown: int, expected: set[tuple[int, int]]
) -> None:
    """A token that is still on the device is compared there: the condition is the id that it must have."""
    request = request_of([30, 30], outputs, bad_words=WORDS)
    batch = build([decode(request, 0, unknown=unknown)])
    assert {(token, last) for _, token, value, last in biases_of(batch) if value == FORBIDDEN} == expected


def test_bad_words_count_in_the_answer_only() -> None:
    request = request_of([30], bad_words=((30, 31),))
    assert build([decode(request, 0)]).layout.biases == 0


@pytest.mark.parametrize(
    ("start", "num_tokens", "span"), [(0, 2, (0, 2)), (2, 3, (2, 4)), (2, 2, (2, 4)), (4, 1, None), (5, 1, None)]
)
def test_prompt_scores_cover_each_token_but_the_first_once(
    start: int, num_tokens: int, span: tuple[int, int] | None
) -> None:
    request = request_of([20, 21, 22, 23, 24], [30], prompt_logprobs=1)
    assert prompt_logprob_span(ScheduledRow(request, 0, start, num_tokens)) == span
    assert prompt_logprob_span(ScheduledRow(request_of([20, 21]), 0, 0, 2)) is None


def test_scored_positions_are_those_of_the_step_and_targets_follow_them() -> None:
    scored = request_of([20, 21, 22, 23, 24], prompt_logprobs=3)
    other = request_of([40, 41, 42], prompt_logprobs=5)
    batch = build(
        [decode(request_of([20], [30]), 0), ScheduledRow(scored, 1, 1, 3, False), ScheduledRow(other, 2, 0, 3)]
    )
    assert batch.prompt_logprobs is not None
    assert batch.prompt_logprobs.tokens.tolist() == [1, 2, 3, 4, 5]
    assert batch.prompt_logprobs.targets.tolist() == [22, 23, 24, 41, 42]
    assert batch.prompt_logprobs.top == 5
    assert build([decode(request_of([20]), 0)]).prompt_logprobs is None
