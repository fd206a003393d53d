"""Objects in answers have the keys that their schema lists: what JSON Schema leaves open is closed where it can be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast
from urllib.parse import unquote

Schema = dict[str, object]

_PARTS = ("allOf", "anyOf", "oneOf")
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("prefixItems", "items")
_SINGLE = ("items", "additionalProperties", "additionalItems")
_OPEN = ("additionalProperties", "unevaluatedProperties")
"""Keywords that say themselves which further keys there may be."""
_OF_OBJECTS = frozenset(
    ("properties", "patternProperties", "required", "minProperties", "maxProperties", "enum", "const", *_OPEN)
)
_MAX_PASSES = 8


def with_listed_keys(schema: Schema) -> Schema:
    """The schema, in which objects with `properties` have no other keys, unless they say that they may.

    Left open as they are: parts that are joined with others (by `allOf`, or beside `anyOf`, `oneOf` or `$ref`), as each
    lists only its own keys, and whatever such a part refers to. Every answer to the result is one to the schema.
    """
    joined: set[str] = set()
    for _ in range(_MAX_PASSES):
        known = len(joined)
        closed = _Walk(joined).schema(schema, "#", alone=True)
        if any(place != "#" and not place.startswith("#/") for place in joined):
            return schema  # it names the part in a way that is not followed here
        if len(joined) == known:
            return closed
    return schema


class _Walk:
    """One pass through a schema.

    Args:
        joined: places of schemas that a joined part refers to; those that are found are added.
    """

    def __init__(self, joined: set[str]) -> None:
        self._joined = joined

    def schema(self, schema: Schema, place: str, *, alone: bool) -> Schema:
        """The schema at a place; `alone` if no other has to be met at the same time."""
        alone = alone and place not in self._joined and _num_parts(schema) < 2
        ref = schema.get("$ref")
        if isinstance(ref, str) and not alone:
            self._joined.add(unquote(ref))
        made = schema | dict(self._inner(schema, place, alone=alone))
        return _closed(made) if alone else made

    def _inner(self, schema: Schema, place: str, *, alone: bool) -> Iterator[tuple[str, object]]:
        for keyword, value in schema.items():
            at = f"{place}/{keyword}"
            if isinstance(value, dict) and keyword in _MAPS:
                listed = cast("Schema", value)
                yield keyword, {name: self._any(each, f"{at}/{_escaped(name)}") for name, each in listed.items()}
            elif isinstance(value, list) and keyword in (*_PARTS, *_LISTS):
                parts = enumerate(cast("list[object]", value))
                together = alone if keyword in _PARTS else True
                yield keyword, [self._any(each, f"{at}/{number}", alone=together) for number, each in parts]
            elif keyword in _SINGLE:
                yield keyword, self._any(cast("object", value), at)

    def _any(self, value: object, place: str, *, alone: bool = True) -> object:
        return self.schema(cast("Schema", value), place, alone=alone) if isinstance(value, dict) else value


def _num_parts(schema: Schema) -> int:
    """Demands on the same object that have to be met together."""
    all_of = schema.get("allOf")
    return (
        (len(cast("list[object]", all_of)) if isinstance(all_of, list) else 0)
        + sum(keyword in schema for keyword in ("anyOf", "oneOf", "$ref"))
        + (not _OF_OBJECTS.isdisjoint(schema) if _joins(schema) else 0)
        + 2 * ("properties" in schema and ("enum" in schema or "const" in schema))
    )


def _joins(schema: Schema) -> bool:
    return any(keyword in schema for keyword in (*_PARTS, "$ref"))


def _closed(schema: Schema) -> Schema:
    properties = schema.get("properties")
    if not isinstance(properties, dict) or any(keyword in schema for keyword in _OPEN):
        return schema
    required = schema.get("required")
    names = cast("list[object]", required) if isinstance(required, list) else []
    listed = dict(cast("Schema", properties))
    for name in names:
        if isinstance(name, str):
            listed.setdefault(name, cast("Schema", {}))
    least = schema.get("minProperties", 0)
    if isinstance(least, int) and least > len(listed) and "patternProperties" not in schema:
        return schema
    return schema | {"properties": listed, "additionalProperties": False}


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
