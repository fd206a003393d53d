"""The Gaudi backend keeps the contract, on the processor."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from drivetrain_plugins.conformance.catalogue import checks
from drivetrain_plugins.conformance.suite import BackendConformance

SLOW = frozenset(
    {
        "attention.one_long_row_beside_short_ones",
        "attention.windows_end_where_they_should",
        "layer.decoder_layers_keep_only_the_wanted_tokens",
        "model.steps_as_large_as_the_limits_are_served",
    }
)


@pytest.fixture(scope="module", autouse=True)
def one_thread_and_children_that_find_the_tests() -> Iterator[None]:
    """Ranks are processes of their own that import the backend by name."""
    import sys

    before, threads = os.environ.get("PYTHONPATH"), torch.get_num_threads()
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


class TestGaudi(BackendConformance):
    backend = "gaudi_on_cpu:GaudiOnCpu"
    options = {"recipe_cache": "off"}
    world = 2

    @classmethod
    def pytest_generate_tests(cls, metafunc: pytest.Metafunc) -> None:
        """As the suite, with what takes longest marked."""
        if "check" in metafunc.fixturenames:
            params = [pytest.param(check, marks=pytest.mark.slow if check.name in SLOW else ()) for check in checks()]
            metafunc.parametrize("check", params, ids=str)
