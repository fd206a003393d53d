"""`drivetrain ps`: the servers that run on this machine."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from drivetrain_server.running import RunningServer


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A server as it is listed. `status` is what `/ready` says, or `no answer`."""

    pid: int
    url: str
    model: str
    status: str
    up_s: float


def ps(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON list.")] = False) -> None:
    """List the servers of this user on this machine."""
    import asyncio

    from drivetrain_server.running import running_servers

    servers = asyncio.run(ask_all(running_servers()))
    if as_json:
        typer.echo(json.dumps([asdict(server) for server in servers]))
        return
    if not servers:
        typer.echo("no server runs; `drivetrain serve MODEL` starts one")
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("pid", "model", "where", "status", "up", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for server in servers:
        color = "green" if server.status == "ready" else "yellow"
        status = f"[{color}]{server.status}[/{color}]"
        table.add_row(str(server.pid), escape(server.model), server.url, status, _duration(server.up_s))
    Console().print(table)


async def ask_all(servers: list[RunningServer]) -> list[Listed]:
    """Each with what its `/ready` says, in the same order."""
    import asyncio

    return list(await asyncio.gather(*map(_ask, servers)))


async def _ask(server: RunningServer) -> Listed:
    import asyncio
    import time

    from drivetrain.errors import DrivetrainError
    from drivetrain_server.http_client import Endpoint, parse_json, request

    status = "no answer"
    try:
        async with asyncio.timeout(2), request(Endpoint(url=server.url), "GET", "/ready", check=False) as response:
            async for event in response.events():  # While it starts, one a change; the first tells.
                match parse_json(event):
                    case {"status": str(said)}:
                        status = said
                    case _:
                        pass
                break
    except (DrivetrainError, TimeoutError):
        pass
    up_s = max(0.0, time.time() - server.started)
    return Listed(pid=server.pid, url=server.url, model=server.model, status=status, up_s=round(up_s, 1))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
