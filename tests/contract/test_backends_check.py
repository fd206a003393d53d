"""`drivetrain backends --check NAME` runs the conformance suite in a process of its own and tells what came of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from drivetrain.errors import BackendError, BackendNotReady
from drivetrain_plugins.spec import BackendSpec
from drivetrain_server.cli.app import build_app
from drivetrain_server.conformance_child import check_backend


def spec(backend: str, **environment: str) -> BackendSpec:
    return BackendSpec(
        name="acme",
        contract=(1, 1),
        priority=1,
        probe="acme:probe",
        backend=backend,
        description="x",
        environment=environment,
    )


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path of child processes."""
    import os

    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("DRIVETRAIN_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_cpu_keeps_the_contract_and_the_report_is_json(outside: Path) -> None:
    arguments = ["backends", "--check", "cpu", "--json", "--backend-options", '{"cpu": {"threads": 1}}']
    result = CliRunner().invoke(build_app("backends"), arguments)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    outcomes = {entry["name"]: entry["outcome"] for entry in report["results"]}
    assert outcomes["attention.grouped_heads_match_the_dense_truth"] == "passed"
    assert outcomes["communicator.several_ranks_agree"] == "skipped"
    assert "failed" not in outcomes.values()
    assert "cpu on " in result.stderr and "keeps the contract" in result.stderr


def test_backend_that_is_not_there_is_an_error(outside: Path) -> None:
    result = CliRunner().invoke(build_app("backends"), ["backends", "--check", "acme"])
    assert isinstance(result.exception, BackendNotReady)


def test_backend_that_breaks_the_contract_is_reported_check_by_check(outside: Path) -> None:
    (outside / "unopenable.py").write_text(
        "import os\nfrom drivetrain_plugins.contract.backend import Backend\n"
        "from drivetrain_plugins.errors import BackendError\n"
        "class Unopenable(Backend):\n"
        "    def open(self, rank, options):\n"
        "        raise BackendError(f'no device, {os.environ[\"ACME\"]}')\n"
    )
    seen = []
    report = check_backend(spec("unopenable:Unopenable", ACME="says acme"), {}, seen.append)
    assert not report.passed
    assert report.device == ""
    assert tuple(seen) == report.results
    failed = [result for result in report.results if result.outcome == "failed"]
    assert len(failed) == len(report.results) > 50
    assert "BackendError: no device, says acme" in failed[0].reason


def test_process_that_dies_is_an_error_with_its_last_words(outside: Path) -> None:
    (outside / "dying.py").write_text("import os\nprint('driver fault', flush=True)\nos._exit(7)\n")
    with pytest.raises(BackendError, match="checking 'acme' ended with status 7 before a report: driver fault"):
        check_backend(spec("dying:Backend"), {}, lambda result: None)
