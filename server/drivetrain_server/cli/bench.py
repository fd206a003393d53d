"""`drivetrain bench`: load on any OpenAI-style server."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from drivetrain.errors import ConfigError
from drivetrain_server.cli.address import ApiKey, Url, server_url

if TYPE_CHECKING:
    from drivetrain_server.bench.jobs import Job, Lengths
    from drivetrain_server.bench.report import LoadReport
    from drivetrain_server.bench.traffic import Load, Sample
    from drivetrain_server.http_client import Endpoint


def bench(
    url: Url = None,
    model: Annotated[str | None, typer.Option(help="Model to ask for; else the first that the server lists.")] = None,
    num_requests: Annotated[int, typer.Option("--num-requests", "-n", min=1, help="Requests of each run.")] = 32,
    concurrency: Annotated[
        str | None,
        typer.Option(
            "--concurrency",
            "-c",
            metavar="N[,N...]",
            help="Requests at the same time, a run each; 8, or any with --rate.",
        ),
    ] = None,
    rate: Annotated[
        str | None, typer.Option("--rate", "-r", metavar="R[,R...]", help="Arrivals a second, a run for each.")
    ] = None,
    burstiness: Annotated[
        float, typer.Option(min=0.01, max=1000, help="Of arrivals: 1 is Poisson, less is in bursts, more is even.")
    ] = 1.0,
    input_tokens: Annotated[str, typer.Option(metavar="N|LOW-HIGH", help="Length of every prompt.")] = "128",
    output_tokens: Annotated[
        str, typer.Option(metavar="N|LOW-HIGH", help="Length of every answer; ends are ignored.")
    ] = "64",
    shared_prefix: Annotated[int, typer.Option(min=0, help="Tokens that prompts begin with in common.")] = 0,
    num_prefixes: Annotated[int, typer.Option(min=1, help="Different shared beginnings, in turn.")] = 1,
    dataset: Annotated[
        Path | None,
        typer.Option(help="Prompts from a file: text lines, or .jsonl with `prompt` or `messages`, and `max_tokens`."),
    ] = None,
    vocab_size: Annotated[int, typer.Option(min=101, help="Prompts are random token ids below it.")] = 10_000,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    goal: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=MS", help="ttft, tpot or latency; goodput counts requests that meet every goal."),
    ] = None,
    warmup: Annotated[int, typer.Option(min=0, help="Requests before the clock starts.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of prompts and arrivals.")] = 0,
    api_key: ApiKey = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Add one JSON line a run to this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a run.")] = False,
) -> None:
    """Measure the speed of any OpenAI-style server.

    Prompts are exact token ids and answers have an exact length; a server that counts otherwise fails the run. Each run
    of a sweep has prompts of its own, so that none finds the last one's in a prefix cache.
    """
    import asyncio

    from drivetrain_server.bench.jobs import lengths
    from drivetrain_server.bench.report import read_goals
    from drivetrain_server.bench.traffic import Load
    from drivetrain_server.http_client import Endpoint

    work = Work(
        num_requests=num_requests,
        inputs=lengths(input_tokens, "--input-tokens"),
        outputs=lengths(output_tokens, "--output-tokens"),
        shared_prefix=shared_prefix,
        num_prefixes=num_prefixes,
        dataset=dataset,
        vocab_size=vocab_size,
    )
    if shared_prefix > work.inputs.low:
        raise ConfigError(f"--shared-prefix: got {shared_prefix}, expected at most --input-tokens ({input_tokens})")
    base = Load(model=model or "", burstiness=burstiness, temperature=temperature, seed=seed)
    rates = _numbers(rate, "--rate") or [None]
    at_once = [int(number) for number in _numbers(concurrency, "--concurrency")]
    bounds = at_once or [None if rates != [None] else 8]
    loads = [replace(base, rate=one, concurrency=bound) for one in rates for bound in bounds]
    endpoint = Endpoint(url=server_url(url), api_key=api_key)
    goals = read_goals(goal or [])
    failed = asyncio.run(_run(endpoint, loads, work, goals, Shown(as_json=as_json, output=output, warmup=warmup)))
    if failed:
        raise typer.Exit(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is asked in each run."""

    num_requests: int
    inputs: Lengths
    outputs: Lengths
    shared_prefix: int
    num_prefixes: int
    dataset: Path | None
    vocab_size: int

    def jobs(self, count: int, seed: str) -> list[Job]:
        """The jobs of one run."""
        from drivetrain_server.bench.jobs import file_jobs, random_jobs

        if self.dataset is not None:
            return file_jobs(self.dataset, count, outputs=self.outputs, seed=seed)
        return random_jobs(
            count,
            inputs=self.inputs,
            outputs=self.outputs,
            shared_prefix=self.shared_prefix,
            num_prefixes=self.num_prefixes,
            vocab_size=self.vocab_size,
            seed=seed,
        )

    def told(self) -> dict[str, object]:
        """As JSON has it."""
        return {
            "num_requests": self.num_requests,
            "input_tokens": _number(self.inputs),
            "output_tokens": _number(self.outputs),
            "shared_prefix": self.shared_prefix,
            "num_prefixes": self.num_prefixes,
            "dataset": str(self.dataset) if self.dataset else None,
            "vocab_size": self.vocab_size,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """How results are given."""

    as_json: bool
    output: Path | None
    warmup: int


async def _run(endpoint: Endpoint, loads: list[Load], work: Work, goals: Mapping[str, float], shown: Shown) -> int:
    """Every run of the sweep; returns how many requests failed.

    Raises:
        LoadFailed: all of the warm-up or of one run did.
    """
    from drivetrain_server.bench.report import check_any_succeeded, summarize
    from drivetrain_server.bench.traffic import drive
    from drivetrain_server.http_client import served_model

    model = loads[0].model or await served_model(endpoint)
    if shown.warmup:
        first = replace(loads[0], model=model, rate=None, concurrency=8)
        check_any_succeeded(
            await drive(endpoint, first, work.jobs(shown.warmup, f"{first.seed}/warm-up")), "warm-up requests"
        )
    failed = 0
    for number, load in enumerate(loads):
        load = replace(load, model=model)
        samples = await _measure(endpoint, load, work.jobs(work.num_requests, f"{load.seed}/{number}"), shown)
        report = summarize(samples, goals)
        failed += report.failed
        line = json.dumps({"url": endpoint.url, "load": asdict(load) | work.told(), **asdict(report)})
        if shown.output is not None:
            with shown.output.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        if shown.as_json:
            typer.echo(line)
        check_any_succeeded(samples, "requests")
        if not shown.as_json:
            _show(endpoint.url, load, work, report)
    return failed


async def _measure(endpoint: Endpoint, load: Load, jobs: list[Job], shown: Shown) -> list[Sample]:
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    from drivetrain_server.bench.traffic import drive

    console = Console(stderr=True)
    quiet = shown.as_json or not console.is_terminal
    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=quiet) as progress:
        bar = progress.add_task("requests", total=len(jobs))
        return await drive(endpoint, load, jobs, on_done=lambda _: progress.advance(bar))


