"""The Jinja environment in which chat templates run: sandboxed, immutable, and on a budget.

Templates come with models, so they are foreign code. Jinja's sandbox keeps them from reaching Python's internals; the
budget keeps them from using up time and memory. Everything whose cost can grow is charged to it before it is done:

- loops pay for each turn by the size of their body, macros for each call;
- operators, filters, tests and methods pay for the values that they walk over or copy;
- text pays by its length wherever it is joined, repeated, formatted or put out.

So the work of a rendering is bounded in steps, and no single step between two looks at the clock is long.
"""

from __future__ import annotations

import functools
import json
import re
import time
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

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


_budget: ContextVar[Budget] = ContextVar("budget")


def start_budget(*, max_steps: int, max_chars: int, max_cpu_s: float) -> Budget:
    """A fresh budget for the rendering that this thread is about to do."""
    budget = Budget(
        steps_left=max_steps,
        max_chars=max_chars,
        deadline_s=time.thread_time() + max_cpu_s,
        chars_left=max_chars,
        next_look=max_steps,
    )
    _budget.set(budget)
    return budget


def _weigh(value: object) -> int:
    """Pay for walking over a value with everything in it, as printing or comparing does; return its characters.

    Shared parts count as often as they appear, for that is how often they would be walked over.
    """
    budget = _budget.get()
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


def _integer(value: object, what: str, most: int = MAX_WIDTH) -> None:
    if isinstance(value, int) and abs(value) > most:
        raise BudgetExceeded(f"asked for {what} of {value if abs(value) < 10**12 else 'an absurd number'}")


