"""The fields that demand a form of the answer, under OpenAI's name and those of other servers."""

from __future__ import annotations

import json
from typing import Annotated, Literal

from pydantic import Field, JsonValue, WithJsonSchema

from drivetrain.errors import RequestError
from drivetrain.grammar import Grammar, GrammarKind
from drivetrain_server.errors import HttpError
from drivetrain_server.wire.validation import WireModel, refuse

Schema = Annotated[JsonValue, WithJsonSchema({"anyOf": [{"type": "object"}, {"type": "string"}]})]
Choices = Annotated[list[str], Field(min_length=1, max_length=4096)]


class JsonSchemaFormat(WireModel):
    """A schema with what OpenAI's clients send beside it; `strict` or not, every answer is valid."""

    name: str | None = None
    """Changes nothing."""
    description: str | None = None
    """Changes nothing."""
    schema_: Annotated[JsonValue, Field(alias="schema"), WithJsonSchema({"type": "object"})] = None
    """The schema that the answer fits."""
    strict: bool | None = None
    """Makes no difference: a schema is never weakened."""


class ResponseFormat(WireModel):
    """What an answer looks like. Structural tags bring further fields."""

    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    """The form."""
    json_schema: JsonSchemaFormat | None = None
    """The schema, with type `json_schema`."""


class StructuredOutputs(WireModel):
    """One of the first six fields; the others are refused unless they ask for nothing."""

    json_: Annotated[Schema, Field(alias="json")] = None
    """A JSON schema, as an object or as its JSON in a string."""
    regex: str | None = None
    """A regular expression that the whole answer matches."""
    choice: Choices | None = None
    """Texts of which the answer is one."""
    grammar: str | None = None
    """A grammar in llguidance's Lark syntax."""
    json_object: bool | None = None
    """Any JSON object."""
    structural_tag: Schema = None
    """Free text with tagged parts."""


class GrammarFields(WireModel):
    """Fields of every route that generates."""

    response_format: ResponseFormat | None = None
    """`type` of `text`, `json_object`, `json_schema` or `structural_tag`. Default: free text."""
    structured_outputs: StructuredOutputs | None = None
    """One of `json`, `regex`, `choice`, `grammar`, `json_object`, `structural_tag`. Default: free text."""
    guided_json: Schema = None
    """The older name of `structured_outputs.json`. Default: free text."""
    guided_regex: str | None = None
    """The older name of `structured_outputs.regex`. Default: free text."""
    guided_choice: Choices | None = None
    """The older name of `structured_outputs.choice`. Default: free text."""
    guided_grammar: str | None = None
    """The older name of `structured_outputs.grammar`. Default: free text."""
    guided_json_object: bool | None = None
    """The older name of `structured_outputs.json_object`. Default: false."""

    def demanded(self) -> tuple[str, Grammar] | None:
        """(field, grammar) of the one form that was demanded.

        Raises:
            HttpError: 400, more than one, or one that is not as it should be.
        """
        found = [*_of_response_format(self.response_format), *_of_structured_outputs(self.structured_outputs)]
        found += _asked(
            ("guided_json", "json_schema", self.guided_json),
            ("guided_regex", "regex", self.guided_regex),
            ("guided_choice", "choice", self.guided_choice),
            ("guided_grammar", "lark", self.guided_grammar),
            ("guided_json_object", "json_object", self.guided_json_object),
        )
        if len(found) > 1:
            raise refuse(found[1][0], f"{found[0][0]} demands a form already; send one of them")
        if not found:
            return None
        name, kind, value = found[0]
        try:
            return name, Grammar(kind=kind, value=value)
        except RequestError as error:
            raise about(name, error) from None


def about(name: str, error: RequestError) -> HttpError:
    """What is wrong with a grammar, as the field that brought it says it."""
    return refuse(name, str(error).removeprefix("grammar: "))


_Demand = tuple[str, GrammarKind, str]


def _asked(*fields: tuple[str, GrammarKind, JsonValue | list[str]]) -> list[_Demand]:
    """The fields that were sent. Text is taken as it is, so a schema may come as JSON in a string."""
    found: list[_Demand] = []
    for name, kind, value in fields:
        if value is None or value is False:
            continue
        if kind == "json_object":
            found.append((name, kind, ""))
        else:
            found.append((name, kind, value if isinstance(value, str) else json.dumps(value)))
    return found


def _of_response_format(format: ResponseFormat | None) -> list[_Demand]:
    if format is None or format.type == "text":
        return []
    if format.type == "json_object":
        return [("response_format", "json_object", "")]
    if format.type == "structural_tag":
        return [("response_format", "structural_tag", json.dumps(format.model_extra or {}))]
    if format.json_schema is None or format.json_schema.schema_ is None:
        raise refuse("response_format.json_schema.schema", "it is required with type json_schema; send a JSON schema")
    return [("response_format", "json_schema", json.dumps(format.json_schema.schema_))]


def _of_structured_outputs(outputs: StructuredOutputs | None) -> list[_Demand]:
    if outputs is None:
        return []
    for name, value in (outputs.model_extra or {}).items():
        if value not in (None, False):
            raise refuse(f"structured_outputs.{name[:60]}", "this option is not supported; leave it out")
    found = _asked(
        ("structured_outputs.json", "json_schema", outputs.json_),
        ("structured_outputs.regex", "regex", outputs.regex),
        ("structured_outputs.choice", "choice", outputs.choice),
        ("structured_outputs.grammar", "lark", outputs.grammar),
        ("structured_outputs.json_object", "json_object", outputs.json_object),
        ("structured_outputs.structural_tag", "structural_tag", outputs.structural_tag),
    )
    if not found:
        raise refuse("structured_outputs", "it holds none of json, regex, choice, grammar, json_object, structural_tag")
    return found
