"""What `make serve` would do with and without an NVIDIA GPU, and what `make check-clients` installs."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def commands(*variables: str) -> str:
    """The commands of `make serve` in an environment that does not exist yet."""
    done = subprocess.run(
        ["make", "--no-print-directory", "--dry-run", "serve", "VENV=no-such-folder", *variables],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_every_framework_has_its_program_its_place_in_the_docs_and_nothing_but_pinned_versions() -> None:
    page = (REPOSITORY / "docs" / "dependencies.md").read_text(encoding="utf-8")
    files = sorted((REPOSITORY / "tests" / "clients").glob("*.txt"))
    assert [file.stem for file in files] == ["instructor", "langchain-openai", "litellm", "pydantic-ai"]
    for file in files:
        _, *pins = file.read_text(encoding="utf-8").splitlines()
        assert [pin for pin in pins if not re.fullmatch(r"[\w.-]+==[\w.+]+", pin)] == [], file.name
        assert any(pin.startswith(file.stem) for pin in pins)
        assert file.with_name(f"{file.stem.replace('-', '_')}_program.py").exists()
        assert f"| {file.stem}" in page


@needs_make
def test_without_a_gpu_nothing_of_cuda_is_installed() -> None:
    shown = commands("NVIDIA_DRIVER=")
    assert " -e .\n" in shown
    assert "cuda" not in shown
    assert "drivetrain serve --model smollm2-135m-instruct" in shown
    assert "--backend" not in shown


@needs_make
def test_a_gpu_gets_the_cuda_packages_and_is_proved_ready_before_serving() -> None:
    shown = commands("NVIDIA_DRIVER=/dev/nvidiactl")
    installed = shown.index("'.[cuda]'")
    assert installed < shown.index("drivetrain backends --backend cuda") < shown.index("drivetrain serve")


@needs_make
def test_the_processor_beside_a_gpu_is_served_on_only_when_asked_for() -> None:
    shown = commands("NVIDIA_DRIVER=/dev/nvidiactl", "BACKEND=cpu")
    assert "[cuda]" not in shown
    assert "drivetrain serve --model smollm2-135m-instruct --backend cpu" in shown


@needs_make
def test_address_is_a_variable_of_make_and_not_of_the_environment(monkeypatch) -> None:
    monkeypatch.setenv("HOST", "x86_64-conda-linux-gnu")
    monkeypatch.setenv("PORT", "99999")
    assert not {"--host", "--port"} & set(commands().split())
    assert commands("HOST=::1", "PORT=8001").rstrip().endswith("--host ::1 --port 8001")


@needs_make
def test_help_has_its_texts_in_one_column() -> None:
    shown = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout
    texts = {re.match(r"[a-z-]+ +", line).end() for line in shown.splitlines()}
    assert len(texts) == 1, shown
