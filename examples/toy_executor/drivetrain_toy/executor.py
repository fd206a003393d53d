"""Steps of static shapes: request slots, pages, and tokens out.

S slots, P page-table columns, C slot columns, R rows, N lanes, Q queries a lane.
"""

from __future__ import annotations

from itertools import takewhile

import numpy as np

from drivetrain_plugins.contract.batch import NUM_SLOT_COLUMNS, StepBatch, StepOutput, Ticket
from drivetrain_plugins.contract.executor import Executor, ExecutorLimits, Progress, Weights
from drivetrain_plugins.contract.memory import MemoryPlan, kv_spec
from drivetrain_plugins.contract.model import DecoderSpec
from drivetrain_plugins.contract.shapes import ShapePolicy
from drivetrain_plugins.errors import OutOfMemory
from drivetrain_toy.decoder import Lanes, ToyDecoder
from drivetrain_toy.sampler import choose

DEFAULT_KV_BYTES = 256 << 20
_FEWEST_TOKENS = 16


def static_shapes(limits: ExecutorLimits) -> ShapePolicy:
    """Doubling buckets up to the limits, sealed: no step has another shape.

    A padded prompt takes two rows, one for its padding.
    """
    return ShapePolicy(
        mixed_steps=False,
        max_prefills_per_step=1,
        row_buckets=_doubling(1, max(2, limits.max_num_rows)),
        token_buckets=_doubling(_FEWEST_TOKENS, limits.max_step_tokens),
        page_buckets=_doubling(1, limits.max_pages),
        sealed=True,
    )


def _doubling(first: int, last: int) -> tuple[int, ...]:
    return (*takewhile(lambda size: size < last, (first << exponent for exponent in range(32))), last)


class ToyTicket:
    """A step that is over."""

    def __init__(self, output: StepOutput) -> None:
        self._output = output

    def ready(self) -> bool:
        """Always."""
        return True

    def wait(self) -> StepOutput:
        """The tokens."""
        return self._output


class ToyExecutor(Executor):
    """Runs whole steps and hands back tokens; nothing of a step is visible outside."""

    @property
    def shape_policy(self) -> ShapePolicy:
        return self._policy

    def load(self, spec: DecoderSpec, weights: Weights, limits: ExecutorLimits, progress: Progress) -> MemoryPlan:
        self._page_size = limits.page_size
        self._policy = static_shapes(limits)
        plan = _plan(spec, limits)
        progress("load", 0, weights.total_bytes, "bytes")
        self._decoder = ToyDecoder(spec, weights, num_slots=plan.num_pages * limits.page_size)
        progress("load", weights.total_bytes, weights.total_bytes, "bytes")
        slots = limits.max_num_rows + 1
        self._last_token_S = np.zeros(slots, np.int32)
        self._page_table_SP = np.zeros((slots, limits.max_pages), np.int64)
        self._params_SC = np.zeros((slots, NUM_SLOT_COLUMNS), np.int32)
        return plan

    def execute(self, batch: StepBatch) -> Ticket:
        self._require_static(batch)
        self._apply_differences(batch)
        lanes = self._lanes(batch)
        x_ND = self._decoder.forward(lanes).reshape(lanes.ids_NQ.size, -1)
        sampled = batch.section("sample_row")[: batch.num_samples]
        query_end_R = batch.section("query_start")[1:]
        slots_K = batch.section("row_slot")[sampled]
        lengths_K = batch.section("row_start")[sampled] + query_end_R[sampled] - batch.section("query_start")[sampled]
        logits_KV = self._decoder.logits(x_ND[query_end_R[sampled] - 1])
        ids_K = choose(logits_KV, self._params_SC[slots_K], lengths_K)
        self._last_token_S[slots_K] = ids_K
        return ToyTicket(StepOutput(token_ids=ids_K))

    def close(self) -> None:
        del self._decoder

    def _require_static(self, batch: StepBatch) -> None:
        """A device of static shapes has no program for any other; core must never ask for one."""
        policy, layout = self._policy, batch.layout
        tokens = policy.row_buckets if batch.max_query == 1 else policy.token_buckets
        if (
            layout.rows not in policy.row_buckets
            or layout.tokens not in tokens
            or batch.max_pages not in policy.page_buckets
        ):
            raise ValueError(
                f"a step of {layout.rows} rows, {layout.tokens} tokens and {batch.max_pages} pages has no static shape"
            )

    def _apply_differences(self, batch: StepBatch) -> None:
        if batch.page_copies is not None:
            offsets = np.arange(self._page_size)
            source, destination = (
                (pages[:, None] * self._page_size + offsets).ravel() for pages in batch.page_copies.T
            )
            self._decoder.copy_slots(source, destination)
        updates = batch.section("page_updates")
        self._page_table_SP[updates[:, 0], updates[:, 1]] = updates[:, 2]
        updates = batch.section("slot_updates")
        self._params_SC[updates[:, 0]] = updates[:, 1:]

    def _lanes(self, batch: StepBatch) -> Lanes:
        """A lane a row with one token each, or one lane that holds the only prompt and its padding."""
        if batch.max_query == 1:
            slots_N, starts_N = batch.section("row_slot"), batch.section("row_start")
            ids_NQ = batch.section("token_ids")[:, None]
        else:
            slots_N, starts_N = batch.section("row_slot")[:1], batch.section("row_start")[:1]
            ids_NQ = batch.section("token_ids")[None, :]
        positions_NQ = starts_N[:, None] + np.arange(ids_NQ.shape[1], dtype=np.int64)
        offsets = np.arange(self._page_size)
        pages_NP = self._page_table_SP[slots_N, : batch.max_pages]
        read_NL = (pages_NP[:, :, None] * self._page_size + offsets).reshape(len(slots_N), -1)
        write_NQ = np.zeros_like(positions_NQ)
        # Padding writes to the null page.
        real = (np.arange(batch.layout.tokens) < batch.num_tokens).reshape(ids_NQ.shape)
        write_NQ[real] = np.take_along_axis(read_NL, np.where(real, positions_NQ, 0), axis=1)[real]
        ids_NQ = np.where(ids_NQ < 0, self._last_token_S[slots_N][:, None], ids_NQ).astype(np.int64)
        return Lanes(ids_NQ=ids_NQ, positions_NQ=positions_NQ, write_NQ=write_NQ, read_NL=read_NL)


def _plan(spec: DecoderSpec, limits: ExecutorLimits) -> MemoryPlan:
    page_bytes = kv_spec(spec, "float32", limits.page_size).page_bytes
    allowed = limits.memory.kv_bytes or DEFAULT_KV_BYTES
    num_pages = min(limits.memory.max_pages, allowed // page_bytes)
    if num_pages < 2:
        raise OutOfMemory(f"{allowed:,} bytes hold {num_pages} pages of {page_bytes:,}; allow at least 2")
    return MemoryPlan(num_pages=num_pages, kv_bytes=num_pages * page_bytes)
