"""`drivetrain ls` and `drivetrain pull`: models on this machine, and the one that a command means."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from drivetrain.errors import ConfigError

if TYPE_CHECKING:
    from drivetrain.config import Config


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
    Console().print(table)


def pull(
    name: Annotated[str, typer.Argument(help="Name of the model.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Get a model, if it is not on this machine yet."""
    from drivetrain.model_store import resolve_model

    path = resolve_model(name, progress=_tell)
    typer.echo(json.dumps({"name": name, "path": str(path)}) if as_json else str(path))


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
        _tell(f"using {names[0]}, the only model on this machine")
        config = replace(config, engine=replace(config.engine, model=names[0]))
    resolve_model(config.engine.model, progress=_tell)
    return config


def _tell(text: str) -> None:
    print(f"drivetrain: {text}", file=sys.stderr, flush=True)
