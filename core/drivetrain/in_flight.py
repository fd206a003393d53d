"""Steps that the device has been given and whose results have not landed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from drivetrain.errors import OutOfMemory
from drivetrain.request import Request
from drivetrain.scheduling.schedule import Schedule
from drivetrain_plugins.contract.batch import StepOutput, Ticket


@dataclass(slots=True)
class StepInFlight:
    """A step that was launched.

    Attributes:
        launched_s: when, as `perf_counter` tells it.
        masked: some of its rows have a grammar.
    """

    schedule: Schedule
    ticket: Ticket
    launched_s: float
    masked: bool
    _output: StepOutput | None = None

    def wait(self) -> StepOutput:
        """As `Ticket.wait`; may be called again."""
        if self._output is None:
            self._output = self.ticket.wait()
        return self._output

    def places(self) -> dict[Request, int]:
        """Where each request that it samples for stands in its output."""
        return {request: place for place, request in enumerate(self._sampled())}

    def tokens(self, output: StepOutput) -> Iterator[tuple[Request, int]]:
        """What it sampled, but for what is void."""
        dropped = self.schedule.dropped
        for request, token in zip(self._sampled(), output.token_ids.tolist(), strict=True):
            if request not in dropped:
                yield request, token

    def _sampled(self) -> Iterator[Request]:
        return (row.request for row in self.schedule.rows if row.samples)


def newest_tokens(steps: Iterable[StepInFlight]) -> dict[Request, int]:
    """What steps sampled, once they have, oldest first. One that ran out of memory brings nothing: it will fail."""
    newest: dict[Request, int] = {}
    for step in steps:
        try:
            output = step.wait()
        except OutOfMemory:
            continue
        newest.update(step.tokens(output))
    return newest
