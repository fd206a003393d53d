"""Reads the channels of gpt-oss: each message has a header that says what it is and to whom it goes."""

from __future__ import annotations

import re
from collections.abc import Collection

from drivetrain.detokenizer import stop_automaton
from drivetrain.dialects.events import Spoken
from drivetrain.dialects.spoken import Transcript
from drivetrain.dialects.tape import Reading, Tape

CHANNEL, MESSAGE, START, END, CALL, RETURN = (
    "<|channel|>",
    "<|message|>",
    "<|start|>",
    "<|end|>",
    "<|call|>",
    "<|return|>",
)
HARMONY_MARKERS = (CHANNEL, MESSAGE, START, END, CALL, RETURN, "<|constrain|>")
MAX_HEADER_CHARS = 1024
_RECIPIENT = re.compile(r"\bto=(?:functions\.)?(?P<name>[\w.-]{1,256})")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w{1,32})")


class _Arguments:
    """Tells the arguments of a call, and knows whether it had any."""

    def __init__(self, out: Transcript) -> None:
        self._out = out
        self.told = False

    def __call__(self, text: str) -> None:
        self.told = self.told or bool(text)
        self._out.arguments(text)


class HarmonyReader:
    """Reads one answer of a model that speaks in channels.

    `analysis` is reasoning, a message to a function is a call, all other is content. Text outside of messages is
    content, so that nothing is lost.

    Args:
        out: gathers the events; it holds the tools.
        calls: a message to a function is a call; else its text is content.
        bound: as of `Tape`.
    """

    def __init__(self, out: Transcript, *, calls: bool, bound: Collection[str] = ()) -> None:
        self.thoughts = out.thoughts
        self._out = out
        self._calls = calls
        self._tape = Tape(bound)
        self.marks = self._tape.marks
        self._program = self._read()
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

    def _read(self) -> Reading[None]:
        tape, out = self._tape, self._out
        yield
        headers = stop_automaton((MESSAGE, END, CALL, RETURN))
        bodies = stop_automaton((END, CALL, RETURN, START, CHANNEL))
        while (yield from tape.peek()):
            header, mark = yield from tape.bounded(headers, MAX_HEADER_CHARS)
            if mark != MESSAGE:
                # No header: the model went on with plain text, or the answer was cut within one.
                out.marked = header.startswith((CHANNEL, START))
                out.say(header)
                if mark is None:
                    rest = yield from tape.until(bodies, out.say)
                    if rest in (START, CHANNEL):
                        tape.give_back(rest)
                continue
            before, found, _ = header.partition(CHANNEL if CHANNEL in header else START)
            recipient = _RECIPIENT.search(header)
            channel = _CHANNEL.search(header)
            if found and before.strip() and START not in before and recipient is None:
                out.say(before)
            name = channel[1] if channel else ""
            if recipient is not None and self._calls:
                out.reasoned()
                out.begin(recipient["name"])
                arguments = _Arguments(out)
                mark = yield from tape.until(bodies, arguments)
                if mark is not None and not arguments.told:
                    out.arguments("{}")
                out.end()
            elif name == "analysis":
                mark = yield from out.think(tape, bodies)
            else:
                mark = yield from tape.until(bodies, out.say)
            if mark in (START, CHANNEL):
                tape.give_back(mark)
