"""The form that a request may demand of its answers, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from drivetrain.errors import RequestError

GrammarKind = Literal["json_schema", "json_object", "regex", "choice", "lark", "structural_tag"]
MAX_GRAMMAR_CHARS = 262_144


@dataclass(frozen=True, slots=True, kw_only=True)
class Grammar:
    """The form of an answer.

    Raises:
        RequestError: no such kind, or a value that is too long; `param` is `grammar`.

    Attributes:
        kind: what `value` is. An answer to `json_object` is any JSON object.
        value: JSON text for `json_schema`, `choice` (an array of strings) and `structural_tag`; the expression for
            `regex`; a grammar with the rule `start` for `lark`; empty for `json_object`.
        schemas: where `value` was made from JSON schemas that were sent: what messages call each, and its text.
        within: a grammar in Lark's syntax in which the form is the rule `@content`; empty where it is the whole answer.
    """

    kind: GrammarKind
    value: str = field(default="", repr=False)
    within: str = field(default="", repr=False)
    schemas: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if self.kind not in get_args(GrammarKind):
            raise RequestError(
                f"grammar: its kind is one of {', '.join(get_args(GrammarKind))}; got {self.kind!r}", param="grammar"
            )
        if len(self.value) > MAX_GRAMMAR_CHARS:
            raise RequestError(
                f"grammar: at most {MAX_GRAMMAR_CHARS} characters, got {len(self.value)}; shorten it", param="grammar"
            )
