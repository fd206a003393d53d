"""Which families a model belongs to, and how its answers are read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from drivetrain.config.schema import suggestion
from drivetrain.dialects.events import Spoken
from drivetrain.dialects.forms import ReasoningFamily, Tool, ToolFamily
from drivetrain.dialects.harmony import HARMONY_MARKERS, HarmonyReader
from drivetrain.dialects.mark_places import token_marks
from drivetrain.dialects.reader import DialectReader, Markers, marker_texts, markers, opening_marks
from drivetrain.dialects.reasoning_families import REASONING_FAMILIES
from drivetrain.dialects.spoken import Transcript, call_id, nine_letters
from drivetrain.dialects.thoughts import Thoughts
from drivetrain.dialects.tool_families import TOOL_FAMILIES
from drivetrain.errors import ConfigError

if TYPE_CHECKING:
    from drivetrain.tokenizer import Tokenizer

_TAIL_TOKENS = 24
"""Tokens at the end of a prompt among which the beginning of reasoning is looked for."""


class Reader(Protocol):
    """Finds reasoning and calls in the text of one answer.

    Attributes:
        thoughts: counts the tokens of the reasoning, once it is told all tokens.
        marks: as of `Tape`.
    """

    thoughts: Thoughts
    marks: set[int]

    @property
    def complete(self) -> bool:
        """Whether nothing that follows counts: as many calls as may be were made, or a required one once more, word for
        word."""
        ...

    def push(self, text: str) -> list[Spoken]:
        """Events that more text brings."""
        ...

    def finish(self, *, cut: bool = False) -> list[Spoken]:
        """The remaining events, when no more text comes.

        Args:
            cut: the answer came to its limit, so the beginning of a call is not taken for content.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How one model speaks.

    Attributes:
        tool_name: of the family in `TOOL_FAMILIES`, None for a model whose calls are not read.
        shown: special tokens that are markers, so they have to stay in the text.
        shown_reasoning: those that are needed where a request has no tools.
        token_marks: markers that the tokenizer knows as tokens, with the token that each begins with.
    """

    tool_name: str | None
    reasoning_name: str | None
    tools: ToolFamily | None
    reasoning: ReasoningFamily | None
    shown: frozenset[int]
    shown_reasoning: frozenset[int]
    token_marks: Mapping[str, int]
    with_tools: Markers
    without_tools: Markers

    @property
    def reads(self) -> bool:
        """Whether answers without tools have anything but content."""
        return self.reasoning is not None

    def reader(
        self,
        tools: Mapping[str, Tool],
        *,
        reasons: bool,
        max_calls: int = 1 << 20,
        required: bool = False,
        bound: Collection[str] = (),
        make_id: Callable[[], str] | None = None,
    ) -> Reader:
        """A reader for one answer.

        Args:
            tools: what the request offers, by name; without any, calls are content.
            reasons: the prompt ended within reasoning.
            max_calls, required: as of `Transcript`.
            bound: as of `Tape`.
        """
        nine = self.tools is not None and self.tools.ids == "nine"
        out = Transcript(tools, make_id or (nine_letters if nine else call_id), max_calls, required=required)
        channels = self.reasoning is not None and self.reasoning.channels
        if channels or (tools and self.tools is not None and self.tools.channels):
            return HarmonyReader(out, calls=bool(tools), bound=bound)
        return DialectReader(self.with_tools if tools else self.without_tools, out, reasons=reasons, bound=bound)

    def reasons_after(self, prompt_end: str) -> bool:
        """Whether a prompt that ends so leaves the answer within reasoning."""
        reasoning = self.reasoning
        return reasoning is not None and bool(reasoning.open) and prompt_end.rstrip().endswith(reasoning.open)


def prompt_end(tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> str:
    """The last text of a prompt, special tokens spelt out."""
    return tokenizer.decode(prompt_ids[-_TAIL_TOKENS:], skip_special_tokens=False)


def choose_dialect(
    templates: Iterable[str],
    special: Mapping[str, int],
    added: Mapping[str, int],
    *,
    tool_parser: str = "auto",
    reasoning_parser: str = "auto",
) -> Dialect:
    """The families of a model: those that are named, else by its template, else by its added tokens.

    Args:
        templates: sources of its chat templates.
        special: special tokens by their text.
        added: all added tokens by their text.
        tool_parser: a name of `TOOL_FAMILIES`, `auto` or `none`; `auto` takes `json` where no signs are found.

    Raises:
        ConfigError: there is no family of that name.
    """
    text = "\n".join(templates)
    tool_name = _named("tool_parser", tool_parser, TOOL_FAMILIES)
    if tool_parser == "auto":
        tool_name = _signed(TOOL_FAMILIES, text, added) or "json"
    reasoning_name = _named("reasoning_parser", reasoning_parser, REASONING_FAMILIES)
    if reasoning_parser == "auto":
        reasoning_name = _signed(REASONING_FAMILIES, text, added)
    tools = None if tool_name is None else TOOL_FAMILIES[tool_name]
    reasoning = None if reasoning_name is None else REASONING_FAMILIES[reasoning_name]
    marks = opening_marks(tools, reasoning)
    if _has_channels(tools, reasoning):
        marks = [*marks, *HARMONY_MARKERS]
    return Dialect(
        tool_name=tool_name,
        reasoning_name=reasoning_name,
        tools=tools,
        reasoning=reasoning,
        shown=_shown(special, tools, reasoning),
        shown_reasoning=_shown(special, None, reasoning),
        token_marks=token_marks(marks, added),
        with_tools=markers(tools, reasoning),
        without_tools=markers(None, reasoning),
    )


def check_parsers(tool_parser: str, reasoning_parser: str) -> None:
    """Refuse names that are in no table.

    Raises:
        ConfigError: names the setting and what is allowed.
    """
    _named("tool_parser", tool_parser, TOOL_FAMILIES)
    _named("reasoning_parser", reasoning_parser, REASONING_FAMILIES)


class _Signed(Protocol):
    @property
    def signs(self) -> tuple[tuple[str, ...], ...]: ...


Family = TypeVar("Family", bound=_Signed)


def _named(setting: str, name: str, families: Mapping[str, object]) -> str | None:
    if name in ("auto", "none"):
        return None
    if name not in families:
        near = suggestion(name, families)
        raise ConfigError(f'{setting}: got "{name}", expected auto, none, {", ".join(families)}{near}')
    return name


def _signed(families: Mapping[str, Family], text: str, added: Collection[str]) -> str | None:
    for name, family in families.items():
        if any(all(sign in text for sign in group) for group in family.signs):
            return name
    for name, family in families.items():
        if any(all(sign in added for sign in group) for group in family.signs):
            return name
    return None


def _has_channels(tools: ToolFamily | None, reasoning: ReasoningFamily | None) -> bool:
    return (tools is not None and tools.channels) or (reasoning is not None and reasoning.channels)


def _shown(special: Mapping[str, int], tools: ToolFamily | None, reasoning: ReasoningFamily | None) -> frozenset[int]:
    texts = [*marker_texts(tools, reasoning)]
    if _has_channels(tools, reasoning):
        texts += HARMONY_MARKERS
    # A marker may consist of several tokens, and a pattern spells them with backslashes.
    joined = "\n".join(texts) + "\n" + "\n".join(texts).replace("\\", "")
    return frozenset(id for text, id in special.items() if text.strip() and text in joined)
