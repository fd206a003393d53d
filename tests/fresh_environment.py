"""Wheels built from source, and virtual environments that have nothing of Drivetrain but what is installed there."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

REPOSITORY = Path(__file__).parents[1]
TIME_LIMIT_S = 400


@dataclass(frozen=True)
class Environment:
    """A virtual environment whose heavy dependencies are those of this one."""

    folder: Path

    @property
    def site_packages(self) -> Path:
        return next(self.folder.glob("lib/python*/site-packages"))

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    @property
    def variables(self) -> dict[str, str]:
        """What its programs are started with, beside this process's variables."""
        home = {"DRIVETRAIN_HOME": str(self.folder / "home"), "POCL_CACHE_DIR": str(self.folder / "kernels")}
        return home | {"PYTHONPATH": "", "OMP_NUM_THREADS": "1", "COLUMNS": "240"}

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run one of its programs."""
        program = str(self.folder / "bin" / command[0])
        environment = os.environ | self.variables
        return _run([program, *command[1:]], cwd=self.folder, environment=environment, check=check)


def fresh_environment(folder: Path, wheels: Sequence[Path]) -> Environment:
    """Make an environment and install wheels into it, without their dependencies and without a network."""
    _run([sys.executable, "-m", "venv", "--without-pip", str(folder)])
    made = Environment(folder)
    # Searched after the environment's own packages, and its .pth files (editable installs) are not followed.
    (made.site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install(folder, wheels)
    return made


def install(folder: Path, wheels: Sequence[Path]) -> None:
    """Install wheels into an environment, without their dependencies and without a network."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    target = ["--python", str(folder / "bin" / "python")]
    _run([*pip, *target, "install", "--no-deps", "--no-index", *map(str, wheels)])


def build(source: Path, kind: Literal["wheel", "sdist"], out: Path) -> Path:
    """Build a package with the installed build backend; gives the file."""
    _run([sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(out)], cwd=source)
    (made,) = out.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return made


def _run(
    command: list[str], *, cwd: Path | None = None, environment: dict[str, str] | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=TIME_LIMIT_S, check=False
    )
    if check:
        assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done
