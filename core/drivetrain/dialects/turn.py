"""One choice of an answer as typed events, and as a message."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import msgspec

from drivetrain.completion_text import TextDelta, Watch
from drivetrain.dialects.choose import Reader
from drivetrain.dialects.events import (
    ContentDelta,
    ReasoningDelta,
    Spoken,
    ToolCallArguments,
    ToolCallBegin,
    ToolCallEnd,
)
from drivetrain.dialects.mark_places import MarkPlaces
from drivetrain.messages import FinishReasonName, TokenLogprob

__all__ = [
    "ContentDelta",
    "Event",
    "Finish",
    "Message",
    "ReasoningDelta",
    "ToolCall",
    "ToolCallArguments",
    "ToolCallBegin",
    "ToolCallEnd",
    "Turn",
    "Turns",
]

TurnFinish = FinishReasonName | Literal["tool_calls"]


class Finish(msgspec.Struct, kw_only=True):
    """The last event of a choice.

    Attributes:
        reason: "tool_calls" where the model ended by itself after at least one call.
        stop_reason: as `TextDelta`.
        token_ids: tokens that no event before this one held; the end token is among them.
    """

    reason: TurnFinish
    stop_reason: int | str | None = None
    token_ids: list[int] = []
    logprobs: list[TokenLogprob] = []


Event = Spoken | Finish


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """One whole call; `arguments` is JSON text."""

    id: str
    name: str
    arguments: str


@dataclass(slots=True, kw_only=True)
class Message:
    """A whole choice, gathered from its events.

    Attributes:
        reasoning: None where the model did not reason.
        num_reasoning_tokens: as of `Turn`.
    """

    reasoning: str | None = None
    content: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list[ToolCall])
    finish_reason: TurnFinish | None = None
    stop_reason: int | str | None = None
    num_reasoning_tokens: int = 0


class Finished(Protocol):
    """A whole choice before it is read."""

    text: str
    token_ids: list[int]
    finish_reason: FinishReasonName | None
    stop_reason: int | str | None


class Turn:
    """State of one choice: gives its events as its deltas arrive.

    Args:
        reader: what finds reasoning and calls; None takes all text as content.
        pieces: what each token adds to the text, to count those of the reasoning; None counts none.
        places: tells the reader where markers may begin; None lets it find them by their text.
    """

    __slots__ = ("_called", "_logprobs", "_pieces", "_places", "_reader", "_token_ids")

    def __init__(
        self,
        reader: Reader | None = None,
        pieces: Mapping[int, bytes] | None = None,
        places: MarkPlaces | None = None,
    ) -> None:
        self._reader = reader
        self._pieces = pieces
        self._places = places
        self._called = False
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []

    @property
    def num_reasoning_tokens(self) -> int:
        """Tokens of the reasoning so far, without the markers around it."""
        return 0 if self._reader is None else self._reader.thoughts.num_tokens

    def push(self, delta: TextDelta) -> list[Event]:
        """Events of one more delta, in order; empty while all of its text is held back."""
        reader = self._reader
        events: list[Event]
        if reader is None:
            events = [ContentDelta(text=delta.text)] if delta.text else []
        else:
            if self._places is not None:
                reader.marks.update(self._places.follow(delta.token_ids))
            if self._pieces is not None:
                reader.thoughts.add(delta.token_ids, self._pieces, delta.text)
            events = [*reader.push(delta.text)] if delta.text else []
            if delta.finish_reason is not None:
                events += reader.finish(cut=delta.finish_reason == "length")
            for event in events:
                if type(event) is ToolCallBegin:
                    self._called = True
        if delta.finish_reason is not None:
            called = self._called and delta.finish_reason == "stop"
            reason = "tool_calls" if called else delta.finish_reason
            events.append(Finish(reason=reason, stop_reason=delta.stop_reason))
        if self._token_ids or not events:
            self._token_ids += delta.token_ids
            self._logprobs += delta.logprobs or ()
            if events:
                events[0].token_ids, events[0].logprobs = self._token_ids, self._logprobs
                self._token_ids, self._logprobs = [], []
        else:
            events[0].token_ids, events[0].logprobs = delta.token_ids, delta.logprobs or []
        return events


class Turns:
    """How the choices of one request are read.

    Args:
        make_reader: a new reader for each choice; None takes all text as content.
        shown: special tokens that the reader has to see in the text, whatever `skip_special_tokens` says.
        pieces: as of `Turn`.
        make_places: as `places` of `Turn`, for each choice.
        ends: an answer ends where nothing that follows would count (see `Reader.complete`).
    """

    def __init__(
        self,
        make_reader: Callable[[], Reader] | None = None,
        shown: Collection[int] = (),
        pieces: Mapping[int, bytes] | None = None,
        *,
        make_places: Callable[[], MarkPlaces | None] = lambda: None,
        ends: bool = False,
    ) -> None:
        self.shown = frozenset(shown)
        self._make_reader = make_reader
        self._pieces = pieces
        self._make_places = make_places
        self._ends = ends
        self._turns: list[Turn] = []
        self._open: dict[int, Turn] = {}

    @property
    def plain(self) -> bool:
        """All text is content, so a route may take it from the deltas themselves."""
        return self._make_reader is None

    @property
    def num_reasoning_tokens(self) -> int:
        """As of `Turn`, of all choices that were read."""
        return sum(turn.num_reasoning_tokens for turn in self._turns)

    def watch(self) -> Watch | None:
        """What ends a completion whose text has come to its end; None where nothing does."""
        if self._make_reader is None or not self._ends:
            return None
        reader, places = self._make_reader(), self._make_places()

        def ended(text: str, token_ids: Sequence[int]) -> bool:
            if places is not None:
                reader.marks.update(places.follow(token_ids))
            reader.push(text)
            return reader.complete

        return ended

    def push(self, choice: int, delta: TextDelta) -> list[Event]:
        """Events of one more delta of a streamed choice."""
        turn = self._open.get(choice)
        if turn is None:
            turn = self._open[choice] = self._turn()
        return turn.push(delta)

    def message(self, answer: Finished) -> Message:
        """A choice that was not streamed, as a message."""
        delta = TextDelta(
            index=0,
            text=answer.text,
            token_ids=answer.token_ids,
            finish_reason=answer.finish_reason,
            stop_reason=answer.stop_reason,
        )
        turn = self._turn()
        message = gathered(turn.push(delta))
        message.num_reasoning_tokens = turn.num_reasoning_tokens
        return message

    def _turn(self) -> Turn:
        turn = Turn(None if self._make_reader is None else self._make_reader(), self._pieces, self._make_places())
        self._turns.append(turn)
        return turn


def gathered(events: Sequence[Event]) -> Message:
    """All events of a choice as one message."""
    message = Message()
    reasoning: list[str] = []
    content: list[str] = []
    calls: list[tuple[ToolCallBegin, list[str]]] = []
    for event in events:
        match event:
            case ReasoningDelta(text=text):
                reasoning.append(text)
            case ContentDelta(text=text):
                content.append(text)
            case ToolCallBegin():
                calls.append((event, []))
            case ToolCallArguments(text=text):
                calls[-1][1].append(text)
            case ToolCallEnd():
                pass
            case Finish(reason=reason, stop_reason=stop_reason):
                message.finish_reason, message.stop_reason = reason, stop_reason
    message.reasoning = "".join(reasoning) if reasoning else None
    message.content = "".join(content)
    message.tool_calls = [ToolCall(id=begin.id, name=begin.name, arguments="".join(texts)) for begin, texts in calls]
    return message
