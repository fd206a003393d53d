"""What people install: the wheel and the source archive, their content, and the commands in a fresh environment."""

from __future__ import annotations

import json
import os
import tarfile
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

from drivetrain.version import __version__
from fresh_environment import REPOSITORY, Environment, build, fresh_environment
from processor_time import answers_at_once

PACKAGES = {
    "drivetrain": REPOSITORY / "core/drivetrain",
    "drivetrain_plugins": REPOSITORY / "plugins/drivetrain_plugins",
    "drivetrain_cpu": REPOSITORY / "platforms/cpu/drivetrain_cpu",
    "drivetrain_cuda": REPOSITORY / "platforms/cuda/drivetrain_cuda",
    "drivetrain_gaudi": REPOSITORY / "platforms/gaudi/drivetrain_gaudi",
    "drivetrain_rocm": REPOSITORY / "platforms/rocm/drivetrain_rocm",
    "drivetrain_triton": REPOSITORY / "platforms/triton/drivetrain_triton",
    "drivetrain_server": REPOSITORY / "server/drivetrain_server",
}
MAX_WHEEL_BYTES = 1_000_000
VERSION_LIMIT_S = 0.3
"""Processor time of `drivetrain --version`, so that a busy machine does not count."""


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(REPOSITORY, "sdist", tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(REPOSITORY, "wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return fresh_environment(tmp_path_factory.mktemp("user") / "venv", [wheel])


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def sources(folder: Path) -> set[str]:
    """Files that git would take from a package, by their place in the wheel."""
    return {
        str(path.relative_to(folder.parent))
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_holds_every_package_whole_and_nothing_else(wheel: Path) -> None:
    found = names(wheel)
    expected: set[str] = set().union(*(sources(folder) for folder in PACKAGES.values()))
    assert {name for name in found if ".dist-info/" not in name} == expected
    assert {f"{package}/py.typed" for package in PACKAGES} <= found
    assert "drivetrain_plugins/known_backends.toml" in found
    assert {name.split("/")[0] for name in found if ".dist-info/" not in name} == set(PACKAGES)
    assert wheel.stat().st_size < MAX_WHEEL_BYTES


def test_the_wheel_says_what_it_needs_and_what_it_brings(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (folder,) = {name.split("/")[0] for name in archive.namelist() if ".dist-info/" in name}
        metadata = Parser().parsestr(archive.read(f"{folder}/METADATA").decode())
        entry_points = archive.read(f"{folder}/entry_points.txt").decode()
        assert f"{folder}/licenses/LICENSE" in archive.namelist()
    assert (metadata["Name"], metadata["License-Expression"]) == ("drivetrain", "Apache-2.0")
    assert metadata["Requires-Python"] == ">=3.11"
    needed = {line.split(";")[0].split(">")[0].split("=")[0].strip() for line in plain_requirements(metadata)}
    assert {"torch", "tokenizers", "fastapi", "pluggy"} <= needed
    assert not {"transformers", "triton", "cuda-bindings"} & needed
    assert {"cuda", "test"} <= set(metadata.get_all("Provides-Extra", []))
    backends = [f"{name} = drivetrain_{name}.plugin" for name in ("cpu", "cuda", "gaudi", "rocm")]
    assert {"[drivetrain.backends]", *backends} <= set(entry_points.splitlines())
    assert "drivetrain = drivetrain_server.cli:main" in entry_points


def plain_requirements(metadata: Message) -> list[str]:
    """Requirements of no extra."""
    return [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]


def test_the_source_archive_builds_the_same_wheel(sdist: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        files = [member.name for member in archive.getmembers()]
        archive.extractall(tmp_path, filter="data")
    (top,) = {name.split("/")[0] for name in files}
    assert {name.split("/")[1] for name in files} <= {
        *("core", "plugins", "platforms", "server", "pyproject.toml", "README.md", "LICENSE", "PKG-INFO", ".gitignore")
    }
    assert not [name for name in files if name.endswith((".gguf", ".safetensors", ".pyc"))]
    again = build(tmp_path / top, "wheel", tmp_path / "again")
    assert names(again) == names(wheel)


def test_the_version_is_told_at_once(installed: Environment) -> None:
    assert __version__ in installed.run("drivetrain", "--version").stdout  # writes bytecode, too
    command = [str(installed.folder / "bin" / "drivetrain"), "--version"]
    assert answers_at_once(command, os.environ | installed.variables, limit_s=VERSION_LIMIT_S)


def test_the_processor_is_found_ready(installed: Environment) -> None:
    listed = json.loads(installed.run("drivetrain", "backends", "--json").stdout)
    backends = {entry["name"]: entry for entry in listed["backends"]}
    assert backends["cpu"]["status"] == "ready", backends["cpu"]
    assert backends["cpu"]["origin"]["distribution"] == "drivetrain"


def test_the_commands_run_from_the_wheel(installed: Environment) -> None:
    program = f"import {', '.join(PACKAGES)}; print(*({', '.join(f'{name}.__file__' for name in PACKAGES)},))"
    paths = installed.run("python", "-c", program).stdout.split()
    assert len(paths) == len(PACKAGES)
    assert all(Path(path).is_relative_to(installed.site_packages) for path in paths)
