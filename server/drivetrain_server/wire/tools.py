"""Tools that a request offers, and which of them it wants called."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Literal, cast

from pydantic import Field, JsonValue, WithJsonSchema

from drivetrain.conversation import ToolUse
from drivetrain.dialects.forms import Tool
from drivetrain_server.wire.faults import shown
from drivetrain_server.wire.validation import WireModel, refuse

MAX_TOOLS = 128
MAX_DESCRIPTION = 16_384
MAX_SCHEMA_DEPTH = 32
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class ToolFunction(WireModel):
    """A function, its arguments described by a JSON schema."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    """1 to 64 of `A-Z a-z 0-9 _ . -`."""
    description: Annotated[str, Field(max_length=MAX_DESCRIPTION)] | None = None
    """What it does, for the model."""
    parameters: dict[str, JsonValue] | None = None
    """JSON schema of its arguments, an object. Default: no arguments."""
    strict: bool | None = None
    """Calls fit the schema even where `tool_choice` is auto. Default: false."""


class ToolOffer(WireModel):
    """A tool that the model may call."""

    type: Literal["function"]
    """There is one type."""
    function: ToolFunction
    """The function."""


_NAMED_SCHEMA = {
    "title": "NamedTool",
    "type": "object",
    "properties": {
        "type": {"const": "function"},
        "function": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
    },
    "required": ["type", "function"],
}
CHOICE_SCHEMA = {
    "anyOf": [
        {"enum": ["none", "auto", "required", None]},
        _NAMED_SCHEMA,
        {
            "title": "AllowedTools",
            "type": "object",
            "properties": {
                "type": {"const": "allowed_tools"},
                "allowed_tools": {
                    "type": "object",
                    "properties": {
                        "mode": {"enum": ["auto", "required"]},
                        "tools": {"type": "array", "items": _NAMED_SCHEMA, "minItems": 1},
                    },
                    "required": ["mode", "tools"],
                },
            },
            "required": ["type", "allowed_tools"],
        },
    ]
}
ToolChoice = Annotated[JsonValue, WithJsonSchema(CHOICE_SCHEMA)]


def tool_use(offers: Sequence[ToolOffer] | None, choice: JsonValue, parallel: bool | None) -> ToolUse:
    """Offers and choice, checked against each other.

    Raises:
        HttpError: 400 that names the field at fault.
    """
    tools: dict[str, Tool] = {}
    for at, offer in enumerate(offers or ()):
        function = offer.function
        if function.name in tools:
            raise refuse(f"tools[{at}].function.name", f'"{function.name}" was offered before; name each tool once')
        tools[function.name] = _tool(function, f"tools[{at}].function")
    names, required, named = _chosen(choice)
    if choice not in (None, "none", "auto") and not tools:
        raise refuse("tool_choice", "it is allowed only with tools; add them or leave it out")
    for name in names or ():
        if name not in tools:
            raise refuse("tool_choice", f'tools has no function "{name[:64]}"; it has {", ".join(tools)[:200]}')
    if names is not None:
        tools = {name: tools[name] for name in tools if name in names}
    return ToolUse(tools=tools, required=required, parallel=parallel is not False and not named)


def _tool(function: ToolFunction, place: str) -> Tool:
    parameters = function.parameters or {"type": "object", "properties": {}}
    if deeper_than(parameters, MAX_SCHEMA_DEPTH):
        raise refuse(f"{place}.parameters", f"it is nested deeper than {MAX_SCHEMA_DEPTH} levels")
    if parameters.get("type", "object") != "object":
        raise refuse(f"{place}.parameters.type", f'arguments are an "object"; got {shown(parameters["type"])}')
    if not isinstance(parameters.get("properties", {}), dict):
        raise refuse(f"{place}.parameters.properties", f"expected an object; got {shown(parameters['properties'])}")
    if function.strict and function.parameters is None:
        raise refuse(f"{place}.strict", "it needs parameters to keep to; add them")
    return Tool(
        name=function.name,
        description=function.description or "",
        parameters={"type": "object", **cast("dict[str, object]", parameters)},
        strict=bool(function.strict),
    )


def _chosen(choice: JsonValue) -> tuple[list[str] | None, bool, bool]:
    """(names that may be called, None for all; whether one must be; whether it is that one, once)."""
    match choice:
        case None | "auto":
            return None, False, False
        case "none":
            return [], False, False
        case "required":
            return None, True, False
        case {"type": "function"}:
            return [_named(choice, "tool_choice")], True, True
        case {
            "type": "allowed_tools",
            "allowed_tools": {"mode": "auto" | "required" as mode, "tools": [_, *_] as tools},
        }:
            names = [_named(tool, f"tool_choice.allowed_tools.tools[{at}]") for at, tool in enumerate(tools)]
            return names, mode == "required", False
        case _:
            raise refuse(
                "tool_choice",
                'expected "none", "auto", "required", {"type": "function", "function": {"name": ...}} or '
                '{"type": "allowed_tools", "allowed_tools": {"mode": "auto" or "required", "tools": [...]}}; '
                f"got {shown(choice)}",
            )


def _named(value: JsonValue, place: str) -> str:
    match value:
        case {"type": "function", "function": {"name": str(name)}} if _NAME.fullmatch(name):
            return name
        case _:
            raise refuse(place, f'expected {{"type": "function", "function": {{"name": ...}}}}; got {shown(value)}')


def deeper_than(value: JsonValue, depth: int) -> bool:
    """Whether a value is nested deeper than so many levels."""
    if not isinstance(value, (list, dict)):
        return False
    parts = value.values() if isinstance(value, dict) else value
    return depth == 0 or any(deeper_than(part, depth - 1) for part in parts)
