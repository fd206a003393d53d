"""The pages about backends show code that exists, flags that exist, and every part of the contract."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from drivetrain_plugins.conformance.catalogue import checks
from drivetrain_plugins.conformance.check import LEVELS
from drivetrain_plugins.contract.attention import PagedAttention
from drivetrain_plugins.contract.backend import Backend, Device
from drivetrain_plugins.contract.communicator import Communicator
from drivetrain_plugins.contract.executor import Executor
from drivetrain_plugins.contract.memory import Allocator
from drivetrain_plugins.contract.runtime import Runtime

REPOSITORY = Path(__file__).parents[2]
PAGES = REPOSITORY / "docs" / "backends"
TEMPLATE = REPOSITORY / "plugins" / "template"
EXAMPLES = {
    "drivetrain_opencl": REPOSITORY / "examples" / "opencl_backend",
    "drivetrain_toy": REPOSITORY / "examples" / "toy_executor",
}
BLOCK = re.compile(r"^ *```(\w+)(?: title=\"(.+?)\")?\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


def blocks(page: str) -> list[tuple[str, str, str]]:
    return BLOCK.findall((PAGES / page).read_text(encoding="utf-8"))


CODE = [
    pytest.param(title, code, id=f"{page}-{title}-{number}")
    for page in ("index.md", "tutorial.md", "contract.md", "testing.md")
    for number, (language, title, code) in enumerate(blocks(page))
    if language != "console"
]


@pytest.mark.parametrize(("title", "code"), CODE)
def test_code_is_taken_from_a_package(title: str, code: str) -> None:
    package = EXAMPLES.get(title.split("/", maxsplit=1)[0], TEMPLATE)
    source = (package / title).read_text(encoding="utf-8")
    assert code in source, f"{title} in {package.name} no longer holds this block:\n{code}"


@pytest.mark.parametrize("page", ["index.md", "tutorial.md", "testing.md"])
def test_commands_have_the_flags_that_are_shown(page: str) -> None:
    from typer.main import get_command

    from drivetrain_server.cli.app import build_app

    shown = [line for language, _, text in blocks(page) if language == "console" for line in text.splitlines()]
    assert shown
    flags = {
        name: {flag for parameter in get_command(build_app(name)).commands[name].params for flag in parameter.opts}
        for name in ("backends", "serve")
    }
    for line in shown:
        words = line.removeprefix("$ ").split()
        assert words[0] in {"drivetrain", "pip", "pytest", "cp", "cd", "grep", "mv"}, line
        if words[0] == "drivetrain":
            assert {word for word in words if word.startswith("--")} <= flags[words[1]], line


@pytest.mark.parametrize("part", [Backend, Device, Runtime, Allocator, PagedAttention, Communicator, Executor])
def test_contract_page_names_every_method(part: type) -> None:
    text = (PAGES / "contract.md").read_text(encoding="utf-8")
    assert f"**`{part.__name__}`**" in text
    for name in vars(part):
        if not name.startswith("_") and name not in ("name", "rank", "world"):
            assert f"`{name}`" in text, f"contract.md does not name {part.__name__}.{name}"


def test_testing_page_names_every_level_and_part() -> None:
    text = (PAGES / "testing.md").read_text(encoding="utf-8")
    parts = {check.name.split(".")[0] for check in checks()}
    for name in (*LEVELS, *parts):
        assert re.search(rf"^\| {name} \|", text, re.MULTILINE), f"testing.md has no row for {name}"
