"""A real server over a tiny model, started once for all attacks on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.serve_process import ServeProcess
from fakes.tiny_model import write_tiny_model

TINY_CONFIG = """
dtype = "float32"

[limits]
max_num_seqs = 24
max_step_tokens = 128
max_model_len = 1024
num_pages = 600

[server]
max_body_bytes = 200000
max_stream_bytes = 4096

[backend_options.cpu]
threads = 1
"""
# The time that a reader may stand still is no setting; here it is one second.
PROGRAM = """
import functools
import drivetrain_server.serve as serve
from drivetrain_server.app import create_app
from drivetrain_server.cli import main
serve.create_app = functools.partial(create_app, stall_s=1.0)
main()
"""


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random Llama of two layers."""
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def tiny_server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    """`drivetrain serve` on the tiny model."""
    with ServeProcess(tmp_path_factory.mktemp("tiny-server"), tiny_model, TINY_CONFIG, program=PROGRAM) as running:
        yield running
        assert running.end() == 0
