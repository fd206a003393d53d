"""Where readers put what they found: text without the white space around it, and calls in order."""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Mapping

from drivetrain.detokenizer import StopAutomaton
from drivetrain.dialects.events import (
    ContentDelta,
    ReasoningDelta,
    Spoken,
    ToolCallArguments,
    ToolCallBegin,
    ToolCallEnd,
)
from drivetrain.dialects.forms import Tool
from drivetrain.dialects.tape import Reading, Tape
from drivetrain.dialects.thoughts import Thoughts

_ALPHANUMERIC = string.ascii_letters + string.digits
MAX_NAME_CHARS = 256


def call_id() -> str:
    """An id as OpenAI makes them."""
    return "call_" + "".join(random.choices(_ALPHANUMERIC, k=24))


def nine_letters() -> str:
    """An id as templates of Mistral demand them."""
    return "".join(random.choices(_ALPHANUMERIC, k=9))


class Transcript:
    """Events of one answer.

    Args:
        tools: what the request offers, by name.
        make_id: for calls to which the model gave none.
        max_calls: calls that are told; whatever follows the last of them is dropped.
        required: the answer has to be calls, so other text is none of it, and nothing follows a call that repeats an
            earlier one word for word.

    Attributes:
        thoughts: where the reasoning is.
        cut: the answer ends here because it came to its limit.
        marked: what is being read began with a marker of calls that cannot be ordinary text.
    """

    def __init__(
        self,
        tools: Mapping[str, Tool],
        make_id: Callable[[], str] = call_id,
        max_calls: int = 1 << 20,
        *,
        required: bool = False,
    ) -> None:
        self.tools = tools
        self.said_content = False
        self.num_calls = 0
        self.thoughts = Thoughts()
        self.cut = self.marked = False
        self._required = required
        self._call = _Call()
        self._earlier: dict[str, list[str]] = {}
        """Arguments of the calls so far by name, where they must not be repeated."""
        self._make_id = make_id
        self._max_calls = max_calls
        self._events: list[Spoken] = []
        self._kind: type[Spoken] | None = None
        self._texts: list[str] = []
        """Texts of the event of `_kind` that is not made yet."""
        self._content = _Trimmed()
        self._reasoning = _Trimmed()
        self._reasoning.cut()

    @property
    def complete(self) -> bool:
        """Whether nothing that follows is told: there are as many calls as may be, or one came once more."""
        return self.num_calls >= self._max_calls

    def events(self) -> list[Spoken]:
        """What was found since this was asked last."""
        self._flush()
        events, self._events = self._events, []
        return events

    def think(self, tape: Tape, ends: StopAutomaton) -> Reading[str | None]:
        """Take reasoning from the tape, up to and with the first marker that ends it.

        Returns:
            the marker; None at the end of the text.
        """
        self.thoughts.begin(tape.place)
        mark = yield from tape.until(ends, self._reason)
        self.thoughts.end(tape.place - len(mark or ""))
        self.reasoned()
        return mark

    def reasoned(self) -> None:
        """The reasoning ended: white space before the content is dropped, and what more there is follows on a line."""
        self._reasoning.cut()
        self._content.cut()

    def _reason(self, text: str) -> None:
        if not self.complete and (text := self._reasoning.add(text)):
            self._add(ReasoningDelta, text)

    def say(self, text: str) -> None:
        """More text of the content, unless it is the beginning of a call that was cut.

        When an answer is cut, all that was held back may have become a call.
        """
        if self._required or self.complete or (self.cut and (self.marked or self.num_calls)):
            return
        if text := self._content.add(text):
            self.said_content = True
            self._add(ContentDelta, text)

    def begin(self, name: str, id: str | None = None) -> None:
        """A call of `name`; white space around calls is dropped."""
        self._content.cut()
        self._call = call = _Call(name, id)
        if not self.complete:
            call.repeats = list(self._earlier.get(name, ()))
            if not call.repeats:
                self._tell(call)

    def arguments(self, text: str) -> None:
        """More text of the arguments of the call that is open; held back while they are those of an earlier call."""
        if not text or self.complete:
            return
        call = self._call
        if self._required:
            call.add(text)
        if call.told:
            self._add(ToolCallArguments, text)
        elif not call.repeats:
            self._tell(call)

    def end(self) -> None:
        """The call that is open is complete."""
        call = self._call
        if not self.complete:
            if not call.told and (self.cut or call.is_repeated):
                self._max_calls = self.num_calls
                return
            if not call.told:
                self._tell(call)
            self._flush()
            self._events.append(ToolCallEnd(index=self.num_calls))
            if self._required:
                self._earlier.setdefault(call.name, []).append("".join(call.texts))
        self.num_calls += 1

    def _tell(self, call: _Call) -> None:
        """The beginning of a call, and its arguments so far."""
        call.told = True
        self._flush()
        self._events.append(ToolCallBegin(index=self.num_calls, id=call.id or self._make_id(), name=call.name))
        for text in call.texts:
            self._add(ToolCallArguments, text)

    def finish(self) -> None:
        """No more text comes."""
        if not (self.cut and self.marked) and (text := self._content.rest()):
            self._add(ContentDelta, text)

    def _add(self, kind: type[Spoken], text: str) -> None:
        if kind is not self._kind:
            self._flush()
            self._kind = kind
        self._texts.append(text)

    def _flush(self) -> None:
        if self._kind is None:
            return
        text = self._texts[0] if len(self._texts) == 1 else "".join(self._texts)
        if self._kind is ToolCallArguments:
            self._events.append(ToolCallArguments(index=self.num_calls, text=text))
        else:
            self._events.append(ContentDelta(text=text) if self._kind is ContentDelta else ReasoningDelta(text=text))
        self._kind, self._texts = None, []


class _Call:
    """The call that is open.

    Args:
        id: the model's own.

    Attributes:
        texts: its arguments so far, where they are compared with those of earlier calls.
        repeats: arguments of earlier calls of the same function that begin as these do.
        told: its beginning is among the events.
    """

    __slots__ = ("_size", "id", "name", "repeats", "texts", "told")

    def __init__(self, name: str = "", id: str | None = None) -> None:
        self.name = name
        self.id = id
        self.texts: list[str] = []
        self.repeats: list[str] = []
        self.told = False
        self._size = 0

    @property
    def is_repeated(self) -> bool:
        """Whether an earlier call had exactly these arguments."""
        return any(len(each) == self._size for each in self.repeats)

    def add(self, text: str) -> None:
        """More text of the arguments."""
        self.repeats = [each for each in self.repeats if each.startswith(text, self._size)]
        self.texts.append(text)
        self._size += len(text)


class _Trimmed:
    """Text that is told without white space at its ends, as far as these are known to be ends; parts make lines."""

    __slots__ = ("_begins", "_spaces", "_told")

    def __init__(self) -> None:
        self._begins = False
        self._told = False
        self._spaces: list[str] = []

    def add(self, text: str) -> str:
        """`text` as it is to be told, with the white space held back before it, less what may be the end."""
        if self._begins:
            text = text.lstrip()
            if not text:
                return ""
            self._begins = False
            self._spaces = ["\n"] if self._told else []
        body = text.rstrip()
        if not body:
            self._spaces.append(text)
            return ""
        told = "".join(self._spaces) + body if self._spaces else body
        self._spaces = [text[len(body) :]] if len(body) < len(text) else []
        self._told = True
        return told

    def cut(self) -> None:
        """This is an end, and what follows is a beginning."""
        self._begins = True
        self._spaces = []

    def rest(self) -> str:
        """White space that turned out to belong to the text."""
        spaces, self._spaces = "".join(self._spaces), []
        return spaces
