"""What a rendering of a chat template may use, and paying for it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, cast

CHARS_PER_STEP = 64
STEPS_BETWEEN_LOOKS = 256
MAX_WIDTH = 1000
MAX_INTEGER_BITS = 512


class BudgetExceeded(Exception):
    """A template asked for more than its budget; the message says of what."""


@dataclass(slots=True)
class Budget:
    """What is left for one rendering."""

    steps_left: int
    max_chars: int
    deadline_s: float
    """In the time of `time.thread_time`, which other threads' work does not advance."""
    chars_left: int
    next_look: int
    """Look at the clock when no more steps than this are left: it costs more than most steps do."""

    def charge(self, steps: int) -> None:
        """Pay for work about to be done. Raises: BudgetExceeded."""
        self.steps_left -= steps
        if self.steps_left < self.next_look:
            self._look_at_clock()

    def _look_at_clock(self) -> None:
        if self.steps_left < 0:
            raise BudgetExceeded("took too many steps")
        if time.thread_time() > self.deadline_s:
            raise BudgetExceeded("took too long")
        self.next_look = max(self.steps_left - STEPS_BETWEEN_LOOKS, 0)

    def charge_text(self, num_chars: int) -> None:
        """Pay for a text of this length about to be made. Raises: BudgetExceeded."""
        if num_chars > self.max_chars:
            raise BudgetExceeded(f"would make a text of {num_chars} characters, more than {self.max_chars},")
        self.charge(1 + num_chars // CHARS_PER_STEP)

    def charge_output(self, num_chars: int) -> None:
        """Pay for text that goes into the output or into a block's buffer. Raises: BudgetExceeded."""
        self.chars_left -= num_chars
        if self.chars_left < 0:
            raise BudgetExceeded(f"put out more than {self.max_chars} characters")
        self.charge(1)


current_budget: ContextVar[Budget] = ContextVar("budget")


def start_budget(*, max_steps: int, max_chars: int, max_cpu_s: float) -> Budget:
    """A fresh budget for the rendering that this thread is about to do."""
    budget = Budget(
        steps_left=max_steps,
        max_chars=max_chars,
        deadline_s=time.thread_time() + max_cpu_s,
        chars_left=max_chars,
        next_look=max_steps,
    )
    current_budget.set(budget)
    return budget


def weigh(value: object) -> int:
    """Pay for walking over a value with everything in it, as printing or comparing does; return its characters.

    Shared parts count as often as they appear, for that is how often they would be walked over.
    """
    budget = current_budget.get()
    num_chars = steps = 0
    stack: list[Iterator[object]] = [iter((value,))]
    while stack:
        for item in stack[-1]:
            steps += 1
            if isinstance(item, str):
                num_chars += len(item)
                steps += len(item) // CHARS_PER_STEP
            elif isinstance(item, Mapping):
                mapping = cast("Mapping[object, object]", item)
                stack.append(iter([*mapping.keys(), *mapping.values()]))
                break
            elif isinstance(item, list | tuple | set):
                stack.append(iter(cast("Iterable[object]", item)))
                break
            else:
                num_chars += 16
        else:
            stack.pop()
        if steps > 1000:
            budget.charge(steps)
            steps = 0
        if num_chars > budget.max_chars:
            raise BudgetExceeded(f"would walk over more than {budget.max_chars} characters at once")
    budget.charge(steps)
    return num_chars


def check_integer(value: object, what: str, most: int = MAX_WIDTH) -> None:
    if isinstance(value, int) and abs(value) > most:
        raise BudgetExceeded(f"asked for {what} of {value if abs(value) < 10**12 else 'an absurd number'}")


def text_length(value: object) -> int:
    """Characters that `str(value)` would have, about; pays for walking over containers."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, list | tuple | dict | set):
        return weigh(cast("object", value))
    return 16


class CountedIterable:
    """An iterable that pays for each item. Keeps its length, so that `loop.length` costs no copy."""

    __slots__ = ("_items", "_weight")

    def __init__(self, items: Any, weight: int) -> None:
        self._items = items
        self._weight = weight

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Any]:
        charge, weight = current_budget.get().charge, self._weight
        for item in self._items:
            charge(weight)
            yield item