class TemplateNamespace(Namespace):
    """`namespace()`: no underscore names, and a short representation, so that printing it costs nothing."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, rest = args[0], args[1:]
        values: dict[str, Any] = dict(*rest, **kwargs)
        for name in values:
            _check_attribute(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_attribute(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<namespace>"


def _check_attribute(name: object) -> None:
    if not isinstance(name, str) or name.startswith("_"):
        raise SecurityError(f"namespace attribute {name!r}: names must not start with an underscore")


class _CountedIterable:
    """An iterable that pays for each item. Keeps its length, so that `loop.length` costs no copy."""

    __slots__ = ("_items", "_weight")

    def __init__(self, items: Any, weight: int) -> None:
        self._items = items
        self._weight = weight

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Any]:
        charge, weight = _budget.get().charge, self._weight
        for item in self._items:
            charge(weight)
            yield item


class _Instrument(NodeTransformer):
    """Rewrites a parsed template so that whatever can be repeated pays for it."""

    def generic_visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
        return super().generic_visit(node, *args, **kwargs)

    def visit_For(self, node: nodes.For) -> nodes.Node:
        weight = _weight([*node.body, *([node.test] if node.test else [])])
        self.generic_visit(node)
        node.iter = _hook("counted", [node.iter, nodes.Const(weight)], node)
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return self._charged_body(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        return self._charged_body(node)

    def _charged_body(self, node: nodes.Macro | nodes.CallBlock) -> nodes.Node:
        weight = _weight(node.body)
        self.generic_visit(node)
        charge = _hook("charged", [nodes.Const(weight)], node)
        node.body = [nodes.ExprStmt(charge, lineno=node.lineno), *node.body]
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _hook("joined", node.nodes, node)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        operands = [node.expr, *(operand.expr for operand in node.ops)]
        contains = any(operand.op in ("in", "notin") for operand in node.ops)
        if contains or not any(isinstance(operand, nodes.Const) for operand in operands):
            if not isinstance(node.expr, nodes.Const):
                node.expr = _hook("weighed", [node.expr], node)
            for operand in node.ops:
                if not isinstance(operand.expr, nodes.Const):
                    operand.expr = _hook("weighed", [operand.expr], node)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = _hook("sliced", [node.node], node)
        return node

    def visit_Pair(self, node: nodes.Pair) -> nodes.Node:
        self.generic_visit(node)
        if not isinstance(node.key, nodes.Const):
            node.key = _hook("weighed", [node.key], node)
        return node


def _hook(name: str, arguments: Sequence[nodes.Node], at: nodes.Node) -> nodes.Call:
    call = nodes.Call(nodes.EnvironmentAttribute(name), cast("list[nodes.Expr]", list(arguments)), [], None, None)
    return cast("nodes.Call", call.set_lineno(at.lineno))


def _weight(body: Iterable[nodes.Node]) -> int:
    """Nodes evaluated by running a body once; inner loops pay for themselves, literal text by its length."""
    total = 1
    stack = list(body)
    while stack:
        node = stack.pop()
        total += 1
        if isinstance(node, nodes.TemplateData):
            total += len(node.data) // 8
        elif isinstance(node, nodes.For):
            stack.append(node.iter)
            continue
        elif isinstance(node, nodes.Macro):
            continue
        stack.extend(node.iter_child_nodes())
    return total


class _GenerationBlock(Extension):
    """`{% generation %}` marks the assistant's words for training; for serving it is only its content."""

    tags = {"generation"}  # noqa: RUF012 - the attribute that Jinja reads

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """Compiles and runs chat templates; one instance serves all of them, for it has no state of its own."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self, now: Callable[[], datetime] = datetime.now) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # constants are not folded: that would run filters outside of any budget
            extensions=[_GenerationBlock, loopcontrols],
            finalize=_finalize,
            cache_size=0,
        )
        self.filters = _budgeted_filters(self.filters)
        self.tests = _budgeted_tests(self.tests)

        def strftime_now(format: str) -> str:
            if len(format) > 200 or re.search(r"%[-_0^#]*\d", format):
                raise BudgetExceeded(f"asked for the time in the form {format[:40]!r}")
            return now().strftime(format)

        self.globals = {
            "range": self.globals["range"],
            "dict": _make_dict,
            "namespace": TemplateNamespace,
            "cycler": self.globals["cycler"],
            "joiner": self.globals["joiner"],
            "raise_exception": _raise_exception,
            "strftime_now": strftime_now,
        }

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        return cast("nodes.Template", _Instrument().visit(tree))

    # What instrumented templates call.

    def counted(self, items: Any, weight: int) -> Any:
        """A loop's items, each paying for one turn."""
        return items if isinstance(items, Undefined) else _CountedIterable(items, weight)

    def charged(self, weight: int) -> None:
        """One call of a macro or block."""
        _budget.get().charge(weight)

    def joined(self, *parts: Any) -> str:
        """The `~` operator."""
        _budget.get().charge_text(sum(_text_length(part) for part in parts))
        return "".join([str(part) for part in parts])

    def weighed(self, value: Any) -> Any:
        """A value that is about to be compared or hashed."""
        if isinstance(value, str | list | tuple | dict):
            _weigh(cast("object", value))
        return cast("Any", value)

    def sliced(self, value: Any) -> Any:
        """A value that is about to be copied in part."""
        if isinstance(value, str):
            _budget.get().charge_text(len(value))
        elif isinstance(value, list | tuple):
            _budget.get().charge(len(cast("list[object]", value)))
        return cast("Any", value)

    # What Jinja calls.

    @staticmethod
    def concat(parts: Iterable[str]) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Join the buffer of a block or macro."""
        pieces = list(parts)
        _budget.get().charge_text(sum(map(len, pieces)))
        return "".join(pieces)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(argument, tuple):
            _weigh(cast("object", argument))
        return super().getitem(obj, cast("Any", argument))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`str.format`, which Jinja replaces by one that keeps to the sandbox, pays like all else."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        safe_format, pattern = wrapped, str(value.__self__)

        def budgeted_format(*args: Any, **kwargs: Any) -> str:
            _check_format(pattern, [*args, *kwargs.values()], "{")
            return safe_format(*args, **kwargs)

        return budgeted_format

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        _check_operator(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(  # pyright: ignore[reportIncompatibleMethodOverride]
        __self,  # noqa: N805 - Jinja's own name, which no keyword argument can collide with
        __context: Context,
        __obj: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        _budget.get().charge(1)
        if isinstance(__obj, types.BuiltinMethodType) and not isinstance(__obj.__self__, types.ModuleType):
            args = _check_method(__obj.__self__, __obj.__name__, args, kwargs)
        elif isinstance(__obj, LoopContext) and args:
            args = (_CountedIterable(args[0], 50), *args[1:])
        return super().call(__context, __obj, *args, **kwargs)


def _raise_exception(message: object = "") -> None:
    raise TemplateError(str(message)[:2000])


def _make_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def _finalize(value: Any) -> Any:
    """Every expression that is put out passes here."""
    _budget.get().charge_output(_text_length(value))
    return value


def _text_length(value: object) -> int:
    """Characters that `str(value)` would have, about; pays for walking over containers."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, list | tuple | dict | set):
        return _weigh(cast("object", value))
    return 16


