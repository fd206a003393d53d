"""Dockerfiles and YAML as their own linters see them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def linter(name: str) -> str:
    found = shutil.which(name, path=str(Path(sys.executable).parent))
    if found is None:
        pytest.skip(f"{name} is not installed; `make check-deploy` does that")
    return found


def test_hadolint_finds_nothing(deploy: Path) -> None:
    files = [file for file in sorted(deploy.glob("docker/Dockerfile.*")) if file.suffix != ".jinja"]
    assert len(files) == 4
    done = subprocess.run([linter("hadolint"), *map(str, files)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_yamllint_finds_nothing(deploy: Path) -> None:
    command = [linter("yamllint"), "--strict", "-c", str(deploy / ".yamllint.yaml"), str(deploy)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=deploy)
    assert (done.returncode, done.stdout) == (0, "")
