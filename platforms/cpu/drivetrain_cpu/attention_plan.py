"""What one step's attention needs to know about its rows, worked out once and shared by all layers.

Rows with similar numbers of queries and keys form a group, which is padded to its longest row and attended as one.

R rows, n rows of a group, Q queries a row, L keys a row, G key-value heads.
"""

# Relaxed: torch's stubs leave methods untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from drivetrain_plugins.contract.attention import RotaryTable
from drivetrain_plugins.contract.slots import StepInputs

Array = npt.NDArray[np.int64]
Angles = tuple[torch.Tensor, torch.Tensor]

GATHERED_BYTES = 64 << 20
"""Most bytes of keys and values that one group copies out of its pages."""
BLOCK_SCORES = 2 << 20
"""Most scores that one block of queries makes, all heads together."""
MAX_BLOCK_QUERIES = 128
"""A block computes a square on the diagonal, half of it for nothing; larger blocks waste more."""
FEW_PAGES = 16
"""Rows with fewer pages than this are not told apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """What of a layer decides how rows are grouped and blocked."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    window: int | None
    item_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Some queries of each row of a group, and the keys that they may see.

    Attributes:
        first, last: queries first <= i < last of every row.
        low, high: keys low <= j < high; all others are hidden from these queries.
        clear: keys below are visible to all of these queries, and need no mask.
        whole: low and high take in every key.
        mask: (n, 1, last - first, 1, high - clear) additive, 0 or -inf; None if nothing is hidden.
        row_mask: for groups of one query a row the mask of all keys, (n G, 1, L).
        distance: int64, key position less query position for all keys, shape as `mask` but from `low`; for ALiBi.
    """

    first: int
    last: int
    low: int
    high: int
    clear: int
    whole: bool
    mask: torch.Tensor | None
    row_mask: torch.Tensor | None
    distance: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Rows that are attended together.

    Attributes:
        num_rows, num_queries, num_keys: padded sizes (n, Q, L).
        tokens: where the group's tokens lie if they are consecutive and no row is padded, else None.
        token_index: (n Q) token of each query; padding repeats the row's first token.
        real: (number of real queries) those entries of (n Q) that are no padding, None if all are real.
        gather: (2 n G pages) rows of the cache seen as (pages 2 G, page K): first keys, then values.
        blank: rows of (2 n G L) that hold no token of the row.
    """

    num_rows: int
    num_queries: int
    num_keys: int
    tokens: slice | None
    token_index: torch.Tensor
    real: torch.Tensor | None
    gather: torch.Tensor
    blank: torch.Tensor | None
    blocks: tuple[Block, ...]


@dataclass(slots=True, kw_only=True)
class AttentionPlan:
    """One step. Groups and write indices are made when the first layer of their geometry asks, then kept.

    Attributes:
        covers_tokens: whether every token belongs to a row; else there is padding at the end.
    """

    inputs: StepInputs
    page_size: int
    dtype: torch.dtype
    covers_tokens: bool
    rows: Rows
    groups: dict[Geometry, tuple[Group, ...]] = field(default_factory=dict[Geometry, tuple[Group, ...]])
    write_index: dict[int, torch.Tensor] = field(default_factory=dict[int, torch.Tensor])
    angles: dict[int, Angles] = field(default_factory=dict[int, tuple[torch.Tensor, torch.Tensor]])

    def groups_of(self, geometry: Geometry) -> tuple[Group, ...]:
        """Groups for layers of this geometry."""
        groups = self.groups.get(geometry)
        if groups is None:
            groups = self.groups[geometry] = make_groups(self.rows, geometry, self.page_size, self.dtype)
        return groups

    def write_index_of(self, num_kv_heads: int) -> torch.Tensor:
        """(T 2 G) rows of the cache seen as (pages 2 G page, K): of each token the key heads, then the value heads."""
        index = self.write_index.get(num_kv_heads)
        if index is None:
            slots_T1 = self.inputs.kv_slots_T[:, None]
            page_T1 = torch.div(slots_T1, self.page_size, rounding_mode="floor")
            heads = page_T1 * (2 * num_kv_heads) + torch.arange(2 * num_kv_heads)
            index = (heads * self.page_size + slots_T1 % self.page_size).view(-1)
            self.write_index[num_kv_heads] = index
        return index

    def angles_of(self, table: RotaryTable) -> Angles:
        """Cosines (T, 1, 1, F) and sines (T, 1, F) of the step's tokens, float32."""
        angles = self.angles.get(id(table))
        if angles is None:
            cos_TF = table.cos_PF.index_select(0, self.inputs.positions_T)
            sin_TF = table.sin_PF.index_select(0, self.inputs.positions_T)
            angles = self.angles[id(table)] = (cos_TF[:, None, None], sin_TF[:, None])
        return angles


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """The step's rows that have queries, on the host.

    Attributes:
        start: (R) keys before the first query. end: (R) keys after the last. query_start: (R) first token.
        pages: (R, columns) page table.
    """

    start: Array
    end: Array
    query_start: Array
    pages: npt.NDArray[np.int32]


def read_rows(inputs: StepInputs) -> Rows:
    """The rows of a step that have queries."""
    query_start = inputs.query_start_R1.numpy()
    present = np.flatnonzero(query_start[1:] > query_start[:-1])
    return Rows(
        start=inputs.row_start_R.numpy()[present],
        end=inputs.kv_len_R.numpy()[present],
        query_start=query_start[present],
        pages=inputs.page_table_SP.numpy()[inputs.row_slot_R.numpy()[present]],
    )


