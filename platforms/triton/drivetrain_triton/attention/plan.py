"""What all layers of a step share: lists of work, made on the device, and room for partial results.

R rows, W entries of the rows' list, V entries of the groups' list, A partial results, H query heads, G key-value heads,
K head size, N programs of an entry, S groups of rows that share a prefix.
"""

# Relaxed: Triton is untyped.
# pyright: basic

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from drivetrain_plugins.contract.batch import StepBatch
from drivetrain_plugins.contract.model import AttentionSpec
from drivetrain_plugins.contract.shapes import StepShape
from drivetrain_plugins.contract.slots import StepInputs
from drivetrain_triton.attention.config import DecodeConfig
from drivetrain_triton.attention.prefill_plan import PrefillPlan
from drivetrain_triton.attention.work import plan_kernel
from drivetrain_triton.launch import launch

UNIT = 64
"""Chunks are multiples of so many tokens: shorter ones cost more to merge than they save."""

OVERHEAD = 240
"""What starting a program and merging its result cost, in tokens of its time."""

SHARED_OVERHEAD = 480
"""The same of a program that reads shared pages: it stores the results of many rows, and each row merges its own."""

INVARIANT_CHUNK = 512
INVARIANT_CHUNKS = 16
"""Chunks of rows whose results must not depend on other rows: as short, and as many at the longest context."""

FEWEST_ROWS = 16
"""Query rows of the smallest matrix product."""

MOST_ROWS = 32
"""Query rows of a decode program in 16 bits: what registers hold. Larger groups of heads are cut into chunks."""

SHARED_ROWS = 64
"""Query rows of a program that reads shared pages in 16 bits."""

FEW_ROWS, MANY_ROWS = 64, 1024
"""Rows that planning compiles for; more go by powers of two. Each size takes half a second of a cold start."""

GROUPS = 16
"""Groups that planning compiles for at least."""

LISTED_AT_ONCE = 1024
"""Entries that planning writes at a time."""

