"""What a conformance check is: a name, a level, and a function that raises when a backend breaks the contract."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from drivetrain_plugins.conformance.subject import Subject

Level = Literal["core", "graphs", "quantized", "parallel"]
LEVELS: tuple[Level, ...] = get_args(Level)


class Violation(AssertionError):
    """The backend breaks the contract; the message says what was expected and what it did."""


class NotClaimed(Exception):
    """The check needs a capability that the backend does not claim; the message names it."""


@dataclass(frozen=True, slots=True)
class Check:
    """One proof about a backend. `name` is "part.what_holds"; the function's docstring says why it matters."""

    name: str
    level: Level
    run: Callable[[Subject], None]

    def __str__(self) -> str:
        return f"{self.level}-{self.name}"


def check(level: Level = "core") -> Callable[[Callable[[Subject], None]], Check]:
    """Make a function a check; its module's name, less "_checks", and its own name become the check's."""

    def made(function: Callable[[Subject], None]) -> Check:
        part = function.__module__.rsplit(".", 1)[-1].removesuffix("_checks")
        return Check(f"{part}.{function.__name__}", level, function)

    return made


def checks_of(module: ModuleType) -> list[Check]:
    """The checks of a module, in the order in which they stand there."""
    return [value for value in vars(module).values() if isinstance(value, Check)]


def require(condition: bool, message: str) -> None:
    """Raises Violation with `message` unless `condition` holds."""
    if not condition:
        raise Violation(message)


def need(condition: bool, message: str) -> None:
    """Raises NotClaimed with `message` unless `condition` holds."""
    if not condition:
        raise NotClaimed(message)
