"""Requests made from the server's own OpenAPI document: no 5xx, answers as documented, and no growth.

The API process runs under a limit of its address space, so that a body that makes it allocate without bound ends it.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error

from fakes.serve_process import ServeProcess

CONFIG = """
dtype = "float32"

[limits]
max_num_seqs = 16
max_step_tokens = 128
max_model_len = 256
num_pages = 200

[server]
max_body_bytes = 100000
request_timeout_s = 20

[backend_options.cpu]
threads = 1
"""
ADDRESS_SPACE_BYTES = 6 << 30
GROWTH_BYTES = 64 << 20
LIMITED = f"""
import resource
resource.setrlimit(resource.RLIMIT_AS, ({ADDRESS_SPACE_BYTES}, {ADDRESS_SPACE_BYTES}))
from drivetrain_server.cli import main
main()
"""
QUICK, LONG = 6, 400


@pytest.fixture(scope="module")
def limited(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    with ServeProcess(tmp_path_factory.mktemp("schema"), tiny_model, CONFIG, program=LIMITED) as server:
        limits = Path(f"/proc/{server.process.pid}/limits").read_text()
        assert str(ADDRESS_SPACE_BYTES) in next(line for line in limits.splitlines() if "address space" in line)
        yield server
        assert server.end() == 0


def attack(server: ServeProcess, examples: int) -> int:
    """Call every operation so many times with what its schema allows and what it forbids; returns the calls made."""
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    calls = 0

    def check(case: Any) -> None:
        nonlocal calls
        calls += 1
        response = case.call(timeout=60)
        case.validate_response(response, checks=[not_a_server_error])
        assert len(response.content) < 20_000_000

    for found in schema.get_all_operations():
        operation = found.ok()
        if "event-stream" in operation.path:
            continue
        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):
            try:
                run(operation.as_strategy(generation_mode=mode), check, examples)
            except Unsatisfiable:  # an operation without a body may have nothing to forbid
                assert mode is schemathesis.GenerationMode.NEGATIVE and not operation.body
    return calls


def run(cases: Any, check: Callable[[Any], None], examples: int) -> None:
    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases)
    def each(case: Any) -> None:
        check(case)

    each()


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


def survive(server: ServeProcess, examples: int) -> int:
    attack(server, 2)  # what is loaded at first use is loaded
    before = resident(server.process.pid)
    calls = attack(server, examples)
    assert resident(server.process.pid) - before < GROWTH_BYTES
    assert server.process.poll() is None
    assert server.complete(prompt="still there", max_tokens=2)["usage"]["completion_tokens"] == 2
    server.assert_all_pages_back(int(server.pages()["capacity"]))
    counts = httpx.get(server.url + "/metrics").text
    assert 'status="5' not in "".join(line for line in counts.splitlines() if 'route="/v1' in line)
    return calls


def test_requests_from_the_document_get_no_5xx_and_leave_nothing(limited: ServeProcess) -> None:
    assert survive(limited, QUICK) > 100


@pytest.mark.slow
def test_many_requests_from_the_document_get_no_5xx_and_leave_nothing(limited: ServeProcess) -> None:
    assert survive(limited, int(os.environ.get("DRIVETRAIN_SCHEMA_EXAMPLES", LONG))) > 5000
