"""Refusals quote what was sent and say where in it the fault lies, never the text that was made from it."""

from __future__ import annotations

import json

import pytest

from drivetrain.dialects.choose import choose_dialect
from drivetrain.dialects.forms import Tool
from drivetrain.dialects.grammar import call_grammar
from drivetrain.errors import RequestError
from drivetrain.grammar import Grammar, faults
from drivetrain.grammar.grammar import GrammarKind
from fakes.tiny_grammars import tiny_grammars

IN_DEFS = {"properties": {"a": {"$ref": "#/$defs/x"}}, "$defs": {"x": {"properties": {"deep": {"type": "foo"}}}}}


def refusal(grammar: Grammar) -> str:
    with pytest.raises(RequestError) as caught:
        tiny_grammars().compile(grammar)
    assert caught.value.param == "grammar"
    return str(caught.value)


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("[a-", 'unclosed character class at character 1 of the regular expression: "[a-"'),
        ("a/b/[", 'unclosed character class at character 5 of the regular expression: "a/b/["'),
        (r"a\/[", r'unclosed character class at character 4 of the regular expression: "a\\/["'),
        ("a\n(é", r'unclosed group at character 3 of the regular expression: "a\n(é"'),
        (
            "ü" * 50 + "[z-a]" + "x" * 50,
            f'at character 52 of the regular expression: ..."{"ü" * 19}[z-a]{"x" * 16}"...',
        ),
        ("^a^b", 'the assertion ^ is not supported here, at character 3 of the regular expression: "^a^b"'),
        ("[$]a$b$", 'the assertion $ is not supported here, at character 5 of the regular expression: "[$]a$b$"'),
        (r"a\Bb", r'the assertion \b is not supported here, at character 2 of the regular expression: "a\\Bb"'),
    ],
)
def test_a_regular_expression_is_quoted_with_the_place_of_the_fault(expression: str, words: str) -> None:
    plain = refusal(Grammar(kind="regex", value=expression))
    assert plain.endswith(words) and "\n" not in plain and "start:" not in plain
    assert refusal(Grammar(kind="regex", value=expression, within='start: "<think>" @content')) == plain


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "foo"}, "Invalid type: foo"),
        (
            {"properties": {"a": {"items": {"not": {}}}}},
            'properties.a.items: the schema keyword "not" is not supported',
        ),
        (
            {
                "type": "object",
                "properties": {"a": {"type": "string", "minLength": 3, "maxLength": 2}},
                "required": ["a"],
            },
            "Unsatisfiable schema: required property 'a' is unsatisfiable",
        ),
        ({"properties": {"a": {"pattern": "x(", "type": "string"}}}, "properties.a: unclosed group at character 2"),
        (IN_DEFS, "$defs.x.properties.deep: Invalid type: foo"),
        ({"items": {"$ref": "#/$defs/x"}, "$defs": {"y": {}}}, "items: Pointer '/$defs/x' does not exist"),
    ],
)
@pytest.mark.parametrize("kind", ["json_schema", "structural_tag"])
def test_the_part_of_a_schema_that_is_at_fault_is_named(kind: GrammarKind, schema: object, words: str) -> None:
    value, place = schema, ""
    if kind == "structural_tag":
        tags = [{"begin": "<a>", "schema": {}, "end": "</a>"}, {"begin": "<b>", "schema": schema, "end": "</b>"}]
        value, place = {"structures": tags, "triggers": ["<"]}, "structures[1].schema"
        place += ": " if words[0].isupper() else "."
    assert refusal(Grammar(kind=kind, value=json.dumps(value))).startswith(f"grammar: {place}{words}")


def test_a_grammar_of_lark_is_quoted_by_its_line() -> None:
    text = "start: A\n\n# a comment\nA: /b[/\n"
    assert refusal(Grammar(kind="lark", value=text)) == (
        "grammar: line 4, column 4: unclosed character class at character 2 of the regular expression: "
        '"b[", in "A: /b[/"'
    )
    assert refusal(Grammar(kind="lark", value="start: x")) == (
        'grammar: line 1, column 8: unknown name: "x", in "start: x"'
    )


def test_of_many_tools_the_one_at_fault_is_named() -> None:
    tools = {
        name: Tool(name=name, parameters={"type": "object", "properties": {"city": {"type": kind}}})
        for name, kind in (("fine", "string"), ("bad", "town"))
    }
    dialect = choose_dialect([], {}, {}, tool_parser="hermes")
    grammar = call_grammar(dialect, tools, {}, required=True, parallel=True, prompt_end="", reasons=False)
    assert refusal(grammar) == 'grammar: parameters of "bad".properties.city: Invalid type: town'


def test_a_sign_behind_what_is_searched_is_not_placed() -> None:
    hidden = "(?x)a^b#" + "[" * 200_000
    assert "at character 6" in refusal(Grammar(kind="regex", value=hidden))
    assert "matched from its beginning" in refusal(Grammar(kind="regex", value="a" * 5000 + "^b"))


def test_looking_for_the_place_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A place further out is told where a schema has too many parts to try."""
    monkeypatch.setattr(faults, "_MAX_SEARCH_S", 60.0)
    wide = {"properties": {f"p{at}": {"type": "string"} for at in range(200)} | {"last": {"type": "foo"}}}
    assert refusal(Grammar(kind="json_schema", value=json.dumps(wide))) == "grammar: Invalid type: foo"
    few = {"properties": {f"p{at}": {"type": "string"} for at in range(20)} | {"last": {"type": "foo"}}}
    assert "properties.last: Invalid" in refusal(Grammar(kind="json_schema", value=json.dumps(few)))
    monkeypatch.setattr(faults, "_MAX_SEARCH_S", -1.0)
    assert refusal(Grammar(kind="json_schema", value=json.dumps(few))) == "grammar: Invalid type: foo"
