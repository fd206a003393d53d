"""What people build with, over the real server and the real model.

Each framework runs in an environment of its own, which `make check-clients` sets up: their ranges of versions exclude
one another's, and the server's environment has no need of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes.serve_process import ServeProcess

pytestmark = pytest.mark.real_model

PROGRAMS = Path(__file__).parent
ENVIRONMENTS = Path(sys.prefix) / "clients"
LIMIT_S = 120
PARIS = "The capital of France is Paris."
CONFIG = """
dtype = "float32"
pooling = "mean"

[limits]
max_model_len = 1024
max_num_seqs = 8
"""


@pytest.fixture(scope="module")
def server(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    with ServeProcess(tmp_path_factory.mktemp("server"), smollm2_path, CONFIG, name="served") as running:
        yield running
        assert running.end() == 0


def answers_of(framework: str, server: ServeProcess) -> dict[str, Any]:
    """What the framework's program got."""
    python = ENVIRONMENTS / framework / "bin" / "python"
    assert python.exists(), f"{python} is missing: run `make check-clients`"
    variables = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [str(python), str(PROGRAMS / f"{framework.replace('-', '_')}_program.py"), server.url],
        env=variables | {"LITELLM_LOCAL_MODEL_COST_MAP": "True"},  # else it looks for one in the network
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def require_city(answer: dict[str, str]) -> None:
    assert answer.keys() == {"name", "country"}
    assert answer["name"] in ("Berlin", "Paris", "Rome")
    assert answer["country"] in ("France", "Germany", "Italy")


def test_instructor(server: ServeProcess) -> None:
    answers = answers_of("instructor", server)
    assert answers.keys() == {"tool", "schema"}
    for answer in answers.values():
        require_city(answer)


def test_langchain_openai(server: ServeProcess) -> None:
    answers = answers_of("langchain-openai", server)
    assert (answers["chat"], answers["stream"], answers["responses"]) == (PARIS, PARIS, PARIS)
    assert answers["embedding_sizes"] == [576, 576]
    require_city(answers["schema"])
    require_city(answers["tool"])


def test_litellm(server: ServeProcess) -> None:
    expected = {"chat": PARIS, "stream": PARIS, "completion_tokens": 8}
    assert answers_of("litellm", server) == {"openai": expected, "anthropic": expected, "ollama_chat": expected}


def test_pydantic_ai(server: ServeProcess) -> None:
    answers = answers_of("pydantic-ai", server)
    assert (answers["chat"], answers["responses"]) == (PARIS, PARIS)
    require_city(answers["tool"])
