"""Objects get the keys that their schema lists, unless it says that there may be others."""

from __future__ import annotations

import json
from array import array
from typing import Any

import jsonschema
import pytest

from drivetrain.grammar import Grammar
from drivetrain.grammar.listed_keys import with_listed_keys
from fakes.tiny_grammars import tiny_grammars, tiny_tokenizer

AGE: dict[str, Any] = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
NAMED: dict[str, Any] = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}


def accepts(schema: dict[str, Any], text: str) -> bool:
    """Whether the grammar lets an answer be this text and end."""
    matcher = tiny_grammars().compile(Grammar(kind="json_schema", value=json.dumps(schema))).matcher()
    matcher.follow(array("i", tiny_tokenizer().encode(text, add_special_tokens=False)), 0)
    return matcher.ended


@pytest.mark.parametrize(
    ("schema", "allowed", "refused"),
    [
        (AGE, {"age": 5}, {"age": 5, "name": "Ann"}),
        (AGE | {"additionalProperties": True}, {"age": 5, "name": "Ann"}, {"name": "Ann"}),
        (AGE | {"additionalProperties": {"type": "boolean"}}, {"age": 5, "x": True}, {"age": 5, "x": 1}),
        (AGE | {"unevaluatedProperties": True}, {"age": 5, "x": True}, {"x": 1}),
        ({"properties": {}, "type": "object"}, {}, {"a": 1}),
        ({"type": "object"}, {"a": {"b": 1}}, []),
        (AGE | {"required": ["age", "b"]}, {"age": 5, "b": [1]}, {"age": 5, "b": 1, "c": 1}),
        (AGE | {"minProperties": 2}, {"age": 5, "b": 1}, {"age": 5}),
        ({"type": "array", "items": AGE}, [{"age": 1}], [{"age": 1, "b": 2}]),
        ({"type": "object", "properties": {"a": AGE}}, {"a": {"age": 1}}, {"a": {"age": 1, "b": 2}}),
        ({"type": "object", "additionalProperties": AGE}, {"a": {"age": 1}}, {"a": {"age": 1, "b": 2}}),
        ({"anyOf": [AGE, NAMED]}, {"name": "a"}, {"name": "a", "b": 1}),
        ({"$ref": "#/$defs/a", "$defs": {"a": AGE}}, {"age": 1}, {"age": 1, "b": 1}),
        ({"allOf": [{"$ref": "#/$defs/a"}], "title": "A", "$defs": {"a": AGE}}, {"age": 1}, {"age": 1, "b": 1}),
        ({"allOf": [AGE, NAMED]}, {"age": 1, "name": "a"}, {"age": 1}),
        ({"allOf": [{"$ref": "#/$defs/a~1b"}, NAMED], "$defs": {"a/b": AGE}}, {"age": 1, "name": "a"}, {"age": 1}),
        (AGE | {"anyOf": [NAMED, {"required": ["age"]}]}, {"age": 1, "name": "a"}, {"name": "a"}),
        ({"properties": {"a": {}}, "const": {"a": 1, "b": 2}}, {"a": 1, "b": 2}, {"a": 1}),
    ],
    ids=str,
)
def test_keys_are_those_of_the_schema(schema: dict[str, Any], allowed: object, refused: object) -> None:
    jsonschema.validate(allowed, schema)
    assert accepts(schema, json.dumps(allowed))
    assert not accepts(schema, json.dumps(refused))


def test_a_part_stays_open_wherever_it_is_joined_and_closed_where_it_stands_alone() -> None:
    defs = {"last": AGE, "middle": {"$ref": "#/$defs/last"}, "first": {"allOf": [{"$ref": "#/$defs/middle"}, NAMED]}}
    closed = with_listed_keys({"$ref": "#/$defs/first", "$defs": {**defs, "alone": AGE}})
    assert closed["$defs"] == {**defs, "alone": AGE | {"additionalProperties": False}}


def test_what_cannot_be_followed_changes_nothing() -> None:
    named = {"allOf": [{"$ref": "#anchor"}, NAMED], "$defs": {"a": AGE | {"$anchor": "anchor"}}}
    assert with_listed_keys(named) == named
    # Each pass finds one more, so it is given up.
    chain: dict[str, Any] = {f"d{at:02}": {"$ref": f"#/$defs/d{at - 1:02}"} for at in range(1, 40)}
    deep = {"$defs": {"d00": AGE, **chain}, "allOf": [{"$ref": "#/$defs/d39"}, NAMED]}
    assert with_listed_keys(deep) == deep
