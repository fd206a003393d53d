"""`drivetrain run`: answers without a server."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from drivetrain.config import Config, EngineConfig
from drivetrain.errors import ConfigError

from drivetrain_server.cli.config_flags import configured


@configured(EngineConfig, model_argument=False)
def run(
    config: Config,
    prompt: Annotated[str | None, typer.Argument(help="What to answer; `-` reads it from standard input.")] = None,
    file: Annotated[
        Path | None, typer.Option(help="Prompts, one a line; .jsonl lines hold `prompt` or `messages`.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write answers there as JSON lines.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text as it is, without the chat template.")] = False,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of an answer at most.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy; else the model's own default.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Keep the likeliest tokens up to this probability.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON line an answer.")] = False,
) -> None:
    """Answer one prompt, or a file of them, without a server."""
    from drivetrain_server.cli.prompts import Prompt, read_prompts

    if (prompt is None) == (file is None):
        raise ConfigError('PROMPT: give either a prompt (drivetrain run "Hello" --model NAME) or --file')
    text = sys.stdin.read() if prompt == "-" else prompt
    prompts = [Prompt(text=text)] if text is not None else read_prompts(file or Path())
    if raw and any(entry.messages is not None for entry in prompts):
        raise ConfigError(f"--raw: {file} holds messages, which need the chat template; leave --raw out")
    answers = _answer(config, prompts, raw, max_tokens=max_tokens, temperature=temperature, top_p=top_p)
    lines = [json.dumps(answer, ensure_ascii=False) for answer in answers]
    if output is not None:
        output.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        typer.echo(f"wrote {len(lines)} answers to {output}", err=True)
        return
    for answer, line in zip(answers, lines, strict=True):
        typer.echo(line if as_json else answer["text"])
