"""`drivetrain backends` and what doctor says about them."""

from __future__ import annotations

import json
import re

import pytest
from typer.testing import CliRunner

from drivetrain.errors import BackendError
from drivetrain_plugins import report
from drivetrain_plugins.spec import BackendSpec, DeviceInfo
from drivetrain_plugins.status import BackendState, Origin, Status
from drivetrain_plugins.survey import Survey
from drivetrain_server import op_table
from drivetrain_server.cli.app import build_app
from drivetrain_server.cli.doctor import findings
from drivetrain_server.op_table import OpRow

ORIGIN = Origin(distribution="drivetrain-acme", version="1.2", entry_point="acme", target="acme.plugin")


def state(name: str, status: Status, **fields) -> BackendState:
    spec = BackendSpec(
        name=name, version="1", contract=(1, 1), priority=5, probe="a:b", backend=f"{name}:Backend", description="x"
    )
    return BackendState(name=name, status=status, spec=spec, origin=ORIGIN, **fields)


DEVICE = DeviceInfo(index=0, name="Acme 9", architecture="a9", memory_bytes=2**34, free_memory_bytes=2**33)
READY = state("acme", Status.READY, devices=(DEVICE,))
BROKEN = state("wreck", Status.BROKEN, reason="its probe crashed [signal 11]", next_step="report it")


@pytest.fixture
def surveyed(monkeypatch, tmp_path):
    """Set what a survey finds; returns what it was asked for."""
    asked: list[object] = []
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("DRIVETRAIN_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def use(*states: BackendState) -> list[object]:
        def survey(*, blocked, configured):
            asked.append((*blocked, *configured))
            return Survey(states=states, warnings=tuple(f"[backend_options.{name}] is idle" for name in configured))

        monkeypatch.setattr(report, "survey", survey)
        return asked

    return use


def invoke(*arguments: str):
    return CliRunner().invoke(build_app("backends"), ["backends", *arguments])


def test_table_tells_status_reason_and_next_step(surveyed):
    surveyed(READY, BROKEN)
    result = invoke()
    assert result.exit_code == 0
    assert re.search(r"^\* acme +ready +drivetrain-acme 1\.2 +0: Acme 9, a9, 16GiB *$", result.stdout, re.M)
    assert re.search(r"^  wreck +broken +drivetrain-acme 1\.2 +its probe crashed \[signal 11\] *$", result.stdout, re.M)
    assert "next: report it" in result.stdout
    assert "* 'acme' is used because" in result.stdout


def test_nothing_ready_exits_with_1_and_says_why(surveyed):
    surveyed(BROKEN)
    result = invoke()
    assert result.exit_code == 1
    assert "no backend: No backend can serve here." in result.stdout


def test_json_is_the_report(surveyed):
    asked = surveyed(READY, BROKEN)
    result = invoke("--json", "--blocked-backends", "x,y", "--backend", "acme")
    listed = json.loads(result.stdout)
    assert asked == [("x", "y")]
    assert (listed["selected"], listed["requested"]) == ("acme", "acme")
    assert [entry["status"] for entry in listed["backends"]] == ["ready", "broken"]
    assert "ops" not in listed


def test_ops_show_the_ready_ones_only(surveyed, monkeypatch):
    surveyed(READY, BROKEN)
    opened: list[object] = []

    def table(backend, options):
        opened.append((backend, dict(options)))
        return [
            OpRow(name="ops.norm", implementation="acme.ops:Ops.norm", reference=False),
            OpRow(name="ops.linear", implementation="drivetrain_plugins.contract.ops:Ops.linear", reference=True),
        ]

    monkeypatch.setattr(op_table, "op_table", table)
    result = invoke("--ops", "--backend-options", '{"acme": {"fast": true}}')
    assert result.exit_code == 0
    assert opened == [("acme:Backend", {"fast": True})]
    assert "acme: 1 of 2 its own" in result.stdout
    assert re.search(r"ops\.norm +│ acme\.ops:Ops\.norm", result.stdout)
    assert re.search(r"ops\.linear +│ torch reference", result.stdout)
    assert json.loads(invoke("--ops", "--json").stdout)["ops"]["acme"][0]["name"] == "ops.norm"


def test_backend_that_does_not_open_is_told_and_fails(surveyed, monkeypatch):
    surveyed(READY)

    def table(backend, options):
        raise BackendError("acme:Backend could not open its device: no [driver]")

    monkeypatch.setattr(op_table, "op_table", table)
    result = invoke("--ops")
    assert result.exit_code == 1
    assert "could not open its device: no [driver]" in result.stdout


def test_doctor_warns_of_broken_ones_and_fails_without_any(surveyed):
    surveyed(READY, BROKEN)
    found = {finding.name: finding for finding in findings(None)}
    assert found["backends"].status == "warning"
    assert "wreck (broken): its probe crashed" in found["backends"].found
    surveyed(BROKEN)
    found = {finding.name: finding for finding in findings(None)}
    assert found["backends"].status == "problem"


def test_options_without_a_backend_are_told_by_backends_and_doctor(surveyed, tmp_path):
    surveyed(READY)
    (tmp_path / "drivetrain.toml").write_text("[backend_options.acne]\nthreads = 2\n", encoding="utf-8")
    result = invoke()
    assert result.exit_code == 0
    assert "warning: [backend_options.acne] is idle" in result.stdout
    told = [(finding.status, finding.found) for finding in findings(None) if finding.name == "backends"]
    assert [status for status, _ in told] == ["ok", "warning"]
    assert told[1][1] == "[backend_options.acne] is idle"


def test_doctor_prints_all_findings_as_json(surveyed):
    surveyed(READY)
    result = CliRunner().invoke(build_app("doctor"), ["doctor", "--json"])
    told = json.loads(result.stdout)
    names = {finding["name"] for finding in told["findings"]}
    assert {"python", "torch", "config", "port", "keys", "backends", "disk", "models"} <= names
    assert told["healthy"] == (result.exit_code == 0)
