"""What the tables of families are made of: the ways in which models spell calls and reasoning."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A function that a request offers.

    Attributes:
        parameters: JSON schema of its arguments, an object.
        strict: a call has to fit the schema.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, object] = field(default_factory=dict[str, object])
    strict: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonForm:
    """Calls are JSON objects that hold name and arguments, alone, one after another, or in an array.

    Attributes:
        opens: markers that begin calls anywhere.
        bare: beginnings without a marker, only where the answer begins; then the name must be one that is offered.
        careful: the markers are ordinary text too, so the name must be one that is offered.
        closes: markers that end calls; one that is missing is forgiven.
        array: an array of calls is what the model is used to write.
    """

    opens: tuple[str, ...] = ()
    bare: tuple[str, ...] = ()
    careful: bool = False
    closes: tuple[str, ...] = ()
    array: bool = False
    name_keys: tuple[str, ...] = ("name",)
    argument_keys: tuple[str, ...] = ("arguments", "parameters")
    id_keys: tuple[str, ...] = ("id",)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderForm:
    """The name stands before the arguments, which are a JSON object.

    Attributes:
        opens: markers that begin one call.
        section: markers around all calls; they are no text.
        header: matches all between marker and arguments; groups `name` and, where the model makes ids, `id`.
        spelt: the header as the model is used to write it; `%s` is the name, `%d` the number of the call.
        trail: text between the arguments and `closes`.
        closes: markers that end a call; one that is missing is forgiven.
    """

    opens: tuple[str, ...]
    section: tuple[str, str] = ("", "")
    header: re.Pattern[str]
    spelt: str
    trail: str = ""
    closes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TaggedForm:
    """Every argument stands between tags of its own, as text for strings and as JSON for all else.

    Attributes:
        opens: markers that begin calls anywhere.
        function: text before a name.
        name_ends: what can end a name; those that begin with a tag are read again.
        key: text before the name of an argument.
        key_ends: what can end it; behind `text_key_end`, where the model says so itself, a string follows.
        value: text before the value.
        value_end: text behind it.
        function_end: ends one call.
        closes: ends what `opens` began; empty where that is `function_end`.
        newlines: values stand on lines of their own.
    """

    opens: tuple[str, ...]
    function: str
    name_ends: tuple[str, ...]
    key: str
    key_ends: tuple[str, ...]
    text_key_end: str = ""
    value: str = ""
    value_end: str
    function_end: str
    closes: tuple[str, ...] = ()
    newlines: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonForm:
    """Calls are written as in Python, with keywords: `[f(a=1), g()]`, or one a line.

    Attributes:
        opens: markers that begin calls anywhere; names may then be any.
        bare: `[` begins calls where the answer begins, if the first name is one that is offered.
        careful: the markers are ordinary text too, so the name must be one that is offered.
        bracketed: calls stand in a list.
    """

    opens: tuple[str, ...] = ()
    bare: tuple[str, ...] = ()
    careful: bool = False
    closes: tuple[str, ...] = ()
    bracketed: bool = True


CallForm = JsonForm | HeaderForm | TaggedForm | PythonForm


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFamily:
    """How a family of models calls tools.

    Attributes:
        models: who writes so, for people.
        signs: a template that holds all texts of one of these groups is of this family.
        forms: what is understood; the first one is what a grammar asks for.
        ids: how an id looks where the model makes none.
        channels: the model speaks in channels (`harmony`), which have a reader of their own.
    """

    models: str
    signs: tuple[tuple[str, ...], ...] = ()
    forms: tuple[CallForm, ...] = ()
    ids: Literal["call", "nine"] = "call"
    channels: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasoningFamily:
    """How a family of models marks its reasoning.

    Attributes:
        signs: as of `ToolFamily`.
        open: begins reasoning, in the answer or already in the prompt.
        close: ends it.
        dropped: markers around the answer itself; they are no text.
    """

    models: str
    signs: tuple[tuple[str, ...], ...] = ()
    open: str = ""
    close: str = ""
    dropped: tuple[str, ...] = ()
    channels: bool = False
