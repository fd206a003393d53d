"""Within a version the contract only grows: the one of today against its record, and a package of that time."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from contract_record import breaks, describe_contract
from drivetrain import LLM, SamplingParams
from drivetrain_plugins import discovery
from drivetrain_plugins.conformance.run import run_conformance
from drivetrain_plugins.contract import CONTRACT_VERSION, OLDEST_CONTRACT_VERSION
from drivetrain_plugins.report import backends_report
from plugin_packages import PluginPackages
from tiny_llama_folder import write_tiny_llama
from tiny_tokenizers import write_byte_level_folder

TESTS = Path(__file__).parents[1]
RECORDED = TESTS / "recorded" / "contract_1"
ENTRY_POINT = "[drivetrain.backends]\nrelic = drivetrain_relic.plugin\n"
CPU_ENTRY_POINT = "[drivetrain.backends]\ncpu = drivetrain_cpu.plugin\n"


def record(version: int) -> dict[str, Any]:
    return json.loads((TESTS / "data" / f"contract-{version}.json").read_text("utf-8"))


def test_every_version_that_is_spoken_has_its_record() -> None:
    versions = range(OLDEST_CONTRACT_VERSION, CONTRACT_VERSION + 1)
    assert [record(version)["version"] for version in versions] == list(versions)


def test_the_contract_of_today_is_what_was_published_and_more() -> None:
    assert breaks(record(CONTRACT_VERSION), describe_contract()) == []


BATCH, OPS, MEMORY = (f"drivetrain_plugins.contract.{name}" for name in ("batch", "ops", "memory"))
CHANGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a name goes": (lambda m: m[BATCH].pop("LAST_TOKEN"), f"{BATCH}.LAST_TOKEN is gone"),
    "a value changes": (
        lambda m: m[BATCH]["NULL_PAGE"].update(value="1"),
        f"{BATCH}.NULL_PAGE was 0 and is 1",
    ),
    "a field goes": (lambda m: m[MEMORY]["MemoryPlan"]["fields"].pop("lines"), f"{MEMORY}.MemoryPlan.lines is gone"),
    "a field without a default comes": (
        lambda m: m[MEMORY]["KVSpec"]["fields"].update(salt={"type": "int", "default": None}),
        f"{MEMORY}.KVSpec.salt is new and has no default",
    ),
    "a default changes": (
        lambda m: m[MEMORY]["MemoryLimits"]["fields"]["fraction"].update(default="0.5"),
        f"{MEMORY}.MemoryLimits.fraction was 0.9 by default and is 0.5",
    ),
    "a method that is overridden gains a parameter": (
        lambda m: m[OPS]["Ops"]["methods"]["norm"]["parameters"].append(["eps", "KEYWORD_ONLY", "float", "0.0"]),
        f"{OPS}.Ops.norm has another signature",
    ),
    "a method becomes abstract": (
        lambda m: m[OPS]["Ops"]["methods"]["norm"].update(abstract=True),
        f"{OPS}.Ops.norm has become abstract",
    ),
    "an abstract method comes": (
        lambda m: m[MEMORY]["Allocator"]["methods"].update(trim={"parameters": [], "returns": "", "abstract": True}),
        f"{MEMORY}.Allocator.trim is new and abstract",
    ),
    "a choice goes": (
        lambda m: m["drivetrain_plugins.contract.capabilities"]["Dtype"]["values"].remove("float16"),
        "drivetrain_plugins.contract.capabilities.Dtype no longer offers 'float16'",
    ),
    "an error leaves its family": (
        lambda m: m["drivetrain_plugins.errors"]["OutOfMemory"]["bases"].remove("BackendError"),
        "drivetrain_plugins.errors.OutOfMemory is no BackendError any more",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_would_break_a_package_is_named(name: str) -> None:
    change, sentence = CHANGES[name]
    changed = copy.deepcopy(record(1))
    change(changed["modules"])
    assert breaks(record(1), changed) == [sentence]


def test_what_only_grows_breaks_nothing() -> None:
    grown = copy.deepcopy(record(1))
    modules = grown["modules"]
    modules[MEMORY]["KVSpec"]["fields"]["salt"] = {"type": "int", "default": "0"}
    modules[OPS]["Ops"]["methods"]["pool"] = {"parameters": [], "returns": "", "abstract": False}
    modules[BATCH]["unpack"]["parameters"].append(["copy", "KEYWORD_ONLY", "bool", "False"])
    modules["drivetrain_plugins.contract.capabilities"]["Dtype"]["values"].append("float8")
    modules["drivetrain_plugins.contract.novelty"] = {}
    assert breaks(record(1), grown) == []


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package of contract version 1 beside the CPU backend."""
    monkeypatch.syspath_prepend(RECORDED)
    monkeypatch.syspath_prepend(tmp_path)
    packages = PluginPackages(folder=tmp_path)
    packages.install("drivetrain", entry_points=CPU_ENTRY_POINT)
    packages.install("drivetrain-relic", entry_points=ENTRY_POINT)


def test_a_package_of_the_published_contract_is_chosen_and_serves(installed: None, tmp_path: Path) -> None:
    assert backends_report().selected == "relic"
    model = write_byte_level_folder(write_tiny_llama(tmp_path / "tiny", vocab_size=640))
    params = [SamplingParams(temperature=0.0, max_tokens=20), SamplingParams(temperature=0.9, seed=3, max_tokens=20)]
    texts: dict[str, list[str]] = {}
    for backend in ("auto", "cpu"):
        llm = LLM(str(model), backend=backend, dtype="float32", max_num_seqs=4)
        assert llm.info.backend == {"auto": "relic"}.get(backend, backend)
        texts[backend] = [output.text for output in llm.generate(["The quick brown fox"] * 2, params, progress=False)]
    assert texts["auto"] == texts["cpu"]
    assert all(texts["cpu"])


def test_a_package_of_the_published_contract_still_conforms(installed: None) -> None:
    report = run_conformance("drivetrain_relic.backend:RelicBackend", only="model.", seed=11)
    assert report.passed, report.failed


@pytest.mark.parametrize(
    ("oldest", "newest", "status", "reason"),
    [
        (1, 2, "ready", ""),
        (2, 2, "incompatible", "it speaks version 1 of the backend contract; this Drivetrain speaks version 2"),
        (2, 3, "incompatible", "it speaks version 1 of the backend contract; this Drivetrain speaks versions 2 to 3"),
    ],
)
def test_a_newer_drivetrain_takes_the_versions_that_it_speaks(
    installed: None, monkeypatch: pytest.MonkeyPatch, oldest: int, newest: int, status: str, reason: str
) -> None:
    monkeypatch.setattr(discovery, "OLDEST_CONTRACT_VERSION", oldest)
    monkeypatch.setattr(discovery, "CONTRACT_VERSION", newest)
    (state,) = [state for state in backends_report().backends if state.name == "relic"]
    assert (state.status, state.reason) == (status, reason)
    assert state.next_step == ("upgrade drivetrain-relic" if reason else "")
