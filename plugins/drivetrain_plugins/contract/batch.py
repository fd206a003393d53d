"""One step's inputs as core hands them to a device: one packed int32 buffer of differences, and what came back.

Request state lives on the device in numbered slots, so a step only carries what changed. The packed buffer has fixed
sections, whose sizes are a `BatchLayout`; a captured graph reads them at fixed offsets.

R rows, T tokens, K sampled rows, G groups of rows with a shared prefix, U page-table updates, S slot updates, N logit
biases, C columns of slot parameters, M rows with a mask, W words of a mask, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt

Int32Array = npt.NDArray[np.int32]
Float32Array = npt.NDArray[np.float32]

LAST_TOKEN = -1
"""In `token_ids`: take the id that was sampled last in the row's slot."""

NULL_PAGE = 0
"""Padding writes here; no request ever owns it."""

# Columns of a slot's parameters. The first six are float32 bits in an int32 array.
TEMPERATURE, TOP_P, MIN_P, PRESENCE, FREQUENCY, REPETITION, TOP_K, SEED_LOW, SEED_HIGH = range(9)
NUM_SLOT_COLUMNS = 9
NUM_FLOAT_COLUMNS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLayout:
    """Sizes of the sections of a packed batch. Equal layouts have equal offsets.

    Attributes:
        rows: R, padding included.
        tokens: T, padding included.
        samples: K, padding included.
        page_updates: U. Padding updates write the null page into the dummy slot.
        slot_updates: S. Padding updates write the dummy slot.
        biases: N. Padding biases add 0 to row 0.
        shared_groups: G, padding included; 0 leaves both sections about shared prefixes empty.
    """

    rows: int
    tokens: int
    samples: int
    page_updates: int
    slot_updates: int = 0
    biases: int = 0
    shared_groups: int = 0

    @property
    def sections(self) -> tuple[tuple[str, int, int], ...]:
        """(name, offset, length) of each section."""
        return _sections(self)

    @property
    def offsets(self) -> Mapping[str, int]:
        """Where each section begins."""
        return _offsets(self)

    @property
    def size(self) -> int:
        """Length of the packed buffer in int32 elements."""
        _, offset, length = self.sections[-1]
        return offset + length


@lru_cache(maxsize=4096)
def _sections(layout: BatchLayout) -> tuple[tuple[str, int, int], ...]:
    lengths = (
        ("row_slot", layout.rows),
        ("row_start", layout.rows),
        ("query_start", layout.rows + 1),
        ("token_ids", layout.tokens),
        ("token_row", layout.tokens),
        ("sample_row", layout.samples),
        ("shared_rows", layout.rows if layout.shared_groups else 0),
        ("shared_groups", layout.shared_groups * 3),
        ("page_updates", layout.page_updates * 3),
        ("slot_updates", layout.slot_updates * (1 + NUM_SLOT_COLUMNS)),
        ("biases", layout.biases * 4),
    )
    sections: list[tuple[str, int, int]] = []
    offset = 0
    for name, length in lengths:
        sections.append((name, offset, length))
        offset += length
    return tuple(sections)


@lru_cache(maxsize=4096)
def _offsets(layout: BatchLayout) -> Mapping[str, int]:
    return {name: offset for name, offset, _ in layout.sections}


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleFeatures:
    """What the sampler of this step must do; each distinct value may have its own graph.

    Attributes:
        random: some row has a temperature above 0.
        filters: some row restricts by top-k, top-p or min-p.
        penalties: some row counts earlier tokens.
        biases: the `biases` section is not empty.
        masks: some row may take certain tokens only; `StepBatch.masks` says which.
        logprobs: number of likeliest tokens to report, -1 for none at all.
    """

    random: bool = False
    filters: bool = False
    penalties: bool = False
    biases: bool = False
    masks: bool = False
    logprobs: int = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenMasks:
    """Which tokens some of the sampled rows may take; the other rows may take any.

    Masks depend on the tokens of the steps before, which may still run: an executor asks for them as late as it can,
    once all the work of the step that does not need them is under way.

    Attributes:
        rows: (M,) indices in `sample_row`, ascending.
        fill: gives the masks, (M, W) with W = ceil(V / 32): token t is allowed if bit t % 32 of word t // 32 is set.
            Bits past the vocabulary mean nothing. It may wait for earlier steps, and is called once, before `execute`
            returns. Rows whose masks take too long get one that allows any token, and what is sampled for them is void.
    """

    rows: Int32Array
    fill: Callable[[], Int32Array]


@dataclass(slots=True, kw_only=True)
class PromptLogprobs:
    """Prompt positions whose log-probabilities were asked for.

    Attributes:
        tokens: (Q,) indices into the step's tokens.
        targets: (Q,) the id that follows each.
        top: likeliest tokens to report.
    """

    tokens: Int32Array
    targets: Int32Array
    top: int


@dataclass(slots=True, kw_only=True)
class Pooling:
    """Tokens whose hidden states are added up, for embeddings.

    Attributes:
        spans: (P, 2) first and behind the last token of each sum, as indices into the step's tokens.
    """

    spans: Int32Array


