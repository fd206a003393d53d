"""What a load test asks: prompts of exact lengths, with shared beginnings, or from a file; the same for one seed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from drivetrain.errors import ConfigError
from drivetrain_server.http_client import Json

FIRST_TOKEN_ID = 100
"""Ids below it are often special tokens."""
MAX_FILE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Lengths:
    """Lengths drawn evenly from `low` to `high`, both included."""

    low: int
    high: int

    def draw(self, chooser: random.Random) -> int:
        """One length; a fixed one takes no draw, so that seeds keep their prompts."""
        return self.low if self.low == self.high else chooser.randint(self.low, self.high)

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}-{self.high}"


def lengths(text: str, flag: str) -> Lengths:
    """Read `128` or `64-256`.

    Raises:
        ConfigError: it is neither.
    """
    low, dash, high = text.partition("-")
    high = high if dash else low
    if not (low.isdecimal() and high.isdecimal() and 1 <= int(low) <= int(high)):
        raise ConfigError(f'{flag}: got "{text}", expected a length such as 128 or a range such as 64-256')
    return Lengths(int(low), int(high))


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One request.

    Attributes:
        prompt: token ids, or a text for the completions route.
        messages: a conversation for the chat route, instead of a prompt.
        output_tokens: the exact length of the answer.
        input_tokens: the exact length of the prompt; None where only the server's tokenizer knows it.
    """

    output_tokens: int
    prompt: tuple[int, ...] | str = ()
    messages: tuple[dict[str, Json], ...] | None = None
    input_tokens: int | None = None

    def body(self) -> dict[str, Json]:
        """The fields of the request that say what is asked."""
        if self.messages is not None:
            return {"messages": list(self.messages), "max_tokens": self.output_tokens}
        prompt: Json = self.prompt if isinstance(self.prompt, str) else list(self.prompt)
        return {"prompt": prompt, "max_tokens": self.output_tokens}


def random_jobs(
    count: int,
    *,
    inputs: Lengths,
    outputs: Lengths,
    shared_prefix: int = 0,
    num_prefixes: int = 1,
    vocab_size: int = 10_000,
    seed: int | str = 0,
) -> list[Job]:
    """Prompts of random token ids.

    Args:
        shared_prefix: tokens at the start that prompts of one group have in common.
        num_prefixes: groups with a beginning of their own each; requests go through them in turn.
        vocab_size: ids are drawn below it.
    """
    chooser = random.Random(seed)

    def ids(length: int) -> list[int]:
        return [chooser.randrange(FIRST_TOKEN_ID, vocab_size) for _ in range(length)]

    prefixes = [ids(shared_prefix) for _ in range(num_prefixes)]
    jobs: list[Job] = []
    for number in range(count):
        length = max(inputs.draw(chooser), shared_prefix)
        prompt = (*prefixes[number % num_prefixes], *ids(length - shared_prefix))
        jobs.append(Job(prompt=prompt, input_tokens=length, output_tokens=outputs.draw(chooser)))
    return jobs


def file_jobs(path: Path, count: int, *, outputs: Lengths, seed: int | str = 0) -> list[Job]:
    """Jobs from a file: JSON lines with `prompt` (text or token ids) or `messages`, and perhaps `max_tokens`; or plain
    text, a prompt a line. Their order is shuffled by the seed; a short file is gone through again.

    Raises:
        ConfigError: the file cannot be read, is empty, or a line is neither.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(f"--dataset: {path} has more than {MAX_FILE_BYTES} bytes; take a part of it")
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--dataset: {path} cannot be read: {error}") from error
    chooser = random.Random(seed)
    parse: Callable[[str, int], Job] = _json_job if path.suffix == ".jsonl" else _text_job
    found = [parse(line, number) for number, line in enumerate(lines, 1)]
    if not found:
        raise ConfigError(f"--dataset: {path} holds no prompt")
    return [
        job if job.output_tokens else _with_length(job, outputs.draw(chooser)) for job in _drawn(found, count, chooser)
    ]


def _drawn(found: list[Job], count: int, chooser: random.Random) -> Iterator[Job]:
    while count > 0:
        chooser.shuffle(found)
        yield from found[:count]
        count -= len(found)


def _with_length(job: Job, output_tokens: int) -> Job:
    return Job(prompt=job.prompt, messages=job.messages, input_tokens=job.input_tokens, output_tokens=output_tokens)


def _text_job(line: str, number: int) -> Job:
    return Job(prompt=line, output_tokens=0)


def _json_job(line: str, number: int) -> Job:
    try:
        parsed: Json = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"--dataset: line {number} is not JSON: {error}") from error
    entry = parsed if isinstance(parsed, dict) else {}
    limit = entry.get("max_tokens", 0)
    if type(limit) is not int or limit < ("max_tokens" in entry):
        raise ConfigError(f"--dataset: line {number}: max_tokens: got {limit!r}, expected a number of at least 1")
    messages, prompt = entry.get("messages"), entry.get("prompt")
    if isinstance(messages, list) and messages and all(isinstance(message, dict) for message in messages):
        return Job(messages=tuple(cast("list[dict[str, Json]]", messages)), output_tokens=limit)
    if isinstance(prompt, str) and prompt:
        return Job(prompt=prompt, output_tokens=limit)
    if isinstance(prompt, list) and prompt and all(type(token) is int for token in prompt):
        tokens = tuple(cast("list[int]", prompt))
        return Job(prompt=tokens, input_tokens=len(tokens), output_tokens=limit)
    raise ConfigError(f"--dataset: line {number} has no `prompt` (text or token ids) and no `messages`")
