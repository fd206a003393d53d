"""`drivetrain backends` in data: the real CPU backend, vendors' packages around it, and what is not installed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from drivetrain_plugins.errors import BackendNotReady, HardwareIdle
from drivetrain_plugins.known import hardware_is_here, known_backends, not_installed
from drivetrain_plugins.report import backends_report
from drivetrain_plugins.selection import choose_backend
from drivetrain_plugins.status import Status
from drivetrain_plugins.survey import survey
from fakes.fresh_python import printed_by
from plugin_packages import READY_PROBE, PluginPackages, plugin_source

CPU_ENTRY_POINT = "[drivetrain.backends]\ncpu = drivetrain_cpu.plugin\n"


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PluginPackages:
    monkeypatch.syspath_prepend(tmp_path)
    installed = PluginPackages(folder=tmp_path)
    installed.install("drivetrain", entry_points=CPU_ENTRY_POINT)
    return installed


def test_cpu_is_ready_beside_broken_packages_and_absent_hardware(packages: PluginPackages) -> None:
    packages.install("bad", "import acme_sdk_that_is_missing")
    packages.install("dead", probe="import os; os.abort()")
    report = json.loads(backends_report().to_json())
    rows = {row["name"]: row for row in report["backends"]}
    assert report["selected"] == "cpu"
    assert rows["cpu"]["status"] == "ready"
    assert rows["cpu"]["spec"]["version"] == "1.2"
    assert rows["cpu"]["devices"][0]["details"]["cores"] == len(os.sched_getaffinity(0))
    assert rows["bad"]["status"] == "broken"
    assert rows["bad"]["origin"]["distribution"] == "bad"
    assert rows["dead"]["reason"] == "its probe was killed by SIGABRT"
    for name in ("cuda", "rocm", "gaudi"):
        assert rows[name]["status"] == "unavailable"
        assert rows[name]["reason"].startswith("not installed")


def test_an_accelerator_that_is_ready_goes_before_cpu(packages: PluginPackages) -> None:
    packages.install("acme", plugin_source("acme", priority=100))
    surveyed = survey()
    assert [state.name for state in surveyed.ready] == ["acme", "cpu"]


def test_choosing_one_by_name_runs_no_other_probe(packages: PluginPackages) -> None:
    witness = packages.folder / "probed"
    packages.install("acme", plugin_source("acme", priority=100), probe=f"open({str(witness)!r}, 'w')\n" + READY_PROBE)
    assert choose_backend("cpu").name == "cpu"
    assert not witness.exists()
    assert choose_backend().name == "acme"
    assert witness.exists()


def test_choosing_one_that_crashes_says_so_and_what_is_ready(packages: PluginPackages) -> None:
    packages.install("acme", probe="import os; os.abort()")
    with pytest.raises(BackendNotReady) as caught:
        choose_backend("acme")
    assert str(caught.value) == (
        "The backend 'acme' was asked for and cannot serve here. It is broken [acme 1.2]: its probe was killed by "
        "SIGABRT. Next: report it to the makers of acme 1.2, or choose another backend. Ready: cpu."
    )


def test_blocks_of_configuration_and_environment_add_up(
    packages: PluginPackages, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages.install("acme")
    packages.install("bolt")
    monkeypatch.setenv("DRIVETRAIN_BLOCKED_BACKENDS", "bolt")
    statuses = {state.name: state.status for state in survey(blocked=["acme"]).states}
    assert statuses["acme"] is Status.BLOCKED
    assert statuses["bolt"] is Status.BLOCKED
    assert statuses["cpu"] is Status.READY


def test_the_report_loads_neither_torch_nor_a_platform_nor_pluggy(packages: PluginPackages) -> None:
    packages.install("acme", "import torch\n" + plugin_source("acme"))
    (packages.folder / "torch.py").write_text("")
    program = (
        "import sys; from drivetrain_plugins.report import backends_report; report = backends_report(); "
        "print(report.selected, {'torch', 'pluggy', 'drivetrain_cpu', 'acme_plugin'} & set(sys.modules))"
    )
    assert printed_by(program) == "acme set()\n"


def test_what_is_not_installed_names_the_device_files_looked_for(tmp_path: Path) -> None:
    absent = {state.name: state for state in not_installed(set(), root=tmp_path)}
    assert set(absent) == {"cuda", "rocm", "gaudi"}
    assert absent["rocm"].reason == "not installed; no AMD GPU found (looked for /dev/kfd)"
    assert absent["rocm"].next_step == ""
    assert not absent["rocm"].installed


def test_hardware_without_its_backend_gets_the_command_to_install_it(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "hl0").touch()
    absent = {state.name: state for state in not_installed(set(), root=tmp_path)}
    assert absent["gaudi"].reason == "not installed, although the driver of an Intel Gaudi card is loaded (/dev/hl0)"
    assert absent["gaudi"].next_step == (
        "install Drivetrain again with pip install 'drivetrain[gaudi]': it brings this backend"
    )


def test_an_installed_backend_is_not_reported_as_absent() -> None:
    installed = {backend.name for backend in known_backends()} - {"rocm"}
    assert [state.name for state in not_installed(installed)] == ["rocm"]


def test_hardware_is_known_by_the_signs_of_its_driver(tmp_path: Path) -> None:
    assert not hardware_is_here("cuda", root=tmp_path)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidiactl").touch()
    assert hardware_is_here("cuda", root=tmp_path)
    assert not hardware_is_here("rocm", root=tmp_path)
    assert not hardware_is_here("acme", root=tmp_path)


def test_a_broken_backend_on_a_machine_with_its_hardware_is_not_passed_over(
    packages: PluginPackages, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages.install("cuda", plugin_source("cuda", priority=100), probe="import os; os.abort()")
    assert choose_backend().name == "cpu"
    monkeypatch.setattr("drivetrain_plugins.survey.hardware_is_here", lambda name: name == "cuda")
    with pytest.raises(HardwareIdle, match="its probe was killed by SIGABRT"):
        choose_backend()
    assert choose_backend("cpu").name == "cpu"
