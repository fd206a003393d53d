"""`drivetrain run`: answers without a server."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from drivetrain.config import Config, EngineConfig
from drivetrain.errors import ConfigError
from drivetrain_server.cli.config_flags import configured

if TYPE_CHECKING:
    from drivetrain_server.cli.offline import Answer
    from drivetrain_server.cli.prompts import Prompt


def _one_argument_is_the_prompt(values: dict[str, object]) -> None:
    """Of `run MODEL PROMPT` the model may be left out; it may not be mistaken for a prompt."""
    from drivetrain.model_store import is_local_model

    alone = values["model_argument"]
    if alone is None or any(values[name] is not None for name in ("prompt", "file", "batch")):
        return
    if values["model"] is None and is_local_model(str(alone)):
        raise ConfigError(
            f'PROMPT: "{alone}" is a model; say what it should answer, drivetrain run {alone} "Hello", '
            f"or talk to it, drivetrain chat {alone}"
        )
    values["prompt"], values["model_argument"] = alone, None


@configured(EngineConfig, arrange=_one_argument_is_the_prompt)
def run(
    config: Config,
    prompt: Annotated[str | None, typer.Argument(help="What to answer; `-` reads it from standard input.")] = None,
    file: Annotated[
        Path | None, typer.Option(help="Prompts, one a line; .jsonl lines hold `prompt` or `messages`.")
    ] = None,
    batch: Annotated[
        Path | None, typer.Option(help="Requests in OpenAI's batch format, one a line; needs --output.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write answers there as JSON lines.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text as it is, without the chat template.")] = False,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of an answer at most.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy; else the model's own default.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Keep the likeliest tokens up to this probability.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON line an answer.")] = False,
) -> None:
    """Answer one prompt, or a file of them, without a server."""
    import asyncio

    from drivetrain_server.cli.models import with_model
    from drivetrain_server.cli.prompts import Prompt, read_prompts

    if (prompt is not None) + (file is not None) + (batch is not None) != 1:
        raise ConfigError('PROMPT: give either a prompt (drivetrain run MODEL "Hello"), --file or --batch')
    if output is not None and not output.parent.is_dir():
        raise ConfigError(f"--output: the folder {output.parent} does not exist")
    if batch is not None:
        own = {"--raw": raw, "--json": as_json, "--max-tokens": max_tokens, "--temperature": temperature}
        _batch(with_model(config), batch, output, [name for name, value in (own | {"--top-p": top_p}).items() if value])
        return
    text = sys.stdin.read() if prompt == "-" else prompt
    prompts = [Prompt(text=text)] if text is not None else read_prompts(file or Path())
    if raw and any(entry.messages is not None for entry in prompts):
        raise ConfigError(f"--raw: {file} holds messages, which need the chat template; leave --raw out")
    sampling = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p}
    given = {name: value for name, value in sampling.items() if value is not None}
    stream = text is not None and output is None and not as_json
    answers = asyncio.run(_answer(with_model(config), prompts, given, raw=raw, stream=stream))
    if stream:
        return
    lines = [json.dumps(asdict(answer), ensure_ascii=False) for answer in answers]
    if output is not None:
        output.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        typer.echo(f"wrote {len(lines)} answers to {output}", err=True)
        return
    for answer, line in zip(answers, lines, strict=True):
        typer.echo(line if as_json else answer.text)


def _batch(config: Config, source: Path, output: Path | None, other: Sequence[str]) -> None:
    import asyncio

    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    from drivetrain_server.cli.batch import BatchCounts, run_batch

    if output is None:
        raise ConfigError("--batch: say where the answers go with --output (-o)")
    if other:
        raise ConfigError(f"{other[0]}: each request of a batch file says this for itself; leave it out")
    console = Console(stderr=True)
    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    with ExitStack() as stack:

        def start(counts: BatchCounts) -> Callable[[], None]:
            stack.enter_context(progress)  # not before the phases of the start have been shown
            bar = progress.add_task("requests", total=counts.total, completed=counts.before)
            return lambda: progress.advance(bar)

        counts = asyncio.run(run_batch(config, source, output, on_start=start))
    before = f", {counts.before} were there before" if counts.before else ""
    typer.echo(f"wrote {counts.answered} answers to {output}, {counts.failed} of them errors{before}", err=True)


async def _answer(
    config: Config, prompts: Sequence[Prompt], given: Mapping[str, float], *, raw: bool, stream: bool
) -> list[Answer]:
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    from drivetrain_server.cli.engine import open_frontend, sampling_params
    from drivetrain_server.cli.offline import answer_all

    at_once = config.engine.max_num_seqs + config.engine.max_waiting // 2
    console = Console(stderr=True)
    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    async with open_frontend(config) as frontend:
        params = sampling_params(config, frontend, given)
        if stream:
            answers = await answer_all(frontend, prompts, params, raw=raw, at_once=at_once, on_text=_echo)
            typer.echo()
            return answers
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            bar = progress.add_task("answers", total=len(prompts))

            def tick(_: Answer) -> None:
                progress.advance(bar)

            return await answer_all(frontend, prompts, params, raw=raw, at_once=at_once, on_done=tick)


def _echo(answer: Answer, piece: str) -> None:
    from drivetrain_server.cli.conversation import Thought, show

    if answer.reasoning and not answer.text and not isinstance(piece, Thought):
        show(Thought("\n\n"))
    show(piece)
