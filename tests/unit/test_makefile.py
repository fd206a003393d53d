"""What `make serve` would do on machines with and without an NVIDIA GPU."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def commands(*variables: str) -> str:
    """The commands of `make serve` in an environment that does not exist yet."""
    done = subprocess.run(
        ["make", "--dry-run", "serve", "VENV=no-such-folder", *variables],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_without_a_gpu_nothing_of_cuda_is_installed() -> None:
    shown = commands("NVIDIA_DRIVER=")
    assert " -e .\n" in shown
    assert "cuda" not in shown
    assert "drivetrain serve --model smollm2-135m-instruct" in shown
    assert "--backend" not in shown


def test_a_gpu_gets_the_cuda_packages_and_is_proved_ready_before_serving() -> None:
    shown = commands("NVIDIA_DRIVER=/dev/nvidiactl")
    installed = shown.index("'.[cuda]'")
    assert installed < shown.index("drivetrain backends --backend cuda") < shown.index("drivetrain serve")


def test_the_processor_beside_a_gpu_is_served_on_only_when_asked_for() -> None:
    shown = commands("NVIDIA_DRIVER=/dev/nvidiactl", "BACKEND=cpu")
    assert "[cuda]" not in shown
    assert "drivetrain serve --model smollm2-135m-instruct --backend cpu" in shown
