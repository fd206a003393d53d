"""Paged attention against dense float64, over random ragged steps on scrambled, poisoned pages."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch

from drivetrain_plugins.conformance.batches import Packing, Row, pack, padded_shape
from drivetrain_plugins.conformance.check import check, need
from drivetrain_plugins.conformance.paged_rows import Kind, PagedRows
from drivetrain_plugins.conformance.subject import Subject
from drivetrain_plugins.contract.batch import NULL_PAGE, BatchLayout, Int32Array, unpack
from drivetrain_plugins.contract.capabilities import AttentionFeature, Dtype, KVDtype
from drivetrain_plugins.contract.executor import ExecutorLimits
from drivetrain_plugins.contract.memory import MemoryLimits
from drivetrain_plugins.contract.model import AttentionSpec, NormSpec, QKNormSpec, RotarySpec
from drivetrain_plugins.contract.shapes import ShapePolicy, StepShape

_NORM = NormSpec(kind="rms", eps=1e-6)
_PAGE_UPDATES = 16
_EIGHT_BITS: tuple[KVDtype, ...] = ("fp8_e4m3", "fp8_e5m2")
_PADDING = ShapePolicy(row_buckets=(3, 7, 11), token_buckets=(8, 32, 128, 512))


def _spec(heads: int = 4, kv_heads: int = 2, size: int = 64) -> AttentionSpec:
    return AttentionSpec(num_heads=heads, num_kv_heads=kv_heads, head_dim=size, scale=size**-0.5)


def _kind(subject: Subject, spec: AttentionSpec, dtype: Dtype | None = None, page_size: int | None = None) -> Kind:
    capabilities = subject.capabilities
    chosen = dtype or capabilities.dtypes[0]
    kv_dtype = chosen if chosen in capabilities.kv_dtypes else capabilities.kv_dtypes[0]
    return Kind(spec=spec, dtype=chosen, kv_dtype=kv_dtype, page_size=page_size or min(capabilities.page_sizes))


def _limits(kind: Kind) -> ExecutorLimits:
    return ExecutorLimits(
        dtype=kind.dtype,
        kv_dtype=kind.kv_dtype,
        max_num_rows=8,
        max_step_tokens=16 * kind.page_size,
        max_model_len=16 * kind.page_size,
        page_size=kind.page_size,
        memory=MemoryLimits(max_pages=40),
    )


@contextmanager
def _rows(subject: Subject, kind: Kind, *, num_slots: int = 8, num_pages: int = 40) -> Generator[PagedRows]:
    rows = PagedRows(subject, kind, num_slots=num_slots, num_pages=num_pages)
    yield rows
    rows.close()


def _life(rows: PagedRows, *, policy: ShapePolicy | None = None) -> None:
    """A few steps that meet every edge: length 1, page and page +-1, chunks, decode, mixed, pages used again."""
    page, pick = rows.page_size, rows.subject.pick
    step = [(0, 1), (1, page - 1), (2, page), (3, page + 1), (4, 2 * page), (5, pick(2, 3 * page))]
    rows.step(step, policy=policy)
    rows.step([(slot, 1) for slot in range(6)], policy=policy)
    rows.step([(0, 1), (2, 1), (5, 1), (6, pick(2, page)), (1, page)], policy=policy)
    rows.drop(4)
    rows.drop(2)
    rows.step([(6, page + 1), (7, pick(page, 4 * page)), (2, 2)], policy=policy)
    rows.step([(slot, 1) for slot in (7, 0, 3, 6, 2)], policy=policy)


def _each_dtype(subject: Subject, spec: AttentionSpec, live: Callable[[PagedRows], None] = _life) -> None:
    for dtype in subject.dtypes:
        with _rows(subject, _kind(subject, spec, dtype)) as rows:
            live(rows)


def _claimed(subject: Subject, feature: AttentionFeature) -> None:
    need(feature in subject.parts.capabilities.attention, f"capabilities.attention lacks {feature!r}")


@check()
def grouped_heads_match_the_dense_truth(subject: Subject) -> None:
    """Causal attention in every activation type, with two query heads a key head."""
    _each_dtype(subject, _spec())


@check()
def every_group_size_is_served(subject: Subject) -> None:
    """One query head a key head, three (no power of two), and all on one key head."""
    for heads, kv_heads in ((2, 2), (6, 2), (5, 1)):
        with _rows(subject, _kind(subject, _spec(heads, kv_heads, 32))) as rows:
            _life(rows)


@check()
def head_sizes_up_to_the_claimed_one_are_served(subject: Subject) -> None:
    """Sizes of real models, those that are no power of two too."""
    largest = subject.parts.capabilities.max_head_dim
    sizes = [size for size in (64, 80, 96, 128, 192, 256) if size <= largest]
    for size in {largest, sizes[subject.pick(0, len(sizes))], *(size for size in (80,) if size <= largest)}:
        with _rows(subject, _kind(subject, _spec(2, 1, size))) as rows:
            _life(rows)


@check()
def every_page_size_is_served(subject: Subject) -> None:
    """Pages of every claimed size."""
    for page_size in subject.parts.capabilities.page_sizes:
        with _rows(subject, _kind(subject, _spec(2, 1, 32), page_size=page_size)) as rows:
            _life(rows)


@check()
def every_kv_type_is_served(subject: Subject) -> None:
    """Storage types that differ from the activation type are rounded to on writing."""
    _each_kv_dtype(subject, [x for x in subject.parts.capabilities.kv_dtypes if x not in _EIGHT_BITS])


@check("quantized")
def pages_of_eight_bits_are_rounded_as_claimed(subject: Subject) -> None:
    """Pages of every claimed fp8 type hold what that type can, in the device's own encoding."""
    eight_bits: list[KVDtype] = [x for x in subject.parts.capabilities.kv_dtypes if x in _EIGHT_BITS]
    need(bool(eight_bits), "capabilities.kv_dtypes has no type of eight bits")
    _each_kv_dtype(subject, eight_bits)


