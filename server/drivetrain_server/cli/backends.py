"""`drivetrain backends`: what can serve here, and why the rest cannot."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from drivetrain.config import Config, EngineConfig
from drivetrain.errors import BackendError
from drivetrain_server.cli.config_flags import configured

if TYPE_CHECKING:
    from rich.console import Console

    from drivetrain_plugins.conformance.report import CheckResult
    from drivetrain_plugins.report import BackendsReport
    from drivetrain_plugins.status import BackendState
    from drivetrain_server.op_table import OpRow

COLORS = {"ready": "green", "unavailable": "dim", "broken": "red", "incompatible": "yellow", "blocked": "yellow"}
SHOWN_FIELDS = ("backend", "blocked_backends", "backend_options")


@configured(EngineConfig, model_argument=False, only=SHOWN_FIELDS)
def backends(
    config: Config,
    ops: Annotated[bool, typer.Option("--ops", help="Which implementation serves each op of the ready ones.")] = False,
    check: Annotated[
        str | None,
        typer.Option("--check", help="Prove that this one keeps the contract; takes a minute.", metavar="NAME"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List device backends, and why each is ready or not."""
    if check is not None:
        raise typer.Exit(_check(check, config, as_json=as_json))
    from rich.console import Console

    from drivetrain_plugins.report import backends_report

    report = backends_report(requested=config.engine.backend, blocked=config.engine.blocked_backends)
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


def _check(name: str, config: Config, *, as_json: bool) -> int:
    """Run the conformance suite on the backend `name`; returns the exit status."""
    from rich.console import Console
    from rich.markup import escape

    from drivetrain_plugins.selection import choose_backend
    from drivetrain_server.conformance_child import check_backend

    spec = choose_backend(name, blocked=config.engine.blocked_backends).spec
    assert spec is not None, "a chosen backend has a spec"
    console = Console(stderr=as_json)

    def show(result: CheckResult) -> None:
        color = {"passed": "green", "failed": "red", "skipped": "dim"}[result.outcome]
        reason = f" [dim]{escape(result.reason)}[/dim]" if result.reason else ""
        console.print(f"[{color}]{result.outcome}[/{color}] {result.name}{reason}", highlight=False)

    report = check_backend(spec, config.engine.options_of(name), show)
    if as_json:
        typer.echo(report.to_json())
    verdict = "keeps the contract" if report.passed else "does not keep the contract"
    counts = ", ".join(
        f"{sum(result.outcome == outcome for result in report.results)} {outcome}"
        for outcome in ("passed", "failed", "skipped")
    )
    console.print(f"{escape(name)} on {escape(report.device)} {verdict}: {counts}; seed {report.seed}", highlight=False)
    return 0 if report.passed else 1


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
