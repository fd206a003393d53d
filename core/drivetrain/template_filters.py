"""Jinja's filters and tests on a budget."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

from drivetrain.template_budget import (
    MAX_WIDTH,
    BudgetExceeded,
    CountedIterable,
    check_integer,
    current_budget,
    text_length,
)
from drivetrain.template_costs import check_format

_CHEAP_FILTERS = frozenset({"length", "count", "first", "last", "default", "d", "abs", "attr", "safe", "items"})
_SHALLOW_FILTERS = frozenset(
    {
        "list",
        "map",
        "select",
        "selectattr",
        "reject",
        "rejectattr",
        "reverse",
        "batch",
        "slice",
        "float",
        "int",
        "round",
    }
)
_REMOVED_FILTERS = frozenset({"random", "urlize", "filesizeformat", "pprint", "xmlattr", "forceescape", "striptags"})


def budgeted_filters(filters: Mapping[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    budgeted = {
        name: _budgeted_filter(name, function) for name, function in filters.items() if name not in _REMOVED_FILTERS
    }
    budgeted["tojson"] = _to_json
    return budgeted


def _budgeted_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    if name in _CHEAP_FILTERS:
        return function
    # Some filters take the environment or context first; `wraps` keeps the mark that says so.
    first = 1 if hasattr(function, "jinja_pass_arg") else 0

    @functools.wraps(function)
    def budgeted(*args: Any, **kwargs: Any) -> Any:
        value = args[first] if len(args) > first else None
        if isinstance(value, Iterator):
            value = list(CountedIterable(value, 1))
            args = (*args[:first], value, *args[first + 1 :])
        _check_filter(name, value, args[first + 1 :], kwargs)
        return function(*args, **kwargs)

    return budgeted


def _check_filter(name: str, value: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    budget = current_budget.get()
    options = [*args, *kwargs.values()]
    for option in options:
        check_integer(option, f"a filter {name}")
    if name in _SHALLOW_FILTERS:
        budget.charge(1 + (len(cast("str", value)) if isinstance(value, str | list | tuple | dict) else 1))
        return
    num_chars = text_length(value)
    texts = [len(option) for option in options if isinstance(option, str)]
    match name:
        case "replace":
            old = options[0] if options else ""
            subject = str(value)
            repeats = subject.count(old) if isinstance(old, str) else len(subject)
            num_chars += repeats * (texts[1] if len(texts) > 1 else 0)
        case "join" if isinstance(value, list | tuple | dict):
            num_chars += len(cast("list[object]", value)) * max(texts, default=0)
        case "indent" | "wordwrap":
            num_chars += (str(value).count("\n") + num_chars // 16 + 1) * (max(texts, default=0) + MAX_WIDTH // 10)
        case "format":
            check_format(str(value), options, "%")
        case "sum" if isinstance(value, list | tuple | str):
            if any(not isinstance(item, int | float) for item in options):
                raise BudgetExceeded("summed up something else than numbers")
        case _:
            num_chars = num_chars * 6 + sum(texts)  # escapes make up to six characters of one
    budget.charge_text(num_chars)


_COMPARING_TESTS = ("eq", "==", "equalto", "ne", "!=", "gt", ">", "greaterthan", "ge", ">=", "lt", "<", "lessthan")


def budgeted_tests(tests: Mapping[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    budgeted = dict(tests)
    for name in (*_COMPARING_TESTS, "le", "<=", "in"):
        budgeted[name] = _weighing(tests[name])
    return budgeted


def _weighing(test: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(test)
    def weighing(*args: Any) -> Any:
        for value in args:
            text_length(value)
        return test(*args)

    return weighing


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """JSON as templates of Hugging Face models expect it: not escaped for HTML."""
    check_integer(indent, "an indent", 32)
    num_chars = text_length(value)
    current_budget.get().charge_text(num_chars * (6 if indent is None else 6 + indent))
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
