"""What is wrong with a grammar, said about what was sent: the compiler speaks of the text that was made from it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import cast

from drivetrain.grammar.grammar import Grammar

_SHOWN_CHARS = 300
_CONTEXT_CHARS = 20
_SEARCHED_CHARS = 4096
"""Of an expression for a sign; the search may take the square of its length."""
_MAX_TRIES = 64
_MAX_SEARCH_S = 0.25
_MISSING = re.compile(r"Unimplemented keys: (\[.*?\])")
_EXCERPT = re.compile(r"\n +\d+ \| ")
_PLACE = re.compile(r"(?:at )?(\d+)\((\d+)\): ")
_PARSE_ERROR = re.compile(r"regex parse error:\n {4}(?P<seen>.*)\n {4}(?P<before> *)\^*\nerror: (?P<reason>[^\n]*)")
_ASSERTION = re.compile(r"lookarounds not supported yet; (?P<name>\w+) in regex")
_ASSERTIONS = {"Start": "^", "End": "$", "Word": r"\b"}
"""How an assertion is written, by the beginning of its name in the regex library."""
_SIGN = re.compile(r"(?P<word>\\[bB])|\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|(?P<edge>[\^$])", re.DOTALL)
_SHARED = ("$defs", "definitions")
_MAPS = ("properties", "patternProperties", *_SHARED)
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_SCHEMAS = ("items", "additionalProperties", "additionalItems")


def fault_of(grammar: Grammar, error: str, refused: Callable[[str], str | None]) -> str:
    """Why a grammar is refused.

    Args:
        error: the compiler's words for it.
        refused: the compiler's words about a JSON schema alone; None where it is fine.
    """
    for name, schema in _schemas(grammar):
        if (place := _place(schema, name, refused)) is not None:
            where, words = place
            return f"{where}: {_plain(words)}" if where else _plain(words)
    if grammar.kind == "regex":
        return _plain(error, regex=grammar.value)
    if grammar.kind == "lark" and not grammar.schemas:
        return _in_lark(grammar.value, error)
    return _plain(error)


def _schemas(grammar: Grammar) -> Iterator[tuple[str, object]]:
    """What each JSON schema in a grammar is called, and the schema."""
    if grammar.kind == "json_schema":
        yield "", json.loads(grammar.value)
    elif grammar.kind == "structural_tag":
        for at, tag in enumerate(json.loads(grammar.value)["structures"]):
            yield f"structures[{at}].schema", tag.get("schema", {})
    for name, schema in grammar.schemas:
        yield name, json.loads(schema)


def _place(schema: object, name: str, refused: Callable[[str], str | None]) -> tuple[str, str] | None:
    """(the innermost part of a schema that is refused by itself, the compiler's words); None if all of it is fine.

    Compiling part by part is bounded: the place that is told may be further out than the fault.
    """
    began_s = time.thread_time()
    error = refused(json.dumps(schema))
    if error is None:
        return None
    tries = iter(range(_MAX_TRIES))
    root = cast("Mapping[str, object]", schema if isinstance(schema, dict) else {})
    shared = {key: root[key] for key in _SHARED if key in root}

    def inner(parts: Iterator[tuple[str, object]]) -> tuple[str, object] | None:
        for place, part in parts:
            if next(tries, None) is None or time.thread_time() - began_s > _MAX_SEARCH_S:
                return None
            if isinstance(part, dict) and refused(json.dumps({**shared, **part})) == error:
                return place, cast("object", part)
        return None

    path, part = name, cast("object", root)
    while (found := inner(_parts(part))) is not None:
        place, part = found
        path = f"{path}.{place}" if path else place
    return path, error


def _parts(schema: object) -> Iterator[tuple[str, object]]:
    """The schemas right within a schema, each with its place in it; those that others refer to first."""
    keywords = cast("Mapping[str, object]", schema if isinstance(schema, dict) else {})
    for keyword, value in sorted(keywords.items(), key=lambda pair: pair[0] not in _SHARED):
        if isinstance(value, dict) and keyword in _MAPS:
            for name, each in cast("Mapping[str, object]", value).items():
                yield f"{keyword}.{name[:_CONTEXT_CHARS]}", each
        elif isinstance(value, list) and keyword in _LISTS:
            for at, each in enumerate(cast("list[object]", value)):
                yield f"{keyword}[{at}]", each
        elif keyword in _SCHEMAS:
            yield keyword, value


def _in_lark(text: str, error: str) -> str:
    found = _PLACE.match(error)
    if found is None:
        return _plain(error)
    number, column = int(found[1]), int(found[2])
    lines = text.split("\n")
    line = lines[number - 1] if number <= len(lines) else ""
    reason = _plain(error)
    return f"line {number}, column {column}: {reason}{', in ' + _quoted(line, column - 1) if line.strip() else ''}"


def _plain(error: str, *, regex: str | None = None) -> str:
    """The compiler's words without what it was given, in ours where we know what they mean.

    Args:
        regex: the expression that was sent, where that is all.
    """
    missing = _MISSING.search(error)
    if missing:
        names: list[str] = json.loads(missing[1])
        listed = ", ".join(f'"{name}"' for name in names)
        return f"the schema keyword{'s' * (len(names) > 1)} {listed} {'are' if len(names) > 1 else 'is'} not supported"
    if (found := _PARSE_ERROR.search(error)) is not None:
        seen, at = found["seen"], len(found["before"])
        expression, at = (seen, at) if regex is None else (regex, _sent_place(regex, seen, at))
        return f"{found['reason']} at character {at + 1} of the regular expression: {_quoted(expression, at)}"
    if (found := _ASSERTION.search(error)) is not None:
        return _unsupported_assertion(found["name"], regex)
    error = _EXCERPT.split(_PLACE.sub("", error, count=1).replace("<non-verbose/>", ""), maxsplit=1)[0].strip()
    if error.startswith("panic"):
        return "it cannot be compiled; simplify it"
    error = error.removeprefix("failed to compile JSON schema: ")
    return error if len(error) <= _SHOWN_CHARS else f"{error[:_SHOWN_CHARS]}..."


def _unsupported_assertion(name: str, regex: str | None) -> str:
    sign = next((sign for start, sign in _ASSERTIONS.items() if name.startswith(start)), name)
    words = f"the assertion {sign} is not supported here"
    signs = _SIGN.finditer(regex or "", 0, _SEARCHED_CHARS)
    places = [found.start() for found in signs if sign in (found["edge"], (found["word"] or "").lower())]
    if regex is None or not places:
        return f"{words}; every answer is matched from its beginning to its end"
    # One at the very beginning or end is fine.
    at = places[-1] if sign == "^" else places[0]
    return f"{words}, at character {at + 1} of the regular expression: {_quoted(regex, at)}"


def _sent_place(sent: str, seen: str, at: int) -> int:
    """Where in the expression that was sent a place of the one that the compiler saw is; that has more backslashes."""
    place = read = 0
    while read < at and place < len(sent):
        escaped = {"/": r"\/", "\n": r"\n"}.get(sent[place])
        read += 2 if escaped is not None and seen.startswith(escaped, read) else 1
        place += 1
    return place


def _quoted(text: str, at: int) -> str:
    """The text, or what is around a place in it, on one line."""
    begin, end = max(at - _CONTEXT_CHARS, 0), at + _CONTEXT_CHARS
    part = json.dumps(text[begin:end], ensure_ascii=False)
    return f"{'...' if begin else ''}{part}{'...' if end < len(text) else ''}"
