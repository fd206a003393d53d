"""Pictures of the real pages, of `top` and of a dashboard, over the quick-start model; what they show is asserted.

They are written into a temporary folder, or where `PICTURES_FOLDER` points (`make pictures`).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from browser import DESKTOP, PHONE, chromium, page_at
from fakes.serve_process import ServeProcess
from picture_of_dashboard import dashboard_html, prometheus
from picture_of_terminal import terminal_svg

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.real_model

DASHBOARDS = Path(__file__).parents[2] / "deploy" / "grafana"
LIMIT_MS = 90_000
CONFIG = """
[limits]
max_num_seqs = 16
max_model_len = 2048
num_pages = 600

[server]
metrics_public = true
sampling_defaults = { temperature = 0, max_tokens = 44 }

[backend_options.cpu]
threads = 1
"""
FORMS = {
    "desktop-light": {"size": DESKTOP, "color_scheme": "light"},
    "desktop-dark": {"size": DESKTOP, "color_scheme": "dark"},
    "phone-light": {"size": PHONE, "color_scheme": "light", "device_scale_factor": 2, "has_touch": True},
    "phone-dark": {"size": PHONE, "color_scheme": "dark", "device_scale_factor": 2, "has_touch": True},
}
SLOW = pytest.mark.slow
QUESTION = "Explain in two sentences why the sky is blue."


@pytest.fixture(scope="module")
def server(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    folder = tmp_path_factory.mktemp("server")
    with ServeProcess(folder, smollm2_path, CONFIG, name="smollm2-135m-instruct") as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    wanted = os.environ.get("PICTURES_FOLDER")
    folder = Path(wanted) if wanted else tmp_path_factory.mktemp("pictures")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def take(page: Page, path: Path) -> None:
    """A picture that shows something: no plain area has a file of this size."""
    page.screenshot(path=path)
    assert 10_000 < path.stat().st_size < 400_000


@pytest.mark.parametrize("form", ["desktop-light", *(pytest.param(name, marks=SLOW) for name in list(FORMS)[1:])])
def test_the_chat_page(server: ServeProcess, browser: Browser, pictures: Path, form: str) -> None:
    shape: dict[str, Any] = dict(FORMS[form])
    with page_at(browser, server.url, **shape) as page:
        page.locator("#welcome-model", has_text="smollm2").wait_for(state="attached", timeout=LIMIT_MS)
        page.fill("#message", QUESTION)
        page.keyboard.press("Enter")
        answer = page.locator(".turn.assistant").first
        answer.locator(".meta > *").first.wait_for(timeout=LIMIT_MS)
        text = answer.locator(".body").inner_text()
        assert text.startswith("The sky is blue because of a process called Rayleigh scattering"), text
        page.click("#tokens-view")
        tokens = answer.locator(".tok")
        assert tokens.count() > 20
        warm = tokens.evaluate_all("all => all.filter(it => Number(it.style.getPropertyValue('--s')) > 0.2).length")
        assert 0 < warm < tokens.count() / 2, "some tokens surprise, most do not"
        spelled = "".join(tokens.all_inner_texts())
        assert text.split(",")[0] in spelled
        tokens.nth(6).hover()
        assert page.locator("#popover .alt").count() >= 5
        take(page, pictures / f"chat-{form}.png")


def test_the_playground_and_the_reference(server: ServeProcess, browser: Browser, pictures: Path) -> None:
    with page_at(browser, f"{server.url}/playground", color_scheme="light") as page:
        page.select_option("#mode", "choice")
        page.click("#send")
        page.locator("#verdict.good").wait_for(timeout=LIMIT_MS)
        assert page.locator("#answer").inner_text() in ("positive", "neutral", "negative")
        page.select_option("#mode", "json_schema")
        page.fill("#max-tokens", "120")
        page.click("#send")
        page.locator("#verdict.good", has_text="Valid JSON").wait_for(timeout=LIMIT_MS)
        take(page, pictures / "playground-desktop-light.png")
    with page_at(browser, f"{server.url}/reference", color_scheme="light") as page:
        page.locator("#post--v1-chat-completions").wait_for(timeout=LIMIT_MS)
        take(page, pictures / "reference-desktop-light.png")


@contextmanager
def under_load(server: ServeProcess, *, streams: int) -> Iterator[None]:
    """Conversations of several clients until the block ends."""
    ended = threading.Event()

    def talk(number: int) -> None:
        turn = 0
        while not ended.is_set():
            turn += 1
            prompt = f"Client {number}, who is polite and asks {turn} questions, begins. " * 3
            server.complete(prompt=prompt, max_tokens=24 + 4 * number, ignore_eos=True)

    threads = [threading.Thread(target=talk, args=(number,)) for number in range(streams)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


@SLOW
def test_top(server: ServeProcess, browser: Browser, pictures: Path) -> None:
    from drivetrain_server.cli.top_view import History, screen
    from drivetrain_server.watch.figures import figures
    from drivetrain_server.watch.reading import read_metrics

    history = History()
    with under_load(server, streams=6):
        before = read_metrics(server.http.get("/metrics").text, time.monotonic())
        for _ in range(20):
            time.sleep(0.4)
            look = read_metrics(server.http.get("/metrics").text, time.monotonic())
            now = figures(before, look)
            history.add(now)
            before = look
    assert 1 <= now.running <= 6 and now.pages["used"] > 0
    assert max(history.generated) > 0 and now.busy > 0.5
    svg = terminal_svg(screen("http://127.0.0.1:8000", now, history), title="drivetrain top", width=92)
    assert "smollm2-135m-instruct" in svg and "url(http" not in svg
    (pictures / "top.svg").write_text(svg, encoding="utf-8")


@SLOW
def test_a_dashboard(server: ServeProcess, browser: Browser, pictures: Path, tmp_path: Path) -> None:
    """Every query of the dashboards is answered by a real Prometheus that scrapes the real server."""
    with prometheus(server.url, tmp_path) as asked, under_load(server, streams=6):
        time.sleep(24)
        drawn = {name: dashboard_html(DASHBOARDS / f"{name}.json", asked) for name in ("overview", "latency", "engine")}
    assert drawn["overview"].count("<polyline") >= 8
    assert "p99" in drawn["latency"] and "running" in drawn["engine"]
    page_file = tmp_path / "overview.html"
    page_file.write_text(drawn["overview"], encoding="utf-8")
    with page_at(browser, page_file.as_uri(), size=(1280, 860)) as page:
        take(page, pictures / "dashboard.png")
