"""The options of commands that talk to a running server."""

from __future__ import annotations

from typing import Annotated

import typer

DEFAULT_URL = "http://127.0.0.1:8000"

Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        "-u",
        envvar="DRIVETRAIN_URL",
        show_envvar=True,
        help=f"The server; else the last started that `drivetrain ps` lists, else {DEFAULT_URL}.",
    ),
]
ApiKey = Annotated[
    str | None, typer.Option("--api-key", envvar="OPENAI_API_KEY", show_envvar=True, help="Key for the server.")
]


def server_url(given: str | None) -> str:
    """The address that is meant where `--url` is `given`; says which it is where several servers run."""
    from drivetrain_server.cli.models import tell
    from drivetrain_server.running import running_servers

    if given is not None:
        return given
    servers = running_servers()
    if len(servers) > 1:
        tell(f"{servers[-1].url} is the last started of {len(servers)} servers; --url chooses another")
    return servers[-1].url if servers else DEFAULT_URL
