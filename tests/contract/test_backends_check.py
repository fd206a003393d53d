"""`drivetrain backends --check NAME` runs the conformance suite in a process of its own and tells what came of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from drivetrain.errors import BackendError, BackendNotReady
from drivetrain_plugins.conformance.page import as_markdown
from drivetrain_plugins.spec import BackendSpec
from drivetrain_plugins.status import BackendState, Origin, Status
from drivetrain_server.cli.app import build_app
from drivetrain_server.conformance_child import check_backend


def state(backend: str, **environment: str) -> BackendState:
    spec = BackendSpec(
        name="acme",
        contract=(1, 1),
        priority=1,
        probe="acme:probe",
        backend=backend,
        description="x",
        environment=environment,
    )
    origin = Origin(distribution="drivetrain-acme", version="4.2", entry_point="acme", target="acme.plugin")
    details = {"driver": "7.1", "cards": 2}
    return BackendState(name="acme", status=Status.READY, spec=spec, origin=origin, details=details)


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path of child processes."""
    import os

    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("DRIVETRAIN_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_cpu_keeps_the_contract_and_the_report_is_json(outside: Path) -> None:
    page = outside / "report.md"
    arguments = ["--check", "cpu", "--json", "--report", str(page), "--backend-options", '{"cpu": {"threads": 1}}']
    result = CliRunner().invoke(build_app("backends"), ["backends", *arguments])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    outcomes = {entry["name"]: entry["outcome"] for entry in report["results"]}
    assert outcomes["attention.grouped_heads_match_the_dense_truth"] == "passed"
    assert "failed" not in outcomes.values()
    levels = {level["level"]: level for level in report["levels"]}
    verdicts = {name: level["verdict"] for name, level in levels.items()}
    assert verdicts == {"core": "kept", "graphs": "not claimed", "quantized": "not claimed", "parallel": "kept"}
    assert levels["parallel"]["passed"] == 1
    assert sum(level["passed"] for level in levels.values()) == list(outcomes.values()).count("passed")
    assert report["versions"].keys() >= {"drivetrain", "python", "torch", "system"}
    assert "cpu on " in result.stderr and "keeps the contract (core, parallel)" in result.stderr
    text = page.read_text()
    assert text.startswith("# Conformance of cpu\n\nKeeps the contract (core, parallel).\n")
    assert f"| torch | {report['versions']['torch']} |" in text
    assert "| `attention.blind_plans_fit_every_batch_of_their_shape` | graphs | capabilities.graphs is False |" in text


def test_only_the_level_that_was_asked_for_is_run(outside: Path) -> None:
    arguments = ["backends", "--check", "cpu", "--json", "--level", "graphs", "--level", "quantized"]
    result = CliRunner().invoke(build_app("backends"), arguments)
    report = json.loads(result.stdout)
    assert {entry["level"] for entry in report["results"]} == {"graphs", "quantized"}
    verdicts = {level["level"]: level["verdict"] for level in report["levels"]}
    assert verdicts == {"core": "not run", "graphs": "not claimed", "quantized": "not claimed", "parallel": "not run"}
    assert result.exit_code == 1
    assert "nothing was proved" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--check", "cpu", "--level", "fast"], "got fast, expected some of core, graphs, quantized, parallel"),
        (["--level", "core"], "--level belongs to --check NAME"),
        (["--report", "x.md"], "--report belongs to --check NAME"),
        (["--check", "cpu", "--report", "nowhere/x.md"], "there is no folder nowhere"),
    ],
)
def test_flags_that_make_no_sense_are_refused_before_any_work(
    outside: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    result = CliRunner().invoke(build_app("backends"), ["backends", *arguments])
    assert result.exit_code == 2
    assert message in result.stderr


def test_backend_that_is_not_there_is_an_error(outside: Path) -> None:
    result = CliRunner().invoke(build_app("backends"), ["backends", "--check", "acme"])
    assert isinstance(result.exception, BackendNotReady)


@pytest.mark.parametrize("error", ["BackendError", "RuntimeError"])
def test_backend_that_breaks_the_contract_is_reported_check_by_check(outside: Path, error: str) -> None:
    (outside / "unopenable.py").write_text(
        "import os\nfrom drivetrain_plugins.contract.backend import Backend\n"
        "from drivetrain_plugins.errors import BackendError\n"
        "class Unopenable(Backend):\n"
        "    def open(self, rank, options):\n"
        f"        raise {error}(f'no device, {{os.environ[\"ACME\"]}}')\n"
    )
    seen = []
    report = check_backend(state("unopenable:Unopenable", ACME="says acme"), {}, seen.append)
    assert not report.passed
    assert report.device == ""
    assert tuple(seen) == report.results
    failed = [result for result in report.results if result.outcome == "failed"]
    assert len(failed) == len(report.results) > 50
    assert f"{error}: no device, says acme" in failed[0].reason
    assert report.verdict == "breaks the contract (core, graphs, quantized, parallel)"
    page = as_markdown(report)
    assert page.startswith("# Conformance of acme\n\nBreaks the contract (core, graphs, quantized, parallel).\n")
    assert "| device | did not open |" in page
    assert list(report.versions) == ["drivetrain-acme", "drivetrain", "python", "torch", "system", "driver"]
    assert "| drivetrain-acme | 4.2 |" in page
    assert "| driver | 7.1 |" in page
    assert "| parallel | broken | the device did not open | 0 | 1 | 0 |" in page


def test_process_that_dies_is_an_error_with_its_last_words(outside: Path) -> None:
    (outside / "dying.py").write_text("import os\nprint('driver fault', flush=True)\nos._exit(7)\n")
    with pytest.raises(BackendError, match="checking 'acme' ended with status 7 before a report: driver fault"):
        check_backend(state("dying:Backend"), {}, lambda result: None)