def _each_kv_dtype(subject: Subject, kv_dtypes: Sequence[KVDtype]) -> None:
    kind = _kind(subject, _spec(), subject.parts.capabilities.dtypes[0])
    for kv_dtype in kv_dtypes:
        with _rows(subject, replace(kind, kv_dtype=kv_dtype)) as rows:
            _life(rows)


@check()
def padded_steps_keep_the_truth(subject: Subject) -> None:
    """Padding rows and tokens change nothing, stay finite, and write no page but the null page."""
    _each_dtype(subject, _spec(), lambda rows: _life(rows, policy=_PADDING))


@check()
def a_padded_prompt_is_no_decode_step(subject: Subject) -> None:
    """Rows and tokens may be padded to the same number although some row has several tokens."""
    with _rows(subject, _kind(subject, _spec())) as rows:
        policy = ShapePolicy(row_buckets=(8,), token_buckets=(8,))
        rows.step([(0, 4), (1, 2)], policy=policy)
        rows.step([(0, 1), (1, 3), (2, 2)], policy=policy)


@check()
def the_device_s_own_shapes_keep_the_truth(subject: Subject) -> None:
    """Steps padded as `shape_policy` wants them."""
    kind = _kind(subject, _spec())
    with _rows(subject, kind) as rows:
        _life(rows, policy=subject.parts.shape_policy(_limits(kind)))


