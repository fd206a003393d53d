"""The pages as files: what they may load, and how they are sent."""

from __future__ import annotations

import re

import httpx
import pytest

from drivetrain_server.pages import FOLDER, PAGES, POLICY, static_files
from fakes.engine import FakeEngine
from fakes.server import RunningServer

FILES = static_files()
BROWSER = {"accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}


@pytest.fixture(scope="module")
def client():
    with RunningServer(FakeEngine(), api_keys=("secret",)) as server, httpx.Client(base_url=server.url) as made:
        yield made


def text(name: str) -> str:
    return FILES[name].body.decode()


def test_browsers_get_the_page_and_other_clients_the_list(client):
    page = client.get("/", headers=BROWSER)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["content-security-policy"] == POLICY
    assert page.content == FILES["index.html"].body
    for accept in ("*/*", "application/json", "application/json, text/html"):
        other = client.get("/", headers={"accept": accept})
        assert other.headers["content-type"].startswith("text/plain") and "/v1/chat/completions" in other.text
        assert other.headers["vary"] == "accept"


def test_pages_need_no_key_and_nothing_else_is_open(client):
    for path in (*PAGES, *(f"{FOLDER}{name}" for name in FILES if not name.endswith(".html"))):
        answer = client.get(path, headers=BROWSER)
        assert (answer.status_code, answer.headers["x-content-type-options"]) == (200, "nosniff"), path
    for path in ("/v1/models", "/openapi.json", "/metrics", "/page", "/pagesx"):
        assert client.get(path).status_code == 401, path


@pytest.mark.parametrize(
    "name", ["nothing.js", "index.html", "../__init__.py", "%2e%2e/__init__.py", "..%2f__init__.py"]
)
def test_only_the_files_are_served(client, name):
    answer = client.get(f"{FOLDER}{name}")
    assert answer.status_code in (401, 404)
    assert "import" not in answer.text


def test_a_browser_that_has_a_file_is_sent_nothing(client):
    first = client.get(f"{FOLDER}chat.js")
    again = client.get(f"{FOLDER}chat.js", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert client.get(f"{FOLDER}chat.js", headers={"if-none-match": '"other"'}).content == first.content
    head = client.head(f"{FOLDER}chat.js")
    assert (head.status_code, head.content, head.headers["etag"]) == (200, b"", first.headers["etag"])


def test_policy_lets_only_own_files_run():
    rules = dict(rule.split(" ", 1) for rule in POLICY.split("; "))
    assert rules["default-src"] == "'none'"
    assert {rules["script-src"], rules["style-src"], rules["connect-src"]} == {"'self'"}
    assert "unsafe" not in POLICY


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".html")])
def test_html_has_nothing_inline_and_names_files_that_are_there(name):
    html = text(name)
    assert not re.search(r"\son\w+=|\sstyle=|<style|<script(?![^>]*\bsrc=)", html)
    loaded = re.findall(r'(?:src|href)="([^"#]+)"', html)
    for address in loaded:
        assert not address.startswith(("http:", "https:", "//", "/")), address
        if address.startswith("pages/"):
            assert address.removeprefix("pages/") in FILES
        else:
            assert address in ("./", "playground", "reference", "openapi.json")


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".js")])
def test_scripts_never_turn_text_into_markup_or_code(name):
    script = text(name)
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|setAttribute\(\"style", script
    )
    assert {module.removeprefix("./") for module in re.findall(r'from "([^"]+)"', script)} <= FILES.keys()
    assert "https://" not in script.replace("https?:", "")


def test_pages_stay_light():
    assert sum(len(file.body) for file in FILES.values()) < 100_000