def make_groups(rows: Rows, geometry: Geometry, page_size: int, dtype: torch.dtype) -> tuple[Group, ...]:
    """Sort rows into groups of similar size, none larger than the byte budget."""
    queries = rows.end - rows.start
    first_page = np.zeros_like(rows.start)
    if geometry.window is not None:
        first_page = np.maximum(rows.start - geometry.window + 1, 0) // page_size
    num_pages = -(-rows.end // page_size) - first_page
    size_class = _log2(queries) * 64 + _log2(np.maximum(num_pages, FEW_PAGES))
    page_bytes = 2 * geometry.num_kv_heads * geometry.head_dim * geometry.item_bytes * page_size
    groups: list[Group] = []
    for name in np.unique(size_class):
        members = np.flatnonzero(size_class == name)
        at_once = max(1, GATHERED_BYTES // (page_bytes * int(num_pages[members].max())))
        for begin in range(0, len(members), at_once):
            part = members[begin : begin + at_once]
            groups.append(_make_group(rows, part, first_page[part], num_pages[part], geometry, page_size, dtype))
    return tuple(groups)


def _log2(x: Array) -> Array:
    """The smallest power of two that is not below x, as an exponent."""
    return np.ceil(np.log2(x)).astype(np.int64)


def _make_group(
    rows: Rows,
    members: Array,
    first_page: Array,
    num_pages: Array,
    geometry: Geometry,
    page_size: int,
    dtype: torch.dtype,
) -> Group:
    start, end, query_start = rows.start[members], rows.end[members], rows.query_start[members]
    num_queries, heads = int((end - start).max()), geometry.num_kv_heads
    within_Q = np.arange(num_queries)
    is_real = within_Q < (end - start)[:, None]
    token_index = np.where(is_real, query_start[:, None] + within_Q, query_start[:, None])
    all_real = bool(is_real.all())
    consecutive = all_real and bool((np.diff(query_start) == num_queries).all())

    pages = int(num_pages.max())
    column = np.minimum(first_page[:, None] + np.arange(pages), rows.pages.shape[1] - 1)
    page_ids = rows.pages[members[:, None], column].astype(np.int64)  # (n, pages)
    part_head = np.arange(2)[:, None, None, None] * heads + np.arange(heads)[:, None]  # (2, 1, G, 1)
    gather = page_ids[:, None, :] * (2 * heads) + part_head  # (2, n, G, pages)

    num_keys = pages * page_size
    base = first_page * page_size
    row, key = np.nonzero(np.arange(num_keys) >= (end - base)[:, None])
    lines = np.arange(2)[:, None, None] * len(members) * heads + row * heads + np.arange(heads)[:, None]
    blank = (lines * num_keys + key).reshape(-1)
    return Group(
        num_rows=len(members),
        num_queries=num_queries,
        num_keys=num_keys,
        tokens=slice(int(query_start[0]), int(query_start[0]) + token_index.size) if consecutive else None,
        token_index=torch.from_numpy(token_index.reshape(-1)),
        real=None if all_real else torch.from_numpy(np.flatnonzero(is_real)),
        gather=torch.from_numpy(gather.reshape(-1)),
        blank=torch.from_numpy(blank) if blank.size else None,
        blocks=_make_blocks(start - base, end - base, num_queries, num_keys, geometry, dtype),
    )


def _make_blocks(
    start: Array, end: Array, num_queries: int, num_keys: int, geometry: Geometry, dtype: torch.dtype
) -> tuple[Block, ...]:
    """Cut a group's queries into blocks. Positions count from the first gathered key of each row."""
    fit = BLOCK_SCORES // (len(start) * geometry.num_heads * num_keys)
    step = min(MAX_BLOCK_QUERIES, num_queries, max(16, fit // 16 * 16))
    blocks: list[Block] = []
    for first in range(0, num_queries, step):
        last = min(first + step, num_queries)
        high = min(num_keys, int(np.minimum(start + last, end).max()))
        low, clear = 0, min(high, int(start.min()) + first + 1)
        if geometry.window is not None:
            low = clear = max(0, min(int(start.min()) + first - geometry.window + 1, high - 1))
        # A slice of the keys is copied before it is multiplied; that pays only if it leaves out a good part.
        if high - low > num_keys - num_keys // 8:
            low, high = 0, num_keys
            clear = 0 if geometry.window is not None else clear
        key = torch.arange(low, high)
        query = torch.from_numpy(start)[:, None] + torch.arange(first, last)
        distance = (key - query[..., None])[:, None, :, None, :]  # (n, 1, queries, 1, keys)
        seen = distance <= 0
        if geometry.window is not None:
            seen &= distance > -geometry.window
        mask = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, float("-inf"))
        row_mask = None
        if num_queries == 1:
            row_mask = mask.expand(-1, geometry.num_kv_heads, -1, -1, -1).reshape(-1, 1, high - low)
        blocks.append(
            Block(
                first=first,
                last=last,
                low=low,
                high=high,
                clear=clear,
                whole=high - low == num_keys,
                mask=mask[..., clear - low :].contiguous() if clear < high else None,
                row_mask=row_mask,
                distance=distance,
            )
        )
    return tuple(blocks)