@check()
def one_long_row_beside_short_ones(subject: Subject) -> None:
    """Splits of a long row are merged rightly, and short rows beside it have empty splits."""
    with _rows(subject, _kind(subject, _spec(4, 1, 64)), num_pages=72) as rows:
        page = rows.page_size
        rows.step([(0, 50 * page + 3), (1, 1), (2, page + 1)])
        for _ in range(2):
            rows.step([(0, 1), (1, 1), (2, 1)])
        rows.step([(1, 1), (0, page // 2 + 1)])


@check()
def large_scores_do_not_overflow(subject: Subject) -> None:
    """The softmax subtracts its maximum: projections twenty times as large stay finite and right."""
    with _rows(subject, _kind(subject, _spec(2, 1, 64), "float32" if "float32" in subject.dtypes else None)) as rows:
        rows.step([(0, rows.page_size + 3), (1, 2)], scale=20.0)
        rows.step([(0, 1), (1, 1)], scale=20.0)


@check()
def queries_and_keys_are_normed_and_rotated(subject: Subject) -> None:
    """Clamp, q/k norm of each span and both rotary styles, whole and partial heads."""
    half, whole = RotarySpec(dim=32, base=1e4), RotarySpec(dim=64, base=1e4)
    variants = (
        replace(_spec(), rotary=whole, qk_norm=QKNormSpec(norm=_NORM, span="head")),
        replace(_spec(), rotary=half, qk_norm=QKNormSpec(norm=_NORM, span="full")),
        replace(_spec(), rotary=replace(whole, style="interleaved"), qk_norm=QKNormSpec(norm=_NORM, span="heads")),
        replace(_spec(), rotary=replace(half, style="interleaved"), clip_qkv=1.0),
        replace(_spec(), qk_norm=QKNormSpec(norm=_NORM)),
    )
    for dtype in subject.dtypes:
        for spec in variants:
            with _rows(subject, _kind(subject, spec, dtype), num_pages=16) as rows:
                rows.step([(0, rows.page_size + 2), (1, 3)])
                rows.step([(0, 1), (1, 2)])


@check()
def windows_end_where_they_should(subject: Subject) -> None:
    """A token sees itself and window - 1 before it; windows shorter than, equal to and longer than a page."""
    _claimed(subject, "window")
    page = min(subject.capabilities.page_sizes)
    for window in (1, 5, page, page + 3):
        with _rows(subject, _kind(subject, replace(_spec(), window=window))) as rows:
            _life(rows)
    _each_dtype(subject, replace(_spec(), window=page - 1))


@check()
def soft_caps_bend_scores(subject: Subject) -> None:
    """Scores become cap * tanh(score / cap); with a window as in Gemma 2 where both are claimed."""
    _claimed(subject, "soft_cap")
    _each_dtype(subject, replace(_spec(), soft_cap=1.5))
    if "window" in subject.capabilities.attention:
        _each_dtype(subject, replace(_spec(), soft_cap=2.0, window=7))


@check()
def sinks_join_the_denominator(subject: Subject) -> None:
    """One logit a query head; with a window as in gpt-oss where both are claimed."""
    _claimed(subject, "sinks")
    _each_dtype(subject, replace(_spec(), sinks=True))
    if "window" in subject.capabilities.attention:
        _each_dtype(subject, replace(_spec(), sinks=True, window=9))


@check()
def alibi_slopes_bias_scores(subject: Subject) -> None:
    """slope * (key position - query position), by query head."""
    _claimed(subject, "alibi")
    _each_dtype(subject, replace(_spec(), alibi_slopes=(0.5, 0.25, 0.125, 0.0625)))


@check()
def shared_prefixes_are_read_through_their_groups(subject: Subject) -> None:
    """Decode rows in groups with a common prefix, beside rows in none, padding rows and padding groups."""
    _claimed(subject, "cascade")
    padding = ShapePolicy(row_buckets=(8, 11), token_buckets=(16, 64))

    def live(rows: PagedRows) -> None:
        page = rows.page_size
        rows.step([(0, 3 * page + 2), (1, page + 1), (2, 5)])
        for slot, pages in ((3, 3), (4, 3), (5, 2)):
            rows.share(0, slot, pages)
        rows.share(1, 6, 1)
        rows.step([(3, 2), (4, page), (5, page + 1), (6, 1)])
        decoding = [(slot, 1) for slot in (3, 1, 0, 2, 4, 6, 5)]
        rows.step(decoding, groups=[((0, 2, 4, 6), 2), ((1, 5), 1)], padded_groups=4, policy=padding)
        rows.step(decoding, groups=[((4, 2, 0), 3)], padded_groups=1, policy=padding)
        rows.step([(0, 1), (3, 1), (4, 1), (7, page + 3)], groups=[((0, 1, 2), 3)], padded_groups=2, policy=padding)

    _each_dtype(subject, _spec(), live)
    _each_dtype(subject, _spec(6, 1, 32), live)
    if "window" in subject.capabilities.attention:
        _each_dtype(subject, replace(_spec(), window=min(subject.capabilities.page_sizes) + 3), live)


@check("graphs")
def blind_plans_fit_every_mixed_batch_of_their_shape(subject: Subject) -> None:
    """A captured step with prefill, planned without the host's view, is replayed on other batches of its shape."""
    limits = _limits(_kind(subject, _spec()))
    need(subject.parts.shape_policy(limits).max_captured_tokens > 0, "shape_policy captures no steps with prefill")
    kind = _kind(subject, _spec())
    with _rows(subject, kind) as rows:
        page = rows.page_size
        rows.step([(0, 3), (1, page), (2, 2 * page - 1), (3, 1)])
        tokens = 2 * page
        shape = StepShape(rows=5, tokens=tokens, pages=8, captured=True)
        policy = ShapePolicy(row_buckets=(5,), token_buckets=(tokens,), page_buckets=(8,))
        mixes = ([(0, 1), (1, page + 1)], [(2, 1), (3, 1), (0, 5), (1, 2)], [(1, page - 1)], [(0, 1), (3, page + 3)])
        _replay(rows, shape, policy, [list(mix) for mix in mixes])


@check("graphs")
def blind_plans_fit_every_batch_of_their_shape(subject: Subject) -> None:
    """A captured step, planned without the host's view, is replayed on other batches of its shape."""
    need(subject.parts.capabilities.graphs, "capabilities.graphs is False")
    kind = _kind(subject, _spec())
    with _rows(subject, kind) as rows:
        page = rows.page_size
        rows.step([(0, 3), (1, page), (2, 2 * page - 1), (3, 1)])
        shape = StepShape(rows=5, tokens=5, pages=8, decode_only=True, captured=True)
        policy = ShapePolicy(row_buckets=(5,), page_buckets=(8,), max_captured_rows=5)
        batches = ((0, 1, 2, 3), (2, 0), (3, 1, 0), (2, 1, 0, 3))
        _replay(rows, shape, policy, [[(slot, 1) for slot in slots] for slots in batches])


def _replay(rows: PagedRows, shape: StepShape, policy: ShapePolicy, steps: Sequence[list[tuple[int, int]]]) -> None:
    """Capture a shape on padding alone, then judge its replays on (slot, new tokens) steps."""
    subject, page, dummy = rows.subject, rows.page_size, rows.slots.dummy_slot
    packing = Packing(page_size=page, dummy_slot=dummy)
    layout = BatchLayout(rows=shape.rows, tokens=shape.tokens, samples=shape.rows, page_updates=_PAGE_UPDATES)

    def packed_rows(wanted: list[Row]) -> Int32Array:
        padded = pack(wanted, replace(padded_shape(wanted, policy, page), captured=False), packing)
        told = np.zeros(layout.size, np.int32)
        sections = unpack(told, layout)
        for name, source in unpack(padded.packed, padded.layout).items():
            if name in ("page_updates", "sample_row", "slot_updates"):
                continue
            sections[name][:] = source
        sections["page_updates"][:] = (dummy, 0, NULL_PAGE)
        updates = padded.section("page_updates")
        sections["page_updates"][: len(updates)] = updates
        return told

    empty = Row(slot=dummy, start=0, ids=[0] * (shape.tokens // shape.rows))
    packed = torch.zeros(layout.size, dtype=torch.int32, device=rows.device.torch_device)
    qkv_TX = subject.put(rows.projections(shape.tokens))
    made: list[torch.Tensor] = []

    def step() -> None:
        made.append(rows.captured(packed, layout, shape, qkv_TX))

    subject.stage(packed_rows([empty]), packed)
    step()
    replay = rows.device.runtime.capture(step)
    for todo in steps:
        subject.stage(packed_rows(rows.rows(todo)), packed)
        fresh = rows.projections(shape.tokens)
        qkv_TX.copy_(fresh)
        replay()
        rows.judge(subject.get(made[-1]), rows.take(fresh, todo), what=f"{rows.kind}: replayed rows {todo}")
