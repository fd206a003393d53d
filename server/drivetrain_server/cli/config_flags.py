"""Every field of the configuration as a flag, by rule, on the commands that load a model."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Concatenate, ParamSpec, cast

import typer
from drivetrain.config import SECTIONS, Config, Setting, docs_of, load_config, settings_of
from drivetrain.errors import ConfigError

P = ParamSpec("P")
PANELS = {"": "Model and backend"} | {section: section.capitalize() for section in SECTIONS if section}
METAVARS = {
    "count": "COUNT",
    "number": "NUMBER",
    "text": "TEXT",
    "size": "SIZE",
    "memory": "SIZE|SHARE",
    "list": "A,B,...",
    "table": "JSON",
}


def configured(
    *schemas: type, model_argument: bool = True
) -> Callable[[Callable[Concatenate[Config, P], None]], Callable[..., None]]:
    """Give a command all fields of `schemas` as flags, and `--config`; it is called with the loaded configuration.

    Args:
        model_argument: the model may also be given as the first argument without a flag.
    """

    def decorate(command: Callable[Concatenate[Config, P], None]) -> Callable[..., None]:
        settings = [(setting, schema) for schema in schemas for setting in settings_of(schema)]
        names = [setting.name for setting, _ in settings]

        @wraps(command)
        def run(*args: P.args, **values: P.kwargs) -> None:
            flags = {name: cast("str | bool | None", values.pop(name)) for name in names}
            path = cast("Path | None", values.pop("config_path"))
            argument = cast("str | None", values.pop("model_argument", None))
            if argument is not None and flags["model"] is not None:
                raise ConfigError(f'MODEL: got "{argument}" beside --model {flags["model"]}; give one of them')
            flags["model"] = argument if flags["model"] is None else flags["model"]
            config = load_config(path, env=os.environ, flags=flags)
            if config.found:
                print(f"drivetrain: using {config.path} in this directory", file=sys.stderr)
            command(config, *args, **values)

        own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
        leading = [_model_argument()] if model_argument else []
        parameters = [*leading, *own, _config_option(), *(_option(*setting) for setting in settings)]
        keyword_only = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
        run.__signature__ = inspect.Signature(keyword_only)  # pyright: ignore[reportAttributeAccessIssue]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in keyword_only}
        del run.__wrapped__  # pyright: ignore[reportAttributeAccessIssue]
        return run

    return decorate


def _model_argument() -> inspect.Parameter:
    argument = typer.Argument(metavar="MODEL", help="Folder, GGUF file or local model name.", show_default=False)
    return _parameter("model_argument", Annotated[str | None, argument])


def _config_option() -> inspect.Parameter:
    option = typer.Option(
        "--config", help="Configuration file; else drivetrain.toml in this directory, if there is one.", metavar="PATH"
    )
    return _parameter("config_path", Annotated[Path | None, option])


def _option(setting: Setting, schema: type) -> inspect.Parameter:
    off = f"--no-{setting.flag[2:]}"
    option = typer.Option(
        f"{setting.flag}/{off}" if setting.kind == "flag" else setting.flag,
        help=_help(setting, docs_of(schema)[setting.name]),
        metavar="|".join(setting.choices) if setting.choices else METAVARS.get(setting.kind),
        rich_help_panel=PANELS[setting.section],
        show_default=False,
    )
    annotation = Annotated[bool | None, option] if setting.kind == "flag" else Annotated[str | None, option]
    return _parameter(setting.name, annotation)


def _help(setting: Setting, doc: str) -> str:
    text = " ".join(doc.split()).replace("[", r"\[")
    if setting.default in ("", (), {}):
        return text
    default = setting.spell(setting.default)
    if setting.kind == "flag":
        default = "on" if setting.default else "off"
    return f"{text} [dim]\\[{default}][/dim]"


def _parameter(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
