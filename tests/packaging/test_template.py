"""The vendor template, built and installed beside Drivetrain as users would, is found, serves, and conforms."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from fresh_environment import REPOSITORY, Environment, build, fresh_environment, install
from plugin_packages import PluginPackages
from tiny_llama_folder import write_tiny_llama
from tiny_tokenizers import write_byte_level_folder

TEMPLATE = REPOSITORY / "plugins" / "template"
ANSWER = """
import json, sys
from drivetrain import LLM, SamplingParams
model, backend = sys.argv[1:]
llm = LLM(model, backend=backend, dtype="float32", max_num_seqs=4)
params = [SamplingParams(temperature=0.0, max_tokens=24), SamplingParams(temperature=0.9, seed=3, max_tokens=24)]
outputs = llm.generate(["The quick brown fox"] * 2, params, progress=False)
texts = [output.text for output in outputs]
print(json.dumps({"backend": llm.info.backend, "texts": texts, "module": sys.modules["drivetrain"].__file__}))
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Drivetrain and the template installed from wheels."""
    folder = tmp_path_factory.mktemp("vendor")
    wheels = [build(source, "wheel", folder / source.name) for source in (REPOSITORY, TEMPLATE)]
    return fresh_environment(folder / "venv", wheels)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_tiny_llama(tmp_path_factory.mktemp("models") / "tiny", vocab_size=640)
    return write_byte_level_folder(folder)


def test_template_is_ready_and_chosen(environment: Environment) -> None:
    listed = json.loads(environment.run("drivetrain", "backends", "--json").stdout)
    states = {state["name"]: state for state in listed["backends"]}
    assert states["acme"]["status"] == "ready", states["acme"]
    assert states["acme"]["origin"]["distribution"] == "drivetrain-acme"
    assert states["acme"]["devices"][0]["name"] == "Acme One"
    assert states["cpu"]["status"] == "ready"
    assert listed["selected"] == "acme"


def test_engine_on_the_template_answers_like_the_engine_on_cpu(environment: Environment, model: Path) -> None:
    answers = {
        name: json.loads(environment.run("python", "-c", ANSWER, str(model), name).stdout.splitlines()[-1])
        for name in ("auto", "cpu")
    }
    assert answers["auto"]["backend"] == "acme"
    assert answers["cpu"]["backend"] == "cpu"
    assert answers["auto"]["texts"] == answers["cpu"]["texts"]
    assert all(answers["cpu"]["texts"])
    assert Path(answers["auto"]["module"]).is_relative_to(environment.folder)


def test_template_s_own_tests_pass_in_the_environment(environment: Environment) -> None:
    done = environment.run("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", str(TEMPLATE / "tests"))
    assert " passed" in done.stdout
    assert "failed" not in done.stdout


def test_options_are_checked_by_the_template_s_schema(environment: Environment, model: Path) -> None:
    script = "import sys; from drivetrain import LLM; LLM(sys.argv[1], backend_options={'acme': {'kv_byte': 5}})"
    done = environment.run("python", "-c", script, str(model), check=False)
    assert done.returncode != 0
    assert 'ConfigError: backend_options.acme: unknown option "kv_byte"' in done.stderr


def test_broken_package_is_listed_with_its_reason_and_harms_nobody(environment: Environment) -> None:
    packages = PluginPackages(folder=environment.site_packages)
    packages.install("drivetrain-wreck", plugin="import wreck_sdk_that_is_missing\n")
    done = environment.run("drivetrain", "backends", "--json")
    states = {state["name"]: state for state in json.loads(done.stdout)["backends"]}
    assert states["drivetrain-wreck"]["status"] == "broken"
    assert "No module named 'wreck_sdk_that_is_missing'" in states["drivetrain-wreck"]["reason"]
    assert states["acme"]["status"] == "ready"
    shown = environment.run("drivetrain", "backends").stdout
    assert "wreck_sdk_that_is_missing" in shown


@pytest.mark.slow
def test_a_renamed_copy_is_a_backend_of_its_own(environment: Environment, tmp_path: Path) -> None:
    """What the tutorial begins with: copy the folder, rename `acme` throughout, install it."""
    copy = tmp_path / "zenith"
    shutil.copytree(TEMPLATE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for path in sorted(copy.rglob("*"), reverse=True):
        if path.is_file():
            path.write_text(path.read_text("utf-8").replace("acme", "zenith").replace("Acme", "Zenith"), "utf-8")
        path.rename(path.with_name(path.name.replace("acme", "zenith")))
    install(environment.folder, [build(copy, "wheel", tmp_path / "wheel")])
    done = environment.run("drivetrain", "backends", "--json", "--backend", "zenith")
    listed = json.loads(done.stdout)
    states = {state["name"]: state["status"] for state in listed["backends"]}
    assert (states["zenith"], states["acme"], listed["selected"]) == ("ready", "ready", "zenith")
    tied = environment.run("drivetrain", "backends", check=False)
    assert tied.returncode == 1
    assert "'acme' (drivetrain-acme 0.1.0) and 'zenith' (drivetrain-zenith 0.1.0) are ready and share" in tied.stdout
    page = tmp_path / "CONFORMANCE.md"
    arguments = ["--check", "zenith", "--level", "core", "--report", str(page)]
    done = environment.run("drivetrain", "backends", *arguments)
    assert "keeps the contract (core)" in done.stdout
    assert "| drivetrain-zenith | 0.1.0 |" in page.read_text("utf-8")
