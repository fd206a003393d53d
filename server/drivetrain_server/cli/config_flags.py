"""Every field of the configuration as a flag, by rule, on the commands that load a model."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from drivetrain.config import SECTIONS, Setting, docs_of, load_config, settings_of
from drivetrain.errors import ConfigError

PANELS = {"": "Model and backend"} | {section: section.capitalize() for section in SECTIONS if section}
METAVARS = {
    "count": "COUNT",
    "number": "NUMBER",
    "text": "TEXT",
    "size": "SIZE",
    "memory": "SIZE|SHARE",
    "list": "A,B,...",
    "table": "TABLE|JSON",
}


class ConfiguredCommand:
    """A command that is called with the loaded configuration, and has its fields as flags.

    Declaring the flags costs some ten milliseconds, so that is left until the command runs or shows its help.
    """

    def __init__(
        self,
        command: Callable[..., None],
        schemas: Collection[type],
        *,
        model_argument: bool,
        arrange: Callable[[dict[str, object]], None] | None,
        only: Collection[str] | None,
    ) -> None:
        self.name = command.__name__
        self._command = command
        self._schemas = schemas
        self._model_argument = model_argument
        self._arrange = arrange
        self._only = only

    def bare(self) -> Callable[..., None]:
        """The command by name and purpose, for lists of commands."""

        def listed() -> None:
            raise AssertionError("a command that is only listed was called")

        listed.__name__, listed.__doc__ = self.name, self._command.__doc__
        return listed

    def declared(self) -> Callable[..., None]:
        """The command with all its parameters, as typer wants it."""
        every = [(setting, schema) for schema in self._schemas for setting in settings_of(schema)]
        settings = [(setting, schema) for setting, schema in every if self._only is None or setting.name in self._only]
        names = [setting.name for setting, _ in settings]

        def run(**values: object) -> None:
            if self._arrange is not None:
                self._arrange(values)
            flags = {name: cast("str | bool | None", values.pop(name)) for name in names}
            path = cast("Path | None", values.pop("config_path"))
            if (argument := cast("str | None", values.pop("model_argument", None))) is not None:
                if flags["model"] is not None:
                    raise ConfigError(f'MODEL: got "{argument}" beside --model {flags["model"]}; give one of them')
                flags["model"] = argument
            config = load_config(path, env=os.environ, flags=flags)
            if config.found:
                print(f"drivetrain: using {config.path} in this directory", file=sys.stderr)
            self._command(config, **values)

        leading = [_model_argument()] if self._model_argument else []
        own = list(inspect.signature(self._command, eval_str=True).parameters.values())[1:]
        parameters = [*leading, *own, _config_option(), *(_option(*setting) for setting in settings)]
        run.__name__, run.__doc__ = self.name, self._command.__doc__
        keyword_only = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
        run.__signature__ = inspect.Signature(keyword_only)  # pyright: ignore[reportFunctionMemberAccess]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run


def configured(
    *schemas: type,
    model_argument: bool = True,
    arrange: Callable[[dict[str, object]], None] | None = None,
    only: Collection[str] | None = None,
) -> Callable[[Callable[..., None]], ConfiguredCommand]:
    """Give a command the fields of `schemas` as flags, and `--config`; its first parameter is the configuration.

    Args:
        model_argument: the model may also be given as the first argument without a flag.
        arrange: changes the parameters' values, `model_argument` among them, before the configuration is read.
        only: names of the fields that become flags; None is all. The file and the environment may set any.
    """
    return lambda command: ConfiguredCommand(
        command, schemas, model_argument=model_argument, arrange=arrange, only=only
    )


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
