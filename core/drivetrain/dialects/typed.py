"""Values that a model wrote as text, as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import cast

from drivetrain.dialects.forms import Tool

MAX_VALUE_DEPTH = 64
_TEXTUAL = frozenset({"string"})


def is_text(tool: Tool | None, argument: str) -> bool:
    """Whether the schema wants a string here and nothing else."""
    return _types(_schema(tool, argument)) == _TEXTUAL


def as_json(text: str, tool: Tool | None, argument: str) -> str:
    """A value between tags: JSON where it is some and the schema does not forbid it, else a string."""
    stripped = text.strip()
    if stripped in _PYTHON_WORDS:
        stripped = json.dumps(_PYTHON_WORDS[stripped])
    value = _loaded(stripped)
    types = _types(_schema(tool, argument))
    if value is _NONE or (
        types and _kind(value) not in types and not (_kind(value) == "integer" and "number" in types)
    ):
        return json.dumps(text, ensure_ascii=False)
    return stripped


def property_names(tool: Tool | None) -> list[str]:
    """Names of the arguments in the order of the schema."""
    properties = None if tool is None else tool.parameters.get("properties")
    return list(cast("Mapping[str, object]", properties)) if isinstance(properties, dict) else []


def _schema(tool: Tool | None, argument: str) -> Mapping[str, object]:
    properties = None if tool is None else tool.parameters.get("properties")
    schema = cast("Mapping[str, object]", properties).get(argument) if isinstance(properties, dict) else None
    return cast("Mapping[str, object]", schema) if isinstance(schema, dict) else {}


def _types(schema: Mapping[str, object]) -> frozenset[str]:
    """Types that a schema names; empty where it allows any."""
    named = schema.get("type")
    if isinstance(named, str):
        return frozenset({named})
    if isinstance(named, list):
        return frozenset(str(name) for name in cast("list[object]", named))
    options = schema.get("anyOf", schema.get("oneOf"))
    if isinstance(options, list):
        found = [
            _types(cast("Mapping[str, object]", option))
            for option in cast("list[object]", options)
            if isinstance(option, dict)
        ]
        return frozenset[str]().union(*found) if found and all(found) else frozenset()
    values = schema.get("enum")
    if isinstance(values, list) and values:
        return frozenset(_kind(value) for value in cast("list[object]", values))
    return frozenset()


_NONE = object()
_PYTHON_WORDS: dict[str, object] = {"True": True, "False": False, "None": None}


def _loaded(text: str) -> object:
    try:
        return cast("object", json.loads(text, parse_constant=_refuse))
    except (ValueError, RecursionError):
        return _NONE


def _refuse(word: str) -> object:
    raise ValueError(word)


def _kind(value: object) -> str:
    match value:
        case bool():
            return "boolean"
        case None:
            return "null"
        case int():
            return "integer"
        case float():
            return "integer" if value.is_integer() else "number"
        case str():
            return "string"
        case list():
            return "array"
        case _:
            return "object"
