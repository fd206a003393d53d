"""Reads calls that are JSON objects, and the arguments of all forms that have them as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from drivetrain.detokenizer import stop_automaton
from drivetrain.dialects.forms import HeaderForm, JsonForm
from drivetrain.dialects.spoken import MAX_NAME_CHARS, Transcript
from drivetrain.dialects.tape import Reading, Tape

MAX_HEADER_CHARS = 1024
_IN_STRING = re.compile(r'["\\]')
_OUTSIDE = re.compile(r'["{}\[\]]')
_SCALAR_END = re.compile(r"[,}\]\s]")


def json_value(tape: Tape, say: Callable[[str], None]) -> Reading[bool]:
    """Say one JSON value as it is written, up to its end. Nesting and strings are followed, nothing else is checked.

    Returns:
        whether its end was found.
    """
    first = yield from tape.peek()
    if first == '"':
        tape.advance()
        say('"')
        return (yield from _rest_of_string(tape, say))
    if first not in ("{", "["):
        while text := (yield from tape.take()):
            end = _SCALAR_END.search(text)
            if end is not None:
                say(text[: end.start()])
                tape.give_back(text[end.start() :])
                return True
            say(text)
        return False
    depth = 0
    while text := (yield from tape.take()):
        at = 0
        while (mark := _OUTSIDE.search(text, at)) is not None:
            at = mark.end()
            letter = mark.group()
            if letter == '"':
                break
            depth += 1 if letter in "{[" else -1
            if not depth:
                say(text[:at])
                tape.give_back(text[at:])
                return True
        if mark is None:
            say(text)
            continue
        say(text[:at])
        tape.give_back(text[at:])
        if not (yield from _rest_of_string(tape, say)):
            return False
    return False


def _rest_of_string(tape: Tape, say: Callable[[str], None]) -> Reading[bool]:
    escaped = False
    while text := (yield from tape.take()):
        at = 1 if escaped else 0
        escaped = False
        while (mark := _IN_STRING.search(text, at)) is not None:
            at = mark.end()
            if mark.group() == '"':
                say(text[:at])
                tape.give_back(text[at:])
                return True
            at += 1
            if at > len(text):
                escaped = True
        say(text)
    return False


@dataclass(slots=True)
class _Call:
    """One object that may become a call."""

    raw: list[str]
    """All that was read, to be said as content if it becomes none."""
    name: str | None = None
    id: str | None = None
    begun: bool = False
    waiting: list[str] | None = None
    """Arguments that came before the name."""


class JsonCalls:
    """Reads what follows the beginning of a `JsonForm`."""

    def __init__(self, form: JsonForm, tape: Tape, out: Transcript, *, any_name: bool) -> None:
        self._form = form
        self._tape = tape
        self._out = out
        self._any_name = any_name

    def read(self, opening: str) -> Reading[None]:
        """Read all calls that follow; what turns out to be none is said as content.

        Args:
            opening: text that was read already and belongs to the calls.
        """
        tape, out = self._tape, self._out
        raw = [opening, (yield from tape.spaces())]
        if (yield from tape.peek()) == "[":
            tape.advance()
            raw += ["[", (yield from tape.spaces())]
        found = False
        while (yield from tape.peek()) == "{":
            call = _Call(raw=raw)
            whole = yield from self._object(call)
            if not call.begun:
                out.say("".join(call.raw))
                return
            out.end()
            found = True
            raw = []
            if not whole:
                return
            raw = [(yield from tape.spaces())]
            while (yield from tape.peek()) in (",", ";", "]"):
                raw.append((yield from tape.peek()))
                tape.advance()
                raw.append((yield from tape.spaces()))
        if not found:
            out.say("".join(raw))
            return
        yield from closing(tape, out, self._form.closes)

    def _object(self, call: _Call) -> Reading[bool]:
        """One object. Returns whether it was read to its end."""
        tape, note = self._tape, call.raw.append
        tape.advance()
        note("{")
        while True:
            note((yield from tape.spaces()))
            letter = yield from tape.peek()
            if letter == "}":
                tape.advance()
                note("}")
                return self._complete(call)
            if letter == ",":
                tape.advance()
                note(",")
                continue
            if letter != '"':
                return False
            if not (yield from self._member(call)):
                return False

    def _member(self, call: _Call) -> Reading[bool]:
        """One key and its value. Returns whether the object can still be a call."""
        tape, form, note = self._tape, self._form, call.raw.append
        key = yield from self._string(note)
        if not self._any_name and not self._may_have(key):
            return False
        note((yield from tape.spaces()))
        if (yield from tape.peek()) != ":":
            return False
        tape.advance()
        note(":")
        note((yield from tape.spaces()))
        if key in form.name_keys and call.name is None:
            return (yield from self._name(call))
        if key in form.argument_keys and not call.begun:
            return (yield from self._arguments(call))
        value: list[str] = []
        whole = yield from json_value(tape, value.append)
        text = "".join(value)
        note(text)
        if key in form.id_keys and call.id is None:
            call.id = _plain_id(text)
        return whole

    def _name(self, call: _Call) -> Reading[bool]:
        if (yield from self._tape.peek()) != '"':
            return False
        call.name = yield from self._string(call.raw.append)
        if not self._accepts(call.name):
            return False
        if call.waiting is not None:
            self._begin(call)
        return True

    def _arguments(self, call: _Call) -> Reading[bool]:
        """The value of the arguments; told as it comes where the name is known."""
        tape, out = self._tape, self._out
        if call.name is not None and (yield from tape.peek()) == "{":
            self._begin(call)
            return (yield from json_value(tape, out.arguments))
        value: list[str] = []
        whole = yield from json_value(tape, value.append)
        call.raw += value
        if not whole:
            return False
        call.waiting = [_object_text("".join(value))]
        if call.name is not None:
            self._begin(call)
        return True

    def _begin(self, call: _Call) -> None:
        assert call.name is not None
        call.begun = True
        self._out.begin(call.name, call.id)
        for text in call.waiting or ():
            self._out.arguments(text)

    def _complete(self, call: _Call) -> bool:
        if call.begun:
            return True
        if call.name is None:
            return False
        call.waiting = call.waiting or ["{}"]
        self._begin(call)
        return True

    def _may_have(self, key: str) -> bool:
        """Whether a call may have this key. Any other object is not held back to its end in case it is one."""
        form = self._form
        return key in (*form.name_keys, *form.argument_keys, *form.id_keys, "type")

    def _accepts(self, name: str) -> bool:
        if not self._any_name:
            return name in self._out.tools
        return 0 < len(name) <= MAX_NAME_CHARS

    def _string(self, note: Callable[[str], None]) -> Reading[str]:
        value: list[str] = []
        yield from json_value(self._tape, value.append)
        text = "".join(value)
        note(text)
        return _decoded(text)


class HeaderCalls:
    """Reads one call of a `HeaderForm`."""

    def __init__(self, form: HeaderForm, tape: Tape, out: Transcript) -> None:
        self._form = form
        self._tape = tape
        self._out = out

    def read(self, opening: str) -> Reading[None]:
        """Read the call that follows; what turns out to be none is said as content."""
        tape, out, form = self._tape, self._out, self._form
        ends = stop_automaton(("{", *form.opens, *form.closes))
        header, mark = yield from tape.bounded(ends, MAX_HEADER_CHARS)
        match = form.header.fullmatch(header)
        if match is None or (mark is not None and mark in form.opens):
            out.say(opening + header)
            tape.give_back(mark or "")
            return
        if mark is None:
            out.say(opening + header)
            return
        out.begin(match["name"], match.groupdict().get("id"))
        if mark != "{":
            out.arguments("{}")
            out.end()
            return
        tape.give_back("{")
        whole = yield from json_value(tape, out.arguments)
        out.end()
        if whole:
            yield from closing(tape, out, form.closes, form.trail)


def closing(tape: Tape, out: Transcript, closes: tuple[str, ...], trail: str = "") -> Reading[None]:
    """Go past the marker behind a call; other text there is left, where it is more than white space."""
    passed = [(yield from tape.spaces())]
    if trail:
        expected = trail.lstrip()
        read = yield from tape.literal(expected)
        passed.append(read)
        if read != expected:
            out.say("".join(passed))
            return
        passed = [(yield from tape.spaces())]
    for close in closes:
        read = yield from tape.literal(close)
        if read == close:
            return
        tape.give_back(read)
    out.say("".join(passed))


def _decoded(text: str) -> str:
    """The text of a JSON string; as it is written where it is none."""
    try:
        value: object = json.loads(text, strict=False)
    except ValueError:
        return text
    return value if isinstance(value, str) else text


def _object_text(text: str) -> str:
    """The object that some models write as a string, or leave out."""
    if text == "null":
        return "{}"
    inner = _decoded(text) if text.startswith('"') else text
    return inner if inner.lstrip().startswith("{") else text


def _plain_id(text: str) -> str | None:
    value = _decoded(text)
    return value if re.fullmatch(r"[\w.:-]{1,128}", value) else None
