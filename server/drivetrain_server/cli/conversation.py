"""A conversation in the terminal: what was said, the commands, and the answers as they stream."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import typer

Message = dict[str, str]

HELP = """\
/reset          forget the conversation
/system TEXT    set the system message and forget the conversation; without TEXT remove it
/retry          answer the last message again
/undo           take back the last message and its answer
/save FILE      write the conversation as JSON
/stats          speed of the last answer
/help           this list
/exit           leave (also /quit, /bye and Ctrl-D)
\"\"\"             begins and ends a message of several lines
Ctrl-C stops an answer."""

FENCE = '"""'
LEAVE = ("/exit", "/quit", "/bye")


class Thought(str):
    """A piece of what a model thinks before it answers; shown, but no part of the conversation."""

    __slots__ = ()


def show(piece: str) -> None:
    """Write a piece of an answer; thoughts are dim, and shown on a terminal only."""
    if not isinstance(piece, Thought):
        typer.echo(piece, nl=False)
    elif is_terminal():
        typer.secho(piece, nl=False, dim=True)


def is_terminal() -> bool:
    """Whether somebody watches what is written."""
    return sys.stdout.isatty()


class Talker(Protocol):
    """Whoever answers."""

    def answer(self, messages: list[Message]) -> AsyncGenerator[str, None]:
        """Stream the answer's text, and `Thought` pieces before it; closing it early stops the work."""
        ...


@dataclass(slots=True, kw_only=True)
class Conversation:
    """The messages so far, and the speed of the last answer."""

    system: str | None = None
    turns: list[Message] = field(default_factory=list[Message])
    stats: str = "no answer yet"

    def messages(self) -> list[Message]:
        """What the model is asked to continue."""
        first = [{"role": "system", "content": self.system}] if self.system else []
        return first + self.turns

    def command(self, line: str) -> str | None:
        """Carry out a `/command` that needs no answer; returns what to say, or None where the line is none of these."""
        name, _, argument = line.partition(" ")
        match name:
            case "/reset":
                self.turns.clear()
                return "forgotten"
            case "/system":
                self.turns.clear()
                self.system = argument.strip() or None
                return "system message set, conversation forgotten" if self.system else "no system message any more"
            case "/undo":
                return "taken back" if self._take_back() else "nothing to take back yet"
            case "/save":
                return self._save(argument.strip())
            case "/stats":
                return self.stats
            case "/help":
                return HELP
            case _ if name.startswith("/") and name not in ("/retry", *LEAVE):
                return f"unknown command {name}; /help lists them"
            case _:
                return None

    async def ask(self, talker: Talker, write: Callable[[str], None]) -> None:
        """Stream the answer to the last message through `write` and keep it, also where it was stopped half-way.

        Args:
            write: given the pieces as they come, `Thought` pieces too, and a line end after the last one.
        """
        began = time.perf_counter()
        first: float | None = None
        pieces: list[str] = []
        thought = False
        try:
            async with aclosing(talker.answer(self.messages())) as answer:
                async for piece in answer:
                    first = first or time.perf_counter()
                    if isinstance(piece, Thought):
                        thought = True
                    else:
                        if thought and not pieces:
                            write(Thought("\n\n"))
                        pieces.append(piece)
                    write(piece)
        finally:
            write("\n")
            if pieces:
                self.turns.append({"role": "assistant", "content": "".join(pieces)})
                self.stats = _speed(began, first or began, len(pieces))

    def _take_back(self) -> bool:
        """Forget everything from the last message of the user on. False where there is none."""
        last = max((at for at, turn in enumerate(self.turns) if turn["role"] == "user"), default=None)
        if last is None:
            return False
        del self.turns[last:]
        return True

    def _save(self, path: str) -> str:
        if not path:
            return "/save needs the name of a file"
        try:
            Path(path).expanduser().write_text(
                json.dumps({"messages": self.messages()}, ensure_ascii=False, indent=2) + "\n", encoding="utf-8"
            )
        except OSError as error:
            return f"{path}: cannot be written: {error.strerror or error}"
        return f"wrote {len(self.messages())} messages to {path}"

    def say(self, text: str) -> None:
        """Add a message of the user. One that was never answered is replaced."""
        if self.turns and self.turns[-1]["role"] == "user":
            self.turns.pop()
        self.turns.append({"role": "user", "content": text})

    def take_back_answer(self) -> bool:
        """Remove the last answer, so that it can be asked for again. False where there is nothing to retry."""
        if self.turns and self.turns[-1]["role"] == "assistant":
            self.turns.pop()
        return bool(self.turns)


def read_message(read_line: Callable[[str], str]) -> str:
    """One message of the user: a line, or all lines between two lines of three quotes.

    Raises:
        EOFError: the input ended.
    """
    line = read_line(">>> ")
    if not line.startswith(FENCE):
        return line.strip()
    lines = [line.removeprefix(FENCE)]
    while not lines[-1].rstrip().endswith(FENCE):
        lines.append(read_line("... "))
    lines[-1] = lines[-1].rstrip().removesuffix(FENCE)
    return "\n".join(lines).strip()


def _speed(began: float, first: float, pieces: int) -> str:
    now = time.perf_counter()
    words = f"first token after {(first - began) * 1000:,.0f} ms, {pieces} pieces in {now - began:,.1f} s"
    return words if pieces < 2 or now == first else f"{words}, {(pieces - 1) / (now - first):,.1f} pieces/s"
