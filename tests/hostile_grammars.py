"""Grammars that are made to cost time, memory or stack: each is refused, or answered like any other."""

from __future__ import annotations

import json
from typing import Any


def _nested(depth: int) -> str:
    return '{"type":"array","items":' * depth + "{}" + "}" * depth


def _chain(count: int, step: Any) -> dict[str, Any]:
    steps = {f"a{at}": step(at) for at in range(count)}
    return {"$defs": steps | {f"a{count}": {"type": "string"}}, "$ref": "#/$defs/a0"}


def _ref(at: int) -> dict[str, str]:
    return {"$ref": f"#/$defs/a{at}"}


_OBJECT = {"type": "object", "additionalProperties": False}
SCHEMAS: dict[str, Any] = {
    "nested deeper than the parser goes": _nested(3000),
    "nested deep": _nested(100),
    "refers to itself": {"$ref": "#"},
    "refers in a circle": {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    "refers to itself within allOf": {"$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"},
    "grows by references": _chain(12, lambda at: _OBJECT | {"properties": {key: _ref(at + 1) for key in "abcdefgh"}}),
    "grows by allOf": _chain(12, lambda at: {"allOf": [_ref(at + 1)] * 4}),
    "grows by anyOf": _chain(12, lambda at: {"anyOf": [_ref(at + 1), {"type": "array", "items": _ref(at + 1)}] * 3}),
    "multiplies alternatives": {
        "allOf": [{"oneOf": [{"properties": {f"p{at}": {"const": each}}} for each in range(4)]} for at in range(10)]
    },
    "thousands of optional properties": _OBJECT
    | {"properties": {f"property_{at}": {"type": "string"} for at in range(2000)}},
    "thousands of values": {"enum": [f"value {at * 7919 % 100000}" for at in range(6000)]},
    "endless string": {"type": "string", "minLength": 10**6, "maxLength": 10**9},
    "endless array": {"type": "array", "items": {"type": "integer"}, "minItems": 10**6},
    "nested repeats in a pattern": {"type": "string", "pattern": "^(a{1,1000}){1,1000}$"},
    "patterns that multiply": {"allOf": [{"type": "string", "pattern": f".*{sign}.{{20}}"} for sign in "abcdefgh"]},
    "divisors that multiply": {"allOf": [{"type": "integer", "multipleOf": prime} for prime in (997, 991, 983, 977)]},
    "numbers of hundreds of digits": {"type": "integer", "minimum": -(10**300), "maximum": 10**300},
    "NUL in a key": _OBJECT | {"properties": {"\x00": {"type": "string"}}, "required": ["\x00"]},
}
REGEXES = {
    "nested stars": "(.*)*" * 50,
    "nested counts": "((a{1,100}){1,100}){1,100}",
    "count of a thousand millions": "a{1000000000}",
    "automaton that doubles": ".*a.{400}b.*c.{300}",
    "many automata that double": "|".join(f".*{sign}.{{{20 + at}}}" for at, sign in enumerate("abcdefghijklmnop")),
    "deep": "(" * 5000 + "a" + ")" * 5000,
    "large Unicode classes": r"\p{L}{1,500}\p{N}{1,500}",
    "long": "abcdefghij" * 10000,
    "matches nothing": r"[^\s\S]",
    "looks around": "(?=a)b",
}
LARKS = {
    "left recursion": 'start: start start | "a" |',
    "ambiguous": 'start: e\ne: e "+" e | e "*" e | e e | "a" | ""',
    "deep": "start: " + "(" * 40000 + '"a"' + ")" * 40000,
    "chain of rules that overflows a stack": "start: r0\n"
    + "\n".join(f'r{at}: "a" r{at + 1} | "b"' for at in range(7000))
    + '\nr7000: "c"',
    "thousands of tokens": "start: "
    + " | ".join(f"T{at}" for at in range(2500))
    + "\n"
    + "\n".join(f"T{at}: /[a-z]*{at}[a-z]*/" for at in range(2500)),
    "products of repeats": 'start: a{1000}\na: b{1000}\nb: c{1000}\nc: "a"',
    "never ends": 'start: a\na: "x" a',
    "unknown rule": "start: nope",
    "NUL": "\x00" * 1000,
    "intersections": "start: T\nT: /.*a.{20}/ & /.*b.{20}/ & /.*c.{20}/ & ~/.*d.{20}/",
    "the library's own format": '{"grammars": [{"lark_grammar": "start: \\"a\\""}]}',
}


def hostile_bodies() -> dict[str, dict[str, Any]]:
    """Fields of requests, by what they do."""
    bodies: dict[str, dict[str, Any]] = {}
    for name, schema in SCHEMAS.items():
        value = schema if isinstance(schema, str) else json.dumps(schema)
        bodies[f"schema: {name}"] = {"guided_json": value}
    bodies |= {f"regex: {name}": {"guided_regex": value} for name, value in REGEXES.items()}
    bodies |= {f"lark: {name}": {"guided_grammar": value} for name, value in LARKS.items()}
    return bodies
