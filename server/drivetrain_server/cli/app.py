"""The table of commands."""

from __future__ import annotations

from typing import Annotated

import typer

from drivetrain.version import __version__

HELP = """One LLM serving engine for any accelerator.

`drivetrain serve MODEL` starts an OpenAI-style server, `drivetrain chat MODEL` talks to a model, `drivetrain doctor`
says what is wrong. Every field of drivetrain.toml is also a flag and an environment variable.
"""


def build_app(wanted: str | None = None) -> typer.Typer:
    """The command line, ready to be called.

    Args:
        wanted: the command that will run; the flags of others are not declared. None declares all, for completion.
            "" is none: the list of commands is then plain text, because loading rich would double its time.
    """
    from drivetrain_server.cli.backends import backends
    from drivetrain_server.cli.bench import bench
    from drivetrain_server.cli.chat import chat
    from drivetrain_server.cli.commands import Commands
    from drivetrain_server.cli.config_flags import ConfiguredCommand
    from drivetrain_server.cli.doctor import doctor
    from drivetrain_server.cli.models import ls, rm
    from drivetrain_server.cli.ps import ps
    from drivetrain_server.cli.pull import pull
    from drivetrain_server.cli.run import run
    from drivetrain_server.cli.serve import serve
    from drivetrain_server.cli.top import top

    app = typer.Typer(
        name="drivetrain",
        cls=Commands,
        help=HELP,
        no_args_is_help=True,
        rich_markup_mode=None if wanted == "" else "rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(root)
    for command in (serve, run, chat, top, ps, pull, ls, rm, bench, backends, doctor):
        if isinstance(command, ConfiguredCommand):
            function = command.declared() if wanted in (None, command.name) else command.bare()
        else:
            function = command
        app.command()(function)
    return app


def show_version(asked: bool) -> None:
    """Print the version and stop, if `--version` was given."""
    if asked:
        typer.echo(f"drivetrain {__version__}")
        raise typer.Exit


def root(
    version: Annotated[
        bool,
        typer.Option("--version", "-V", is_eager=True, callback=show_version, help="Show the version."),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; may stand anywhere.")] = False,
) -> None:
    """Take the options that stand before the command."""