def _check_operator(operator: str, left: Any, right: Any) -> None:
    budget = _budget.get()
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
        _check_format(left if isinstance(left, str) else left.decode("latin-1"), right, "%")
    else:
        budget.charge(1)


def _check_format(pattern: str, values: object, marker: str) -> None:
    """Refuse widths and repetitions that would make a long text of a short pattern."""
    if re.search(r"\d{4}", pattern) or "*" in pattern or re.search(r"\{[^}]*\{", pattern):
        raise BudgetExceeded(f"asked for the text format {pattern[:60]!r}")
    _budget.get().charge_text(len(pattern) + pattern.count(marker) * (_text_length(values) + MAX_WIDTH))


def _check_method(target: object, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
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
            _weigh(cast("object", argument))
    if isinstance(target, list | tuple | dict) and name in ("count", "index", "copy"):
        _weigh(cast("object", target))
    return args


def _check_text_method(target: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    budget = _budget.get()
    match name, args:
        case ("center" | "ljust" | "rjust" | "zfill", (width, *_)):
            _integer(width, "a width")
        case ("expandtabs", _):
            size = args[0] if args else kwargs.get("tabsize", 8)
            _integer(size, "a tab size")
            budget.charge_text(len(target) + target.count("\t") * (size if isinstance(size, int) else 8))
        case ("replace", (str(old), str(new), *_)):
            budget.charge_text(len(target) + target.count(old) * len(new))
        case ("join", (items,)):
            parts = list(_CountedIterable(items, 1))
            budget.charge_text(sum(_text_length(part) for part in parts) + len(target) * len(parts))
            return (parts,)
        case ("translate" | "maketrans" | "encode", _):
            raise BudgetExceeded(f"called the text method {name}")
        case _:
            budget.charge_text(len(target))
    return args


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


def _budgeted_filters(filters: Mapping[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
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
            value = list(_CountedIterable(value, 1))
            args = (*args[:first], value, *args[first + 1 :])
        _check_filter(name, value, args[first + 1 :], kwargs)
        return function(*args, **kwargs)

    return budgeted


def _check_filter(name: str, value: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    budget = _budget.get()
    options = [*args, *kwargs.values()]
    for option in options:
        _integer(option, f"a filter {name}")
    if name in _SHALLOW_FILTERS:
        budget.charge(1 + (len(cast("str", value)) if isinstance(value, str | list | tuple | dict) else 1))
        return
    num_chars = _text_length(value)
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
            _check_format(str(value), options, "%")
        case "sum" if isinstance(value, list | tuple | str):
            if any(not isinstance(item, int | float) for item in options):
                raise BudgetExceeded("summed up something else than numbers")
        case _:
            num_chars = num_chars * 6 + sum(texts)  # escapes make up to six characters of one
    budget.charge_text(num_chars)


_COMPARING_TESTS = ("eq", "==", "equalto", "ne", "!=", "gt", ">", "greaterthan", "ge", ">=", "lt", "<", "lessthan")


def _budgeted_tests(tests: Mapping[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    budgeted = dict(tests)
    for name in (*_COMPARING_TESTS, "le", "<=", "in"):
        budgeted[name] = _weighing(tests[name])
    return budgeted


def _weighing(test: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(test)
    def weighing(*args: Any) -> Any:
        for value in args:
            _text_length(value)
        return test(*args)

    return weighing


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """JSON as templates of Hugging Face models expect it: not escaped for HTML."""
    _integer(indent, "an indent", 32)
    num_chars = _text_length(value)
    _budget.get().charge_text(num_chars * (6 if indent is None else 6 + indent))
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
