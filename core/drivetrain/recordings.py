"""Captured steps: each shape is recorded once, on padding alone, and replayed from then on.

K samples, V vocabulary, T tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from drivetrain_plugins.contract.batch import NULL_PAGE, BatchLayout, SampleFeatures, StepBatch
from drivetrain_plugins.contract.runtime import Replay
from drivetrain_plugins.contract.shapes import ShapePolicy, StepShape
from drivetrain_plugins.contract.slots import SampledTokens, StepInputs

_MOST_RECORDINGS = 384
"""Each takes memory of the device that nobody has planned; what is not recorded runs as it is."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step leaves behind. After a recording, the buffers that every replay fills again.

    Attributes:
        states: hidden states of all tokens (T, D) or of the sampled ones (K, D); None where nobody wants them.
        logits_KV: None once they were sampled.
        sampled: None if the step ends with its logits.
    """

    inputs: StepInputs
    states: torch.Tensor | None = None
    logits_KV: torch.Tensor | None = None
    sampled: SampledTokens | None = None

    @property
    def results(self) -> dict[str, torch.Tensor]:
        """What the host wants to know, under the names of `StepOutput`."""
        sampled = self.sampled
        assert sampled is not None, "a step is sampled before its results are fetched"
        named: Mapping[str, torch.Tensor | None] = {
            "token_ids": sampled.ids_K,
            "logprobs": sampled.logprobs_K,
            "ranks": sampled.ranks_K,
            "top_ids": sampled.top_ids_Kk,
            "top_logprobs": sampled.top_logprobs_Kk,
        }
        return {name: tensor for name, tensor in named.items() if tensor is not None}


@dataclass(frozen=True, slots=True)
class Recorded:
    """Which step a recording repeats.

    Attributes:
        layout: without biases, which only the sampler reads, and never inside of a recording.
        pages: upper bound of pages a row.
        total_pages: of all rows together, as in `StepShape`.
        features: what the recorded sampler does, or None if the recording ends with the logits.
    """

    layout: BatchLayout
    pages: int
    features: SampleFeatures | None
    decode_only: bool
    total_pages: int = 0

    @property
    def shape(self) -> StepShape:
        """The shape that attention plans for."""
        return StepShape(
            rows=self.layout.rows,
            tokens=self.layout.tokens,
            pages=self.pages,
            decode_only=self.decode_only,
            captured=True,
            shared_groups=self.layout.shared_groups,
            total_pages=self.total_pages,
        )


class Recordings:
    """The recordings of one runner.

    Args:
        capture: the runtime's.
        run: runs a step on what is staged, without the host's view of the batch.
        stage_padding: stages a batch of padding alone.
    """

    def __init__(
        self,
        capture: Callable[[Callable[[], None]], Replay],
        run: Callable[[Recorded], Outcome],
        stage_padding: Callable[[Recorded], None],
    ) -> None:
        self._capture = capture
        self._run = run
        self._stage_padding = stage_padding
        self._made: dict[Recorded, _Recording] = {}
        self._met: set[Recorded] = set()
        self._refused: set[Recorded] = set()

    def __contains__(self, step: Recorded) -> bool:
        return step in self._made

    @property
    def has_room(self) -> bool:
        """Whether one more may be made."""
        return len(self._made) < _MOST_RECORDINGS

    def is_due(self, step: Recorded) -> bool:
        """Whether the step should be recorded now: a shape that comes once is not worth it, and runs as it is."""
        if step in self._made or step in self._refused or not self.has_room:
            return False
        met = step in self._met
        self._met.add(step)
        return met

    def record(self, step: Recorded) -> None:
        """Record a step on padding, so that no request's state is touched.

        It runs once before, unless it was met: then it ran for a batch. It may run once more while it is recorded.
        """
        recording = _Recording()

        def run() -> None:
            recording.outcome = self._run(step)

        self._stage_padding(step)
        if step not in self._met:
            run()
        recording.replay = self._capture(run)
        self._made[step] = recording

    def refuse(self, step: Recorded) -> None:
        """Never record this step."""
        self._refused.add(step)

    def replay(self, step: Recorded) -> Outcome:
        """Run a recorded step on what is staged."""
        recording = self._made[step]
        assert recording.replay is not None, "what was recorded can be replayed"
        recording.replay()
        assert recording.outcome is not None, "a step that ran has an outcome"
        return recording.outcome

    def clear(self) -> None:
        """Forget all recordings; they are made again when they are due."""
        self._made.clear()


@dataclass(slots=True)
class _Recording:
    replay: Replay | None = None
    outcome: Outcome | None = None


def samples_inside(features: SampleFeatures, policy: ShapePolicy) -> bool:
    """Whether a recording may hold a sampler that does this."""
    if not policy.samples_inside or features.masks or features.biases or features.logprobs >= 0:
        return False
    asked = (("random", features.random), ("filters", features.filters), ("penalties", features.penalties))
    return all(name in policy.captured_sampling for name, wanted in asked if wanted)


def padding_batch(
    layout: BatchLayout, shape: StepShape, dummy_slot: int, features: SampleFeatures | None = None
) -> StepBatch:
    """A batch of padding rows alone: every write goes to the null page."""
    lengths = np.full(layout.rows, layout.tokens // layout.rows)
    lengths[0] += layout.tokens % layout.rows
    longest = int(lengths.max())
    batch = StepBatch(
        step_id=-1,
        layout=layout,
        packed=np.zeros(layout.size, np.int32),
        num_rows=layout.rows,
        num_tokens=layout.tokens,
        num_decode_rows=layout.rows if shape.decode_only else 0,
        num_samples=layout.samples,
        max_query=longest,
        max_kv=longest,
        max_pages=shape.pages,
        total_pages=shape.total_pages,
        features=features or SampleFeatures(),
        captured=shape.captured,
    )
    batch.section("row_slot")[:] = dummy_slot
    np.cumsum(lengths, out=batch.section("query_start")[1:])
    batch.section("token_row")[:] = np.repeat(np.arange(layout.rows), lengths)
    batch.section("sample_row")[:] = np.arange(layout.samples) % layout.rows
    batch.section("page_updates")[:] = (dummy_slot, 0, NULL_PAGE)
    batch.section("slot_updates")[:, 0] = dummy_slot
    if layout.shared_groups:
        batch.section("shared_rows")[:] = np.arange(layout.rows)
    return batch
