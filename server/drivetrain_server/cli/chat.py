"""`drivetrain chat`: a conversation in the terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from drivetrain.config import Config, EngineConfig
from drivetrain_server.cli.config_flags import configured

if TYPE_CHECKING:
    import asyncio

    from drivetrain_server.cli.conversation import Conversation, Talker


@configured(EngineConfig)
def chat(
    config: Config,
    url: Annotated[str | None, typer.Option(help="Talk to this server.")] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="OPENAI_API_KEY", show_envvar=True, help="Key for the server at --url.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of an answer at most.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy; else the model's own default.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Keep the likeliest tokens up to this probability.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON line an answer.")] = False,
) -> None:
    """Talk to the server that runs here, or to a model: one named on the command line is loaded for itself.

    `/help` lists the commands inside; Ctrl-C stops an answer, Ctrl-D leaves.
    """
    import asyncio

    from drivetrain_server.cli.attach import server_to_join
    from drivetrain_server.cli.conversation import Conversation

    sampling = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p}
    given = {name: value for name, value in sampling.items() if value is not None}
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        try:
            joined = None if url else runner.run(server_to_join(config))
            if joined is not None:
                opening = remote_talker(joined.url, joined.model, api_key, given)
            elif url:
                opening = remote_talker(url, config.engine.model, api_key, given)
            else:
                opening = local_talker(config, given)
            talker = runner.run(stack.enter_async_context(opening))
            failed = talk(runner, talker, Conversation(system=system), as_json=as_json)
        finally:
            runner.run(stack.aclose())
    if failed and not sys.stdin.isatty():
        raise typer.Exit(1)


@asynccontextmanager
async def remote_talker(
    url: str, model: str, api_key: str | None, given: Mapping[str, float]
) -> AsyncGenerator[Talker, None]:
    """A model of a server, which must answer; "" is the first that it lists."""
    from drivetrain_server.cli.remote_talker import RemoteTalker
    from drivetrain_server.http_client import Endpoint, check_reachable, served_model

    endpoint = Endpoint(url=url, api_key=api_key)
    if model:
        await check_reachable(endpoint)
    else:
        model = await served_model(endpoint)
    typer.echo(f"{model} at {url}", err=True)
    yield RemoteTalker(endpoint=endpoint, model=model, sampling=dict(given))


@asynccontextmanager
async def local_talker(config: Config, given: Mapping[str, float]) -> AsyncGenerator[Talker, None]:
    """An engine of this command's own."""
    from drivetrain_server.cli.engine import open_frontend, sampling_params
    from drivetrain_server.cli.local_talker import LocalTalker
    from drivetrain_server.cli.models import with_model

    config = with_model(config)
    async with open_frontend(config) as frontend:
        yield LocalTalker(frontend=frontend, params=sampling_params(config, frontend, given))


def talk(runner: asyncio.Runner, talker: Talker, conversation: Conversation, *, as_json: bool = False) -> int:
    """Read messages and stream answers until the input ends or the user leaves; returns how many had no answer."""
    from drivetrain_server.cli.conversation import LEAVE, read_message

    interactive = sys.stdin.isatty()
    if interactive:
        import readline  # noqa: F401  # pyright: ignore[reportUnusedImport]  (line editing and history for `input`)

        typer.echo("/help lists the commands; Ctrl-D leaves", err=True)
    failed = 0
    while True:
        try:
            line = read_message(lambda prompt: input(prompt if interactive else ""))
        except EOFError:
            return failed
        except KeyboardInterrupt:
            typer.echo("\n/exit or Ctrl-D leaves", err=True)
            continue
        if line in LEAVE:
            return failed
        if not line:
            continue
        if (said := conversation.command(line)) is not None:
            typer.echo(said, err=True)
            continue
        if line != "/retry":
            conversation.say(line)
        elif not conversation.take_back_answer():
            typer.echo("nothing to retry yet", err=True)
            continue
        failed += not stream_answer(runner, talker, conversation, as_json=as_json)


def stream_answer(runner: asyncio.Runner, talker: Talker, conversation: Conversation, *, as_json: bool = False) -> bool:
    """Stream one answer; Ctrl-C stops it and what came so far stays in the conversation.

    Args:
        as_json: print the whole answer as one JSON line at its end instead.

    Returns:
        Whether there was one; not if the server refused or failed it.
    """
    from drivetrain.errors import RequestError, RequestFailed
    from drivetrain_server.cli.conversation import show
    from drivetrain_server.cli.entry import error_block
    from drivetrain_server.http_client import HttpError

    try:
        runner.run(conversation.ask(talker, _nothing if as_json else show))
    except KeyboardInterrupt:
        typer.echo("(stopped)", err=True)
    except (RequestError, RequestFailed, HttpError) as error:
        typer.echo(error_block(error), err=True)
        return False
    if as_json and conversation.turns and conversation.turns[-1]["role"] == "assistant":
        typer.echo(json.dumps(conversation.turns[-1], ensure_ascii=False))
    return True


def _nothing(piece: str) -> None:
    """Write nothing: the whole answer follows."""
