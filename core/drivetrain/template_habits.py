"""What a chat template expects of messages, read off its syntax tree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import nodes


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateHabits:
    """What one template expects.

    Attributes:
        takes_parts: it loops over a message's content, so content may be a list of parts.
        takes_null: it tells content that is none from content that is empty.
        takes_argument_text: it joins the arguments of a call to other text, so they must be text and no object.
        reads_calls: it writes the calls of earlier turns.
        reads_tool_messages: it knows messages of the role `tool`.
    """

    takes_parts: bool
    takes_null: bool
    takes_argument_text: bool
    reads_calls: bool
    reads_tool_messages: bool


def template_habits(tree: nodes.Template) -> TemplateHabits:
    """The habits of a parsed template."""
    from jinja2 import nodes

    content = _names_of(tree, "content")
    return TemplateHabits(
        takes_parts=any(_mentions(loop.iter, "content", content) for loop in tree.find_all(nodes.For)),
        takes_null=any(
            test.name == "none" and _mentions(test.node, "content", content) for test in tree.find_all(nodes.Test)
        ),
        takes_argument_text=_takes_argument_text(tree),
        reads_calls=_mentions(tree, "tool_calls", set()),
        reads_tool_messages=any(constant.value == "tool" for constant in tree.find_all(nodes.Const)),
    )


def _takes_argument_text(tree: nodes.Template) -> bool:
    from jinja2 import nodes

    names = _names_of(tree, "arguments")
    handled = [test.node for test in tree.find_all(nodes.Test) if test.name in ("string", "mapping")]
    handled += [each.node for each in tree.find_all(nodes.Filter) if each.node is not None and each.name != "trim"]
    handled += [each.node for each in tree.find_all(nodes.Getattr) if each.attr in ("items", "keys")]
    handled += [loop.iter for loop in tree.find_all(nodes.For)]
    if any(_mentions(node, "arguments", names) for node in handled):
        return False
    return any(_is(part, "arguments", names) for part in _joined(tree))


def _joined(tree: nodes.Template) -> Iterator[nodes.Node]:
    """Operands of everything that makes one text of several."""
    from jinja2 import nodes

    for add in tree.find_all(nodes.Add):
        yield from (add.left, add.right)
    for parts in tree.find_all((nodes.Concat, nodes.Output)):
        yield from parts.nodes


def _names_of(tree: nodes.Template, attribute: str) -> set[str]:
    """Variables that are set from an attribute of this name, and the name itself where it stands for a parameter."""
    from jinja2 import nodes

    names = {attribute}
    for assign in tree.find_all(nodes.Assign):
        if isinstance(assign.target, nodes.Name) and _mentions(assign.node, attribute, names):
            names.add(assign.target.name)
    return names


def _mentions(node: nodes.Node, attribute: str, names: set[str]) -> bool:
    from jinja2 import nodes

    parts = (node, *node.find_all((nodes.Name, nodes.Getattr, nodes.Getitem)))
    return any(_is(part, attribute, names) for part in parts)


def _is(node: nodes.Node, attribute: str, names: set[str]) -> bool:
    from jinja2 import nodes

    match node:
        case nodes.Name(name=name):
            return name in names
        case nodes.Getattr(attr=name) | nodes.Getitem(arg=nodes.Const(value=name)):
            return name == attribute
        case _:
            return False
