"""The group of commands: a word that is none of them is answered with what was probably meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from typing import Any

from typer.core import TyperGroup


class Commands(TyperGroup):
    """The commands of the program. A word that is none is looked for among commands, options and help texts."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that `args` begins with, as the base class gives it; fails with a hint if there is none."""
        word = args[0]
        if not (ctx.resilient_parsing or word.startswith("-") or word in self.commands):
            texts = {name: command.help or "" for name, command in self.commands.items()}
            options = [option for parameter in self.get_params(ctx) for option in parameter.opts]
            ctx.fail(f"No such command {word!r}. {hint(word, texts, options, program=ctx.command_path)}")
        return super().resolve_command(ctx, args)


def hint(word: str, texts: Mapping[str, str], options: Collection[str], *, program: str) -> str:
    """What to write in place of `word`: the nearest command or option, else a command whose help has the word.

    Args:
        texts: help text of each command.
        options: those of the program itself, as they are written.
    """
    spelled = {option.lstrip("-"): f"{program} {option}" for option in options if option.startswith("--")}
    spelled |= {name: f"{program} {name}" for name in texts}
    if near := difflib.get_close_matches(word.lower(), spelled, n=2):
        return f"Did you mean {' or '.join(f'`{spelled[name]}`' for name in near)}?"
    mentioned = re.compile(rf"\b{re.escape(word.lower())}\b")
    if told := [f"`{program} {name} --help`" for name, text in texts.items() if mentioned.search(text.lower())]:
        return f"The word is in {', '.join(told)}."
    return f"`{program} --help` lists every command."
