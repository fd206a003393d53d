"""docs/config.md says what the code does."""

from __future__ import annotations

from pathlib import Path

from drivetrain.config import all_settings
from drivetrain_server.config_docs import render

PAGE = Path(__file__).parents[2] / "docs" / "config.md"


def test_page_is_current():
    assert PAGE.read_text(encoding="utf-8") == render(), "run: python -m drivetrain_server.config_docs > docs/config.md"


def test_page_lists_every_field_with_its_default():
    page = render()
    for setting in all_settings().values():
        assert f"| `{setting.name}` |" in page
    assert "| `port` | a whole number from 0 to 65535 | `8000` |" in page
    assert '| `max_body_bytes` | a size such as 65536 or "4MiB" from 1KiB to 1GiB | `"16MiB"` |' in page
    assert '| `request_timeout_s` | a number, at least 0.001, or "none" | `"none"` |' in page
