"""What runs before the first request: the largest steps, so that memory can be measured, and a few recordings.

The other recordings are made while nobody waits, or when they are due.
"""

from __future__ import annotations

from collections.abc import Sequence

from drivetrain.layouts import captured_layout
from drivetrain.recordings import Recorded, samples_inside
from drivetrain_plugins.contract.batch import BatchLayout, SampleFeatures
from drivetrain_plugins.contract.executor import ExecutorLimits
from drivetrain_plugins.contract.shapes import ShapePolicy, StepShape

_GREEDY = SampleFeatures()
_RANDOM = SampleFeatures(random=True)
_HEAVIEST = SampleFeatures(random=True, filters=True)


class WarmUp:
    """A plan of steps on padding alone.

    Attributes:
        eager: (layout, shape, features) of steps that run once.
        recorded_first: steps to record before the memory for pages is measured, the largest first: later recordings
            find room in the memory of earlier ones.
    """

    def __init__(self, policy: ShapePolicy, limits: ExecutorLimits) -> None:
        self._policy, self._limits = policy, limits
        decodes = sorted(rows for rows in policy.row_buckets if rows <= policy.max_captured_rows)
        if decodes and limits.max_num_rows not in decodes:
            decodes = [rows for rows in decodes if rows < limits.max_num_rows] + decodes[-1:]
        self.eager = self._eager(bool(decodes))
        self.recorded_first: list[Recorded] = []
        self._later: list[Recorded] = []
        if policy.records_all:
            shapes = policy.captured_shapes(page_size=limits.page_size, max_pages=limits.max_pages)
            steps = [step for shape in shapes for step in self._steps(shape)]
            # The largest one first, so that what is left is measured rightly even if the time does not suffice.
            self.recorded_first = steps[-1:] + steps[:-1]
        elif decodes:
            self.recorded_first = [*self._largest_mixed(), *self._decode(decodes[-1]), *self._decode(decodes[0])]
            self._later = [step for rows in decodes[-2:0:-1] for step in self._decode(rows)]

    def postpone(self, steps: Sequence[Recorded]) -> None:
        """Leave steps that should have been recorded first for when nobody waits, in this order."""
        self._later = list(reversed(steps))

    @property
    def num_left(self) -> int:
        """Recordings that `next_recording` still has to give."""
        return len(self._later)

    def next_recording(self) -> Recorded | None:
        """The next step to record while nobody waits, small ones first; None if all are recorded."""
        return self._later.pop() if self._later else None

    def _eager(self, captures: bool) -> list[tuple[BatchLayout, StepShape, SampleFeatures]]:
        limits = self._limits
        rows = max(1, min(limits.max_num_rows, limits.max_step_tokens))
        tokens = min(limits.max_step_tokens, rows * limits.max_model_len)
        prefill = BatchLayout(rows=rows, tokens=tokens, samples=rows, page_updates=0)
        # As long a context as a row may have, for devices whose work follows what a step says of it.
        shape = StepShape(rows=rows, tokens=tokens, pages=self._largest_pages)
        steps = [(prefill, shape, _HEAVIEST if captures else _GREEDY)]
        if not captures:
            decode = BatchLayout(rows=1, tokens=1, samples=1, page_updates=1)
            steps.append((decode, StepShape(rows=1, tokens=1, pages=1, decode_only=True), _GREEDY))
        return steps

    def _decode(self, rows: int) -> list[Recorded]:
        pages = self._policy.page_buckets[0] if self._policy.page_buckets else self._limits.max_pages
        return self._steps(StepShape(rows=rows, tokens=rows, pages=pages, decode_only=True, captured=True))

    def _largest_mixed(self) -> list[Recorded]:
        policy = self._policy
        tokens = [bucket for bucket in policy.token_buckets if bucket <= policy.max_captured_tokens]
        if not tokens:
            return []
        rows = (policy.mixed_row_buckets or policy.row_buckets)[-1]
        shape = StepShape(rows=rows, tokens=tokens[-1], pages=self._largest_pages, captured=True)
        return self._steps(shape)[-1:]

    def _steps(self, shape: StepShape) -> list[Recorded]:
        layout = captured_layout(shape, self._limits.page_size)
        assert layout is not None, "a step without page updates has room for them"
        inside = [each for each in (_GREEDY, _RANDOM) if samples_inside(each, self._policy)]
        return [
            Recorded(
                layout=layout,
                pages=shape.pages,
                features=each,
                decode_only=shape.decode_only,
                total_pages=shape.total_pages,
            )
            for each in inside or [None]
        ]

    @property
    def _largest_pages(self) -> int:
        """What a step with a row of the longest context says of its pages."""
        return max((self._limits.max_pages, *self._policy.page_buckets[-1:]))
