"""Text that arrives in pieces, for readers that are written as if it were whole.

A reader is a generator: it yields where it needs more text and goes on when there is some, so that its place in the
text is its place in the code. Each character is read once, whatever the pieces are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator
from typing import TypeVar

from drivetrain.detokenizer import StopAutomaton

Result = TypeVar("Result")
Reading = Generator[None, None, Result]
"""A part of a reader: yields for more text, returns what it read."""


WINDOW = 1024
"""Characters that are taken at a time, so that giving most of them back again costs little."""


class Tape:
    """What has arrived and is not read yet. `ended` means that no more comes.

    Args:
        bound: markers that are text unless they begin at one of `marks`.

    Attributes:
        marks: where, in characters from the beginning, tokens begin that are markers; those of a text are added before
            it is fed.
    """

    __slots__ = ("_at", "_bound", "_fed", "_text", "ended", "marks")

    def __init__(self, bound: Collection[str] = ()) -> None:
        self.marks: set[int] = set()
        self._bound = bound
        self._text = ""
        self._at = 0
        self._fed = 0
        self.ended = False

    @property
    def place(self) -> int:
        """Characters that were read."""
        return self._fed - len(self._text) + self._at

    def feed(self, text: str) -> None:
        """Add text behind."""
        self._fed += len(text)
        self._text = text if self._at == len(self._text) else self._text[self._at :] + text
        self._at = 0

    def take(self) -> Reading[str]:
        """Some of what is there, at least one character; empty at the end of the text."""
        while self._at == len(self._text):
            if self.ended:
                return ""
            yield
        text = self._text[self._at : self._at + WINDOW]
        self._at += len(text)
        return text

    def give_back(self, text: str) -> None:
        """Put text that was taken last back in front."""
        if self._at >= len(text):
            self._at -= len(text)
        else:
            self._text, self._at = text + self._text[self._at :], 0

    def peek(self) -> Reading[str]:
        """The next character, left where it is; empty at the end of the text."""
        while self._at == len(self._text):
            if self.ended:
                return ""
            yield
        return self._text[self._at]

    def advance(self) -> None:
        """Go past the character that `peek` showed."""
        self._at += 1

    def spaces(self) -> Reading[str]:
        """White space up to the next other character."""
        found: list[str] = []
        while (letter := (yield from self.peek())).isspace():
            found.append(letter)
            self._at += 1
        return "".join(found)

    def literal(self, expected: str) -> Reading[str]:
        """As much of `expected` as the text goes on with; all of it is a match."""
        for at, letter in enumerate(expected):
            if (yield from self.peek()) != letter:
                return expected[:at]
            self._at += 1
        return expected

    def until(self, markers: StopAutomaton, say: Callable[[str], None]) -> Reading[str | None]:
        """Say the text up to the first marker and go past it.

        Returns:
            the marker; None at the end of the text.
        """
        state, held = 0, ""
        while True:
            # As `take`, without a generator for every piece of plain text.
            if self._at == len(self._text):
                if self.ended:
                    break
                yield
                continue
            text = self._text[self._at : self._at + WINDOW]
            self._at += len(text)
            state, num_read, found = markers.scan(state, text)
            self.give_back(text[num_read:])
            known = held + text[:num_read]
            if found is not None and self._is_mark(found):
                if len(known) > len(found):
                    say(known[: -len(found)])
                return found
            certain = len(known) - markers.depth[state]
            if certain:
                say(known[:certain])
            held = known[certain:]
        if held:
            say(held)
        return None

    def bounded(self, markers: StopAutomaton, limit: int) -> Reading[tuple[str, str | None]]:
        """Text up to the first marker, and the marker; None for it where `limit` characters have none."""
        taken: list[str] = []
        size = 0
        state = 0
        while size < limit and (text := (yield from self.take())):
            part = text[: limit - size]
            state, num_read, found = markers.scan(state, part)
            taken.append(text[:num_read])
            size += num_read
            self.give_back(text[num_read:])
            if found is not None and self._is_mark(found):
                return "".join(taken)[: -len(found)], found
        return "".join(taken), None

    def _is_mark(self, found: str) -> bool:
        """Whether the marker that was read last is one, not text that looks like it."""
        return found not in self._bound or self.place - len(found) in self.marks
