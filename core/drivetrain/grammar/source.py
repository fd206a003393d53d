"""From what a request demands to the text that llguidance compiles."""

from __future__ import annotations

import json
import re
from typing import cast

from drivetrain.errors import RequestError
from drivetrain.grammar.grammar import Grammar
from drivetrain.grammar.listed_keys import with_listed_keys
from drivetrain.grammar.structural_tag import structural_tag_lark

MAX_CHOICES = 4096
_JSON_OPTIONS = {
    "coerce_one_of": True,
    "lenient": False,
    # Any layout that people write, but no model can fill an answer with spaces.
    "whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,64}",
}
_HARMLESS: dict[str, object] = {
    "uniqueItems": False,
    "unevaluatedItems": True,
    "unevaluatedProperties": True,
    "dependentRequired": {},
    "dependentSchemas": {},
    "dependencies": {},
}
"""Keywords that are not supported, with the values that ask for nothing."""
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_SCHEMAS = ("items", "additionalProperties", "additionalItems")
_REGEX_SIGNS = re.compile(r"[^0-9A-Za-z_\x80-\U0010FFFF]")


REFUSAL = "grammar: "
"""How the message of a refusal begins."""
CONTENT = "@content"
"""What `Grammar.within` calls the form."""


def source_of(grammar: Grammar) -> str:
    """What llguidance compiles for a request.

    Raises:
        RequestError: the value is not of its kind.
    """
    try:
        source = _source_of(grammar)
    except ValueError as error:
        raise refusal(str(error)) from None
    return _placed(source, grammar.within) if grammar.within else source


def _placed(source: str, within: str) -> str:
    """A form as a part of another grammar, so that no name of one meets one of the other."""
    form: dict[str, object] = {"lark_grammar": source}
    if source.startswith("{"):
        (form,) = json.loads(source)["grammars"]
    return json.dumps({"grammars": [{"lark_grammar": within}, form | {"name": CONTENT.removeprefix("@")}]})


def _source_of(grammar: Grammar) -> str:
    from llguidance import LLMatcher

    match grammar.kind:
        case "json_schema":
            return LLMatcher.grammar_from_json_schema(json_schema(grammar.value), overrides=_JSON_OPTIONS)  # pyright: ignore[reportArgumentType]
        case "json_object":
            return LLMatcher.grammar_from_json_schema({"type": "object"}, overrides=_JSON_OPTIONS)  # pyright: ignore[reportArgumentType]
        case "regex":
            return LLMatcher.grammar_from_regex(grammar.value)
        case "choice":
            return LLMatcher.grammar_from_regex("|".join(map(_escaped, _choices(grammar.value))))
        case "lark":
            return LLMatcher.grammar_from_lark(_lark(grammar.value))
        case "structural_tag":
            return LLMatcher.grammar_from_lark(structural_tag_lark(parsed(grammar.value), json_schema_of))


def json_schema(text: str) -> str:
    """A schema as llguidance takes it.

    Raises:
        RequestError: it is no JSON, or no schema.
    """
    return json_schema_of(parsed(text))


def json_schema_of(schema: object) -> str:
    """The same for a schema that was parsed. Its objects have just the keys that it lists, where it does not say else.

    Raises:
        RequestError: it is no schema.
    """
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise refusal("a JSON schema is an object")
    if "x-guidance" in schema:
        raise refusal('the schema keyword "x-guidance" is not supported; remove it')
    try:
        return json.dumps(_without_harmless(with_listed_keys(cast("dict[str, object]", schema))))
    except RecursionError:
        raise refusal("the schema is nested too deeply; flatten it") from None


def parsed(text: str) -> object:
    """A value of JSON.

    Raises:
        RequestError: it is none, or nested too deeply.
    """
    try:
        return json.loads(text, parse_constant=_no_number)
    except RecursionError:
        raise refusal("its JSON is nested too deeply; flatten it") from None
    except ValueError as error:
        raise refusal(f"its JSON cannot be read: {error}") from None


def refusal(reason: str) -> RequestError:
    """The error about a request's grammar."""
    return RequestError(REFUSAL + reason, param="grammar")


def _no_number(name: str) -> object:
    raise ValueError(f"{name} is no number of JSON")


def _without_harmless(schema: dict[str, object]) -> dict[str, object]:
    """The schema without keywords whose values ask for nothing."""
    return {
        name: _cleaned(value, name)
        for name, value in schema.items()
        if not (name in _HARMLESS and type(value) is type(_HARMLESS[name]) and value == _HARMLESS[name])
    }


def _cleaned(value: object, name: str) -> object:
    """A keyword's value, with the schemas in it cleaned."""
    if isinstance(value, dict) and name in _SCHEMAS:
        return _without_harmless(cast("dict[str, object]", value))
    if isinstance(value, dict) and name in _MAPS:
        return {key: _cleaned(each, "items") for key, each in cast("dict[str, object]", value).items()}
    if isinstance(value, list) and name in _LISTS:
        return [_cleaned(each, "items") for each in cast("list[object]", value)]
    return value  # pyright: ignore[reportUnknownVariableType]


def _choices(text: str) -> list[str]:
    choices = parsed(text)
    items = cast("list[object]", choices) if isinstance(choices, list) else []
    texts = [each for each in items if isinstance(each, str)]
    if not texts or len(texts) < len(items):
        raise refusal("choice is a list of strings, at least one")
    if len(texts) > MAX_CHOICES:
        raise refusal(f"at most {MAX_CHOICES} choices, got {len(texts)}")
    if any("\x00" in each or any("\ud800" <= sign <= "\udfff" for sign in each) for each in texts):
        raise refusal("a choice holds NUL or half of a surrogate pair; send well-formed text")
    return texts


def _escaped(text: str) -> str:
    """A regular expression that matches just this text."""
    return _REGEX_SIGNS.sub(lambda sign: f"\\x{{{ord(sign[0]):X}}}", text)


def _lark(text: str) -> str:
    # Anything that begins so is read as the library's own format instead, which this server does not offer.
    if text.lstrip()[:1] in ("{", "["):
        raise refusal("it is no grammar in Lark's syntax: it begins with a bracket")
    return text
