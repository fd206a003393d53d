"""`drivetrain chat`: a conversation in the terminal."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Annotated

import typer
from drivetrain.config import Config, EngineConfig

from drivetrain_server.cli.config_flags import configured

if TYPE_CHECKING:
    from drivetrain_server.cli.conversation import Conversation, Talker


@configured(EngineConfig)
def chat(
    config: Config,
    url: Annotated[str | None, typer.Option(help="Talk to a running server instead of loading a model here.")] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="OPENAI_API_KEY", show_envvar=True, help="Key for the server at --url.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of an answer at most.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy; else the model's own default.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Keep the likeliest tokens up to this probability.")] = None,
) -> None:
    """Talk to a model. `/help` lists the commands inside; Ctrl-C stops an answer, Ctrl-D leaves."""
    from drivetrain_server.cli.conversation import Conversation
    from drivetrain_server.cli.talkers import local_talker, remote_talker

    sampling = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p}
    given = {name: value for name, value in sampling.items() if value is not None}
    with asyncio.Runner() as runner:
        opened = remote_talker(url, api_key, config, given) if url else local_talker(config, given)
        talker = runner.run(opened.__aenter__())
        try:
            talk(runner, talker, Conversation(system=system))
        finally:
            runner.run(opened.__aexit__(None, None, None))


def talk(runner: asyncio.Runner, talker: Talker, conversation: Conversation) -> None:
    """Read messages and stream answers until the input ends or `/exit`."""
    from drivetrain_server.cli.conversation import read_message

    interactive = sys.stdin.isatty()
    if interactive:
        import readline  # noqa: F401  (gives `input` its line editing and history)

        typer.echo("/help lists the commands; Ctrl-D leaves", err=True)
    while True:
        try:
            line = read_message(lambda prompt: input(prompt if interactive else ""))
        except EOFError:
            return
        except KeyboardInterrupt:
            typer.echo("\n/exit or Ctrl-D leaves", err=True)
            continue
        if line == "/exit":
            return
        if not line:
            continue
        if (said := conversation.command(line)) is not None:
            typer.echo(said, err=True)
            continue
        if line == "/retry":
            if not conversation.take_back_answer():
                typer.echo("nothing to retry yet", err=True)
                continue
        else:
            conversation.say(line)
        answer(runner, talker, conversation)


def answer(runner: asyncio.Runner, talker: Talker, conversation: Conversation) -> None:
    """Stream one answer; Ctrl-C stops it and what came so far stays in the conversation."""
    from drivetrain.errors import EngineDead, RequestError, RequestFailed

    from drivetrain_server.cli.entry import error_block
    from drivetrain_server.http_client import HttpError

    try:
        runner.run(conversation.ask(talker, lambda text: typer.echo(text, nl=False)))
    except KeyboardInterrupt:
        typer.echo("(stopped)", err=True)
    except EngineDead:
        raise
    except (RequestError, RequestFailed, HttpError) as error:
        typer.echo(error_block(error), err=True)
