"""The Jinja environment in which chat templates run: sandboxed, immutable, and on a budget.

Templates come with models, so they are foreign code. Jinja's sandbox keeps them from reaching Python's internals; the
budget keeps them from using up time and memory. Everything whose cost can grow is charged to it before it is done:

- loops pay for each turn by the size of their body, macros for each call;
- operators, filters, tests and methods pay for the values that they walk over or copy;
- text pays by its length wherever it is joined, repeated, formatted or put out.

So the work of a rendering is bounded in steps, and no single step between two looks at the clock is long.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Iterable, Sequence
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

from drivetrain.template_budget import (
    BudgetExceeded,
    CountedIterable,
    current_budget,
    text_length,
    weigh,
)
from drivetrain.template_costs import check_format, check_method, check_operator
from drivetrain.template_filters import budgeted_filters, budgeted_tests


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
        self.filters = budgeted_filters(self.filters)
        self.tests = budgeted_tests(self.tests)

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
        return items if isinstance(items, Undefined) else CountedIterable(items, weight)

    def charged(self, weight: int) -> None:
        """One call of a macro or block."""
        current_budget.get().charge(weight)

    def joined(self, *parts: Any) -> str:
        """The `~` operator."""
        current_budget.get().charge_text(sum(text_length(part) for part in parts))
        return "".join([str(part) for part in parts])

    def weighed(self, value: Any) -> Any:
        """A value that is about to be compared or hashed."""
        if isinstance(value, str | list | tuple | dict):
            weigh(cast("object", value))
        return cast("Any", value)

    def sliced(self, value: Any) -> Any:
        """A value that is about to be copied in part."""
        if isinstance(value, str):
            current_budget.get().charge_text(len(value))
        elif isinstance(value, list | tuple):
            current_budget.get().charge(len(cast("list[object]", value)))
        return cast("Any", value)

    # What Jinja calls.

    @staticmethod
    def concat(parts: Iterable[str]) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Join the buffer of a block or macro."""
        pieces = list(parts)
        current_budget.get().charge_text(sum(map(len, pieces)))
        return "".join(pieces)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(argument, tuple):
            weigh(cast("object", argument))
        return super().getitem(obj, cast("Any", argument))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`str.format`, which Jinja replaces by one that keeps to the sandbox, pays like all else."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        safe_format, pattern = wrapped, str(value.__self__)

        def budgeted_format(*args: Any, **kwargs: Any) -> str:
            check_format(pattern, [*args, *kwargs.values()], "{")
            return safe_format(*args, **kwargs)

        return budgeted_format

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        check_operator(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(  # pyright: ignore[reportIncompatibleMethodOverride]
        __self,  # noqa: N805 - Jinja's own name, which no keyword argument can collide with
        __context: Context,
        __obj: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        current_budget.get().charge(1)
        if isinstance(__obj, types.BuiltinMethodType) and not isinstance(__obj.__self__, types.ModuleType):
            args = check_method(__obj.__self__, __obj.__name__, args, kwargs)
        elif isinstance(__obj, LoopContext) and args:
            args = (CountedIterable(args[0], 50), *args[1:])
        return super().call(__context, __obj, *args, **kwargs)


def _raise_exception(message: object = "") -> None:
    raise TemplateError(str(message)[:2000])


def _make_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def _finalize(value: Any) -> Any:
    """Every expression that is put out passes here."""
    current_budget.get().charge_output(text_length(value))
    return value