@dataclass(kw_only=True)
class StepBatch:
    """All that a device needs to run one step.

    Rows stand in order: decode rows first, then prefill chunks, then padding. Sections (views of `packed`):

    - row_slot (R): slot of each row; padding rows have the dummy slot, which is the last.
    - row_start (R): tokens of the row whose keys and values are already in pages.
    - query_start (R + 1): where the row's tokens begin in the flat token list.
    - token_ids (T): ids, or LAST_TOKEN.
    - token_row (T): row of each token.
    - sample_row (K): rows that sample; their last token's logits are used. Padding repeats row R - 1; in a captured
      step with decode rows only, sample i is row i, padding included.
    - shared_rows (R or 0): all rows in an order in which those of each group below stand together.
    - shared_groups (G, 3): first and behind the last of the group's rows, as places in `shared_rows`, and the number of
      tokens that they share: a multiple of the page size, less than any of their key lengths. These rows have one token
      in this step each, and the same leading entries in the page table. Padding groups have no rows.
    - page_updates (U, 3): (slot, index, page), applied to the page table before anything reads it.
    - slot_updates (S, 1 + C): slot and its parameters, for slots that were newly assigned.
    - biases (N, 4): (index in sample_row, token, float32 bits, last): added to a logit if `last` is -1 or is the slot's
      last token.

    Attributes:
        num_rows, num_tokens, num_decode_rows, num_samples: without padding.
        max_query: most tokens of a row.
        max_kv: most keys that a row reads, this step's included.
        max_pages: pages that hold them, padded. The first step, on padding alone, says as many as the longest row of
            any later step may have.
        total_pages: as in `StepShape`.
        page_copies: (C, 2) (source, destination) pages to copy before the step.
        history: (H, 3) (slot, token, 1 if generated else 0): earlier tokens of newly assigned slots with penalties.
        cleared: slots whose token counts start again at zero before `history` is added.
        masks: there exactly if `features.masks` is set.
        pooling: what is added up for rows that end in an embedding; only an executor that `pools` is given it.
    """

    step_id: int
    layout: BatchLayout
    packed: Int32Array
    num_rows: int
    num_tokens: int
    num_decode_rows: int
    num_samples: int
    max_query: int
    max_kv: int
    max_pages: int
    total_pages: int = 0
    features: SampleFeatures = field(default_factory=SampleFeatures)
    captured: bool = False
    page_copies: Int32Array | None = None
    history: Int32Array | None = None
    cleared: tuple[int, ...] = ()
    prompt_logprobs: PromptLogprobs | None = None
    masks: TokenMasks | None = None
    pooling: Pooling | None = None

    def section(self, name: str) -> Int32Array:
        """One section as a view, in its two-dimensional shape where it has one."""
        return self._views[name]

    @cached_property
    def _views(self) -> dict[str, Int32Array]:
        return unpack(self.packed, self.layout)

    @property
    def decode_only(self) -> bool:
        """Whether every row has exactly one token."""
        return self.num_tokens == self.num_rows


def unpack(packed: Int32Array, layout: BatchLayout) -> dict[str, Int32Array]:
    """The sections of a packed numpy buffer as views."""
    views = {name: packed[offset : offset + length] for name, offset, length in layout.sections}
    views["shared_groups"] = views["shared_groups"].reshape(-1, 3)
    views["page_updates"] = views["page_updates"].reshape(-1, 3)
    views["slot_updates"] = views["slot_updates"].reshape(-1, 1 + NUM_SLOT_COLUMNS)
    views["biases"] = views["biases"].reshape(-1, 4)
    return views


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutput:
    """What a step brought back to the host. Rows follow `sample_row`; padding is cut off.

    Attributes:
        token_ids: (num_samples,) sampled ids.
        logprobs: (num_samples,) log-probability of each sampled id, where any row asked.
        ranks: (num_samples,) 1 for the likeliest.
        top_ids, top_logprobs: (num_samples, k) likeliest tokens, best first.
        prompt_*: the same for `PromptLogprobs`, (Q,) and (Q, k).
        pooled: (P, D) sums of hidden states after the final norm, one for each span of `Pooling`.
    """

    token_ids: Int32Array
    logprobs: Float32Array | None = None
    ranks: Int32Array | None = None
    top_ids: Int32Array | None = None
    top_logprobs: Float32Array | None = None
    prompt_logprobs: Float32Array | None = None
    prompt_ranks: Int32Array | None = None
    prompt_top_ids: Int32Array | None = None
    prompt_top_logprobs: Float32Array | None = None
    pooled: Float32Array | None = None


class Ticket(Protocol):
    """A step under way."""

    def ready(self) -> bool:
        """Whether `wait` would return at once."""
        ...

    def wait(self) -> StepOutput:
        """Block until the step's results are on the host.

        Raises:
            OutOfMemory: the step ran out of memory; its requests fail, the engine goes on.
            DeviceLost: the device is gone.
        """
        ...
