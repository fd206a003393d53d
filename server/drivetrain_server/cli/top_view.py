"""How `drivetrain top` looks: one screen of figures with their recent course."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from drivetrain_server.watch.figures import Figures, Latency

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

SPARKS = "▁▂▃▄▅▆▇█"
HISTORY = 40
BAR_CELLS = 20
STATUS_COLORS = {"ready": "green", "starting": "yellow", "not ready": "red"}


@dataclass(slots=True)
class History:
    """The last figures, for the courses that are drawn."""

    generated: deque[float] = field(default_factory=lambda: deque[float](maxlen=HISTORY))
    prompt: deque[float] = field(default_factory=lambda: deque[float](maxlen=HISTORY))
    running: deque[float] = field(default_factory=lambda: deque[float](maxlen=HISTORY))

    def add(self, now: Figures) -> None:
        """Remember `now`."""
        self.generated.append(now.generated_per_s)
        self.prompt.append(now.prompt_per_s)
        self.running.append(now.running)


def screen(url: str, now: Figures, history: History) -> RenderableType:
    """The whole view."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.table import Table

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True, min_width=15)
    table.add_column(justify="right", no_wrap=True, min_width=9)
    table.add_column(no_wrap=True)
    waiting = f"[yellow]{now.waiting:,} waiting[/yellow]" if now.waiting else "[dim]none waiting[/dim]"
    table.add_row("running", f"[bold]{now.running:,}[/bold]", f"{sparks(history.running)}  {waiting}")
    table.add_row("KV pages", f"[bold]{now.kv_used:.1%}[/bold]", _pages(now))
    table.add_row()
    table.add_row("generated tok/s", f"[bold]{now.generated_per_s:,.1f}[/bold]", sparks(history.generated))
    table.add_row("prompt tok/s", f"{now.prompt_per_s:,.1f}", sparks(history.prompt))
    table.add_row("requests/s", f"{now.requests_per_s:,.2f}", f"[dim]{now.batch:,.1f} tokens a step[/dim]")
    table.add_row("device busy", f"{now.busy:.0%}", _bar(((now.busy, "cyan"),)))
    hits = "-" if now.prefix_hits is None else f"{now.prefix_hits:.0%}"
    table.add_row("prefix hits", hits, _bar(((now.prefix_hits or 0.0, "cyan"),)))
    table.add_row()
    table.add_row("first token", *_latency(now.ttft))
    table.add_row("between tokens", *_latency(now.itl))
    table.add_row()
    red = "red" if now.failed else "dim"
    table.add_row("failed", f"[{red}]{now.failed:,}[/{red}]", f"[dim]{now.preemptions:,} preempted[/dim]")
    return Group(_title(url, now), Padding(table, (1, 0, 0, 0)))


def sparks(values: deque[float]) -> str:
    """The course of some values as a line of blocks, the highest at full height."""
    most = max(values, default=0.0)
    if most <= 0:
        return f"[dim]{SPARKS[0] * len(values)}[/dim]"
    return f"[cyan]{''.join(SPARKS[round(value / most * (len(SPARKS) - 1))] for value in values)}[/cyan]"


def _title(url: str, now: Figures) -> Text:
    from rich.text import Text

    title = Text()
    title.append(now.model or "no model yet", style="bold")
    title.append(f"  ● {now.status}", style=STATUS_COLORS[now.status])
    title.append(f"  {url}", style="dim")
    if now.backend:
        title.append(f"\n{now.backend}, {now.device}, {now.dtype}", style="dim")
    return title


def _pages(now: Figures) -> str:
    capacity = now.pages["capacity"] or 1
    bar = _bar(((now.pages["used"] / capacity, "green"), (now.pages["cached"] / capacity, "blue")))
    counts = f"{now.pages['used']:,} used, {now.pages['cached']:,} cached of {now.pages['capacity']:,}"
    return f"{bar}  [dim]{counts}[/dim]"


def _bar(parts: tuple[tuple[float, str], ...]) -> str:
    cells = [(max(int(share > 0), round(share * BAR_CELLS)), color) for share, color in parts]
    rest = max(0, BAR_CELLS - sum(count for count, _ in cells))
    filled = "".join(f"[{color}]{'━' * count}[/{color}]" for count, color in cells)
    return f"{filled}[bright_black]{'━' * rest}[/bright_black]"


def _latency(latency: Latency | None) -> tuple[str, str]:
    if latency is None:
        return "-", ""
    return f"{latency.p50_ms:,.1f} ms", f"[dim]p95 {latency.p95_ms:,.1f} ms, {latency.count:,} seen[/dim]"
