"""Putting a model into the local store in one step."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from drivetrain.errors import ConfigError, ModelError
from drivetrain.model_store import models_folder
from drivetrain_server.pull.choice import RemoteFile, model_files
from drivetrain_server.pull.hub import Hub, Repository
from drivetrain_server.pull.transfer import Advance, fetch

AT_ONCE = 4
MARGIN_BYTES = 64 << 20
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,127}")


def free_place(name: str, *, gguf: bool) -> Path:
    """Where a model of that name is to lie.

    Raises:
        ConfigError: the name cannot be one of a file, or is taken.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(f"--name: got {name!r}, expected letters, digits, dots, dashes and underscores")
    folder = models_folder()
    for taken in (folder / name, folder / f"{name}.gguf"):
        if taken.exists():
            raise ConfigError(f"{taken} is there already; `drivetrain rm {name}` removes it, --name takes another name")
    return folder / f"{name}.gguf" if gguf else folder / name


def store_from_hub(
    hub: Hub, repository: Repository, files: Sequence[RemoteFile], place: Path, advance: Advance
) -> None:
    """Fetch `files` and put them at `place`. A fetch that was broken off is gone on with by the next one.

    Raises:
        ModelError: no room, a file that cannot be fetched, or one that is not what the hub says.
    """
    scratch = place.parent / f".pull-{place.name}-{repository.commit[:12]}"
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        have = sum(path.stat().st_size for path in scratch.rglob("*") if path.is_file())
        check_room(scratch, sum(file.num_bytes for file in files) - have)
        missing = [file for file in files if not _arrived(scratch, file, advance)]
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="pull") as pool:
            jobs = [
                pool.submit(fetch, hub.url(repository, file), file, scratch / file.path, advance, token=hub.token)
                for file in missing
            ]
            try:
                for job in jobs:
                    job.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        if place.suffix == ".gguf":
            (scratch / files[0].path).replace(place)
            shutil.rmtree(scratch)
        else:
            scratch.replace(place)
    except OSError as error:
        raise _no_store(place, error) from error


def store_from_folder(source: Path, wanted: str, place_of: Callable[[bool], Path], advance: Advance) -> Path:
    """Copy the model files of a folder, or one .gguf file, into the store; returns where they lie.

    Raises:
        ModelError: it holds no model, or cannot be copied.
    """
    files = [RemoteFile(path=source.name, num_bytes=source.stat().st_size)] if source.is_file() else _listed(source)
    base = source.parent if source.is_file() else source
    chosen = model_files(files, wanted, str(source))
    place = place_of(chosen[0].path.endswith(".gguf"))
    scratch = place.parent / f".pull-{place.name}-{os.getpid()}"
    try:
        scratch.mkdir(parents=True)
        check_room(scratch, sum(file.num_bytes for file in chosen))
        for file in chosen:
            target = scratch / file.path
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(base / file.path, target)
            advance(file.num_bytes)
        (scratch / chosen[0].path if place.suffix == ".gguf" else scratch).replace(place)
    except OSError as error:
        raise _no_store(place, error) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return place


def check_room(folder: Path, num_bytes: int) -> None:
    """Refuse what does not fit on the disk.

    Raises:
        ModelError: says how much is missing.
    """
    free = shutil.disk_usage(folder).free - MARGIN_BYTES
    if num_bytes > free:
        raise ModelError(
            f"{folder.parent}: {num_bytes / 1e9:.1f} GB are to be stored and {max(0, free) / 1e9:.1f} GB are free; "
            f"make room, or set DRIVETRAIN_HOME to a folder on another disk"
        )


def _listed(folder: Path) -> list[RemoteFile]:
    found: list[RemoteFile] = []
    for path in sorted([*folder.iterdir(), *(folder / "1_Pooling").glob("config.json")]):
        if path.is_file():
            found.append(RemoteFile(path=path.relative_to(folder).as_posix(), num_bytes=path.stat().st_size))
    return found


def _arrived(scratch: Path, file: RemoteFile, advance: Advance) -> bool:
    path = scratch / file.path
    if path.is_file() and path.stat().st_size == file.num_bytes:
        advance(file.num_bytes)
        return True
    return False


def _no_store(place: Path, error: OSError) -> ModelError:
    return ModelError(
        f"{place}: cannot be stored there ({error.strerror or error}); set DRIVETRAIN_HOME to a folder with room"
    )
