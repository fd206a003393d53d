"""What operators, formatting and methods of values cost a template, charged before they are done."""

from __future__ import annotations

import re
from typing import Any, cast

from drivetrain.template_budget import (
    MAX_INTEGER_BITS,
    MAX_WIDTH,
    BudgetExceeded,
    CountedIterable,
    check_integer,
    current_budget,
    text_length,
    weigh,
)


def check_operator(operator: str, left: Any, right: Any) -> None:
    budget = current_budget.get()
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * (max(right, 1) if operator == "**" else 1)
        if bits > MAX_INTEGER_BITS or right.bit_length() > MAX_INTEGER_BITS:
            raise BudgetExceeded("would compute a number of more than 512 bits")
        budget.charge(1)
    elif operator == "*":
        for sequence, times in ((left, right), (right, left)):
            if isinstance(sequence, str | list | tuple | bytes) and isinstance(times, int):
                budget.charge_text(len(cast("list[object]", sequence)) * max(times, 0))
    elif operator == "+":
        sizes = [len(cast("str", side)) if isinstance(side, str | list | tuple) else 0 for side in (left, right)]
        budget.charge_text(sum(sizes))
    elif operator == "%" and isinstance(left, str | bytes):
        check_format(left if isinstance(left, str) else left.decode("latin-1"), right, "%")
    else:
        budget.charge(1)


def check_format(pattern: str, values: object, marker: str) -> None:
    """Refuse widths and repetitions that would make a long text of a short pattern."""
    if re.search(r"\d{4}", pattern) or "*" in pattern or re.search(r"\{[^}]*\{", pattern):
        raise BudgetExceeded(f"asked for the text format {pattern[:60]!r}")
    current_budget.get().charge_text(len(pattern) + pattern.count(marker) * (text_length(values) + MAX_WIDTH))


def check_method(target: object, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """Pay for a method of a built-in type before it runs; return the arguments to call it with."""
    if isinstance(target, int | float | bytes | bytearray):
        if name in ("to_bytes", "from_bytes"):
            raise BudgetExceeded(f"called {name}")
        if isinstance(target, bytes | bytearray):
            raise BudgetExceeded("used bytes")
    if isinstance(target, str):
        return _check_text_method(target, name, args, kwargs)
    for argument in args:
        if isinstance(argument, str | tuple):
            weigh(cast("object", argument))
    if isinstance(target, list | tuple | dict) and name in ("count", "index", "copy"):
        weigh(cast("object", target))
    return args


def _check_text_method(target: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    budget = current_budget.get()
    match name, args:
        case ("center" | "ljust" | "rjust" | "zfill", (width, *_)):
            check_integer(width, "a width")
        case ("expandtabs", _):
            size = args[0] if args else kwargs.get("tabsize", 8)
            check_integer(size, "a tab size")
            budget.charge_text(len(target) + target.count("\t") * (size if isinstance(size, int) else 8))
        case ("replace", (str(old), str(new), *_)):
            budget.charge_text(len(target) + target.count(old) * len(new))
        case ("join", (items,)):
            parts = list(CountedIterable(items, 1))
            budget.charge_text(sum(text_length(part) for part in parts) + len(target) * len(parts))
            return (parts,)
        case ("translate" | "maketrans" | "encode", _):
            raise BudgetExceeded(f"called the text method {name}")
        case _:
            budget.charge_text(len(target))
    return args
