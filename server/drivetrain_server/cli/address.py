"""The options of commands that talk to a running server."""

from __future__ import annotations

from typing import Annotated

import typer

Url = Annotated[str, typer.Option("--url", "-u", envvar="DRIVETRAIN_URL", show_envvar=True, help="The server.")]
ApiKey = Annotated[
    str | None, typer.Option("--api-key", envvar="OPENAI_API_KEY", show_envvar=True, help="Key for the server.")
]
