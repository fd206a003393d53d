"""Short ways to build requests and to run a scheduler by hand."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

from drivetrain.request import Request
from drivetrain.sampling import SamplingParams
from drivetrain.scheduler import Landed, Schedule, Scheduler, SchedulerLimits

EOS = 1


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def scheduler_of(clock: Clock | None = None, **changes: object) -> Scheduler:
    fields: dict[str, object] = {
        "max_num_rows": 4,
        "max_step_tokens": 32,
        "max_model_len": 64,
        "page_size": 4,
        "num_pages": 65,
        "overlap": 1,
    }
    return Scheduler(SchedulerLimits(**(fields | changes)), clock=clock or Clock())  # type: ignore[arg-type]


def request_of(
    name: str,
    prompt: Iterable[int] | int = 6,
    *,
    arrival_s: float = 0.0,
    priority: int = 0,
    salt: bytes = b"",
    parent: Request | None = None,
    max_total: int = 64,
    **params: object,
) -> Request:
    """`prompt` as a number is that many ids that no other name has."""
    ids = [ord(name[0]) * 100 + at for at in range(prompt)] if isinstance(prompt, int) else prompt
    return Request(
        request_id=name,
        prompt_ids=array("i", ids),
        params=SamplingParams(**({"max_tokens": 8} | params)),  # type: ignore[arg-type]
        arrival_s=arrival_s,
        priority=priority,
        salt=salt,
        eos_ids=frozenset({EOS}),
        max_total=max_total,
        parent=parent,
    )


def scheduled(scheduler: Scheduler) -> Schedule:
    step = scheduler.schedule()
    assert step is not None
    return step


def land(scheduler: Scheduler, step: Schedule, ids: Sequence[int] | int = 9) -> list[Landed]:
    return scheduler.land(step, [ids] * step.num_samples if isinstance(ids, int) else ids)


def advance(scheduler: Scheduler, steps: int = 1, token: int = 9) -> None:
    """Schedules and lands so many steps, one after the other."""
    for _ in range(steps):
        land(scheduler, scheduled(scheduler), token)


def finish(scheduler: Scheduler, token: int = 9) -> None:
    """Runs until nothing is left, and checks that every page came back."""
    for _ in range(2000):
        step = scheduler.schedule()
        if step is None:
            break
        land(scheduler, step, token)
    assert scheduler.idle
    assert_all_back(scheduler)


def assert_all_back(scheduler: Scheduler) -> None:
    stats = scheduler.stats()
    assert (stats.running, stats.waiting, stats.pages_used) == (0, 0, 0)
    assert stats.pages_free + stats.pages_cached == stats.pages_total


def names(step: Schedule | None) -> list[str]:
    assert step is not None
    return [row.request.request_id for row in step.rows]


def spans(step: Schedule | None) -> list[tuple[str, int, int, bool]]:
    """(name, start, tokens, samples) of each row."""
    assert step is not None
    return [(row.request.request_id, row.start, row.num_tokens, row.samples) for row in step.rows]
