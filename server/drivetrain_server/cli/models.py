"""`drivetrain ls` and `drivetrain rm`: models on this machine, and the one that a command means."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from drivetrain.errors import ConfigError

if TYPE_CHECKING:
    from drivetrain.config import Config


WIDE = 4096


def ls(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON list.")] = False) -> None:
    """List the models on this machine."""
    from drivetrain.model_store import QUICK_START_MODEL, list_local_models, models_folder

    models = list_local_models()
    if as_json:
        listed = [{"name": model.name, "path": str(model.path), "num_bytes": model.num_bytes} for model in models]
        typer.echo(json.dumps(listed))
        return
    if not models:
        typer.echo(f"no models in {models_folder()}; `drivetrain pull {QUICK_START_MODEL}` gets a small one")
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from drivetrain.config import format_size

    table = Table("model", "size", "where", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for model in models:
        table.add_row(escape(model.name), format_size(model.num_bytes), escape(str(model.path)))
    console = Console()
    if not console.is_terminal:
        console.width = WIDE  # programs read it, and a path that is cut is of no use to them
    console.print(table)


def rm(
    names: Annotated[list[str], typer.Argument(help="Models to remove, as `ls` names them.", show_default=False)],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON list of what was removed.")] = False,
) -> None:
    """Remove models from the local store."""
    from drivetrain.config import format_size
    from drivetrain.model_store import local_model, remove_local_model

    models = [local_model(name) for name in dict.fromkeys(names)]
    if not yes:
        if not sys.stdin.isatty():
            raise ConfigError("rm: nobody can be asked here; give --yes to remove without asking")
        total = format_size(sum(model.num_bytes for model in models))
        typer.confirm(f"remove {', '.join(model.name for model in models)} ({total})?", abort=True, err=True)
    for model in models:
        remove_local_model(model)
    if as_json:
        typer.echo(json.dumps([{"name": model.name, "num_bytes": model.num_bytes} for model in models]))
    else:
        typer.echo("".join(f"removed {model.name}, {format_size(model.num_bytes)}\n" for model in models), nl=False)


def with_model(config: Config) -> Config:
    """The configuration with a model that is on this machine: fetched if need be, and where none is named the only one.

    Raises:
        ConfigError: none is named, and there is not exactly one.
        ModelError: it is not here and cannot be fetched.
    """
    from drivetrain.model_store import QUICK_START_MODEL, list_local_models, resolve_model

    if not config.engine.model:
        names = [model.name for model in list_local_models()]
        if len(names) != 1:
            choice = f"one of {', '.join(names)}" if names else f"for example {QUICK_START_MODEL}, which is small"
            raise ConfigError(f"model: none is named; name a folder, a .gguf file or a model, {choice}")
        tell(f"using {names[0]}, the only model on this machine")
        config = replace(config, engine=replace(config.engine, model=names[0]))
    resolve_model(config.engine.model, progress=tell)
    return config


def tell(text: str) -> None:
    """Say on stderr what is being done."""
    print(f"drivetrain: {text}", file=sys.stderr, flush=True)