def _numbers(text: str | None, flag: str) -> list[float]:
    """A list such as `1,4,16`."""
    if text is None:
        return []
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = [0.0]
    whole = flag == "--concurrency"
    if not all(0 < number < 1e6 and (number == int(number) or not whole) for number in numbers):
        raise ConfigError(f'{flag}: got "{text}", expected {"whole " if whole else ""}numbers such as 4 or 1,4,16')
    return numbers


def _number(lengths: Lengths) -> int | str:
    return lengths.low if lengths.low == lengths.high else str(lengths)


def _show(url: str, load: Load, work: Work, report: LoadReport) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    arrival = [f"{load.rate:g} arrivals/s"] if load.rate else []
    bound = [f"at most {load.concurrency} at once"] if load.concurrency else []
    asked = f"prompts of {work.dataset}" if work.dataset else f"{work.inputs} + {work.outputs} tokens"
    console.print(
        f"[bold]{escape(load.model)}[/bold] at {url}: {work.num_requests} requests of {escape(asked)}, "
        f"{', '.join(arrival + bound)}",
        highlight=False,
    )
    console.print(
        f"{report.output_tokens_per_s:,.1f} output tok/s, {report.total_tokens_per_s:,.1f} total tok/s, "
        f"{report.requests_per_s:,.2f} requests/s over {report.duration_s:,.2f} s"
    )
    if report.good_requests_per_s is not None:
        wanted = ", ".join(f"{name} <= {limit:g} ms" for name, limit in report.goals.items())
        console.print(
            f"goodput {report.good_requests_per_s:,.2f} requests/s: {report.good_share:.1%} met {wanted}",
            highlight=False,
        )
    table = Table("milliseconds", *("mean", "p50", "p90", "p95", "p99", "max"))
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
        console.print(f"[red]{count} of {work.num_requests} failed:[/red] {escape(problem)}", highlight=False)
