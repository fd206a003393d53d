"""Reads calls whose arguments stand between tags, and tells them as one JSON object."""

from __future__ import annotations

import json
from collections.abc import Callable

from drivetrain.detokenizer import stop_automaton
from drivetrain.dialects.forms import TaggedForm, Tool
from drivetrain.dialects.json_calls import closing
from drivetrain.dialects.spoken import MAX_NAME_CHARS, Transcript
from drivetrain.dialects.tape import Reading, Tape
from drivetrain.dialects.typed import as_json, is_text


class TaggedCalls:
    """Reads what follows the beginning of a `TaggedForm`."""

    def __init__(self, form: TaggedForm, tape: Tape, out: Transcript) -> None:
        self._form = form
        self._tape = tape
        self._out = out

    def read(self, opening: str) -> Reading[None]:
        """Read all calls that follow; what turns out to be none is said as content."""
        tape, out, form = self._tape, self._out, self._form
        raw = opening + (yield from tape.spaces())
        while True:
            read = yield from tape.literal(form.function)
            if read != form.function:
                tape.give_back(read)
                if raw:
                    out.say(raw)
                    return
                break
            name, end = yield from tape.bounded(stop_automaton(form.name_ends), MAX_NAME_CHARS)
            if end is None or not name.strip() or "<" in name:
                out.say(raw + read + name + (end or ""))
                return
            if end.startswith("<"):
                tape.give_back(end)
            yield from self._call(name.strip())
            raw = ""
            yield from tape.spaces()
            if not form.function:
                return
        yield from closing(tape, out, form.closes)

    def _call(self, name: str) -> Reading[None]:
        tape, out, form = self._tape, self._out, self._form
        tool = out.tools.get(name)
        out.begin(name)
        first = True
        while True:
            spaces = yield from tape.spaces()
            read = yield from tape.literal(form.key)
            if read != form.key:
                break
            key, end = yield from tape.bounded(stop_automaton(form.key_ends), MAX_NAME_CHARS)
            if end is None:
                # The call ends within a tag: what there is of the tag is no part of it.
                self._end(first)
                out.say(spaces + read + key)
                return
            key = key.strip()
            if form.value:
                yield from tape.spaces()
                opened = yield from tape.literal(form.value)
                if opened != form.value:
                    tape.give_back(opened)
            out.arguments(("{" if first else ", ") + json.dumps(key, ensure_ascii=False) + ": ")
            first = False
            textual = end == form.text_key_end or is_text(tool, key)
            yield from self._value(tool, key, textual=textual)
        self._end(first)
        tape.give_back(read)
        read = yield from tape.literal(form.function_end)
        if read != form.function_end:
            tape.give_back(read)
            out.say(spaces)

    def _end(self, empty: bool) -> None:
        self._out.arguments("{}" if empty else "}")
        self._out.end()

    def _value(self, tool: Tool | None, key: str, *, textual: bool) -> Reading[None]:
        tape, form = self._tape, self._form
        ends = stop_automaton((form.value_end,))
        if textual:
            text = _JsonString(self._out.arguments, lines=form.newlines)
            yield from tape.until(ends, text.add)
            text.finish()
            return
        texts: list[str] = []
        yield from tape.until(ends, texts.append)
        self._out.arguments(as_json(_bare_lines("".join(texts)) if form.newlines else "".join(texts), tool, key))


class _JsonString:
    """Tells text that comes in pieces as one JSON string.

    Args:
        lines: a line end at the beginning and one at the end belong to the tags.
    """

    def __init__(self, say: Callable[[str], None], *, lines: bool) -> None:
        self._say = say
        self._lines = lines
        self._first = True
        self._held = ""
        say('"')

    def add(self, text: str) -> None:
        """More of the text, not empty."""
        if self._lines:
            if self._first:
                text = text.removeprefix("\n")
            self._first = False
            text = self._held + text
            self._held = "\n" if text.endswith("\n") else ""
            text = text.removesuffix("\n")
        self._say(json.dumps(text, ensure_ascii=False)[1:-1])

    def finish(self) -> None:
        """The text is complete."""
        self._say('"')


def _bare_lines(text: str) -> str:
    return text.removeprefix("\n").removesuffix("\n")
