"""Reads calls that are written as in Python, and tells their keywords as one JSON object."""

from __future__ import annotations

import json
import re

from drivetrain.dialects.forms import PythonForm
from drivetrain.dialects.json_calls import closing
from drivetrain.dialects.python_literals import python_to_json
from drivetrain.dialects.spoken import MAX_NAME_CHARS, Transcript
from drivetrain.dialects.tape import Reading, Tape
from drivetrain.dialects.typed import property_names

_NAME = re.compile(r"[^\W\d][\w.]*")
_MARKS = re.compile(r"""["'()\[\]{},=]""")


class PythonCalls:
    """Reads what follows the beginning of a `PythonForm`."""

    def __init__(self, form: PythonForm, tape: Tape, out: Transcript, *, any_name: bool) -> None:
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
        while True:
            word = yield from self._word()
            if word and (yield from tape.peek()) == "(" and self._accepts(word):
                tape.advance()
                yield from self._call(word)
                found = True
                raw = [(yield from tape.spaces())]
                while (yield from tape.peek()) in (",", ";", "]"):
                    raw.append((yield from tape.peek()))
                    tape.advance()
                    raw.append((yield from tape.spaces()))
                continue
            if not found or word:
                out.say("".join(raw) + word)
                return
            yield from closing(tape, out, self._form.closes)
            return

    def _word(self) -> Reading[str]:
        letters: list[str] = []
        while len(letters) < MAX_NAME_CHARS:
            letter = yield from self._tape.peek()
            if not (letter.isalnum() or letter in ("_", ".")) or not letter:
                break
            letters.append(letter)
            self._tape.advance()
        return "".join(letters)

    def _accepts(self, name: str) -> bool:
        return name in self._out.tools or (self._any_name and _NAME.fullmatch(name) is not None)

    def _call(self, name: str) -> Reading[None]:
        """Keywords up to the closing parenthesis; each is told once it is complete."""
        out = self._out
        positions = property_names(out.tools.get(name))
        out.begin(name)
        num_told = 0
        while True:
            texts: list[str] = []
            mark = yield from self._argument(texts)
            written = "".join(texts).strip()
            if written:
                key, _, value = written.partition("=")
                if not _NAME.fullmatch(key.strip()):
                    key = positions[num_told] if num_told < len(positions) else f"arg{num_told}"
                    value = written
                rendered = json.dumps(key.strip(), ensure_ascii=False) + ": " + python_to_json(value)
                out.arguments(("{" if not num_told else ", ") + rendered)
                num_told += 1
            if mark != ",":
                break
        out.arguments("}" if num_told else "{}")
        out.end()

    def _argument(self, texts: list[str]) -> Reading[str]:
        """Text of one argument, and the mark that ended it: `,` or `)`; nothing at the end of the text."""
        tape = self._tape
        depth = 0
        while text := (yield from tape.take()):
            mark = _MARKS.search(text)
            if mark is None:
                texts.append(text)
                continue
            tape.give_back(text[mark.end() :])
            letter = mark.group()
            if not depth and letter in (",", ")"):
                texts.append(text[: mark.start()])
                return letter
            texts.append(text[: mark.end()])
            if letter in "\"'":
                yield from self._string(letter, texts)
            elif letter in "([{":
                depth += 1
            elif letter in ")]}":
                depth -= 1
        return ""

    def _string(self, quote: str, texts: list[str]) -> Reading[None]:
        marks = _STRING_MARKS[quote]
        escaped = False
        while text := (yield from self._tape.take()):
            at = 1 if escaped else 0
            escaped = False
            while (mark := marks.search(text, at)) is not None:
                at = mark.end()
                if mark.group() == quote:
                    texts.append(text[:at])
                    self._tape.give_back(text[at:])
                    return
                at += 1
                escaped = at > len(text)
            texts.append(text)


_STRING_MARKS = {'"': re.compile(r'["\\]'), "'": re.compile(r"['\\]")}
