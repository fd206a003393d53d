"""A headless Chromium for tests of the pages, which remembers whatever a page complains about."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
LIMIT_MS = 60_000
DESKTOP, PHONE = (1280, 800), (390, 844)


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser of this machine; skips the test where there is none."""
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed, and CHROMIUM names none")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def page_at(
    browser: Browser, url: str, *, size: tuple[int, int] = DESKTOP, expected: str = "", **context: Any
) -> Iterator[Page]:
    """A page in a fresh profile. Errors, warnings and breaches of the content policy on its console fail the test.

    Args:
        expected: complaints with this text are as they should be.
    """
    width, height = size
    profile = browser.new_context(viewport={"width": width, "height": height}, **context)
    profile.set_default_timeout(LIMIT_MS)
    page = profile.new_page()
    complaints: list[str] = []
    page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    try:
        page.goto(url)
        yield page
        unexpected = [said for said in complaints if not (expected and expected in said)]
        assert not unexpected, unexpected
    finally:
        profile.close()
