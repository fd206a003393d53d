"""The machine that finds reasoning, content and calls in the text of an answer."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from drivetrain.detokenizer import StopAutomaton, stop_automaton
from drivetrain.dialects.events import Spoken
from drivetrain.dialects.forms import (
    CallForm,
    HeaderForm,
    JsonForm,
    PythonForm,
    ReasoningFamily,
    TaggedForm,
    ToolFamily,
)
from drivetrain.dialects.json_calls import HeaderCalls, JsonCalls
from drivetrain.dialects.python_calls import PythonCalls
from drivetrain.dialects.spoken import Transcript
from drivetrain.dialects.tagged_calls import TaggedCalls
from drivetrain.dialects.tape import Reading, Tape


@dataclass(frozen=True, slots=True, kw_only=True)
class Markers:
    """What to watch for in the content, made once for a pair of families.

    Attributes:
        calls: marker to the form that it begins.
        passed: markers that are no text.
        bare: beginning without a marker to its form.
        bare_letters: first letters of `bare`.
    """

    watched: StopAutomaton | None
    reasoning: ReasoningFamily | None
    closing: StopAutomaton | None
    calls: dict[str, CallForm] = field(default_factory=dict[str, CallForm])
    passed: frozenset[str] = frozenset()
    bare: dict[str, CallForm] = field(default_factory=dict[str, CallForm])


def markers(tools: ToolFamily | None, reasoning: ReasoningFamily | None) -> Markers:
    """The markers of two families; None watches for nothing of that kind."""
    calls: dict[str, CallForm] = {}
    bare: dict[str, CallForm] = {}
    passed: list[str] = list(reasoning.dropped) if reasoning is not None else []
    for form in tools.forms if tools is not None else ():
        calls |= dict.fromkeys(form.opens, form)
        if isinstance(form, JsonForm | PythonForm):
            bare |= dict.fromkeys(form.bare, form)
        if isinstance(form, HeaderForm):
            passed += [mark for mark in form.section if mark]
    watched = [*calls, *passed]
    if reasoning is not None and reasoning.open:
        watched.append(reasoning.open)
    closes = [reasoning.close] if reasoning is not None and reasoning.close else []
    return Markers(
        watched=stop_automaton(tuple(watched)) if watched else None,
        reasoning=reasoning if closes else None,
        closing=stop_automaton(tuple(closes)) if closes else None,
        calls=calls,
        passed=frozenset(passed),
        bare=bare,
    )


class DialectReader:
    """Reads one answer. All chunkings of a text give the same events, when neighbours of one kind are joined.

    Args:
        marks: of the families.
        out: gathers the events; it holds the tools.
        reasons: the prompt ended within reasoning.
        bound: as of `Tape`.
    """

    def __init__(self, marks: Markers, out: Transcript, *, reasons: bool, bound: Collection[str] = ()) -> None:
        self._marks = marks
        self.thoughts = out.thoughts
        self._out = out
        self._tape = Tape(bound)
        self.marks = self._tape.marks
        self._program = self._read(reasons)
        next(self._program)

    @property
    def complete(self) -> bool:
        """As of `Reader`."""
        return self._out.complete

    def push(self, text: str) -> list[Spoken]:
        """Events that more text brings."""
        self._tape.feed(text)
        self._program.send(None)
        return self._out.events()

    def finish(self, *, cut: bool = False) -> list[Spoken]:
        """The remaining events, when no more text comes."""
        self._tape.ended, self._out.cut = True, cut
        for _ in self._program:
            raise AssertionError("a reader asked for text behind the end")
        self._out.finish()
        return self._out.events()

    def _read(self, reasons: bool) -> Reading[None]:
        marks, tape, out = self._marks, self._tape, self._out
        yield
        if reasons:
            yield from self._reasoning()
        while True:
            if marks.bare and not out.said_content:
                yield from self._bare()
            if marks.watched is None:
                while text := (yield from tape.take()):
                    out.say(text)
                return
            mark = yield from tape.until(marks.watched, out.say)
            if mark is None:
                return
            form = marks.calls.get(mark)
            if form is not None:
                yield from self._calls(form, mark)
            elif mark in marks.passed:
                pass
            elif out.said_content or out.num_calls:
                out.say(mark)
            else:
                yield from self._reasoning()

    def _reasoning(self) -> Reading[None]:
        assert self._marks.closing is not None, "reasoning without an end marker"
        yield from self._out.think(self._tape, self._marks.closing)

    def _bare(self) -> Reading[None]:
        """Calls without a marker, as long as nothing else was said."""
        tape, out = self._tape, self._out
        spaces = yield from tape.spaces()
        for start, form in self._marks.bare.items():
            read = yield from tape.literal(start)
            tape.give_back(read)
            if read == start:
                if len(start) > 1:
                    yield from tape.literal(start)
                yield from self._calls(form, spaces + (start if len(start) > 1 else ""), any_name=False)
                return
        if spaces:
            out.say(spaces)

    def _calls(self, form: CallForm, opening: str, *, any_name: bool = True) -> Reading[None]:
        tape, out = self._tape, self._out
        out.marked = any_name and not (isinstance(form, JsonForm | PythonForm) and form.careful)
        match form:
            case JsonForm():
                yield from JsonCalls(form, tape, out, any_name=any_name and not form.careful).read(opening)
            case PythonForm():
                yield from PythonCalls(form, tape, out, any_name=any_name and not form.careful).read(opening)
            case TaggedForm():
                yield from TaggedCalls(form, tape, out).read(opening)
            case HeaderForm():
                yield from HeaderCalls(form, tape, out).read(opening)
        # Of a call that was cut, the beginning of a tag may be left.
        out.marked = out.marked and out.cut


def opening_marks(tools: ToolFamily | None, reasoning: ReasoningFamily | None) -> Sequence[str]:
    """Every marker of two families that changes what the text behind it is."""
    marks = [] if reasoning is None else [reasoning.open, reasoning.close, *reasoning.dropped]
    for form in tools.forms if tools is not None else ():
        marks += form.opens
        if isinstance(form, HeaderForm):
            marks += form.section
    return [mark for mark in marks if mark]


def marker_texts(tools: ToolFamily | None, reasoning: ReasoningFamily | None) -> Sequence[str]:
    """Every text of two families that may be a special token."""
    texts: list[str] = []
    if reasoning is not None:
        texts += [reasoning.open, reasoning.close, *reasoning.dropped]
    for form in tools.forms if tools is not None else ():
        texts += form.opens
        texts += form.closes
        match form:
            case HeaderForm():
                texts += [*form.section, form.spelt, form.header.pattern]
            case TaggedForm():
                texts += [form.function, *form.name_ends, form.key, *form.key_ends, form.value, form.value_end]
                texts.append(form.function_end)
            case JsonForm() | PythonForm():
                pass
    return texts
