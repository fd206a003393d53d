"""Prompt files of `drivetrain run`: a text or a list of messages each."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from drivetrain.errors import ConfigError

Message = dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What to answer. `messages` is set where the file holds a conversation; `text` is then its last message."""

    text: str
    messages: tuple[Message, ...] | None = None

    def as_messages(self) -> list[Message]:
        """The conversation, or one user message."""
        return list(self.messages) if self.messages is not None else [{"role": "user", "content": self.text}]


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a file: `.jsonl` has `{"prompt": ...}` or `{"messages": [...]}` a line, others one prompt a line.

    Raises:
        ConfigError: the file cannot be read, is empty, or a line has another shape.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot read prompts: {error}") from error
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not numbered:
        raise ConfigError(f"{path}: got no prompt, expected one a line")
    if path.suffix != ".jsonl":
        return [Prompt(text=line) for _, line in numbered]
    return [_parse(line, f"{path}:{number}") for number, line in numbered]


def _parse(line: str, where: str) -> Prompt:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where}: not JSON: {error}") from error
    match entry:
        case {"prompt": str(text)}:
            return Prompt(text=text)
        case {"messages": [*messages]} if messages and all(_is_message(message) for message in messages):
            typed = cast("list[Message]", messages)
            return Prompt(text=typed[-1]["content"], messages=tuple(typed))
        case _:
            shown = line if len(line) <= 80 else line[:77] + "..."
            raise ConfigError(
                f'{where}: got {shown}, expected {{"prompt": "..."}} or '
                f'{{"messages": [{{"role": "user", "content": "..."}}]}}'
            )


def _is_message(message: object) -> bool:
    match message:
        case {"role": str(), "content": str()}:
            return True
        case _:
            return False
