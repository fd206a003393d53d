"""Which shapes came up in service that nobody had prepared. Each costs a compilation while a request waits."""

from __future__ import annotations

import logging
from typing import Literal

from drivetrain_plugins.contract.shapes import StepShape
from drivetrain_plugins.errors import Unsupported

_log = logging.getLogger(__name__)


class ShapeLedger:
    """Sealed once core has prepared its shapes; from then on every step that is no replay is late.

    Args:
        new_shapes: "warn" counts and logs, "refuse" raises.

    Attributes:
        late_steps: steps that ran unprepared in service.
        late_shapes: the distinct shapes among them.
    """

    def __init__(self, new_shapes: Literal["warn", "refuse"]) -> None:
        self._new_shapes = new_shapes
        self._sealed = False
        self._preparing = False
        self.late_steps = 0
        self.late_shapes: set[StepShape] = set()

    def preparing(self, active: bool) -> None:
        """As `Runtime.preparing`. The first end of a preparation seals."""
        self._preparing = active
        if not active and not self._sealed:
            self._sealed = True
            _log.info("shapes are sealed: a step of another shape is compiled while its requests wait, and counted")

    def planned(self, shape: StepShape) -> None:
        """A step is planned anew, so it is no replay of one that was recorded.

        Raises:
            Unsupported: nobody prepared it, and new shapes are refused.
        """
        if not self._sealed or self._preparing:
            return
        self.late_steps += 1
        known = shape in self.late_shapes
        self.late_shapes.add(shape)
        if self._new_shapes == "refuse":
            raise Unsupported(
                f"a step of {shape.rows} rows, {shape.tokens} tokens and {shape.total_pages} pages was not prepared, "
                'and backend_options.gaudi.new_shapes is "refuse"; raise warm_up_s or set "warn"'
            )
        if not known:
            _log.warning(
                "a step of %d rows, %d tokens and %d pages was not prepared and is compiled now: %d such steps of %d "
                "shapes so far",
                shape.rows,
                shape.tokens,
                shape.total_pages,
                self.late_steps,
                len(self.late_shapes),
            )
