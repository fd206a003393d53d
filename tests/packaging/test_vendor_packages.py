"""Packages outside the tree, installed by pip: found, chosen, held to the contract, and serving over HTTP.

One drives OpenCL through the parts of the contract, one is an executor in numpy.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes.serve_process import ServeProcess
from fakes.tiny_model import write_tiny_model
from fresh_environment import REPOSITORY, Environment, build, fresh_environment

pytestmark = pytest.mark.slow
EXAMPLES = [REPOSITORY / "examples" / name for name in ("opencl_backend", "toy_executor")]
CONFIG = """
dtype = "float32"

[limits]
max_num_seqs = 8
max_model_len = 512
num_pages = 160
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Drivetrain and the packages installed from wheels."""
    folder = tmp_path_factory.mktemp("vendors")
    wheels = [build(source, "wheel", folder / source.name) for source in (REPOSITORY, *EXAMPLES)]
    return fresh_environment(folder / "venv", wheels)


@pytest.fixture(scope="module")
def server(environment: Environment, smollm2_path: Path) -> Iterator[ServeProcess]:
    """`drivetrain serve` in that environment, told nothing of a backend."""
    running = ServeProcess(
        environment.folder,
        smollm2_path,
        CONFIG,
        python=environment.python,
        environment=environment.variables,
        start_limit_s=400,
    )
    with running:
        yield running
        assert running.end() == 0


def test_packages_are_found_ready_and_the_better_one_is_chosen(environment: Environment) -> None:
    listed = json.loads(environment.run("drivetrain", "backends", "--json").stdout)
    states = {state["name"]: state for state in listed["backends"]}
    assert states["toy"]["status"] == "ready", states["toy"]
    assert states["opencl"]["status"] == "ready", states["opencl"]
    assert states["opencl"]["origin"]["distribution"] == "drivetrain-opencl"
    assert states["opencl"]["devices"][0]["architecture"].startswith("OpenCL ")
    assert listed["selected"] == "opencl"


def test_kernels_are_part_of_the_package(environment: Environment) -> None:
    installed = {path.name for path in (environment.site_packages / "drivetrain_opencl" / "kernels").iterdir()}
    assert installed == {"attention.cl", "elementwise.cl", "linear.cl"}


@pytest.mark.real_model
def test_golden_answers_over_http(server: ServeProcess, golden_outputs: list[dict[str, Any]]) -> None:
    assert 'backend="opencl"' in server.http.get("/metrics").text
    for golden in golden_outputs:
        asked = {"prompt": golden["prompt_ids"], "max_tokens": len(golden["output_ids"]), "return_token_ids": True}
        answer = server.complete(**asked)["choices"][0]
        assert answer["token_ids"] == golden["output_ids"]
    chat = {
        "model": server.name,
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "temperature": 0,
        "max_tokens": 12,
    }
    answer = server.http.post("/v1/chat/completions", json=chat).json()
    assert answer["choices"][0]["message"]["content"] == "The capital of France is Paris."
    server.assert_all_pages_back(159)


def test_opencl_keeps_the_contract_and_has_a_report_to_publish(environment: Environment) -> None:
    page = environment.folder / "report.md"
    arguments = ["--check", "opencl", "--report", str(page)]
    done = environment.run("drivetrain", "backends", *arguments)
    assert "keeps the contract (core, parallel); contract version 1" in done.stdout
    text = page.read_text()
    assert text.startswith("# Conformance of opencl\n\nKeeps the contract (core, parallel).\n")
    assert "| backend | `drivetrain_opencl.backend:OpenclBackend` |\n" in text
    assert "| drivetrain-opencl | 0.1.0 |\n" in text
    assert "## Failed\n\nNothing.\n" in text
    assert "| `communicator.several_ranks_agree` | parallel |" in text.split("## Passed")[1]


def test_three_opencl_ranks_agree(environment: Environment) -> None:
    program = (
        "from drivetrain_plugins.conformance.ranks import run_ranks; "
        "run_ranks('drivetrain_opencl.backend:OpenclBackend', {}, world=3, seed=5)"
    )
    done = environment.run("python", "-c", program, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_toy_answers_a_chat_over_http(environment: Environment, tmp_path: Path) -> None:
    """The same greedy answer as the processor gives, from an executor that takes whole steps."""
    model = write_tiny_model(tmp_path / "tiny")
    chat: dict[str, Any] = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Tell me about pages"}],
        "temperature": 0,
        "max_tokens": 16,
    }
    answers: list[str] = []
    for backend in ("toy", "cpu"):
        folder = tmp_path / backend
        folder.mkdir()
        config = f'backend = "{backend}"\n{CONFIG}'
        variables = environment.variables
        with ServeProcess(folder, model, config, python=environment.python, environment=variables) as running:
            assert f'backend="{backend}"' in running.http.get("/metrics").text
            answer = running.http.post("/v1/chat/completions", json=chat).json()
            answers.append(answer["choices"][0]["message"]["content"])
            assert answer["usage"]["completion_tokens"] > 0
            refused = running.http.post("/v1/chat/completions", json=chat | {"top_p": 0.5, "temperature": 1})
            assert refused.status_code == {"toy": 400, "cpu": 200}[backend]
            if backend == "toy":
                assert refused.json()["error"]["param"] == "top_p"
            assert running.end() == 0
    assert answers[0] == answers[1] != ""