_ENTRY = 16
_SHARED_ENTRY = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """What tells lists of layers apart.

    Attributes:
        exact: multiply in fp32.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    window: int | None
    exact: bool

    @staticmethod
    def of(spec: AttentionSpec, dtype: torch.dtype) -> Geometry:
        """The geometry of a layer with queries of a type."""
        return Geometry(
            num_heads=spec.num_heads,
            num_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            window=spec.window,
            exact=dtype is torch.float32,
        )

    @property
    def group(self) -> int:
        """Query heads of a key-value head."""
        return self.num_heads // self.num_kv_heads

    @property
    def chunks(self) -> int:
        """Programs that share the query heads of one key-value head."""
        return -(-self.group // (FEWEST_ROWS if self.exact else MOST_ROWS))

    @property
    def pack(self) -> int:
        """Query heads of a program."""
        return -(-self.group // self.chunks)

    @property
    def rows(self) -> int:
        """Query rows of a decode program, padding included."""
        return max(FEWEST_ROWS, power_of_two(self.pack))

    @property
    def shared_rows(self) -> int:
        """(row, query head) pairs of a cascade program."""
        return max(self.rows, FEWEST_ROWS if self.exact else SHARED_ROWS)

    @property
    def rows_a_block(self) -> int:
        """Rows of a cascade program."""
        return self.shared_rows // self.pack


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkSizes:
    """Room for the lists of one geometry.

    It depends on the numbers of rows and groups alone, never on lengths, so that a captured plan fits every batch.

    Attributes:
        places: entries that run at once.
        chunk: tokens that rows are cut at; 0 leaves it to planning, which cuts for even work.
        entries, shared_entries: of the rows' list and of the groups' list.
        groups: groups of rows that share a prefix, as planning is told of them.
        parts: partial results of both lists.
    """

    places: int
    chunk: int
    entries: int
    groups: int
    shared_entries: int
    parts: int

    @staticmethod
    def of(geometry: Geometry, *, rows: int, groups: int, places: int, max_tokens: int, invariant: bool) -> WorkSizes:
        """The room for so many rows and groups.

        Args:
            max_tokens: no row is longer.
            invariant: cut rows at lengths that depend on no other row, and share no prefixes.
        """
        if invariant:
            chunk = max(INVARIANT_CHUNK, -(-max_tokens // INVARIANT_CHUNKS // UNIT) * UNIT)
            entries = rows * -(-max_tokens // chunk)
        else:
            chunk, entries = 0, rows + max(rows, places)
        if invariant or geometry.window is not None:
            groups = 0
        shared_entries = places + rows // geometry.rows_a_block + groups if groups else 0
        return WorkSizes(
            places=places,
            chunk=chunk,
            entries=entries,
            groups=groups,
            shared_entries=shared_entries,
            parts=entries + shared_entries * geometry.rows_a_block,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeWork:
    """Lists and room of one geometry; every kernel of the step writes its part before another reads it.

    Attributes:
        work_WC: int32 (W, 16), see `kernels.work`.
        arrivals_WN: int32, 0 between kernels.
        part_o_AHK, part_ml_A2H: float32 partial results.
        shared_work_VC: int32 (V, 8), or None if no rows share a prefix. shared_part_R: int32 likewise.
    """

    work_WC: torch.Tensor
    arrivals_WN: torch.Tensor
    part_o_AHK: torch.Tensor
    part_ml_A2H: torch.Tensor
    shared_work_VC: torch.Tensor | None
    shared_part_R: torch.Tensor | None


@dataclass(slots=True, kw_only=True)
class AttentionPlan:
    """A step's plan. Lists are made when the first layer of their geometry asks; a capture records that too.

    Attributes:
        max_tokens: tokens that a row of the page table can hold.
        decodes: some row may have exactly one token. prefills: some row may have more.
        work: lists of rows with one token, by geometry.
        prefill: lists of the other rows, by (group, head size, type).
    """

    inputs: StepInputs
    shape: StepShape
    batch: StepBatch | None
    max_tokens: int
    decodes: bool
    prefills: bool
    work: dict[Geometry, DecodeWork] = field(default_factory=dict)
    prefill: dict[tuple[int, int, torch.dtype], PrefillPlan] = field(default_factory=dict)


def planned_rows(rows: int) -> int:
    """The size that planning compiles for to plan so many rows."""
    return FEW_ROWS if rows <= FEW_ROWS else max(MANY_ROWS, power_of_two(rows))


def kinds_of_rows(shape: StepShape, batch: StepBatch | None) -> tuple[bool, bool]:
    """Whether some row may have exactly one token, and whether some may have more."""
    if shape.decode_only:
        return True, False
    if batch is None:
        return True, True
    counts_R = np.diff(batch.section("query_start"))
    return bool((counts_R == 1).any()), bool((counts_R > 1).any())


def make_decode_work(
    inputs: StepInputs,
    *,
    geometry: Geometry,
    config: DecodeConfig,
    max_tokens: int,
    num_processors: int,
    batch_invariant: bool,
    pdl: bool,
) -> DecodeWork:
    """Allocate and launch the planning of one geometry.

    Args:
        config: decides how many programs run at once.
        max_tokens: no row is longer.
        batch_invariant: cut rows at lengths that depend on no other row, and share no prefixes.
    """
    device = inputs.kv_len_R.device
    rows = inputs.row_slot_R.shape[0]
    programs = geometry.num_kv_heads * geometry.chunks
    sizes = WorkSizes.of(
        geometry,
        rows=rows,
        groups=0 if inputs.shared_groups_G3 is None else inputs.shared_groups_G3.shape[0],
        places=-(-num_processors * config.programs // programs),
        max_tokens=max_tokens,
        invariant=batch_invariant,
    )
    groups = sizes.groups

    def empty(*size: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        return torch.empty(size, dtype=dtype, device=device)

    work = DecodeWork(
        work_WC=empty(sizes.entries, _ENTRY),
        arrivals_WN=empty(sizes.entries, programs),
        part_o_AHK=empty(sizes.parts, geometry.num_heads, geometry.head_dim, dtype=torch.float32),
        part_ml_A2H=empty(sizes.parts, 2, geometry.num_heads, dtype=torch.float32),
        shared_work_VC=empty(sizes.shared_entries, _SHARED_ENTRY) if groups else None,
        shared_part_R=empty(rows) if groups else None,
    )
    block_rows = planned_rows(rows)
    launch(
        plan_kernel,
        (1,),
        inputs.kv_len_R,
        inputs.query_start_R1,
        inputs.row_slot_R,
        inputs.shared_rows_R if groups else None,
        inputs.shared_groups_G3 if groups else None,
        work.work_WC,
        work.shared_work_VC,
        work.shared_part_R,
        work.arrivals_WN,
        rows,
        groups,
        sizes.entries,
        sizes.shared_entries,
        sizes.places,
        max_tokens,
        geometry.window or 0,
        sizes.chunk,
        BLOCK_R=block_rows,
        BLOCK_S=max(GROUPS, power_of_two(groups)) if groups else 1,
        BLOCK_J=max(1, LISTED_AT_ONCE // block_rows),
        UNIT=UNIT,
        ALIGNMENT=config.block_n,
        OVERHEAD=OVERHEAD,
        SHARED_OVERHEAD=SHARED_OVERHEAD,
        COUNTERS=programs,
        WINDOW=geometry.window is not None,
        SHARED=groups > 0,
        ROWS_A_BLOCK=geometry.rows_a_block,
        num_warps=8 if block_rows > 256 else 4,
        pdl=pdl,
    )
    return work


def power_of_two(number: int) -> int:
    """The smallest that is not less."""
    return 1 << (number - 1).bit_length()
