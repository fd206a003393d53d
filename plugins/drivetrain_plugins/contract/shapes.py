"""Which step shapes a device wants, as data. Core pads every step by it; no backend needs a runner of its own."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Literal

CapturedSampling = Literal["random", "filters", "penalties"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepShape:
    """The padded size of a step.

    Attributes:
        rows: sequences.
        tokens: tokens of all rows together.
        pages: upper bound of pages that any row reads.
        decode_only: every row has exactly one token. Equal numbers of rows and tokens do not say so: both are padded.
        captured: whether this shape is replayed from a captured graph. A captured step with decode rows only samples
            every row in order, padding included.
        shared_groups: groups of rows with a common prefix, padding included; 0 if the step has none.
        total_pages: upper bound of the pages that all rows but padding read together, a page that several rows read
            counted once a row; 0 where the policy has no `total_page_buckets`.
    """

    rows: int
    tokens: int
    pages: int
    decode_only: bool = False
    captured: bool = False
    shared_groups: int = 0
    total_pages: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapePolicy:
    """How core batches and pads.

    Attributes:
        mixed_steps: whether prefill and decode rows may share a step.
        max_prefills_per_step: None is no limit.
        padding_side: where a padded prompt is filled up, for devices with dense prompts.
        row_buckets: ascending numbers of rows that a step is padded to; empty pads nothing. A step with padding tokens
            takes one row more, which they belong to.
        mixed_row_buckets: the same for steps with prefill; empty takes `row_buckets`. Fewer buckets, fewer recordings.
        token_buckets: ascending numbers of tokens that a step with prefill is padded to; empty pads nothing.
        page_buckets: ascending numbers of pages a row; empty pads nothing.
        total_page_buckets: ascending numbers of pages of all rows together, for devices whose work follows these
            rather than the longest row; empty tells the device none. Recorded steps then have one layout a shape.
        max_total_pages: pages that all rows of a step may read together, a page that several rows read counted once a
            row; at least those of the longest row. Core gives a step no more: rows beyond it wait for the next one, and
            then go first. None is no limit. Without it, rows that share pages may outgrow the last of
            `total_page_buckets`.
        max_captured_rows: decode steps up to so many rows are captured; 0 captures none.
        max_captured_tokens: steps with prefill up to so many tokens are captured; 0 captures none.
        captured_sampling: what the sampler may do inside of a recording beside taking the likeliest token, by the names
            of `SampleFeatures`; a step that asks for more is sampled behind its replay.
        samples_inside: whether recordings sample at all. False ends every recording with the logits, so that there is
            one a shape.
        records_all: record every shape of `captured_shapes` before the first request, instead of a few.
        record_budget_s: time that `records_all` may take before serving begins all the same; what is left is recorded
            while nobody waits. None is no limit.
        max_shared_groups: groups of decode rows with a common prefix that a step tells the device; 0 looks for none.
            Matters only where `capabilities.attention` has "cascade".
        min_shared_rows, min_shared_tokens: what a group has at least, to be worth its own pass over the prefix.
        sealed: a shape outside the buckets is refused instead of run.
    """

    mixed_steps: bool = True
    max_prefills_per_step: int | None = None
    padding_side: Literal["right", "left"] = "right"
    row_buckets: tuple[int, ...] = ()
    mixed_row_buckets: tuple[int, ...] = ()
    token_buckets: tuple[int, ...] = ()
    page_buckets: tuple[int, ...] = ()
    total_page_buckets: tuple[int, ...] = ()
    max_total_pages: int | None = None
    max_captured_rows: int = 0
    max_captured_tokens: int = 0
    captured_sampling: frozenset[CapturedSampling] = frozenset({"random"})
    samples_inside: bool = True
    records_all: bool = False
    record_budget_s: float | None = None
    max_shared_groups: int = 0
    min_shared_rows: int = 4
    min_shared_tokens: int = 256
    sealed: bool = False

    def pad(self, *, rows: int, tokens: int, pages: int, decode_only: bool, total_pages: int = 0) -> StepShape:
        """The shape that a step of this size is padded to.

        Args:
            rows: sequences in the step, at least 1.
            tokens: tokens in the step.
            pages: pages that the longest row reads.
            decode_only: every row has exactly one token.
            total_pages: pages that all rows read together; matters only with `total_page_buckets`.

        Raises:
            ValueError: the policy is sealed and no bucket is large enough.
        """
        row_buckets = self.row_buckets if decode_only else self.mixed_row_buckets or self.row_buckets
        padded_rows = self._bucket("rows", row_buckets, rows)
        if decode_only:
            padded_tokens = padded_rows
            captured = 0 < padded_rows <= self.max_captured_rows
        else:
            padded_tokens = self._bucket("tokens", self.token_buckets, tokens)
            captured = 0 < padded_tokens <= self.max_captured_tokens
        padded_pages = self._bucket("pages", self.page_buckets, pages)
        return StepShape(
            rows=padded_rows,
            tokens=padded_tokens,
            pages=padded_pages,
            decode_only=decode_only,
            captured=captured,
            total_pages=self._bucket("pages in all", self.total_page_buckets, total_pages)
            if self.total_page_buckets
            else 0,
        )

    def captured_shapes(self, *, page_size: int, max_pages: int) -> list[StepShape]:
        """Every captured shape that a step can be padded to, small ones first; needs row buckets.

        Args:
            page_size: tokens a page.
            max_pages: pages of the longest row.
        """
        shapes: list[StepShape] = []
        for fewest, rows in _spans(self.row_buckets, self.max_captured_rows):
            shapes += self._shapes(rows, rows, least_total=fewest, max_pages=max_pages, decode=True)
        mixed_rows = self.mixed_row_buckets or self.row_buckets
        for fewest, tokens in _spans(self.token_buckets, self.max_captured_tokens):
            for rows in mixed_rows:
                least = -(-fewest // page_size)
                shapes += self._shapes(rows, tokens, least_total=least, max_pages=max_pages, decode=False)
        return sorted(shapes, key=lambda shape: (shape.tokens * max(1, shape.total_pages), shape.tokens))

    def _shapes(self, rows: int, tokens: int, *, least_total: int, max_pages: int, decode: bool) -> list[StepShape]:
        """The shapes of so many rows and tokens, by pages a row and pages in all."""
        pages_a_row = self.page_buckets or (max_pages,)
        most_total = min(rows * max_pages, self.max_total_pages or rows * max_pages)
        totals = [
            total for fewest, total in _spans(self.total_page_buckets) if total >= least_total and fewest <= most_total
        ]
        return [
            StepShape(rows=rows, tokens=tokens, pages=pages, decode_only=decode, captured=True, total_pages=total)
            for pages in pages_a_row
            for total in totals or [0]
        ]

    def _bucket(self, what: str, buckets: tuple[int, ...], size: int) -> int:
        index = bisect_left(buckets, size)
        if index < len(buckets):
            return buckets[index]
        if self.sealed and buckets:
            raise ValueError(f"a step of {size} {what} exceeds the largest bucket {buckets[-1]} of a sealed policy")
        return size


def _spans(buckets: tuple[int, ...], largest: int | None = None) -> list[tuple[int, int]]:
    """(fewest, most) of each bucket up to `largest`: the sizes that are padded to `most`."""
    spans = list(zip((1, *(bucket + 1 for bucket in buckets)), buckets, strict=False))
    return [span for span in spans if largest is None or span[1] <= largest]
