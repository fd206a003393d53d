"""A package outside the tree, on OpenCL: installed by pip, found, chosen, held to the contract, and serving."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes.serve_process import ServeProcess
from fresh_environment import REPOSITORY, Environment, build, fresh_environment

pytest.importorskip("pyopencl", reason="needs pyopencl")
SOURCE = REPOSITORY / "examples" / "opencl_backend"
CONFIG = """
dtype = "float32"

[limits]
max_num_seqs = 8
max_model_len = 512
num_pages = 160
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Drivetrain and the package installed from wheels."""
    folder = tmp_path_factory.mktemp("opencl")
    wheels = [build(source, "wheel", folder / source.name) for source in (REPOSITORY, SOURCE)]
    return fresh_environment(folder / "venv", wheels)


@pytest.fixture(scope="module")
def server(environment: Environment, smollm2_path: Path) -> Iterator[ServeProcess]:
    """`drivetrain serve` in that environment, told nothing of a backend."""
    running = ServeProcess(
        environment.folder, smollm2_path, CONFIG, python=environment.python, environment=environment.variables
    )
    with running:
        yield running
        assert running.end() == 0


def test_package_is_found_ready_and_chosen(environment: Environment) -> None:
    listed = json.loads(environment.run("drivetrain", "backends", "--json").stdout)
    states = {state["name"]: state for state in listed["backends"]}
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
