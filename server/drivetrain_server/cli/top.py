"""`drivetrain top`: a running server as it works."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from drivetrain_server.cli.address import ApiKey, Url, server_url

if TYPE_CHECKING:
    from drivetrain_server.http_client import Endpoint
    from drivetrain_server.watch.figures import Figures
    from drivetrain_server.watch.reading import Reading

ONCE_S = 1.0


def top(
    url: Url = None,
    api_key: ApiKey = None,
    interval: Annotated[float, typer.Option(min=0.1, max=3600, help="Seconds between two looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Look for one interval, print, and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line a look; so too without a terminal.")] = False,
) -> None:
    """Watch a running server at work.

    Batch, queue, KV pages, prefix hits, tokens a second, latency. Ctrl-C leaves.
    """
    import asyncio

    from drivetrain_server.http_client import Endpoint

    endpoint = Endpoint(url=server_url(url), api_key=api_key)
    lines = as_json or not (once or sys.stdout.isatty())
    asyncio.run(_lines(endpoint, interval, once=once) if lines else _screen(endpoint, interval, once=once))


async def _lines(endpoint: Endpoint, interval_s: float, *, once: bool) -> None:
    async with aclosing(_looks(endpoint, interval_s)) as looks:
        async for now in looks:
            typer.echo(json.dumps({"url": endpoint.url, "time": time.time(), **asdict(now)}))
            if once:
                return


async def _screen(endpoint: Endpoint, interval_s: float, *, once: bool) -> None:
    from rich.console import Console
    from rich.live import Live

    from drivetrain_server.cli.top_view import History, screen

    console, history = Console(), History()
    async with aclosing(_looks(endpoint, interval_s)) as looks:
        first = await anext(looks)
        history.add(first)
        if once:
            console.print(screen(endpoint.url, first, history))
            return
        with Live(screen(endpoint.url, first, history), console=console, screen=True, auto_refresh=False) as live:
            async for now in looks:
                history.add(now)
                live.update(screen(endpoint.url, now, history), refresh=True)


async def _looks(endpoint: Endpoint, interval_s: float) -> AsyncGenerator[Figures, None]:
    """The figures of each interval, for ever; the first after half of one, at most half a second."""
    import asyncio

    from drivetrain_server.watch.figures import figures

    before = await _read(endpoint)
    await asyncio.sleep(min(interval_s, ONCE_S) / 2)
    while True:
        now = await _read(endpoint)
        yield figures(before, now)
        before = now
        await asyncio.sleep(interval_s)


async def _read(endpoint: Endpoint) -> Reading:
    from drivetrain_server.http_client import request
    from drivetrain_server.watch.reading import read_metrics

    async with request(endpoint, "GET", "/metrics") as response:
        body = await response.read()
    return read_metrics(body.decode(), time.monotonic())
