"""`drivetrain backends`: what can serve here, and why the rest cannot."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from drivetrain.config import Config, EngineConfig
from drivetrain.errors import BackendError
from drivetrain_server.cli.config_flags import configured

if TYPE_CHECKING:
    from rich.console import Console

    from drivetrain_plugins.conformance.check import Level
    from drivetrain_plugins.conformance.report import CheckResult, ConformanceReport
    from drivetrain_plugins.report import BackendsReport
    from drivetrain_plugins.status import BackendState
    from drivetrain_server.op_table import OpRow

COLORS = {"ready": "green", "unavailable": "dim", "broken": "red", "incompatible": "yellow", "blocked": "yellow"}
SHOWN_OUTPUT = 3
"""Last lines of a failed child that people are shown; --json has more."""
SHOWN_FIELDS = ("backend", "blocked_backends", "backend_options")


@configured(EngineConfig, model_argument=False, only=SHOWN_FIELDS)
def backends(
    config: Config,
    ops: Annotated[bool, typer.Option("--ops", help="Which implementation serves each op of the ready ones.")] = False,
    check: Annotated[
        str | None,
        typer.Option("--check", help="Prove that this one keeps the contract; takes a minute.", metavar="NAME"),
    ] = None,
    levels: Annotated[
        list[str] | None,
        typer.Option("--level", help="With --check: only this level. Can be given again.", metavar="LEVEL"),
    ] = None,
    page: Annotated[
        Path | None,
        typer.Option("--report", help="With --check: write a report to publish, in Markdown.", metavar="FILE"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List device backends, and why each is ready or not."""
    if check is not None:
        raise typer.Exit(_check(check, config, levels=_levels(levels), page=page, as_json=as_json))
    for flag, value in (("--level", levels), ("--report", page)):
        if value:
            raise typer.BadParameter(f"{flag} belongs to --check NAME", param_hint=flag)
    from rich.console import Console

    from drivetrain_plugins.report import backends_report

    report = backends_report(
        requested=config.engine.backend,
        blocked=config.engine.blocked_backends,
        configured=config.engine.backend_options,
    )
    tables: dict[str, list[OpRow] | str] = {}
    if ops:
        tables = {state.name: _ops(state, config) for state in report.backends if state.status == "ready"}
    if as_json:
        listed = json.loads(report.to_json())
        if ops:
            listed["ops"] = {
                name: rows if isinstance(rows, str) else [asdict(row) for row in rows] for name, rows in tables.items()
            }
        typer.echo(json.dumps(listed))
    else:
        console = Console()
        _show(console, report)
        for name, rows in tables.items():
            _show_ops(console, name, rows)
    if report.selected is None or any(isinstance(rows, str) for rows in tables.values()):
        raise typer.Exit(1)


def _ops(state: BackendState, config: Config) -> list[OpRow] | str:
    from drivetrain_server.op_table import op_table

    assert state.spec is not None, "a ready backend has a spec"
    try:
        return op_table(state.spec.backend, config.engine.options_of(state.name))
    except BackendError as error:
        return str(error)


def _levels(names: list[str] | None) -> tuple[Level, ...]:
    """The levels asked for, in their order; all of them if none was named."""
    from drivetrain_plugins.conformance.check import LEVELS

    unknown = sorted(set(names or ()) - set(LEVELS))
    if unknown:
        known = ", ".join(LEVELS)
        raise typer.BadParameter(f"got {', '.join(unknown)}, expected some of {known}", param_hint="--level")
    return tuple(level for level in LEVELS if not names or level in names)


def _check(name: str, config: Config, *, levels: tuple[Level, ...], page: Path | None, as_json: bool) -> int:
    """Run the conformance suite on the backend `name`; returns the exit status."""
    from rich.console import Console
    from rich.markup import escape

    from drivetrain_plugins.conformance.page import as_markdown
    from drivetrain_plugins.selection import choose_backend
    from drivetrain_server.conformance_child import check_backend

    if page is not None and not page.parent.is_dir():
        raise typer.BadParameter(f"there is no folder {page.parent}", param_hint="--report")
    state = choose_backend(name, blocked=config.engine.blocked_backends)
    console = Console(stderr=as_json)

    def show(result: CheckResult) -> None:
        color = {"passed": "green", "failed": "red", "skipped": "dim"}[result.outcome]
        reason = f" [dim]{escape(result.reason)}[/dim]" if result.reason else ""
        console.print(f"[{color}]{result.outcome}[/{color}] {result.name}{reason}", highlight=False)

    report = check_backend(state, config.engine.options_of(name), show, levels=levels)
    if as_json:
        typer.echo(report.to_json())
    _show_levels(console, report)
    console.print(
        f"{escape(name)} on {escape(report.device or 'a device that did not open')} {report.verdict}; "
        f"contract version {report.contract_version}, seed {report.seed}",
        highlight=False,
        soft_wrap=True,
    )
    if page is not None:
        page.write_text(as_markdown(report), encoding="utf-8")
        console.print(f"the report is in {escape(str(page))}", highlight=False, soft_wrap=True)
    return 0 if report.passed else 1


def _show_levels(console: Console, report: ConformanceReport) -> None:
    from rich.markup import escape
    from rich.table import Table

    colors = {"kept": "green", "broken": "red", "not proved": "yellow"}
    table = Table("level", "verdict", "passed", "failed", "skipped", "claimed by", box=None, pad_edge=False)
    for level in report.levels:
        color = colors.get(level.verdict, "dim")
        counts = (str(level.passed), str(level.failed), str(level.skipped))
        table.add_row(level.level, f"[{color}]{level.verdict}[/{color}]", *counts, escape(level.claim))
    console.print()
    console.print(table)


def _show(console: Console, report: BackendsReport) -> None:
    from rich.markup import escape
    from rich.table import Table

    from drivetrain.config import format_size

    table = Table("backend", "status", "from", "devices or reason", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for state in report.backends:
        about = "\n".join(
            f"{device.index}: {escape(device.name)}, {device.architecture}, {format_size(device.memory_bytes)}"
            for device in state.devices
        )
        if state.reason:
            about = "\n".join(filter(None, (about, escape(state.reason))))
        about += "".join(f"\n[dim]it printed: {escape(line)}[/dim]" for line in state.output[-SHOWN_OUTPUT:])
        if state.next_step:
            about += f"\n[bold]next:[/bold] {escape(state.next_step)}"
        chosen = "[bold]*[/bold] " if state.name == report.selected and state.status == "ready" else "  "
        if state.idle_hardware:
            about += "\n[yellow]its hardware is in this machine[/yellow]"
        color = COLORS[state.status]
        table.add_row(f"{chosen}{state.name}", f"[{color}]{state.status}[/{color}]", str(state.origin or ""), about)
    console.print(table)
    for warning in report.warnings:
        console.print(f"[yellow]warning:[/yellow] {escape(warning)}")
    mark = "*" if report.selected else "[red]no backend:[/red]"
    console.print(f"\n{mark} {escape(report.selection)}", highlight=False)


def _show_ops(console: Console, name: str, rows: list[OpRow] | str) -> None:
    from rich.markup import escape
    from rich.table import Table

    if isinstance(rows, str):
        console.print(f"[red]{name}:[/red] {escape(rows)}", highlight=False)
        return
    own = sum(not row.reference for row in rows)
    table = Table("part", "implementation", title=f"{name}: {own} of {len(rows)} its own", title_justify="left")
    for row in rows:
        table.add_row(row.name, "[dim]torch reference[/dim]" if row.reference else row.implementation)
    console.print(table)
