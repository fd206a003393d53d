"""What `drivetrain backends` and `drivetrain doctor` say, word for word, on machines in trouble and out of it.

Real packages are listed and probed in real child processes; of hardware, only a made-up card is known. The texts are
in `tests/data/messages/`. Run with `WRITE_MESSAGES=1` to write them again, then read what changed.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from drivetrain_plugins import known
from drivetrain_plugins.known import KnownBackend
from drivetrain_server.cli.app import build_app
from plugin_packages import PluginPackages, plugin_source

TEXTS = Path(__file__).parents[1] / "data" / "messages"
WRITE = os.environ.get("WRITE_MESSAGES") == "1"

CPU = """
from drivetrain_plugins.spec import DeviceInfo, ProbeResult

def probe():
    device = DeviceInfo(index=0, name="Some Processor", architecture="x86_64", memory_bytes=2**35, free_memory_bytes=1)
    return ProbeResult(ready=True, devices=(device,))
"""
TWO_CARDS = """
from drivetrain_plugins.spec import DeviceInfo, ProbeResult

def probe():
    devices = tuple(
        DeviceInfo(index=index, name="Acme X1", architecture="x1", memory_bytes=2**34, free_memory_bytes=2**33)
        for index in range(2)
    )
    return ProbeResult(ready=True, devices=devices, details={"driver": "7.1"})
"""
NO_DRIVER = """
from drivetrain_plugins.spec import ProbeResult

def probe():
    return ProbeResult(ready=False, reason="no Acme driver is loaded", next_step="load acme.ko, or see acme.example")
"""
OLD_DRIVER = """
from drivetrain_plugins.spec import DeviceInfo, ProbeResult

def probe():
    device = DeviceInfo(index=0, name="Acme X1", architecture="x1", memory_bytes=2**34, free_memory_bytes=2**33)
    reason = "driver 6.2 is too old, 7.0 is needed"
    return ProbeResult(
        ready=False, reason=reason, next_step="install driver 7", devices=(device,), idle_hardware=True
    )
"""


def no_accelerator(packages: PluginPackages) -> None:
    """Nothing but the processor, beside a vendor's package without its device."""
    packages.install("drivetrain-acme", plugin_source("acme", probe="drivetrain_acme_probe:probe"), NO_DRIVER)


def broken_sdk(packages: PluginPackages) -> None:
    """One package cannot load its SDK, another one's crashes in the probe."""
    packages.install("drivetrain-acme", "import acme_sdk\n")
    crash = "import os, signal\nos.write(2, b'libzap: bad firmware\\n')\nos.kill(os.getpid(), signal.SIGKILL)\n"
    packages.install("drivetrain-zap", plugin_source("zap", probe="drivetrain_zap_probe:probe"), crash)


def two_ready(packages: PluginPackages) -> None:
    """A processor and an accelerator."""
    source = plugin_source("acme", priority=100, probe="drivetrain_acme_probe:probe")
    packages.install("drivetrain-acme", source, TWO_CARDS)


def tie(packages: PluginPackages) -> None:
    """Two accelerators of one priority."""
    two_ready(packages)
    source = plugin_source("zap", priority=100, probe="drivetrain_zap_probe:probe")
    packages.install("drivetrain-zap", source, version="0.3")


def wrong_contract(packages: PluginPackages) -> None:
    """Packages of a contract that this Drivetrain does not speak."""
    packages.install("drivetrain-acme", plugin_source("acme", contract=(2, 3), priority=100), version="9.0")


def idle_hardware(packages: PluginPackages) -> None:
    """An accelerator that cannot serve today."""
    source = plugin_source("acme", priority=100, probe="drivetrain_acme_probe:probe")
    packages.install("drivetrain-acme", source, OLD_DRIVER)


def hardware_without_its_backend(packages: PluginPackages) -> None:
    """The driver of known hardware is loaded, and no package brings its backend."""
    (packages.folder / "dev").mkdir()
    (packages.folder / "dev" / "bolt0").touch()


def nothing_ready(packages: PluginPackages) -> None:
    """Not even the processor."""
    no_accelerator(packages)
    (packages.folder / "drivetrain_probe.py").write_text("def probe():\n    raise OSError('no /proc')\n")


MACHINES = {
    machine.__name__: machine
    for machine in (
        no_accelerator,
        broken_sdk,
        two_ready,
        tie,
        wrong_contract,
        idle_hardware,
        hardware_without_its_backend,
        nothing_ready,
    )
}
FAILS = {"tie", "idle_hardware", "nothing_ready"}


@pytest.fixture
def machine(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, Callable[..., tuple[str, int]]]:
    """A machine's name, and what a command prints there with its exit status."""
    name: str = request.param
    monkeypatch.syspath_prepend(tmp_path)
    bolt = KnownBackend(
        name="bolt", hardware="Bolt card", install="pip install drivetrain-bolt", signs=(f"{tmp_path}/dev/bolt0",)
    )
    monkeypatch.setattr(known, "known_backends", lambda: (bolt,))
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.setenv("DRIVETRAIN_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    packages = PluginPackages(folder=tmp_path)
    packages.install("drivetrain", plugin_source("cpu", priority=0, probe="drivetrain_probe:probe"), CPU)
    MACHINES[name](packages)

    def printed(*arguments: str) -> tuple[str, int]:
        result = CliRunner().invoke(build_app(arguments[0]), list(arguments))
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.stdout.replace(str(tmp_path), "/packages"), result.exit_code

    return name, printed


def compare(name: str, text: str) -> None:
    """Hold a text against the recorded one."""
    path = TEXTS / name
    if WRITE:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def stripped(text: str) -> str:
    """A table without the blanks that fill its lines."""
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


@pytest.mark.parametrize("machine", MACHINES, indirect=True)
def test_backends_are_listed_for_people(machine: tuple[str, Callable[..., tuple[str, int]]]) -> None:
    name, printed = machine
    text, status = printed("backends")
    compare(f"{name}.txt", stripped(text))
    assert status == (name in FAILS)


@pytest.mark.parametrize("machine", MACHINES, indirect=True)
def test_backends_are_listed_for_programs(machine: tuple[str, Callable[..., tuple[str, int]]]) -> None:
    name, printed = machine
    text, status = printed("backends", "--json")
    report = json.loads(text)
    for backend in report["backends"]:
        assert backend.pop("seconds") >= 0
    compare(f"{name}.json", json.dumps(report, indent=1) + "\n")
    assert status == (name in FAILS)


@pytest.mark.parametrize("machine", MACHINES, indirect=True)
def test_doctor_says_the_same_in_one_finding(machine: tuple[str, Callable[..., tuple[str, int]]]) -> None:
    name, printed = machine
    text, _ = printed("doctor", "--json")
    (finding,) = [finding for finding in json.loads(text)["findings"] if finding["name"] == "backends"]
    told, status = printed("doctor")
    part = re.search(r"^\w+ +backends: (?:.|\n)*?(?=^\w+ +disk: )", told, re.MULTILINE)
    assert part, told
    compare(f"{name}-doctor.txt", f"{stripped(part[0])}\n{json.dumps(finding, indent=1)}\n")
    assert (finding["status"] == "problem") == (name in FAILS)
    assert status == 1 or name not in FAILS
