"""`drivetrain bench`: load on any OpenAI-style server."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated

import typer

from drivetrain.errors import ConfigError

if TYPE_CHECKING:
    from drivetrain_server.bench.report import LoadReport
    from drivetrain_server.bench.traffic import Load
    from drivetrain_server.http_client import Endpoint

DEFAULT_URL = "http://127.0.0.1:8000"


def bench(
    url: Annotated[str, typer.Option(help="Server to measure.")] = DEFAULT_URL,
    model: Annotated[str | None, typer.Option(help="Model to ask for; else the first that the server lists.")] = None,
    num_requests: Annotated[int, typer.Option(min=1, help="Requests to send.")] = 32,
    concurrency: Annotated[
        int | None,
        typer.Option(min=1, help="Requests under way at the same time; 8 by default, or any number with --rate."),
    ] = None,
    rate: Annotated[float | None, typer.Option(min=0.001, help="Arrivals a second, at random distances.")] = None,
    input_tokens: Annotated[int, typer.Option(min=1, help="Length of every prompt.")] = 128,
    output_tokens: Annotated[int, typer.Option(min=1, help="Length of every answer; ends are ignored.")] = 64,
    shared_prefix: Annotated[int, typer.Option(min=0, help="Tokens that all prompts begin with.")] = 0,
    vocab_size: Annotated[int, typer.Option(min=101, help="Prompts are random token ids below it.")] = 10_000,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    warmup: Annotated[int, typer.Option(min=0, help="Requests before the clock starts.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of prompts and arrivals.")] = 0,
    api_key: Annotated[
        str | None, typer.Option(envvar="OPENAI_API_KEY", show_envvar=True, help="Key for the server.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure the speed of a running server.

    Prompts are exact token ids and answers have an exact length; a server that counts otherwise fails the run.
    """
    import asyncio

    from drivetrain_server.bench.traffic import Load
    from drivetrain_server.http_client import Endpoint

    if shared_prefix > input_tokens:
        raise ConfigError(f"--shared-prefix: got {shared_prefix}, expected at most --input-tokens ({input_tokens})")
    load = Load(
        model=model or "",
        num_requests=num_requests,
        concurrency=8 if concurrency is None and rate is None else concurrency,
        rate=rate,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        shared_prefix=shared_prefix,
        vocab_size=vocab_size,
        seed=seed,
        temperature=temperature,
    )
    load, report = asyncio.run(_measure(Endpoint(url=url, api_key=api_key), load, warmup, quiet=as_json))
    if as_json:
        typer.echo(json.dumps({"url": url, "load": asdict(load), **asdict(report)}))
    else:
        _show(url, load, report)
    if report.failed:
        raise typer.Exit(1)


async def _measure(endpoint: Endpoint, load: Load, warmup: int, *, quiet: bool) -> tuple[Load, LoadReport]:
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    from drivetrain_server.bench.report import summarize
    from drivetrain_server.bench.traffic import drive
    from drivetrain_server.http_client import served_model

    if not load.model:
        load = replace(load, model=await served_model(endpoint))
    if warmup:
        await drive(endpoint, replace(load, num_requests=warmup, concurrency=8, rate=None, seed=load.seed + 1))
    console = Console(stderr=True)
    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as progress:
        bar = progress.add_task("requests", total=load.num_requests)
        samples = await drive(endpoint, load, on_done=lambda _: progress.advance(bar))
    return load, summarize(samples)


def _show(url: str, load: Load, report: LoadReport) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    arrival = [f"{load.rate:g} arrivals/s"] if load.rate else []
    bound = [f"at most {load.concurrency} at once"] if load.concurrency else []
    console.print(
        f"[bold]{escape(load.model)}[/bold] at {url}: {load.num_requests} requests of {load.input_tokens} + "
        f"{load.output_tokens} tokens, {', '.join(arrival + bound)}",
        highlight=False,
    )
    console.print(
        f"{report.output_tokens_per_s:,.1f} output tok/s, {report.total_tokens_per_s:,.1f} total tok/s, "
        f"{report.requests_per_s:,.2f} requests/s over {report.duration_s:,.2f} s"
    )
    table = Table("milliseconds", *(("mean", "p50", "p90", "p99", "max")))
    rows = (
        ("time to first token", report.ttft_ms),
        ("between events", report.itl_ms),
        ("per further token", report.tpot_ms),
        ("whole request", report.latency_ms),
    )
    for name, spread in rows:
        if spread is not None:
            table.add_row(name, *(f"{value:,.1f}" for value in asdict(spread).values()))
    console.print(table)
    if report.cached_tokens:
        console.print(f"{report.cached_tokens:,} of {report.input_tokens:,} prompt tokens came from the prefix cache")
    for problem, count in report.problems.items():
        console.print(f"[red]{count} failed:[/red] {escape(problem)}", highlight=False)
