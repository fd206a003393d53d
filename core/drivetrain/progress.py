"""A progress bar for offline work."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager


@contextmanager
def progress_bar(total: int, *, enabled: bool) -> Generator[Callable[[int], None], None, None]:
    """Give a function that counts one request with so many tokens; draws only on a terminal."""
    if not enabled or not sys.stderr.isatty():
        yield lambda tokens: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("requests"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[rate]:.0f} tok/s"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("requests", total=total, rate=0.0)
        tokens_so_far = 0

        def advance(tokens: int) -> None:
            nonlocal tokens_so_far
            tokens_so_far += tokens
            elapsed_s = progress.tasks[0].elapsed or 1e-9
            progress.update(task, advance=1, rate=tokens_so_far / elapsed_s)

        yield advance
