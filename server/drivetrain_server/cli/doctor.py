"""`drivetrain doctor`: what is wrong with this installation, and what to do."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from drivetrain.config import Config
    from drivetrain_server.diagnosis import Finding

MARKS = {"ok": "[green]ok     [/green]", "warning": "[yellow]warning[/yellow]", "problem": "[red]problem[/red]"}


def doctor(
    config_path: Annotated[Path | None, typer.Option("--config", metavar="PATH", help="Configuration file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what is wrong here, and what to do about it.

    Looks at installation, machine, configuration, backends and models. Fails where a problem stops serving.
    """
    from rich.console import Console
    from rich.markup import escape

    found: list[Finding] = []
    console = Console()
    for finding in findings(config_path):
        found.append(finding)
        if not as_json:
            step = f"\n        [bold]next:[/bold] {escape(finding.next_step)}" if finding.next_step else ""
            console.print(f"{MARKS[finding.status]} {finding.name}: {escape(finding.found)}{step}", highlight=False)
    problems = sum(finding.status == "problem" for finding in found)
    if as_json:
        typer.echo(json.dumps({"healthy": problems == 0, "findings": [asdict(finding) for finding in found]}))
    else:
        console.print("\nready to serve" if not problems else f"\n{problems} to be solved before serving")
    if problems:
        raise typer.Exit(1)


def findings(config_path: Path | None) -> Iterator[Finding]:
    """Every finding, as its check ends."""
    from drivetrain.config import load_config
    from drivetrain_server.diagnosis import check_config, check_host, check_keys, check_port

    yield from check_host()
    finding, config = check_config(lambda: load_config(config_path, env=os.environ))
    yield finding
    if config is not None:
        yield check_port(config.server)
        yield check_keys(config.server)
    yield from _backends(config)
    yield from _models()
    if config is not None and config.engine.model:
        yield _model(config.engine.model)


def _backends(config: Config | None) -> Iterator[Finding]:
    from drivetrain_plugins.report import backends_report
    from drivetrain_server.diagnosis import Finding

    engine = config.engine if config is not None else None
    report = backends_report(
        requested=engine.backend if engine else "auto",
        blocked=engine.blocked_backends if engine else (),
        configured=engine.backend_options if engine else (),
    )
    step = "`drivetrain backends` says why each is ready or not"
    broken = [state.summary() for state in report.backends if state.status in ("broken", "incompatible")]
    if report.selected is None:
        yield Finding(name="backends", status="problem", found=report.selection, next_step=step)
    elif broken:
        found = f"{report.selection} Not usable: {'; '.join(broken)}"
        yield Finding(name="backends", status="warning", found=found, next_step=step)
    else:
        yield Finding(name="backends", status="ok", found=report.selection)
    for warning in report.warnings:
        step = "correct the name; leave it if the file also serves machines that have that backend"
        yield Finding(name="backends", status="warning", found=warning, next_step=step)


def _models() -> Iterator[Finding]:
    from drivetrain.model_store import QUICK_START_MODEL, list_local_models, models_folder
    from drivetrain_server.diagnosis import Finding, check_disk

    yield check_disk(models_folder())
    names = [model.name for model in list_local_models()]
    step = "" if names else f"`drivetrain pull {QUICK_START_MODEL}` gets a small one"
    found = ", ".join(names) or f"none in {models_folder()}"
    yield Finding(name="models", status="ok" if names else "warning", found=found, next_step=step)


def _model(name: str) -> Finding:
    from drivetrain.errors import ModelError
    from drivetrain.model_store import resolve_model
    from drivetrain_server.diagnosis import Finding

    try:
        path = resolve_model(name, fetch=False)
    except ModelError as error:
        return Finding(name="model", status="problem", found=str(error), next_step="correct `model`, or pull it")
    return Finding(name="model", status="ok", found=f"{name} at {path}")
