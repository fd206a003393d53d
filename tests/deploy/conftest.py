"""These tests want the linters of the extra `deploy`: `make check-deploy` installs and runs them."""

from __future__ import annotations

from pathlib import Path

import pytest

DEPLOY = Path(__file__).parents[2] / "deploy"


@pytest.fixture(scope="session")
def deploy() -> Path:
    return DEPLOY
