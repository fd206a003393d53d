"""What steps under way have sampled, as soon as they have."""

from __future__ import annotations

import numpy as np
import pytest

from drivetrain.errors import DeviceLost, DrivetrainError, OutOfMemory
from drivetrain.in_flight import StepInFlight, newest_tokens
from drivetrain.request import Request
from drivetrain.scheduling.schedule import Schedule, ScheduledRow
from drivetrain_plugins.contract.batch import StepOutput
from fakes.scheduling import request_of


class OneTimeTicket:
    """Gives its tokens, or its error, to the first who waits."""

    def __init__(self, result: list[int] | DrivetrainError) -> None:
        self._results = [result]

    def ready(self) -> bool:
        return True

    def wait(self) -> StepOutput:
        result = self._results.pop()
        if isinstance(result, DrivetrainError):
            raise result
        return StepOutput(token_ids=np.array(result, np.int32))


def step_of(
    result: list[int] | DrivetrainError, requests: list[Request], *, silent: tuple[Request, ...] = ()
) -> StepInFlight:
    rows = [ScheduledRow(request, slot, 0, samples=request not in silent) for slot, request in enumerate(requests)]
    return StepInFlight(Schedule(0, rows), OneTimeTicket(result), 0.0, masked=False)


def test_tokens_and_places_are_those_of_the_rows_that_sample() -> None:
    a, b, c = request_of("a"), request_of("b"), request_of("c")
    step = step_of([7, 9], [a, b, c], silent=(b,))
    assert step.places() == {a: 0, c: 1}
    step.schedule.dropped.add(a)
    assert list(step.tokens(step.wait())) == [(c, 9)]
    assert step.wait().token_ids.tolist() == [7, 9], "the ticket is asked once"


def test_the_newest_token_wins_and_a_step_without_memory_brings_none() -> None:
    a, b = request_of("a"), request_of("b")
    steps = [step_of([1, 2], [a, b]), step_of(OutOfMemory("full"), [a, b]), step_of([3], [b])]
    assert newest_tokens(steps) == {a: 1, b: 3}


def test_a_lost_device_is_not_passed_over() -> None:
    with pytest.raises(DeviceLost, match="gone"):
        newest_tokens([step_of(DeviceLost("gone"), [request_of("a")])])
